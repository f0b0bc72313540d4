//! AWQ and GPTQ: checkpoints packed here, by the formats' definitions, are their numbers multiplied out.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use candle_core::DType;
use half::f16;
use hashwatt::cli::{held, room};
use hashwatt::config::Resolved;
use hashwatt::model::Checkpoint;
use hashwatt::model::decoder::{Decoder, Precision, Quantize, tensors};
use hashwatt::model::weights::WeightSource;
use hashwatt::model::weights::four_bit::{FourBit, Method, Packing};
use hashwatt::model::weights::quantization::Quantization;
use hashwatt::model::weights::safetensors::TensorTable;
use hashwatt::ops::blocks::Format;
use hashwatt::ops::weight::WeightType;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use crate::support::{Shape, Steps, checkpoint, llama, others, pool, prompt, qwen3, routed};

const VOCAB: usize = 520;

/// How matrices are packed.
#[derive(Debug, Clone, Copy)]
struct Form {
    awq: bool,
    group: Option<usize>,
    /// Every zero point is 8; any, 0 included, otherwise.
    symmetric: bool,
    v2: bool,
    act_order: bool,
    scales: Dtype,
    head: bool,
}

const AWQ: Form = Form {
    awq: true,
    group: Some(128),
    symmetric: false,
    v2: false,
    act_order: false,
    scales: Dtype::F16,
    head: false,
};
const GPTQ: Form = Form { awq: false, symmetric: true, ..AWQ };

impl Form {
    fn section(self) -> Value {
        let group = self.group.map_or(-1, |group| group as i64);
        match self.awq {
            true => {
                json!({"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm", "zero_point": true,
                           "modules_to_not_convert": ["v_proj"]})
            }
            false => {
                json!({"quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": self.act_order,
                       "sym": self.symmetric, "checkpoint_format": if self.v2 { "gptq_v2" } else { "gptq" }})
            }
        }
    }

    fn packs(self, name: &str) -> bool {
        // One matrix of a layer stays as it was.
        let plain = [
            "embed",
            "norm",
            "bias",
            ".gate.weight",
            "router",
            "sinks",
            "expert_gate",
            "layers.1.self_attn.v_proj",
        ];
        !plain.iter().any(|part| name.contains(part)) && (self.head || !name.contains("lm_head"))
    }

    /// The group of each input.
    fn groups(self, cols: usize) -> Vec<usize> {
        let size = self.group.unwrap_or(cols);
        // 7 has no divisor in common with the widths here.
        (0..cols).map(|i| if self.act_order { (7 * i + 3) % cols / size } else { i / size }).collect()
    }
}

type Data = (String, Dtype, Vec<usize>, Vec<u8>);

fn bytes(numbers: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F16 => numbers.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        Dtype::BF16 => numbers.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect(),
        _ => numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}

