//! `/metrics`: the unit's metrics, in the format the scraper asks for.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::IntoResponse;
use axum::routing::get;

use crate::api::ApiState;
use crate::api::error::ApiError;
use crate::metrics::{EngineSample, EngineSource};
use crate::unit::Unit;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

pub fn routes() -> Router<Arc<ApiState>> {
    Router::new().route("/metrics", get(metrics))
}

async fn metrics(
    State(state): State<Arc<ApiState>>,
    headers: HeaderMap,
) -> Result<impl IntoResponse, ApiError> {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let open_metrics = accept.contains("application/openmetrics-text");
    let text = state.metrics.render(open_metrics);
    let text = text.map_err(|_| ApiError::internal("The metrics could not be written"))?;
    let kind = if open_metrics { OPEN_METRICS } else { PROMETHEUS };
    Ok(([(header::CONTENT_TYPE, kind)], text))
}

/// The samples of a unit's engines, read from their counters at each scrape.
pub fn engine_source(unit: Arc<Unit>) -> EngineSource {
    use std::sync::atomic::Ordering::Relaxed;
    Box::new(move || {
        let engines = unit.replicas().iter().map(|replica| {
            let stats = replica.stats();
            EngineSample {
                running: stats.running.load(Relaxed),
                waiting: stats.waiting.load(Relaxed),
                blocks_total: stats.blocks_total.load(Relaxed),
                blocks_held: stats.blocks_held.load(Relaxed),
                block_size: stats.block_size.load(Relaxed),
                prefix_queries: stats.prefix_queries.load(Relaxed),
                prefix_hits: stats.prefix_hits.load(Relaxed),
                preemptions: stats.preemptions.load(Relaxed),
                steps: stats.steps.load(Relaxed),
                last_rows: stats.last_rows.load(Relaxed),
                max_rows: stats.max_rows.load(Relaxed),
                prompt_tokens: stats.prompt_tokens.load(Relaxed),
                generated_tokens: stats.generated_tokens.load(Relaxed),
                ready: stats.ready.load(Relaxed),
            }
        });
        engines.collect()
    })
}
