//! `POST /v1/embeddings`.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use axum::routing::post;
use serde::Serialize;

use crate::api::ApiState;
use crate::api::auth::Caller;
use crate::api::billing::BilledTexts;
use crate::api::collect::{ENERGY_JOULES, wire_energy};
use crate::api::error::ApiError;
use crate::api::generate::{check_open, with_body};
use crate::energy::RequestEnergy;
use crate::wire::embeddings::{Embedding, EmbeddingList, EmbeddingRequest, EmbeddingUsage, Vector};

pub fn routes() -> Router<Arc<ApiState>> {
    Router::new().route("/v1/embeddings", post(embed))
}

async fn embed(State(state): State<Arc<ApiState>>, request: Request) -> Result<Response, ApiError> {
    check_open(&state)?;
    let caller = Caller::of(&request);
    let asks = caller.clone();
    let (encoding, embedding) = with_body(&state, request, move |state, body| {
        let mut request = EmbeddingRequest::parse(body, state.config.unknown_parameters)?;
        asks.permit_tier(state, &mut request.tier)?;
        Ok((request.encoding, state.service.embed(&request, &|encoder, size| asks.admit(encoder, size))?))
    })
    .await?;
    let bill = BilledTexts::new(&embedding, caller, state.service.unit().clock());
    let (model, tokens) = (embedding.model.clone(), embedding.prompt_tokens);
    let embedded = bill.ended(embedding.vectors().await)?;
    let usage = usage(tokens, embedded.energy);
    respond(usage, move |usage| EmbeddingList {
        object: "list".into(),
        data: embedded
            .of_texts
            .into_iter()
            .enumerate()
            .map(|(index, numbers)| Embedding {
                object: "embedding".into(),
                index,
                embedding: Vector::new(numbers, encoding),
            })
            .collect(),
        model,
        usage,
    })
    .await
}

/// Counts and joules of a request without completion.
pub(super) fn usage(tokens: usize, energy: Option<RequestEnergy>) -> EmbeddingUsage {
    EmbeddingUsage { prompt_tokens: tokens, total_tokens: tokens, energy: energy.map(wire_energy) }
}

/// The answer as JSON. Millions of numbers take their time to be written, so not on the runtime's threads.
///
/// # Errors
/// A writer that failed.
pub(super) async fn respond<T: Serialize>(
    usage: EmbeddingUsage,
    body: impl FnOnce(EmbeddingUsage) -> T + Send + 'static,
) -> Result<Response, ApiError> {
    let joules = usage.energy.as_ref().and_then(|e| HeaderValue::try_from(e.joules.to_string()).ok());
    let written = tokio::task::spawn_blocking(move || serde_json::to_vec(&body(usage)));
    let bytes = written.await.ok().and_then(Result::ok);
    let bytes = bytes.ok_or_else(|| ApiError::internal("The answer could not be written"))?;
    let mut response = Response::new(Body::from(bytes));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(joules) = joules {
        response.headers_mut().insert(ENERGY_JOULES, joules);
    }
    Ok(response)
}
