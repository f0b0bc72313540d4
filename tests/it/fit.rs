//! `models fit`: numbers by hand, the same answers as the serving path, and what is refused.

use std::process::{Command, Output};

use hashwatt::cli::assemble;
use hashwatt::clock::Clock;
use hashwatt::config::Resolved;
use hashwatt::unit::Unit;
use serde_json::Value;

const GIB: u64 = 1 << 30;
/// Rounded to whole bytes on the way.
const HALF_A_BYTE: f64 = 0.5;

fn run(arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_hashwatt"));
    command.current_dir(folder.path()).env("HASHWATT_STATE_DIR", folder.path());
    command.args(["models", "fit"]).args(arguments).output().unwrap()
}

fn text(arguments: &[&str]) -> String {
    let output = run(arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&text(&[arguments, &["--json"]].concat())).unwrap()
}

/// The rows of the first device.
fn rows(arguments: &[&str]) -> Vec<Value> {
    json(arguments)["devices"][0]["rows"].as_array().unwrap().clone()
}

/// The row of a type; empty is as stored.
fn row(arguments: &[&str], quantization: &str) -> Value {
    let rows = rows(arguments);
    rows.into_iter().find(|r| r["quantization"] == quantization).unwrap()
}

#[test]
fn numbers_of_llama_on_a_4090_are_those_of_the_arithmetic() {
    let arguments = ["--gpu", "RTX 4090", "--model", "llama-3.1-8b"];
    let row = row(&arguments, "");
    // 32 layers of 4096·(2·4096 + 2·1024) + 3·4096·14336 weights; an embedding and a head of 128256·4096.
    let (layers, table) = (32u64 * (4096 * 10_240 + 3 * 4096 * 14_336), 128_256 * 4096);
    assert_eq!(row["weights"], "bf16");
    assert_eq!(row["weight_bytes"], 2 * (layers + 2 * table));
    assert_eq!(row["step_weight_bytes"], 2 * (layers + table));
    // Of 23.64 GiB nine tenths may be filled; 768 MiB are kept free of it.
    let usable = (23.64 * GIB as f64) as u64 as f64 * 0.9;
    let number = |key: &str| row[key].as_u64().unwrap();
    assert_eq!(number("reserve_bytes"), 768 << 20);
    let left = usable as u64 - number("weight_bytes") - number("workspace_bytes") - number("reserve_bytes");
    let cache = &row["cache"];
    assert_eq!(cache["bytes"], left);
    // Keys and values of 8 heads of 128 in 32 layers, two bytes each: 128 KiB a token, in blocks of 16.
    let tokens = left / (131_072 * 16) * 16;
    assert_eq!(cache["tokens"], tokens);
    assert_eq!((&cache["dtype"], &cache["context_tokens"]), (&"bf16".into(), &4096.into()));
    assert_eq!(cache["longest_context_tokens"], tokens);
    assert_eq!(cache["sequences"], tokens / 4096);
    // What a step reads, at 1008 GB/s.
    let sequences = (tokens / 4096) as f64;
    let seconds = (2.0 * (layers + table) as f64 + sequences * 4096.0 * 131_072.0) / 1008e9;
    let speed = &row["speed"];
    let rate = speed["output_tokens_per_second"].as_f64().unwrap();
    assert!((rate * seconds / sequences - 1.0).abs() < 1e-9, "{rate}");
    assert!((speed["output_tokens_per_joule"].as_f64().unwrap() * 450.0 / rate - 1.0).abs() < 1e-9);
    assert_eq!(speed["basis"], "roofline");
}

#[test]
fn the_memory_that_is_just_enough_is_where_it_says() {
    let fits = |memory: u64| {
        let memory = memory.to_string();
        row(&["--memory", &memory, "--model", "qwen3-0.6b", "--context", "100"], "")
    };
    let plenty = fits(24 * GIB);
    let number = |key: &str| plenty[key].as_u64().unwrap();
    // 100 tokens are 7 blocks; 28 layers of 8 heads of 128, two bytes.
    let cache: u64 = 7 * 16 * 2 * 28 * 1024 * 2;
    let needed = number("weight_bytes") + number("workspace_bytes") + number("reserve_bytes") + cache;
    let enough = ((needed as f64 + HALF_A_BYTE) / 0.9).ceil() as u64;
    assert_eq!(fits(enough)["fits"], true);
    let less = fits(enough - 4);
    assert_eq!((&less["fits"], &less["cache"]), (&false.into(), &Value::Null));
    assert!(less["problem"].as_str().unwrap().contains("one sequence may have 100"), "{less}");
}

/// On a processor the serving path can be asked here; it must say the same.
#[test]
fn what_fits_is_what_the_serving_path_takes() {
    let mut seen = [0, 0];
    for kv_memory in ["300KiB", "1MiB", "13MiB", "200MiB"] {
        for context in ["16", "512", "8192"] {
            for quantization in ["", "fp8", "q8_0", "q4_k"] {
                let flags: Vec<(&'static str, String)> = [
                    ("model", "synthetic:smollm2-135m"),
                    ("device", "cpu"),
                    ("kv-memory", kv_memory),
                    ("max-model-len", context),
                    ("quantization", quantization),
                ]
                .into_iter()
                .filter(|(_, value)| !value.is_empty())
                .map(|(name, value)| (name, value.to_string()))
                .collect();
                let config = Resolved::merge(&flags, &[]).unwrap().config().unwrap();
                let served = assemble::open(&config, &Unit::new(Clock::system()));
                let fit = ["--model", "smollm2-135m", "--device", "cpu", "--kv-memory", kv_memory];
                let row = row(&[&fit[..], &["--context", context]].concat(), quantization);
                assert_eq!(row["fits"], served.is_ok(), "{flags:?}: {row}");
                seen[usize::from(served.is_ok())] += 1;
                let Ok(opened) = served else { continue };
                let cache = &row["cache"];
                let tokens = cache["tokens"].as_u64().unwrap() as usize;
                let most = config.sequences() * context.parse::<usize>().unwrap();
                assert_eq!(opened.sizes.blocks_per_device * 16, tokens.min(most), "{flags:?}: {row}");
                assert_eq!(opened.sizes.max_model_len.to_string(), context);
            }
        }
    }
    assert!(seen[0] > 5 && seen[1] > 20, "{seen:?}");
}

