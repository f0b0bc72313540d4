//! Every architecture gives the logits of HuggingFace transformers, on small models of the same seed.

use hashwatt::model::decoder::Precision;
use serde_json::Value;

use crate::support::{Shape, Steps, decoder};

/// Made by `benches/decoder_goldens.py`.
const GOLDENS: &str = include_str!("cases/decoders.json");

#[test]
fn logits_equal_huggingfaces() {
    let goldens: Value = serde_json::from_str(GOLDENS).unwrap();
    let prompts: Vec<Vec<u32>> = serde_json::from_value(goldens["prompts"].clone()).unwrap();
    let (mut seen, mut wrong) = (std::collections::BTreeSet::new(), Vec::new());
    for case in goldens["cases"].as_array().unwrap() {
        let config = &case["config"];
        let name = format!("{} {}", config["architectures"][0], config["rope_parameters"]["rope_type"]);
        let results: Vec<Vec<f32>> = serde_json::from_value(case["results"].clone()).unwrap();
        let ours = Steps::new(&decoder(config, Precision::F32), Shape::default()).run(&prompts, 1);
        for ((ours, theirs), prompt) in ours.iter().zip(&results).zip(&prompts) {
            let scale = theirs.iter().fold(0f32, |m, x| m.max(x.abs()));
            let worst = ours[0].iter().zip(theirs).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
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