fn words(all: &[u32]) -> Vec<u8> {
    all.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A matrix of four bits.
struct Matrix {
    rows: usize,
    cols: usize,
    /// `[rows, cols]`
    codes: Vec<u32>,
    /// `[groups, rows]`
    zeros: Vec<u32>,
    scales: Vec<f32>,
    group_of: Vec<usize>,
}

impl Matrix {
    fn of(numbers: &[f32], (rows, cols): (usize, usize), form: Form) -> Matrix {
        let group_of = form.groups(cols);
        let groups = group_of.iter().max().unwrap() + 1;
        let (mut zeros, mut scales) = (vec![8; groups * rows], vec![0f32; groups * rows]);
        for (i, x) in numbers.iter().enumerate() {
            let scale = &mut scales[group_of[i % cols] * rows + i / cols];
            *scale = scale.max(x.abs() / 7.0);
        }
        for (i, scale) in scales.iter_mut().enumerate() {
            // As the file has it.
            *scale = match form.scales {
                Dtype::F16 => f16::from_f32(*scale).to_f32(),
                Dtype::BF16 => half::bf16::from_f32(*scale).to_f32(),
                _ => *scale,
            };
            if !form.symmetric {
                zeros[i] = (i * 5 % 16) as u32;
            }
        }
        let code = |(i, x): (usize, &f32)| {
            let at = group_of[i % cols] * rows + i / cols;
            ((x / scales[at]).round() + zeros[at] as f32).clamp(0.0, 15.0) as u32
        };
        let codes = numbers.iter().enumerate().map(code).collect();
        Matrix { rows, cols, codes, zeros, scales, group_of }
    }

    fn multiplied_out(&self) -> Vec<f32> {
        let number = |(i, code): (usize, &u32)| {
            let at = self.group_of[i % self.cols] * self.rows + i / self.cols;
            self.scales[at] * (*code as f32 - self.zeros[at] as f32)
        };
        self.codes.iter().enumerate().map(number).collect()
    }

    fn packed(&self, name: &str, form: Form) -> Vec<Data> {
        const AWQ_ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
        const IN_TURN: [usize; 8] = [0, 1, 2, 3, 4, 5, 6, 7];
        let (rows, cols, groups) = (self.rows, self.cols, self.scales.len() / self.rows);
        let order = if form.awq { AWQ_ORDER } else { IN_TURN };
        // Eight outputs of `numbers(output)`, the first in the lowest bits.
        let word = |first: usize, numbers: &dyn Fn(usize) -> u32| {
            order.iter().rev().fold(0, |word, output| word << 4 | numbers(first + output))
        };
        let mut codes = Vec::new();
        if form.awq {
            for col in 0..cols {
                codes.extend((0..rows / 8).map(|w| word(8 * w, &|row| self.codes[row * cols + col])));
            }
        } else {
            for first in (0..cols).step_by(8) {
                codes.extend((0..rows).map(|row| word(first, &|col| self.codes[row * cols + col])));
            }
        }
        let mut zeros = Vec::new();
        for group in 0..groups {
            let of_word = |w| word(8 * w, &|row| self.zeros[group * rows + row]);
            zeros.extend((0..rows / 8).map(of_word));
        }
        if !form.awq && !form.v2 {
            zeros.iter_mut().for_each(|word: &mut u32| *word = word.wrapping_sub(0x1111_1111));
        }
        let module = name.strip_suffix(".weight").unwrap();
        let shape = if form.awq { vec![cols, rows / 8] } else { vec![cols / 8, rows] };
        let scales = bytes(&self.scales, form.scales);
        let mut all = vec![
            (format!("{module}.qweight"), Dtype::I32, shape, words(&codes)),
            (format!("{module}.qzeros"), Dtype::I32, vec![groups, rows / 8], words(&zeros)),
            (format!("{module}.scales"), form.scales, vec![groups, rows], scales),
        ];
        if !form.awq {
            let order: Vec<u32> = self.group_of.iter().map(|group| *group as u32).collect();
            all.push((format!("{module}.g_idx"), Dtype::I32, vec![cols], words(&order)));
        }
        all
    }
}

/// Widths that are whole words and groups.
fn sized(mut config: Value) -> Value {
    config["hidden_size"] = 256.into();
    config["intermediate_size"] = 384.into();
    config["vocab_size"] = VOCAB.into();
    config["torch_dtype"] = "float16".into();
    for key in ["moe_intermediate_size", "shared_expert_intermediate_size"] {
        if config.get(key).is_some() {
            config[key] = 128.into();
        }
    }
    config
}

/// Writes a small model: packed, or in f32 what its numbers are. `change` may alter what is written.
fn write(dir: &Path, config: &Value, form: Form, packed: bool, change: impl Fn(&mut Vec<Data>, &mut Value)) {
    let mut config = sized(config.clone());
    let source = checkpoint(config.clone());
    let mut data = Vec::new();
    for (name, shape) in tensors(&source.spec) {
        let numbers = source.source.weight(&name, &shape).unwrap().to_f32().f32s().to_vec();
        match shape.as_slice() {
            [rows, cols] if form.packs(&name) => {
                let matrix = Matrix::of(&numbers, (*rows, *cols), form);
                match packed {
                    true => data.extend(matrix.packed(&name, form)),
                    false => {
                        let numbers = bytes(&matrix.multiplied_out(), Dtype::F32);
                        data.push((name, Dtype::F32, shape, numbers));
                    }
                }
            }
            _ => data.push((name, Dtype::F16, shape, bytes(&numbers, Dtype::F16))),
        }
    }
    if packed {
        config["quantization_config"] = form.section();
    }
    change(&mut data, &mut config);
    let views = data.iter().map(|(n, t, s, d)| (n, TensorView::new(*t, s.clone(), d).unwrap()));
    safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let tokenizer = hashwatt::text::tokenizer::stand_in_json(VOCAB).unwrap();
    std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}

fn open(config: &Value, form: Form, packed: bool) -> Checkpoint {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), config, form, packed, |_, _| {});
    Checkpoint::open(dir.path().to_str().unwrap(), &pool(2)).unwrap_or_else(|e| panic!("{form:?}: {e}"))
}

