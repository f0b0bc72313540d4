//! L4b. The engines of one unit (one per device) and which of them gets the next request.
//!
//! A replica holds the whole model; a request goes to the one that has seen its beginning, else to the one with
//! the most free capacity. A replica that fails is taken out, and its requests go on elsewhere while they can. The
//! unit also knows whether it may take requests at all: loading, ready, draining.

mod affinity;
mod answer;
mod encode;
mod replica;
mod watchdog;

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use affinity::Affinity;
pub use answer::Answer;
pub use encode::EncodeAnswer;
pub use replica::Replica;

use crate::clock::{Clock, Tick};
use crate::energy::Ledger;
use crate::engine::event::{EngineError, GenerateRequest};
use crate::engine::worker::{EngineHandle, Limits};
use crate::power::monitor::Monitor;

/// A prompt goes where its beginning was seen when that is at least this share of it.
const WORTH_FOLLOWING: f64 = 0.25;
/// And when the replica has at most so many requests more than the least loaded one, as a share of its places: what
/// a prefill saves is soon less than what a fuller step costs, or an idle device.
const MOST_AHEAD: f64 = 1.0 / 32.0;

/// Longest silence of a worker before it counts as hung, where nobody says otherwise: well above the longest step,
/// a full prefill chunk of a large model on a slow device.
pub const HEARTBEAT_MAX_AGE: Duration = Duration::from_secs(60);

/// Whether requests are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Loading,
    Ready,
    /// Finishing what runs; nothing new is taken.
    Draining,
}

/// The engines of this process. Cheap to clone behind an `Arc`.
pub struct Unit {
    clock: Clock,
    replicas: OnceLock<Vec<Replica>>,
    affinity: Mutex<Affinity>,
    ledger: OnceLock<Arc<Ledger>>,
    /// Boards whose faults are watched, where the ledger's meters are not theirs.
    boards: OnceLock<Arc<Monitor>>,
    state: AtomicU8,
    aborted: AtomicBool,
    /// Longest silence of a replica that still serves.
    patience: OnceLock<Duration>,
    /// Clock reading when the process last went on after it had stood still.
    silence_counts_from: AtomicU64,
}

impl Unit {
    /// A unit that is still loading; [`Unit::open`] gives it its engines.
    pub fn new(clock: Clock) -> Arc<Unit> {
        Arc::new(Unit {
            clock,
            replicas: OnceLock::new(),
            affinity: Mutex::default(),
            ledger: OnceLock::new(),
            boards: OnceLock::new(),
            state: AtomicU8::new(0),
            aborted: AtomicBool::new(false),
            patience: OnceLock::new(),
            silence_counts_from: AtomicU64::new(0),
        })
    }

