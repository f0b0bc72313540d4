//! A model that lives on a device, with its scheduler and its cache: plans, launches, samples, applies.
//!
//! One call of [`Resident::step`] is one forward pass for all rows of the plan. A failed step ends its
//! batch with an error event for each request, and nothing else.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::clock::{Clock, Tick};
use crate::engine::batch;
use crate::engine::block_pool::BlockPool;
use crate::engine::constraint::TokenConstraint;
use crate::engine::event::{
    EngineError, EventSender, FinishReason, GenerateRequest, SequenceStats, TokenEvent, TokenLogprob,
};
use crate::engine::sampler::{Draw, History, NonFinite, Sampler, SamplingParams};
use crate::engine::scheduler::{Budget, Entry, Scheduler, StepPlan, StepRow};
use crate::engine::sequence::{Rank, Sequence};
use crate::engine::stats::EngineStats;
use crate::engine::step_log::{OVERHEAD, Observed, Share, StepRecord};
use crate::model::input::{BLOCK_SIZE, StepInput};
use crate::model::runner::Runner;

/// What the engine keeps of a request beside its sequence.
pub(super) struct Live {
    events: EventSender,
    account: u64,
    params: SamplingParams,
    history: History,
    constraint: Option<Box<dyn TokenConstraint>>,
    mask: Vec<u32>,
    max_tokens: usize,
    min_tokens: usize,
    stop_tokens: Arc<[u32]>,
    /// Alternatives to report for the prompt's tokens, and what has been computed of them.
    prompt_logprobs: Option<usize>,
    prompt_scores: Vec<TokenLogprob>,
    stats: SequenceStats,
    /// Set when the sequence must leave after this step.
    ended: bool,
    /// What its client is told once it has left.
    last_event: Option<TokenEvent>,
}

impl Live {
    fn end(&mut self, event: TokenEvent) {
        self.last_event = Some(event);
        self.ended = true;
    }
}

/// How a step went.
pub(super) struct StepReport {
    pub rows: usize,
    pub sequences: usize,
    pub started: Tick,
    pub ended: Tick,
}

pub(super) struct Resident {
    runner: Runner,
    scheduler: Scheduler<Live>,
    sampler: Sampler,
    input: StepInput,
    plan: StepPlan,
    clock: Clock,
    stats: Arc<EngineStats>,
    observed: Observed,
    /// Last events of sequences that are leaving.
    farewells: Vec<(EventSender, TokenEvent)>,
}

impl Resident {
    pub fn new(
        runner: Runner,
        max_sequences: usize,
        prefix_caching: bool,
        clock: Clock,
        stats: Arc<EngineStats>,
        observed: Observed,
    ) -> Resident {
        let pool = BlockPool::new(runner.blocks(), BLOCK_SIZE);
        let capacity = runner.capacity();
        let vocab = runner.decoder().spec().vocab;
        stats.blocks_total.store(runner.blocks(), Ordering::Release);
        stats.block_size.store(BLOCK_SIZE, Ordering::Release);
        // A step reads each sequence's whole table; shared blocks are listed once per sequence.
        let tables = runner.blocks().max(max_sequences) * 2;
        Resident {
            input: StepInput::with_capacity(capacity.rows, max_sequences, tables, capacity.logit_rows),
            runner,
            scheduler: Scheduler::new(pool, max_sequences, prefix_caching),
            sampler: Sampler::new(vocab),
            plan: StepPlan { rows: Vec::with_capacity(max_sequences), ..StepPlan::default() },
            clock,
            stats,
            observed,
            farewells: Vec::with_capacity(max_sequences),
        }
    }

