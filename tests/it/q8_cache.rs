//! `--kv-cache-dtype q8`: near to the exact cache and nearer than FP8, the same bits however the work is cut, its size.

use std::process::Command;
use std::sync::Arc;

use hashwatt::cli::assemble;
use hashwatt::clock::Clock;
use hashwatt::config::{Config, Resolved};
use hashwatt::model::decoder::{Decoder, Precision};
use hashwatt::model::kv_cache::CacheType;
use hashwatt::unit::Unit;
use hashwatt::wire::client::Client;
use serde_json::{Value, json};

use crate::serving::{serve, stream};
use crate::support::{Shape, Steps, checkpoint, llama, others, prompt, qwen3};

/// Heads of 64, 80, 128 and 256; windows; windows with capped scores.
fn models() -> Vec<(&'static str, Value)> {
    let of_dim = |dim: usize| {
        let mut config = qwen3(2);
        config["head_dim"] = dim.into();
        config
    };
    let special = ["Gemma2ForCausalLM", "MistralForCausalLM"];
    let mut all = vec![("llama", llama(1)), ("80", of_dim(80)), ("qwen3", qwen3(4)), ("256", of_dim(256))];
    all.extend(others().into_iter().filter(|(name, _)| special.contains(name)));
    all
}

fn load(config: &Value, precision: Precision) -> Decoder {
    checkpoint(config.clone()).load(precision, true, &|_| {}).unwrap()
}

/// The largest difference, as a share of the largest logit.
fn difference(want: &[Vec<Vec<f32>>], got: &[Vec<Vec<f32>>]) -> f32 {
    let (want, got) = (want.iter().flatten().flatten(), got.iter().flatten().flatten());
    let largest = want.clone().fold(0f32, |most, x| most.max(x.abs()));
    want.zip(got).fold(0f32, |most, (a, b)| most.max((a - b).abs())) / largest
}

#[test]
fn logits_are_near_and_nearer_than_with_fp8() {
    let prompts = [1, 17, 90].map(|n| prompt(n, 517, n as u64));
    for (name, config) in models() {
        // Of the prompts' last tokens alone: later ones follow from what was chosen before.
        let run = |decoder: Decoder| Steps::new(&Arc::new(decoder), Shape::default()).run(&prompts, 1);
        let exact = run(load(&config, Precision::F32));
        let with = |cache| difference(&exact, &run(load(&config, Precision::F32).with_cache(cache)));
        let (q8, fp8) = (with(CacheType::Q8), with(CacheType::Fp8));
        assert!(q8 > 0.0 && q8 < 0.02, "{name}: {q8} of the largest logit");
        assert!(q8 * 2.0 < fp8, "{name}: {q8} of the largest logit, {fp8} with FP8");
    }
}

#[test]
fn logits_are_the_same_bits_however_the_work_is_cut() {
    let prompts = [1, 15, 31, 47, 130, 60].map(|n| prompt(n, 517, n as u64));
    for (name, config) in models() {
        let precision = if name == "qwen3" { Precision::F32 } else { Precision::Bf16 };
        let model = Arc::new(load(&config, precision).with_cache(CacheType::Q8));
        assert_eq!(model.cache_type(), CacheType::Q8);
        let alone: Vec<_> = prompts
            .iter()
            .map(|p| Steps::new(&model, Shape::default()).run(std::slice::from_ref(p), 8).remove(0))
            .collect();
        assert_eq!(Steps::new(&model, Shape::default()).run(&prompts, 8), alone, "{name} in a batch");
        for threads in [1, 2] {
            let mut steps = Steps::new(&model, Shape { threads, tokens: 37, ..Shape::default() });
            assert_eq!(steps.run(&prompts, 8), alone, "{name} in chunks");
            assert_eq!(steps.run(&prompts, 8), alone, "{name} with a prefix hit");
            assert!(steps.prefix_hits > 100, "{} tokens hit", steps.prefix_hits);
        }
        let mut tight = Steps::new(&model, Shape { threads: 2, blocks: 17, tokens: 256, ..Shape::default() });
        assert_eq!(tight.run(&prompts, 8), alone, "{name} after preemption");
        assert!(tight.preemptions > 0, "the cache was large enough after all");
    }
}

