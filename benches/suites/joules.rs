//! Tokens per joule, which is throughput per watt: criterion with a measurement in joules.
//!
//! The meter is that of `HASHWATT_METER` (as `--meter`; `auto` by default). Samples are flat, begin where the
//! meter's reading moves, and last five seconds at least on a real meter. criterion keeps one number a
//! sample, so time, tokens, temperature, clocks and throttling of the same window go into a side file.

use std::cell::RefCell;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use criterion::measurement::{Measurement, ValueFormatter};
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, Throughput};
use hashwatt::clock::unix_seconds;
use hashwatt::engine::worker::Limits;
use hashwatt::power::monitor::{Monitor, MonitorConfig, Span, SpanEnergy};
use hashwatt::power::spec::{self, MeterContext, MeterSpec};
use hashwatt::power::{Boundary, MeterInfo, Throttle};
use serde_json::json;

use crate::decode::{Engine, LIMITS, TOKENS, cores, generate, run_load};

/// criterion's least.
const SAMPLES: usize = 10;
/// Sequences of the duty cycle and prefill benches.
const DUTY_SEQUENCES: usize = 32;
const PREFILL_SEQUENCES: usize = 8;

/// What is measured, and how long.
pub struct Profile {
    pub name: &'static str,
    concurrency: &'static [usize],
    prefill: &'static [usize],
    duty: &'static [f64],
    /// Length of a sample where watts are measured, and where they only follow the clock.
    measured: Duration,
    otherwise: Duration,
}

pub const PROFILES: [Profile; 2] = [
    Profile {
        name: "default",
        concurrency: &[1, 8, 32, 128, 256],
        prefill: &[448],
        duty: &[0.25, 0.5, 1.0],
        measured: Duration::from_millis(5500),
        otherwise: Duration::from_millis(300),
    },
    Profile {
        name: "full",
        concurrency: &[1, 2, 4, 8, 16, 32, 64, 128, 256],
        prefill: &[64, 128, 256, 448],
        duty: &[0.1, 0.25, 0.5, 0.75, 1.0],
        measured: Duration::from_secs(10),
        otherwise: Duration::from_secs(2),
    },
];

impl Profile {
    fn sample(&self, measured: bool) -> Duration {
        if measured { self.measured } else { self.otherwise }
    }

    /// A tenth of a bench's samples more, to come to a steady temperature.
    fn warm_up(&self, measured: bool) -> Duration {
        self.sample(measured) * 2
    }

    /// How long the benches take, without what criterion computes afterwards.
    pub fn length(&self, measured: bool) -> Duration {
        let benches = self.concurrency.len() + self.prefill.len() + self.duty.len();
        (self.warm_up(measured) + self.sample(measured) * SAMPLES as u32) * benches as u32
    }
}

/// The meters of a run and its side file.
pub struct Source {
    monitor: Arc<Monitor>,
    /// Those whose joules count: of the innermost boundary that is metered.
    counted: Vec<usize>,
    pub info: MeterInfo,
    pub side_file: PathBuf,
    side: RefCell<std::fs::File>,
    rows: RefCell<Vec<serde_json::Value>>,
    ids: RefCell<Vec<String>>,
    unsound: RefCell<Vec<String>>,
}