    /// A forward pass over throw-away rows: touches the weights, and proves that logits are finite.
    pub fn warm_up(&mut self) -> Result<(), EngineError> {
        let rows = self.runner.capacity().rows.min(BLOCK_SIZE).min(4);
        self.input.clear();
        for row in 0..rows as u32 {
            self.input.tokens.push(row % self.runner.decoder().spec().vocab as u32);
            self.input.positions.push(row);
            self.input.slots.push(row);
        }
        let span = crate::model::input::AttentionSpan {
            first_row: 0,
            rows: rows as u32,
            first_position: 0,
            block_table: 0,
        };
        self.input.spans.push(span);
        self.input.block_tables.push(0);
        self.input.logit_rows.push(rows as u32 - 1);
        let step = |e: candle_core::Error| EngineError::Step(e.to_string());
        let started = self.clock.now();
        self.observed.begin(started);
        let finite = self
            .runner
            .launch(&mut self.input)
            .and_then(|flight| flight.sample(|logits, _, _| logits.iter().all(|x| x.is_finite())))
            .map_err(step);
        let record =
            StepRecord { started, ended: self.clock.now(), rows, sequences: 1, overhead: true, shares: 0 };
        let nobody = Share { account: OVERHEAD, prefill: 1.0, decode: 0.0 };
        self.observed.end(record, std::iter::once(nobody));
        let finite = finite?;
        if finite { Ok(()) } else { Err(EngineError::NonFiniteLogits) }
    }

    pub fn first_rank(&self) -> Option<Rank> {
        self.scheduler.first_rank()
    }

    /// Queues a request, or tells it why not.
    pub fn add(&mut self, request: GenerateRequest, events: EventSender, arrival: u64) {
        let max_len = request.prompt.len() + request.max_tokens;
        let (needed, total) = ((max_len).div_ceil(BLOCK_SIZE), self.runner.blocks());
        if needed > total || request.prompt.is_empty() {
            self.stats.waiting.fetch_sub(1, Ordering::AcqRel);
            let _ = events.send(TokenEvent::failed(EngineError::TooLargeForCache { needed, total }));
            return;
        }
        let rank = Rank { tier: request.tier, arrival };
        let pool = self.scheduler.pool().clone();
        let mut sequence = Sequence::new(rank, &request.prompt, max_len, request.cache_salt, &pool);
        if request.prompt_logprobs.is_some() {
            // Logits of the prompt are wanted, so the prompt must be computed.
            sequence.use_prefix = false;
            sequence.score_from = Some(0);
        }
        let vocab = self.runner.decoder().spec().vocab;
        let mask = request.constraint.as_ref().map_or(0, |_| vocab.div_ceil(32));
        let live = Live {
            events,
            history: History::new(&request.sampling, &request.prompt),
            account: request.account,
            params: request.sampling,
            constraint: request.constraint,
            mask: vec![0; mask],
            max_tokens: request.max_tokens,
            min_tokens: request.min_tokens,
            stop_tokens: request.stop_token_ids,
            prompt_logprobs: request.prompt_logprobs,
            prompt_scores: Vec::new(),
            stats: SequenceStats {
                prompt_tokens: request.prompt.len(),
                queued_at: self.clock.now(),
                ..SequenceStats::default()
            },
            ended: false,
            last_event: None,
        };
        self.scheduler.add(sequence, live);
    }

    /// Ends every request with this error.
    pub fn fail_all(&mut self, error: &EngineError) {
        for_all(&mut self.scheduler, |live| live.end(TokenEvent::failed(error.clone())));
        self.leave();
    }

    /// Drops requests whose client is gone.
    pub fn drop_cancelled(&mut self) {
        for_all(&mut self.scheduler, |live| live.ended |= live.events.is_closed());
        self.leave();
    }

    /// Sequences that have ended give their blocks back, are no longer counted, and only then tell
    /// their clients: who has an answer finds its request gone.
    fn leave(&mut self) {
        let farewells = &mut self.farewells;
        let (waiting, _) = self.scheduler.retain(|e| {
            if let Some(event) = e.payload.last_event.take() {
                farewells.push((e.payload.events.clone(), event));
            }
            !e.payload.ended
        });
        self.stats.waiting.fetch_sub(waiting, Ordering::AcqRel);
        self.publish_counts();
        for (events, event) in self.farewells.drain(..) {
            // Whether anyone still listens makes no difference.
            events.send(event);
        }
    }

    fn publish_counts(&self) {
        self.stats.running.store(self.scheduler.running().len(), Ordering::Release);
        self.stats.blocks_held.store(self.scheduler.pool().borrow().held(), Ordering::Release);
    }

