//! A model on a device: its logits beside the CPU's, its captured steps beside the steps themselves.
//!
//! Decoders and means of a device in, outcomes out. The prompts are arbitrary token ids.

use std::sync::Arc;

use candle_core::{DType, Result};

use super::Outcome;
use crate::model::decoder::Decoder;
use crate::model::input::{AttentionSpan, BLOCK_SIZE, StepInput};
use crate::model::runner::Runner;
use crate::model::workspace::Capacity;
use crate::ops::exec::Exec;
use crate::ops::sample::{Samples, Task};

/// Tokens of a prompt.
const PROMPT: usize = 24;
/// Tokens that follow it, each the CPU's choice.
pub const STEPS: usize = 64;
const BLOCKS_EACH: usize = (PROMPT + STEPS).div_ceil(BLOCK_SIZE);

/// Some sequences of equal length on one runner.
struct Lines {
    runner: Runner,
    input: StepInput,
    sequences: usize,
}

impl Lines {
    fn new(decoder: &Arc<Decoder>, on: Exec, sequences: usize) -> Result<Lines> {
        let capacity = Capacity { rows: (PROMPT * sequences).max(8), logit_rows: sequences.max(8) };
        let runner = Runner::new(decoder.clone(), on, capacity, BLOCKS_EACH * sequences)?;
        Ok(Lines { runner, input: StepInput::default(), sequences })
    }

    /// Appends tokens at a position, as many to each sequence, and gives the logits of the last of each.
    fn feed(&mut self, tokens: &[Vec<u32>], position: usize) -> Result<Vec<Vec<f32>>> {
        let input = &mut self.input;
        input.clear();
        for (s, tokens) in tokens.iter().enumerate() {
            let first_row = input.rows() as u32;
            for (i, token) in tokens.iter().enumerate() {
                let at = position + i;
                input.tokens.push(*token);
                input.positions.push(at as u32);
                input.slots.push((s * BLOCKS_EACH * BLOCK_SIZE + at) as u32);
            }
            let (rows, block_table) = (tokens.len() as u32, input.block_tables.len() as u32);
            input.spans.push(AttentionSpan { first_row, rows, first_position: position as u32, block_table });
            let blocks = (position + tokens.len()).div_ceil(BLOCK_SIZE);
            input.block_tables.extend((0..blocks).map(|b| (s * BLOCKS_EACH + b) as u32));
            input.logit_rows.push(first_row + rows - 1);
        }
        self.runner.launch(input)?;
        let vocab = self.runner.decoder().spec().vocab;
        let sequences = self.sequences;
        self.runner.logits(|all| all[..sequences * vocab].chunks(vocab).map(<[f32]>::to_vec).collect())
    }

    fn prompts(&self) -> Vec<Vec<u32>> {
        let vocab = self.runner.decoder().spec().vocab as u32;
        let token = |s: usize, i: usize| ((i * 37 + s * 101 + 5) as u32) % vocab;
        (0..self.sequences).map(|s| (0..PROMPT).map(|i| token(s, i)).collect()).collect()
    }
}

fn largest(row: &[f32]) -> usize {
    (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b]).then(b.cmp(a))).unwrap_or(0)
}

/// Share of the largest logit that two ways of computing it may differ by.
fn noise(activations: DType) -> f32 {
    match activations {
        DType::F32 => 1e-4,
        DType::F16 => 1e-2,
        _ => 4e-2,
    }
}

/// The largest difference of two rows of logits as a share of what is allowed, and what that is.
fn apart(want: &[f32], got: &[f32], activations: DType) -> (f64, f32) {
    let scale = want.iter().fold(f32::MIN_POSITIVE, |m, x| m.max(x.abs()));
    let allowed = noise(activations) * scale;
    let off = want.iter().zip(got).map(|(a, b)| if b.is_finite() { (a - b).abs() } else { f32::INFINITY });
    (f64::from(off.fold(0f32, f32::max) / allowed), allowed)
}

