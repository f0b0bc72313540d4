//! `/livez`, `/readyz`, `/health`: what load balancers and orchestrators ask, without a key.
//!
//! Alive means that this answers. Ready means that requests are taken and that an engine gave a
//! sign of life within the last seconds; `/health` is the same, for those who know no other.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::routing::get;

use crate::api::ApiState;
use crate::api::error::ApiError;
use crate::unit;

pub fn routes() -> Router<Arc<ApiState>> {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/health", get(ready))
}

async fn ready(State(state): State<Arc<ApiState>>) -> Result<&'static str, ApiError> {
    let unit = state.service.unit();
    match unit.state() {
        unit::State::Loading => Err(ApiError::loading()),
        unit::State::Draining => Err(ApiError::draining()),
        unit::State::Ready if unit.is_ready() => Ok("ready\n"),
        unit::State::Ready => Err(ApiError::engine_down(unit.why_down().to_string())),
    }
}
