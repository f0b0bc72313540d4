//! L1. The one table of metric names, and what is counted under them.
//!
//! `TABLE` says for each metric our name, vLLM's name for the same thing (so that routers and
//! dashboards made for vLLM work unchanged), its help text and where its value comes from. Counters
//! get `_total` from the encoder. Engines are sampled at scrape time, requests are recorded as they
//! end; neither takes a lock. The registry is a value, and labels are closed sets: no text of a
//! client ever becomes a label.

mod energy;
mod histogram;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

pub use energy::{EnergySample, EnergySource, EngineJoules, MeterSample, PerToken};
pub use histogram::Histogram;
use histogram::{INTER_TOKEN, LATENCY, TOKENS, TTFT};

/// What one engine says of itself at the moment of a scrape.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct EngineSample {
    pub running: usize,
    pub waiting: usize,
    pub blocks_total: usize,
    pub blocks_held: usize,
    pub block_size: usize,
    pub prefix_queries: u64,
    pub prefix_hits: u64,
    /// Tokens that were guessed and computed, and those of them that were right.
    pub guessed_tokens: u64,
    pub right_guesses: u64,
    pub preemptions: u64,
    pub steps: u64,
    pub last_rows: usize,
    pub max_rows: usize,
    pub prompt_tokens: u64,
    pub generated_tokens: u64,
    /// Texts that wait for an encoder.
    pub encoder_texts: usize,
    /// What encoders have computed: texts, their tokens, and padding beside them.
    pub encoded_texts: u64,
    pub encoded_tokens: u64,
    pub padding_tokens: u64,
    /// Requests that it was given.
    pub placed: u64,
    /// Requests that went on at another engine.
    pub moved: u64,
    pub ready: bool,
}

impl EngineSample {
    /// Share of the cache's blocks that sequences own, 0..=1.
    pub fn cache_usage(&self) -> f64 {
        if self.blocks_total == 0 { 0.0 } else { self.blocks_held as f64 / self.blocks_total as f64 }
    }
}

/// Gives one sample an engine, in the order of their numbers.
pub type EngineSource = Box<dyn Fn() -> Vec<EngineSample> + Send + Sync>;

/// How a choice ended, for `request_success`; the words are vLLM's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Stop,
    Length,
    /// The client left before the end.
    Abort,
    Error,
}

const ENDED: [&str; 4] = ["stop", "length", "abort", "error"];

/// Where a metric's value comes from.
enum Origin {
    EngineGauge(fn(&EngineSample) -> f64),
    EngineCounter(fn(&EngineSample) -> u64),
    Histogram(fn(&Recorded) -> &Histogram),
    /// A gauge of this process.
    Gauge(fn(&Recorded) -> u64),
    FinishReasons,
    HttpStatuses,
    CacheConfig,
    Build,
}

struct Row {
    ours: &'static str,
    vllm: Option<&'static str>,
    help: &'static str,
    from: Origin,
}

const fn row(ours: &'static str, vllm: &'static str, help: &'static str, from: Origin) -> Row {
    Row { ours, vllm: if vllm.is_empty() { None } else { Some(vllm) }, help, from }
}

