//! The whole answer of a request without `stream`: all deltas, then one JSON body.
//!
//! The future is dropped when the client leaves (hyper reads the end of its connection), and with it
//! the generation.

use std::pin::Pin;

use axum::Json;
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};

use crate::api::chunk::{Identity, Shape};
use crate::api::error::ApiError;
use crate::api::logprobs;
use crate::api::tally::{Source, Tally};
use crate::clock::Clock;
use crate::energy::RequestEnergy;
use crate::quantity::Joules;
use crate::service::collected::{CollectedCall, CollectedChoice};
use crate::service::{self, Delta};
use crate::wire::response::{
    ChatChoice, ChatCompletion, ChatMessage, CompletionTokensDetails, Energy, FunctionCall, TextChoice,
    TextCompletion, ToolCall, Usage,
};

/// Joules of the request, as in `usage.energy`.
pub const ENERGY_JOULES: HeaderName = HeaderName::from_static("x-energy-joules");

/// What a collected answer is made of.
pub struct CollectParts<G> {
    pub generation: G,
    pub tally: Tally,
    pub clock: Clock,
    pub shape: Shape,
    pub identity: Identity,
    pub choices: usize,
    pub with_logprobs: bool,
}

/// # Errors
/// What the generation failed with; text that came before is not told.
pub async fn respond<G: Source>(mut parts: CollectParts<G>) -> Result<Response, ApiError> {
    let mut choices = CollectedChoice::several(parts.choices);
    while let Some(delta) = next(&mut parts.generation).await {
        parts.tally.saw(&delta, parts.clock.now());
        CollectedChoice::take(&mut choices, delta)?;
    }
    let usage = parts.generation.usage();
    parts.tally.settle(usage, parts.generation.timings());
    let usage = wire_usage(usage, parts.generation.energy());
    let joules = usage.energy.as_ref().map(|e| HeaderValue::try_from(e.joules.to_string()));
    let with_logprobs = parts.with_logprobs;
    let mut response = match parts.shape {
        Shape::Chat => Json(chat(parts.identity, choices, usage, with_logprobs)).into_response(),
        Shape::Text => Json(text(parts.identity, choices, usage, with_logprobs)).into_response(),
    };
    if let Some(Ok(joules)) = joules {
        response.headers_mut().insert(ENERGY_JOULES, joules);
    }
    Ok(response)
}

/// Joules as the wire has them, to the microjoule.
pub fn wire_energy(energy: RequestEnergy) -> Energy {
    let rounded = |joules: Joules| (joules.0 * 1e6).round() / 1e6;
    Energy {
        joules: rounded(energy.total()),
        prefill_joules: rounded(energy.prefill),
        decode_joules: rounded(energy.decode),
        method: energy.method.to_string(),
        boundary: energy.boundary.as_str().into(),
        settled: energy.settled,
    }
}

/// Counts and joules as the wire has them.
pub fn wire_usage(usage: service::Usage, energy: Option<RequestEnergy>) -> Usage {
    Usage {
        energy: energy.map(wire_energy),
        completion_tokens_details: CompletionTokensDetails {
            reasoning_tokens: usage.reasoning_tokens,
            accepted_prediction_tokens: usage.right_guesses,
            rejected_prediction_tokens: usage.wrong_guesses,
        },
        ..Usage::new(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
    }
}

async fn next<G: Source>(generation: &mut G) -> Option<Delta> {
    std::future::poll_fn(|cx| Pin::new(&mut *generation).poll_next(cx)).await
}

fn chat(
    identity: Identity,
    choices: Vec<CollectedChoice>,
    usage: Usage,
    with_logprobs: bool,
) -> ChatCompletion {
    let choices = choices.into_iter().enumerate().map(|(index, choice)| ChatChoice {
        index,
        message: ChatMessage {
            role: "assistant".into(),
            content: Some(choice.text).filter(|text| choice.calls.is_empty() || !text.is_empty()),
            tool_calls: choice.calls.into_iter().map(tool_call).collect(),
            refusal: None,
            reasoning_content: Some(choice.reasoning.clone()).filter(|r| !r.is_empty()),
            reasoning: Some(choice.reasoning).filter(|r| !r.is_empty()),
        },
        logprobs: with_logprobs.then(|| logprobs::chat(choice.logprobs)),
        finish_reason: choice.finish.map(|finish| finish.as_str().into()),
    });
    ChatCompletion {
        id: identity.id,
        object: "chat.completion".into(),
        created: identity.created,
        model: identity.model,
        choices: choices.collect(),
        usage,
        service_tier: identity.service_tier.map(Into::into),
        system_fingerprint: identity.system_fingerprint,
    }
}

fn tool_call(call: CollectedCall) -> ToolCall {
    ToolCall {
        index: None,
        id: Some(call.id),
        kind: Some("function".into()),
        function: FunctionCall { name: Some(call.name), arguments: call.arguments },
    }
}

fn text(
    identity: Identity,
    choices: Vec<CollectedChoice>,
    usage: Usage,
    with_logprobs: bool,
) -> TextCompletion {
    let choices = choices.into_iter().enumerate().map(|(index, choice)| TextChoice {
        index,
        text: choice.text,
        logprobs: with_logprobs.then(|| logprobs::text(choice.logprobs, &mut 0)),
        finish_reason: choice.finish.map(|finish| finish.as_str().into()),
    });
    TextCompletion {
        id: identity.id,
        object: "text_completion".into(),
        created: identity.created,
        model: identity.model,
        choices: choices.collect(),
        usage: Some(usage),
        service_tier: identity.service_tier.map(Into::into),
        system_fingerprint: identity.system_fingerprint,
    }
}
