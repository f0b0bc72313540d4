//! The report of a bench: what `report.json` holds, version 1. Draws, prints and judges nothing.
//!
//! Units are in the names. Whatever is of energy stands in an object that names its method and its boundary;
//! meters of the same boundary and method are added up, unlike ones never.

use serde::{Deserialize, Serialize};

use crate::economics::estimate::Estimate;
use crate::economics::verdict::{Inputs, Outcome};
use crate::power::{Boundary, Method};

/// Goes up when a reader of the old version would misread the new one.
pub const SCHEMA: u32 = 1;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub schema: u32,
    /// False while the bench runs, and for good when it was cut short.
    pub complete: bool,
    /// Why it is partial.
    pub partial_because: Option<String>,
    /// Something in here is assumed or an example: whatever shows this is headed EXAMPLE.
    pub example: bool,
    pub created_unix_seconds: u64,
    /// The same in RFC 3339, UTC.
    pub created: String,
    pub version: String,
    pub commit: String,
    pub command: Vec<String>,
    /// Wall time so far.
    pub elapsed_seconds: f64,
    pub hardware: Hardware,
    pub model: Model,
    pub target: Target,
    /// `None` for a server behind a URL, and where they could not be measured.
    #[serde(default)]
    pub ceilings: Option<Ceilings>,
    pub meters: Vec<Meter>,
    /// The scope that efficiencies and the verdict are about; `None` without a meter.
    pub primary: Option<Scope>,
    /// One a scope.
    pub idle: Vec<Idle>,
    pub points: Vec<Point>,
    /// One a meter.
    pub power: Vec<PowerTrace>,
    pub economics: Option<Economics>,
    pub warnings: Vec<String>,
}

