//! Products of few rows by kernels: against sums in f64, against themselves in other company, and how many kernels
//! are left of a step.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use hashwatt::model::decoder::{Decoder, Precision};
use hashwatt::ops::exec::Exec;
use hashwatt::ops::gemv::NormProduct;
use hashwatt::ops::linear::Linear;
use hashwatt::ops::rms_norm::RmsNorm;
use hashwatt::ops::weight::Weight;

use crate::host_kernels::kernels;
use crate::support::{Shape, Steps, decoder, llama, prompt, routed};

const TYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

fn numbers(seed: usize, n: usize) -> Vec<f32> {
    prompt(n, 4001, seed as u64 + 1).into_iter().map(|t| (t as f32 - 2000.0) / 2000.0).collect()
}

/// As a type holds it.
fn rounded(x: f32, dtype: DType) -> f32 {
    match dtype {
        DType::F16 => f16::from_f32(x).to_f32(),
        DType::BF16 => bf16::from_f32(x).to_f32(),
        _ => x,
    }
}

/// What a matrix is stored in.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Stored {
    AsActivations,
    /// A scale for each row.
    Fp8,
    /// A scale for each 3 × 32 weights.
    Fp8InBlocks,
}

fn weight(data: &[f32], rows: usize, cols: usize, dtype: DType, stored: Stored) -> Weight {
    let weight = Weight::from_f32(data.to_vec(), rows, cols);
    match (stored, dtype) {
        (Stored::Fp8, _) => weight.to_fp8(),
        (Stored::Fp8InBlocks, _) => {
            let scales = numbers(5, rows.div_ceil(3) * cols.div_ceil(32));
            let scales = scales.iter().map(|x| (x.abs() + 0.01) / 448.0).collect();
            weight.to_fp8().with_scales(scales, (3, 32)).unwrap()
        }
        (_, DType::F16) => weight.to_f16(),
        (_, DType::BF16) => weight.to_bf16(),
        _ => weight,
    }
}