fn load(checkpoint: &Checkpoint, precision: Precision) -> Decoder {
    checkpoint.load(precision, true, &|_| {}).unwrap()
}

fn logits(decoder: Decoder) -> Vec<f32> {
    let prompts = [1, 40].map(|n| prompt(n, VOCAB, n as u64));
    let all = Steps::new(&Arc::new(decoder), Shape::default()).run(&prompts, 1);
    all.into_iter().flatten().flatten().collect()
}

/// Largest difference as a share of the largest logit.
fn difference(want: &[f32], got: &[f32]) -> f32 {
    let scale = want.iter().fold(0f32, |m, x| m.max(x.abs()));
    let of = |(x, y): (&f32, &f32)| if y.is_finite() { (x - y).abs() } else { f32::INFINITY };
    want.iter().zip(got).map(of).fold(0f32, f32::max) / scale
}

/// Holds every weight to what it is multiplied out, and counts the types of the packed ones.
fn compare(packed: &Checkpoint, whole: &Checkpoint, form: Form, wanted: WeightType) {
    for (name, shape) in tensors(&packed.spec) {
        let read = |from: &Checkpoint| from.source.weight(&name, &shape).unwrap();
        let (got, want) = (read(packed), read(whole));
        if shape.len() == 2 && form.packs(&name) {
            assert_eq!(got.kind(), wanted, "{form:?}: {name}");
        }
        assert!(got.to_f32().f32s() == want.to_f32().f32s(), "{form:?}: {name} is not what it is");
    }
}

#[test]
fn every_way_of_packing_is_read_to_the_last_bit() {
    const Q4: WeightType = WeightType::Blocks(Format::Q4_0);
    const Q5: WeightType = WeightType::Blocks(Format::Q5_0);
    const OUT: WeightType = WeightType::F32;
    let any = Form { symmetric: false, ..GPTQ };
    for (form, kind) in [
        (AWQ, Q5),
        (Form { group: Some(64), head: true, ..AWQ }, Q5),
        (Form { group: None, ..AWQ }, Q5),
        (Form { symmetric: true, group: Some(32), ..AWQ }, Q4),
        (Form { scales: Dtype::BF16, ..AWQ }, Q5),
        (Form { scales: Dtype::F32, ..AWQ }, OUT),
        (GPTQ, Q4),
        (Form { v2: true, group: Some(32), ..GPTQ }, Q4),
        (any, Q5),
        (Form { v2: true, head: true, ..any }, Q5),
        (Form { act_order: true, ..any }, OUT),
        (Form { act_order: true, v2: true, group: Some(32), ..GPTQ }, OUT),
        // One group has one order.
        (Form { act_order: true, group: None, ..any }, Q5),
    ] {
        let (packed, whole) = (open(&llama(2), form, true), open(&llama(2), form, false));
        compare(&packed, &whole, form, kind);
        let (got, want) = (load(&packed, Precision::F32), load(&whole, Precision::F32));
        assert_eq!(got.activations(), DType::F32);
        let worst = difference(&logits(want), &logits(got));
        assert!(worst <= 1e-5, "{form:?}: {worst}");
    }
}

