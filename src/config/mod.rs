//! Flags, environment and `unit.toml`, resolved into one validated, immutable struct.
//!
//! `settings` is the one table: name, default and help of every setting. A flag beats an environment
//! variable, that beats the file, that beats the default. This is the only place that reads the
//! environment.

pub mod hub;
pub mod places;
pub mod settings;
pub mod speculation;
pub mod value;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::power::PowerError;
use crate::power::spec::MeterSpec;
use hub::HubPlaces;
use places::{AdminAddress, Places};
use settings::{SETTINGS, Setting};
use speculation::Speculation;
use value::{parse_bytes, parse_duration, without_credentials};

/// A setting that cannot be honoured; names it and where it came from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("{name} = {value:?} ({origin}): {problem}")]
    Invalid { name: String, value: String, origin: String, problem: String },
    #[error("{file}: {problem}")]
    File { file: String, problem: String },
    #[error("unknown setting `{name}` ({origin}); `hashwatt serve --help` lists them")]
    Unknown { name: String, origin: String },
    #[error("{0}")]
    Refused(String),
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    Flag,
    Environment(String),
    File(PathBuf),
    Default,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Origin::Flag => write!(f, "flag"),
            Origin::Environment(name) => write!(f, "environment {name}"),
            Origin::File(path) => write!(f, "file {}", path.display()),
            Origin::Default => write!(f, "default"),
        }
    }
}

/// Every setting as text, with its origin.
#[derive(Debug, Clone)]
pub struct Resolved(BTreeMap<&'static str, (String, Origin)>, Places);

/// A model to be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSource {
    /// What clients call it, where the operator says so.
    pub name: Option<String>,
    /// `demo`, `synthetic:PRESET`, a path, or the hub's name of a model.
    pub model: String,
}

/// Which devices serve; each is an engine of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// Every GPU that is visible, else the processor; stands alone.
    Auto,
    Cpu,
    /// Every GPU; stands alone.
    AllCuda,
    /// A GPU by its number among the visible ones.
    Cuda(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// Who may read `/metrics` on the serving port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricsFor {
    /// Open on loopback, with a key elsewhere.
    Auto,
    Open,
    Key,
    AdminOnly,
}

/// The unit's configuration, checked as far as it can be without opening the model.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub host: IpAddr,
    pub port: u16,
    /// The first of `models`, without its name.
    pub model: String,
    /// At least one.
    pub models: Vec<ModelSource>,
    pub served_model_names: Vec<String>,
    /// `None` is the model's own context.
    pub max_model_len: Option<usize>,
    /// `None` is by device, see [`Config::sequences`].
    pub max_num_seqs: Option<usize>,
    /// Likewise, see [`Config::batched_tokens`].
    pub max_num_batched_tokens: Option<usize>,
    pub precision: crate::model::decoder::Precision,
    pub quantize: crate::model::decoder::Quantize,
    /// `None` is the type of the activations.
    pub cache: Option<crate::model::kv_cache::CacheType>,
    pub devices: Vec<DeviceKind>,
    /// Of all devices together; `None` is every core.
    pub threads: Option<usize>,
    /// Bytes of KV cache of all devices together; `None` is worked out.
    pub kv_memory: Option<u64>,
    /// Share of a GPU's memory that this process may fill.
    pub gpu_memory_utilization: f64,
    pub prefix_caching: bool,
    pub speculation: Option<Speculation>,
    /// `None` where it pays.
    pub async_scheduling: Option<bool>,
    pub enforce_eager: bool,
    pub enable_pdl: bool,
    pub batch_invariant: bool,
    pub max_queue: usize,
    pub api_key: Option<String>,
    pub insecure: bool,
    /// `None` where the environment tells no home: nothing is kept.
    pub state_dir: Option<PathBuf>,
    pub metrics: MetricsFor,
    /// `None` is the default ones, as far as they are free.
    pub admin_listen: Option<Vec<AdminAddress>>,
    pub admin_token: Option<String>,
    /// The user's folder for sockets, if the environment tells one.
    pub runtime_dir: Option<PathBuf>,
    /// Files of the certificate and of its key.
    pub tls: Option<(PathBuf, PathBuf)>,
    pub allowed_hosts: Vec<String>,
    pub allowed_origins: Vec<String>,
    pub refuse_unknown_parameters: bool,
    pub tells_thoughts: bool,
    /// Which calls of tools are read: `auto`, `none` or a dialect's name.
    pub tool_parser: &'static str,
    pub max_body_bytes: usize,
    pub max_connections: usize,
    pub header_timeout: Duration,
    pub body_timeout: Duration,
    pub idle_timeout: Duration,
    pub write_timeout: Duration,
    pub keep_alive: Duration,
    /// `None` is by device, see [`Config::longest_step`].
    pub step_timeout: Option<Duration>,
    pub drain_timeout: Duration,
    pub vllm_metrics: bool,
    pub meter: MeterSpec,
    pub require_measured: bool,
    pub models_dir: Option<PathBuf>,
    pub hub: HubPlaces,
    pub log_level: String,
    pub log_format: LogFormat,
}

