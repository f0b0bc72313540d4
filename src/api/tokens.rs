//! `POST /tokenize` and `POST /detokenize`, shaped like vLLM's.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::routing::post;
use axum::{Json, Router};

use crate::api::ApiState;
use crate::api::auth::Caller;
use crate::api::error::ApiError;
use crate::api::generate::with_body;
use crate::wire::request::{DetokenizeRequest, TokenizeRequest};
use crate::wire::response::{Detokenized, Tokenized};

pub fn routes() -> Router<Arc<ApiState>> {
    Router::new().route("/tokenize", post(tokenize)).route("/detokenize", post(detokenize))
}

async fn tokenize(State(state): State<Arc<ApiState>>, request: Request) -> Result<Json<Tokenized>, ApiError> {
    let caller = Caller::of(&request);
    let tokenized = with_body(&state, request, move |state, body| {
        let request = TokenizeRequest::parse(body, state.config.unknown_parameters)?;
        caller.check_model(state, request.model.as_deref())?;
        let (model, tokens) = state.service.tokenize(&request)?;
        Ok(Tokenized { count: tokens.len(), max_model_len: model.max_model_len, tokens })
    });
    Ok(Json(tokenized.await?))
}

async fn detokenize(
    State(state): State<Arc<ApiState>>,
    request: Request,
) -> Result<Json<Detokenized>, ApiError> {
    let caller = Caller::of(&request);
    let detokenized = with_body(&state, request, move |state, body| {
        let request = DetokenizeRequest::parse(body, state.config.unknown_parameters)?;
        caller.check_model(state, request.model.as_deref())?;
        Ok(Detokenized { prompt: state.service.detokenize(&request)? })
    });
    Ok(Json(detokenized.await?))
}
