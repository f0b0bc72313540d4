//! What is no model, or a mangled one, through the program itself: one line that says which file, which key, and what is
//! supported, and it ends.

use std::path::{Path, PathBuf};
use std::process::Command;

use hashwatt::wire::client::Client;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use crate::hostile::gguf_file::{GgufFile, of_text, of_u32};
use crate::hostile::inputs::{Target, files_of};
use crate::hostile::seeds;

/// A sound folder of each seed, and a GGUF file, in a folder of its own.
struct Made {
    at: tempfile::TempDir,
}

impl Made {
    fn folder(seed: &str) -> Made {
        let at = tempfile::tempdir().unwrap();
        let seeds = seeds::of(Target::Folder);
        let (_, bytes) = seeds.iter().find(|(name, _)| name == seed).unwrap();
        for (name, content) in files_of(bytes) {
            std::fs::write(at.path().join(name), content).unwrap();
        }
        Made { at }
    }

    fn empty() -> Made {
        Made { at: tempfile::tempdir().unwrap() }
    }

    fn gguf(change: impl Fn(&mut GgufFile, Vec<u8>) -> Vec<u8>) -> Made {
        let seeds = seeds::of(Target::Gguf);
        let (_, bytes) = seeds.iter().find(|(name, _)| name == "llama.gguf").unwrap();
        let made = Made::empty();
        let changed = change(&mut GgufFile::read(bytes).unwrap(), bytes.clone());
        made.with("model.gguf", &changed)
    }

    fn path(&self, file: &str) -> PathBuf {
        self.at.path().join(file)
    }

    fn with(self, file: &str, bytes: &[u8]) -> Made {
        std::fs::write(self.path(file), bytes).unwrap();
        self
    }

    fn without(self, file: &str) -> Made {
        std::fs::remove_file(self.path(file)).unwrap();
        self
    }

    /// The first bytes of a file, by a share of them.
    fn cut(self, file: &str, share: f64) -> Made {
        let bytes = std::fs::read(self.path(file)).unwrap();
        self.with(file, &bytes[..(bytes.len() as f64 * share) as usize])
    }

    fn json(self, file: &str, change: impl Fn(&mut Value)) -> Made {
        let mut json: Value = serde_json::from_slice(&std::fs::read(self.path(file)).unwrap()).unwrap();
        change(&mut json);
        self.with(file, json.to_string().as_bytes())
    }

    /// The weights with each tensor passed through `change`; `None` leaves it out.
    fn tensors(self, change: impl Fn(&str, Dtype) -> Option<(String, Dtype)>) -> Made {
        let bytes = std::fs::read(self.path("model.safetensors")).unwrap();
        let weights = SafeTensors::deserialize(&bytes).unwrap();
        let all = weights.iter().filter_map(|(name, view)| {
            let (name, dtype) = change(name, view.dtype())?;
            Some((name, TensorView::new(dtype, view.shape().to_vec(), view.data()).unwrap()))
        });
        let changed = safetensors::serialize(all, None).unwrap();
        self.with("model.safetensors", &changed)
    }
}

/// What a command says of it: its code, and the one line of its error.
fn said(command: &[&str], model: &Path) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut program = Command::new(env!("CARGO_BIN_EXE_hashwatt"));
    program.current_dir(folder.path()).env("HASHWATT_STATE_DIR", folder.path());
    // A backtrace is nothing for who has a bad file.
    program.env("RUST_BACKTRACE", "1").stdin(std::process::Stdio::null());
    let flags = ["--device", "cpu", "--threads", "1", "--log-level", "info"];
    let output = program.args(command).arg("--model").arg(model).args(flags).output().unwrap();
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(1), "{command:?} {model:?}: {out}{error}");
    let (own, logged): (Vec<&str>, _) = error.lines().partition(|line| line.starts_with("hashwatt: "));
    assert_eq!(own.len(), 1, "{command:?} {model:?}: {error}");
    let told_otherwise =
        |line: &&str| ["ERROR", "WARN", "panic", "backtrace"].iter().any(|w| line.contains(w));
    assert_eq!(logged.into_iter().find(told_otherwise), None, "{command:?} {model:?}: {error}");
    assert_eq!(error.lines().last(), Some(own[0]));
    own[0].to_string()
}

