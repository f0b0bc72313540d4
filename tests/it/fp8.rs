//! FP8: checkpoints of each kind of scales, rounding at load, the cache of keys and values.

use std::path::Path;
use std::sync::Arc;

use hashwatt::model::Checkpoint;
use hashwatt::model::decoder::{Decoder, Precision, Quantize, tensors};
use hashwatt::model::kv_cache::CacheType;
use hashwatt::ops::cpu::Element;
use hashwatt::ops::cpu::fp8::F8E4M3;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use crate::support::{Shape, Steps, checkpoint, llama, pool, prompt, qwen3};

/// How the layers' matrices of a checkpoint are scaled.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Form {
    /// They are f32: what an FP8 checkpoint's numbers are, multiplied out.
    Dequantised(&'static Form),
    Tensor,
    Channel,
    Block,
}

/// Of the checkpoints here: no divisor of their widths.
const BLOCK: (usize, usize) = (48, 64);

impl Form {
    fn block(self, rows: usize, cols: usize) -> (usize, usize) {
        match self {
            Form::Dequantised(form) => form.block(rows, cols),
            Form::Tensor => (rows, cols),
            Form::Channel => (1, cols),
            Form::Block => BLOCK,
        }
    }

    fn section(self) -> Value {
        match self {
            Form::Dequantised(_) => Value::Null,
            Form::Tensor => json!({"quant_method": "fp8", "activation_scheme": "static"}),
            Form::Channel => json!({
                "quant_method": "compressed-tensors", "format": "float-quantized", "ignore": ["lm_head"],
                "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}}
            }),
            Form::Block => json!({
                "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                "weight_block_size": [BLOCK.0, BLOCK.1]
            }),
        }
    }
}

type Data = (String, Dtype, Vec<usize>, Vec<u8>);

fn bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// A matrix as FP8 with its scales, or what these are multiplied out.
fn rounded(name: &str, all: &[f32], (rows, cols): (usize, usize), form: Form) -> Vec<Data> {
    let (br, bc) = form.block(rows, cols);
    let across = cols.div_ceil(bc);
    let mut scales = vec![0f32; rows.div_ceil(br) * across];
    for (i, x) in all.iter().enumerate() {
        let scale = &mut scales[i / cols / br * across + i % cols / bc];
        *scale = scale.max(x.abs() / 448.0);
    }
    let scale = |i: usize| scales[i / cols / br * across + i % cols / bc];
    let numbers: Vec<F8E4M3> = all.iter().enumerate().map(|(i, x)| F8E4M3::narrow(x / scale(i))).collect();
    let (suffix, shape) = match form {
        Form::Dequantised(_) => {
            let whole: Vec<f32> = numbers.iter().enumerate().map(|(i, x)| x.widen() * scale(i)).collect();
            return vec![(name.into(), Dtype::F32, vec![rows, cols], bytes(&whole))];
        }
        Form::Tensor => ("_scale", vec![]),
        Form::Channel => ("_scale", vec![rows, 1]),
        Form::Block => ("_scale_inv", vec![rows.div_ceil(br), across]),
    };
    vec![
        (name.into(), Dtype::F8_E4M3, vec![rows, cols], F8E4M3::bytes(&numbers).to_vec()),
        (format!("{name}{suffix}"), Dtype::F32, shape, bytes(&scales)),
        // Of activations, which are not rounded here.
        (name.replace("weight", "input_scale"), Dtype::F32, vec![], bytes(&[0.5])),
    ]
}

/// Writes a small model; `change` may alter what is written.
fn write(dir: &Path, form: Form, change: impl Fn(&mut Vec<Data>)) {
    let mut config = qwen3(1);
    let source = checkpoint(config.clone());
    let mut data = Vec::new();
    for (name, shape) in tensors(&source.spec) {
        let numbers = source.source.weight(&name, &shape).unwrap().to_f32().f32s().to_vec();
        match shape.as_slice() {
            // One matrix of a layer stays as it was, as `modules_to_not_convert` has it.
            [rows, cols] if name.contains("_proj") && !name.contains("layers.1.self_attn.v_proj") => {
                data.extend(rounded(&name, &numbers, (*rows, *cols), form));
            }
            _ => data.push((name, Dtype::F32, shape, bytes(&numbers))),
        }
    }
    change(&mut data);
    let views = data.iter().map(|(n, t, s, d)| (n, TensorView::new(*t, s.clone(), d).unwrap()));
    safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
    config["quantization_config"] = form.section();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let tokenizer = hashwatt::text::tokenizer::stand_in_json(517).unwrap();
    std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}

