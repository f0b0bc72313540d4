//! One thread per device: owns the residents, runs their steps one at a time, sends the events.
//!
//! [`EngineHandle`] is the other threads' end of it: submit, limits, drain, stop.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;

use crate::engine::event::{EngineError, EventSender, EventStream, GenerateRequest, event_channel};
use crate::engine::stats::EngineStats;

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

pub(crate) enum Command {
    Submit {
        request: Box<GenerateRequest>,
        events: EventSender,
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
    pub(crate) max_queue: usize,
}

impl EngineHandle {
    /// Queues a request. Dropping the stream cancels it.
    ///
    /// # Errors
    /// `QueueFull` when `max_queue` requests wait already, `Dead` when the worker has ended.
    pub fn submit(&self, request: GenerateRequest) -> Result<EventStream, EngineError> {
        let waiting = self.stats.waiting.load(Ordering::Acquire);
        if waiting >= self.max_queue {
            return Err(EngineError::QueueFull { waiting, limit: self.max_queue });
        }
        let (events, stream) = event_channel();
        self.stats.waiting.fetch_add(1, Ordering::AcqRel);
        self.commands
            .send(Command::Submit { request: Box::new(request), events })
            .map_err(|_| EngineError::Dead("its thread ended".into()))?;
        Ok(stream)
    }

    pub fn set_limits(&self, limits: Limits) {
        // A worker that has ended has no limits to set.
        let _ = self.commands.send(Command::SetLimits(limits));
    }

    pub fn abort(&self) {
        let _ = self.commands.send(Command::Abort);
    }

    pub fn stats(&self) -> &Arc<EngineStats> {
        &self.stats
    }
}
