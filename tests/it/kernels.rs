//! The kernels of `src/ops/cuda` without a device: their unchanged source as a library of the host, made by
//! `.ci/kernels.sh`, behind the launcher that the operations use. Without the library these tests are skipped.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use hashwatt::model::decoder::{Precision, Quantize};
use hashwatt::model::kv_cache::CacheType;
use hashwatt::ops::blocks::Format;
use hashwatt::ops::exec::Exec;
use hashwatt::ops::sample::{self, NONE, Outcome, RESULT_WORDS, Sample, Samples, Task};

use crate::host_kernels::kernels;
use crate::support::{Shape, Steps, checkpoint, decoder, llama, others, prompt, qwen3, routed};

mod attention;
mod blocks;
mod gemv;

/// Largest difference of any logit, as a share of the largest logit.
fn difference(a: &[Vec<Vec<f32>>], b: &[Vec<Vec<f32>>]) -> f32 {
    let flat = |all: &[Vec<Vec<f32>>]| all.iter().flatten().flatten().copied().collect::<Vec<f32>>();
    let (a, b) = (flat(a), flat(b));
    assert_eq!(a.len(), b.len());
    let scale = a.iter().fold(0f32, |m, x| m.max(x.abs()));
    let worst =
        a.iter().zip(&b).map(|(x, y)| if x.is_finite() && y.is_finite() { (x - y).abs() } else { f32::NAN });
    worst.fold(0f32, |m, d| if d.is_nan() { d } else { m.max(d) }) / scale
}

/// FP8 weights, dequantised by their kernel, and caches of 8 bits, each against the CPU's.
#[test]
fn a_decoder_of_fp8_kernels_is_the_decoder() {
    let Some(on) = kernels() else { return };
    let prompts = [1, 17, 80].map(|n| prompt(n, 517, n as u64));
    for (precision, tolerance) in [(Precision::F32, 1e-4), (Precision::Bf16, 3e-2)] {
        let of_cache = [CacheType::Fp8, CacheType::Q8].map(|cache| (false, Some(cache)));
        for (fp8_weights, cache) in [(true, None)].into_iter().chain(of_cache) {
            let checkpoint = checkpoint(qwen3(1));
            let decoder = match fp8_weights {
                true => checkpoint.load_as(Quantize::Fp8, precision, true, &|_| {}).unwrap(),
                false => checkpoint.load(precision, true, &|_| {}).unwrap(),
            };
            let decoder = Arc::new(match cache {
                Some(cache) => decoder.with_cache(cache),
                None => decoder,
            });
            // Near as they are in bf16, the two may choose another token, and go on from that.
            let generate = if precision == Precision::F32 { 3 } else { 1 };
            let want = Steps::new(&decoder, Shape::default()).run(&prompts, generate);
            let there = Arc::new(decoder.on_device(&on.device).unwrap());
            let got = Steps::on(&there, on.clone(), Shape::default()).run(&prompts, generate);
            let worst = difference(&want, &got);
            // What differs in its last bit may be stored as the neighbouring FP8 number.
            let tolerance = if cache.is_some() { 3e-2 } else { tolerance };
            assert!(worst <= tolerance, "{precision:?}, weights {fp8_weights}, cache {cache:?}: {worst}");
        }
    }
}

/// A whole decoder by kernels gives the logits of the CPU's operations: prompts of several tiles, several
/// sequences at once, grouped queries and not, with norms of heads and biases and without.
#[test]
fn a_decoder_of_kernels_is_the_decoder() {
    let Some(on) = kernels() else { return };
    // One token, two blocks of the cache, two tiles of keys.
    let prompts = [1, 17, 80].map(|n| prompt(n, 517, n as u64));
    for (name, config) in [
        ("llama, GQA 4", llama(1)),
        ("llama, GQA 1", llama(4)),
        ("qwen3, GQA 4", qwen3(1)),
        ("qwen3, GQA 1", qwen3(4)),
    ] {
        // In bf16 the two round at different moments.
        for (precision, tolerance) in [(Precision::F32, 1e-4), (Precision::Bf16, 3e-2)] {
            let decoder = decoder(&config, precision);
            let want = Steps::new(&decoder, Shape::default()).run(&prompts, 3);
            // As it would lie on a device: what shares an input is one matrix.
            let there = Arc::new(decoder.on_device(&on.device).unwrap());
            let got = Steps::on(&there, on.clone(), Shape::default()).run(&prompts, 3);
            let worst = difference(&want, &got);
            assert!(worst <= tolerance, "{name}, {precision:?}: {worst} of the largest logit");
        }
    }
}