/// The CPU's greedy tokens on both: logits within the noise of the device's type, and the same choice wherever the
/// CPU's is clearer than that noise.
pub fn parity(name: &str, cpu: &Arc<Decoder>, there: &Arc<Decoder>, on: &Exec) -> Outcome {
    let operation = "greedy parity";
    let case = format!("{name}, {STEPS} tokens, {:?} beside {:?}", there.activations(), cpu.activations());
    let run = || -> Result<(f64, String)> {
        let mut ours = Lines::new(cpu, Exec::from(on.pool.clone()), 1)?;
        let mut theirs = Lines::new(there, on.clone(), 1)?;
        let (mut tokens, mut position) = (ours.prompts(), 0);
        let (mut error, mut worst) = (0f64, String::new());
        for step in 0..STEPS {
            let want = ours.feed(&tokens, position)?.remove(0);
            let got = theirs.feed(&tokens, position)?.remove(0);
            position += tokens[0].len();
            let (off, allowed) = apart(&want, &got, there.activations());
            if off > error {
                (error, worst) =
                    (off, format!("token {step}: a logit is off by {off:.3} of what is allowed"));
            }
            let (best, chosen) = (largest(&want), largest(&got));
            if best != chosen && want[best] - want[chosen] > 2.0 * allowed {
                return Ok((f64::INFINITY, format!("token {step}: {chosen} for {best}")));
            }
            tokens = vec![vec![best as u32]];
        }
        Ok((error, worst))
    };
    measured(operation, case, run())
}

/// The model's logits after its first layer, its first two, and so on, for a prompt's last token: which layer it is
/// that goes wrong.
pub fn layers(name: &str, cpu: &Decoder, there: &Decoder, on: &Exec) -> Vec<Outcome> {
    let one = |count: usize| {
        let case = format!("{name}, {count} of {} layers", cpu.spec().layers);
        let run = || -> Result<(f64, String)> {
            let [ours, theirs] = [cpu, there].map(|decoder| Arc::new(decoder.first_layers(count)));
            let mut ours = Lines::new(&ours, Exec::from(on.pool.clone()), 1)?;
            let mut theirs = Lines::new(&theirs, on.clone(), 1)?;
            let prompts = ours.prompts();
            let (want, got) = (ours.feed(&prompts, 0)?.remove(0), theirs.feed(&prompts, 0)?.remove(0));
            let (off, _) = apart(&want, &got, there.activations());
            Ok((off, format!("a logit is off by {off:.3} of what is allowed")))
        };
        measured("layers", case, run())
    };
    (1..=cpu.spec().layers).map(one).collect()
}

/// The same step gives the same bits each time it is run.
pub fn repeats(name: &str, there: &Arc<Decoder>, on: &Exec, times: usize) -> Outcome {
    let (operation, case) = ("repeats", format!("{name}, a step of 4 sequences {times} times"));
    let run = || -> Result<usize> {
        let mut lines = Lines::new(there, on.clone(), 4)?;
        let prompts = lines.prompts();
        let first = lines.feed(&prompts, 0)?;
        let mut others = 0;
        for _ in 0..times {
            others += usize::from(!same(&lines.feed(&prompts, 0)?, &first));
        }
        Ok(others)
    };
    counted(operation, case, run(), "steps gave other bits")
}

/// A sequence has the same bits alone as in a batch of so many, while nothing is chosen for speed
/// (`--batch-invariant`): its prompt and four tokens after it.
pub fn company(name: &str, there: &Arc<Decoder>, on: &Exec, sequences: usize) -> Outcome {
    let (operation, case) = ("batch invariance", format!("{name}, alone and among {sequences}"));
    let on = Exec { batch_invariant: true, ..on.clone() };
    let first_of = |sequences: usize| -> Result<Vec<Vec<f32>>> {
        let mut lines = Lines::new(there, on.clone(), sequences)?;
        let prompts = lines.prompts();
        let mut logits = vec![lines.feed(&prompts, 0)?.remove(0)];
        for i in 0..4 {
            let next: Vec<_> = prompts.iter().map(|p| vec![p[i]]).collect();
            logits.push(lines.feed(&next, PROMPT + i)?.remove(0));
        }
        Ok(logits)
    };
    let run = || -> Result<usize> {
        let (alone, among) = (first_of(1)?, first_of(sequences)?);
        Ok(alone
            .iter()
            .zip(&among)
            .filter(|(a, b)| !same(std::slice::from_ref(*a), std::slice::from_ref(*b)))
            .count())
    };
    counted(operation, case, run(), "steps gave other bits")
}

