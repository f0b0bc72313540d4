//! `hashwatt selftest`: tries the devices, all at once: the operations, a model beside the CPU's, captured steps, and,
//! as long as it is told to, the same again.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::anyhow;
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::{Value, json};

use super::{Exit, machine};
use crate::clock::Clock;
use crate::config::{Config, DeviceKind, value};
use crate::model::Checkpoint;
use crate::model::decoder::{Decoder, Precision, Quantize};
use crate::ops::exec::{Exec, cuda};
use crate::ops::pool::Pool;
use crate::selftest::{self, Outcome, Size, model};

/// Of a 1B model, on GPUs and with --full.
const LARGE: &str = "synthetic:llama-3.2-1b";
const REPLAYS: usize = 1000;
const REPEATS: usize = 20;
/// Sequences of the batch in which one must be what it is alone.
const COMPANY: usize = 64;
/// What is tried of a model.
const PARTS: [&str; 5] = ["greedy parity", "layers", "repeats", "batch invariance", "graphs"];

pub fn command() -> Command {
    Command::new("selftest")
        .about("Try the devices: each operation, a model beside the CPU's, captured steps")
        .arg(Arg::new("filter").long("filter").value_name("NAME").help("Only what has this in its name"))
        .arg(
            Arg::new("full")
                .long("full")
                .action(ArgAction::SetTrue)
                .help("A 1B model as well; it always is on a GPU"),
        )
        .arg(
            Arg::new("burn-in")
                .long("burn-in")
                .value_name("TIME")
                .help("Repeat the models' parts for so long on each device, as 30m"),
        )
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print JSON"))
}

/// 1 when something failed.
pub fn run(config: &Config, matches: &ArgMatches) -> Exit {
    let burn_in = match matches.get_one::<String>("burn-in") {
        Some(text) => value::parse_duration(text).map_err(|e| anyhow!("--burn-in {text}: {e}"))?,
        None => Duration::ZERO,
    };
    let filter = matches.get_one::<String>("filter").cloned().unwrap_or_default();
    let all = Selftest {
        config,
        filter: &filter,
        burn_in,
        full: matches.get_flag("full"),
        as_json: matches.get_flag("json"),
        told: Mutex::default(),
    };
    // All devices at once: heat and the power supply are part of the trial.
    std::thread::scope(|scope| {
        let each: Vec<_> = config.devices.iter().map(|device| scope.spawn(|| all.device(device))).collect();
        let ended = each
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow!("a device's thread panicked"))));
        ended.collect::<anyhow::Result<Vec<()>>>()
    })?;
    let Told { rows, failed, tried } = all.told.into_inner().unwrap_or_else(PoisonError::into_inner);
    if tried == 0 {
        return Err(anyhow!("--filter {filter}: nothing has that in its name"));
    }
    if all.as_json {
        println!("{}", json!({"tried": tried, "failed": failed, "outcomes": rows}));
    } else {
        println!("{tried} tried, {failed} failed");
    }
    Ok(u8::from(failed > 0))
}

#[derive(Default)]
struct Told {
    rows: Vec<Value>,
    failed: usize,
    tried: usize,
}

/// What is asked of each device.
struct Selftest<'a> {
    config: &'a Config,
    filter: &'a str,
    burn_in: Duration,
    full: bool,
    as_json: bool,
    told: Mutex<Told>,
}

/// A device, and how kernels are launched there.
struct Way<'a> {
    device: &'a DeviceKind,
    dependent: bool,
}

