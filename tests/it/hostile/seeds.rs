//! Small inputs that are sound, to be changed.

use hashwatt::model::decoder::tensors;
use hashwatt::model::encoder::EncoderCheckpoint;
use hashwatt::model::weights::WeightSource;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use super::gguf_file::{GgufFile, of_f32, of_list, of_text, of_u32};
use super::inputs::{Target, folder_of};
use crate::support::{checkpoint, pool};

/// By name.
pub fn of(target: Target) -> Vec<(String, Vec<u8>)> {
    match target {
        Target::Gguf => vec![
            ("llama.gguf".into(), gguf("llama", 8, &byte_level("llama-bpe"), 0)),
            ("pieces.gguf".into(), gguf("llama", 8, &pieces(), 0)),
            ("q8.gguf".into(), gguf("qwen3", 32, &byte_level("qwen2"), 0)),
            ("experts.gguf".into(), gguf("qwen3moe", 8, &byte_level("gpt-2"), 2)),
        ],
        Target::Folder => vec![
            (
                "llama.folder".into(),
                decoder_folder(json!({"architectures": ["LlamaForCausalLM"]}), Dtype::F32),
            ),
            (
                "phi3.folder".into(),
                decoder_folder(
                    json!({"architectures": ["Phi3ForCausalLM"], "rope_scaling":
                {"type": "longrope", "short_factor": [1.0, 1.0, 2.0, 2.0], "long_factor": [1.0, 1.0, 2.0, 2.0]},
                "original_max_position_embeddings": 32}),
                    Dtype::BF16,
                ),
            ),
            (
                "experts.folder".into(),
                decoder_folder(
                    json!({"architectures": ["MixtralForCausalLM"],
                "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 16}),
                    Dtype::F16,
                ),
            ),
            ("bert.folder".into(), encoder_folder()),
        ],
        Target::Tokenizer => tokenizers(),
        Target::Template => templates(),
    }
}

fn config(more: &Value) -> Value {
    let mut config = json!({
        "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8,
        "intermediate_size": 8, "vocab_size": 5, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": true, "hidden_act": "silu", "eos_token_id": 4,
    });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config
}

/// Numbers of a type, from the seed.
fn numbers(source: &WeightSource, name: &str, shape: &[usize], dtype: Dtype) -> Vec<u8> {
    let weight = source.weight(name, shape).unwrap().to_f32();
    let bytes = |x: &f32| match dtype {
        Dtype::F16 => half::f16::from_f32(*x).to_le_bytes().to_vec(),
        Dtype::BF16 => half::bf16::from_f32(*x).to_le_bytes().to_vec(),
        _ => x.to_le_bytes().to_vec(),
    };
    weight.f32s().iter().flat_map(bytes).collect()
}

type Tensors = Vec<(String, Vec<usize>)>;

fn safetensors_of(source: &WeightSource, tensors: &[(String, Vec<usize>)], dtype: Dtype) -> Vec<u8> {
    let all: Vec<_> =
        tensors.iter().map(|(name, shape)| (name, shape, numbers(source, name, shape, dtype))).collect();
    let views = all
        .iter()
        .map(|(name, shape, bytes)| (name, TensorView::new(dtype, (*shape).clone(), bytes).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

fn folder(config: &Value, weights: Vec<u8>) -> Vec<u8> {
    let text = |name: &str, json: &Value| (name.to_string(), json.to_string().into_bytes());
    folder_of(&[
        text("config.json", config),
        text("tokenizer.json", &tokenizer_json()),
        text(
            "tokenizer_config.json",
            &json!({"chat_template": "{{ messages[0].content }}{{ eos_token }}",
                                              "eos_token": {"content": "</s>"}}),
        ),
        text("generation_config.json", &json!({"eos_token_id": [4], "temperature": 0.7})),
        ("model.safetensors".into(), weights),
    ])
}

fn decoder_folder(more: Value, dtype: Dtype) -> Vec<u8> {
    let config = config(&more);
    let of = checkpoint(config.clone());
    let all: Tensors = tensors(&of.spec).collect();
    folder(&config, safetensors_of(&of.source, &all, dtype))
}

fn encoder_folder() -> Vec<u8> {
    let config = json!({
        "architectures": ["BertModel"], "model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 5, "max_position_embeddings": 16,
        "type_vocab_size": 2, "pad_token_id": 0, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.02,
        "position_embedding_type": "absolute",
    });
    let of = EncoderCheckpoint::synthetic("seed", "config.json", config.clone(), &pool(1)).unwrap();
    let all: Tensors = of.tensors.iter().map(|(name, shape)| (name.clone(), shape.clone())).collect();
    folder(&config, safetensors_of(&of.source, &all, Dtype::F32))
}

/// Five tokens, byte-level.
fn tokenizer_json() -> Value {
    let token = |id: u8, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [token(3, "<s>"), token(4, "</s>")],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": r"\p{L}+|\p{N}{1,3}|\s+(?!\S)"}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [3], "tokens": ["<s>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
    })
}

/// Those of each family's construction: the goldens' own.
fn tokenizers() -> Vec<(String, Vec<u8>)> {
    let files = [include_str!("../cases/text_byte_level.json"), include_str!("../cases/text_pieces.json")];
    let mut all = vec![("small.json".to_string(), tokenizer_json().to_string().into_bytes())];
    for file in files {
        let goldens: Value = serde_json::from_str(file).unwrap();
        for made in goldens["tokenizers"].as_array().unwrap() {
            let name = made["name"].as_str().unwrap().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
            all.push((format!("{name}.json"), made["tokenizer"].to_string().into_bytes()));
        }
    }
    all
}

fn templates() -> Vec<(String, Vec<u8>)> {
    let goldens: Value = serde_json::from_str(include_str!("../cases/text_jinja.json")).unwrap();
    let small = goldens["cases"].as_array().unwrap().iter().enumerate();
    let mut all: Vec<_> = small
        .map(|(i, case)| (format!("small-{i}.jinja"), case["source"].as_str().unwrap().as_bytes().to_vec()))
        .collect();
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/cases/chat_templates");
    for file in std::fs::read_dir(folder).unwrap() {
        let file = file.unwrap();
        all.push((file.file_name().into_string().unwrap(), std::fs::read(file.path()).unwrap()));
    }
    all.sort();
    all
}

/// Its key, its type, its bytes.
type Named = (&'static str, (u32, Vec<u8>));

fn byte_level(pre: &str) -> Vec<Named> {
    let texts = |all: &[&str]| of_list(8, &all.iter().map(|text| of_text(text)).collect::<Vec<_>>());
    let kinds: Vec<_> =
        [1, 1, 1, 3, 3].into_iter().map(|kind: i32| (5, kind.to_le_bytes().to_vec())).collect();
    vec![
        ("tokenizer.ggml.model", of_text("gpt2")),
        ("tokenizer.ggml.pre", of_text(pre)),
        ("tokenizer.ggml.tokens", texts(&["a", "b", "ab", "<s>", "</s>"])),
        ("tokenizer.ggml.token_type", of_list(5, &kinds)),
        ("tokenizer.ggml.merges", texts(&["a b"])),
        ("tokenizer.ggml.bos_token_id", of_u32(3)),
        ("tokenizer.ggml.eos_token_id", of_u32(4)),
        ("tokenizer.chat_template", of_text("{{ messages[0].content }}")),
    ]
}

fn pieces() -> Vec<Named> {
    let texts: Vec<_> = ["<unk>", "<s>", "▁", "a", "▁a"].map(of_text).to_vec();
    let kinds: Vec<_> =
        [2, 3, 1, 1, 1].into_iter().map(|kind: i32| (5, kind.to_le_bytes().to_vec())).collect();
    let scores: Vec<_> = [0.0, 0.0, -2.0, -3.0, -1.0].into_iter().map(of_f32).collect();
    vec![
        ("tokenizer.ggml.model", of_text("llama")),
        ("tokenizer.ggml.tokens", of_list(8, &texts)),
        ("tokenizer.ggml.scores", of_list(6, &scores)),
        ("tokenizer.ggml.token_type", of_list(5, &kinds)),
        ("tokenizer.ggml.eos_token_id", of_u32(1)),
        ("tokenizer.ggml.add_space_prefix", (7, vec![1])),
    ]
}

/// A layer of `hidden` numbers, those of matrices Q8_0 where a row is a block; `experts` in place of its network, or 0.
fn gguf(architecture: &str, hidden: u64, text: &[Named], experts: u64) -> Vec<u8> {
    let mut file = GgufFile::new();
    file.value("general.architecture", of_text(architecture));
    for (key, value) in [
        ("embedding_length", hidden),
        ("block_count", 1),
        ("attention.head_count", 1),
        ("attention.head_count_kv", 1),
        ("attention.key_length", 8),
        ("feed_forward_length", 8),
        ("context_length", 64),
        ("rope.dimension_count", 8),
    ] {
        file.value(&format!("{architecture}.{key}"), of_u32(value as u32));
    }
    if experts > 0 {
        for (key, value) in
            [("expert_count", experts), ("expert_used_count", 1), ("expert_feed_forward_length", 8)]
        {
            file.value(&format!("{architecture}.{key}"), of_u32(value as u32));
        }
    }
    file.value(&format!("{architecture}.attention.layer_norm_rms_epsilon"), of_f32(1e-5));
    file.value(&format!("{architecture}.rope.freq_base"), of_f32(10_000.0));
    text.iter().for_each(|(key, value)| file.value(key, value.clone()));
    let mut matrix = |name: &str, lengths: &[u64]| {
        let count: u64 = lengths.iter().product();
        if lengths[0].is_multiple_of(32) {
            let block = [&half::f16::from_f32(0.01).to_le_bytes()[..], &[3; 32]].concat();
            file.tensor(name, lengths, 8, &block.repeat(count as usize / 32));
        } else {
            file.tensor(name, lengths, 1, &half::f16::from_f32(0.1).to_le_bytes().repeat(count as usize));
        }
    };
    matrix("token_embd.weight", &[hidden, 5]);
    for (name, lengths) in [
        ("attn_q", [hidden, 8]),
        ("attn_k", [hidden, 8]),
        ("attn_v", [hidden, 8]),
        ("attn_output", [8, hidden]),
    ] {
        matrix(&format!("blk.0.{name}.weight"), &lengths);
    }
    match experts {
        0 => {
            for (name, lengths) in
                [("ffn_gate", [hidden, 8]), ("ffn_up", [hidden, 8]), ("ffn_down", [8, hidden])]
            {
                matrix(&format!("blk.0.{name}.weight"), &lengths);
            }
        }
        experts => {
            matrix("blk.0.ffn_gate_inp.weight", &[hidden, experts]);
            for (name, [cols, rows]) in
                [("ffn_gate_exps", [hidden, 8]), ("ffn_up_exps", [hidden, 8]), ("ffn_down_exps", [8, hidden])]
            {
                matrix(&format!("blk.0.{name}.weight"), &[cols, rows, experts]);
            }
        }
    }
    let mut norm = |name: &str, length: u64| {
        file.tensor(name, &[length], 0, &1f32.to_le_bytes().repeat(length as usize))
    };
    ["output_norm.weight", "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight"]
        .iter()
        .for_each(|name| norm(name, hidden));
    if architecture.starts_with("qwen3") {
        ["blk.0.attn_q_norm.weight", "blk.0.attn_k_norm.weight"].iter().for_each(|name| norm(name, 8));
    }
    file.bytes()
}
