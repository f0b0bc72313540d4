//! A step under way: whose rows it computes, and what its results mean for their sequences.
//!
//! Knows neither the plan that it was made from nor the device.

use std::ops::Range;
use std::sync::atomic::Ordering;

use crate::clock::Tick;
use crate::engine::event::EngineError;
use crate::engine::live::Live;
use crate::engine::scheduler::Entry;
use crate::engine::sequence::Rank;
use crate::engine::stats::EngineStats;
use crate::engine::step_log::Share;
use crate::ops::sample::Outcome;

/// The rows of one sequence in a step that was launched. Sequences move while it runs: the rank stays.
pub(super) struct FlightRow {
    pub rank: Rank,
    pub tokens: Range<usize>,
    /// Positions whose logits were sampled, and the first of them among the step's samples.
    pub logits: Range<usize>,
    pub first_sample: usize,
    /// The last of them is the next token, not a score.
    pub draws: bool,
}

/// A step whose results are not read yet. Keeps its memory from step to step.
#[derive(Default)]
pub(super) struct Flight {
    pub rows: Vec<FlightRow>,
    pub shares: Vec<Share>,
    pub started: Tick,
    pub tokens: usize,
}

impl Flight {
    pub fn with_capacity(sequences: usize) -> Flight {
        Flight {
            rows: Vec::with_capacity(sequences),
            shares: Vec::with_capacity(sequences),
            ..Flight::default()
        }
    }
}

/// Uses what was sampled from a sequence's rows: scores of the prompt, then, at the last known token, the next.
/// Nobody is to find the keys and values of a sequence whose logits are not finite.
pub(super) fn apply(
    entry: &mut Entry<Live>,
    row: &FlightRow,
    results: &[u32],
    now: Tick,
    stats: &EngineStats,
) {
    if entry.payload.ended {
        return;
    }
    use_results(entry, row, results, now, stats);
    if entry.payload.failed_with(&EngineError::NonFiniteLogits) {
        entry.sequence.table.forget();
    }
}

fn use_results(entry: &mut Entry<Live>, row: &FlightRow, results: &[u32], now: Tick, stats: &EngineStats) {
    let Entry { sequence, payload: live } = entry;
    sequence.publish(row.tokens.end);
    live.stats.cached_tokens = sequence.cached_tokens;
    live.stats.preemptions = sequence.preemptions;
    if row.tokens.start < sequence.prompt_len {
        let prompt_rows = row.tokens.end.min(sequence.prompt_len) - row.tokens.start;
        stats.prompt_tokens.fetch_add(prompt_rows as u64, Ordering::Relaxed);
    }
    let scores = row.logits.start..row.logits.end - usize::from(row.draws);
    for (i, position) in scores.enumerate() {
        live.take_score(sequence.tokens[position + 1], Outcome::of(results, row.first_sample + i));
        sequence.score_from = Some(position + 1);
    }
    if !row.draws || live.ended {
        return;
    }
    if live.send_scores() {
        sequence.score_from = None;
    }
    let outcome = Outcome::of(results, row.first_sample + row.logits.len() - 1);
    match outcome.token() {
        Some(token) => {
            sequence.settle(token);
            let before = live.stats.generated_tokens;
            live.accept(&mut sequence.tokens, sequence.prompt_len, outcome, now);
            let made = live.stats.generated_tokens - before;
            stats.generated_tokens.fetch_add(made as u64, Ordering::Relaxed);
        }
        None => live.fail(EngineError::NonFiniteLogits),
    }
}
