//! The events of a request, whichever replica they come from.
//!
//! A replica that is lost before it has told anything is replaced: the same request, with the same seed, goes to
//! another one. What a client has been shown cannot be taken back, so later the loss is the end; a reader that shows
//! nothing yet says so by [`Answer::hold`] and then hears [`TokenEvent::Anew`]. Dropping it cancels.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use super::Unit;
use crate::engine::event::{EngineError, EventStream, GenerateRequest, TokenEvent};

pub struct Answer {
    pub(super) unit: Arc<Unit>,
    pub(super) replica: usize,
    pub(super) events: EventStream,
    pub(super) lost: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// To be asked once more; `None` once something was told for good.
    pub(super) again: Option<Box<GenerateRequest>>,
    /// What is told is not for good before [`Answer::shown`].
    pub(super) held: bool,
    /// It has run here: something was heard of it.
    pub(super) ran: bool,
    /// Engines that were lost while it ran there.
    pub(super) outlived: u32,
}

/// A request may itself be what an engine dies of (an operation that hangs, a fault that its prompt brings about). One
/// that two have not survived is not given a third.
pub(super) const MOST_OUTLIVED: u32 = 1;

impl Answer {
    /// The reader keeps what it hears to itself until it calls [`Answer::shown`]: until then the request may begin
    /// anew, which the reader hears as [`TokenEvent::Anew`].
    pub fn hold(&mut self) {
        self.held = true;
    }

    /// What was told has been shown to the client: from now on the loss of the replica is the end.
    pub fn shown(&mut self) {
        self.again = None;
    }

    /// The next event; `None` after the last.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<TokenEvent>> {
        loop {
            let error = match self.events.poll_next(cx) {
                // Nothing was told, and it is out: whatever it has left to say, another says it whole.
                _ if self.again.is_some() && self.why_out().is_some() => self.gone(),
                Poll::Ready(Some(TokenEvent::Failed(error))) if error.is_of_the_device() => *error,
                // A replica that is taken out alive ends what it has by itself.
                Poll::Ready(Some(TokenEvent::Failed(error)))
                    if *error == EngineError::Aborted
                        && self.why_out().is_some()
                        && !self.unit.was_aborted() =>
                {
                    self.gone()
                }
                Poll::Ready(event) => {
                    self.ran = true;
                    match event {
                        Some(TokenEvent::Admitted { .. }) => {}
                        Some(TokenEvent::Token { .. } | TokenEvent::Prompt(_)) if self.held => {}
                        _ => self.again = None,
                    }
                    return Poll::Ready(event);
                }
                Poll::Pending => match self.lost.as_mut().poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(()) => self.gone(),
                },
            };
            match self.move_on(error) {
                Ok(true) => return Poll::Ready(Some(TokenEvent::Anew)),
                Ok(false) => {}
                Err(error) => return Poll::Ready(Some(TokenEvent::failed(error))),
            }
        }
    }

    /// Why the replica was taken out, if it was.
    fn why_out(&self) -> Option<&str> {
        self.unit.replicas()[self.replica].why_out()
    }

    fn gone(&self) -> EngineError {
        EngineError::Dead(self.why_out().unwrap_or_default().to_string())
    }

    /// Asks another replica, if nothing was told for good and there is one; true when what was told so far is void.
    /// Also while the unit drains: the request was taken before that.
    fn move_on(&mut self, error: EngineError) -> Result<bool, EngineError> {
        let unit = self.unit.clone();
        unit.take_out(self.replica, &error.to_string());
        let Some(request) = self.again.take() else { return Err(error) };
        let outlived = self.outlived + u32::from(self.ran);
        if outlived > MOST_OUTLIVED {
            tracing::error!(replica = self.replica, "a request that two engines were lost with is given up");
            return Err(if unit.is_left() { error } else { unit.why_down() });
        }
        if let Some(ledger) = unit.ledger() {
            ledger.forfeit(request.account, self.replica);
        }
        let (from, held, told) = (self.replica, self.held, self.held && self.ran);
        // The unit's own answer tells more than that one replica is gone.
        *self = Answer { held, outlived, ..unit.send(*request)? };
        unit.replicas()[from].moved.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(from, to = self.replica, "a request goes on elsewhere");
        Ok(told)
    }
}