/// What a figure of energy is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Scope {
    pub boundary: Boundary,
    pub method: Method,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Hardware {
    pub cpu: String,
    pub cores: u32,
    pub instructions: String,
    pub memory_bytes: u64,
    pub os: String,
    pub kernel: String,
    pub gpus: Vec<Gpu>,
    /// Hash of what must be equal for two reports to be comparable: processor, cores, memory, GPUs.
    pub fingerprint: String,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Gpu {
    pub name: String,
    pub uuid: Option<String>,
    pub driver: Option<String>,
    /// Enforced when the bench began.
    pub power_limit_watts: Option<f64>,
    pub minimum_power_limit_watts: Option<f64>,
    pub maximum_power_limit_watts: Option<f64>,
    pub memory_bytes: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Model {
    pub id: String,
    pub architecture: Option<String>,
    pub parameters: Option<u64>,
    pub dtype: Option<String>,
    /// Of the weights' bytes, or of the specification of synthetic ones; `None` behind a URL.
    pub sha256: Option<String>,
    /// What was hashed: `safetensors`, `synthetic specification`, `demo`.
    pub sha256_of: Option<String>,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Target {
    /// This program's engine, in the process of the bench.
    InProcess { settings: Vec<Setting> },
    /// candle-transformers in the process of the bench, one sequence at a time.
    CandleTransformers { settings: Vec<Setting> },
    /// A server that speaks OpenAI's protocol.
    Url { url: String, server: Option<String> },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    pub name: String,
    pub value: String,
}

/// What the devices do at their best, measured before the bench in the same run, and what the model asks of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ceilings {
    /// One an engine; all were measured at the same time.
    pub devices: Vec<DeviceCeiling>,
    /// Of the matrices that a decode step of an engine reads, as they are held: all layers, and the head.
    pub step_weight_bytes: u64,
    /// Keys and values of a token.
    pub kv_bytes_per_token: u64,
    /// Of a prompt's token: two for each weight of the layers.
    pub flops_per_token: f64,
    /// And more for each token that it sees, itself included.
    pub flops_per_key: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceCeiling {
    pub device: String,
    pub copied_bytes: u64,
    /// Read and written: twice what is copied.
    pub copy_bytes_per_second: Range,
    /// Rows, outputs and inputs of the product.
    pub gemm: [u64; 3],
    pub gemm_dtype: String,
    pub gemm_flops_per_second: Range,
}

/// Of repetitions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Range {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Meter {
    pub name: String,
    pub boundary: Boundary,
    pub method: Method,
    pub period_seconds: f64,
    pub lag_seconds: f64,
    /// As a share; cancels in ratios on one meter.
    pub gain_error: f64,
    /// How it ended, when it did not work to the end.
    pub problem: Option<String>,
}

/// Watts with the model loaded and nothing to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Idle {
    pub meter: String,
    pub boundary: Boundary,
    pub method: Method,
    pub watts_before: Option<f64>,
    pub watts_after: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Closed loop, so many requests at once; nearly all decode.
    Concurrency,
    /// Closed loop of long prompts with one output token: tokens are input tokens.
    Prefill,
    /// As `Concurrency`, the engine paused for a share of the time.
    Duty,
    /// As `Concurrency`, under a power limit of the board.
    PowerCap,
    /// As `Concurrency`, longer, at the concurrency with the most tokens for a joule.
    Sustained,
    /// Requests arrive by chance at a mean rate.
    OpenLoop,
    /// Requests arrive as in a recording.
    Trace,
}

/// One operating point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Point {
    pub kind: Kind,
    /// Requests at once; in open loops the most that ran.
    pub concurrency: u32,
    /// Asked for; open loops and traces only.
    pub requests_per_second: Option<f64>,
    /// Share of the time the engine may be busy.
    pub duty: Option<f64>,
    pub power_cap_watts: Option<f64>,
    /// Mean lengths that were asked for.
    pub asked_input_tokens: f64,
    pub asked_output_tokens: f64,
    /// Mean lengths of the requests that ended; where none did, of those asked for.
    pub mean_input_tokens: f64,
    pub mean_output_tokens: f64,
    /// Since the bench began, windows only.
    pub start_seconds: f64,
    pub seconds: f64,
    /// Ended inside the windows.
    pub requests: u64,
    pub failed: u64,
    /// In the windows. A prompt counts when its first token comes.
    pub input_tokens: u64,
    pub output_tokens: u64,
    /// Tokens over seconds of all windows, with the interval (95 %) from how much the windows differ.
    pub input_tokens_per_second: Estimate,
    pub output_tokens_per_second: Estimate,
    /// Start of a request to its first token.
    pub ttft_seconds: Option<Quantiles>,
    /// From token to token of a request; of tokens that came together, the mean.
    pub itl_seconds: Option<Quantiles>,
    /// Of the copy bandwidth: bytes that a decode step reads at least, over the median time between tokens.
    #[serde(default)]
    pub copy_bandwidth_share: Option<f64>,
    /// Of the rate of a large product: operations that the prompts took, over the time; prefill only.
    #[serde(default)]
    pub gemm_share: Option<f64>,
    pub window_seconds: Vec<f64>,
    /// Input tokens where the kind is prefill, else output tokens.
    pub window_tokens: Vec<u64>,
    /// One a scope; empty without a meter.
    pub energy: Vec<Energy>,
    pub boards: Vec<Board>,
    /// `short window`, `lost meter`, `other process`, `thermal throttling`, `not steady`, …
    pub flags: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
}

/// Energy of a point in one scope. `token` is an input token where the point's kind is prefill, else an
/// output token; gross figures hold all energy of the windows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Energy {
    /// Names of the meters that were added up, joined by ` + `.
    pub meter: String,
    pub boundary: Boundary,
    pub method: Method,
    /// An instrument said it, during the run.
    pub measured: bool,
    /// Of the instrument, as a share; not in the intervals below.
    pub gain_error: f64,
    pub joules: f64,
    pub watts: Estimate,
    pub tokens_per_joule: Option<Estimate>,
    pub joules_per_token: Option<Estimate>,
    /// Less the idle watts, which the unit draws anyway.
    pub idle_subtracted_joules: Option<f64>,
    pub idle_subtracted_tokens_per_joule: Option<Estimate>,
    pub joules_per_prefill_token: Option<Estimate>,
    pub joules_per_decode_token: Option<Estimate>,
    pub window_joules: Vec<f64>,
    /// Why these figures cannot be trusted.
    pub problem: Option<String>,
}

