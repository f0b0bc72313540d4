//! L5. HTTP: extract → service → respond; one file per endpoint, each exporting `routes()`.
//!
//! Errors, keys, limits, ids and metrics are layers or values, never repeated in handlers. Nothing
//! here knows how text is made: `service` does; how sockets are accepted is `server`'s matter.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::middleware::from_fn_with_state;
use tokio::sync::Semaphore;

pub mod admin;
mod auth;
mod billing;
mod body;
mod chat;
mod chunk;
mod collect;
mod completions;
mod connection;
#[cfg(any(test, feature = "docs-page"))]
mod docs;
mod embeddings;
mod envelope;
pub mod error;
mod generate;
mod logprobs;
mod metrics;
mod models;
mod openapi;
mod origin;
mod probes;
mod rerank;
mod server;
mod stream;
mod tally;
mod tls;
mod tokens;
mod usage;

#[cfg(test)]
mod endpoint_tests;
#[cfg(test)]
mod openapi_tests;
#[cfg(test)]
mod server_tests;
#[cfg(test)]
mod test_engine;
#[cfg(test)]
mod testing;

pub use auth::MetricsAccess;
pub use body::BodyLimits;
pub use connection::TimeLimits;
pub use metrics::{energy_source, engine_source};
pub use origin::Origins;
pub use server::{Server, ServerConfig};
pub use tls::{Tls, TlsError};
pub use usage::day;

use crate::access::Access;
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::service::Service;
use crate::wire::fields::UnknownParameters;
use error::ApiError;

/// What the operator chooses about the HTTP side.
#[derive(Debug, Clone)]
pub struct ApiConfig {
    /// Who may ask.
    pub access: Arc<Access>,
    /// Who may read `/metrics` on the serving port.
    pub metrics: MetricsAccess,
    pub origins: Origins,
    pub body: BodyLimits,
    /// A stream that has nothing to say sends a comment this often.
    pub keep_alive: Duration,
    /// What happens to a field of a request that the API does not know.
    pub unknown_parameters: UnknownParameters,
    /// What `system_fingerprint` says: which backend and weights these are.
    pub system_fingerprint: Option<String>,
    /// Requests that are parsed, rendered and tokenised at a time; each holds a thread.
    pub preparing: usize,
}

impl Default for ApiConfig {
    fn default() -> Self {
        ApiConfig {
            access: Access::fixed(None, Clock::system()),
            metrics: MetricsAccess::default(),
            origins: Origins::default(),
            body: BodyLimits::default(),
            keep_alive: Duration::from_secs(10),
            unknown_parameters: UnknownParameters::default(),
            system_fingerprint: Some(concat!("hashwatt-", env!("CARGO_PKG_VERSION")).into()),
            preparing: std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 16)),
        }
    }
}

/// What every handler may use.
pub struct ApiState {
    pub service: Arc<Service>,
    pub metrics: Arc<Metrics>,
    pub config: ApiConfig,
    preparing: Arc<Semaphore>,
}

impl ApiState {
    pub fn new(service: Arc<Service>, metrics: Arc<Metrics>, config: ApiConfig) -> Arc<ApiState> {
        let preparing = Arc::new(Semaphore::new(config.preparing.max(1)));
        Arc::new(ApiState { service, metrics, config, preparing })
    }
}

/// All routes with all layers.
pub fn router(state: Arc<ApiState>) -> Router {
    layered(routes(), state)
}

fn routes() -> Router<Arc<ApiState>> {
    let routes = Router::new();
    #[cfg(feature = "docs-page")]
    let routes = routes.merge(docs::routes());
    routes
        .merge(chat::routes())
        .merge(completions::routes())
        .merge(embeddings::routes())
        .merge(rerank::routes())
        .merge(models::routes())
        .merge(tokens::routes())
        .merge(probes::routes())
        .merge(metrics::routes())
        .merge(openapi::routes())
        .merge(usage::routes())
}

/// Every route, known or not, answers errors as JSON, looks at where a request comes from, asks for a key and bears a
/// request id.
fn layered(routes: Router<Arc<ApiState>>, state: Arc<ApiState>) -> Router {
    let cors = state.config.origins.cors();
    let router = routes
        .fallback(|request: Request| async move {
            ApiError::unknown_route(request.method().as_str(), request.uri().path())
        })
        .method_not_allowed_fallback(|request: Request| async move {
            ApiError::wrong_method(request.method().as_str(), request.uri().path())
        })
        .layer(from_fn_with_state(state.clone(), auth::require_key));
    // A browser's preflight bears no key.
    let router = match cors {
        Some(cors) => router.layer(cors),
        None => router,
    };
    router
        .layer(from_fn_with_state(state.clone(), origin::guard))
        .layer(from_fn_with_state(state.clone(), envelope::wrap))
        .with_state(state)
}
