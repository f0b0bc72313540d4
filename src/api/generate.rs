//! What `/v1/chat/completions` and `/v1/completions` have in common: from a body to an answer.
//!
//! The body is read within bounds; parsing, templates and tokenising run off the runtime's threads, a
//! few at a time, so that one long prompt delays nobody's tokens. Then the generation is streamed or
//! collected. A request that is abandoned on the way is dropped, which cancels it.

use std::panic::resume_unwind;
use std::sync::Arc;

use axum::extract::Request;
use axum::response::Response;

use crate::api::ApiState;
use crate::api::auth::Caller;
use crate::api::billing::Billed;
use crate::api::chunk::{ChunkWriter, Identity, Shape};
use crate::api::collect::{self, CollectParts};
use crate::api::envelope::random_hex;
use crate::api::error::ApiError;
use crate::api::stream::{self, StreamParts};
use crate::api::tally::Tally;
use crate::service::{Generation, ServiceError};
use crate::unit;
use crate::wire::request::Parameters;

/// What of a request decides the form of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    pub stream: bool,
    pub include_usage: bool,
    pub with_logprobs: bool,
}

impl Form {
    pub fn of(parameters: &Parameters) -> Form {
        Form {
            stream: parameters.stream,
            include_usage: parameters.include_usage,
            with_logprobs: parameters.logprobs.is_some(),
        }
    }
}

/// Refuses inference before its body is read while the unit takes none.
pub fn check_open(state: &ApiState) -> Result<(), ApiError> {
    match state.service.unit().state() {
        unit::State::Ready => Ok(()),
        unit::State::Loading => Err(ApiError::loading()),
        unit::State::Draining => Err(ApiError::draining()),
    }
}

/// Reads the body and runs `work` on it and the service, where it may take its time.
///
/// # Errors
/// A body over its limits, and what `work` answers.
pub async fn with_body<T: Send + 'static>(
    state: &Arc<ApiState>,
    request: Request,
    work: impl FnOnce(&ApiState, &[u8]) -> Result<T, ServiceError> + Send + 'static,
) -> Result<T, ApiError> {
    let (head, body) = request.into_parts();
    let body = state.config.body.read(&head.headers, body).await?;
    let permit = state.preparing.clone().acquire_owned().await;
    let permit = permit.map_err(|_| ApiError::draining())?;
    let state = state.clone();
    let task = tokio::task::spawn_blocking(move || {
        let result = work(&state, &body.bytes);
        drop((body, permit));
        result
    });
    match task.await {
        Ok(result) => result.map_err(ApiError::from),
        // The outermost layer answers it.
        Err(e) if e.is_panic() => resume_unwind(e.into_panic()),
        Err(_) => Err(ApiError::draining()),
    }
}

/// The answer to a request, in the form it asked for.
///
/// # Errors
/// What the generation failed with, when nothing was sent yet.
pub async fn answer(
    state: &ApiState,
    shape: Shape,
    form: Form,
    generation: Generation,
    caller: Caller,
) -> Result<Response, ApiError> {
    let identity = Identity {
        id: format!("{}{}", shape.id_prefix(), random_hex()),
        created: generation.created,
        model: generation.model.clone(),
        service_tier: Some(generation.tier.as_str()),
        system_fingerprint: state.config.system_fingerprint.clone(),
    };
    let choices = generation.choices();
    let generation = Billed::new(generation, caller, state.service.unit().clock());
    let with_logprobs = form.with_logprobs;
    let tally = Tally::new(state.metrics.recorded().clone(), choices);
    let clock = state.service.unit().clock().clone();
    if form.stream {
        return Ok(stream::respond(StreamParts {
            generation,
            writer: ChunkWriter::new(shape, &identity, choices, with_logprobs, form.include_usage),
            tally,
            clock,
            keep_alive: state.config.keep_alive,
            include_usage: form.include_usage,
        }));
    }
    let parts = CollectParts { generation, tally, clock, shape, identity, choices, with_logprobs };
    collect::respond(parts).await
}
