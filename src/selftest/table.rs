//! The operations' shape table: for each operation its cases, and what comes out by definition, in f64.
//!
//! Another operation is one row of [`OPERATIONS`] and a function.

use candle_core::{DType, Result, Tensor};

use super::attention;
use super::experts;
use super::numbers::{Want, compare, held, mirrored, poison, random, read, rounded, tensor, ulp};
use super::{Outcome, Size};
use crate::ops::activation::{GateActivation, GateMul, SoftCap};
use crate::ops::exec::Exec;
use crate::ops::gather::{Gather, SelectRows};
use crate::ops::gemv::NormProduct;
use crate::ops::launch::{ArrayKind, Mirrored};
use crate::ops::linear::Linear;
use crate::ops::rms_norm::{AddNormed, AsIs, NormSides, RmsNorm};
use crate::ops::rope::RopeAngles;
use crate::ops::sample::{self, NONE, RESULT_WORDS, Sample, Samples, Task};
use crate::ops::weight::Weight;

type Cases = fn(&Exec, Size) -> Vec<Outcome>;

pub const OPERATIONS: &[(&str, Cases)] = &[
    ("gather", gather),
    ("select_rows", select_rows),
    ("rms_norm", rms_norm),
    ("rope_angles", rope_angles),
    ("rope_kv_write", attention::rope_kv_write),
    ("paged_attention", attention::paged_attention),
    ("linear", linear),
    ("norm_product", norm_product),
    ("experts", experts::experts),
    ("gate_rows", experts::gate_rows),
    ("gate_mul", gate_mul),
    ("soft_cap", soft_cap),
    ("add_normed", add_normed),
    ("as_is", as_is),
    ("norm_sides", norm_sides),
    ("sample", sample_tokens),
];

/// Types of activations that a device computes with.
pub fn types(on: &Exec) -> &'static [DType] {
    match on.launcher {
        Some(_) => &[DType::F32, DType::F16, DType::BF16],
        None => &[DType::F32, DType::BF16],
    }
}

/// Odd ones, and one behind a power of two.
fn widths(size: Size) -> &'static [usize] {
    match size {
        Size::Small => &[1, 15, 17],
        Size::Full => &[1, 15, 17, 256, 4097],
    }
}

/// Each of these, with what is stored in it and what is stored in FP8.
pub fn types_and_stored(on: &Exec) -> Vec<(DType, DType)> {
    types(on).iter().flat_map(|t| [(*t, *t), (*t, DType::F8E4M3)]).collect()
}

fn gather(on: &Exec, size: Size) -> Vec<Outcome> {
    let mut all = Vec::new();
    for (&width, &dtype) in widths(size).iter().flat_map(|w| types(on).iter().map(move |t| (w, t))) {
        for rows in [0usize, 1, 17] {
            let table = random(1, 40 * width);
            let ids: Vec<u32> = (0..rows as u32).map(|r| r * 7 % 40).collect();
            let run = || -> Result<Vec<f32>> {
                let table = Weight::made(table.clone(), width, dtype, on)?;
                let [ids] = mirrored(on, [&ids])?;
                let dst = poison(on, rows + 1, width, DType::F32)?;
                let scale = if rows == 1 { 1.0 } else { 1.5 };
                dst.inplace_op1(&Gather { table: &table, ids, sampled: 0, scale, on })?;
                read(&dst)
            };
            let (held, scale) = (rounded(&table, dtype), if rows == 1 { 1.0 } else { 1.5 });
            let row = |id: &u32| &held[*id as usize * width..][..width];
            let numbers = ids.iter().flat_map(row).map(|x| f64::from(*x * scale)).collect();
            let want = Want { numbers, tolerance: (0.0, f64::MIN_POSITIVE) };
            all.push(compare("gather", format!("{rows} rows of {width}, {dtype:?}"), run(), &want));
        }
    }
    all
}