#[test]
fn every_preset_is_there_in_every_type_and_lines_are_short() {
    let all = text(&["--gpu", "all"]);
    assert_eq!(all, text(&["--gpu", "all"]));
    let long: Vec<&str> = all.lines().filter(|line| line.chars().count() > 100).collect();
    assert!(long.is_empty(), "{}", long.join("\n"));
    let rows = rows(&["--gpu", "H200"]);
    let presets: std::collections::BTreeSet<&str> =
        rows.iter().map(|r| r["model"].as_str().unwrap()).collect();
    assert!(presets.len() > 40 && rows.len() == 4 * presets.len());
    for row in rows {
        assert_eq!(row["runs"], true, "{row}");
    }
}

#[test]
fn boards_add_up_and_settings_of_the_unit_count() {
    let one = row(&["--gpu", "4090", "--model", "llama-3.1-8b"], "fp8");
    let two = row(&["--gpu", "4090x2", "--model", "synthetic:llama-3.1-8b"], "fp8");
    let of = |row: &Value, path: &str| row.pointer(path).unwrap().as_f64().unwrap();
    assert_eq!(of(&two, "/cache/sequences"), 2.0 * of(&one, "/cache/sequences"));
    assert_eq!(of(&two, "/cache/tokens"), of(&one, "/cache/tokens"));
    let both = ["/speed/output_tokens_per_second", "/speed/output_tokens_per_joule"];
    assert_eq!(both.map(|p| of(&two, p) / of(&one, p)), [2.0, 1.0]);
    let small = ["--gpu", "4090", "--model", "llama-3.1-8b", "--quantization", "fp8"];
    let halved = rows(&[&small[..], &["--kv-cache-dtype", "fp8"]].concat());
    assert_eq!(halved.len(), 1);
    assert!((of(&halved[0], "/cache/tokens") / of(&one, "/cache/tokens") - 2.0).abs() < 1e-3);
    assert_eq!(halved[0]["cache"]["dtype"], "fp8");
    let tight = rows(&[&small[..], &["--gpu-memory-utilization", "0.3"]].concat());
    assert_eq!(tight[0]["fits"], false);
}

#[test]
fn money_is_the_markets_and_is_left_out_without_one() {
    let market = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/market.example.toml");
    let arguments = ["--gpu", "H100 SXM", "--model", "llama-3.1-8b"];
    let priced = [&arguments[..], &["--market", market]].concat();
    let row = row(&priced, "");
    let per_joule = row["speed"]["output_tokens_per_joule"].as_f64().unwrap();
    let earned = row["serving_usd_per_kwh"].as_f64().unwrap();
    // 3.6 million joules, 0.03 dollars for a million output tokens.
    assert!((earned / (per_joule * 3.6e6 * 0.03e-6) - 1.0).abs() < 1e-9);
    let answer = json(&priced);
    // 28.68 $/PH/day for a machine of 9.45 J/TH: 28.68 / (0.024 · 9.45) $/MWh.
    let mining = answer["mining"]["usd_per_kwh"].as_f64().unwrap();
    assert!((mining / (28.68 / (0.024 * 9.45) / 1000.0) - 1.0).abs() < 2e-3, "{mining}");
    let said = text(&priced);
    assert!(said.starts_with("EXAMPLE") && said.contains("mining earns") && said.contains("$/kWh"), "{said}");
    let without = text(&arguments);
    assert!(without.contains("no --market") && !without.contains("$/kWh"), "{without}");
    assert_eq!(json(&arguments)["devices"][0]["rows"][0]["serving_usd_per_kwh"], Value::Null);
    // The market has no price of it.
    assert_eq!(
        rows(&["--gpu", "L4", "--model", "glm-4-9b", "--market", market])[1]["serving_usd_per_kwh"],
        Value::Null
    );
}

#[test]
fn what_cannot_be_answered_is_named() {
    for (arguments, wants) in [
        (&["--gpu", "Voodoo 2"][..], "not in the table of boards; it has A10, A30"),
        (&["--gpu", "H100"], "could be H100 NVL, H100 PCIe or H100 SXM"),
        (&["--gpu", "4090", "--model", "llama-9"], "--model llama-9"),
        (&["--gpu", "4090", "--model", "minilm-l6"], "has no KV cache"),
        (&["--memory", "much"], "is not a size"),
        (&["--context", "0"], "--context"),
        (&["--market", "absent.toml"], "absent.toml"),
        (&["--reports", "absent"], "--reports absent"),
    ] {
        let output = run(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_ne!(output.status.code(), Some(0), "{arguments:?}");
        assert!(error.contains(wants), "{arguments:?}: {error}");
    }
    let beyond = row(&["--gpu", "H200", "--model", "olmo-2-1b", "--context", "5000"], "");
    assert!(beyond["problem"].as_str().unwrap().contains("the model's context is 4096 tokens"), "{beyond}");
}
