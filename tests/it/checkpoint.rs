//! Checkpoints in folders: what is written is read back the same, and a bad one is one clear error.

use std::path::Path;

use hashwatt::model::Checkpoint;
use hashwatt::model::decoder::{Precision, tensors};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;

use crate::support::{Shape, Steps, pool, prompt, qwen3};

/// Writes a small model, with every tensor passed through `change` (`None` leaves it out).
fn write(dir: &Path, change: impl Fn(&str, Vec<f32>, Vec<usize>) -> Option<(Vec<f32>, Vec<usize>)>) {
    let config = qwen3(1);
    let source = crate::support::checkpoint(config.clone());
    let mut data: Vec<(String, Vec<u8>, Vec<usize>)> = Vec::new();
    for (name, shape) in tensors(&source.spec) {
        let weight = source.source.weight(&name, &shape).unwrap();
        let numbers = (0..weight.rows() * weight.cols()).map(|i| weight.get(i)).collect();
        if let Some((numbers, shape)) = change(&name, numbers, shape) {
            data.push((name, numbers.iter().flat_map(|x: &f32| x.to_le_bytes()).collect(), shape));
        }
    }
    let views = data.iter().map(|(n, d, s)| (n, TensorView::new(Dtype::F32, s.clone(), d).unwrap()));
    safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let tokenizer = hashwatt::text::tokenizer::stand_in_json(517).unwrap();
    std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}

/// Opens and loads as `serve --check` does; the error's text.
fn check(dir: &Path) -> Result<(), String> {
    use hashwatt::cli::assemble;
    use hashwatt::clock::Clock;
    use hashwatt::config::Resolved;
    use hashwatt::unit::Unit;
    let flags = [("model", dir.display().to_string()), ("threads", "1".into())];
    let config = Resolved::merge(&flags, &[]).unwrap().config().unwrap();
    let unit = Unit::new(Clock::system());
    let opened = assemble::open(&config, &unit).map_err(|e| format!("{e:#}"))?;
    assemble::load(&config, opened.chat().unwrap(), true).map(drop).map_err(|e| format!("{e:#}"))
}

/// Without a scan of all weights, a number of a matrix shows in the warm-up: its error says what names the tensor.
#[test]
fn a_matrix_with_nan_is_refused_at_the_start_with_the_command_that_names_it() {
    use hashwatt::cli::assemble;
    use hashwatt::clock::Clock;
    use hashwatt::config::Resolved;
    use hashwatt::engine::step_log::Observed;
    use hashwatt::unit::Unit;
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), |name, mut numbers, s| {
        if name.contains("layers.1.mlp.down_proj") {
            numbers[17] = f32::NAN;
        }
        Some((numbers, s))
    });
    let flags = [("model", dir.path().display().to_string()), ("threads", "1".into())];
    let config = Resolved::merge(&flags, &[]).unwrap().config().unwrap();
    let opened = assemble::open(&config, &Unit::new(Clock::system())).unwrap();
    let decoder = assemble::load(&config, opened.chat().unwrap(), false).unwrap();
    let observed = vec![Observed::default()];
    let started = assemble::start_engines(&config, &opened, Some(decoder), &Clock::system(), observed, &[]);
    let error = format!("{:#}", started.err().unwrap());
    assert!(error.contains("serve --check") && error.contains("cpu:0"), "{error}");
    let named = check(dir.path()).unwrap_err();
    assert!(named.contains("layers.1.mlp.down_proj") && named.contains("17"), "{named}");
}

#[test]
fn a_mapped_folder_gives_the_logits_of_its_source() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), |_, n, s| Some((n, s)));
    check(dir.path()).unwrap();
    let folder = Checkpoint::open(dir.path().to_str().unwrap(), &pool(1)).unwrap();
    assert!(folder.source.is_mapped());
    let p = [prompt(30, 517, 5)];
    let run = |c: &Checkpoint| {
        let decoder = c.load(Precision::AsStored, true, &|_| {}).unwrap();
        Steps::new(&std::sync::Arc::new(decoder), Shape::default()).run(&p, 4)
    };
    assert_eq!(run(&folder), run(&crate::support::checkpoint(qwen3(1))));
}

