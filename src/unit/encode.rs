//! Texts on their way to an encoder, whichever replica computes them.
//!
//! A replica that is lost on the way is replaced: nothing was told yet, so the same texts go to another one. Dropping
//! the answer cancels.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::oneshot;

use super::answer::MOST_OUTLIVED;
use super::{State, Unit};
use crate::engine::encode::{EncodeRequest, EncodeResult};
use crate::engine::event::EngineError;

/// Vectors to come.
pub struct EncodeAnswer {
    unit: Arc<Unit>,
    replica: usize,
    reply: oneshot::Receiver<EncodeResult>,
    request: EncodeRequest,
}

impl Unit {
    /// Gives texts to the replica that has the fewest. Dropping the answer cancels them.
    ///
    /// # Errors
    /// `Loading`, `Stopping`, or what the chosen engine answers.
    pub fn encode(self: &Arc<Unit>, request: EncodeRequest) -> Result<EncodeAnswer, EngineError> {
        match self.state() {
            State::Loading => return Err(EngineError::Loading),
            State::Draining => return Err(EngineError::Stopping),
            State::Ready => {}
        }
        let (replica, reply) = self.send_texts(&request)?;
        Ok(EncodeAnswer { unit: self.clone(), replica, reply, request })
    }

    fn send_texts(
        &self,
        request: &EncodeRequest,
    ) -> Result<(usize, oneshot::Receiver<EncodeResult>), EngineError> {
        loop {
            let texts =
                |stats: &crate::engine::stats::EngineStats| stats.encoder_texts.load(Ordering::Acquire);
            let least = self.serving().min_by_key(|(_, r)| (texts(r.stats()), r.load()));
            let Some((replica, found)) = least else { return Err(self.why_down()) };
            match found.engine.encode(request.clone()) {
                Ok(reply) => {
                    found.placed.fetch_add(1, Ordering::Relaxed);
                    return Ok((replica, reply));
                }
                // It has ended, and nobody had noticed.
                Err(error) if error.is_of_the_device() => self.take_out(replica, &error.to_string()),
                Err(error) => return Err(error),
            }
        }
    }
}

impl EncodeAnswer {
    /// The vectors.
    ///
    /// # Errors
    /// What the step failed with; a device's failure only when no other is left, or two were lost over these texts.
    pub async fn wait(mut self) -> EncodeResult {
        let mut outlived = 0;
        loop {
            let replica = &self.unit.replicas()[self.replica];
            let lost = replica.when_lost();
            let gone = || EngineError::Dead("its thread ended".into());
            let result = tokio::select! {
                biased;
                reply = &mut self.reply => reply.unwrap_or_else(|_| Err(gone())),
                () = lost => Err(gone()),
            };
            let error = match result {
                Err(error) if error.is_of_the_device() => error,
                // A replica that is taken out alive ends what it has by itself.
                Err(EngineError::Aborted) if !replica.is_in() && !self.unit.was_aborted() => gone(),
                result => return result,
            };
            self.unit.take_out(self.replica, &error.to_string());
            outlived += 1;
            if outlived > MOST_OUTLIVED {
                tracing::error!(replica = self.replica, "texts that two engines were lost with are given up");
                return Err(error);
            }
            if let Some(ledger) = self.unit.ledger() {
                ledger.forfeit(self.request.account, self.replica);
            }
            let from = self.replica;
            (self.replica, self.reply) = self.unit.send_texts(&self.request)?;
            self.unit.replicas()[from].moved.fetch_add(1, Ordering::Relaxed);
        }
    }
}
