//! One thread per device: owns the residents, runs their steps one at a time, answers commands.
//!
//! [`EngineHandle`] is the other threads' end of it: submit, limits, abort. A worker that waits for
//! work still gives a sign of life; one that is silent hangs in a step.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError, TryRecvError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::clock::Clock;
use crate::engine::draft::DraftModel;
use crate::engine::encode::{EncodeRequest, EncodeResult, EncoderResident, HostedEncoder};
use crate::engine::event::{
    EngineError, EventSender, EventStream, GenerateRequest, Tier, TokenEvent, event_channel,
};
use crate::engine::fault::Faults;
use crate::engine::resident::{Resident, StepReport};
use crate::engine::speculation::{Source, Speculation};
use crate::engine::stats::EngineStats;
use crate::engine::step_log::Observed;
use crate::model::runner::Runner;

/// How long an idle worker sleeps before its next sign of life.
const IDLE_BEAT: Duration = Duration::from_millis(500);
/// Longest pause a duty cycle inserts at once.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Limits that may change while the engine runs (power caps, curtailment).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Sequences in one step at most.
    pub max_rows: usize,
    /// Tokens in one step at most.
    pub max_tokens: usize,
    /// Share of time the device may be busy, 0 < duty ≤ 1; the worker pauses between steps.
    pub duty: f64,
}

/// How an engine is set up.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Names the thread.
    pub device: String,
    pub limits: Limits,
    pub prefix_caching: bool,
    /// Launch a step before the tokens of the one before it are read; no use where launching waits for it.
    pub run_ahead: bool,
    /// Tokens guessed in a step at most, 0 for none; by the draft model if there is one, else from what was said before.
    pub speculative_tokens: usize,
    /// Requests taken beyond those that one step can hold.
    pub max_queue: usize,
    /// For tests and drills.
    pub faults: Faults,
}

/// What a device runs.
#[derive(Default)]
pub struct Models {
    pub decoder: Option<Runner>,
    /// Guesses what the decoder will say; of the same vocabulary.
    pub draft: Option<Runner>,
    pub encoders: Vec<HostedEncoder>,
}

pub(crate) enum Command {
    Submit {
        request: Box<GenerateRequest>,
        events: EventSender,
    },
    Encode {
        request: EncodeRequest,
        reply: oneshot::Sender<EncodeResult>,
    },
    SetLimits(Limits),
    /// End at once: every live request gets `EngineError::Aborted`.
    Abort,
}

/// A cloneable handle on one engine.
#[derive(Clone)]
pub struct EngineHandle {
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) stats: Arc<EngineStats>,
    /// Sequences one step can hold.
    pub(crate) slots: usize,
    pub(crate) max_queue: usize,
}

impl EngineHandle {
    /// Queues a request. Dropping the stream cancels it.
    ///
    /// # Errors
    /// `QueueFull` when `max_queue` requests are there beyond those a step can hold (so the choices of a
    /// request that finds the engine idle all start), `Dead` when the worker has ended.
    pub fn submit(&self, request: GenerateRequest) -> Result<EventStream, EngineError> {
        let waiting = self.stats.waiting.fetch_add(1, Ordering::AcqRel);
        let live = waiting + self.stats.running.load(Ordering::Acquire);
        if live >= self.places() {
            self.stats.waiting.fetch_sub(1, Ordering::AcqRel);
            return Err(EngineError::QueueFull { waiting, limit: self.max_queue });
        }
        let (events, stream) = event_channel();
        self.commands.send(Command::Submit { request: Box::new(request), events }).map_err(|_| {
            self.stats.waiting.fetch_sub(1, Ordering::AcqRel);
            EngineError::Dead("its thread ended".into())
        })?;
        Ok(stream)
    }

