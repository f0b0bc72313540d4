//! `/openapi.json`: the routes and the request fields that are accepted, written by hand.

use std::sync::Arc;

use axum::Router;
use axum::http::header;
use axum::routing::get;

use crate::api::ApiState;

pub(super) const DOCUMENT: &str = include_str!("openapi.json");

/// The paths that are described.
pub fn paths() -> Vec<String> {
    let document: serde_json::Value = serde_json::from_str(DOCUMENT).unwrap_or_default();
    document["paths"].as_object().map(|paths| paths.keys().cloned().collect()).unwrap_or_default()
}

/// Whether this is the path of a route.
pub fn is_path(path: &str) -> bool {
    paths().iter().any(|known| known == path)
}

pub fn routes() -> Router<Arc<ApiState>> {
    Router::new()
        .route("/openapi.json", get(|| async { ([(header::CONTENT_TYPE, "application/json")], DOCUMENT) }))
}