/// What is given as the model, and what its error has to say.
type Case = (Made, &'static str, &'static [&'static str]);

fn llama() -> Made {
    Made::folder("llama.folder")
}

/// A configuration or weights that are not what they should be.
fn of_folders() -> Vec<Case> {
    let config =
        |key: &'static str, value: Value| llama().json("config.json", move |c| c[key] = value.clone());
    let without =
        |key: &'static str| llama().json("config.json", |c| drop(c.as_object_mut().unwrap().remove(key)));
    const UP: &str = "model.layers.0.mlp.up_proj.weight";
    let index = |file: &str, weights: &str| {
        let map = json!({"weight_map": {UP: file, "model.norm.weight": weights}});
        llama().with("model.safetensors.index.json", map.to_string().as_bytes())
    };
    vec![
        (
            config("architectures", json!(["FalconForCausalLM"])),
            "",
            &["config.json: architectures", "FalconForCausalLM", "LlamaForCausalLM"],
        ),
        (without("architectures"), "", &["config.json: architectures", "LlamaForCausalLM"]),
        (without("hidden_size"), "", &["config.json: hidden_size", "missing"]),
        (config("hidden_size", json!("wide")), "", &["config.json: hidden_size"]),
        (config("num_hidden_layers", json!(-1)), "", &["config.json: num_hidden_layers"]),
        (config("rms_norm_eps", json!(-1.0)), "", &["config.json: rms_norm_eps"]),
        (config("hidden_act", json!("relu6")), "", &["config.json: hidden_act", "relu6", "silu"]),
        (
            config("vocab_size", json!(6)),
            "",
            &["model.safetensors", "model.embed_tokens.weight", "[5, 8]", "[6, 8]"],
        ),
        (llama().with("config.json", b"{\"hidden_size\": 8,"), "", &["config.json: ", "line 1"]),
        (llama().with("config.json", b"[]"), "", &["config.json", "object"]),
        (llama().without("config.json"), "", &["config.json: is missing", "safetensors", "GGUF"]),
        (
            llama().tensors(|name, kind| (name != UP).then(|| (name.into(), kind))),
            "",
            &["model.safetensors", UP, "missing"],
        ),
        (
            llama().tensors(|name, kind| Some((name.replace("model.layers", "transformer.h"), kind))),
            "",
            &["model.safetensors", "model.layers.0", "missing"],
        ),
        (
            llama().tensors(|name, kind| Some((name.into(), if name == UP { Dtype::I32 } else { kind }))),
            "",
            &["model.safetensors", UP, "I32", "BF16"],
        ),
        (llama().cut("model.safetensors", 0.7), "", &["model.safetensors"]),
        (llama().cut("model.safetensors", 0.0), "", &["model.safetensors"]),
        (llama().with("model.safetensors", &[b'x'; 200]), "", &["model.safetensors"]),
        (llama().without("model.safetensors"), "", &["model.safetensors"]),
        (llama(), "model.safetensors", &["model.safetensors", "folder", "config.json"]),
        (llama(), "config.json", &["config.json", "GGUF", "folder"]),
        (
            index("model-00002-of-00002.safetensors", "model.safetensors"),
            "",
            &["model-00002-of-00002.safetensors", "No such file"],
        ),
        (index("../model.safetensors", "model.safetensors"), "", &["model.safetensors.index.json", UP]),
        (
            llama().with("model.safetensors.index.json", b"{\"weight_map\": 3}"),
            "",
            &["model.safetensors.index.json", "weight_map"],
        ),
    ]
}

/// Files about text; `models fit` reads none of them.
fn of_texts() -> Vec<Case> {
    let large = hashwatt::text::tokenizer::stand_in_json(600).unwrap().to_string();
    vec![
        (
            llama().json("generation_config.json", |c| c["eos_token_id"] = json!(99)),
            "",
            &["generation_config.json: eos_token_id", "below 5"],
        ),
        (
            llama().with("tokenizer.json", large.as_bytes()),
            "",
            &["tokenizer.json", "ids up to 599", "vocabulary is 5"],
        ),
        (llama().cut("tokenizer.json", 0.5), "", &["tokenizer.json"]),
        (llama().with("tokenizer.json", b"{\"model\": 7}"), "", &["tokenizer.json"]),
        (
            llama().json("tokenizer.json", |t| t["added_tokens"][1]["id"] = json!(7)),
            "",
            &["tokenizer.json: added_tokens[1]", "id 7"],
        ),
        (llama().json("tokenizer.json", |t| t["model"]["vocab"] = json!({"a": 0})), "", &["tokenizer.json"]),
        (llama().without("tokenizer.json"), "", &["tokenizer.json: is missing", "safetensors", "GGUF"]),
        (
            llama().json("tokenizer_config.json", |t| t["chat_template"] = "{% if %}".into()),
            "",
            &["tokenizer_config.json", "chat_template", "syntax error"],
        ),
        (
            llama().with("chat_template.jinja", b"{{ x | nothing }}{% endif %}"),
            "",
            &["chat_template.jinja", "chat:1"],
        ),
        (llama().with("chat_template.jinja", b"\xff"), "", &["chat_template.jinja"]),
        (llama().with("tokenizer_config.json", b"{"), "", &["tokenizer_config.json"]),
        (llama().with("generation_config.json", b"no"), "", &["generation_config.json"]),
    ]
}

/// What is no model at all, and what is never read.
fn of_kinds() -> Vec<Case> {
    vec![
        (Made::empty(), "", &["config.json: is missing", "safetensors", "GGUF"]),
        (Made::empty(), "nothing", &["no model", "nothing", "config.json", "GGUF"]),
        (
            Made::empty().with("adapter_config.json", b"{}").with("adapter_model.safetensors", b""),
            "",
            &["adapter_config.json", "adapter", "safetensors", "GGUF"],
        ),
        (
            Made::empty().with("adapter_model.safetensors", b""),
            "adapter_model.safetensors",
            &["adapter_model.safetensors", "config.json"],
        ),
        (
            llama().without("model.safetensors").with("pytorch_model.bin", b"\x80\x02"),
            "",
            &["pytorch_model.bin", "pickle", "safetensors", "GGUF"],
        ),
        (
            llama().without("model.safetensors").with("consolidated.00.pth", b"PK"),
            "",
            &["consolidated.00.pth", "pickle"],
        ),
        (
            Made::empty().with("weights.pt", b"PK\x03\x04"),
            "weights.pt",
            &["weights.pt", "pickle", "safetensors", "GGUF"],
        ),
        (Made::empty().with("model.onnx", b"\x08"), "model.onnx", &["model.onnx", "GGUF"]),
    ]
}

fn of_gguf() -> Vec<Case> {
    vec![
        (Made::gguf(|_, bytes| bytes[..bytes.len() / 3].to_vec()), "model.gguf", &["model.gguf"]),
        (
            Made::gguf(|_, bytes| bytes[..bytes.len() - 40].to_vec()),
            "model.gguf",
            &["model.gguf: tensor blk.0.", "beyond the end"],
        ),
        (Made::gguf(|_, bytes| bytes[..10].to_vec()), "model.gguf", &["model.gguf"]),
        (Made::gguf(|_, _| Vec::new()), "model.gguf", &["model.gguf", "GGUF"]),
        (Made::gguf(|_, bytes| [b"GGML", &bytes[4..]].concat()), "model.gguf", &["model.gguf", "GGUF"]),
        (
            Made::gguf(|_, bytes| [&bytes[..4], &[1, 0, 0, 0], &bytes[8..]].concat()),
            "model.gguf",
            &["model.gguf", "version 1", "2 and 3"],
        ),
        (
            Made::gguf(|_, bytes| [&bytes[..4], &[0, 0, 0, 3], &bytes[8..]].concat()),
            "model.gguf",
            &["model.gguf", "big-endian"],
        ),
        (
            Made::gguf(|file, _| {
                file.replace("general.architecture", of_text("mamba"));
                file.bytes()
            }),
            "model.gguf",
            &["model.gguf", "general.architecture", "mamba", "llama"],
        ),
        (
            Made::gguf(|file, _| {
                file.replace("llama.embedding_length", of_text("wide"));
                file.bytes()
            }),
            "model.gguf",
            &["model.gguf", "llama.embedding_length"],
        ),
        (
            Made::gguf(|file, _| {
                file.replace("llama.block_count", of_u32(2));
                file.bytes()
            }),
            "model.gguf",
            &["model.gguf", "blk.1.", "missing"],
        ),
        (
            Made::gguf(|file, _| {
                file.replace("tokenizer.ggml.model", of_text("rwkv"));
                file.bytes()
            }),
            "model.gguf",
            &["model.gguf", "tokenizer.ggml.model", "rwkv", "gpt2"],
        ),
        (
            Made::gguf(|file, _| {
                file.replace("tokenizer.ggml.eos_token_id", of_u32(70));
                file.bytes()
            }),
            "model.gguf",
            &["model.gguf", "eos_token_id"],
        ),
        (
            Made::gguf(|file, _| {
                file.replace("tokenizer.chat_template", of_text("{% for %}"));
                file.bytes()
            }),
            "model.gguf",
            &["model.gguf", "tokenizer.chat_template", "syntax error"],
        ),
        (
            Made::gguf(|file, _| {
                file.replace("general.type", of_text("adapter"));
                file.bytes()
            }),
            "model.gguf",
            &["model.gguf", "general.type", "adapter"],
        ),
        (
            Made::gguf(|_, bytes| bytes).with("mmproj.gguf", &Made::gguf_of("clip")),
            "mmproj.gguf",
            &["mmproj.gguf", "general.architecture", "clip"],
        ),
    ]
}

impl Made {
    fn gguf_of(architecture: &str) -> Vec<u8> {
        let mut file = GgufFile::new();
        file.value("general.architecture", of_text(architecture));
        file.bytes()
    }
}

fn check(cases: Vec<Case>, commands: &[&[&str]]) {
    let mut wrong = Vec::new();
    for (made, file, words) in cases {
        for command in commands {
            let error = said(command, &made.path(file));
            let lacks: Vec<&&str> = words.iter().filter(|word| !error.contains(**word)).collect();
            if !lacks.is_empty() || error.len() > 900 {
                wrong.push(format!("{command:?} lacks {lacks:?}: {error}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of them:\n{}", wrong.len(), wrong.join("\n"));
}

const OPENS: &[&[&str]] = &[&["serve", "--check"], &["models", "fit"], &["chat"]];
const SERVES: &[&[&str]] = &[&["serve"], &["chat"]];

#[test]
fn a_bad_folder_is_one_line_that_names_file_and_key() {
    check(of_folders(), OPENS);
}

#[test]
fn bad_files_of_text_are_one_line_that_names_them() {
    check(of_texts(), SERVES);
}

#[test]
fn what_is_no_model_is_told_what_is_one() {
    check(of_kinds(), OPENS);
}

#[test]
fn a_bad_gguf_file_is_one_line_that_names_it() {
    check(of_gguf(), SERVES);
}

/// Where a tensor is found decides, not where the index has it.
#[test]
fn an_index_that_names_another_shard_does_no_harm() {
    let none = safetensors::serialize(Vec::<(&str, TensorView)>::new(), None).unwrap();
    let map = json!({"weight_map": {"model.norm.weight": "b.safetensors", "model.embed_tokens.weight": "model.safetensors"}});
    let made = llama().with("b.safetensors", &none);
    let made = made.with("model.safetensors.index.json", map.to_string().as_bytes());
    let model = made.path("").display().to_string();
    drop(crate::serving::serve(&[("model", &model), ("threads", "1")]));
}

#[test]
fn without_a_template_chats_are_refused_and_completions_answered() {
    let made =
        llama().json("tokenizer_config.json", |t| drop(t.as_object_mut().unwrap().remove("chat_template")));
    let model = made.path("").display().to_string();
    let unit = crate::serving::serve(&[("model", &model), ("threads", "1"), ("served-model-name", "bare")]);
    let client = Client::new(&unit.url).unwrap();
    let ask = |path: &str, body: Value| -> (u16, Value) {
        unit.runtime.block_on(async {
            let mut answer = client.post_json(path, body.to_string().as_bytes()).await.unwrap();
            (answer.status, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap())
        })
    };
    let chat = json!({"messages": [{"role": "user", "content": "ab"}], "max_tokens": 2});
    let (status, refused) = ask("/v1/chat/completions", chat);
    let message = refused["error"]["message"].as_str().unwrap();
    assert!(
        status == 400 && message.contains("no chat template") && message.contains("/v1/completions"),
        "{refused}"
    );
    let (status, answer) =
        ask("/v1/completions", json!({"prompt": "ab", "max_tokens": 2, "ignore_eos": true}));
    assert_eq!((status, &answer["usage"]["completion_tokens"]), (200, &json!(2)), "{answer}");
}