#[rustfmt::skip]
static TABLE: &[Row] = &[
    row("hashwatt_requests_running", "vllm:num_requests_running", "Sequences that are being computed", Origin::EngineGauge(|e| e.running as f64)),
    row("hashwatt_requests_waiting", "vllm:num_requests_waiting", "Sequences that wait for their first step", Origin::EngineGauge(|e| e.waiting as f64)),
    row("hashwatt_kv_cache_usage_ratio", "vllm:kv_cache_usage_perc", "Share of the KV cache's blocks owned by sequences, 1 is all", Origin::EngineGauge(EngineSample::cache_usage)),
    row("hashwatt_requests_placed", "", "Requests given to this engine, a choice each, also those that went on elsewhere", Origin::EngineCounter(|e| e.placed)),
    row("hashwatt_requests_moved", "", "Requests that went on at another engine when this one failed", Origin::EngineCounter(|e| e.moved)),
    row("hashwatt_engine_ready", "", "1 from the warm-up forward to the end of the engine, 0 when it is taken out", Origin::EngineGauge(|e| f64::from(u8::from(e.ready)))),
    row("hashwatt_engine_step_rows", "", "Tokens in the last step", Origin::EngineGauge(|e| e.last_rows as f64)),
    row("hashwatt_engine_step_rows_max", "", "Tokens in the largest step so far", Origin::EngineGauge(|e| e.max_rows as f64)),
    row("hashwatt_engine_steps", "", "Steps (forwards) computed", Origin::EngineCounter(|e| e.steps)),
    row("hashwatt_prompt_tokens", "vllm:prompt_tokens", "Prompt tokens of admitted requests", Origin::EngineCounter(|e| e.prompt_tokens)),
    row("hashwatt_generated_tokens", "vllm:generation_tokens", "Tokens generated", Origin::EngineCounter(|e| e.generated_tokens)),
    row("hashwatt_encoder_texts_waiting", "", "Texts that an encoder has not computed yet", Origin::EngineGauge(|e| e.encoder_texts as f64)),
    row("hashwatt_encoder_texts", "", "Texts, or pairs of texts, that encoders computed", Origin::EngineCounter(|e| e.encoded_texts)),
    row("hashwatt_encoder_tokens", "", "Tokens of these texts", Origin::EngineCounter(|e| e.encoded_tokens)),
    row("hashwatt_encoder_padding_tokens", "", "Tokens of padding that encoders computed beside them", Origin::EngineCounter(|e| e.padding_tokens)),
    row("hashwatt_prefix_cache_queries", "vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache", Origin::EngineCounter(|e| e.prefix_queries)),
    row("hashwatt_prefix_cache_hits", "vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache", Origin::EngineCounter(|e| e.prefix_hits)),
    row("hashwatt_speculation_guessed_tokens", "vllm:spec_decode_num_draft_tokens", "Tokens that were guessed and computed", Origin::EngineCounter(|e| e.guessed_tokens)),
    row("hashwatt_speculation_right_tokens", "vllm:spec_decode_num_accepted_tokens", "Guessed tokens that were what was chosen", Origin::EngineCounter(|e| e.right_guesses)),
    row("hashwatt_preemptions", "vllm:num_preemptions", "Sequences that gave their blocks back and began anew", Origin::EngineCounter(|e| e.preemptions)),
    row("hashwatt_cache_config_info", "vllm:cache_config_info", "Shape of the KV cache, as labels", Origin::CacheConfig),
    row("hashwatt_requests_finished", "vllm:request_success", "Choices that ended, by reason", Origin::FinishReasons),
    row("hashwatt_time_to_first_token_seconds", "vllm:time_to_first_token_seconds", "From a request's arrival to its first token", Origin::Histogram(|r| &r.time_to_first_token)),
    row("hashwatt_inter_token_latency_seconds", "vllm:inter_token_latency_seconds", "Between two pieces of text of a choice", Origin::Histogram(|r| &r.inter_token)),
    row("hashwatt_request_latency_seconds", "vllm:e2e_request_latency_seconds", "From a request's arrival to its last token", Origin::Histogram(|r| &r.end_to_end)),
    row("hashwatt_request_queue_seconds", "vllm:request_queue_time_seconds", "From a request's arrival to its first step", Origin::Histogram(|r| &r.queue)),
    row("hashwatt_request_prefill_seconds", "vllm:request_prefill_time_seconds", "From a request's first step to its first token", Origin::Histogram(|r| &r.prefill)),
    row("hashwatt_request_decode_seconds", "vllm:request_decode_time_seconds", "From a request's first token to its last", Origin::Histogram(|r| &r.decode)),
    row("hashwatt_request_prompt_tokens", "vllm:request_prompt_tokens", "Prompt tokens of a request", Origin::Histogram(|r| &r.request_prompt_tokens)),
    row("hashwatt_request_generated_tokens", "vllm:request_generation_tokens", "Tokens generated for a request", Origin::Histogram(|r| &r.request_generated_tokens)),
    row("hashwatt_http_responses", "", "Answers by HTTP status", Origin::HttpStatuses),
    row("hashwatt_http_connections", "", "Open connections", Origin::Gauge(|r| r.connections.load(Ordering::Relaxed) as u64)),
    row("hashwatt_http_requests_in_flight", "", "Requests whose answer is not complete", Origin::Gauge(|r| r.in_flight.load(Ordering::Relaxed) as u64)),
    row("hashwatt_build_info", "", "Version of this process, as a label", Origin::Build),
];

/// What requests leave behind. Shared by all handlers.
#[derive(Debug)]
pub struct Recorded {
    pub time_to_first_token: Histogram,
    pub inter_token: Histogram,
    pub end_to_end: Histogram,
    pub queue: Histogram,
    pub prefill: Histogram,
    pub decode: Histogram,
    pub request_prompt_tokens: Histogram,
    pub request_generated_tokens: Histogram,
    pub connections: AtomicUsize,
    pub in_flight: AtomicUsize,
    ended: [AtomicU64; ENDED.len()],
    /// By status − 100.
    statuses: Vec<AtomicU64>,
}