    /// Queues texts for an encoder. Dropping the receiver cancels them.
    ///
    /// # Errors
    /// `QueueFull` when `max_queue` such requests are there, `Dead` when the worker has ended.
    pub fn encode(&self, request: EncodeRequest) -> Result<oneshot::Receiver<EncodeResult>, EngineError> {
        let waiting = self.stats.encodes.fetch_add(1, Ordering::AcqRel);
        let refuse = |error| {
            self.stats.encodes.fetch_sub(1, Ordering::AcqRel);
            Err(error)
        };
        if waiting >= self.max_queue {
            return refuse(EngineError::QueueFull { waiting, limit: self.max_queue });
        }
        let (reply, answer) = oneshot::channel();
        match self.commands.send(Command::Encode { request, reply }) {
            Ok(()) => Ok(answer),
            Err(_) => refuse(EngineError::Dead("its thread ended".into())),
        }
    }

    pub fn set_limits(&self, limits: Limits) {
        // A worker that has ended has no limits to set.
        let _ = self.commands.send(Command::SetLimits(limits));
    }

    pub fn abort(&self) {
        let _ = self.commands.send(Command::Abort);
    }

    /// Requests that it takes at most, running and waiting.
    pub fn places(&self) -> usize {
        self.slots + self.max_queue
    }

    /// Sequences that one step can hold.
    pub fn slots(&self) -> usize {
        self.slots
    }

    pub fn stats(&self) -> &Arc<EngineStats> {
        &self.stats
    }
}

/// Starts a device's thread and waits for its warm-up forward. The thread ends when every handle is
/// gone and nothing runs any more.
///
/// # Errors
/// When the thread cannot start, or the warm-up fails or gives logits that are not finite.
pub fn spawn(
    runner: Runner,
    config: EngineConfig,
    clock: Clock,
    observed: Observed,
) -> Result<(EngineHandle, JoinHandle<()>), EngineError> {
    let models = Models { decoder: Some(runner), ..Models::default() };
    spawn_with(models, config, clock, observed)
}

/// The same for a device with encoders beside its decoder, or instead of one.
///
/// # Errors
/// As [`spawn`].
pub fn spawn_with(
    models: Models,
    config: EngineConfig,
    clock: Clock,
    observed: Observed,
) -> Result<(EngineHandle, JoinHandle<()>), EngineError> {
    let Models { decoder: runner, draft, encoders } = models;
    let (commands, inbox) = mpsc::channel();
    let stats = Arc::new(EngineStats::default());
    let handle = EngineHandle {
        commands,
        stats: stats.clone(),
        slots: config.limits.max_rows,
        max_queue: config.max_queue,
    };
    let (up, is_up) = mpsc::channel();
    let thread = std::thread::Builder::new()
        .name(format!("hashwatt-{}", config.device))
        .spawn(move || {
            let (rows, caching) = (config.limits.max_rows, config.prefix_caching);
            let most = config.speculative_tokens;
            let source =
                draft.map_or(Source::PromptLookup, |runner| Source::Draft(Box::new(DraftModel::new(runner))));
            let mut speculation = (most > 0).then(|| Speculation::new(source, most));
            let decoder = |runner| {
                let speculation = speculation.take();
                Resident::new(
                    runner,
                    rows,
                    caching,
                    speculation,
                    clock.clone(),
                    stats.clone(),
                    observed.clone(),
                )
            };
            let encoder = |hosted| {
                EncoderResident::new(hosted, &config.device, clock.clone(), stats.clone(), observed.clone())
            };
            let residents: Vec<_> = runner.map(decoder).into_iter().collect();
            let encoders: Vec<_> = match encoders.into_iter().map(encoder).collect() {
                Ok(encoders) => encoders,
                Err(error) => {
                    let _ = up.send(Err(error));
                    return;
                }
            };
            let ceiling = config.limits;
            let mut worker = Worker {
                turns: vec![0; residents.len() + encoders.len()],
                residents,
                encoders,
                inbox,
                clock,
                stats,
                observed,
                ceiling,
                limits: ceiling,
                arrivals: 0,
                run_ahead: config.run_ahead,
                faults: config.faults,
                steps: 0,
            };
            let warm = worker.warm_up();
            let warm_up_failed = warm.is_err();
            // Nobody waits for the answer only when the starter is gone too.
            let _ = up.send(warm);
            if !warm_up_failed {
                worker.run();
            }
        })
        .map_err(|e| EngineError::Dead(format!("its thread could not start: {e}")))?;
    is_up.recv().map_err(|_| EngineError::Dead("it ended during the warm-up".into()))??;
    Ok((handle, thread))
}