impl Source {
    /// # Errors
    /// A meter that is not there, a side file that cannot be made.
    pub fn open(engine: &Engine, meter: &str, folder: &Path, side: Option<&str>) -> Result<Source, String> {
        let spec: MeterSpec = meter.parse().map_err(|e: hashwatt::power::PowerError| e.to_string())?;
        let context = MeterContext::new(engine.clock.clone(), vec![engine.busy.clone()], cores());
        let opened = spec::open(&spec, &context).map_err(|e| e.to_string())?;
        for note in &opened.notes {
            println!("{note}");
        }
        let monitor = Monitor::start(opened.meters, engine.clock.clone(), MonitorConfig::default())
            .map_err(|e| e.to_string())?;
        let infos = monitor.infos();
        let order =
            [Boundary::GpuBoard, Boundary::CpuPackage, Boundary::Node, Boundary::Site, Boundary::Dram];
        let boundary = order.into_iter().find(|b| infos.iter().any(|i| i.boundary == *b));
        let counted: Vec<usize> = (0..infos.len()).filter(|i| Some(infos[*i].boundary) == boundary).collect();
        let info = counted.first().map(|i| infos[*i].clone()).ok_or("there is no meter")?;
        std::fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        let named = || folder.join(format!("hashwatt-joules-{}.jsonl", unix_seconds()));
        let side_file = side.map_or_else(named, PathBuf::from);
        let side = std::fs::File::create(&side_file).map_err(|e| format!("{}: {e}", side_file.display()))?;
        Ok(Source {
            monitor,
            counted,
            info,
            side_file,
            side: RefCell::new(side),
            rows: RefCell::default(),
            ids: RefCell::default(),
            unsound: RefCell::default(),
        })
    }

    pub fn measured(&self) -> bool {
        self.info.method.is_measured()
    }

    /// Full ids of the benches that ran (a filter on the command line may have left some out).
    pub fn ids(&self) -> Vec<String> {
        self.ids.borrow().clone()
    }

    /// Benches with a sample that its meter did not stand behind (lost, stuck, begun anew), and why.
    /// criterion saw a number and nothing else.
    pub fn unsound(&self) -> Vec<String> {
        self.unsound.borrow().clone()
    }

    fn close(&self, span: Span) -> Vec<SpanEnergy> {
        let all = self.monitor.close_span(span);
        all.into_iter().enumerate().filter(|(i, _)| self.counted.contains(i)).map(|(_, s)| s).collect()
    }

    /// Measures `work`, which gives the tokens it made; the joules.
    fn sample(&self, id: &str, iterations: u64, mut work: impl FnMut() -> usize) -> f64 {
        let span = self.monitor.open_span();
        let tokens: usize = (0..iterations).map(|_| work()).sum();
        let energies = self.close(span);
        let joules: f64 = energies.iter().map(|e| e.joules.0).sum();
        let seconds = energies.first().map_or(0.0, |e| e.time.as_secs_f64());
        let boards: Vec<_> = energies.iter().map(|e| &e.board).collect();
        let throttled: Vec<_> = energies
            .iter()
            .map(|e| {
                let pairs = Throttle::ALL.iter().zip(e.throttled);
                pairs.map(|(r, t)| (r.as_str().to_string(), t.as_secs_f64().into())).collect()
            })
            .map(serde_json::Value::Object)
            .collect();
        self.rows.borrow_mut().push(json!({
            "id": id, "ended_unix_seconds": unix_seconds(), "seconds": seconds, "iterations": iterations,
            "tokens": tokens, "joules": joules, "watts": joules / seconds,
            "meters": energies.iter().map(|e| &e.info.name).collect::<Vec<_>>(),
            "boundary": self.info.boundary, "method": self.info.method, "boards": boards,
            "throttled_seconds": throttled, "short": energies.iter().any(|e| e.short),
            "problems": energies.iter().filter_map(|e| e.problem.as_ref()).collect::<Vec<_>>(),
        }));
        joules
    }

    /// Writes the rows of a bench: criterion's samples are the last of them, what came before warmed up.
    fn flush(&self, id: &str) {
        let rows = std::mem::take(&mut *self.rows.borrow_mut());
        if rows.is_empty() {
            return;
        }
        self.ids.borrow_mut().push(id.into());
        let warm = rows.len().saturating_sub(SAMPLES);
        for (at, mut row) in rows.into_iter().enumerate() {
            row["kind"] = if at < warm { "warm_up" } else { "sample" }.into();
            let problems = row["problems"].as_array().map_or(0, Vec::len);
            if at >= warm && problems > 0 {
                self.unsound.borrow_mut().push(format!("{id}: sample {}: {}", at - warm, row["problems"]));
            }
            // The file was made by us a moment ago; a full disk is told, and criterion goes on.
            if let Err(e) = writeln!(self.side.borrow_mut(), "{row}") {
                eprintln!("{}: {e}", self.side_file.display());
            }
        }
    }
}

