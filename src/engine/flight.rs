//! A step under way: whose rows it computes, and what its results mean for their sequences.
//!
//! Knows neither the plan that it was made from nor the device.

use std::ops::Range;
use std::sync::atomic::Ordering;

use crate::clock::Tick;
use crate::engine::event::{EngineError, Guess};
use crate::engine::live::Live;
use crate::engine::scheduler::Entry;
use crate::engine::sequence::{Rank, Sequence};
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
    /// Beyond it: positions of guesses, each of which says what comes next if the guesses up to it are right.
    pub guesses: usize,
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
    // Of guesses nobody is to know before it is known that they are right.
    sequence.publish(row.tokens.end - row.guesses);
    live.stats.cached_tokens = sequence.cached_tokens;
    live.stats.preemptions = sequence.preemptions;
    if row.tokens.start < sequence.prompt_len {
        let prompt_rows = row.tokens.end.min(sequence.prompt_len) - row.tokens.start;
        stats.prompt_tokens.fetch_add(prompt_rows as u64, Ordering::Relaxed);
    }
    let scores = row.logits.start..row.logits.end - usize::from(row.draws) - row.guesses;
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
    let (known, before) = (row.tokens.end - row.guesses, live.stats.generated_tokens);
    let right = take_tokens(sequence, live, row, results, now);
    if row.guesses > 0 {
        sequence.take_back(known + right);
        sequence.publish(known + right);
        live.trust.learn(row.guesses, right);
        stats.guessed_tokens.fetch_add(row.guesses as u64, Ordering::Relaxed);
        stats.right_guesses.fetch_add(right as u64, Ordering::Relaxed);
    }
    let made = live.stats.generated_tokens - before;
    stats.generated_tokens.fetch_add(made as u64, Ordering::Relaxed);
}

/// Takes what was chosen: the next token and, as long as a guess was what was chosen, the one behind it. How many
/// guesses were right.
fn take_tokens(
    sequence: &mut Sequence,
    live: &mut Live,
    row: &FlightRow,
    results: &[u32],
    now: Tick,
) -> usize {
    let first = row.first_sample + row.logits.len() - 1 - row.guesses;
    // Far more than a step guesses.
    let computed = u16::try_from(row.guesses).unwrap_or(u16::MAX);
    for at in 0..=row.guesses {
        let outcome = Outcome::of(results, first + at);
        let Some(token) = outcome.token() else {
            live.fail(EngineError::NonFiniteLogits);
            return at;
        };
        match at {
            0 => sequence.settle(token),
            _ => sequence.tokens.push(token),
        }
        let right = sequence.guesses[..row.guesses].get(at) == Some(&token);
        let guess = Guess { computed: if at == 0 { computed } else { 0 }, right };
        live.accept(&mut sequence.tokens, sequence.prompt_len, outcome, guess, now);
        if live.ended || !right {
            return at + usize::from(right);
        }
    }
    row.guesses
}