/// The same of each other shape: what stands behind branches or in place of norms, orders of rows, multipliers.
#[test]
fn other_shapes_of_kernels_are_the_decoder() {
    let Some(on) = kernels() else { return };
    let prompts = [1, 33].map(|n| prompt(n, 517, n as u64));
    for (name, config) in others() {
        let decoder = decoder(&config, Precision::F32);
        let want = Steps::new(&decoder, Shape::default()).run(&prompts, 2);
        let there = Arc::new(decoder.on_device(&on.device).unwrap());
        let got = Steps::on(&there, on.clone(), Shape::default()).run(&prompts, 2);
        let worst = difference(&want, &got);
        assert!(worst <= 1e-4, "{name}: {worst} of the largest logit");
    }
}

/// The same with routed experts: few rows at once and, in bf16, as many as tensor cores take.
#[test]
fn experts_of_kernels_are_the_decoder() {
    let Some(on) = kernels() else { return };
    let prompts = [1, 40].map(|n| prompt(n, 517, n as u64));
    for (name, mut config) in routed() {
        // The width of a real model: the kernels read eight inputs at once.
        config["intermediate_size"] = 336.into();
        for (precision, quantize, tolerance) in [
            (Precision::F32, Quantize::AsStored, 1e-4),
            (Precision::F32, Quantize::Fp8, 1e-4),
            // What is rounded otherwise may choose another expert.
            (Precision::Bf16, Quantize::AsStored, 0.1),
            (Precision::Bf16, Quantize::Blocks(Format::Q8_0), 0.2),
        ] {
            let decoder = checkpoint(config.clone()).load_as(quantize, precision, true, &|_| {}).unwrap();
            let decoder = Arc::new(decoder);
            let generate = if precision == Precision::F32 { 3 } else { 1 };
            let want = Steps::new(&decoder, Shape::default()).run(&prompts, generate);
            let there = Arc::new(decoder.on_device(&on.device).unwrap());
            let got = Steps::on(&there, on.clone(), Shape::default()).run(&prompts, generate);
            let worst = difference(&want, &got);
            assert!(worst <= tolerance, "{name}, {precision:?}, {quantize:?}: {worst} of the largest logit");
        }
    }
}

