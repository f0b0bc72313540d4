//! Every architecture gives the logits of HuggingFace transformers, on small models of the same seed.

use std::sync::Arc;

use hashwatt::model::decoder::Precision;
use serde_json::Value;

use crate::support::{Shape, Steps, checkpoint};

/// Made by `benches/decoder_goldens.py`.
const GOLDENS: &str = include_str!("cases/decoders.json");

/// The logits behind each prompt, as they are served together.
fn logits_of(config: &Value, prompts: &[Vec<u32>]) -> Vec<Vec<f32>> {
    let Some(longest) = prompts.iter().map(Vec::len).max() else { return Vec::new() };
    let mut checkpoint = checkpoint(config.clone());
    checkpoint.spec.settle_context(Some(longest));
    let decoder = Arc::new(checkpoint.load(Precision::F32, true, &|_| {}).unwrap());
    let steps = Steps::new(&decoder, Shape::default()).run(prompts, 1);
    steps.into_iter().map(|mut logits| logits.swap_remove(0)).collect()
}

#[test]
fn logits_equal_huggingfaces() {
    let goldens: Value = serde_json::from_str(GOLDENS).unwrap();
    let prompts: Vec<Vec<u32>> = serde_json::from_value(goldens["prompts"].clone()).unwrap();
    let (mut seen, mut wrong) = (std::collections::BTreeSet::new(), Vec::new());
    for case in goldens["cases"].as_array().unwrap() {
        let config = &case["config"];
        let name = format!("{} {}", config["architectures"][0], config["rope_parameters"]["rope_type"]);
        let results: Vec<Vec<f32>> = serde_json::from_value(case["results"].clone()).unwrap();
        // Shortest first. LongRoPE's factors are HuggingFace's choice for each text, and ours for the longest.
        let usual = checkpoint(config.clone()).spec.usual_context();
        let (short, long) = prompts.split_at(prompts.partition_point(|prompt| prompt.len() <= usual));
        let ours = [logits_of(config, short), logits_of(config, long)].concat();
        for ((ours, theirs), prompt) in ours.iter().zip(&results).zip(&prompts) {
            let scale = theirs.iter().fold(0f32, |m, x| m.max(x.abs()));
            let worst = ours.iter().zip(theirs).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            if worst.is_nan() || worst > 1e-4 * scale {
                wrong.push(format!("{name}, prompt of {}: {worst} of {scale}", prompt.len()));
            }
        }
        seen.insert(config["architectures"][0].as_str().unwrap().to_string());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let known: Vec<&str> = hashwatt::model::arch::known().collect();
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), known, "every architecture has its golden");
}

#[test]
fn the_context_that_is_served_settles_which_factors_hold() {
    let goldens: Value = serde_json::from_str(GOLDENS).unwrap();
    let of_32 = |case: &&Value| case["config"]["original_max_position_embeddings"] == 32;
    let config = &goldens["cases"].as_array().unwrap().iter().find(of_32).unwrap()["config"];
    let settled = |asked| {
        let mut spec = checkpoint(config.clone()).spec;
        spec.settle_context(asked);
        (spec.max_positions, spec.ropes[0].inverse_frequencies(spec.head_dim)[1])
    };
    let (usual, short) = settled(None);
    assert_eq!((usual, settled(Some(32)), settled(Some(7))), (32, (32, short), (32, short)));
    let (whole, long) = settled(Some(33));
    assert_eq!((whole, settled(Some(256))), (256, (256, long)));
    assert!((short / long - 1.9 / 1.1).abs() < 1e-4, "{short} and {long}");
}