fn select_rows(on: &Exec, size: Size) -> Vec<Outcome> {
    let case = |width: usize| {
        let (src, rows) = (random(2, 20 * width), [3u32, 19, 0, 3]);
        let run = || -> Result<Vec<f32>> {
            let dst = poison(on, 5, width, DType::F32)?;
            let [rows] = mirrored(on, [&rows])?;
            dst.inplace_op2(&tensor(on, src.clone(), width, DType::F32)?, &SelectRows { rows, width, on })?;
            read(&dst)
        };
        let row = |r: &u32| &src[*r as usize * width..][..width];
        let numbers = rows.iter().flat_map(row).map(|x| f64::from(*x)).collect();
        let want = Want { numbers, tolerance: (0.0, f64::MIN_POSITIVE) };
        compare("select_rows", format!("4 of 20 rows of {width}"), run(), &want)
    };
    widths(size).iter().map(|w| case(*w)).collect()
}

/// `x / rms(x) · weight`, of f32 numbers.
fn normed(src: &[f32], scale: &[f32], eps: f32) -> Vec<f64> {
    let row = |row: &[f32]| {
        let squares: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum();
        let inverse = 1.0 / (squares / row.len() as f64 + f64::from(eps)).sqrt();
        row.iter().zip(scale).map(|(x, w)| f64::from(*x) * inverse * f64::from(*w)).collect::<Vec<_>>()
    };
    src.chunks(scale.len()).flat_map(row).collect()
}

fn rms_norm(on: &Exec, size: Size) -> Vec<Outcome> {
    let mut all = Vec::new();
    for (&width, &dtype) in widths(size).iter().flat_map(|w| types(on).iter().map(move |t| (w, t))) {
        for rows in [0usize, 1, 15] {
            let (src, scale) = (random(3, rows * width), random(4, width));
            let run = || -> Result<Vec<f32>> {
                let weight = Weight::made(scale.clone(), width, DType::F32, on)?;
                let dst = poison(on, rows + 1, width, dtype)?;
                // One more row than is asked for.
                let src = tensor(on, [src.clone(), vec![1.0; width]].concat(), width, DType::F32)?;
                dst.inplace_op2(&src, &RmsNorm { weight: &weight, eps: 1e-5, rows, on })?;
                read(&dst)
            };
            let want = Want { numbers: normed(&src, &scale, 1e-5), tolerance: (4.0 * ulp(dtype), 1e-6) };
            all.push(compare("rms_norm", format!("{rows} rows of {width}, {dtype:?}"), run(), &want));
        }
    }
    all
}

/// What stands behind a layer's branches, or in place of a norm: rows of f32 in, f32 rows out.
fn add_normed(on: &Exec, size: Size) -> Vec<Outcome> {
    let case = |width: usize| {
        let rows = 5;
        let (src, scale, before) = (random(31, rows * width), random(32, width), random(33, rows * width));
        let run = || -> Result<Vec<f32>> {
            let weight = Weight::made(scale.clone(), width, DType::F32, on)?;
            let dst = tensor(on, before.clone(), width, DType::F32)?;
            let norm = RmsNorm { weight: &weight, eps: 1e-5, rows, on };
            dst.inplace_op2(&tensor(on, src.clone(), width, DType::F32)?, &AddNormed(norm))?;
            read(&dst)
        };
        let added = normed(&src, &scale, 1e-5);
        let numbers = added.iter().zip(&before).map(|(x, y)| x + f64::from(*y)).collect();
        let want = Want { numbers, tolerance: (4.0 * ulp(DType::F32), 1e-6) };
        compare("add_normed", format!("{rows} rows of {width}"), run(), &want)
    };
    widths(size).iter().map(|w| case(*w)).collect()
}

fn as_is(on: &Exec, size: Size) -> Vec<Outcome> {
    let case = |(width, dtype): (usize, DType)| {
        let (rows, src) = (3, random(34, 3 * width));
        let run = || -> Result<Vec<f32>> {
            let dst = poison(on, rows + 1, width, dtype)?;
            dst.inplace_op2(&tensor(on, src.clone(), width, DType::F32)?, &AsIs { width, rows, on })?;
            read(&dst)
        };
        let numbers = rounded(&src, dtype).iter().map(|x| f64::from(*x)).collect();
        let want = Want { numbers, tolerance: (0.0, f64::MIN_POSITIVE) };
        compare("as_is", format!("{rows} rows of {width}, {dtype:?}"), run(), &want)
    };
    widths(size).iter().flat_map(|w| types(on).iter().map(|t| (*w, *t))).map(case).collect()
}