impl Resolved {
    /// Merges the sources. `flags` are those given; `environment` is the process's.
    ///
    /// # Errors
    /// An unknown `HASHWATT_*` variable or file key, an unreadable file.
    pub fn merge(
        flags: &[(&'static str, String)],
        environment: &[(String, String)],
    ) -> Result<Resolved, ConfigError> {
        let mut values: BTreeMap<&'static str, (String, Origin)> =
            SETTINGS.iter().map(|s| (s.name, (s.default.to_string(), Origin::Default))).collect();
        let from_environment = environment_settings(environment)?;
        let file = flags
            .iter()
            .map(|(name, value)| (*name, value))
            .chain(from_environment.iter().map(|(s, value, _)| (s.name, value)))
            .find(|(name, _)| *name == "config")
            .map(|(_, path)| PathBuf::from(path));
        if let Some(path) = &file {
            for (name, value) in file_settings(path)? {
                values.insert(name, (value, Origin::File(path.clone())));
            }
        }
        for (setting, value, variable) in from_environment {
            values.insert(setting.name, (value, Origin::Environment(variable)));
        }
        for (name, value) in flags {
            values.insert(name, (value.clone(), Origin::Flag));
        }
        Ok(Resolved(values, Places::of(environment)))
    }

    /// One line a setting: its value, secrets hidden, and its origin.
    pub fn lines(&self) -> Vec<String> {
        let shown = |name: &str, value: &str| match (settings::find(name).is_some_and(|s| s.secret), value) {
            (_, "") => "(not set)".to_string(),
            (true, _) => "***".to_string(),
            _ => without_credentials(value),
        };
        self.0.iter().map(|(n, (v, origin))| format!("{n} = {}  # {origin}", shown(n, v))).collect()
    }

    fn get<T>(
        &self,
        name: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T, ConfigError> {
        let (value, origin) = &self.0[name];
        parse(value).map_err(|problem| {
            let secret = settings::find(name).is_some_and(|s| s.secret);
            let value = if secret { "***".into() } else { without_credentials(value) };
            ConfigError::Invalid { name: name.into(), value, origin: origin.to_string(), problem }
        })
    }

    fn number(&self, name: &'static str, min: usize) -> Result<usize, ConfigError> {
        self.get(name, |v| match v.parse::<usize>() {
            Ok(n) if n >= min => Ok(n),
            _ => Err(format!("is not a whole number of at least {min}")),
        })
    }

    fn optional_number(&self, name: &'static str) -> Result<Option<usize>, ConfigError> {
        if self.0[name].0.is_empty() { Ok(None) } else { self.number(name, 1).map(Some) }
    }

    fn number_or_auto(&self, name: &'static str) -> Result<Option<usize>, ConfigError> {
        if self.0[name].0 == "auto" { Ok(None) } else { self.number(name, 1).map(Some) }
    }

    fn flag(&self, name: &'static str) -> Result<bool, ConfigError> {
        self.get(name, |v| match v {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            _ => Err("is neither true nor false".into()),
        })
    }

    fn text(&self, name: &'static str) -> Option<String> {
        Some(self.0[name].0.clone()).filter(|v| !v.is_empty())
    }

    fn duration(&self, name: &'static str) -> Result<Duration, ConfigError> {
        self.get(name, parse_duration)
    }

    /// Both files or neither.
    fn tls(&self) -> Result<Option<(PathBuf, PathBuf)>, ConfigError> {
        match (self.text("ssl-certfile"), self.text("ssl-keyfile")) {
            (Some(certificate), Some(key)) => Ok(Some((certificate.into(), key.into()))),
            (None, None) => Ok(None),
            (Some(_), None) => Err(ConfigError::Refused("ssl-certfile is set and ssl-keyfile is not".into())),
            (None, Some(_)) => Err(ConfigError::Refused("ssl-keyfile is set and ssl-certfile is not".into())),
        }
    }

    /// The typed configuration.
    ///
    /// # Errors
    /// A value that is not of its setting's kind, and combinations that are refused.
    pub fn config(&self) -> Result<Config, ConfigError> {
        let bytes = |name| match self.text(name) {
            None => Ok(None),
            Some(_) => self.get(name, parse_bytes).map(Some),
        };
        let max_body = self.get("max-body-bytes", parse_bytes)?;
        let models = self.get("model", value::parse_models)?;
        let config = Config {
            host: self.get("host", |v| match v {
                "localhost" => Ok(IpAddr::from([127, 0, 0, 1])),
                v => v.parse().map_err(|_| "is not an IP address".to_string()),
            })?,
            port: self.get("port", |v| v.parse().map_err(|_| "is not a port (0 to 65535)".to_string()))?,
            model: models[0].model.clone(),
            models,
            served_model_names: list(&self.0["served-model-name"].0),
            max_model_len: self.optional_number("max-model-len")?,
            max_num_seqs: self.number_or_auto("max-num-seqs")?,
            max_num_batched_tokens: self.number_or_auto("max-num-batched-tokens")?,
            precision: self.get("dtype", value::parse_precision)?,
            quantize: self.get("quantization", value::parse_quantization)?,
            cache: self.get("kv-cache-dtype", value::parse_cache)?,
            devices: self.get("device", value::parse_devices)?,
            threads: self.optional_number("threads")?,
            kv_memory: bytes("kv-memory")?,
            gpu_memory_utilization: self.get("gpu-memory-utilization", |v| match v.parse::<f64>() {
                Ok(share) if (0.05..=1.0).contains(&share) => Ok(share),
                _ => Err("is not a share from 0.05 to 1".to_string()),
            })?,
            prefix_caching: self.flag("enable-prefix-caching")?,
            speculation: self.speculation()?,
            async_scheduling: self.get("async-scheduling", |v| match v {
                "auto" => Ok(None),
                "true" | "1" => Ok(Some(true)),
                "false" | "0" => Ok(Some(false)),
                _ => Err("is neither auto, true nor false".into()),
            })?,
            enforce_eager: self.flag("enforce-eager")?,
            enable_pdl: self.flag("enable-pdl")?,
            batch_invariant: self.flag("batch-invariant")?,
            max_queue: self.number("max-queue", 1)?,
            api_key: self.text("api-key"),
            insecure: self.flag("insecure")?,
            state_dir: self.text("state-dir").map(PathBuf::from).or_else(|| self.1.state.clone()),
            metrics: self.get("metrics", |v| match v {
                "auto" => Ok(MetricsFor::Auto),
                "open" => Ok(MetricsFor::Open),
                "key" => Ok(MetricsFor::Key),
                "admin-only" => Ok(MetricsFor::AdminOnly),
                _ => Err("is not auto, open, key or admin-only".to_string()),
            })?,
            admin_listen: self.get("admin-listen", places::parse_admin_listen)?,
            admin_token: self.text("admin-token"),
            runtime_dir: self.1.runtime.clone(),
            tells_thoughts: self.get("reasoning-parser", |v| match v {
                "auto" => Ok(true),
                "none" => Ok(false),
                _ => Err("is not auto or none".to_string()),
            })?,
            tool_parser: self.get("tool-call-parser", value::parse_tool_parser)?,
            tls: self.tls()?,
            allowed_hosts: list(&self.0["allowed-hosts"].0),
            allowed_origins: self.get("allowed-origins", value::parse_origins)?,
            refuse_unknown_parameters: self.get("unknown-parameters", |v| match v {
                "refuse" => Ok(true),
                "warn" => Ok(false),
                _ => Err("is neither refuse nor warn".into()),
            })?,
            max_body_bytes: usize::try_from(max_body).unwrap_or(usize::MAX),
            max_connections: self.number("max-connections", 1)?,
            header_timeout: self.duration("header-timeout")?,
            body_timeout: self.duration("body-timeout")?,
            idle_timeout: self.duration("idle-timeout")?,
            write_timeout: self.duration("write-timeout")?,
            keep_alive: self.duration("keep-alive-interval")?,
            step_timeout: match self.0["step-timeout"].0.as_str() {
                "auto" => None,
                _ => Some(self.duration("step-timeout")?),
            },
            drain_timeout: self.duration("drain-timeout")?,
            vllm_metrics: self.flag("vllm-metrics")?,
            meter: self.get("meter", |v| v.parse().map_err(|e: PowerError| e.problem()))?,
            require_measured: self.flag("require-measured")?,
            models_dir: self.text("models-dir").map(PathBuf::from),
            hub: self.1.hub.clone(),
            log_level: self.text("log-level").unwrap_or_default(),
            log_format: self.get("log-format", |v| match v {
                "text" => Ok(LogFormat::Text),
                "json" => Ok(LogFormat::Json),
                _ => Err("is neither text nor json".into()),
            })?,
        };
        config.check()?;
        Ok(config)
    }
}

impl Config {
    fn check(&self) -> Result<(), ConfigError> {
        for (name, secret) in [("api-key", &self.api_key), ("admin-token", &self.admin_token)] {
            if secret.as_ref().is_some_and(|k| k.trim() != k || k.len() < 8) {
                return Err(ConfigError::Refused(format!(
                    "{name} must have at least 8 characters and no spaces around it"
                )));
            }
        }
        Ok(())
    }

    /// Of a GPU, of a processor.
    fn by_device<T>(&self, gpu: T, cpu: T) -> T {
        if self.devices.iter().any(|d| matches!(d, DeviceKind::Cuda(_))) { gpu } else { cpu }
    }

    /// Sequences in one step at most, once the devices are chosen.
    pub fn sequences(&self) -> usize {
        self.max_num_seqs.unwrap_or_else(|| self.by_device(256, 64))
    }

    /// Tokens in one step at most, once the devices are chosen. A GPU needs a thousand for its products to run at
    /// their best; on a processor a longer step would only make the others wait.
    pub fn batched_tokens(&self) -> usize {
        self.max_num_batched_tokens.unwrap_or_else(|| self.by_device(2048, 512))
    }

    /// Silence after which an engine hangs, once the devices are chosen. A step of prompts takes a GPU seconds at
    /// most, a processor with a large model minutes.
    pub fn longest_step(&self) -> Duration {
        self.step_timeout.unwrap_or_else(|| Duration::from_secs(self.by_device(60, 900)))
    }

    /// Whether anybody may ask as long as there is no key.
    pub fn trusts_its_network(&self) -> bool {
        self.host.is_loopback() || self.insecure
    }

    /// Refuses to listen to strangers without a key. Only what opens a port asks. `kept`: keys are in the store.
    ///
    /// # Errors
    /// `Refused`, saying what to do.
    pub fn check_exposure(&self, kept: bool) -> Result<(), ConfigError> {
        if self.trusts_its_network() || self.api_key.is_some() || kept {
            return Ok(());
        }
        Err(ConfigError::Refused(format!(
            "host {} can be reached from other machines and there is no key: make one (hashwatt keys create) \
             or set --api-key (or HASHWATT_API_KEY), or say --insecure if the network itself is trusted",
            self.host
        )))
    }
}

fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|s| !s.is_empty()).map(str::to_string).collect()
}

/// The process's environment.
#[allow(clippy::disallowed_methods)] // this is the place that reads it
pub fn process_environment() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(k, v)| Some((k.into_string().ok()?, v.to_string_lossy().into_owned())))
        .collect()
}