    /// Ends the loading state. The second call has no effect.
    pub fn open(&self, replicas: Vec<EngineHandle>) {
        if self.replicas.set(replicas.into_iter().map(Replica::new).collect()).is_ok() {
            // A drain that began while loading stays a drain.
            let _ = self.state.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    /// From now on the joules of requests are counted there. The second call has no effect.
    pub fn meter(&self, ledger: Arc<Ledger>) {
        let _ = self.ledger.set(ledger);
    }

    /// Faults of these boards take their engines out too; their joules count nowhere. The second call has no effect.
    pub fn watch_boards(&self, boards: Arc<Monitor>) {
        let _ = self.boards.set(boards);
    }

    /// Where joules are counted, if there is a meter.
    pub fn ledger(&self) -> Option<&Arc<Ledger>> {
        self.ledger.get()
    }

    pub fn state(&self) -> State {
        match self.state.load(Ordering::Acquire) {
            0 => State::Loading,
            1 => State::Ready,
            _ => State::Draining,
        }
    }

    /// Takes no new requests from now on; those running go on.
    pub fn drain(&self) {
        self.state.store(2, Ordering::Release);
    }

    /// Ends every live request with `EngineError::Aborted`.
    pub fn abort(&self) {
        self.aborted.store(true, Ordering::Release);
        self.replicas().iter().for_each(|r| r.engine.abort());
    }

    fn was_aborted(&self) -> bool {
        self.aborted.load(Ordering::Acquire)
    }

    pub fn set_limits(&self, limits: Limits) {
        self.replicas().iter().for_each(|r| r.engine.set_limits(limits));
    }

    pub fn replicas(&self) -> &[Replica] {
        self.replicas.get().map_or(&[], Vec::as_slice)
    }

    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Requests running or waiting, over all engines that serve.
    pub fn live_requests(&self) -> usize {
        self.serving().map(|(_, r)| r.load() + r.stats().encodes.load(Ordering::Acquire)).sum()
    }

    /// True when requests are taken and an engine gave a fresh sign of life.
    pub fn is_ready(&self) -> bool {
        self.state() == State::Ready && self.is_left()
    }

    /// Whether any replica serves.
    fn is_left(&self) -> bool {
        self.serving().next().is_some()
    }

    /// Replicas that take requests, with their numbers.
    fn serving(&self) -> impl Iterator<Item = (usize, &Replica)> {
        let (now, patience) = (self.clock.now(), self.patience.get().copied().unwrap_or(HEARTBEAT_MAX_AGE));
        let alive = move |r: &Replica| r.is_in() && self.is_alive(r, now, patience);
        self.replicas().iter().enumerate().filter(move |(_, r)| alive(r))
    }

    fn is_alive(&self, replica: &Replica, now: Tick, patience: Duration) -> bool {
        replica.stats().is_alive(now, Tick(self.silence_counts_from.load(Ordering::Acquire)), patience)
    }

    /// Takes a replica out for good: its requests go on elsewhere, or end.
    pub fn take_out(&self, replica: usize, why: &str) {
        let Some(found) = self.replicas().get(replica) else { return };
        if found.take_out(why.to_string()) {
            tracing::error!(replica, why, "a replica is taken out");
            // For one that only seems dead: it ends what it has, and nobody listens.
            found.engine.abort();
            if let Some(ledger) = self.ledger() {
                ledger.disown(replica);
            }
        }
    }

    /// Gives the request to a replica. Dropping the answer cancels it.
    ///
    /// # Errors
    /// `Loading`, `Stopping`, or what the chosen engine answers.
    pub fn submit(self: &Arc<Unit>, request: GenerateRequest) -> Result<Answer, EngineError> {
        match self.state() {
            State::Loading => return Err(EngineError::Loading),
            State::Draining => return Err(EngineError::Stopping),
            State::Ready => {}
        }
        self.send(request)
    }

    /// The same, to the replica of another answer while that serves: choices of one request share its blocks.
    ///
    /// # Errors
    /// As [`Unit::submit`].
    pub fn submit_beside(
        self: &Arc<Unit>,
        request: GenerateRequest,
        other: &Answer,
    ) -> Result<Answer, EngineError> {
        match self.replicas().get(other.replica).filter(|r| r.is_in()) {
            Some(_) => self.send_to(request, other.replica),
            None => self.submit(request),
        }
    }

    /// For a request that was taken already.
    fn send(self: &Arc<Unit>, request: GenerateRequest) -> Result<Answer, EngineError> {
        let replica = self.place(&request)?;
        self.send_to(request, replica)
    }

    fn send_to(self: &Arc<Unit>, request: GenerateRequest, replica: usize) -> Result<Answer, EngineError> {
        let again = Box::new(request.again());
        let found = &self.replicas()[replica];
        let lost = Box::pin(found.when_lost());
        match (found.engine.submit(request), again) {
            (Ok(events), again) => {
                found.placed.fetch_add(1, Ordering::Relaxed);
                let unit = self.clone();
                Ok(Answer {
                    unit,
                    replica,
                    events,
                    lost,
                    again: Some(again),
                    held: false,
                    ran: false,
                    outlived: 0,
                })
            }
            // It has ended, and nobody had noticed.
            (Err(error), again) if error.is_of_the_device() => {
                self.take_out(replica, &error.to_string());
                self.send(*again)
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Why no engine serves: what each was taken out for.
    pub fn why_down(&self) -> EngineError {
        let why = |r: &Replica| r.why_out().unwrap_or("no sign of life").to_string();
        let each = self.replicas().iter().enumerate().map(|(i, r)| format!("engine {i}: {}", why(r)));
        EngineError::Dead(format!("no engine is left ({})", each.collect::<Vec<_>>().join("; ")))
    }

    /// The replica for a request: the one that has seen its beginning, unless that is far busier than another or
    /// its cache has no room for the prompt; else the one with the most places and pages free.
    fn place(&self, request: &GenerateRequest) -> Result<usize, EngineError> {
        let mut serving: Vec<_> = self.serving().collect();
        // Where one has places, a full queue is no place to go, however few pages it holds.
        if serving.iter().any(|(_, r)| r.has_places()) {
            serving.retain(|(_, r)| r.has_places());
        }
        let least = serving.iter().min_by(|(_, a), (_, b)| a.taken().total_cmp(&b.taken()));
        let Some(&(least, free)) = least else { return Err(self.why_down()) };
        let (stats, salt) = (free.stats(), request.cache_salt);
        if self.replicas().len() < 2 || !stats.prefix_caching.load(Ordering::Acquire) {
            return Ok(least);
        }
        let block = stats.block_size.load(Ordering::Acquire);
        let fewest = serving.iter().map(|(_, r)| r.load()).min().unwrap_or(0);
        let most = fewest + (free.engine.slots() as f64 * MOST_AHEAD) as usize;
        let fits = |r: &Replica| r.load() <= most && r.room() >= request.prompt.len();
        serving.retain(|(_, r)| fits(r));
        let serves = |index| serving.iter().any(|(i, _)| *i == index);
        let mut affinity = self.affinity.lock().unwrap_or_else(PoisonError::into_inner);
        let followed = affinity
            .find(&request.prompt, block, salt, serves)
            .filter(|(_, tokens)| *tokens as f64 >= request.prompt.len() as f64 * WORTH_FOLLOWING);
        let chosen = followed.map_or(least, |(replica, _)| replica);
        affinity.note(&request.prompt, block, salt, chosen);
        Ok(chosen)
    }
}

#[cfg(test)]
mod tests;