fn norm_sides(on: &Exec, size: Size) -> Vec<Outcome> {
    let case = |width: usize| {
        // A wide part, one of 7, and what is left alone behind them.
        let (rows, stride, widths) = (4, width + 10, [width, 7]);
        let (src, scales) = (random(35, rows * stride), widths.map(|w| random(36, w)));
        let run = || -> Result<Vec<f32>> {
            let [first, second] = [0, 1].map(|i| Weight::made(scales[i].clone(), widths[i], DType::F32, on));
            let dst = tensor(on, src.clone(), stride, DType::F32)?;
            dst.inplace_op1(&NormSides { weights: &[first?, second?], eps: 1e-5, rows, on })?;
            read(&dst)
        };
        let row = |row: &[f32]| {
            let sides = [&row[..width], &row[width..width + 7]];
            let both = sides.iter().zip(&scales).flat_map(|(side, scale)| normed(side, scale, 1e-5));
            both.chain(row[width + 7..].iter().map(|x| f64::from(*x))).collect::<Vec<_>>()
        };
        let numbers = src.chunks(stride).flat_map(row).collect();
        let want = Want { numbers, tolerance: (4.0 * ulp(DType::F32), 1e-6) };
        compare("norm_sides", format!("{rows} rows of {width} and 7"), run(), &want)
    };
    widths(size).iter().map(|w| case(*w)).collect()
}

fn rope_angles(on: &Exec, _: Size) -> Vec<Outcome> {
    let case = |(half, length): (usize, f32)| {
        let mut frequencies: Vec<f32> =
            (0..half).map(|i| (-(i as f32) / half as f32 * 500_000f32.ln()).exp()).collect();
        // A pair that is not turned keeps its length.
        frequencies[half - 1] = 0.0;
        let positions = [0u32, 1, 17, 4097, 131_071];
        let run = || -> Result<Vec<f32>> {
            let inverse_frequencies = &Weight::made(frequencies.clone(), half, DType::F32, on)?;
            let [positions] = mirrored(on, [&positions])?;
            let dst = poison(on, positions.host.len() + 1, 2 * half, DType::F32)?;
            dst.inplace_op1(&RopeAngles { positions, inverse_frequencies, length, on })?;
            read(&dst)
        };
        let row = |p: &u32| {
            // The angle is an f32 by definition; its sine and cosine are not.
            let angle = |f: &f32| f64::from(*p as f32 * f);
            let by = |f: &f32| if *f == 0.0 { 1.0 } else { f64::from(length) };
            let cosines = frequencies.iter().map(move |f| angle(f).cos() * by(f));
            cosines.chain(frequencies.iter().map(move |f| angle(f).sin() * by(f))).collect::<Vec<_>>()
        };
        let want = Want { numbers: positions.iter().flat_map(row).collect(), tolerance: (0.0, 2e-6) };
        compare("rope_angles", format!("heads of {}", 2 * half), run(), &want)
    };
    [(32, 1.0), (48, 1.25), (64, 1.0), (128, 1.0)].map(case).into()
}

/// `src · weightᵀ`, rows after rows.
pub fn products(src: &[f32], weight: &[f32], k: usize) -> Vec<f64> {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    src.chunks(k).flat_map(|a| weight.chunks(k).map(move |b| dot(a, b))).collect()
}

