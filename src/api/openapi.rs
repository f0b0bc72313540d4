//! `/openapi.json`: the routes and the request fields that are accepted, written by hand.

use std::sync::Arc;

use axum::Router;
use axum::http::header;
use axum::routing::get;

use crate::api::ApiState;

pub(super) const DOCUMENT: &str = include_str!("openapi.json");

pub fn routes() -> Router<Arc<ApiState>> {
    Router::new()
        .route("/openapi.json", get(|| async { ([(header::CONTENT_TYPE, "application/json")], DOCUMENT) }))
}
