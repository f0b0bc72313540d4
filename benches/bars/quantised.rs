//! Our engine against stock candle's quantised models: the same GGUF files and threads, round by round.
//!
//! `cargo bench --bench bars -- quantised FILE.gguf…`: decode at one row is held to the bar, prefill is told beside it. That
//! both compute the same model is read off the logits of their first steps. candle's kernels of blocks are chosen as it
//! starts; its other operations gain from `RUSTFLAGS="-C target-cpu=native"`, with which candle itself is built.

use std::sync::Arc;

use candle_core::{DType, Device};
use hashwatt::clock::Clock;
use hashwatt::measure::baseline::Baseline;
use hashwatt::model::Checkpoint;
use hashwatt::model::decoder::{Decoder, Precision};
use hashwatt::model::input::{AttentionSpan, BLOCK_SIZE, StepInput};
use hashwatt::model::runner::Runner;
use hashwatt::model::workspace::Capacity;
use hashwatt::ops::pool::Pool;

use crate::cpu::{CONTEXT, PREFILL, engine, our_decode, our_prefill, stock, tokens};
use crate::{Report, cores};

const DECODE_ROUNDS: usize = 21;
const PREFILL_ROUNDS: usize = 5;
const STEPS: usize = 48;

/// Logits of a prompt's last token.
fn first_logits(decoder: &Arc<Decoder>, prompt: Vec<u32>) -> Vec<f32> {
    let rows = prompt.len() as u32;
    let blocks = prompt.len().div_ceil(BLOCK_SIZE);
    let capacity = Capacity { rows: prompt.len(), logit_rows: 1 };
    let mut runner =
        Runner::new(decoder.clone(), Arc::new(Pool::new(cores())), capacity, blocks).expect("the cache fits");
    let mut input = StepInput::default();
    input.tokens.extend(prompt);
    input.positions.extend(0..rows);
    input.slots.extend(0..rows);
    input.spans.push(AttentionSpan { first_row: 0, rows, first_position: 0, block_table: 0 });
    input.block_tables.extend(0..blocks as u32);
    input.logit_rows.push(rows - 1);
    runner.launch(&mut input).expect("a step runs");
    runner.logits(<[f32]>::to_vec).expect("it has logits")
}

/// Pearson's.
fn correlation(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "vocabularies differ");
    let mean = |x: &[f32]| x.iter().map(|x| f64::from(*x)).sum::<f64>() / x.len() as f64;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let (mut both, mut of_a, mut of_b) = (0.0, 0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        let (a, b) = (f64::from(*a) - mean_a, f64::from(*b) - mean_b);
        both += a * b;
        of_a += a * a;
        of_b += b * b;
    }
    both / (of_a * of_b).sqrt()
}

/// Rates of both, round by round. Who goes first alternates, too; the first round warms both up.
fn rounds(
    rounds: usize,
    mut ours: impl FnMut(usize) -> f64,
    mut theirs: impl FnMut() -> f64,
) -> [Vec<f64>; 2] {
    let mut rates = [Vec::new(), Vec::new()];
    for round in 0..=rounds {
        let (we, they) = if round % 2 == 0 {
            let they = theirs();
            (ours(round), they)
        } else {
            (ours(round), theirs())
        };
        if round > 0 {
            rates[0].push(we);
            rates[1].push(they);
        }
    }
    rates
}

fn one(report: &mut Report, file: &str) {
    let clock = Clock::system();
    let checkpoint = Checkpoint::open(file, &Arc::new(Pool::new(cores()))).unwrap_or_else(|e| panic!("{e}"));
    let decoder = checkpoint.load(Precision::AsStored, false, &|_| {}).unwrap_or_else(|e| panic!("{e}"));
    let decoder = Arc::new(decoder);
    let mut theirs =
        Baseline::new(&checkpoint, DType::F32, &Device::Cpu).unwrap_or_else(|e| panic!("{file}: {e}"));
    let name = &checkpoint.name;
    let logits = theirs.forward(&tokens(CONTEXT, 1)).expect("stock candle runs");
    let alike = correlation(&first_logits(&decoder, tokens(CONTEXT, 1)), &logits);
    report.row(&format!("{name}: correlation of logits"), "", &[alike], Some(("≥", 0.99)));
    let engine = engine(&decoder);
    let [ours, stock_decode] = rounds(
        DECODE_ROUNDS,
        |_| our_decode(&engine, &clock, 1, STEPS),
        || stock(&mut theirs, &clock, CONTEXT, STEPS),
    );
    report.row(&format!("{name}: ours, decode at 1 row"), "token/s", &ours, None);
    report.row(&format!("{name}: stock, decode at 1 row"), "token/s", &stock_decode, None);
    report.ratio(&format!("{name}: decode at 1 row ÷ stock"), &ours, &stock_decode, Some(0.9));
    let [ours, stock_prefill] = rounds(
        PREFILL_ROUNDS,
        |round| our_prefill(&engine, &clock, round),
        || stock(&mut theirs, &clock, PREFILL, 0),
    );
    report.row(&format!("{name}: ours, prefill of {PREFILL}"), "token/s", &ours, None);
    report.row(&format!("{name}: stock, prefill of {PREFILL}"), "token/s", &stock_prefill, None);
    report.ratio(&format!("{name}: prefill of {PREFILL} ÷ stock"), &ours, &stock_prefill, None);
}

pub fn run(report: &mut Report) {
    let files: Vec<String> = std::env::args().filter(|a| a.ends_with(".gguf")).collect();
    if files.is_empty() {
        println!("name GGUF files of Llama, Qwen2 or Qwen3 to compare on them");
    }
    println!("candle's threads: {}", candle_core::utils::get_num_threads());
    files.iter().for_each(|file| one(report, file));
}
