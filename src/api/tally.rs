//! What one generation leaves in the metrics, whether it is streamed, collected or abandoned.
//!
//! Sees each delta once, as it passes; settles at the end. Dropped before that, the choices that had
//! not ended count as aborted. No lock and no timer: a clock reading a burst, atomics a piece of text.

use std::sync::Arc;

use futures_core::Stream;

use crate::clock::Tick;
use crate::energy::RequestEnergy;
use crate::metrics::{Ended, Recorded};
use crate::service::{Delta, Finish, Timings, Usage};

/// A running generation as the answers of this layer need it.
pub trait Source: Stream<Item = Delta> + Unpin + Send + 'static {
    fn usage(&self) -> Usage;
    fn timings(&self) -> Timings;
    /// `None` without a meter.
    fn energy(&self) -> Option<RequestEnergy>;
}

pub struct Tally {
    recorded: Arc<Recorded>,
    /// By choice: when its last text came.
    last_text: Vec<Option<Tick>>,
    /// Choices that have not ended.
    open: usize,
}

impl Tally {
    pub fn new(recorded: Arc<Recorded>, choices: usize) -> Tally {
        Tally { recorded, last_text: vec![None; choices], open: choices }
    }

    pub fn saw(&mut self, delta: &Delta, now: Tick) {
        match delta {
            Delta::Text { choice, .. }
            | Delta::Reasoning { choice, .. }
            | Delta::Call { choice, .. }
            | Delta::Arguments { choice, .. } => {
                if let Some(last) = self.last_text.get_mut(*choice)
                    && let Some(before) = last.replace(now)
                {
                    self.recorded.inter_token.observe(now.since(before).as_secs_f64());
                }
            }
            Delta::Finish { reason, .. } => {
                let how = match reason {
                    Finish::Length => Ended::Length,
                    _ => Ended::Stop,
                };
                self.end(how, 1);
            }
            // The time between two attempts is not one between tokens.
            Delta::Anew { choice } => {
                if let Some(last) = self.last_text.get_mut(*choice) {
                    *last = None;
                }
            }
            Delta::Failed(_) => self.failed(),
        }
    }

    /// The choices that are left have failed.
    pub fn failed(&mut self) {
        self.end(Ended::Error, self.open);
    }

    fn end(&mut self, how: Ended, choices: usize) {
        let choices = choices.min(self.open);
        self.open -= choices;
        self.recorded.ended(how, choices as u64);
    }

    /// After the last delta.
    pub fn settle(&mut self, usage: Usage, timings: Timings) {
        let r = &self.recorded;
        r.request_prompt_tokens.observe(usage.prompt_tokens as f64);
        r.request_generated_tokens.observe(usage.completion_tokens as f64);
        for (histogram, seconds) in [
            (&r.queue, timings.queue),
            (&r.time_to_first_token, timings.time_to_first_token),
            (&r.prefill, timings.prefill),
            (&r.decode, timings.decode),
            (&r.end_to_end, timings.end_to_end),
        ] {
            if let Some(seconds) = seconds {
                histogram.observe(seconds);
            }
        }
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.end(Ended::Abort, self.open);
    }
}