struct Worker {
    /// Decoders; one so far, if any.
    residents: Vec<Resident>,
    encoders: Vec<EncoderResident>,
    /// When each of them last had a step, by the count of steps; decoders first.
    turns: Vec<u64>,
    inbox: mpsc::Receiver<Command>,
    clock: Clock,
    stats: Arc<EngineStats>,
    observed: Observed,
    /// What the engine was built for; limits never go above.
    ceiling: Limits,
    limits: Limits,
    arrivals: u64,
    run_ahead: bool,
    faults: Faults,
    /// Begun so far.
    steps: u64,
}

impl Worker {
    fn warm_up(&mut self) -> Result<(), EngineError> {
        for resident in &mut self.residents {
            catch_unwind(AssertUnwindSafe(|| resident.warm_up()))
                .unwrap_or_else(|panic| Err(EngineError::of_panic(&*panic)))?;
        }
        self.encoders.iter_mut().try_for_each(EncoderResident::warm_up)?;
        self.stats.beat(self.clock.now());
        self.stats.ready.store(true, Ordering::Release);
        Ok(())
    }

    fn run(&mut self) {
        while self.take_commands() {
            self.stats.beat(self.clock.now());
            for resident in &mut self.residents {
                resident.drop_cancelled();
            }
            self.encoders.iter_mut().for_each(EncoderResident::drop_cancelled);
            if let Some(report) = self.step_next() {
                self.record(&report);
                self.pause(&report);
            }
            if self.end_lost() {
                break;
            }
        }
        self.stats.ready.store(false, Ordering::Release);
    }

