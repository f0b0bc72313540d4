//! Who computes what in the next step: sequences and limits in, a plan out. Pure; no tensor, no time.
//!
//! Decoding sequences come first (one token each), then prefills in chunks, then admissions, each by
//! tier and age, under one token budget. When blocks run out the lowest-ranked running sequence is
//! preempted; its tokens are computed again later.

use std::collections::VecDeque;
use std::ops::Range;

use crate::engine::block_pool::SharedPool;
use crate::engine::sequence::{Rank, Sequence};

/// What a step may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Sequences.
    pub sequences: usize,
    /// Tokens over all sequences.
    pub tokens: usize,
    /// Rows with logits over all sequences.
    pub logit_rows: usize,
}

/// The rows of one sequence in a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepRow {
    /// Index among the running sequences.
    pub sequence: usize,
    /// Positions to compute; beyond the known tokens they are of guesses.
    pub tokens: Range<usize>,
    /// Positions whose logits are wanted, at the end of `tokens`; may be empty.
    pub logits: Range<usize>,
}

/// One step. Keeps its memory from step to step.
#[derive(Debug, Default)]
pub struct StepPlan {
    pub rows: Vec<StepRow>,
    pub preempted: usize,
    /// Prompt tokens looked up in, and found in, the prefix cache by this step's admissions.
    pub prefix_queries: usize,
    pub prefix_hits: usize,
}

impl StepPlan {
    pub fn tokens(&self) -> usize {
        self.rows.iter().map(|r| r.tokens.len()).sum()
    }
    pub fn logit_rows(&self) -> usize {
        self.rows.iter().map(|r| r.logits.len()).sum()
    }
    fn clear(&mut self) {
        self.rows.clear();
        (self.preempted, self.prefix_queries, self.prefix_hits) = (0, 0, 0);
    }
}

/// A sequence with what its owner keeps beside it.
pub struct Entry<P> {
    pub sequence: Sequence,
    pub payload: P,
}

/// Waiting and running sequences of one resident. `P` is opaque here.
pub struct Scheduler<P> {
    pool: SharedPool,
    prefix_caching: bool,
    /// Both sorted by rank.
    waiting: VecDeque<Entry<P>>,
    running: Vec<Entry<P>>,
}

impl<P> Scheduler<P> {
    pub fn new(pool: SharedPool, max_sequences: usize, prefix_caching: bool) -> Scheduler<P> {
        Scheduler {
            pool,
            prefix_caching,
            waiting: VecDeque::with_capacity(max_sequences),
            running: Vec::with_capacity(max_sequences),
        }
    }