impl Selftest<'_> {
    fn wants(&self, name: &str) -> bool {
        name.contains(self.filter)
    }

    /// In the ordinary way, and by programmatic dependent launch where there is such a thing.
    fn device(&self, device: &DeviceKind) -> anyhow::Result<()> {
        let threads = self.config.threads.unwrap_or_else(machine::cores) / self.config.devices.len();
        let pool = Arc::new(Pool::new(threads));
        let DeviceKind::Cuda(ordinal) = *device else {
            return self.way(&Way { device, dependent: false }, &Exec::from(pool));
        };
        for dependent in [false, true] {
            if !dependent || cuda::has_dependent_launch(ordinal)? {
                self.way(&Way { device, dependent }, &Exec::cuda(ordinal, pool.clone(), dependent)?)?;
            }
        }
        Ok(())
    }

    fn way(&self, way: &Way<'_>, on: &Exec) -> anyhow::Result<()> {
        let wanted = |name: &str| self.wants(name);
        let names = if PARTS.iter().any(|part| self.wants(part)) { self.models(on) } else { Vec::new() };
        let tries = names.into_iter().map(|name| Tries::new(name, on, way.device, self.config));
        // First: a model that is not there is said before a card is kept busy.
        let tries = tries.collect::<anyhow::Result<Vec<_>>>()?;
        selftest::operations(on, Size::Full, &wanted).into_iter().for_each(|o| self.tell(way, o));
        let clock = Clock::system();
        let begun = clock.now();
        loop {
            tries.iter().flat_map(|tries| tries.run(&wanted)).for_each(|o| self.tell(way, o));
            if tries.is_empty() || clock.now().since(begun) >= self.burn_in {
                return Ok(());
            }
        }
    }

    /// The model that is asked for; unasked, the demo and, on GPUs and with --full, one of 1B.
    fn models(&self, on: &Exec) -> Vec<&str> {
        let mut all = vec![self.config.model.as_str()];
        if all == ["demo"] && (self.full || on.launcher.is_some()) {
            all.push(LARGE);
        }
        all
    }

    fn tell(&self, way: &Way<'_>, outcome: Outcome) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.tried += 1;
        told.failed += usize::from(!outcome.passed());
        match self.as_json {
            true => told.rows.push(row(way, &outcome)),
            false => println!("{}", line(way, &outcome)),
        }
    }
}

fn line(way: &Way<'_>, o: &Outcome) -> String {
    let verdict = if o.passed() { "ok    " } else { "FAILED" };
    let (device, pdl) = (way.device, if way.dependent { " PDL" } else { "" });
    let text =
        format!("{verdict} {device}{pdl} {:<16} {}; {:.3} of the tolerance", o.operation, o.case, o.error);
    if o.passed() { text } else { format!("{text}: {}", o.worst) }
}

fn row(way: &Way<'_>, o: &Outcome) -> Value {
    // JSON has no infinity.
    let error = if o.error.is_finite() { Value::from(o.error) } else { Value::Null };
    json!({
        "device": way.device.to_string(), "pdl": way.dependent, "operation": o.operation, "case": o.case,
        "passed": o.passed(), "error": error, "worst": o.worst,
    })
}

/// What is tried of one model.
struct Tries<'a> {
    name: String,
    cpu: Arc<Decoder>,
    there: Arc<Decoder>,
    on: &'a Exec,
    device: &'a DeviceKind,
}

impl<'a> Tries<'a> {
    /// In the types that the settings ask for; the CPU computes in f32, beside it the device in bf16 where nothing else
    /// is said.
    fn new(name: &str, on: &'a Exec, device: &'a DeviceKind, config: &Config) -> anyhow::Result<Tries<'a>> {
        let checkpoint = Checkpoint::open(name, &on.pool)?;
        let load = |precision| -> anyhow::Result<Decoder> {
            let decoder = checkpoint.load_as(config.quantize, precision, false, &|_| {})?;
            Ok(match config.cache {
                Some(cache) => decoder.with_cache(cache),
                None => decoder,
            })
        };
        let coarse = if config.precision == Precision::AsStored { Precision::Bf16 } else { config.precision };
        let (cpu, there) = (Arc::new(load(Precision::F32)?), load(coarse)?);
        let there = Arc::new(if on.launcher.is_some() { there.on_device(&on.device)? } else { there });
        let weights = match config.quantize {
            Quantize::AsStored => String::new(),
            Quantize::Fp8 => ", FP8 weights".into(),
            Quantize::Blocks(format) => format!(", {} weights", format.name()),
        };
        let cache = config.cache.map_or(String::new(), |cache| format!(", {} cache", cache.name()));
        Ok(Tries { name: format!("{name}{weights}{cache}"), cpu, there, on, device })
    }

    fn run(&self, wanted: &dyn Fn(&str) -> bool) -> Vec<Outcome> {
        let mut all = Vec::new();
        let [parity, layers, repeats, company, graphs] = PARTS;
        if wanted(parity) {
            all.push(model::parity(&self.name, &self.cpu, &self.there, self.on));
        }
        if wanted(layers) {
            all.extend(model::layers(&self.name, &self.cpu, &self.there, self.on));
        }
        if wanted(repeats) {
            all.push(model::repeats(&self.name, &self.there, self.on, REPEATS));
        }
        if wanted(company) {
            all.push(model::company(&self.name, &self.there, self.on, COMPANY));
        }
        if wanted(graphs) && self.on.launcher.is_some() {
            let free = || match self.device {
                DeviceKind::Cuda(ordinal) => cuda::memory(*ordinal).ok().map(|(free, _)| free),
                _ => None,
            };
            all.extend(model::graphs(&self.name, &self.there, self.on, REPLAYS, &free));
        }
        all
    }
}