fn open(form: Form, change: impl Fn(&mut Vec<Data>)) -> Result<Decoder, String> {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), form, change);
    let folder = Checkpoint::open(dir.path().to_str().unwrap(), &pool(1)).map_err(|e| e.to_string())?;
    folder.load(Precision::F32, true, &|_| {}).map_err(|e| e.to_string())
}

fn logits(decoder: Decoder, generate: usize) -> Vec<Vec<Vec<f32>>> {
    let prompts = [1, 30, 70].map(|n| prompt(n, 517, n as u64));
    Steps::new(&Arc::new(decoder), Shape::default()).run(&prompts, generate)
}

/// Largest difference as a share of the largest logit.
fn difference(a: &[Vec<Vec<f32>>], b: &[Vec<Vec<f32>>]) -> f32 {
    let flat = |all: &[Vec<Vec<f32>>]| all.iter().flatten().flatten().copied().collect::<Vec<f32>>();
    let (a, b) = (flat(a), flat(b));
    let scale = a.iter().fold(0f32, |m, x| m.max(x.abs()));
    a.iter().zip(&b).fold(0f32, |m, (x, y)| if y.is_finite() { m.max((x - y).abs()) } else { f32::INFINITY })
        / scale
}

#[test]
fn an_fp8_checkpoint_is_its_numbers_multiplied_out() {
    for (form, dequantised) in [
        (Form::Tensor, Form::Dequantised(&Form::Tensor)),
        (Form::Channel, Form::Dequantised(&Form::Channel)),
        (Form::Block, Form::Dequantised(&Form::Block)),
    ] {
        let fp8 = open(form, |_| {}).unwrap();
        let want = open(dequantised, |_| {}).unwrap();
        assert!(fp8.weight_bytes() * 2 < want.weight_bytes(), "{form:?} is not held as FP8");
        let (fp8, want) = (logits(fp8, 4), logits(want, 4));
        let worst = difference(&want, &fp8);
        assert!(worst <= 1e-6, "{form:?}: {worst}");
    }
}

#[test]
fn scales_that_do_not_fit_are_one_error_that_names_them() {
    const WEIGHT: &str = "model.layers.1.mlp.up_proj.weight";
    let error = |form: Form, change: &dyn Fn(&mut Data)| {
        let change =
            |all: &mut Vec<Data>| all.iter_mut().filter(|d| d.0.starts_with(WEIGHT)).for_each(change);
        open(form, change).err().expect("an error")
    };
    let has = |error: String, parts: &[&str]| {
        assert!(parts.iter().all(|p| error.contains(p)), "{parts:?} are not in: {error}");
    };
    let is_scale = |d: &Data| d.0.contains("_scale");
    let missing = error(Form::Block, &|d| {
        if is_scale(d) {
            d.0 = "else".into();
        }
    });
    has(missing, &["model.safetensors", WEIGHT, "weight_scale_inv"]);
    let shape = error(Form::Block, &|d| {
        if is_scale(d) {
            (d.2, d.3) = (vec![7, 3], bytes(&[1.0; 21]));
        }
    });
    has(shape, &["model.safetensors", "up_proj.weight_scale_inv", "[7, 3]", "331 rows", "48 × 64"]);
    for bad in [f32::NAN, 0.0, -1.0, f32::INFINITY] {
        let scale = error(Form::Channel, &|d| {
            if is_scale(d) {
                d.3[4 * 17..4 * 18].copy_from_slice(&bad.to_le_bytes());
            }
        });
        has(scale, &["model.safetensors", "up_proj.weight_scale", "17", &bad.to_string()]);
    }
    let nan = error(Form::Tensor, &|d| {
        if !is_scale(d) {
            d.3[23] = 0x7f;
        }
    });
    has(nan, &["model.safetensors", WEIGHT, "23", "NaN"]);
    let cache = open(Form::Tensor, |all| {
        let name = "model.layers.2.self_attn.k_scale".into();
        all.push((name, Dtype::F32, vec![1], bytes(&[f32::NAN])));
    });
    has(cache.err().expect("an error"), &["model.safetensors", "layers.2.self_attn.k_scale", "NaN"]);
}