fn resolve(more: &[(&'static str, &str)]) -> Result<Config, String> {
    let given = [("model", "demo"), ("threads", "1"), ("kv-memory", "200KiB"), ("device", "cpu")];
    let flags: Vec<_> = given.iter().chain(more).map(|(k, v)| (*k, v.to_string())).collect();
    Resolved::merge(&flags, &[]).unwrap().config().map_err(|e| e.to_string())
}

#[test]
fn the_setting_has_its_names_and_reaches_decoder_and_size() {
    let cache = |name: &str| resolve(&[("kv-cache-dtype", name)]).map(|config| config.cache);
    for name in ["q8", "q8_0", "int8"] {
        assert_eq!(cache(name), Ok(Some(CacheType::Q8)), "{name}");
    }
    assert_eq!(cache("auto"), Ok(None));
    assert_eq!(cache("fp8"), Ok(Some(CacheType::Fp8)));
    for name in ["q4_0", "int4", "Q8", ""] {
        let error = cache(name).unwrap_err();
        assert!(error.contains("kv-cache-dtype") && error.contains("q8"), "{error}");
    }
    let start = |more: &[(&'static str, &str)]| {
        let config = resolve(more).unwrap();
        let opened = assemble::open(&config, &Unit::new(Clock::system())).unwrap();
        let decoder = assemble::load(&config, opened.chat().unwrap(), true).unwrap();
        (opened.sizes, decoder)
    };
    let (sizes, decoder) = start(&[("kv-cache-dtype", "q8")]);
    assert_eq!(decoder.cache_type(), CacheType::Q8);
    let spec = decoder.spec();
    let block = 2 * spec.layers * spec.kv_heads * (spec.head_dim + 4) * 16;
    assert_eq!(sizes.blocks_per_device, (200 << 10) / block);
    assert_eq!(sizes.kv_bytes as usize, sizes.blocks_per_device * block);
    let (plain, decoder) = start(&[]);
    assert_eq!(decoder.cache_type(), CacheType::like(decoder.activations()));
    assert!(sizes.blocks_per_device * 2 > plain.blocks_per_device * 3);
}

fn fit(arguments: &[&str]) -> Result<Value, String> {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_hashwatt"));
    command.current_dir(folder.path()).env("HASHWATT_STATE_DIR", folder.path());
    let output = command.args(["models", "fit", "--json"]).args(arguments).output().unwrap();
    match output.status.code() {
        Some(0) => Ok(serde_json::from_slice(&output.stdout).unwrap()),
        _ => Err(String::from_utf8_lossy(&output.stderr).into()),
    }
}

#[test]
fn what_fits_is_counted() {
    let of = |cache: &str| {
        let model = ["--model", "smollm2-135m", "--device", "cpu", "--kv-memory", "200MiB"];
        let answer = fit(&[&model[..], &["--kv-cache-dtype", cache]].concat()).unwrap();
        answer["devices"][0]["rows"][0]["cache"].clone()
    };
    // 30 layers of 3 heads of 64, keys and values: 2 bytes a number, or one and 4 for each head.
    assert_eq!(of("auto")["tokens"], (200u64 << 20) / (30 * 3 * 64 * 2 * 2 * 16) * 16);
    assert_eq!(of("q8")["tokens"], (200u64 << 20) / (30 * 3 * (64 + 4) * 2 * 16) * 16);
    assert_eq!((of("auto")["dtype"].clone(), of("q8")["dtype"].clone()), (json!("bf16"), json!("q8")));
    let of_gpu = |cache: &str| {
        let answer =
            fit(&["--gpu", "RTX 4090", "--model", "llama-3.1-8b", "--kv-cache-dtype", cache]).unwrap();
        let rows = answer["devices"][0]["rows"].as_array().unwrap().clone();
        rows.iter().find(|row| row["fits"] == true).unwrap()["cache"]["tokens"].as_u64().unwrap()
    };
    // Heads of 128.
    let ratio = of_gpu("q8") as f64 / of_gpu("auto") as f64;
    assert!((ratio - 256.0 / 132.0).abs() < 0.01, "{ratio}");
}

#[test]
fn a_unit_serves_from_it() {
    let body = |i: usize| {
        json!({"model": "demo", "prompt": format!("Once upon a time number {i}"), "max_tokens": 12 + i,
               "temperature": 0.0, "stream": true, "ignore_eos": true})
    };
    let unit = serve(&[("threads", "2"), ("device", "cpu"), ("kv-cache-dtype", "q8")]);
    const PATH: &str = "/v1/completions";
    unit.runtime.block_on(async {
        let mut alone = Vec::new();
        for i in 0..6 {
            alone.push(stream(&Client::new(&unit.url).unwrap(), PATH, &body(i)).await);
        }
        let ask = |i| {
            let client = Client::new(&unit.url).unwrap();
            tokio::spawn(async move { stream(&client, PATH, &body(i)).await })
        };
        for (i, task) in (0..6).map(ask).collect::<Vec<_>>().into_iter().enumerate() {
            let together = task.await.unwrap();
            assert_eq!(together, alone[i], "client {i}");
            assert!(!together.0.is_empty() && together.1 == "length", "{together:?}");
        }
    });
}