    /// Handles what has arrived; sleeps when there is nothing to do. False when the engine should end.
    fn take_commands(&mut self) -> bool {
        loop {
            let idle = self.next().is_none();
            let command = if idle {
                self.inbox.recv_timeout(IDLE_BEAT).map_err(|e| e == RecvTimeoutError::Disconnected)
            } else {
                self.inbox.try_recv().map_err(|e| e == TryRecvError::Disconnected)
            };
            match command {
                Ok(command) => self.handle(command),
                // No handle is left: go on while something runs.
                Err(disconnected) => return !(disconnected && idle),
            }
        }
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Submit { request, events } => {
                self.arrivals += 1;
                match self.residents.first_mut() {
                    Some(resident) => resident.add(*request, events, self.arrivals),
                    None => {
                        self.stats.waiting.fetch_sub(1, Ordering::AcqRel);
                        events.send(TokenEvent::failed(EngineError::Step("no decoder is here".into())));
                    }
                }
            }
            Command::Encode { request, reply } => {
                self.arrivals += 1;
                match self.encoders.get_mut(request.encoder) {
                    Some(encoder) => encoder.add(request, reply, self.arrivals),
                    None => {
                        self.stats.encodes.fetch_sub(1, Ordering::AcqRel);
                        let _ = reply.send(Err(EngineError::Step("no such encoder is here".into())));
                    }
                }
            }
            Command::SetLimits(wanted) => {
                self.limits = Limits {
                    max_rows: wanted.max_rows.clamp(1, self.ceiling.max_rows),
                    max_tokens: wanted.max_tokens.clamp(1, self.ceiling.max_tokens),
                    duty: if wanted.duty.is_nan() { 1.0 } else { wanted.duty.clamp(0.01, 1.0) },
                };
            }
            Command::Abort => {
                for resident in &mut self.residents {
                    resident.fail_all(&EngineError::Aborted);
                }
                self.encoders.iter_mut().for_each(|e| e.fail_all(&EngineError::Aborted));
            }
        }
    }

    /// Who has work, by number as in `turns`, each with the tier of its first request.
    fn at_work(&self) -> impl Iterator<Item = (usize, Option<Tier>)> {
        let decoders = self.residents.iter().map(|r| (r.has_work(), r.first_rank()));
        let encoders = self.encoders.iter().map(|e| (e.first_rank().is_some(), e.first_rank()));
        let all = decoders.chain(encoders).enumerate();
        all.filter(|(_, (works, _))| *works).map(|(number, (_, rank))| (number, rank.map(|r| r.tier)))
    }

    /// Whose turn it is: that of the highest tier, and of these the one that has waited longest since its last step. So
    /// neither a long conversation nor many texts keep the others waiting for more than a step.
    fn next(&self) -> Option<usize> {
        self.at_work().min_by_key(|(number, tier)| (*tier, self.turns[*number])).map(|(number, _)| number)
    }

    /// One step of the resident whose turn it is.
    fn step_next(&mut self) -> Option<StepReport> {
        let Limits { max_rows, max_tokens, .. } = self.limits;
        let mut number = self.next()?;
        let alone = self.at_work().nth(1).is_none();
        // Steps do not overlap: one that is in flight ends before another resident's begins.
        if number >= self.residents.len()
            && let Some(in_flight) = self.residents.iter().position(Resident::is_in_flight)
        {
            number = in_flight;
        }
        let fault = self.faults.due(self.steps);
        self.steps += 1;
        self.turns[number] = self.steps;
        let Some(resident) = self.residents.get_mut(number) else {
            return self.encoders[number - self.residents.len()].step(max_tokens, fault);
        };
        // A pause between steps is one for the device. A token that is not known yet is no beginning of a guess.
        let free = !resident.is_suspect() && !resident.guesses();
        let ahead = self.run_ahead && self.limits.duty >= 1.0 && free && alone;
        if let Some(fault) = fault {
            resident.order(fault);
        }
        match catch_unwind(AssertUnwindSafe(|| resident.step(max_rows, max_tokens, ahead))) {
            Ok(report) => report,
            Err(panic) => {
                let error = EngineError::of_panic(&*panic);
                tracing::error!(%error, "a step panicked; its requests are ended");
                resident.fail_all(&error);
                resident.forget_flight();
                None
            }
        }
    }

    /// Ends everything when a device serves nobody any more; true when it does not.
    fn end_lost(&mut self) -> bool {
        self.residents.iter_mut().for_each(Resident::try_suspect);
        let lost = self.residents.iter().find_map(Resident::lost);
        let lost = lost.or_else(|| self.encoders.iter().find_map(EncoderResident::lost));
        let Some(error) = lost.cloned() else { return false };
        tracing::error!(%error, "the engine ends");
        self.stats.ready.store(false, Ordering::Release);
        self.residents.iter_mut().for_each(|r| r.fail_all(&error));
        self.encoders.iter_mut().for_each(|e| e.fail_all(&error));
        // Of a step that was launched behind the one that showed it, nobody will hear.
        self.observed.abandon(self.clock.now());
        true
    }

    fn record(&self, report: &StepReport) {
        let s = &self.stats;
        s.steps.fetch_add(1, Ordering::Relaxed);
        s.last_rows.store(report.rows, Ordering::Relaxed);
        s.max_rows.fetch_max(report.rows, Ordering::Relaxed);
        s.max_sequences.fetch_max(report.sequences, Ordering::Relaxed);
    }

    /// The rest of a duty cycle: at duty d a step of length t is followed by t·(1 − d)/d of nothing.
    fn pause(&self, report: &StepReport) {
        if self.limits.duty < 1.0 {
            let step = report.ended.since(report.started);
            std::thread::sleep(step.mul_f64(1.0 / self.limits.duty - 1.0).min(LONGEST_PAUSE));
        }
    }
}