#[test]
fn every_kind_of_model_can_be_packed() {
    let of = |class: &str| {
        let all = others().into_iter().chain(routed());
        all.into_iter().find(|(name, _)| *name == class).unwrap().1
    };
    // Biases, matrices in one tensor, experts.
    for config in [
        qwen3(2),
        of("Qwen2ForCausalLM"),
        of("Phi3ForCausalLM"),
        of("MixtralForCausalLM"),
        of("Qwen2MoeForCausalLM"),
    ] {
        // Groups that an expert's inputs are several of.
        let group = Some(32);
        for form in [Form { group, ..AWQ }, Form { group, act_order: true, ..GPTQ }] {
            let (packed, whole) = (open(&config, form, true), open(&config, form, false));
            let kind = if form.awq { WeightType::Blocks(Format::Q5_0) } else { WeightType::F32 };
            compare(&packed, &whole, form, kind);
            let (got, want) = (load(&packed, Precision::F32), load(&whole, Precision::F32));
            let worst = difference(&logits(want), &logits(got));
            assert!(worst <= 1e-5, "{} {form:?}: {worst}", config["architectures"]);
        }
    }
}

/// What `serve` takes them for.
#[test]
fn they_are_held_as_it_was_worked_out() {
    let config = |flags: &[(&'static str, String)]| Resolved::merge(flags, &[]).unwrap().config().unwrap();
    let plain = config(&[]);
    for (form, kind, allowed) in [
        (AWQ, WeightType::Blocks(Format::Q5_0), 5e-2),
        (Form { head: true, ..GPTQ }, WeightType::Blocks(Format::Q4_0), 5e-2),
        // In f16, beside f32.
        (Form { act_order: true, ..GPTQ }, WeightType::F16, 1e-3),
    ] {
        let (packed, whole) = (open(&llama(2), form, true), open(&llama(2), form, false));
        let decoder = load(&packed, Precision::AsStored);
        let held = held::held(&plain, &packed);
        assert_eq!((held.layers, held.activations), (kind, decoder.activations()), "{form:?}");
        let norms: usize = tensors(&packed.spec).filter(|(_, s)| s.len() == 1).map(|(_, s)| s[0]).sum();
        let (all, of_step) = held::weight_bytes(&plain, &packed);
        assert_eq!(all as usize, decoder.weight_bytes() + 2 * norms, "{form:?}");
        assert_eq!((all - of_step) as usize, 2 * VOCAB * 256);
        let word = room::word_of_multiplied_out(&plain, &packed);
        assert_eq!(word.is_some(), form.act_order);
        if let Some(word) = word {
            assert!(word.starts_with("20 of 20 matrices"), "{word}");
        }
        let (got, want) = (logits(decoder), logits(load(&whole, Precision::F32)));
        let worst = difference(&want, &got);
        assert!(worst > 0.0 && worst <= allowed, "{form:?}: {worst}");
        let room = room::check_weights(&plain, &packed, all - 1);
        assert!(!room.unwrap_err().to_string().contains("fp8"), "they cannot be rounded again");

        let on_gpu = config(&[("device", "cuda:0".into())]);
        room::check_products(&on_gpu, &packed).unwrap();
        let wide = config(&[("device", "cuda:0".into()), ("dtype", "float32".into())]);
        match room::check_products(&wide, &packed) {
            Ok(()) => assert!(form.act_order),
            Err(error) => {
                let error = error.to_string();
                assert!(error.contains("bf16 activations alone") && error.contains(kind.name()), "{error}");
                assert!(error.contains(if form.awq { "AWQ" } else { "GPTQ" }), "{error}");
            }
        }
        let again = config(&[("quantization", "q8_0".into())]);
        let early = room::check_products(&again, &packed).unwrap_err().to_string();
        let late = packed.load_as(Quantize::Fp8, Precision::AsStored, false, &|_| {}).err().unwrap();
        for error in [early, late.to_string()] {
            assert!(error.contains("config.json") && error.contains("not rounded again"), "{error}");
        }
    }
}

#[test]
fn the_list_of_models_says_what_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("tiny-awq");
    std::fs::create_dir(&folder).unwrap();
    write(&folder, &llama(2), AWQ, true, |_, _| {});
    let mut command = Command::new(env!("CARGO_BIN_EXE_hashwatt"));
    let output = command.arg("models").arg("--models-dir").arg(dir.path()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find(|line| line.contains("tiny-awq")).unwrap_or_else(|| panic!("{text}"));
    assert!(line.contains("4-bit AWQ"), "{line}");
}

const UP: &str = "model.layers.1.mlp.up_proj";

/// The error of a checkpoint with `change` made to it, which holds those words.
fn refused(form: Form, words: &[&str], change: impl Fn(&mut Vec<Data>, &mut Value)) {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &llama(2), form, true, change);
    let opened = Checkpoint::open(dir.path().to_str().unwrap(), &pool(1));
    let error = opened.and_then(|c| c.load(Precision::AsStored, false, &|_| {})).err();
    let error = error.unwrap_or_else(|| panic!("{words:?}: no error")).to_string();
    assert!(
        !error.contains('\n') && words.iter().all(|w| error.contains(w)),
        "{words:?} are not in: {error}"
    );
}

#[test]
fn a_configuration_that_is_not_read_is_named() {
    for (form, key, value, said) in [
        (GPTQ, "bits", json!(3), "3 is not read here; 4 is"),
        (GPTQ, "bits", json!(8), "8 is not read here; 4 is"),
        (AWQ, "bits", json!(8), "8 is not read here; 4 is"),
        (AWQ, "group_size", json!(0), "-1 and multiples of 32"),
        (AWQ, "version", json!("gemv"), "only gemm"),
        (GPTQ, "checkpoint_format", json!("marlin"), "only gptq and gptq_v2"),
    ] {
        let key_of = format!("quantization_config.{key}");
        refused(form, &["config.json", &key_of, said], |_, config| {
            config["quantization_config"][key] = value.clone();
        });
    }
    refused(AWQ, &["config.json", "quantization_config.format", "pack-quantized"], |_, config| {
        config["quantization_config"] = json!({"quant_method": "compressed-tensors", "format": "pack-quantized",
            "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int", "group_size": 128}}}});
    });
    refused(AWQ, &["q_proj.weight", "is missing", "q_proj.qweight"], |_, config| {
        config.as_object_mut().unwrap().remove("quantization_config");
    });
}