/// What `HASHWATT_*` variables set.
fn environment_settings(
    environment: &[(String, String)],
) -> Result<Vec<(&'static Setting, String, String)>, ConfigError> {
    let mut found = Vec::new();
    for (variable, value) in environment {
        let Some(name) = variable.strip_prefix("HASHWATT_") else { continue };
        let name = name.to_ascii_lowercase().replace('_', "-");
        let setting = settings::find(&name).ok_or_else(|| ConfigError::Unknown {
            name: name.clone(),
            origin: format!("environment {variable}"),
        })?;
        found.push((setting, value.clone(), variable.clone()));
    }
    Ok(found)
}

/// What a `unit.toml` sets. Keys are the flags' names, with `_` or `-`.
fn file_settings(path: &Path) -> Result<Vec<(&'static str, String)>, ConfigError> {
    let fail = |problem: String| ConfigError::File { file: path.display().to_string(), problem };
    let text = std::fs::read_to_string(path).map_err(|e| fail(e.to_string()))?;
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| fail(e.to_string()))?;
    let mut found = Vec::new();
    for (key, value) in table {
        let name = key.replace('_', "-");
        let origin = || format!("file {}", path.display());
        let setting = settings::find(&name)
            .filter(|s| s.name != "config")
            .ok_or_else(|| ConfigError::Unknown { name: key.clone(), origin: origin() })?;
        let value = match value {
            toml::Value::String(s) => s,
            toml::Value::Array(all) => {
                let items: Option<Vec<&str>> = all.iter().map(toml::Value::as_str).collect();
                items.ok_or_else(|| fail(format!("`{key}` is not a list of strings")))?.join(",")
            }
            toml::Value::Table(_) => return Err(fail(format!("`{key}` is a table; settings are flat"))),
            other => other.to_string(),
        };
        found.push((setting.name, value));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(flags: &[(&'static str, &str)], env: &[(&str, &str)]) -> Result<Resolved, ConfigError> {
        let flags: Vec<_> = flags.iter().map(|(k, v)| (*k, v.to_string())).collect();
        let env: Vec<_> = env.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        Resolved::merge(&flags, &env)
    }

    #[test]
    fn a_flag_beats_the_environment_beats_the_file_beats_the_default() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("unit.toml");
        std::fs::write(
            &file,
            "port = 1\nmax_queue = 2\nmax-num-seqs = 3\nserved-model-name = [\"a\", \"b\"]",
        )
        .unwrap();
        let path = file.to_str().unwrap();
        let r = resolve(
            &[("port", "11"), ("config", path)],
            &[("HASHWATT_PORT", "12"), ("HASHWATT_MAX_QUEUE", "22")],
        )
        .unwrap();
        let c = r.config().unwrap();
        assert_eq!((c.port, c.max_queue, c.sequences(), c.drain_timeout.as_secs()), (11, 22, 3, 30));
        assert_eq!(c.served_model_names, ["a", "b"]);
        let lines = r.lines().join("\n");
        for want in [
            "port = 11  # flag",
            "max-queue = 22  # environment HASHWATT_MAX_QUEUE",
            "max-num-seqs = 3  # file",
        ] {
            assert!(lines.contains(want), "{lines}");
        }
    }

    #[test]
    fn the_size_of_a_step_is_that_of_the_devices_unless_it_is_said() {
        let sizes = |flags: &[(&'static str, &str)]| {
            let c = resolve(flags, &[]).unwrap().config().unwrap();
            (c.sequences(), c.batched_tokens())
        };
        assert_eq!(sizes(&[("device", "cpu,cpu")]), (64, 512));
        assert_eq!(sizes(&[("device", "cuda:0,2")]), (256, 2048));
        assert_eq!(sizes(&[("device", "cuda:0"), ("max-num-seqs", "7")]), (7, 2048));
        assert_eq!(sizes(&[("max-num-batched-tokens", "9")]), (64, 9));
        let longest = |flags: &[(&'static str, &str)]| {
            resolve(flags, &[]).unwrap().config().unwrap().longest_step().as_secs()
        };
        assert_eq!(longest(&[("device", "cuda:0")]), 60);
        assert_eq!(longest(&[("device", "cpu")]), 900);
        assert_eq!(longest(&[("device", "cuda:0"), ("step-timeout", "5s")]), 5);
    }

    #[test]
    fn what_is_not_known_or_not_possible_is_named() {
        let unknown = |r: Result<Resolved, ConfigError>| r.err().unwrap().to_string();
        assert!(unknown(resolve(&[], &[("HASHWATT_PROT", "1")])).contains("HASHWATT_PROT"));
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("unit.toml");
        for (text, want) in [
            ("prot = 1", "prot"),
            ("port = {}", "port"),
            ("port = ", "unit.toml"),
            ("config = \"x\"", "config"),
        ] {
            std::fs::write(&file, text).unwrap();
            assert!(unknown(resolve(&[("config", file.to_str().unwrap())], &[])).contains(want));
        }
        assert!(unknown(resolve(&[("config", "/no/such/file")], &[])).contains("/no/such/file"));
        for (name, value) in [
            ("port", "65536"),
            ("host", "example"),
            ("max-num-seqs", "0"),
            ("dtype", "int3"),
            ("quantization", "awq"),
            ("kv-cache-dtype", "fp8_e5m2"),
            ("device", "tpu"),
            ("async-scheduling", "maybe"),
            ("speculative", "wild"),
            ("num-speculative-tokens", "65"),
            ("num-speculative-tokens", "0"),
            ("step-timeout", "long"),
            ("kv-memory", "lots"),
            ("drain-timeout", "-3"),
            ("unknown-parameters", "ignore"),
            ("vllm-metrics", "perhaps"),
            ("meter", "wattmeter"),
            ("metrics", "closed"),
            ("admin-listen", "unix:"),
            ("admin-listen", "localhost"),
        ] {
            let error = resolve(&[(name, value)], &[]).unwrap().config().unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(value) && error.contains("flag"), "{error}");
        }
    }

    #[test]
    fn a_key_is_never_shown_and_strangers_need_one() {
        let r = resolve(&[("host", "0.0.0.0")], &[("HASHWATT_API_KEY", "secret-key-1")]).unwrap();
        assert!(!r.lines().join("\n").contains("secret"));
        r.config().unwrap().check_exposure(false).unwrap();
        let short = resolve(&[("api-key", "short")], &[]).unwrap().config().unwrap_err();
        assert!(!short.to_string().contains("short\""));
        let open = resolve(&[("host", "0.0.0.0")], &[]).unwrap().config().unwrap();
        assert!(open.check_exposure(false).is_err() && open.check_exposure(true).is_ok());
        let trusted = resolve(&[("host", "0.0.0.0"), ("insecure", "true")], &[]).unwrap().config().unwrap();
        trusted.check_exposure(false).unwrap();
    }
}
