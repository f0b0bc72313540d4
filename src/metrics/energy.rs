//! Metrics of the meters: joules by phase, watts, limits, throttling. Each series names its meter, its boundary
//! and its method, so that unlike ones are never added up by accident.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

/// One meter at the moment of a scrape.
#[derive(Debug, Clone, PartialEq)]
pub struct MeterSample {
    pub name: String,
    pub boundary: &'static str,
    pub method: String,
    /// The engine whose device it measures; `None` where several share what it measures.
    pub engine: Option<usize>,
    /// It gives readings.
    pub up: bool,
    pub watts: Option<f64>,
    pub limit_watts: Option<f64>,
    pub prefill_joules: f64,
    pub decode_joules: f64,
    pub overhead_joules: f64,
    pub idle_joules: f64,
    /// Idle power, and whether it was measured in quiet windows.
    pub idle_watts: Option<(f64, bool)>,
    /// (reason, seconds)
    pub throttled: Vec<(&'static str, f64)>,
    pub resets: u64,
    /// Compute processes of others on the board: their watts are in these figures.
    pub other_processes: Option<f64>,
    /// The board's last fault code.
    pub xid: Option<f64>,
}

/// All meters, and what they say of the unit.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EnergySample {
    pub meters: Vec<MeterSample>,
    /// Joules of requests over the tokens they generated, since the start.
    pub joules_per_token: Option<PerToken>,
    /// Settled joules of the engines' steps, in the order of their numbers.
    pub engines: Option<EngineJoules>,
}

/// Settled joules of requests inside one boundary over the tokens they generated.
#[derive(Debug, Clone, PartialEq)]
pub struct PerToken {
    pub joules: f64,
    pub boundary: &'static str,
    pub method: String,
}

/// Of each engine, inside one boundary: prefill, decode, overhead.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineJoules {
    pub joules: Vec<[f64; 3]>,
    pub boundary: &'static str,
    pub method: String,
}

pub type EnergySource = Box<dyn Fn() -> EnergySample + Send + Sync>;

pub(super) struct Exporter(pub EnergySource);

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("energy exporter")
    }
}

struct Row {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    /// Label beside the meter's own, its value and the sample's.
    values: Values,
}

const fn gauge(name: &'static str, help: &'static str, values: Values) -> Row {
    Row { name, help, kind: MetricType::Gauge, values }
}
const fn counter(name: &'static str, help: &'static str, values: Values) -> Row {
    Row { name, help, kind: MetricType::Counter, values }
}

/// A value, with a label of its own where a meter has several.
type Labelled = (Option<(&'static str, &'static str)>, f64);
type Values = fn(&MeterSample) -> Vec<Labelled>;

fn one(value: Option<f64>) -> Vec<Labelled> {
    value.into_iter().map(|v| (None, v)).collect()
}

#[rustfmt::skip]
static TABLE: &[Row] = &[
    counter("hashwatt_energy_joules", "Settled energy of requests (prefill, decode) and of failed steps and warm-up (overhead)", |m| vec![
        (Some(("phase", "prefill")), m.prefill_joules),
        (Some(("phase", "decode")), m.decode_joules),
        (Some(("phase", "overhead")), m.overhead_joules),
    ]),
    counter("hashwatt_idle_joules", "Settled energy of the time without a step", |m| one(Some(m.idle_joules))),
    gauge("hashwatt_power_watts", "Mean power up to the meter's last reading", |m| one(m.watts)),
    gauge("hashwatt_power_limit_watts", "Power limit that the board enforces", |m| one(m.limit_watts)),
    gauge("hashwatt_idle_power_watts", "Power with the model resident and no step; absent until it was measured", |m| one(m.idle_watts.filter(|(_, measured)| *measured).map(|(w, _)| w))),
    gauge("hashwatt_meter_up", "1 while the meter gives readings", |m| one(Some(f64::from(u8::from(m.up))))),
    counter("hashwatt_meter_resets", "Times the meter's counter began anew; the gap was bridged", |m| one(Some(m.resets as f64))),
    gauge("hashwatt_board_other_processes", "Compute processes of others on the board; their watts are in its figures", |m| one(m.other_processes)),
    gauge("hashwatt_board_last_xid", "Last fault code (Xid) of the board; absent while none came", |m| one(m.xid)),
    counter("hashwatt_throttle_seconds", "Time the board was slowed down, by reason", |m| m.throttled.iter().map(|(r, s)| (Some(("reason", *r)), *s)).collect()),
];