    /// Runs one step; `None` when nothing can run.
    pub fn step(&mut self, sequences: usize, tokens: usize) -> Option<StepReport> {
        let capacity = self.runner.capacity();
        let budget = Budget { sequences, tokens: tokens.min(capacity.rows), logit_rows: capacity.logit_rows };
        let waiting = self.scheduler.waiting();
        self.scheduler.plan(budget, &mut self.plan);
        self.count_plan(waiting);
        if self.plan.rows.is_empty() {
            return None;
        }
        batch::build(&self.plan, self.scheduler.running(), BLOCK_SIZE, &mut self.input);
        let started = self.clock.now();
        self.observed.begin(started);
        self.mark_scheduled(started);
        let outcome = self.launch_and_sample();
        let ended = self.clock.now();
        self.log_step(started, ended, outcome.is_err());
        if let Err(error) = outcome {
            for row in &self.plan.rows {
                let live = &mut self.scheduler.running_mut()[row.sequence].payload;
                live.end(TokenEvent::failed(error.clone()));
            }
        }
        let (rows, sequences) = (self.plan.tokens(), self.plan.rows.len());
        self.leave();
        Some(StepReport { rows, sequences, started, ended })
    }

    /// Waiting requests that were admitted, less those preempted back into the queue.
    fn count_plan(&self, waiting_before: usize) {
        let waiting = self.scheduler.waiting();
        if waiting >= waiting_before {
            self.stats.waiting.fetch_add(waiting - waiting_before, Ordering::AcqRel);
        } else {
            self.stats.waiting.fetch_sub(waiting_before - waiting, Ordering::AcqRel);
        }
        self.stats.preemptions.fetch_add(self.plan.preempted as u64, Ordering::Relaxed);
        self.stats.prefix_queries.fetch_add(self.plan.prefix_queries as u64, Ordering::Relaxed);
        self.stats.prefix_hits.fetch_add(self.plan.prefix_hits as u64, Ordering::Relaxed);
        self.publish_counts();
    }

    /// Whose work the step did. Positions of the prompt are prefill, also when they are computed again.
    fn log_step(&self, started: Tick, ended: Tick, failed: bool) {
        let (step_rows, sequences) = (self.plan.tokens(), self.plan.rows.len());
        let record = StepRecord { started, ended, rows: step_rows, sequences, overhead: failed, shares: 0 };
        let spec = self.runner.decoder().spec();
        let shares = self.plan.rows.iter().map(|row| {
            let Entry { sequence, payload } = &self.scheduler.running()[row.sequence];
            let work = spec.chunk_work(&row.tokens, row.logits.len(), step_rows);
            let rows = row.tokens.len().max(1) as f64;
            let of_prompt = row.tokens.end.min(sequence.prompt_len).saturating_sub(row.tokens.start) as f64;
            let prefill = work * of_prompt / rows;
            Share { account: payload.account, prefill, decode: work - prefill }
        });
        self.observed.end(record, shares);
    }

    fn mark_scheduled(&mut self, now: Tick) {
        for row in &self.plan.rows {
            let Entry { sequence, payload } = &mut self.scheduler.running_mut()[row.sequence];
            if payload.stats.scheduled_at == Tick::default() {
                payload.stats.scheduled_at = now;
                // A client that is gone is noticed before the next step.
                payload.events.send(TokenEvent::Admitted { cached_tokens: sequence.cached_tokens });
            }
        }
    }

    fn launch_and_sample(&mut self) -> Result<(), EngineError> {
        let Resident { runner, scheduler, sampler, input, plan, clock, stats, .. } = self;
        let vocab = runner.decoder().spec().vocab;
        let flight = runner.launch(input).map_err(|e| EngineError::Step(e.to_string()))?;
        for row in plan.rows.iter().filter(|r| !r.logits.is_empty()) {
            scheduler.running_mut()[row.sequence].payload.prepare_mask();
        }
        flight
            .sample(|logits, sampled, _| {
                let mut first = 0;
                for row in &plan.rows {
                    let entry = &mut scheduler.running_mut()[row.sequence];
                    entry.sequence.advance(row.tokens.end);
                    let own = first..first + row.logits.len();
                    first = own.end;
                    let logits = &logits[own.start * vocab..own.end * vocab];
                    let token = apply(entry, row, logits, vocab, sampler, clock.now(), stats);
                    if let (Some(token), Some(last)) = (token, own.last()) {
                        sampled[last] = token;
                    }
                }
            })
            .map_err(|e| EngineError::Step(e.to_string()))
    }
}

