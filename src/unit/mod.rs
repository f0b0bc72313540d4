//! L4b. The engines of one unit (one per device) and which of them gets the next request.
//!
//! A replica holds the whole model; a request goes to the one with the most free capacity. The
//! unit also knows whether it may take requests at all: loading, ready, draining.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::clock::Clock;
use crate::energy::Ledger;
use crate::engine::event::{EngineError, EventStream, GenerateRequest};
use crate::engine::stats::EngineStats;
use crate::engine::worker::{EngineHandle, Limits};

/// Longest silence of a worker before it counts as hung: well above the longest step, a full prefill chunk
/// of a large model on a slow device.
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
    replicas: OnceLock<Vec<EngineHandle>>,
    ledger: OnceLock<Arc<Ledger>>,
    state: AtomicU8,
}

impl Unit {
    /// A unit that is still loading; [`Unit::open`] gives it its engines.
    pub fn new(clock: Clock) -> Arc<Unit> {
        Arc::new(Unit { clock, replicas: OnceLock::new(), ledger: OnceLock::new(), state: AtomicU8::new(0) })
    }

    /// Ends the loading state. The second call has no effect.
    pub fn open(&self, replicas: Vec<EngineHandle>) {
        if self.replicas.set(replicas).is_ok() {
            // A drain that began while loading stays a drain.
            let _ = self.state.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    /// From now on the joules of requests are counted there. The second call has no effect.
    pub fn meter(&self, ledger: Arc<Ledger>) {
        let _ = self.ledger.set(ledger);
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
        self.replicas().iter().for_each(EngineHandle::abort);
    }

    pub fn set_limits(&self, limits: Limits) {
        self.replicas().iter().for_each(|r| r.set_limits(limits));
    }

    pub fn replicas(&self) -> &[EngineHandle] {
        self.replicas.get().map_or(&[], Vec::as_slice)
    }

    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Requests running or waiting, over all engines.
    pub fn live_requests(&self) -> usize {
        self.replicas().iter().map(|r| load(r.stats())).sum()
    }

    /// True when requests are taken and every engine gave a fresh sign of life.
    pub fn is_ready(&self) -> bool {
        self.state() == State::Ready
            && self.replicas().iter().any(|r| r.stats().is_alive(self.clock.now(), HEARTBEAT_MAX_AGE))
    }

    /// Gives the request to the engine with the fewest live requests.
    ///
    /// # Errors
    /// `Loading`, `Stopping`, or what the chosen engine answers.
    pub fn submit(&self, request: GenerateRequest) -> Result<EventStream, EngineError> {
        match self.state() {
            State::Loading => return Err(EngineError::Loading),
            State::Draining => return Err(EngineError::Stopping),
            State::Ready => {}
        }
        let now = self.clock.now();
        let engine = self
            .replicas()
            .iter()
            .filter(|r| r.stats().is_alive(now, HEARTBEAT_MAX_AGE))
            .min_by_key(|r| load(r.stats()))
            .ok_or_else(|| EngineError::Dead("no engine gave a sign of life".into()))?;
        engine.submit(request)
    }
}

fn load(stats: &EngineStats) -> usize {
    stats.running.load(Ordering::Acquire) + stats.waiting.load(Ordering::Acquire)
}