fn tensor(data: &[f32], rows: usize, dtype: DType) -> Tensor {
    Tensor::from_slice(data, (rows, data.len() / rows), &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// `src · weightᵀ`, of what the types hold.
fn reference(src: &[f32], weight: &Weight, dtype: DType) -> Vec<f64> {
    let k = weight.cols();
    let weights: Vec<f32> = (0..weight.rows() * k).map(|i| weight.get(i)).collect();
    let dot = |a: &[f32], b: &[f32]| {
        a.iter().zip(b).map(|(a, b)| f64::from(rounded(*a, dtype)) * f64::from(*b)).sum()
    };
    src.chunks(k).flat_map(|a| weights.chunks(k).map(move |b| dot(a, b)).collect::<Vec<f64>>()).collect()
}

fn close(got: f32, want: f64, k: usize, what: &str) {
    let tolerance = 2e-6 * (k as f64).sqrt().max(4.0) + 1e-6 * want.abs();
    assert!((f64::from(got) - want).abs() <= tolerance, "{what}: {got} where {want} is right");
}

#[test]
fn few_rows_are_multiplied_as_in_f64_and_each_as_if_alone() {
    let Some(on) = kernels() else { return };
    use Stored::{AsActivations, Fp8, Fp8InBlocks};
    let shapes = [
        (1, 64, AsActivations),
        (15, 96, AsActivations),
        (17, 2048, AsActivations),
        (64, 1288, AsActivations),
        (1, 16, Fp8),
        (15, 4112, Fp8),
        (17, 2048, Fp8InBlocks),
        (64, 1296, Fp8InBlocks),
    ];
    for (i, (n, k, stored)) in shapes.into_iter().enumerate() {
        // FP8 in two launches too.
        for rows in if stored == AsActivations { 1..=8usize } else { 1..=11 } {
            let dtype = TYPES[(rows + i) % 3];
            let src = numbers(rows, rows * k);
            let (matrix, bias) =
                (weight(&numbers(n, n * k), n, k, dtype, stored), Weight::vector(numbers(7, n)));
            let (accumulate, with_bias, column) = (rows % 2 == 0, rows % 3 == 0, rows % 4);
            let width = n + column + 3;
            let start = if accumulate { 0.5 } else { f32::NAN };
            let run = |src: &[f32], rows: usize| {
                // A row more than is asked for.
                let dst = Tensor::full(start, (rows + 1, width), &Device::Cpu).unwrap();
                let bias = with_bias.then_some(&bias);
                let op = Linear { weight: &matrix, bias, rows, column, accumulate, on: &on };
                dst.inplace_op2(&tensor(src, rows, dtype), &op).unwrap();
                floats(&dst)
            };
            let (got, want) = (run(&src, rows), reference(&src, &matrix, dtype));
            for r in 0..=rows {
                for c in 0..width {
                    let x = got[r * width + c];
                    if r == rows || !(column..column + n).contains(&c) {
                        assert!(x.to_bits() == start.to_bits(), "{rows} {n} {k}: ({r}, {c}) was written");
                        continue;
                    }
                    let out = c - column;
                    let bias = if with_bias { f64::from(bias.get(out)) } else { 0.0 };
                    let before = if accumulate { 0.5 } else { 0.0 };
                    let want = want[r * n + out] + bias + before;
                    close(
                        x,
                        want,
                        k,
                        &format!("{stored:?} {dtype:?} rows {rows}, n {n}, k {k}, ({r}, {out})"),
                    );
                }
                if r < rows {
                    let alone = run(&src[r * k..(r + 1) * k], 1);
                    let same =
                        |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same(&alone[..width], &got[r * width..(r + 1) * width]), "row {r} of {rows}");
                }
            }
        }
    }
}

/// Fused with what is around it a product is what the operations are one after the other on the CPU.
#[test]
fn a_norm_and_a_gate_are_the_same_fused() {
    let Some(on) = kernels() else { return };
    let cpu = Exec::cpu(1);
    for (rows, n, k, dtype, stored) in [
        (1, 34, 256, DType::BF16, Stored::AsActivations),
        (2, 10, 64, DType::F16, Stored::AsActivations),
        (5, 34, 200, DType::F32, Stored::AsActivations),
        (8, 6, 2048, DType::BF16, Stored::AsActivations),
        (1, 34, 2048, DType::BF16, Stored::Fp8),
        (7, 10, 96, DType::F32, Stored::Fp8InBlocks),
        (3, 6, 4096, DType::F16, Stored::Fp8InBlocks),
    ] {
        let src = numbers(rows, rows * k);
        let (matrix, scale) =
            (weight(&numbers(n, n * k), n, k, dtype, stored), Weight::vector(numbers(3, k)));
        let norm = |on| RmsNorm { weight: &scale, eps: 1e-5, rows, on };
        // The CPU rounds normed rows to bf16 at most; f16 is rounded here.
        let normed = Tensor::zeros((rows, k), DType::F32, &Device::Cpu).unwrap();
        normed.inplace_op2(&tensor(&src, rows, DType::F32), &norm(&cpu)).unwrap();
        let want = reference(&floats(&normed), &matrix, dtype);
        let op = NormProduct { norm: norm(&on), weight: &matrix, bias: None, activations: dtype, on: &on };
        let dst = Tensor::full(f32::NAN, (rows, n + 2), &Device::Cpu).unwrap();
        assert!(op.product(&dst, &tensor(&src, rows, DType::F32)).unwrap());
        // An ulp of a rounded activation.
        let noise = if dtype == DType::F32 { 1e-4 } else { 2e-2 };
        for (r, row) in floats(&dst).chunks(n + 2).enumerate() {
            for c in 0..n {
                let (got, want) = (f64::from(row[c]), want[r * n + c]);
                assert!(
                    (got - want).abs() <= noise * want.abs().max(1.0),
                    "{dtype:?} {rows} ({r}, {c}): {got} {want}"
                );
            }
            assert!(row[n..].iter().all(|x| x.is_nan()));
        }
        let gated = Tensor::full(f32::NAN, (rows, n / 2), &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        assert!(op.silu_mul(&gated, &tensor(&src, rows, DType::F32)).unwrap());
        for (r, row) in floats(&gated).chunks(n / 2).enumerate() {
            for c in 0..n / 2 {
                let (gate, up) = (want[r * n + c], want[r * n + n / 2 + c]);
                let (got, want) = (f64::from(row[c]), gate / (1.0 + (-gate).exp()) * up);
                assert!(
                    (got - want).abs() <= 3.0 * noise * want.abs().max(1.0),
                    "{rows} ({r}, {c}): {got} {want}"
                );
            }
        }
    }
}

fn small(layers: usize) -> serde_json::Value {
    let mut config = llama(2);
    config["num_hidden_layers"] = layers.into();
    config["intermediate_size"] = 336.into();
    config
}

#[test]
fn a_step_of_sixteen_layers_is_at_most_110_kernels() {
    let Some(on) = kernels() else { return };
    let mut config = small(16);
    config["hidden_size"] = 64.into();
    config["head_dim"] = 64.into();
    config["num_attention_heads"] = 1.into();
    config["num_key_value_heads"] = 1.into();
    config["intermediate_size"] = 16.into();
    let there = Arc::new(decoder(&config, Precision::Bf16).on_device(&on.device).unwrap());
    let mut steps = Steps::on(&there, on, Shape { sequences: 1, tokens: 8, ..Shape::default() });
    let nodes = steps.runner.capture(1, &|_| {}).unwrap().nodes;
    // Sampling is one more, or two.
    assert!(nodes.kernels + 2 <= 110, "{nodes:?}");
    assert_eq!(nodes.memory, 0);
}

/// With `batch_invariant` a row's logits are the same bits alone, in a batch, and however its prompt is cut.
#[test]
fn batch_invariant_kernels_give_the_same_bits_in_any_company() {
    let Some(on) = kernels() else { return };
    let on = Exec { batch_invariant: true, ..on };
    let mut experts = routed().swap_remove(0).1;
    experts["intermediate_size"] = 336.into();
    for config in [small(1), experts] {
        in_any_company(&decoder(&config, Precision::Bf16), &on);
    }
}

fn in_any_company(decoder: &Decoder, on: &Exec) {
    let there = Arc::new(decoder.on_device(&on.device).unwrap());
    let prompts: Vec<_> = [5usize, 40, 23].iter().map(|n| prompt(*n, 517, *n as u64)).collect();
    let run = |prompts: &[Vec<u32>], tokens: usize| {
        let mut steps = Steps::on(&there, on.clone(), Shape { tokens, ..Shape::default() });
        let logits = steps.run(prompts, 3);
        let bits = |all: &Vec<Vec<f32>>| all.iter().flatten().map(|x| x.to_bits()).collect::<Vec<_>>();
        logits.iter().map(bits).collect::<Vec<_>>()
    };
    let together = run(&prompts, 1024);
    for (i, p) in prompts.iter().enumerate() {
        assert_eq!(run(std::slice::from_ref(p), 1024)[0], together[i], "prompt {i} alone");
    }
    assert_eq!(run(&prompts, 16), together, "cut into chunks");
}