fn linear(on: &Exec, size: Size) -> Vec<Outcome> {
    let shapes: &[(usize, usize, usize)] = match size {
        Size::Small => &[(1, 17, 64), (3, 15, 40), (9, 17, 33)],
        Size::Full => {
            &[(0, 17, 64), (1, 4097, 256), (5, 15, 2048), (8, 64, 96), (9, 33, 100), (130, 17, 128)]
        }
    };
    let mut all = Vec::new();
    for (i, &(rows, n, k)) in shapes.iter().enumerate() {
        for (dtype, stored) in types_and_stored(on) {
            let (accumulate, column) = (i % 2 == 1, i % 3);
            let width = n + column + 2;
            let (src, w, bias) = (random(5, rows * k), random(6, n * k), random(7, n));
            let before = if accumulate { 0.25 } else { f32::NAN };
            let run = || -> Result<Vec<f32>> {
                let matrix = Weight::made(w.clone(), k, stored, on)?;
                let bias = Weight::made(bias.clone(), n, DType::F32, on)?;
                let bias = (i % 2 == 0).then_some(&bias);
                let dst = tensor(on, vec![before; (rows + 1) * width], width, DType::F32)?;
                let src = tensor(on, [src.clone(), vec![1.0; k]].concat(), k, dtype)?;
                dst.inplace_op2(&src, &Linear { weight: &matrix, bias, rows, column, accumulate, on })?;
                read(&dst)
            };
            let sums = products(&rounded(&src, dtype), &held(&w, k, stored), k);
            let mut numbers = vec![f64::from(before); (rows + 1) * width];
            for (at, sum) in sums.iter().enumerate() {
                let (row, out) = (at / n, at % n);
                let more = if i % 2 == 0 { f64::from(bias[out]) } else { 0.25 };
                numbers[row * width + column + out] = sum + more;
            }
            // Additions in f32 in any order: half an ulp of the partial sums each. FP8 times its scale may be rounded
            // to the activations' type first.
            let rounds = if stored == dtype { 0.0 } else { ulp(dtype) * (k as f64).sqrt() };
            let want = Want { numbers, tolerance: (1e-6, 2e-7 * k as f64 + rounds) };
            let case =
                format!("{rows} rows, {n} outputs of {k} inputs, {dtype:?} on {stored:?}, column {column}");
            all.push(compare("linear", case, run(), &want));
        }
    }
    all
}

/// The fused kernels; the CPU has none, and runs the operations one by one.
fn norm_product(on: &Exec, size: Size) -> Vec<Outcome> {
    if on.launcher.is_none() {
        return Vec::new();
    }
    let mut all = Vec::new();
    let shapes: &[_] =
        if size == Size::Small { &[(1, 10, 64), (3, 6, 48)] } else { &[(1, 514, 2048), (8, 66, 256)] };
    for (&(rows, n, k), (dtype, stored)) in
        shapes.iter().flat_map(|s| types_and_stored(on).into_iter().map(move |t| (s, t)))
    {
        let (src, w, scale) = (random(8, rows * k), random(9, n * k), random(10, k));
        let run = |gated: bool| -> Result<Vec<f32>> {
            let (matrix, scale) =
                (Weight::made(w.clone(), k, stored, on)?, Weight::made(scale.clone(), k, DType::F32, on)?);
            let norm = RmsNorm { weight: &scale, eps: 1e-5, rows, on };
            let op = NormProduct { norm, weight: &matrix, bias: None, activations: dtype, on };
            let src = tensor(on, src.clone(), k, DType::F32)?;
            let (dst, done);
            if gated {
                dst = poison(on, rows + 1, n / 2, dtype)?;
                done = op.silu_mul(&dst, &src)?;
            } else {
                dst = poison(on, rows + 1, n, DType::F32)?;
                done = op.product(&dst, &src)?;
            }
            if done { read(&dst) } else { candle_core::bail!("no kernel takes it") }
        };
        let rows_in: Vec<f32> = normed(&src, &scale, 1e-5).iter().map(|x| *x as f32).collect();
        let sums = products(&rounded(&rows_in, dtype), &held(&w, k, stored), k);
        // A normed number that rounds the other way is an ulp of itself.
        let noise = ulp(dtype) * (k as f64).sqrt();
        let gates = sums.chunks(n).flat_map(|row| {
            let (gate, up) = row.split_at(n / 2);
            gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u)
        });
        let gates = Want { numbers: gates.collect(), tolerance: (4.0 * ulp(dtype), 4.0 * noise) };
        let case = format!("{rows} rows, {n} outputs of {k} inputs, {dtype:?} on {stored:?}");
        all.push(compare("norm_product", format!("{case}, gated"), run(true), &gates));
        let want = Want { numbers: sums, tolerance: (1e-5, noise) };
        all.push(compare("norm_product", case, run(false), &want));
    }
    all
}