#[test]
fn a_method_that_is_not_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), Form::Tensor, |_| {});
    let mut config = qwen3(1);
    config["quantization_config"] = json!({"quant_method": "bitsandbytes", "load_in_4bit": true});
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let error = Checkpoint::open(dir.path().to_str().unwrap(), &pool(1)).err().expect("an error").to_string();
    for part in ["config.json", "quantization_config.quant_method", "bitsandbytes"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn rounding_at_load_keeps_the_demo_near() {
    let demo = Checkpoint::open("demo", &pool(2)).unwrap();
    let whole = demo.load(Precision::AsStored, false, &|_| {}).unwrap();
    let fp8 = demo.load_as(Quantize::Fp8, Precision::AsStored, false, &|_| {}).unwrap();
    assert!(fp8.weight_bytes() < whole.weight_bytes());
    let vocab = demo.spec.vocab;
    // Tokens of the demo's text, and the same tokens for both, so that one difference does not hide the rest.
    let prompts: Vec<Vec<u32>> = (0..24).map(|i| prompt(3 + i, vocab, i as u64)).collect();
    let run = |decoder: Decoder| Steps::new(&Arc::new(decoder), Shape::default()).run(&prompts, 1);
    let (whole, fp8) = (run(whole), run(fp8));
    let best = |row: &Vec<f32>| (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap();
    let agree = whole.iter().zip(&fp8).filter(|(a, b)| best(&a[0]) == best(&b[0])).count();
    let worst = difference(&whole, &fp8);
    assert!(worst > 0.0, "nothing was rounded");
    assert!(worst < 0.15, "{worst} of the largest logit");
    assert!(agree * 10 >= prompts.len() * 8, "{agree} of {} tokens agree", prompts.len());
}

#[test]
fn an_fp8_cache_is_near_and_does_not_depend_on_how_the_work_is_cut() {
    for config in [llama(1), qwen3(4)] {
        for precision in [Precision::F32, Precision::Bf16] {
            let load = || checkpoint(config.clone()).load(precision, true, &|_| {}).unwrap();
            let fp8 = Arc::new(load().with_cache(CacheType::Fp8));
            assert_eq!(fp8.cache_type(), CacheType::Fp8);
            let prompts = [1, 17, 200].map(|n| prompt(n, 517, n as u64));
            // Of the prompts' last tokens alone: later ones follow from what was chosen before.
            let want = Steps::new(&Arc::new(load()), Shape::default()).run(&prompts, 1);
            let first = Steps::new(&fp8, Shape::default()).run(&prompts, 1);
            let worst = difference(&want, &first);
            assert!(worst > 0.0 && worst < 0.1, "{precision:?}: {worst} of the largest logit");

            let whole = Steps::new(&fp8, Shape::default()).run(&prompts, 8);
            for threads in [1, 2] {
                let mut steps = Steps::new(&fp8, Shape { threads, tokens: 37, ..Shape::default() });
                assert_eq!(steps.run(&prompts, 8), whole, "{precision:?} in chunks");
                assert_eq!(steps.run(&prompts, 8), whole, "{precision:?} with a prefix hit");
                assert!(steps.prefix_hits > 100, "{} tokens hit", steps.prefix_hits);
            }
        }
    }
}

#[test]
fn the_cache_is_scaled_by_what_the_checkpoint_says() {
    let with = |names: [&str; 2], scale: f32, cache: bool| {
        let decoder = open(Form::Tensor, |all| {
            for layer in 0..3 {
                for name in names {
                    let name = format!("model.layers.{layer}.self_attn.{name}");
                    all.push((name, Dtype::F32, vec![], bytes(&[scale])));
                }
            }
        });
        let decoder = decoder.unwrap();
        logits(if cache { decoder.with_cache(CacheType::Fp8) } else { decoder }, 1)
    };
    const NAMES: [&str; 2] = ["k_scale", "v_scale"];
    let plain = with(NAMES, 1.0, true);
    // A power of two moves exponents alone, but for the few numbers that are subnormal.
    let halved = with(NAMES, 0.5, true);
    let near = difference(&plain, &halved);
    assert!(near > 0.0 && near < 1e-2, "{near} of the largest logit");
    assert!(halved == with(["k_proj.output_scale", "v_proj.output_scale"], 0.5, true), "by another name");
    let cut_off = difference(&plain, &with(NAMES, 1e-4, true));
    assert!(cut_off > 2e-2, "beyond 448 all is 448: {cut_off} of the largest logit");
    assert!(with(NAMES, 1e-4, false) == with(NAMES, 1.0, false), "another type of cache asks for no scales");
}

/// Parts of one matrix with scales of their own, one part that is not FP8, and a cache with scales.
#[test]
fn a_checkpoint_of_blocks_is_itself_by_kernels() {
    let Some(on) = crate::host_kernels::kernels() else { return };
    let prompts = [1, 30].map(|n| prompt(n, 517, n as u64));
    for form in [Form::Tensor, Form::Channel, Form::Block] {
        // Scales under which much is subnormal, or is cut off: where they are left out, logits differ.
        let decoder = open(form, |all| {
            for (name, scale) in [("k_scale", 40.0f32), ("v_scale", 1e-3)] {
                let name = format!("model.layers.1.self_attn.{name}");
                all.push((name, Dtype::F32, vec![], bytes(&[scale])));
            }
        });
        let decoder = Arc::new(decoder.unwrap());
        let there = Arc::new(decoder.on_device(&on.device).unwrap());
        assert!(there.weight_bytes() >= decoder.weight_bytes());
        let want = Steps::new(&decoder, Shape::default()).run(&prompts, 3);
        let got = Steps::on(&there, on.clone(), Shape::default()).run(&prompts, 3);
        let worst = difference(&want, &got);
        assert!(worst <= 1e-4, "{form:?}: {worst}");

        let fp8 = |decoder: Arc<Decoder>| {
            Arc::new(Arc::into_inner(decoder).expect("nobody else has it").with_cache(CacheType::Fp8))
        };
        let (decoder, there) = (fp8(decoder), fp8(there));
        let want = Steps::new(&decoder, Shape::default()).run(&prompts, 1);
        let got = Steps::on(&there, on.clone(), Shape::default()).run(&prompts, 1);
        let worst = difference(&want, &got);
        assert!(worst <= 1e-2, "{form:?} with an FP8 cache: {worst}");
    }
}

#[test]
fn the_settings_reach_the_decoder_and_the_sizes() {
    use hashwatt::cli::assemble;
    use hashwatt::clock::Clock;
    use hashwatt::config::Resolved;
    use hashwatt::unit::Unit;
    let start = |more: &[(&'static str, &str)]| {
        let flags: Vec<_> =
            [("model", "demo"), ("threads", "1"), ("kv-memory", "200KiB")].iter().chain(more).collect();
        let flags: Vec<_> = flags.into_iter().map(|(k, v)| (*k, v.to_string())).collect();
        let config = Resolved::merge(&flags, &[]).unwrap().config().unwrap();
        let opened = assemble::open(&config, &Unit::new(Clock::system())).unwrap();
        let decoder = assemble::load(&config, opened.chat().unwrap(), true).unwrap();
        (opened.sizes.blocks_per_device, decoder)
    };
    let (blocks, plain) = start(&[]);
    let (twice, fp8) = start(&[("quantization", "fp8"), ("kv-cache-dtype", "fp8")]);
    assert!(twice >= 2 * blocks, "{twice} blocks, {blocks} in the type of the activations");
    assert_eq!(
        (plain.cache_type(), fp8.cache_type()),
        (CacheType::like(plain.activations()), CacheType::Fp8)
    );
    assert_eq!(plain.activations(), fp8.activations());
    assert!(fp8.weight_bytes() < plain.weight_bytes());
}
