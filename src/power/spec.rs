//! `--meter` as text → the meters of this process. The one place that knows all kinds of meters.
//!
//! `auto` takes the best instrument there is: NVML where engines run on NVIDIA boards, else RAPL, else
//! nameplates; it says what it passed over and why.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::declared::{Declared, GAIN_ERROR, PERIOD};
use super::http::HttpMeter;
use super::{Boundary, MeterInfo, Method, PowerError, PowerMeter, assumed, nvml, rapl, replay};
use crate::clock::{BusyTime, Clock};
use crate::quantity::Watts;

/// What `--meter` asks for.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum MeterSpec {
    #[default]
    Auto,
    Nvml,
    Rapl,
    /// Path into the answer, as [`HttpMeter::open`] takes it.
    Http {
        url: String,
        path: String,
    },
    Declared {
        idle: Watts,
        full: Watts,
    },
    Assumed,
    Replay(PathBuf),
}

/// What meters need to know of this process.
#[derive(Clone)]
pub struct MeterContext {
    pub clock: Clock,
    /// Of each engine.
    pub busy: Vec<BusyTime>,
    pub cores: usize,
    /// Engines run on NVIDIA boards, engine i on board i.
    pub gpus: bool,
    /// UUIDs of their boards, in the engines' order, empty for one of the CPU; none where CUDA does not tell them.
    pub gpu_uuids: Vec<String>,
    /// Instead of the system's `libnvidia-ml.so.1`.
    pub nvml_library: Option<PathBuf>,
    pub powercap: PathBuf,
}

impl MeterContext {
    pub fn new(clock: Clock, busy: Vec<BusyTime>, cores: usize) -> MeterContext {
        MeterContext {
            clock,
            busy,
            cores,
            gpus: false,
            gpu_uuids: Vec::new(),
            nvml_library: None,
            powercap: rapl::POWERCAP.into(),
        }
    }
}

/// The meters, and what is to be said about the choice.
pub struct Opened {
    pub meters: Vec<Box<dyn PowerMeter>>,
    pub notes: Vec<String>,
}

impl FromStr for MeterSpec {
    type Err = PowerError;

    fn from_str(text: &str) -> Result<MeterSpec, PowerError> {
        let wrong = |problem: &str| PowerError::Spec { value: text.into(), problem: problem.into() };
        let (kind, rest) = text.split_once(':').map_or((text, None), |(kind, rest)| (kind, Some(rest)));
        match (kind, rest) {
            ("auto", None) => Ok(MeterSpec::Auto),
            ("nvml", None) => Ok(MeterSpec::Nvml),
            ("rapl", None) => Ok(MeterSpec::Rapl),
            ("assumed", None) => Ok(MeterSpec::Assumed),
            ("replay", Some(file)) if !file.is_empty() => Ok(MeterSpec::Replay(file.into())),
            ("http", Some(rest)) if !rest.is_empty() => {
                let (url, path) = rest.split_once('#').unwrap_or((rest, ""));
                // `http:http://…` in full, or the URL as it stands: `http://…`, which begins with the kind.
                let url = if url.starts_with("//") { format!("http:{url}") } else { url.to_string() };
                Ok(MeterSpec::Http { url, path: path.into() })
            }
            ("https", Some(_)) => {
                let (url, path) = text.split_once('#').unwrap_or((text, ""));
                Ok(MeterSpec::Http { url: url.into(), path: path.into() })
            }
            ("declared", Some(watts)) => {
                let shape = || wrong("it is declared:IDLE,FULL in watts, with 0 <= IDLE <= FULL");
                let (idle, full) = watts.split_once(',').ok_or_else(shape)?;
                let number = |t: &str| t.trim().parse::<f64>().ok().filter(|w| w.is_finite() && *w >= 0.0);
                match (number(idle), number(full)) {
                    (Some(idle), Some(full)) if idle <= full => {
                        Ok(MeterSpec::Declared { idle: Watts(idle), full: Watts(full) })
                    }
                    _ => Err(shape()),
                }
            }
            _ => Err(wrong(
                "there are auto, nvml, rapl, http:URL#PATH, declared:IDLE,FULL, assumed and replay:FILE",
            )),
        }
    }
}

impl fmt::Display for MeterSpec {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            MeterSpec::Auto => f.write_str("auto"),
            MeterSpec::Nvml => f.write_str("nvml"),
            MeterSpec::Rapl => f.write_str("rapl"),
            MeterSpec::Assumed => f.write_str("assumed"),
            MeterSpec::Http { url, path } => write!(f, "http:{url}#{path}"),
            MeterSpec::Declared { idle, full } => write!(f, "declared:{},{}", idle.0, full.0),
            MeterSpec::Replay(file) => write!(f, "replay:{}", file.display()),
        }
    }
}