/// Changes a part of one matrix.
fn part(all: &mut [Data], name: &str, change: impl Fn(&mut Data)) {
    let name = format!("{UP}.{name}");
    all.iter_mut().filter(|d| d.0 == name).for_each(change);
}

#[test]
fn a_part_that_is_not_what_it_should_be_is_named() {
    for form in [AWQ, GPTQ] {
        for gone in ["qzeros", "scales"] {
            let name = format!("{UP}.{gone}");
            refused(form, &["model.safetensors", &name, "is missing"], |all, _| {
                all.retain(|d| d.0 != name);
            });
        }
        refused(form, &["model.safetensors", &format!("{UP}.weight"), "is missing, and so is"], |all, _| {
            all.retain(|d| !d.0.starts_with(UP));
        });
        for name in ["qweight", "qzeros", "scales"] {
            refused(form, &["model.safetensors", &format!("{UP}.{name}"), "has shape"], |all, _| {
                part(all, name, |d| d.2.reverse());
            });
            refused(form, &["model.safetensors", &format!("{UP}.{name}"), "has type"], |all, _| {
                part(all, name, |d| d.1 = if d.1 == Dtype::F16 { Dtype::I16 } else { Dtype::F32 });
            });
        }
        for bad in [f16::NAN, f16::INFINITY, f16::NEG_INFINITY] {
            let words = ["model.safetensors", &format!("{UP}.scales"), "element 17", &bad.to_string()];
            refused(form, &words, |all, _| {
                part(all, "scales", |d| d.3[34..36].copy_from_slice(&bad.to_le_bytes()));
            });
        }
        refused(form, &[&format!("{UP}.weight"), "and so is"], |all, _| {
            all.push((format!("{UP}.weight"), Dtype::F16, vec![384, 256], vec![0; 2 * 384 * 256]));
        });
        refused(form, &[&format!("{UP}.bias"), "no such bias"], |all, _| {
            all.push((format!("{UP}.bias"), Dtype::F16, vec![384], bytes(&[1.0; 384], Dtype::F16)));
        });
        refused(form, &["layers.0.self_attn.q_proj.qzeros", "[2, 32]", "[4, 32]"], |_, config| {
            config["quantization_config"]["group_size"] = 64.into();
        });
    }
    for bad in [-1, 2] {
        let words = ["model.safetensors", &format!("{UP}.g_idx"), &format!("input 5 is of group {bad}")];
        refused(GPTQ, &words, |all, _| {
            part(all, "g_idx", |d| d.3[20..24].copy_from_slice(&i32::to_le_bytes(bad)));
        });
    }
    refused(Form { act_order: true, ..GPTQ }, &[&format!("{UP}.g_idx"), "is missing"], |all, _| {
        all.retain(|d| d.0 != format!("{UP}.g_idx"));
    });
}