fn gate_mul(on: &Exec, size: Size) -> Vec<Outcome> {
    let mut all = Vec::new();
    let silu = |x: f64| x / (1.0 + (-x).exp());
    let gelu = |x: f64| {
        let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
        0.5 * x * (1.0 + inner.tanh())
    };
    let swiglu = |gate: f64, up: f64| {
        let gate = gate.min(7.0);
        gate / (1.0 + (-1.702 * gate).exp()) * (up.clamp(-7.0, 7.0) + 1.0)
    };
    type Exact<'a> = &'a dyn Fn(f64, f64) -> f64;
    let activations: [(&str, GateActivation, Exact<'_>); 3] = [
        ("silu", GateActivation::Silu, &|gate, up| silu(gate) * up),
        ("gelu_tanh", GateActivation::GeluTanh, &|gate, up| gelu(gate) * up),
        ("clamped_swiglu", GateActivation::ClampedSwiglu, &swiglu),
    ];
    for (name, activation, exact) in activations {
        for (&width, &dtype) in widths(size).iter().flat_map(|w| types(on).iter().map(move |t| (w, t))) {
            let rows = 3;
            let src: Vec<f32> = random(11, rows * 2 * width).iter().map(|x| 12.0 * x).collect();
            let run = || -> Result<Vec<f32>> {
                let dst = poison(on, rows + 1, width, dtype)?;
                let src = tensor(on, [src.clone(), vec![1.0; 2 * width]].concat(), 2 * width, DType::F32)?;
                dst.inplace_op2(&src, &GateMul { activation, rows, width, on })?;
                read(&dst)
            };
            let row = |row: &[f32]| {
                let (gate, up) = row.split_at(width);
                let both = gate.iter().zip(up).map(|(g, u)| (f64::from(*g), f64::from(*u)));
                both.map(|(g, u)| exact(g, u)).collect::<Vec<_>>()
            };
            let numbers = src.chunks(2 * width).flat_map(row).collect();
            let want = Want { numbers, tolerance: (4.0 * ulp(dtype), 4e-5) };
            all.push(compare("gate_mul", format!("{name}, {rows} rows of {width}, {dtype:?}"), run(), &want));
        }
    }
    all
}

/// A row beyond those that are capped stays as it was.
fn soft_cap(on: &Exec, size: Size) -> Vec<Outcome> {
    let cap_rows = |&width: &usize| {
        let (rows, cap) = (3, 30.0);
        let numbers: Vec<f32> = random(12, (rows + 1) * width).iter().map(|x| 90.0 * x).collect();
        let run = || -> Result<Vec<f32>> {
            let x = tensor(on, numbers.clone(), width, DType::F32)?;
            x.inplace_op1(&SoftCap { cap, rows, width, on })?;
            Ok(read(&x)?[..rows * width].to_vec())
        };
        let exact = |x: &f32| f64::from(cap) * (f64::from(*x) / f64::from(cap)).tanh();
        let want =
            Want { numbers: numbers[..rows * width].iter().map(exact).collect(), tolerance: (1e-6, 1e-4) };
        compare("soft_cap", format!("{rows} rows of {width}"), run(), &want)
    };
    widths(size).iter().map(cap_rows).collect()
}

/// The largest of the allowed, and log-probabilities; draws and adjustments beside the CPU's.
fn sample_tokens(on: &Exec, size: Size) -> Vec<Outcome> {
    let vocabularies: &[usize] = if size == Size::Small { &[15, 517] } else { &[1, 15, 4097, 128_256] };
    vocabularies.iter().flat_map(|vocab| [largest_tokens(on, *vocab), drawn_tokens(on, *vocab)]).collect()
}

/// The words of each task's result, a task a row of logits.
fn results(on: &Exec, samples: &Samples, logits: &[f32], vocab: usize) -> Result<Vec<u32>> {
    let tensors = [0; 2].map(|_| tensor(on, logits.to_vec(), vocab, DType::F32));
    let [logits, adjusted] = tensors;
    let results = Tensor::zeros((samples.tasks.len(), RESULT_WORDS), DType::U32, &on.device)?;
    let mut arrays: [Mirrored<'_, u32>; 2] = [samples.task_words().into(), samples.words.as_slice().into()];
    if let Some(launcher) = &on.launcher {
        let mut to = [0; 2];
        launcher.mirror(ArrayKind::Samples, &[arrays[0].host, arrays[1].host], &mut to)?;
        (arrays[0].address, arrays[1].address) = (to[0], to[1]);
    }
    let op = Sample { samples, tasks: arrays[0], words: arrays[1], vocab, on };
    sample::sample(&logits?, &adjusted?, &results, &op)?;
    results.to_device(&candle_core::Device::Cpu)?.flatten_all()?.to_vec1()
}

fn largest_tokens(on: &Exec, vocab: usize) -> Outcome {
    let logits = random(12, 3 * vocab);
    let mut samples = Samples::default();
    let mask = samples.mask(&vec![0x5555_5555; vocab.div_ceil(32)]);
    let greedy = Task { top: 0, ..Task::GREEDY };
    samples.tasks =
        vec![greedy, Task { mask, ..greedy }, Task { temperature: 1.0, top_k: 1, top: NONE, ..greedy }];
    let run = || -> Result<Vec<f32>> {
        let words = results(on, &samples, &logits, vocab)?;
        let logprob = |row: usize| f32::from_bits(words[row * RESULT_WORDS + 2]);
        let token = |row: usize| words[row * RESULT_WORDS] as f32;
        Ok(vec![token(0), token(1), token(2), logprob(0), logprob(1)])
    };
    let best = |row: usize, step: usize| {
        let row = &logits[row * vocab..][..vocab];
        (0..vocab).step_by(step).max_by(|a, b| row[*a].total_cmp(&row[*b]).then(b.cmp(a))).unwrap_or(0)
    };
    let tokens = [best(0, 1), best(1, 2), best(2, 1)];
    let logprob = |row: usize| {
        let all = &logits[row * vocab..][..vocab];
        let sum: f64 = all.iter().map(|x| f64::from(*x).exp()).sum();
        f64::from(all[tokens[row]]) - sum.ln()
    };
    let numbers = tokens.iter().map(|t| *t as f64).chain([logprob(0), logprob(1)]).collect();
    let case = format!("a vocabulary of {vocab}");
    compare("sample", case, run(), &Want { numbers, tolerance: (0.0, 1e-4) })
}

/// Each way to cut and to adjust, drawn with several random numbers: the CPU's tokens.
fn drawn_tokens(on: &Exec, vocab: usize) -> Outcome {
    let mut samples = Samples::default();
    let tokens = || (0..vocab as u32).step_by(vocab.div_ceil(40));
    let seen = samples.pairs(tokens().map(|t| [t, t % 3]));
    let bias = samples.pairs(tokens().map(|t| [t, (t as f32 % 5.0 - 2.0).to_bits()]));
    let banned = samples.tokens(&tokens().skip(1).step_by(3).collect::<Vec<_>>());
    let plain = Task { temperature: 0.8, ..Task::GREEDY };
    let ways = [
        plain,
        Task { top_p: 0.9, ..plain },
        Task { ln_min_p: 0.05f32.ln(), ..plain },
        Task { top_k: 40, top_p: 0.95, ..plain },
        Task { seen, repetition_penalty: 1.3, presence_penalty: 0.5, frequency_penalty: 0.2, ..plain },
        Task { bias, banned, ..plain },
    ];
    let bits = |i: usize| [(i as u32).wrapping_mul(0x9E37_79B9), (i as u32 + 1).wrapping_mul(0x85EB_CA6B)];
    samples.tasks = (0..4 * ways.len()).map(|i| Task { random: bits(i), ..ways[i % ways.len()] }).collect();
    let logits: Vec<f32> = random(13, samples.tasks.len() * vocab).iter().map(|x| 4.0 * x).collect();
    let tokens = |words: Vec<u32>| words.chunks(RESULT_WORDS).map(|row| row[0] as f32).collect::<Vec<_>>();
    let cpu = Exec::from(on.pool.clone());
    let want = match results(&cpu, &samples, &logits, vocab) {
        Ok(words) => tokens(words),
        Err(error) => return Outcome::failed("sample", format!("draws on the CPU of {vocab}"), &error),
    };
    let numbers = want.iter().map(|t| f64::from(*t)).collect();
    let got = results(on, &samples, &logits, vocab).map(tokens);
    compare(
        "sample",
        format!("draws from a vocabulary of {vocab}"),
        got,
        &Want { numbers, tolerance: (0.0, 0.0) },
    )
}