/// A board at the end of a point.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Board {
    pub meter: String,
    pub temperature_celsius: Option<f64>,
    pub clock_megahertz: Option<f64>,
    pub memory_clock_megahertz: Option<f64>,
    pub power_limit_watts: Option<f64>,
    /// Mean power by another path than the meter's readings (NVML's field 186 beside its counter of energy).
    #[serde(default)]
    pub instantaneous_watts: Option<f64>,
    /// Time under each reason, during the point.
    pub power_cap_throttle_seconds: f64,
    pub thermal_throttle_seconds: f64,
    pub power_brake_throttle_seconds: f64,
    pub other_throttle_seconds: f64,
    pub other_processes: Option<u32>,
}

/// Power over the whole bench.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PowerTrace {
    pub meter: String,
    pub boundary: Boundary,
    pub method: Method,
    /// `[seconds since the bench began, watts]`.
    pub seconds_watts: Vec<[f64; 2]>,
}

/// What the verdict rests on, so that it can be computed again, and what it was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Economics {
    pub inputs: Inputs,
    pub outcome: Outcome,
}

#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error("{file}: {problem}")]
    Io { file: String, problem: std::io::Error },
    #[error("{file}: not a report: {problem}")]
    Json { file: String, problem: serde_json::Error },
    #[error("{file}: a report of schema {found}; this program reads {SCHEMA}")]
    Schema { file: String, found: u64 },
}

impl Report {
    /// # Errors
    /// A file that cannot be read or is no report of this schema.
    pub fn read(path: &std::path::Path) -> Result<Report, ReportError> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|problem| ReportError::Io { file: file.clone(), problem })?;
        Report::parse(&file, &text)
    }

    /// # Errors
    /// Text that is no report of this schema; `file` is named.
    pub fn parse(file: &str, text: &str) -> Result<Report, ReportError> {
        let json = |problem| ReportError::Json { file: file.to_owned(), problem };
        let value: serde_json::Value = serde_json::from_str(text).map_err(json)?;
        match value.get("schema").and_then(serde_json::Value::as_u64) {
            Some(found) if found != u64::from(SCHEMA) => {
                Err(ReportError::Schema { file: file.to_owned(), found })
            }
            _ => serde_json::from_value(value).map_err(json),
        }
    }

    /// Energy of a point in the primary scope.
    pub fn primary_energy<'a>(&self, point: &'a Point) -> Option<&'a Energy> {
        let primary = self.primary?;
        point.energy.iter().find(|e| e.scope() == primary)
    }

    /// Idle watts in a scope: the mean of before and after.
    pub fn idle_watts(&self, scope: Scope) -> Option<f64> {
        let idle = self.idle.iter().find(|i| (Scope { boundary: i.boundary, method: i.method }) == scope)?;
        idle.watts()
    }
}

impl Idle {
    pub fn watts(&self) -> Option<f64> {
        match (self.watts_before, self.watts_after) {
            (Some(a), Some(b)) => Some((a + b) / 2.0),
            (a, b) => a.or(b),
        }
    }
}

impl Energy {
    pub fn scope(&self) -> Scope {
        Scope { boundary: self.boundary, method: self.method }
    }
}

impl Point {
    /// The tokens its efficiencies count.
    pub fn tokens(&self) -> u64 {
        if self.kind == Kind::Prefill { self.input_tokens } else { self.output_tokens }
    }
}

impl Kind {
    /// The word for tables and files.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Concurrency => "concurrency",
            Kind::Prefill => "prefill",
            Kind::Duty => "duty",
            Kind::PowerCap => "power_cap",
            Kind::Sustained => "sustained",
            Kind::OpenLoop => "open_loop",
            Kind::Trace => "trace",
        }
    }
}
