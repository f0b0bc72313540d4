//! Checkpoints whose tensors are of several types: each computes what the same numbers in f32 compute, and is as large as
//! it was said to be before it was read.

use std::path::Path;
use std::sync::Arc;

use half::{bf16, f16};
use hashwatt::cli::held;
use hashwatt::config::Resolved;
use hashwatt::model::Checkpoint;
use hashwatt::model::decoder::{Decoder, Precision, tensors};
use hashwatt::ops::exec::Exec;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use crate::host_kernels::kernels;
use crate::support::{Shape, Steps, checkpoint, others, pool, prompt, routed};

/// Which tensors are of another type than the rest.
const PARTS: [(&str, &[&str]); 10] = [
    ("none", &[]),
    ("embedding", &["embed_tokens"]),
    ("head", &["lm_head"]),
    ("embedding and head", &["embed_tokens", "lm_head"]),
    ("norms", &["norm"]),
    ("attention", &["self_attn"]),
    ("keys", &["k_proj.weight"]),
    ("mlp", &["mlp"]),
    ("biases and routers", &["bias", "mlp.gate.weight", "down_proj"]),
    ("one layer", &["layers.1."]),
];
const TYPES: [(Dtype, &str); 3] =
    [(Dtype::F32, "float32"), (Dtype::F16, "float16"), (Dtype::BF16, "bfloat16")];

/// What each of the three types holds as it is.
fn plain(x: f32) -> f32 {
    let short = f32::from_bits(x.to_bits() & 0xFFFF_0000);
    if short.abs() < 1e-4 { 0.0 } else { short }
}

fn write(dir: &Path, config: &Value, kind: impl Fn(&str) -> Dtype) {
    let of = checkpoint(config.clone());
    let data: Vec<_> = tensors(&of.spec)
        .map(|(name, shape)| {
            let weight = of.source.weight(&name, &shape).unwrap();
            let kind = kind(&name);
            let bytes = |i| match (plain(weight.get(i)), kind) {
                (x, Dtype::F16) => f16::from_f32(x).to_le_bytes().to_vec(),
                (x, Dtype::BF16) => bf16::from_f32(x).to_le_bytes().to_vec(),
                (x, _) => x.to_le_bytes().to_vec(),
            };
            let bytes: Vec<u8> = (0..weight.rows() * weight.cols()).flat_map(bytes).collect();
            (name, shape, kind, bytes)
        })
        .collect();
    let views = data
        .iter()
        .map(|(name, shape, kind, bytes)| (name, TensorView::new(*kind, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let tokenizer =
        hashwatt::text::tokenizer::stand_in_json(config["vocab_size"].as_u64().unwrap() as usize).unwrap();
    std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}

/// With biases and a head of its own, and with routed experts.
fn models() -> Vec<(&'static str, Value)> {
    let found =
        |all: Vec<(&'static str, Value)>, wanted| all.into_iter().find(|(name, _)| *name == wanted).unwrap();
    let mut models = vec![found(others(), "Qwen2ForCausalLM"), found(routed(), "Qwen3MoeForCausalLM")];
    for (_, config) in &mut models {
        let small = json!({"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1,
                           "intermediate_size": 96, "moe_intermediate_size": 32, "vocab_size": 300});
        config.as_object_mut().unwrap().extend(small.as_object().unwrap().clone());
    }
    models
}

fn logits(decoder: Decoder, on: Exec) -> Vec<f32> {
    let shape = Shape { blocks: 16, tokens: 64, sequences: 2, ..Shape::default() };
    Steps::on(&Arc::new(decoder), on, shape).run(&[prompt(19, 300, 3)], 1)[0][0].clone()
}

fn difference(want: &[f32], got: &[f32]) -> f32 {
    let largest = want.iter().fold(0f32, |most, x| most.max(x.abs()));
    want.iter().zip(got).fold(0f32, |most, (a, b)| most.max((a - b).abs())) / largest
}

/// `None` where it is sound.
fn problem(opened: &Checkpoint, folder: &Path, asked: (&str, Precision), want: &[f32]) -> Option<String> {
    let dtype = (asked.1 != Precision::AsStored).then(|| ("dtype", asked.0.to_string()));
    let flags = [("model", folder.display().to_string()), ("device", "cpu".into())].into_iter().chain(dtype);
    let config = Resolved::merge(&flags.collect::<Vec<_>>(), &[]).unwrap().config().unwrap();
    let decoder = match opened.load(asked.1, true, &|_| {}) {
        Ok(decoder) => decoder,
        // What is refused names its tensor and file.
        Err(e) if e.to_string().contains("model.safetensors: tensor `") => return None,
        Err(e) => return Some(format!("refused: {e}")),
    };
    let said = held::held(&config, opened);
    let mut wrong = Vec::new();
    if (said.activations, said.cache) != (decoder.activations(), decoder.cache_type()) {
        let loaded = (decoder.activations(), decoder.cache_type());
        wrong.push(format!("said {:?}, loaded {loaded:?}", (said.activations, said.cache)));
    }
    let bytes = held::weight_bytes(&config, opened).0;
    if bytes != decoder.weight_bytes() as u64 {
        wrong.push(format!("said {bytes} bytes, loaded {}", decoder.weight_bytes()));
    }
    let tolerance = if decoder.activations() == candle_core::DType::F32 { 2e-2 } else { 6e-2 };
    if let Some(on) = kernels() {
        match decoder.on_device(&on.device) {
            Ok(there) => {
                let worst = difference(want, &logits(there, on));
                wrong.extend((worst.is_nan() || worst > tolerance).then(|| format!("by kernels {worst}")));
            }
            Err(e) => wrong.push(format!("on a device: {e}")),
        }
    }
    let worst = difference(want, &logits(decoder, Exec::from(pool(1))));
    wrong.extend((worst.is_nan() || worst > tolerance).then(|| format!("logits {worst}")));
    (!wrong.is_empty()).then(|| wrong.join("; "))
}

#[test]
fn tensors_of_several_types_are_their_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for (name, mut config) in models() {
        config["torch_dtype"] = "float32".into();
        write(dir.path(), &config, |_| Dtype::F32);
        let whole = Checkpoint::open(dir.path().to_str().unwrap(), &pool(1)).unwrap();
        let want = logits(whole.load(Precision::F32, true, &|_| {}).unwrap(), Exec::from(pool(1)));
        for (part, words) in PARTS {
            for ((most, of_most), (other, _)) in TYPES.into_iter().flat_map(|a| TYPES.map(|b| (a, b))) {
                if most == other {
                    continue;
                }
                config["torch_dtype"] = of_most.into();
                write(
                    dir.path(),
                    &config,
                    |name| if words.iter().any(|w| name.contains(w)) { other } else { most },
                );
                let opened = Checkpoint::open(dir.path().to_str().unwrap(), &pool(1)).unwrap();
                let asked = [
                    ("", Precision::AsStored),
                    ("float32", Precision::F32),
                    ("float16", Precision::F16),
                    ("bfloat16", Precision::Bf16),
                ];
                // Asked for one type, all become it: a few of those are enough.
                let asked = if ["head", "one layer"].contains(&part) { &asked[..] } else { &asked[..1] };
                for asked in asked {
                    let found = problem(&opened, dir.path(), *asked, &want);
                    wrong.extend(
                        found.map(|found| {
                            format!("{name}, {most:?} with {part} {other:?}, {asked:?}: {found}")
                        }),
                    );
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of them:\n{}", wrong.len(), wrong.join("\n"));
}