/// criterion's view of the source.
pub struct Joules(pub Rc<Source>);

impl Measurement for Joules {
    type Intermediate = Span;
    type Value = f64;

    fn start(&self) -> Span {
        self.0.monitor.open_span()
    }
    fn end(&self, span: Span) -> f64 {
        self.0.close(span).iter().map(|e| e.joules.0).sum()
    }
    fn add(&self, a: &f64, b: &f64) -> f64 {
        a + b
    }
    fn zero(&self) -> f64 {
        0.0
    }
    fn to_f64(&self, value: &f64) -> f64 {
        *value
    }
    fn formatter(&self) -> &dyn ValueFormatter {
        &Format
    }
}

struct Format;

impl ValueFormatter for Format {
    fn scale_values(&self, _: f64, _: &mut [f64]) -> &'static str {
        "J"
    }
    fn scale_throughputs(&self, _: f64, throughput: &Throughput, values: &mut [f64]) -> &'static str {
        if let Throughput::Elements(n) = throughput {
            for joules in values {
                *joules = *n as f64 / *joules;
            }
        }
        "token/J"
    }
    fn scale_for_machines(&self, _: &mut [f64]) -> &'static str {
        "J"
    }
}

/// One bench: `work` makes `tokens` tokens an iteration.
fn bench(
    group: &mut BenchmarkGroup<Joules>,
    source: &Source,
    name: &str,
    tokens: usize,
    mut work: impl FnMut() -> usize,
) {
    let (id, value) = name.rsplit_once('/').expect("a name is group/value");
    let full_id = format!("{id}/{value}");
    group.throughput(Throughput::Elements(tokens as u64));
    group.bench_function(BenchmarkId::from_parameter(value), |b| {
        b.iter_custom(|iterations| source.sample(&full_id, iterations, &mut work));
    });
    source.flush(&full_id);
}

/// The joule suite. Group names carry model, boundary and method.
pub fn run(criterion: &mut Criterion<Joules>, source: &Source, engine: &Engine, profile: &Profile) {
    let measured = source.measured();
    let label = format!("{}-{}-{}", engine.model, source.info.boundary.as_str(), source.info.method);
    let with = |criterion: &mut Criterion<Joules>,
                what: &str,
                each: &mut dyn FnMut(&mut BenchmarkGroup<Joules>, &str)| {
        let name = format!("joules-{what}/{label}");
        let mut group = criterion.benchmark_group(&name);
        group
            .sampling_mode(SamplingMode::Flat)
            .sample_size(SAMPLES)
            .warm_up_time(profile.warm_up(measured))
            .measurement_time(profile.sample(measured) * SAMPLES as u32);
        each(&mut group, &name);
        group.finish();
    };
    let handle = &engine.handle;
    with(criterion, "decode", &mut |group, name| {
        for n in profile.concurrency {
            bench(group, source, &format!("{name}/{n}"), n * TOKENS, || generate(handle, *n));
        }
    });
    with(criterion, "prefill", &mut |group, name| {
        for length in profile.prefill.iter().filter(|l| **l < engine.context) {
            // One token comes out of each; the prompt's tokens are what is counted.
            let tokens = PREFILL_SEQUENCES * length;
            bench(group, source, &format!("{name}/{length}"), tokens, || {
                run_load(handle, PREFILL_SEQUENCES, *length, 1) * length
            });
        }
    });
    with(criterion, "duty", &mut |group, name| {
        for duty in profile.duty {
            handle.set_limits(Limits { duty: *duty, ..LIMITS });
            let tokens = DUTY_SEQUENCES * TOKENS;
            bench(group, source, &format!("{name}/{duty}"), tokens, || generate(handle, DUTY_SEQUENCES));
        }
        handle.set_limits(LIMITS);
    });
}
