//! An external meter that answers JSON over HTTP: a PDU, a BMC through Redfish, a Prometheus query.
//!
//! URL and path → the number found there as watts or joules. A thread of its own fetches once a period, so a slow
//! meter never holds up the others; reading gives the last value, or why there is none that is recent.
//! Knows nothing of what hangs on the meter: the boundary is what the operator wrote behind `@`.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;

use super::{Boundary, MeterInfo, Method, PowerError, PowerMeter, Reading};
use crate::clock::{Clock, Tick};
use crate::http_client::{HttpClient, HttpError, Timeouts, shown};
use crate::quantity::{Joules, Watts};

pub const DEFAULT_PERIOD: Duration = Duration::from_secs(1);
/// A value older than so many periods is none.
const STALE_PERIODS: u32 = 5;
/// What meters of racks promise; the instrument's own class is not known here.
const GAIN_ERROR: f64 = 0.05;
const TIMEOUTS: Timeouts = Timeouts { connect: Duration::from_secs(2), total: Duration::from_secs(4) };

/// The unit of the number, behind `:`.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Unit {
    Power { watts: f64 },
    Energy { joules: f64 },
}

const UNITS: &[(&str, Unit)] = &[
    ("watts", Unit::Power { watts: 1.0 }),
    ("milliwatts", Unit::Power { watts: 1e-3 }),
    ("kilowatts", Unit::Power { watts: 1e3 }),
    ("joules", Unit::Energy { joules: 1.0 }),
    ("wh", Unit::Energy { joules: 3.6e3 }),
    ("kwh", Unit::Energy { joules: 3.6e6 }),
];

const BOUNDARIES: [Boundary; 5] =
    [Boundary::GpuBoard, Boundary::CpuPackage, Boundary::Dram, Boundary::Node, Boundary::Site];

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Key(String),
    Index(usize),
}

/// What stands behind `#`: `data.result[0].value[1]:joules@site`.
#[derive(Debug, Clone, PartialEq)]
struct Query {
    steps: Vec<Step>,
    unit: Unit,
    boundary: Boundary,
}

impl Query {
    fn parse(text: &str) -> Result<Query, String> {
        let (steps, rest) = steps(text)?;
        let (unit, boundary) = rest.split_once('@').map_or((rest, None), |(unit, b)| (unit, Some(b)));
        let unit = match unit.strip_prefix(':') {
            None if unit.is_empty() => Unit::Power { watts: 1.0 },
            None => return Err(format!("{unit:?} is not understood; a path is like a.b[0][\"c.d\"]")),
            Some(name) => {
                let known = UNITS.iter().find(|(n, _)| n.eq_ignore_ascii_case(name));
                known
                    .ok_or_else(|| {
                        format!("unit {name:?} is not one of {}", names(UNITS.iter().map(|u| u.0)))
                    })?
                    .1
            }
        };
        let boundary = match boundary {
            None => Boundary::Node,
            Some(name) => BOUNDARIES.into_iter().find(|b| b.as_str() == name).ok_or_else(|| {
                format!("boundary {name:?} is not one of {}", names(BOUNDARIES.iter().map(|b| b.as_str())))
            })?,
        };
        Ok(Query { steps, unit, boundary })
    }

    fn method(&self) -> Method {
        match self.unit {
            Unit::Power { .. } => Method::Integrated,
            Unit::Energy { .. } => Method::Counter,
        }
    }

    fn reading(&self, answer: &Value) -> Result<Reading, String> {
        let number = match self.steps.is_empty() {
            true => whole(answer)?,
            false => number(walk(answer, &self.steps)?)?,
        };
        if !number.is_finite() || number < 0.0 {
            return Err(format!("{number} is neither a power nor an energy"));
        }
        Ok(match self.unit {
            Unit::Power { watts } => Reading::Power(Watts(number * watts)),
            Unit::Energy { joules } => Reading::Counter(Joules(number * joules)),
        })
    }
}

fn names<'a>(all: impl Iterator<Item = &'a str>) -> String {
    all.collect::<Vec<_>>().join(", ")
}

