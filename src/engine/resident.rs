//! A model that lives on a device, with its scheduler and its cache: plans, launches, samples, applies.
//!
//! One call of [`Resident::step`] is one forward pass for all rows of the plan. Running ahead, the next step is
//! planned and launched before the tokens of the last one are read: while the host reads, reports and plans, the
//! device works. A failed step ends its batch with an error event for each request, and nothing else.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::clock::{Clock, Tick};
use crate::engine::batch;
use crate::engine::block_pool::BlockPool;
use crate::engine::event::{EngineError, EventSender, GenerateRequest, TokenEvent};
use crate::engine::fault::Fault;
use crate::engine::flight::{Flight, FlightRow, apply};
use crate::engine::live::Live;
use crate::engine::scheduler::{Budget, Entry, Scheduler, StepPlan};
use crate::engine::sequence::{Rank, Sequence};
use crate::engine::speculation::Speculation;
use crate::engine::stats::EngineStats;
use crate::engine::step_log::{OVERHEAD, Observed, Share, StepRecord};
use crate::model::input::{BLOCK_SIZE, StepInput};
use crate::model::runner::Runner;
use crate::ops::sample::{NONE, Samples, Task};

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
    samples: Samples,
    input: StepInput,
    plan: StepPlan,
    /// The step being launched, and the one under way.
    next: Flight,
    flight: Flight,
    in_flight: bool,
    /// Something went wrong since the device was last tried.
    suspect: bool,
    /// Why the device serves nobody any more.
    lost: Option<EngineError>,
    ordered: Option<Fault>,
    speculation: Option<Speculation>,
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
        speculation: Option<Speculation>,
        clock: Clock,
        stats: Arc<EngineStats>,
        observed: Observed,
    ) -> Resident {
        let pool = BlockPool::new(runner.blocks(), BLOCK_SIZE);
        let capacity = runner.capacity();
        stats.blocks_total.store(runner.blocks(), Ordering::Release);
        stats.block_size.store(BLOCK_SIZE, Ordering::Release);
        stats.prefix_caching.store(prefix_caching, Ordering::Release);
        // A step reads each sequence's whole table; shared blocks are listed once per sequence.
        let tables = runner.blocks().max(max_sequences) * 2;
        Resident {
            input: StepInput::with_capacity(capacity.rows, max_sequences, tables, capacity.logit_rows),
            runner,
            scheduler: Scheduler::new(pool, max_sequences, prefix_caching),
            samples: Samples::default(),
            plan: StepPlan { rows: Vec::with_capacity(max_sequences), ..StepPlan::default() },
            next: Flight::with_capacity(max_sequences),
            flight: Flight::with_capacity(max_sequences),
            in_flight: false,
            suspect: false,
            lost: None,
            ordered: None,
            speculation,
            clock,
            stats,
            observed,
            farewells: Vec::with_capacity(max_sequences),
        }
    }

    /// A forward pass over throw-away rows, in the block that no sequence owns: touches the weights, and proves
    /// that logits are finite. Not while a step is in flight.
    pub fn warm_up(&mut self) -> Result<(), EngineError> {
        let rows = self.runner.capacity().rows.min(BLOCK_SIZE).min(4);
        self.input.clear();
        let spare = self.runner.blocks() as u32;
        for row in 0..rows as u32 {
            self.input.tokens.push(row % self.runner.decoder().spec().vocab as u32);
            self.input.positions.push(row);
            self.input.slots.push(spare * BLOCK_SIZE as u32 + row);
        }
        let span = crate::model::input::AttentionSpan {
            first_row: 0,
            rows: rows as u32,
            first_position: 0,
            block_table: 0,
        };
        self.input.spans.push(span);
        self.input.block_tables.push(spare);
        self.input.logit_rows.push(rows as u32 - 1);
        let step = |e: candle_core::Error| EngineError::of_step(&e);
        let started = self.clock.now();
        self.observed.begin(started);
        let finite = self
            .runner
            .launch(&mut self.input)
            .and_then(|()| self.runner.logits(|logits| logits.iter().all(|x| x.is_finite())))
            .map_err(step);
        let record =
            StepRecord { started, ended: self.clock.now(), rows, sequences: 1, overhead: true, shares: 0 };
        let nobody = Share { account: OVERHEAD, prefill: 1.0, decode: 0.0 };
        self.observed.end(record, std::iter::once(nobody));
        let finite = finite? && self.ordered != Some(Fault::NeverFinite);
        if finite { Ok(()) } else { Err(EngineError::NonFiniteLogits) }
    }

    pub fn first_rank(&self) -> Option<Rank> {
        self.scheduler.first_rank()
    }

    /// Lets a fault happen with the next step.
    pub fn order(&mut self, fault: Fault) {
        self.ordered = Some(fault);
    }

    /// Why the device serves nobody any more, if it does not.
    pub fn lost(&self) -> Option<&EngineError> {
        self.lost.as_ref()
    }

    /// True when a request's logits were not finite, or a step failed: the device is to be tried before it is
    /// trusted again.
    pub fn is_suspect(&self) -> bool {
        self.suspect
    }

    /// Tries a suspect device with the warm-up's rows, when nothing is in flight. What goes wrong even then is the
    /// device's fault.
    pub fn try_suspect(&mut self) {
        if !self.suspect || self.in_flight || self.lost.is_some() {
            return;
        }
        self.suspect = false;
        let tried = catch_unwind(AssertUnwindSafe(|| self.warm_up()));
        if let Err(error) = tried.unwrap_or_else(|panic| Err(EngineError::of_panic(&*panic))) {
            self.lost = Some(EngineError::Device(format!("the self-test after a failure: {error}")));
            self.observed.abandon(self.clock.now());
        }
    }

    /// True while a step is under way.
    pub fn is_in_flight(&self) -> bool {
        self.in_flight
    }

    /// True while there is something to run, or to wait for.
    pub fn has_work(&self) -> bool {
        self.in_flight || self.first_rank().is_some()
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
        let mut live = Live::new(request, events, vocab, self.clock.now());
        live.begin(&mut sequence.tokens);
        self.scheduler.add(sequence, live);
    }

    /// Ends every request with this error.
    pub fn fail_all(&mut self, error: &EngineError) {
        for_all(&mut self.scheduler, |live| live.fail(error.clone()));
        self.leave();
    }

    /// After a panic nobody knows what was under way, nor what it left.
    pub fn forget_flight(&mut self) {
        (self.in_flight, self.next.tokens) = (false, 0);
        self.suspect = true;
        self.observed.abandon(self.clock.now());
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

    /// Plans and launches a step, settles the one before it, and samples the new one. Not `ahead`, it waits for
    /// that too. `None` when no step has ended.
    pub fn step(&mut self, sequences: usize, tokens: usize, ahead: bool) -> Option<StepReport> {
        if self.in_flight && !ahead {
            let report = self.settle();
            self.leave();
            return Some(report);
        }
        let capacity = self.runner.capacity();
        let budget = Budget { sequences, tokens: tokens.min(capacity.rows), logit_rows: capacity.logit_rows };
        let waiting = self.scheduler.waiting();
        let begun = self.guess(ahead);
        self.scheduler.plan(budget, &mut self.plan);
        self.count_plan(waiting);
        let mut launched = self.launch(begun);
        // What the device did while this was planned; its next step is there already.
        let mut report = self.in_flight.then(|| self.settle());
        if let Ok(true) = launched {
            launched = self.sample().map(|()| true);
        }
        match launched {
            Ok(launched) => {
                if launched {
                    std::mem::swap(&mut self.flight, &mut self.next);
                    (self.in_flight, self.next.tokens) = (true, 0);
                    if !ahead {
                        report = Some(self.settle());
                    }
                }
            }
            Err(error) => report = Some(self.fail_plan(&error)),
        }
        self.leave();
        report
    }

    /// Whether the next step may have guesses: then it is not run ahead of the last one's tokens.
    pub fn guesses(&self) -> bool {
        self.speculation.as_ref().is_some_and(Speculation::is_on)
    }

    /// Guesses what comes next in the running sequences, and says when it began to.
    fn guess(&mut self, ahead: bool) -> Option<Tick> {
        let speculation = self.speculation.as_mut()?;
        if ahead || !speculation.is_on() {
            speculation.rest();
            return None;
        }
        let now = self.clock.now();
        let fails = self.ordered.take_if(|fault| *fault == Fault::Draft).is_some();
        if speculation.has_model() && Speculation::decoding(self.scheduler.running()) > 0 {
            self.observed.begin(now);
        }
        speculation.guess(self.scheduler.running_mut(), self.runner.decoder().spec().vocab, fails);
        Some(now)
    }

    /// Starts the step of the plan; false when it is empty. `begun`: when work for it began, if before.
    fn launch(&mut self, begun: Option<Tick>) -> Result<bool, EngineError> {
        if self.plan.rows.is_empty() {
            return Ok(false);
        }
        batch::build(&self.plan, self.scheduler.running(), &mut self.input);
        let now = self.clock.now();
        let started = begun.unwrap_or(now);
        if !self.in_flight {
            self.observed.begin(started);
        }
        self.next.started = started;
        self.next.tokens = self.plan.tokens();
        self.mark_scheduled(now);
        self.log_shares();
        match self.ordered {
            Some(Fault::DeviceLost) => {
                return Err(EngineError::Device("CUDA_ERROR_LAUNCH_FAILED, on order".into()));
            }
            Some(Fault::Hang(time)) => std::thread::sleep(time),
            Some(Fault::NoMemory(bytes)) => {
                self.ordered = None;
                return Err(EngineError::Step(format!("{bytes} bytes are not to be had, on order")));
            }
            Some(Fault::Panic) => {
                self.ordered = None;
                panic!("on order");
            }
            _ => {}
        }
        self.ordered.take_if(|fault| matches!(fault, Fault::Hang(_)));
        self.runner.launch(&mut self.input).map_err(|e| EngineError::of_step(&e))?;
        Ok(true)
    }

    /// Sets the tasks of the step that was launched, now that the tokens before it are known.
    fn sample(&mut self) -> Result<(), EngineError> {
        let Resident { scheduler, plan, samples, next, runner, .. } = self;
        samples.clear();
        next.rows.clear();
        for (row, share) in plan.rows.iter().zip(&mut next.shares) {
            let Entry { sequence, payload: live } = &mut scheduler.running_mut()[row.sequence];
            let first_sample = samples.tasks.len();
            let known = sequence.tokens.len();
            let draws = row.tokens.end >= known && !row.logits.is_empty();
            let guesses = if draws { row.tokens.end - known } else { 0 };
            sequence.schedule(row.tokens.end);
            if live.ended {
                // It ended with the step before: nobody's row.
                samples.tasks.extend(row.logits.clone().map(|_| Task::GREEDY));
                share.account = OVERHEAD;
                continue;
            }
            let mut logits = row.logits.clone();
            if !draws && sequence.score_from.is_none() {
                // What comes after it was forced meanwhile: there is nothing to choose.
                samples.tasks.extend(logits.clone().map(|_| Task::GREEDY));
                logits.end = logits.start;
            }
            for position in logits.clone() {
                if draws && position + 1 >= known {
                    let generated = position + 1 - sequence.prompt_len;
                    if !live.draw(generated, samples) {
                        samples.tasks.push(Task::GREEDY);
                    }
                    if position + 1 == known {
                        sequence.expect(samples.tasks.len() as u32 - 1);
                        sequence.complete = generated + 1 >= live.max_tokens;
                    }
                } else {
                    live.score(sequence.tokens[position + 1], samples);
                }
            }
            let (rank, tokens) = (sequence.rank, row.tokens.clone());
            next.rows.push(FlightRow { rank, tokens, logits, first_sample, draws, guesses });
        }
        runner.sample(samples).map_err(|e| EngineError::of_step(&e))
    }

    /// Waits for the step in flight and applies its results.
    fn settle(&mut self) -> StepReport {
        let Resident { runner, scheduler, flight, clock, stats, suspect, lost, ordered, .. } = self;
        let outcome = runner.collect();
        let ended = clock.now();
        let failed = outcome.is_err();
        match outcome {
            Ok(results) => {
                for row in &flight.rows {
                    // Gone, when its client is.
                    let Some(entry) = scheduler.find_mut(row.rank) else { continue };
                    let once = ordered.take_if(|fault| *fault == Fault::NotFinite).is_some();
                    match once || *ordered == Some(Fault::NeverFinite) {
                        true => apply(entry, row, &vec![NONE; results.len()], ended, stats),
                        false => apply(entry, row, results, ended, stats),
                    }
                    *suspect |= entry.payload.failed_with(&EngineError::NonFiniteLogits);
                }
            }
            Err(error) => {
                let error = EngineError::of_step(&error);
                *suspect = true;
                if error.is_of_the_device() {
                    *lost = Some(error.clone());
                }
                for row in &flight.rows {
                    if let Some(entry) = scheduler.find_mut(row.rank) {
                        entry.payload.fail(error.clone());
                    }
                }
            }
        }
        self.in_flight = false;
        let ended_one = std::mem::take(&mut self.flight);
        let report = self.log_step(&ended_one, ended, failed);
        self.flight = ended_one;
        // The step after it has the device now.
        if self.next.tokens > 0 {
            self.next.started = ended;
            self.observed.begin(ended);
        }
        report
    }

    /// Ends the requests of a step that could not be launched or sampled.
    fn fail_plan(&mut self, error: &EngineError) -> StepReport {
        self.suspect = true;
        if error.is_of_the_device() {
            self.lost.get_or_insert_with(|| error.clone());
        }
        // Where the step before it has shown that the device is gone, that is why this one failed.
        let error = self.lost.as_ref().unwrap_or(error);
        for row in &self.plan.rows {
            self.scheduler.running_mut()[row.sequence].payload.fail(error.clone());
        }
        let failed = std::mem::take(&mut self.next);
        let report = self.log_step(&failed, self.clock.now(), true);
        self.next = failed;
        self.next.tokens = 0;
        report
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

    /// Whose work the step does. Positions of the prompt are prefill, also when they are computed again.
    fn log_shares(&mut self) {
        let step_rows = self.next.tokens;
        let spec = self.runner.decoder().spec();
        let shares = self.plan.rows.iter().map(|row| {
            let Entry { sequence, payload } = &self.scheduler.running()[row.sequence];
            let work = spec.chunk_work(&row.tokens, row.logits.len(), step_rows);
            let rows = row.tokens.len().max(1) as f64;
            let of_prompt = row.tokens.end.min(sequence.prompt_len).saturating_sub(row.tokens.start) as f64;
            let prefill = work * of_prompt / rows;
            Share { account: payload.account, prefill, decode: work - prefill }
        });
        self.next.shares.clear();
        self.next.shares.extend(shares);
    }

    fn log_step(&self, flight: &Flight, ended: Tick, failed: bool) -> StepReport {
        let (started, rows, sequences) = (flight.started, flight.tokens, flight.shares.len());
        let record = StepRecord { started, ended, rows, sequences, overhead: failed, shares: 0 };
        self.observed.end(record, flight.shares.iter().copied());
        StepReport { rows, sequences, started, ended }
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
}

fn for_all(scheduler: &mut Scheduler<Live>, mut each: impl FnMut(&mut Live)) {
    scheduler.retain(|e| {
        each(&mut e.payload);
        true
    });
}