fn for_all(scheduler: &mut Scheduler<Live>, mut each: impl FnMut(&mut Live)) {
    scheduler.retain(|e| {
        each(&mut e.payload);
        true
    });
}

impl Live {
    /// Asks the constraint, while the device works, what may come next.
    fn prepare_mask(&mut self) {
        if let Some(constraint) = &mut self.constraint {
            self.mask.fill(u32::MAX);
            constraint.fill_mask(&mut self.mask);
        }
    }

    /// Takes a sampled token: records and reports it, and ends the sequence where it must end.
    fn accept(&mut self, token: u32, logprob: Option<TokenLogprob>, generated: usize, now: Tick) {
        if self.stats.first_token_at == Tick::default() {
            self.stats.first_token_at = now;
        }
        self.stats.generated_tokens = generated;
        self.history.record(&self.params, token);
        if !self.events.send(TokenEvent::Token { id: token, logprob: logprob.map(Box::new) }) {
            self.ended = true;
            return;
        }
        let goes_on = self.constraint.as_mut().is_none_or(|c| c.accept(token));
        let reason = if self.stop_tokens.contains(&token) || !goes_on {
            Some(FinishReason::Stop)
        } else {
            (generated >= self.max_tokens).then_some(FinishReason::Length)
        };
        if let Some(reason) = reason {
            self.stats.finished_at = now;
            self.end(TokenEvent::Finished { reason, stats: Box::new(self.stats) });
        }
    }
}

/// Uses the logits of a sequence's rows: scores of the prompt, then, at the last known token, the next.
fn apply(
    entry: &mut Entry<Live>,
    row: &StepRow,
    logits: &[f32],
    vocab: usize,
    sampler: &mut Sampler,
    now: Tick,
    stats: &EngineStats,
) -> Option<u32> {
    let Entry { sequence, payload: live } = entry;
    live.stats.cached_tokens = sequence.cached_tokens;
    live.stats.preemptions = sequence.preemptions;
    if row.tokens.start < sequence.prompt_len {
        let prompt_rows = row.tokens.end.min(sequence.prompt_len) - row.tokens.start;
        stats.prompt_tokens.fetch_add(prompt_rows as u64, Ordering::Relaxed);
    }
    if let Some(top) = live.prompt_logprobs {
        for (position, logits) in row.logits.clone().zip(logits.chunks_exact(vocab)) {
            if position + 1 < sequence.prompt_len {
                live.prompt_scores.push(sampler.logprob(logits, sequence.tokens[position + 1], top));
                sequence.score_from = Some(position + 1);
            }
        }
    }
    if row.tokens.end < sequence.tokens.len() {
        return None;
    }
    if live.prompt_logprobs.take().is_some() {
        sequence.score_from = None;
        live.events.send(TokenEvent::Prompt(std::mem::take(&mut live.prompt_scores)));
    }
    let generated = sequence.generated();
    let draw = Draw {
        params: &live.params,
        history: &live.history,
        banned: if generated < live.min_tokens { &live.stop_tokens } else { &[] },
        mask: live.constraint.is_some().then_some(&live.mask),
        index: generated as u64,
    };
    match sampler.sample(&logits[logits.len() - vocab..], &draw) {
        Ok((token, logprob)) => {
            stats.generated_tokens.fetch_add(1, Ordering::Relaxed);
            sequence.tokens.push(token);
            live.accept(token, logprob, generated + 1, now);
            Some(token)
        }
        Err(NonFinite) => {
            live.end(TokenEvent::failed(EngineError::NonFiniteLogits));
            None
        }
    }
}
