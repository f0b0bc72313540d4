//! `POST /v1/completions`.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::post;

use crate::api::ApiState;
use crate::api::chunk::Shape;
use crate::api::error::ApiError;
use crate::api::generate::{Form, answer, check_open, with_body};
use crate::wire::request::CompletionRequest;

pub fn routes() -> Router<Arc<ApiState>> {
    Router::new().route("/v1/completions", post(complete))
}

async fn complete(State(state): State<Arc<ApiState>>, request: Request) -> Result<Response, ApiError> {
    check_open(&state)?;
    let (form, generation) = with_body(&state, request, |state, body| {
        let request = CompletionRequest::parse(body, state.config.unknown_parameters)?;
        Ok((Form::of(&request.parameters), state.service.complete(&request)?))
    })
    .await?;
    answer(&state, Shape::Text, form, generation).await
}