/// Opens what is asked for.
///
/// # Errors
/// An instrument that is not there or may not be read. `auto` fails only when nothing at all can be had.
pub fn open(spec: &MeterSpec, context: &MeterContext) -> Result<Opened, PowerError> {
    let clock = || context.clock.clone();
    let one = |meter: Box<dyn PowerMeter>| vec![meter];
    let meters = match spec {
        MeterSpec::Auto => return auto(context),
        MeterSpec::Nvml if !context.gpus => {
            let problem = "no engine of this process runs on an NVIDIA board".into();
            return Err(PowerError::Absent { meter: "nvml".into(), problem });
        }
        MeterSpec::Nvml => nvml::open(context.nvml_library.as_deref(), &context.gpu_uuids)?,
        MeterSpec::Rapl => rapl::open(&context.powercap)?,
        MeterSpec::Http { url, path } => one(Box::new(HttpMeter::open(url, path, clock())?)),
        MeterSpec::Assumed => one(Box::new(assumed::cpu(context.cores, clock(), context.busy.clone())?)),
        MeterSpec::Replay(file) => replay::open(file, &context.clock)?,
        MeterSpec::Declared { idle, full } => {
            let info = MeterInfo {
                name: spec.to_string(),
                device: None,
                boundary: Boundary::Node,
                method: Method::Declared,
                period: PERIOD,
                lag: Duration::ZERO,
                full: None,
                wraps_at: None,
                gain_error: GAIN_ERROR,
            };
            one(Box::new(Declared::new(info, *idle, *full, clock(), context.busy.clone())?))
        }
    };
    Ok(Opened { meters, notes: Vec::new() })
}

fn auto(context: &MeterContext) -> Result<Opened, PowerError> {
    let (mut meters, mut notes) = (Vec::new(), Vec::new());
    let mut take = |found: Result<Vec<Box<dyn PowerMeter>>, PowerError>| match found {
        Ok(found) => meters.extend(found),
        Err(error) => notes.push(error.to_string()),
    };
    if context.gpus {
        take(nvml::open(context.nvml_library.as_deref(), &context.gpu_uuids));
    }
    // Beside boards, the host's packages: another boundary, never added to them.
    take(rapl::open(&context.powercap));
    if meters.is_empty() {
        meters = open(&MeterSpec::Assumed, context)?.meters;
    }
    Ok(Opened { meters, notes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_read_and_written_back() {
        for text in ["auto", "nvml", "rapl", "assumed", "replay:a b.csv", "declared:80,700.5"] {
            assert_eq!(text.parse::<MeterSpec>().unwrap().to_string(), text);
        }
        let url = |text: &str| match text.parse() {
            Ok(MeterSpec::Http { url, path }) => (url, path),
            other => panic!("{other:?}"),
        };
        let expected = ("http://pdu/api".to_string(), "a.b[0]:joules".to_string());
        assert_eq!(url("http:http://pdu/api#a.b[0]:joules"), expected);
        assert_eq!(url("http://pdu/api#a.b[0]:joules"), expected);
        assert_eq!(url("http:https://pdu").0, "https://pdu");
        assert_eq!(url("https://pdu").0, "https://pdu");
    }

    #[test]
    fn what_is_no_meter_is_named() {
        for text in [
            "",
            "wattmeter",
            "declared",
            "declared:5",
            "declared:5,4",
            "declared:-1,4",
            "declared:nan,4",
            "replay:",
            "replay",
            "http:",
            "rapl:0",
        ] {
            let error = text.parse::<MeterSpec>().unwrap_err();
            assert!(matches!(&error, PowerError::Spec { value, .. } if value == text), "{text}: {error}");
        }
    }

    #[test]
    fn auto_without_instruments_assumes_and_says_why() {
        let nothing = tempfile::tempdir().unwrap();
        let mut context = MeterContext::new(Clock::fake(), vec![BusyTime::default()], 4);
        context.powercap = nothing.path().join("powercap");
        let opened = open(&MeterSpec::Auto, &context).unwrap();
        assert_eq!(opened.meters[0].info().method, Method::Assumed);
        assert!(opened.notes.iter().any(|n| n.contains("rapl")), "{:?}", opened.notes);
        assert!(open(&MeterSpec::Rapl, &context).is_err());
    }
}