/// Captured steps give the bits of the steps themselves, hold no memory node, are the ones that run, and leave the
/// device's free memory as it was after many replays. `free`: bytes, where the device tells them.
///
/// Of each size there is a step that fills its graph (few rows go through our own products, more through cuBLASLt's)
/// and, of the small ones, one that does not.
pub fn graphs(
    name: &str,
    there: &Arc<Decoder>,
    on: &Exec,
    replays: usize,
    free: &dyn Fn() -> Option<u64>,
) -> Vec<Outcome> {
    let mut all = Vec::new();
    for sequences in [1usize, 3, 5, 16, 32] {
        let case = format!("{name}, {sequences} sequences");
        let run = || -> Result<usize> {
            let mut lines = Lines::new(there, on.clone(), sequences)?;
            let (prompts, steps) = (lines.prompts(), 4);
            lines.feed(&prompts, 0)?;
            let next = |i: usize| (0..sequences).map(|s| vec![prompts[s][i]]).collect::<Vec<_>>();
            let decode = |lines: &mut Lines| -> Result<Vec<Vec<Vec<f32>>>> {
                (0..steps).map(|i| lines.feed(&next(i), PROMPT + i)).collect()
            };
            let want = decode(&mut lines)?;
            let report = lines.runner.capture(sequences.max(8), &|_| {})?;
            let got = decode(&mut lines)?;
            let other = want.iter().zip(&got).filter(|(a, b)| !same(a, b)).count();
            let not_replayed = steps - lines.runner.replays() as usize;
            Ok(other + report.memory_nodes + not_replayed)
        };
        let what = "steps gave other bits or were not replayed, or nodes are of memory";
        all.push(counted("graphs", case, run(), what));
    }
    let run = || -> Result<usize> {
        let mut lines = Lines::new(there, on.clone(), 1)?;
        let prompts = lines.prompts();
        lines.feed(&prompts, 0)?;
        lines.runner.capture(1, &|_| {})?;
        let greedy = Samples { tasks: vec![Task::GREEDY], words: Vec::new() };
        let step = |lines: &mut Lines| -> Result<()> {
            lines.feed(&[vec![1]], PROMPT)?;
            lines.runner.sample(&greedy)?;
            lines.runner.collect().map(|_| ())
        };
        // What is made at first use is made.
        step(&mut lines)?;
        let before = free();
        for _ in 0..replays {
            step(&mut lines)?;
        }
        if lines.runner.replays() as usize != replays + 1 {
            candle_core::bail!("{} of {} steps were replayed", lines.runner.replays(), replays + 1)
        }
        Ok(before.zip(free()).map_or(0, |(before, after)| before.saturating_sub(after) as usize))
    };
    all.push(counted("graphs", format!("{name}, {replays} replays"), run(), "bytes are gone"));
    all
}

fn same(a: &[Vec<f32>], b: &[Vec<f32>]) -> bool {
    let bits = |rows: &[Vec<f32>]| rows.iter().flatten().map(|x| x.to_bits()).collect::<Vec<_>>();
    bits(a) == bits(b)
}

fn measured(operation: &'static str, case: String, result: Result<(f64, String)>) -> Outcome {
    match result {
        Ok((error, worst)) => Outcome { operation, case, error, worst },
        Err(error) => Outcome::failed(operation, case, &error),
    }
}

/// Nothing of what is counted may be.
fn counted(operation: &'static str, case: String, count: Result<usize>, what: &str) -> Outcome {
    match count {
        Ok(0) => Outcome { operation, case, error: 0.0, worst: String::new() },
        Ok(n) => Outcome { operation, case, error: f64::INFINITY, worst: format!("{n} {what}") },
        Err(error) => Outcome::failed(operation, case, &error),
    }
}