/// Rows of every kind of task, at sizes around a block's and a warp's, as the CPU samples them.
#[test]
fn kernels_sample_what_the_cpu_samples() {
    let Some(on) = kernels() else { return };
    let mut drawn = std::collections::BTreeSet::new();
    for vocab in [1usize, 15, 517, 4097] {
        let (mut rows, mut samples) = (Vec::new(), Samples::default());
        for i in 0..14u32 {
            let tokens = prompt(vocab, 2000, u64::from(i) + 7);
            // Many equal entries, and negative ones.
            let mut row: Vec<f32> = tokens.iter().map(|t| (*t as f32 - 1000.0) / 100.0).collect();
            let some = i % vocab as u32;
            let task = Task {
                temperature: [1.0, 0.0, 0.3, 2.0][i as usize % 4],
                top_p: [1.0, 0.9, 0.3][i as usize % 3],
                top_k: [0, 0, 3, 40, 1][i as usize % 5],
                ln_min_p: if i % 4 == 3 { (0.1f32).ln() } else { f32::NEG_INFINITY },
                random: [i.wrapping_mul(0x9E37_79B9), i.wrapping_mul(0x85EB_CA6B)],
                top: [NONE, 0, 5][i as usize % 3],
                ..Task::GREEDY
            };
            let task = match i {
                4 => Task { seen: samples.pairs([[some, 2]].into_iter()), frequency_penalty: 4.0, ..task },
                5 => Task {
                    seen: samples.pairs([[some, 0], [some / 2 + 1, 1]].into_iter()),
                    bias: samples.pairs([[some, 30f32.to_bits()]].into_iter()),
                    banned: samples.tokens(&[some / 3]),
                    repetition_penalty: 1.3,
                    presence_penalty: 1.0,
                    ..task
                },
                6 => Task { mask: samples.mask(&vec![0xA5A5_A5A5; vocab.div_ceil(32)]), ..task },
                7 => Task { mask: samples.mask(&vec![0; vocab.div_ceil(32)]), ..task },
                8 => Task { score: some, ..task },
                // Every entry is changed three times, each by another thread, and the order counts: an entry with a
                // bias that is no number is banned all the same.
                10 => {
                    let (n, last) = (vocab as u32, vocab as u32 - 1);
                    let bias = |t: u32| if t % 5 == 1 { f32::NAN } else { (t % 7) as f32 };
                    let banned: Vec<u32> = (0..n).map(|t| (t + 77) % n).filter(|t| t % 5 == 1).collect();
                    Task {
                        seen: samples.pairs((0..n).map(|t| [last - t, t % 3])),
                        bias: samples.pairs((0..n).map(|t| [t, bias(t).to_bits()])),
                        banned: samples.tokens(&banned),
                        frequency_penalty: 4.0,
                        repetition_penalty: 1.5,
                        top: 5,
                        ..task
                    }
                }
                9 => {
                    row[some as usize] = f32::NAN;
                    task
                }
                _ => task,
            };
            rows.push(row);
            samples.tasks.push(task);
        }
        let run = |on: &Exec| {
            let logits = Tensor::from_vec(rows.concat(), (rows.len(), vocab), &Device::Cpu).unwrap();
            let adjusted = Tensor::full(f32::NAN, (rows.len(), vocab), &Device::Cpu).unwrap();
            let results = Tensor::full(u32::MAX, (rows.len(), RESULT_WORDS), &Device::Cpu).unwrap();
            let (tasks, words) = (samples.task_words().into(), samples.words.as_slice().into());
            let op = Sample { samples: &samples, tasks, words, vocab, on };
            sample::sample(&logits, &adjusted, &results, &op).unwrap();
            assert_eq!(results.dtype(), DType::U32);
            let mut out = vec![0; rows.len() * RESULT_WORDS];
            sample::read_results(&results, &mut out).unwrap();
            out
        };
        let (want, got) = (run(&Exec::cpu(1)), run(&on));
        for (i, task) in samples.tasks.iter().enumerate() {
            let (want, got) = (Outcome::of(&want, i), Outcome::of(&got, i));
            assert_eq!(want.token(), got.token(), "vocabulary {vocab}, row {i}: {task:?}");
            drawn.extend(got.token());
            if task.top == NONE || got.token().is_none() {
                continue;
            }
            assert!((want.logprob() - got.logprob()).abs() < 1e-4, "{vocab} {i}");
            assert_eq!(want.top().len(), got.top().len());
            for (want, got) in want.top().zip(got.top()) {
                assert!(want.0 == got.0 && (want.1 - got.1).abs() < 1e-4, "{vocab} {i}: {want:?} {got:?}");
            }
        }
    }
    assert!(drawn.len() > 20, "{drawn:?}");
}

/// A captured step does what the step does, bit for bit, for each number of rows that it is filled up from, and
/// as often as it is replayed.
#[test]
fn kernels_replayed_are_the_kernels() {
    let Some(on) = kernels() else { return };
    let mut config = llama(2);
    config["num_hidden_layers"] = 1.into();
    let there = Arc::new(decoder(&config, Precision::Bf16).on_device(&on.device).unwrap());
    for count in [1usize, 3, 5] {
        let prompts: Vec<_> = (0..count).map(|i| prompt(3 + 15 * i, 517, i as u64)).collect();
        let want = Steps::on(&there, on.clone(), Shape::default()).run(&prompts, 4);
        let mut steps = Steps::on(&there, on.clone(), Shape::default());
        let report = steps.runner.capture(6, &|_| {}).unwrap();
        assert_eq!(report.sizes, [1, 2, 4, 6]);
        let got = steps.run(&prompts, 4);
        assert!(steps.runner.replays() > 0, "nothing was replayed");
        let bits = |all: &[Vec<Vec<f32>>]| -> Vec<u32> {
            all.iter().flatten().flatten().map(|x| x.to_bits()).collect()
        };
        assert_eq!(bits(&want), bits(&got), "{count} sequences");
    }
}
