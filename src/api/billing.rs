//! What a request costs its caller: whatever becomes of it, its tokens and joules are settled when it is dropped.
//!
//! The joules of its end are an estimate; the store's thread asks for the settled ones a window later.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;

use crate::access::{Costs, Unsettled};
use crate::api::auth::Caller;
use crate::api::tally::Source;
use crate::clock::{Clock, Tick};
use crate::energy::{AccountHandle, RequestEnergy};
use crate::error::{Class, Classified};
use crate::service::{Delta, Embedding, Generation, ServiceError, Timings, Usage};
use crate::store::{Energy, Later, Settled, UsageRecord};

/// A generation with the one who asked for it.
pub struct Billed {
    generation: Generation,
    caller: Caller,
    clock: Clock,
    begun: Tick,
    /// How the choices that have ended did.
    finish: Option<&'static str>,
    open: usize,
}

impl Billed {
    pub fn new(generation: Generation, caller: Caller, clock: &Clock) -> Billed {
        let (clock, open) = (clock.clone(), generation.choices());
        let begun = clock.now();
        Billed { generation, caller, clock, begun, finish: None, open }
    }

    fn saw(&mut self, delta: &Delta) {
        match delta {
            Delta::Finish { reason, .. } => {
                self.open = self.open.saturating_sub(1);
                self.finish.get_or_insert(reason.as_str());
            }
            Delta::Failed(error) => {
                self.open = 0;
                // What fails by what the client asked for has its price.
                let own = error.class() != Class::InvalidRequest;
                self.finish = Some(if own { "error" } else { "refused" });
            }
            _ => {}
        }
    }
}

impl Stream for Billed {
    type Item = Delta;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Delta>> {
        let polled = Pin::new(&mut self.generation).poll_next(cx);
        if let Poll::Ready(Some(delta)) = &polled {
            self.saw(delta);
        }
        polled
    }
}

impl Source for Billed {
    fn usage(&self) -> Usage {
        self.generation.usage()
    }
    fn timings(&self) -> Timings {
        self.generation.timings()
    }
    fn energy(&self) -> Option<RequestEnergy> {
        self.generation.energy()
    }
}

fn noted(energy: &RequestEnergy) -> Energy {
    Energy {
        prefill_joules: energy.prefill.0,
        decode_joules: energy.decode.0,
        method: energy.method.to_string(),
        boundary: energy.boundary.as_str(),
    }
}

/// Asks the meters until they know, and tells the caller's account what it was told too little or too much; and everybody
/// what tokens cost: the estimate at a request's end knows nothing of a load that has just begun.
fn later(meters: Arc<AccountHandle>, mut unsettled: Option<Unsettled>, costs: Costs, usage: Usage) -> Later {
    let computed = usage.prompt_tokens.saturating_sub(usage.cached_tokens);
    // An answer's first token is what the prompt's last step gave.
    let (prompt, answer) = (computed as u64, usage.completion_tokens.saturating_sub(1) as u64);
    Box::new(move || match meters.told().filter(|energy| energy.settled) {
        Some(energy) => {
            costs.note((energy.prefill.0, prompt), (energy.decode.0, answer));
            if let Some(unsettled) = unsettled.take() {
                unsettled.settle(energy.total().0);
            }
            Settled::Now(noted(&energy))
        }
        None => Settled::NotYet,
    })
}

impl Drop for Billed {
    fn drop(&mut self) {
        let (usage, timings) = (self.generation.usage(), self.generation.timings());
        let energy = self.generation.energy();
        let mut meters = self.generation.take_account().map(Arc::new);
        let mut usage = usage;
        if !self.generation.has_begun() {
            // It left the queue as it came.
            (usage.prompt_tokens, meters) = (0, None);
        }
        let bill = Bill {
            caller: &self.caller,
            model: &self.generation.model,
            tier: self.generation.tier.as_str(),
            usage,
            energy,
            first_token_seconds: timings.time_to_first_token,
            seconds: timings.end_to_end.unwrap_or(self.clock.now().since(self.begun).as_secs_f64()),
            finish: if self.open > 0 { "abort" } else { self.finish.unwrap_or("abort") },
        };
        bill.settle(meters);
    }
}

/// Texts at an encoder with the one who asked for them.
pub struct BilledTexts {
    caller: Caller,
    model: String,
    tier: &'static str,
    tokens: usize,
    meters: Option<Arc<AccountHandle>>,
    clock: Clock,
    begun: Tick,
    finish: &'static str,
}

impl BilledTexts {
    pub fn new(texts: &Embedding, caller: Caller, clock: &Clock) -> BilledTexts {
        BilledTexts {
            caller,
            model: texts.model.clone(),
            tier: texts.tier.as_str(),
            tokens: texts.prompt_tokens,
            meters: texts.meters(),
            clock: clock.clone(),
            begun: clock.now(),
            finish: "abort",
        }
    }

    /// Hands on what came of them; the bill is settled.
    pub fn ended<T>(mut self, result: Result<T, ServiceError>) -> Result<T, ServiceError> {
        self.finish = if result.is_ok() { "stop" } else { "error" };
        result
    }
}

impl Drop for BilledTexts {
    fn drop(&mut self) {
        let bill = Bill {
            caller: &self.caller,
            model: &self.model,
            tier: self.tier,
            usage: Usage { prompt_tokens: self.tokens, ..Usage::default() },
            energy: self.meters.as_ref().and_then(|meters| meters.energy()),
            first_token_seconds: None,
            seconds: self.clock.now().since(self.begun).as_secs_f64(),
            finish: self.finish,
        };
        bill.settle(self.meters.take().inspect(|meters| meters.close()));
    }
}

/// What a request came to.
struct Bill<'a> {
    caller: &'a Caller,
    model: &'a str,
    tier: &'static str,
    usage: Usage,
    energy: Option<RequestEnergy>,
    first_token_seconds: Option<f64>,
    seconds: f64,
    finish: &'static str,
}

impl Bill<'_> {
    /// Gives back what was set aside and not used, and leaves a record.
    fn settle(self, meters: Option<Arc<AccountHandle>>) {
        let joules = self.energy.map_or(0.0, |energy| energy.total().0);
        let tokens = (self.usage.prompt_tokens + self.usage.completion_tokens) as u64;
        let access = self.caller.access();
        // What fails by our fault is not counted.
        let counted = if self.finish == "error" { 0 } else { tokens };
        let unsettled = self.caller.take_reservation().map(|reserved| reserved.settle(counted, joules));
        if access.store().is_none() {
            return;
        }
        let record = UsageRecord {
            ended: access.clock().unix_seconds(),
            key: self.caller.id().to_owned(),
            model: self.model.to_owned(),
            endpoint: self.caller.path().to_owned(),
            tier: self.tier,
            prompt_tokens: self.usage.prompt_tokens as u64,
            cached_tokens: self.usage.cached_tokens as u64,
            completion_tokens: self.usage.completion_tokens as u64,
            energy: self.energy.as_ref().map(noted),
            first_token_seconds: self.first_token_seconds,
            seconds: self.seconds,
            finish: self.finish,
        };
        let costs = access.costs().clone();
        access.record(record, meters.map(|meters| later(meters, unsettled, costs, self.usage)));
    }
}
