//! `/metrics`: the unit's metrics, in the format the scraper asks for.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::api::ApiState;
use crate::api::error::ApiError;
use crate::metrics::{
    EnergySample, EnergySource, EngineJoules, EngineSample, EngineSource, MeterSample, Metrics, PerToken,
};
use crate::unit::Unit;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

pub fn routes() -> Router<Arc<ApiState>> {
    Router::new().route("/metrics", get(metrics))
}

async fn metrics(State(state): State<Arc<ApiState>>, headers: HeaderMap) -> Result<Response, ApiError> {
    render(&state.metrics, &headers)
}

/// The metrics, in the format the scraper asks for.
pub fn render(metrics: &Metrics, headers: &HeaderMap) -> Result<Response, ApiError> {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let open_metrics = accept.contains("application/openmetrics-text");
    let text = metrics.render(open_metrics);
    let text = text.map_err(|_| ApiError::internal("The metrics could not be written"))?;
    let kind = if open_metrics { OPEN_METRICS } else { PROMETHEUS };
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
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
                guessed_tokens: stats.guessed_tokens.load(Relaxed),
                right_guesses: stats.right_guesses.load(Relaxed),
                prefix_hits: stats.prefix_hits.load(Relaxed),
                preemptions: stats.preemptions.load(Relaxed),
                steps: stats.steps.load(Relaxed),
                last_rows: stats.last_rows.load(Relaxed),
                max_rows: stats.max_rows.load(Relaxed),
                prompt_tokens: stats.prompt_tokens.load(Relaxed),
                generated_tokens: stats.generated_tokens.load(Relaxed),
                encoder_texts: stats.encoder_texts.load(Relaxed),
                encoded_texts: stats.encoded_texts.load(Relaxed),
                encoded_tokens: stats.encoded_tokens.load(Relaxed),
                padding_tokens: stats.padding_tokens.load(Relaxed),
                placed: replica.placed(),
                moved: replica.moved(),
                ready: replica.is_in() && stats.ready.load(Relaxed),
            }
        });
        engines.collect()
    })
}

/// The samples of a unit's meters and of what their energy went to.
pub fn energy_source(unit: Arc<Unit>) -> EnergySource {
    use std::sync::atomic::Ordering::Relaxed;
    Box::new(move || {
        let Some(ledger) = unit.ledger() else { return EnergySample::default() };
        let now = unit.clock().now();
        let meters = ledger.meters().into_iter().enumerate().map(|(index, (meter, totals))| MeterSample {
            up: meter.is_up(),
            watts: meter.watts.filter(|_| !meter.is_silent(now)).map(|w| w.0),
            limit_watts: meter.board.as_ref().and_then(|b| b.power_limit_watts),
            prefill_joules: totals.prefill,
            decode_joules: totals.decode,
            overhead_joules: totals.overhead,
            idle_joules: totals.idle,
            idle_watts: ledger.idle_power(index).map(|(watts, measured)| (watts.0, measured)),
            throttled: meter.throttled_seconds(),
            resets: meter.resets,
            other_processes: meter.board.as_ref().and_then(|b| b.other_processes).map(|n| n as f64),
            xid: meter.board.as_ref().and_then(|b| b.xid).map(|x| x as f64),
            engine: meter.info.device,
            boundary: meter.info.boundary.as_str(),
            method: meter.info.method.to_string(),
            name: meter.info.name,
        });
        let generated: u64 = unit.replicas().iter().map(|r| r.stats().generated_tokens.load(Relaxed)).sum();
        let [prefill, decode] = ledger.told_totals();
        EnergySample {
            meters: meters.collect(),
            joules_per_token: (generated > 0 && prefill + decode > 0.0).then(|| PerToken {
                joules: (prefill + decode) / generated as f64,
                boundary: ledger.boundary().as_str(),
                method: ledger.method().to_string(),
            }),
            engines: Some(EngineJoules {
                joules: ledger.engine_totals(),
                boundary: ledger.boundary().as_str(),
                method: ledger.method().to_string(),
            }),
        }
    })
}