impl Recorded {
    fn new() -> Recorded {
        Recorded {
            time_to_first_token: Histogram::new(TTFT),
            inter_token: Histogram::new(INTER_TOKEN),
            end_to_end: Histogram::new(LATENCY),
            queue: Histogram::new(LATENCY),
            prefill: Histogram::new(LATENCY),
            decode: Histogram::new(LATENCY),
            request_prompt_tokens: Histogram::new(TOKENS),
            request_generated_tokens: Histogram::new(TOKENS),
            connections: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            ended: Default::default(),
            statuses: (100..600).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    pub fn ended(&self, how: Ended, choices: u64) {
        self.ended[how as usize].fetch_add(choices, Ordering::Relaxed);
    }

    pub fn answered(&self, status: u16) {
        if let Some(n) = usize::from(status).checked_sub(100).and_then(|i| self.statuses.get(i)) {
            n.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// How the metrics of a unit are shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricsConfig {
    /// The label `model_name`.
    pub model_name: String,
    /// Show vLLM's names beside ours.
    pub vllm_names: bool,
}

/// The metrics of one unit: hand [`Metrics::recorded`] to those who record, ask [`Metrics::render`].
pub struct Metrics {
    registry: Registry,
    recorded: Arc<Recorded>,
}

impl Metrics {
    /// Metrics of a unit without a meter.
    pub fn new(config: MetricsConfig, engines: EngineSource) -> Metrics {
        Metrics::with_energy(config, engines, Box::new(EnergySample::default))
    }

    pub fn with_energy(config: MetricsConfig, engines: EngineSource, energy: EnergySource) -> Metrics {
        let recorded = Arc::new(Recorded::new());
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Exporter { config, engines, recorded: recorded.clone() }));
        registry.register_collector(Box::new(energy::Exporter(energy)));
        Metrics { registry, recorded }
    }

    pub fn recorded(&self) -> &Arc<Recorded> {
        &self.recorded
    }

    /// All metrics as text: OpenMetrics 1.0, or the older Prometheus 0.0.4 for clients that do not
    /// ask for it.
    ///
    /// # Errors
    /// A collector that fails to write.
    pub fn render(&self, open_metrics: bool) -> Result<String, fmt::Error> {
        let mut text = String::with_capacity(16 << 10);
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(if open_metrics { text } else { to_prometheus_text(&text) })
    }
}

/// In the older format the head of a counter carries the name of its samples, `_total` and all, and
/// there is no end mark. (Parsers of that format would take such a counter for an untyped metric.)
fn to_prometheus_text(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len() + 1024);
    let mut lines = open_metrics.lines().peekable();
    while let Some(line) = lines.next() {
        if line == "# EOF" || line.starts_with("# UNIT ") {
            continue;
        }
        let counter = |line: &str| {
            line.strip_prefix("# TYPE ")?
                .strip_suffix(" counter")
                .map(|name| format!("# TYPE {name}_total counter"))
        };
        if let Some(head) = counter(line) {
            text += &head;
        } else if let (Some(rest), true) =
            (line.strip_prefix("# HELP "), lines.peek().is_some_and(|next| counter(next).is_some()))
        {
            let (name, help) = rest.split_once(' ').unwrap_or((rest, ""));
            text += &format!("# HELP {name}_total {help}");
        } else {
            text += line;
        }
        text.push('\n');
    }
    text
}

/// Writes [`TABLE`] at each scrape.
struct Exporter {
    config: MetricsConfig,
    engines: EngineSource,
    recorded: Arc<Recorded>,
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exporter").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Collector for Exporter {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let engines = (self.engines)();
        for row in TABLE {
            self.encode_row(&mut encoder, row.ours, row, &engines)?;
        }
        for row in TABLE.iter().filter(|_| self.config.vllm_names) {
            if let Some(name) = row.vllm {
                self.encode_row(&mut encoder, name, row, &engines)?;
            }
        }
        Ok(())
    }
}