/// The steps of a path, and what follows them.
fn steps(text: &str) -> Result<(Vec<Step>, &str), String> {
    let (mut steps, mut rest) = (Vec::new(), text);
    loop {
        if let Some(inner) = rest.strip_prefix("[\"") {
            let end = inner.find("\"]").ok_or("[\" without \"]")?;
            steps.push(Step::Key(inner[..end].into()));
            rest = &inner[end + 2..];
        } else if let Some(inner) = rest.strip_prefix('[') {
            let end = inner.find(']').ok_or("[ without ]")?;
            let index = inner[..end].parse().map_err(|_| format!("[{}] is not an index", &inner[..end]))?;
            steps.push(Step::Index(index));
            rest = &inner[end + 1..];
        } else {
            let name = match rest.strip_prefix('.') {
                Some(name) if !steps.is_empty() => name,
                _ if steps.is_empty() => rest,
                _ => return Ok((steps, rest)),
            };
            let end = name.find(['.', '[', ':', '@']).unwrap_or(name.len());
            if end == 0 {
                return if rest.starts_with('.') {
                    Err("a dot without a name".into())
                } else {
                    Ok((steps, rest))
                };
            }
            steps.push(Step::Key(name[..end].into()));
            rest = &name[end..];
        }
    }
}

fn walk<'a>(answer: &'a Value, steps: &[Step]) -> Result<&'a Value, String> {
    let (mut at, mut passed) = (answer, String::new());
    for step in steps {
        let (next, name) = match step {
            Step::Key(key) => (at.get(key), format!(".{key}")),
            Step::Index(index) => (at.get(index), format!("[{index}]")),
        };
        at = next.ok_or_else(|| {
            let place = if passed.is_empty() { "the answer" } else { passed.trim_start_matches('.') };
            format!("no {:?} in {place}, which is {}", name.trim_start_matches('.'), described(at))
        })?;
        passed.push_str(&name);
    }
    Ok(at)
}

/// What a value is, in a few words.
fn described(value: &Value) -> String {
    const SHOWN: usize = 12;
    match value {
        Value::Object(map) if map.is_empty() => "an empty object".into(),
        Value::Object(map) => {
            let keys: Vec<String> = map.keys().take(SHOWN).map(|k| cut(&format!("{k:?}"))).collect();
            let more = if map.len() > SHOWN { ", …" } else { "" };
            format!("an object of {}{more}", keys.join(", "))
        }
        Value::Array(list) => format!("a list of {}", list.len()),
        other => cut(&other.to_string()),
    }
}

fn cut(text: &str) -> String {
    text.chars().take(60).collect()
}

/// A number, a number in a string, or Prometheus' pair of time and number.
fn number(value: &Value) -> Result<f64, String> {
    let found = match value {
        Value::Number(n) => n.as_f64(),
        Value::String(s) => s.trim().parse().ok(),
        Value::Array(pair) => match pair.as_slice() {
            [Value::Number(_), Value::String(s)] => s.trim().parse().ok(),
            _ => None,
        },
        _ => None,
    };
    found.ok_or_else(|| format!("there is no number but {}", described(value)))
}

/// An answer without a path: a number, or a Prometheus instant query, whose series are added up.
fn whole(answer: &Value) -> Result<f64, String> {
    let Some(data) = answer.get("data").filter(|_| answer.get("status").is_some()) else {
        return number(answer).map_err(|found| format!("{found}; write the path to the number behind #"));
    };
    let kind = data.get("resultType").and_then(Value::as_str).unwrap_or("unknown");
    match (kind, data.get("result")) {
        ("scalar", Some(value)) => number(value),
        ("vector", Some(Value::Array(series))) if series.is_empty() => Err("the query has no result".into()),
        ("vector", Some(Value::Array(series))) => {
            series.iter().map(|s| number(s.get("value").unwrap_or(&Value::Null))).sum()
        }
        _ => Err(format!("a Prometheus result of type {}: ask an instant query", cut(kind))),
    }
}