#[test]
fn a_bad_checkpoint_is_one_error_that_names_file_and_tensor() {
    const UP: &str = "model.layers.1.mlp.up_proj.weight";
    const NORM: &str = "model.layers.2.self_attn.k_norm.weight";
    let error = |break_it: &dyn Fn(&Path)| {
        let dir = tempfile::tempdir().unwrap();
        break_it(dir.path());
        let error = check(dir.path()).unwrap_err();
        assert!(!error.contains('\n'), "{error}");
        error
    };
    let has = |error: String, parts: &[&str]| {
        assert!(parts.iter().all(|p| error.contains(p)), "{parts:?} are not in: {error}");
    };
    let whole = |dir: &Path| write(dir, |_, n, s| Some((n, s)));

    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        let gone = error(&|d| {
            whole(d);
            std::fs::remove_file(d.join(file)).unwrap();
        });
        has(gone, &[file]);
    }
    let missing = error(&|d| write(d, |name, n, s| (name != UP).then_some((n, s))));
    has(missing, &["model.safetensors", UP, "missing"]);
    let shape = error(&|d| {
        write(d, |name, n, s| match name == UP {
            true => Some((n[..200 * 330].to_vec(), vec![330, 200])),
            false => Some((n, s)),
        });
    });
    has(shape, &["model.safetensors", UP, "[330, 200]", "[331, 200]"]);
    let truncated = error(&|d| {
        whole(d);
        let file = d.join("model.safetensors");
        let bytes = std::fs::read(&file).unwrap();
        std::fs::write(file, &bytes[..bytes.len() - 4000]).unwrap();
    });
    has(truncated, &["model.safetensors"]);
    for name in [UP, NORM] {
        let nan = error(&|d| {
            write(d, |n, mut numbers, s| {
                if n == name {
                    numbers[17] = f32::NAN;
                }
                Some((numbers, s))
            });
        });
        has(nan, &["model.safetensors", name, "17", "NaN"]);
    }
    let config = |key: &str, value: serde_json::Value| {
        error(&|d| {
            whole(d);
            let mut config = qwen3(1);
            config[key] = value.clone();
            std::fs::write(d.join("config.json"), config.to_string()).unwrap();
        })
    };
    has(config("architectures", json!(["FalconForCausalLM"])), &["config.json", "FalconForCausalLM"]);
    has(config("eos_token_id", json!(99_999)), &["config.json", "eos_token_id"]);
    has(config("hidden_size", json!("wide")), &["config.json", "hidden_size"]);
    let vocabulary = error(&|d| {
        whole(d);
        let tokenizer = hashwatt::text::tokenizer::stand_in_json(600).unwrap();
        std::fs::write(d.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    });
    has(vocabulary, &["tokenizer.json", "517"]);
    let garbage = error(&|d| {
        whole(d);
        std::fs::write(d.join("tokenizer.json"), "{\"model\": 7}").unwrap();
    });
    has(garbage, &["tokenizer.json"]);
    let shards = error(&|d| {
        whole(d);
        let index = json!({"weight_map": {UP: "../../etc/passwd"}});
        std::fs::write(d.join("model.safetensors.index.json"), index.to_string()).unwrap();
    });
    has(shards, &["model.safetensors.index.json", UP]);
}

#[test]
fn sharded_folders_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let half = |first: bool| {
        write(dir.path(), |name, n, s| (name.contains("layers.0") == first).then_some((n, s)));
        let to = dir.path().join(if first { "a.safetensors" } else { "b.safetensors" });
        std::fs::rename(dir.path().join("model.safetensors"), to).unwrap();
    };
    half(true);
    half(false);
    let of = crate::support::checkpoint(qwen3(1));
    let map: serde_json::Map<_, _> = tensors(&of.spec)
        .map(|(n, _)| {
            let file = if n.contains("layers.0") { "a.safetensors" } else { "b.safetensors" };
            (n, json!(file))
        })
        .collect();
    let index = json!({"weight_map": map}).to_string();
    std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    check(dir.path()).unwrap();
}

#[test]
fn a_pickle_or_an_adapter_in_a_folder_is_refused_by_its_file() {
    for (files, words) in [
        (&["config.json", "pytorch_model.bin"][..], &["pytorch_model.bin", "pickle", "safetensors"][..]),
        (&["model.pt"], &["model.pt", "pickle"]),
        (&["adapter_config.json", "adapter_model.safetensors"], &["adapter_config.json", "adapter", "GGUF"]),
        (&["adapter_config.json", "adapter_model.bin"], &["adapter_config.json", "adapter"]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        files.iter().for_each(|f| std::fs::write(dir.path().join(f), "{}").unwrap());
        let error = check(dir.path()).unwrap_err();
        assert!(words.iter().all(|w| error.contains(w)), "{error}");
        let pickle = dir.path().join(files[files.len() - 1]);
        let of_file = check(&pickle).unwrap_err();
        assert!(of_file.contains("pickle") || of_file.contains("folder"), "{of_file}");
    }
}

#[test]
fn a_snapshot_of_the_hub_s_cache_is_called_as_its_repository() {
    let dir = tempfile::tempdir().unwrap();
    let snapshot = dir.path().join("models--site--tiny--small/snapshots/0123");
    std::fs::create_dir_all(&snapshot).unwrap();
    write(&snapshot, |_, n, s| Some((n, s)));
    let name = |folder: &Path| Checkpoint::open(folder.to_str().unwrap(), &pool(1)).unwrap().name;
    assert_eq!(name(&snapshot), "site/tiny--small");
    let plain = dir.path().join("tiny");
    std::fs::rename(&snapshot, &plain).unwrap();
    assert_eq!(name(&plain), "tiny");
}
