//! gpt-oss as its checkpoints are: the experts of a layer in one tensor, plain or in MXFP4.

use std::path::Path;
use std::sync::Arc;

use half::bf16;
use hashwatt::cli::held;
use hashwatt::config::Resolved;
use hashwatt::model::Checkpoint;
use hashwatt::model::decoder::{Decoder, Precision, Quantize, tensors};
use hashwatt::ops::blocks::{Format, mxfp4};
use hashwatt::ops::weight::WeightType;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use crate::support::{Shape, Steps, checkpoint, pool, prompt, routed};

/// What `transformers.integrations.mxfp4.convert_moe_packed_tensors` of transformers 5.24.0 makes of the bytes 0x10, 0x32
/// … 0xfe twice under the scale 128.
const UNPACKED: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, -0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

/// A small gpt-oss whose rows are whole blocks.
fn config() -> Value {
    let mut config = routed().into_iter().find(|(name, _)| *name == "GptOssForCausalLM").unwrap().1;
    (config["hidden_size"], config["intermediate_size"]) = (128.into(), 96.into());
    config["vocab_size"] = 520.into();
    config["torch_dtype"] = "bfloat16".into();
    config
}

struct Data {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

fn of_numbers(name: String, shape: Vec<usize>, numbers: &[f32]) -> Data {
    let bytes = numbers.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect();
    Data { name, dtype: Dtype::BF16, shape, bytes }
}

/// A number of four bits by a hash of where it is, and the exponent of its block's scale.
fn four_bits(at: usize) -> u8 {
    ((at as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 60) as u8
}
fn exponent(block: usize) -> u8 {
    120 + (block * 7 % 5) as u8
}

/// The numbers of a stack `[experts, outputs, inputs]` that MXFP4 holds.
fn numbers(count: usize, salt: usize) -> Vec<f32> {
    let number = |at: usize| {
        let scale = (f32::from(exponent(at / 32 + salt)) - 127.0).exp2();
        UNPACKED[usize::from(four_bits(at + salt))] / 2.0 * scale
    };
    (0..count).map(number).collect()
}

fn in_mxfp4(name: &str, shape: [usize; 3], salt: usize) -> [Data; 2] {
    let [experts, outputs, inputs] = shape;
    let blocks = experts * outputs * inputs / 32;
    let pair = |i: usize| four_bits(2 * i + salt) | four_bits(2 * i + 1 + salt) << 4;
    let data =
        |part: &str, shape, bytes| Data { name: format!("{name}_{part}"), dtype: Dtype::U8, shape, bytes };
    [
        data("blocks", vec![experts, outputs, inputs / 32, 16], (0..16 * blocks).map(pair).collect()),
        data(
            "scales",
            vec![experts, outputs, inputs / 32],
            (0..blocks).map(|b| exponent(b + salt)).collect(),
        ),
    ]
}

/// The same as numbers, each expert's matrix on its side.
fn plain(name: &str, shape: [usize; 3], salt: usize) -> Data {
    let [experts, outputs, inputs] = shape;
    let numbers = numbers(experts * outputs * inputs, salt);
    let of_expert = |e: usize| {
        let own = &numbers[e * outputs * inputs..][..outputs * inputs];
        (0..inputs).flat_map(move |i| (0..outputs).map(move |o| own[o * inputs + i]))
    };
    let turned: Vec<f32> = (0..experts).flat_map(of_expert).collect();
    of_numbers(name.into(), vec![experts, inputs, outputs], &turned)
}

fn write(dir: &Path, packed: bool, change: impl Fn(&mut Vec<Data>, &mut Value)) {
    let mut config = config();
    let made = checkpoint(config.clone());
    let (spec, experts) = (&made.spec, made.spec.experts.as_ref().unwrap().gating.experts);
    let mut all = Vec::new();
    for (name, shape) in tensors(spec).filter(|(name, _)| !name.contains(".experts.")) {
        let numbers = made.source.weight(&name, &shape).unwrap().to_f32();
        all.push(of_numbers(name, shape, numbers.f32s()));
    }
    for layer in 0..spec.layers {
        let name = |part: &str| format!("model.layers.{layer}.mlp.experts.{part}");
        let shapes = [
            ("gate_up_proj", [experts, 2 * spec.intermediate, spec.hidden]),
            ("down_proj", [experts, spec.hidden, spec.intermediate]),
        ];
        for (part, shape) in shapes {
            let salt = 1000 * layer + part.len();
            match packed {
                true => all.extend(in_mxfp4(&name(part), shape, salt)),
                false => all.push(plain(&name(part), shape, salt)),
            }
            let biases: Vec<f32> = (0..shape[0] * shape[1]).map(|i| (i % 37) as f32 / 100.0 - 0.2).collect();
            all.push(of_numbers(name(&format!("{part}_bias")), shape[..2].to_vec(), &biases));
        }
    }
    if packed {
        config["quantization_config"] = json!({"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]});
    }
    change(&mut all, &mut config);
    let views = all.iter().map(|d| (&d.name, TensorView::new(d.dtype, d.shape.clone(), &d.bytes).unwrap()));
    safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let tokenizer = hashwatt::text::tokenizer::stand_in_json(520).unwrap();
    std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}

fn open(packed: bool, change: impl Fn(&mut Vec<Data>, &mut Value)) -> Result<Checkpoint, String> {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), packed, change);
    Checkpoint::open(dir.path().to_str().unwrap(), &pool(2)).map_err(|e| e.to_string())
}

fn logits(decoder: Decoder) -> Vec<f32> {
    let all = Steps::new(&Arc::new(decoder), Shape::default()).run(&[prompt(40, 520, 3)], 2);
    all.into_iter().flatten().flatten().collect()
}

#[test]
fn four_bits_are_huggingfaces() {
    for (code, number) in (0..16).zip(UNPACKED) {
        let held = f32::from(mxfp4::code(code)) - Format::Q5_0.offset() as f32;
        assert_eq!(held * mxfp4::half_scale(128).to_f32(), number, "{code}");
    }
}

#[test]
fn stacks_are_the_experts_of_their_layer() {
    let (packed, whole) = (open(true, |_, _| {}).unwrap(), open(false, |_, _| {}).unwrap());
    let inner = whole.spec.intermediate;
    for (name, shape) in tensors(&whole.spec) {
        let (got, want) =
            (packed.source.weight(&name, &shape).unwrap(), whole.source.weight(&name, &shape).unwrap());
        assert_eq!(got.to_f32().f32s(), want.to_f32().f32s(), "{name}");
        if let Some(kind) = packed.source.four_bit().unwrap().kind(&name, WeightType::F32) {
            assert_eq!((got.kind(), kind), (want_kind(), want_kind()), "{name}");
            assert!(name.contains(".experts.") && name.ends_with(".weight"), "{name}");
        }
    }
    // Gates and ups in turn, of the second expert.
    let all = numbers(5 * 2 * inner * 128, "gate_up_proj".len());
    let up = whole.source.weight("model.layers.0.mlp.experts.1.up_proj.weight", &[inner, 128]).unwrap();
    assert_eq!(up.to_f32().f32s()[3 * 128..][..128], all[(2 * inner + 2 * 3 + 1) * 128..][..128]);
    let bias = whole.source.weight("model.layers.1.mlp.experts.1.up_proj.bias", &[inner]).unwrap();
    let wanted = ((2 * inner + 2 * 5 + 1) % 37) as f32 / 100.0 - 0.2;
    assert_eq!(bias.get(5), bf16::from_f32(wanted).to_f32());
    let load = |checkpoint: &Checkpoint| checkpoint.load(Precision::F32, true, &|_| {}).unwrap();
    assert_eq!(logits(load(&packed)), logits(load(&whole)));
}

fn want_kind() -> WeightType {
    WeightType::Blocks(Format::Q5_0)
}

/// What is said of sizes before anything is read is what is held.
#[test]
fn sizes_are_known_before_they_are_read() {
    for packed in [true, false] {
        let checkpoint = open(packed, |_, _| {}).unwrap();
        let flags = [("device", "cpu".to_string())];
        let config = Resolved::merge(&flags, &[]).unwrap().config().unwrap();
        let decoder = checkpoint.load(Precision::AsStored, false, &|_| {}).unwrap();
        let told = held::weight_bytes(&config, &checkpoint).0;
        let ratio = told as f64 / decoder.weight_bytes() as f64;
        assert!((0.98..1.1).contains(&ratio), "{packed}: {told} of {}", decoder.weight_bytes());
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let stack = "model.layers.1.mlp.experts.gate_up_proj";
    let renamed = |all: &mut Vec<Data>, from: &str| {
        all.iter_mut().find(|d| d.name == from).unwrap().name = "other".into();
    };
    let reshaped = |all: &mut Vec<Data>, name: &str| {
        let data = all.iter_mut().find(|d| d.name == name).unwrap();
        data.shape.swap(1, 2);
    };
    let error = open(true, |all, _| renamed(all, &format!("{stack}_scales"))).err().unwrap();
    assert!(error.contains("model.safetensors") && error.contains(&format!("{stack}_scales")), "{error}");
    let error = open(true, |all, _| reshaped(all, &format!("{stack}_blocks"))).err().unwrap();
    assert!(
        error.contains(&format!("{stack}_blocks")) && error.contains("of each of at least 1 experts"),
        "{error}"
    );
    let error = open(false, |all, _| reshaped(all, stack)).err().unwrap();
    assert!(error.contains(stack) && error.contains("has shape"), "{error}");
    let error = open(false, |all, _| renamed(all, &format!("{stack}_bias"))).err().unwrap();
    assert!(
        error.contains("model.layers.1.mlp.experts.0.gate_proj.bias") && error.contains("missing"),
        "{error}"
    );
    let error = open(true, |_, config| config["quantization_config"] = Value::Null).err().unwrap();
    assert!(error.contains("experts.0.gate_proj.weight") && error.contains("missing"), "{error}");
    let error = open(false, |_, config| config["swiglu_limit"] = 6.0.into()).err().unwrap();
    assert!(error.contains("swiglu_limit") && error.contains("7"), "{error}");
    // A scale that is none is found when the matrix is read.
    let spoilt = |all: &mut Vec<Data>, _: &mut Value| {
        all.iter_mut().find(|d| d.name == format!("{stack}_scales")).unwrap().bytes[2] = 255;
    };
    let checkpoint = open(true, spoilt).unwrap();
    let error = checkpoint.load(Precision::AsStored, false, &|_| {}).err().unwrap().to_string();
    assert!(error.contains(&format!("{stack}_scales")), "{error}");
    let error = open(true, |_, _| {}).unwrap().load_as(Quantize::Fp8, Precision::AsStored, false, &|_| {});
    assert!(error.err().unwrap().to_string().contains("MXFP4"));
}