#[test]
fn what_the_tools_leave_beside_or_out_does_not_matter() {
    let run = |change: &dyn Fn(&mut Vec<Data>)| {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &llama(2), GPTQ, true, |all, _| change(all));
        let opened = Checkpoint::open(dir.path().to_str().unwrap(), &pool(1)).unwrap();
        logits(load(&opened, Precision::F32))
    };
    let plain = run(&|_| {});
    // A bias of zeros that no architecture asked for, and an order that is none.
    let other = run(&|all| {
        all.push((format!("{UP}.bias"), Dtype::F16, vec![384], vec![0; 2 * 384]));
        all.retain(|d| !d.0.ends_with("g_idx"));
    });
    assert!(plain == other);
}

/// By `benches/awq_golden.py`.
#[test]
fn a_matrix_is_what_autoawq_makes_of_it() {
    let golden: Value = serde_json::from_str(include_str!("cases/awq.json")).unwrap();
    let flat = |value: &Value| -> Vec<i64> {
        let rows = value.as_array().unwrap().iter().flat_map(|row| row.as_array().unwrap());
        rows.map(|x| x.as_i64().unwrap()).collect()
    };
    let in_256ths =
        |key: &str| -> Vec<f32> { flat(&golden[key]).into_iter().map(|x| x as f32 / 256.0).collect() };
    for (method, key, shape) in [(Method::Awq, "awq", vec![64, 1]), (Method::Gptq, "gptq", vec![8, 8])] {
        let part = |name: &str| flat(&golden[key][name]).into_iter().map(|x| x as u32).collect::<Vec<u32>>();
        let data = [
            ("x.qweight", Dtype::I32, shape, words(&part("qweight"))),
            ("x.qzeros", Dtype::I32, vec![2, 1], words(&part("qzeros"))),
            ("x.scales", Dtype::F16, vec![2, 8], bytes(&in_256ths("scales_in_256ths"), Dtype::F16)),
        ];
        let dir = tempfile::tempdir().unwrap();
        let views = data.iter().map(|(n, t, s, d)| (*n, TensorView::new(*t, s.clone(), d).unwrap()));
        safetensors::serialize_to_file(views, None, &dir.path().join("model.safetensors")).unwrap();
        let how = Packing { method, group: Some(32), less_one: method == Method::Gptq, act_order: false };
        let tensors = [("x.weight".to_string(), vec![8, 64])];
        let table = TensorTable::open(dir.path()).unwrap();
        let table = table
            .with_quantization(
                Some(Quantization::FourBit(FourBit::Packed(how))),
                tensors.into_iter(),
                &pool(1),
            )
            .unwrap();
        let weight = WeightSource::Safetensors(table).weight("x.weight", &[8, 64]).unwrap();
        assert_eq!(weight.kind(), WeightType::Blocks(Format::Q5_0));
        assert_eq!(weight.to_f32().f32s(), in_256ths("weights_in_256ths"), "{method:?}");
    }
}