    pub fn pool(&self) -> &SharedPool {
        &self.pool
    }
    pub fn running(&self) -> &[Entry<P>] {
        &self.running
    }
    pub fn running_mut(&mut self) -> &mut [Entry<P>] {
        &mut self.running
    }
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }
    /// Rank of the first sequence in line, for the choice among residents.
    pub fn first_rank(&self) -> Option<Rank> {
        let waiting = self.waiting.front().map(|e| e.sequence.rank);
        let running = self.running.first().map(|e| e.sequence.rank);
        waiting.into_iter().chain(running).min()
    }

    /// The sequence of this rank, running or waiting.
    pub fn find_mut(&mut self, rank: Rank) -> Option<&mut Entry<P>> {
        match self.running.binary_search_by_key(&rank, |e| e.sequence.rank) {
            Ok(at) => self.running.get_mut(at),
            Err(_) => {
                let at = self.waiting.binary_search_by_key(&rank, |e| e.sequence.rank).ok()?;
                self.waiting.get_mut(at)
            }
        }
    }

    pub fn add(&mut self, sequence: Sequence, payload: P) {
        self.wait(Entry { sequence, payload });
    }

    fn wait(&mut self, entry: Entry<P>) {
        let at = self.waiting.partition_point(|e| e.sequence.rank < entry.sequence.rank);
        self.waiting.insert(at, entry);
    }

    /// Drops sequences that `keep` refuses, waiting ones too; returns how many of each were dropped as
    /// (waiting, running). Not between a plan and its end.
    pub fn retain(&mut self, mut keep: impl FnMut(&mut Entry<P>) -> bool) -> (usize, usize) {
        let before = (self.waiting.len(), self.running.len());
        self.waiting.retain_mut(&mut keep);
        self.running.retain_mut(&mut keep);
        (before.0 - self.waiting.len(), before.1 - self.running.len())
    }

    /// Fills `plan` with the next step; empty when nothing can run.
    pub fn plan(&mut self, budget: Budget, plan: &mut StepPlan) {
        plan.clear();
        let mut left = budget;
        self.plan_running(true, &mut left, plan);
        self.plan_running(false, &mut left, plan);
        if plan.preempted == 0 {
            self.admit(budget.sequences, &mut left, plan);
        }
        self.add_guesses(&mut left, plan);
    }

    /// Rows for guesses behind the last tokens of decoding sequences, of what nobody else has a use for: neither tokens
    /// nor rows of logits of this step, nor the block that each running sequence may want in the next one.
    fn add_guesses(&mut self, left: &mut Budget, plan: &mut StepPlan) {
        let kept = self.running.len();
        for row in &mut plan.rows {
            let s = &mut self.running[row.sequence].sequence;
            let wanted = s.usable_guesses().min(left.tokens).min(left.logit_rows);
            if wanted == 0 || row.tokens.end != s.tokens.len() || row.logits.is_empty() {
                continue;
            }
            let spare = self.pool.borrow().free().saturating_sub(kept) * self.pool.borrow().block_size();
            let granted = wanted.min((s.table.capacity() + spare).saturating_sub(row.tokens.end));
            if granted > 0 && s.table.grow_to(row.tokens.end + granted) {
                row.tokens.end += granted;
                row.logits.end += granted;
                left.tokens -= granted;
                left.logit_rows -= granted;
            }
        }
    }

    /// Rows for running sequences that decode, or that are still in their prompt.
    fn plan_running(&mut self, decoding: bool, left: &mut Budget, plan: &mut StepPlan) {
        let mut index = 0;
        while index < self.running.len() && left.tokens > 0 && left.sequences > 0 {
            let s = &self.running[index].sequence;
            if (s.uncomputed() == 1) == decoding
                && !s.complete
                && let Some(row) = next_row(s, index, left)
                && self.make_room(index, row.tokens.end, left, plan)
            {
                spend(left, &row);
                plan.rows.push(row);
            }
            index += 1;
        }
    }

    /// Blocks for `tokens` of a running sequence, preempting lower-ranked ones as needed. False when
    /// the sequence itself had to go.
    fn make_room(&mut self, index: usize, tokens: usize, left: &mut Budget, plan: &mut StepPlan) -> bool {
        while !self.running[index].sequence.table.grow_to(tokens) {
            let Some(mut victim) = self.running.pop() else { return false };
            victim.sequence.preempt();
            let gone = self.running.len();
            if let Some(at) = plan.rows.iter().position(|r| r.sequence == gone) {
                refund(left, &plan.rows.remove(at));
            }
            plan.preempted += 1;
            self.wait(victim);
            if gone == index {
                return false;
            }
        }
        true
    }

    /// Starts waiting sequences in order, as long as the first in line fits.
    fn admit(&mut self, max_sequences: usize, left: &mut Budget, plan: &mut StepPlan) {
        while left.tokens > 0 && left.sequences > 0 && self.running.len() < max_sequences {
            let Some(entry) = self.waiting.front_mut() else { return };
            let s = &mut entry.sequence;
            if self.prefix_caching && s.use_prefix {
                s.computed = s.table.take_prefix(&s.tokens);
            }
            // Room for all known tokens and the first new one, or the prefill would only be preempted.
            let fits = s.table.missing(s.tokens.len() + 1) <= self.pool.borrow().free();
            // The index is set below, when the place among the running ones is known.
            let row = next_row(s, 0, left).filter(|_| fits);
            let Some(mut row) = row.filter(|r| s.table.grow_to(r.tokens.end)) else {
                s.give_back_prefix();
                return;
            };
            if s.preemptions == 0 && s.use_prefix {
                // Tokens that a grammar has forced may follow the prompt, and be found too.
                s.cached_tokens = s.computed.min(s.prompt_len);
                plan.prefix_queries += s.prompt_len;
                plan.prefix_hits += s.cached_tokens;
            }
            spend(left, &row);
            if let Some(entry) = self.waiting.pop_front() {
                row.sequence = self.start(entry, plan);
                plan.rows.push(row);
            }
        }
    }

    /// Puts a sequence among the running ones at its rank; rows planned behind it move up.
    fn start(&mut self, entry: Entry<P>, plan: &mut StepPlan) -> usize {
        let at = self.running.partition_point(|e| e.sequence.rank < entry.sequence.rank);
        plan.rows.iter_mut().filter(|r| r.sequence >= at).for_each(|r| r.sequence += 1);
        self.running.insert(at, entry);
        at
    }
}

/// The next rows of a sequence under the budget; `None` when nothing of it fits.
fn next_row(s: &Sequence, index: usize, left: &Budget) -> Option<StepRow> {
    let start = s.computed;
    let mut end = start + s.uncomputed().min(left.tokens);
    let scored = |end: usize| match s.score_from {
        Some(from) if from < s.prompt_len => from.max(start)..end,
        _ if end == s.tokens.len() => end - 1..end,
        _ => end..end,
    };
    let over = scored(end).len().saturating_sub(left.logit_rows);
    // Fewer rows when their logits would not fit.
    end -= over.min(end - start);
    (end > start).then(|| StepRow { sequence: index, tokens: start..end, logits: scored(end) })
}

fn spend(left: &mut Budget, row: &StepRow) {
    left.tokens -= row.tokens.len();
    left.logit_rows -= row.logits.len();
    left.sequences -= 1;
}

fn refund(left: &mut Budget, row: &StepRow) {
    left.tokens += row.tokens.len();
    left.logit_rows += row.logits.len();
    left.sequences += 1;
}
