//! `POST /v1/completions`.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::post;

use crate::api::ApiState;
use crate::api::auth::Caller;
use crate::api::chunk::Shape;
use crate::api::error::ApiError;
use crate::api::generate::{Form, answer, check_open, with_body};
use crate::wire::request::CompletionRequest;

pub fn routes() -> Router<Arc<ApiState>> {
    Router::new().route("/v1/completions", post(complete))
}

async fn complete(State(state): State<Arc<ApiState>>, request: Request) -> Result<Response, ApiError> {
    check_open(&state)?;
    let caller = Caller::of(&request);
    let asks = caller.clone();
    let (form, generation) = with_body(&state, request, move |state, body| {
        let mut request = CompletionRequest::parse(body, state.config.unknown_parameters)?;
        asks.permit(state, &mut request.parameters)?;
        let generation = state.service.complete_if(&request, &|size| asks.reserve(size))?;
        Ok((Form::of(&request.parameters), generation))
    })
    .await?;
    answer(&state, Shape::Text, form, generation, caller).await
}