struct Last {
    reading: Reading,
    at: Tick,
    /// Why the fetches since have failed.
    problem: Option<String>,
    ended: bool,
}

struct Shared {
    last: Mutex<Last>,
    end: Condvar,
}

impl Shared {
    fn last(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `--meter http:URL#path`. Its thread ends with it, at the latest when the fetch under way does.
pub struct HttpMeter {
    info: MeterInfo,
    clock: Clock,
    shared: Arc<Shared>,
}

impl HttpMeter {
    /// Fetches once, so that a wrong URL or path is told at start, with what was found there.
    ///
    /// # Errors
    /// [`PowerError`].
    pub fn open(url: &str, path: &str, clock: Clock) -> Result<HttpMeter, PowerError> {
        HttpMeter::open_with(url, path, clock, DEFAULT_PERIOD)
    }

    /// # Errors
    /// [`PowerError`].
    pub fn open_with(url: &str, path: &str, clock: Clock, period: Duration) -> Result<HttpMeter, PowerError> {
        let name = match path {
            "" => shown(url),
            path => format!("{}#{path}", shown(url)),
        };
        let spec = |problem: String| PowerError::Spec { value: format!("http:{name}"), problem };
        let query = Query::parse(path).map_err(spec)?;
        let client = HttpClient::new(TIMEOUTS);
        let answer = client.get_json(url).map_err(|error| refused(&name, error))?;
        let reading = query.reading(&answer).map_err(spec)?;
        let info = MeterInfo {
            name: name.clone(),
            device: None,
            boundary: query.boundary,
            method: query.method(),
            period,
            lag: period / 2,
            full: None,
            wraps_at: None,
            gain_error: GAIN_ERROR,
        };
        let last = Last { reading, at: clock.now(), problem: None, ended: false };
        let shared = Arc::new(Shared { last: Mutex::new(last), end: Condvar::new() });
        let fetcher = Fetcher { client, url: url.into(), query, clock: clock.clone(), period };
        let theirs = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("hashwatt-http-meter".into())
            .spawn(move || fetcher.run(&theirs))
            .map_err(|e| PowerError::Absent { meter: name, problem: e.to_string() })?;
        Ok(HttpMeter { info, clock, shared })
    }
}

fn refused(name: &str, error: HttpError) -> PowerError {
    let (meter, problem) = (name.to_string(), error.to_string());
    match error {
        HttpError::Url { .. } => PowerError::Spec { value: format!("http:{name}"), problem },
        HttpError::Status { code: 401 | 403, .. } => PowerError::Permission { meter, problem },
        _ => PowerError::Absent { meter, problem },
    }
}

struct Fetcher {
    client: HttpClient,
    url: String,
    query: Query,
    clock: Clock,
    period: Duration,
}

impl Fetcher {
    fn run(&self, shared: &Shared) {
        loop {
            let last = shared.last();
            let waited = shared.end.wait_timeout_while(last, self.period, |last| !last.ended);
            let (last, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if last.ended {
                return;
            }
            drop(last);
            let fetched = self.client.get_json(&self.url).map_err(|e| e.to_string());
            let reading = fetched.and_then(|answer| self.query.reading(&answer));
            let mut last = shared.last();
            match reading {
                Ok(reading) => {
                    last.reading = reading;
                    last.at = self.clock.now();
                    last.problem = None;
                }
                Err(problem) => last.problem = Some(problem),
            }
        }
    }
}

impl PowerMeter for HttpMeter {
    fn info(&self) -> &MeterInfo {
        &self.info
    }

    fn read(&mut self) -> Result<Reading, PowerError> {
        let last = self.shared.last();
        let age = self.clock.now().since(last.at);
        if age <= self.info.period * STALE_PERIODS {
            return Ok(last.reading);
        }
        let why = last.problem.as_deref().unwrap_or("the meter has not answered yet");
        let problem = format!("no reading for {:.1} s: {why}", age.as_secs_f64());
        Err(PowerError::Unreadable { meter: self.info.name.clone(), problem })
    }
}

impl Drop for HttpMeter {
    fn drop(&mut self) {
        self.shared.last().ended = true;
        self.shared.end.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http_client::testing::{Answer, Server};
    use proptest::prelude::*;
    use serde_json::json;

    fn reading(path: &str, answer: &Value) -> Result<Reading, String> {
        Query::parse(path)?.reading(answer)
    }

    #[test]
    fn paths_find_what_pdus_and_bmcs_say() {
        let redfish = json!({"PowerControl": [{"Name": "System", "PowerConsumedWatts": 1730}]});
        let pdu = json!({"data": {"watts": "412.5", "energy.kWh": 2, "mW": 1500}});
        let prometheus = json!({"status": "success", "data": {"resultType": "vector", "result": [
            {"metric": {"outlet": "1"}, "value": [1782467000.1, "123.4"]},
            {"metric": {"outlet": "2"}, "value": [1782467000.1, "100"]},
        ]}});
        let watts = |w| Ok(Reading::Power(Watts(w)));
        assert_eq!(reading("PowerControl[0].PowerConsumedWatts", &redfish), watts(1730.0));
        assert_eq!(reading("data.watts", &pdu), watts(412.5));
        assert_eq!(reading("data.mW:milliwatts@site", &pdu), watts(1.5));
        assert_eq!(reading("[\"data\"][\"energy.kWh\"]:kWh", &pdu), Ok(Reading::Counter(Joules(7.2e6))));
        assert_eq!(reading("data.result[0].value[1]", &prometheus), watts(123.4));
        assert_eq!(reading("data.result[1].value:kilowatts", &prometheus), watts(100_000.0));
        assert_eq!(reading("", &prometheus), watts(223.4));
        assert_eq!(reading(":joules", &prometheus), Ok(Reading::Counter(Joules(223.4))));
        let scalar = json!({"status": "success", "data": {"resultType": "scalar", "result": [1.5, "80"]}});
        assert_eq!(reading("", &scalar), watts(80.0));
        assert_eq!(reading("@gpu_board", &json!(55)), watts(55.0));
    }

    #[test]
    fn what_is_wrong_is_named_with_what_was_found() {
        let answer = json!({"PowerControl": [{"Name": "System", "Watts": null, "Cold": -4, "N": "NaN"}]});
        for (path, want) in [
            ("Power", "no \"Power\" in the answer, which is an object of \"PowerControl\""),
            ("PowerControl[1]", "no \"[1]\" in PowerControl, which is a list of 1"),
            (
                "PowerControl[0].watts",
                "\"watts\" in PowerControl[0], which is an object of \"Name\", \"Watts\"",
            ),
            ("PowerControl[0].Watts", "no number but null"),
            ("PowerControl[0].Name", "no number but \"System\""),
            ("PowerControl[0].Cold", "-4 is neither"),
            ("PowerControl[0].N", "NaN is neither"),
            ("", "write the path"),
            ("a:horsepower", "unit \"horsepower\" is not one of watts, milliwatts"),
            ("a@moon", "boundary \"moon\" is not one of gpu_board"),
            ("a[x]", "[x] is not an index"),
            ("a[0", "[ without ]"),
            ("a..b", "a dot without a name"),
            ("a[0]b", "\"b\" is not understood"),
        ] {
            let problem = reading(path, &answer).unwrap_err();
            assert!(problem.contains(want), "{path}: {problem}");
        }
        let matrix = json!({"status": "success", "data": {"resultType": "matrix", "result": []}});
        assert!(reading("", &matrix).unwrap_err().contains("matrix"));
        let none = json!({"status": "success", "data": {"resultType": "vector", "result": []}});
        assert!(reading("", &none).unwrap_err().contains("no result"));
    }

    proptest! {
        #[test]
        fn no_path_panics(path in "\\PC{0,30}", shaped in "[a\\[\\]\".:@01]{0,20}") {
            let answer = json!({"a": [{"a": 1}, "01"], "01": "a"});
            for path in [path, shaped] {
                if let Ok(Reading::Power(Watts(w)) | Reading::Counter(Joules(w))) = reading(&path, &answer) {
                    prop_assert!(w >= 0.0);
                }
            }
        }
    }

    #[test]
    fn a_wrong_meter_fails_at_start() {
        let open = |answer: Answer, path: &str| {
            let server = Server::start(move |_| answer.clone());
            let opened = HttpMeter::open(&format!("{}/p?key=SECRET", server.url), path, Clock::fake());
            opened.err().unwrap()
        };
        let path = open(Answer::ok("{\"power\": 3}"), "watts");
        assert!(matches!(&path, PowerError::Spec { problem, .. } if problem.contains("\"power\"")), "{path}");
        let permission = open(Answer::code(401, "", ""), "watts");
        assert!(matches!(permission, PowerError::Permission { .. }), "{permission}");
        let broken = open(Answer::code(500, "", "on fire"), "watts");
        assert!(
            matches!(&broken, PowerError::Absent { problem, .. } if problem.contains("on fire")),
            "{broken}"
        );
        for error in [path, permission, broken] {
            assert!(!error.to_string().contains("SECRET"), "{error}");
        }
        let url = HttpMeter::open("pdu", "", Clock::fake()).err().unwrap();
        assert!(matches!(url, PowerError::Spec { .. }), "{url}");
    }

    /// Waits for another thread, without an opinion on how long that takes.
    fn wait(what: &str, mut done: impl FnMut() -> bool) {
        for _ in 0..6_000 {
            if done() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("never: {what}");
    }

    #[test]
    fn a_meter_follows_goes_stale_and_comes_back() {
        let state = Arc::new(Mutex::new(Answer::ok("{\"w\": 100}")));
        let theirs = Arc::clone(&state);
        let server = Server::start(move |_| theirs.lock().unwrap().clone());
        let clock = Clock::fake();
        let period = Duration::from_millis(10);
        let mut meter = HttpMeter::open_with(&server.url, "w@site", clock.clone(), period).unwrap();
        let info = meter.info();
        assert_eq!((info.method, info.boundary, info.gain_error), (Method::Integrated, Boundary::Site, 0.05));
        assert_eq!((info.period, info.device, info.wraps_at), (period, None, None));
        assert_eq!(meter.read(), Ok(Reading::Power(Watts(100.0))));

        *state.lock().unwrap() = Answer::ok("{\"w\": 250}");
        wait("the new value", || meter.read() == Ok(Reading::Power(Watts(250.0))));

        *state.lock().unwrap() = Answer::ok("{\"v\": 1}");
        wait("the failure", || meter.shared.last().problem.is_some());
        // Not yet old: the last value stands. Then it does not, and says why.
        clock.advance(period * 5);
        assert!(meter.read().is_ok());
        clock.advance(period);
        let stale = meter.read().unwrap_err();
        assert!(
            matches!(&stale, PowerError::Unreadable { problem, .. } if problem.contains("no \"w\"")),
            "{stale}"
        );

        *state.lock().unwrap() = Answer::ok("{\"w\": 90}");
        wait("the meter's return", || meter.read() == Ok(Reading::Power(Watts(90.0))));

        let shared = Arc::downgrade(&meter.shared);
        drop(meter);
        wait("the thread's end", || shared.strong_count() == 0);
    }

    #[test]
    fn reading_does_not_wait_for_a_meter_that_hangs() {
        let hold = Arc::new(Mutex::new(()));
        let (theirs, first) = (Arc::clone(&hold), std::sync::atomic::AtomicBool::new(true));
        let server = Server::start(move |_| {
            if !first.swap(false, std::sync::atomic::Ordering::AcqRel) {
                drop(theirs.lock().unwrap());
            }
            Answer::ok("7")
        });
        let held = hold.lock().unwrap();
        let mut meter =
            HttpMeter::open_with(&server.url, ":joules", Clock::fake(), Duration::from_millis(1)).unwrap();
        assert_eq!(meter.info().method, Method::Counter);
        // The thread sits in its fetch; the test would never end if reading waited for it.
        for _ in 0..100 {
            assert_eq!(meter.read(), Ok(Reading::Counter(Joules(7.0))));
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(meter);
        drop(held);
    }
}