impl Exporter {
    fn encode_row(
        &self,
        encoder: &mut DescriptorEncoder,
        name: &str,
        row: &Row,
        engines: &[EngineSample],
    ) -> fmt::Result {
        let kind = match row.from {
            Origin::EngineGauge(_) | Origin::CacheConfig | Origin::Build | Origin::Gauge(_) => {
                MetricType::Gauge
            }
            Origin::EngineCounter(_) | Origin::FinishReasons | Origin::HttpStatuses => MetricType::Counter,
            Origin::Histogram(_) => MetricType::Histogram,
        };
        let mut metric = encoder.encode_descriptor(name, row.help, None, kind)?;
        let model = ("model_name", self.config.model_name.as_str());
        match row.from {
            Origin::EngineGauge(value) => each_engine(engines, |number, engine| {
                metric.encode_family(&[model, ("engine", number)])?.encode_gauge(&value(engine))
            }),
            Origin::EngineCounter(value) => each_engine(engines, |number, engine| {
                let labels = [model, ("engine", number)];
                metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&value(engine), None)
            }),
            Origin::CacheConfig => each_engine(engines, |number, engine| {
                let (size, total) = (engine.block_size.to_string(), engine.blocks_total.to_string());
                let shape = [("block_size", size.as_str()), ("num_gpu_blocks", total.as_str())];
                let labels = [model, ("engine", number), shape[0], shape[1]];
                metric.encode_family(&labels)?.encode_gauge(&1u32)
            }),
            Origin::Histogram(histogram) => histogram(&self.recorded).encode(metric.encode_family(&[model])?),
            Origin::Gauge(value) => metric.encode_gauge(&value(&self.recorded)),
            Origin::FinishReasons => ENDED.iter().zip(&self.recorded.ended).try_for_each(|(reason, n)| {
                let labels = [model, ("finished_reason", reason)];
                let n = n.load(Ordering::Relaxed);
                metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&n, None)
            }),
            Origin::HttpStatuses => {
                (100u16..).zip(&self.recorded.statuses).try_for_each(|(status, n)| {
                    match n.load(Ordering::Relaxed) {
                        0 => Ok(()),
                        n => metric
                            .encode_family(&[("status", status)])?
                            .encode_counter::<NoLabelSet, _, u64>(&n, None),
                    }
                })
            }
            Origin::Build => {
                metric.encode_family(&[("version", env!("CARGO_PKG_VERSION"))])?.encode_gauge(&1u32)
            }
        }
    }
}

fn each_engine(
    engines: &[EngineSample],
    mut write: impl FnMut(&str, &EngineSample) -> fmt::Result,
) -> fmt::Result {
    engines.iter().enumerate().try_for_each(|(number, engine)| write(&number.to_string(), engine))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(vllm_names: bool) -> Metrics {
        let config = MetricsConfig { model_name: "m\"x".into(), vllm_names };
        let sample = EngineSample {
            running: 3,
            waiting: 1,
            blocks_total: 8,
            blocks_held: 2,
            block_size: 16,
            prompt_tokens: 7,
            ..Default::default()
        };
        Metrics::new(config, Box::new(move || vec![sample, EngineSample::default()]))
    }

    #[test]
    fn names_are_unique_and_follow_the_rules() {
        let mut names: Vec<_> = TABLE.iter().flat_map(|r| [Some(r.ours), r.vllm]).flatten().collect();
        for row in TABLE {
            assert!(row.ours.starts_with("hashwatt_") && !row.ours.ends_with("_total"), "{}", row.ours);
            assert!(row.vllm.is_none_or(|v| v.starts_with("vllm:")));
        }
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn both_name_sets_show_the_same_values() {
        let metrics = metrics(true);
        metrics.recorded().ended(Ended::Length, 2);
        metrics.recorded().answered(503);
        metrics.recorded().inter_token.observe_n(0.02, 3);
        let text = metrics.render(true).unwrap();
        for line in [
            "vllm:num_requests_running{model_name=\"m\\\"x\",engine=\"0\"} 3.0",
            "vllm:num_requests_waiting{model_name=\"m\\\"x\",engine=\"0\"} 1.0",
            "vllm:num_requests_running{model_name=\"m\\\"x\",engine=\"1\"} 0.0",
            "vllm:kv_cache_usage_perc{model_name=\"m\\\"x\",engine=\"0\"} 0.25",
            "hashwatt_kv_cache_usage_ratio{model_name=\"m\\\"x\",engine=\"0\"} 0.25",
            "vllm:prompt_tokens_total{model_name=\"m\\\"x\",engine=\"0\"} 7",
            "vllm:request_success_total{model_name=\"m\\\"x\",finished_reason=\"length\"} 2",
            "vllm:inter_token_latency_seconds_bucket{le=\"0.025\",model_name=\"m\\\"x\"} 3",
            "vllm:inter_token_latency_seconds_bucket{le=\"+Inf\",model_name=\"m\\\"x\"} 3",
            "vllm:cache_config_info{model_name=\"m\\\"x\",engine=\"0\",block_size=\"16\",num_gpu_blocks=\"8\"} 1",
            "hashwatt_http_responses_total{status=\"503\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn aliases_can_be_switched_off() {
        assert!(!metrics(false).render(true).unwrap().contains("vllm:"));
    }

    #[test]
    fn the_older_format_names_counters_by_their_samples() {
        let text = metrics(true).render(false).unwrap();
        assert!(text.contains("# TYPE vllm:prompt_tokens_total counter\n"));
        assert!(text.contains("# HELP vllm:prompt_tokens_total "));
        assert!(text.contains("# TYPE vllm:num_requests_running gauge\n"));
        assert!(!text.contains("# EOF"));
    }
}