impl Collector for Exporter {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let EnergySample { meters, joules_per_token, engines } = (self.0)();
        // What no meter knows is not there at all.
        let known = |row: &&Row| meters.iter().any(|meter| !(row.values)(meter).is_empty());
        for row in TABLE.iter().filter(known) {
            let mut metric = encoder.encode_descriptor(row.name, row.help, None, row.kind)?;
            for meter in &meters {
                let engine = meter.engine.map(|number| number.to_string());
                for (label, value) in (row.values)(meter) {
                    let mut labels = vec![
                        ("device", meter.name.as_str()),
                        ("boundary", meter.boundary),
                        ("method", meter.method.as_str()),
                    ];
                    labels.extend(engine.as_ref().map(|number| ("engine", number.as_str())));
                    labels.extend(label);
                    let mut family = metric.encode_family(&labels)?;
                    match row.kind {
                        MetricType::Counter => {
                            family.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
                        }
                        _ => family.encode_gauge(&value)?,
                    }
                }
            }
        }
        if let Some(value) = joules_per_token {
            let help = "Settled joules of requests over all tokens generated, since the start";
            let kind = MetricType::Gauge;
            let mut metric = encoder.encode_descriptor("hashwatt_joules_per_token", help, None, kind)?;
            let labels = [("boundary", value.boundary), ("method", value.method.as_str())];
            metric.encode_family(&labels)?.encode_gauge(&value.joules)?;
        }
        engines.map_or(Ok(()), |engines| engines.encode(&mut encoder))
    }
}

impl EngineJoules {
    fn encode(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let help =
            "Settled energy of an engine's steps; engines that share a meter by the share of their steps";
        let mut metric =
            encoder.encode_descriptor("hashwatt_engine_joules", help, None, MetricType::Counter)?;
        for (number, joules) in self.joules.iter().enumerate() {
            let number = number.to_string();
            for (phase, joules) in ["prefill", "decode", "overhead"].into_iter().zip(joules) {
                let labels = [
                    ("engine", number.as_str()),
                    ("boundary", self.boundary),
                    ("method", self.method.as_str()),
                    ("phase", phase),
                ];
                metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(joules, None)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::metrics::*;

    #[test]
    fn every_series_names_its_meter_boundary_and_method() {
        let meter = MeterSample {
            name: "rapl:package-0".into(),
            boundary: "cpu_package",
            method: "counter".into(),
            engine: None,
            up: true,
            watts: Some(41.5),
            limit_watts: None,
            prefill_joules: 1.5,
            decode_joules: 2.5,
            overhead_joules: 0.0,
            idle_joules: 9.0,
            idle_watts: Some((12.0, false)),
            throttled: vec![("thermal", 3.0)],
            resets: 0,
            other_processes: Some(1.0),
            xid: None,
        };
        let config = MetricsConfig { model_name: "m".into(), vllm_names: false };
        let per_token = PerToken { joules: 0.25, boundary: "cpu_package", method: "counter".into() };
        let board = MeterSample { name: "nvml:1".into(), engine: Some(0), ..meter.clone() };
        let engines = EngineJoules {
            joules: vec![[1.5, 2.5, 0.0], [0.5, 0.25, 4.0]],
            boundary: "cpu_package",
            method: "counter".into(),
        };
        let sample = EnergySample {
            meters: vec![meter, board],
            joules_per_token: Some(per_token),
            engines: Some(engines),
        };
        let metrics = Metrics::with_energy(config, Box::new(Vec::new), Box::new(move || sample.clone()));
        let text = metrics.render(false).unwrap();
        let labels = "device=\"rapl:package-0\",boundary=\"cpu_package\",method=\"counter\"";
        for line in [
            format!("hashwatt_energy_joules_total{{{labels},phase=\"decode\"}} 2.5"),
            format!("hashwatt_idle_joules_total{{{labels}}} 9.0"),
            format!("hashwatt_power_watts{{{labels}}} 41.5"),
            format!("hashwatt_throttle_seconds_total{{{labels},reason=\"thermal\"}} 3.0"),
            format!("hashwatt_meter_up{{{labels}}} 1.0"),
            "hashwatt_joules_per_token{boundary=\"cpu_package\",method=\"counter\"} 0.25".to_string(),
            "# TYPE hashwatt_energy_joules_total counter".to_string(),
            // Of one engine's device: that engine is named.
            "hashwatt_power_watts{device=\"nvml:1\",boundary=\"cpu_package\",method=\"counter\",engine=\"0\"} 41.5"
                .to_string(),
            "hashwatt_engine_joules_total{engine=\"1\",boundary=\"cpu_package\",method=\"counter\",phase=\"overhead\"} 4.0"
                .to_string(),
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
        // What is not known has no series.
        assert!(
            !text.contains("hashwatt_power_limit_watts{") && !text.contains("hashwatt_idle_power_watts{")
        );
    }

    #[test]
    fn without_a_meter_nothing_is_said_of_energy() {
        let config = MetricsConfig { model_name: "m".into(), vllm_names: false };
        let text = Metrics::new(config, Box::new(Vec::new)).render(false).unwrap();
        assert!(!text.contains("joules"));
    }
}
