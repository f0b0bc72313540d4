//! `hashwatt selftest`: tries each device: the operations, a model beside the CPU's, captured steps, and, as long as
//! it is told to, the same again.

use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::{Value, json};

use super::{Exit, machine};
use crate::clock::Clock;
use crate::config::{Config, DeviceKind, value};
use crate::model::Checkpoint;
use crate::model::decoder::Precision;
use crate::ops::exec::{Exec, cuda};
use crate::ops::pool::Pool;
use crate::selftest::{self, Outcome, Size, model};

/// Of a 1B model, on GPUs and with --full.
const LARGE: &str = "synthetic:llama-3.2-1b";
const REPLAYS: usize = 1000;
const REPEATS: usize = 20;
/// What is tried of a model.
const PARTS: [&str; 4] = ["greedy parity", "layers", "repeats", "graphs"];

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
    let wanted = |name: &str| name.contains(&filter);
    let pool = Arc::new(Pool::new(config.threads.unwrap_or_else(machine::cores)));
    let as_json = matches.get_flag("json");
    let (mut rows, mut failed, mut tried) = (Vec::new(), 0, 0);
    for way in &ways(config)? {
        let on = match way.device {
            DeviceKind::Cuda(ordinal) => Exec::cuda(*ordinal, pool.clone(), way.dependent)?,
            _ => Exec::from(pool.clone()),
        };
        let mut told = |outcome: Outcome| {
            tried += 1;
            failed += usize::from(!outcome.passed());
            match as_json {
                true => rows.push(row(way, &outcome)),
                false => println!("{}", line(way, &outcome)),
            }
        };
        selftest::operations(&on, Size::Full, &wanted).into_iter().for_each(&mut told);
        let full = matches.get_flag("full") || on.launcher.is_some();
        let mut models = if full { vec!["demo", LARGE] } else { vec!["demo"] };
        if !PARTS.iter().any(|part| wanted(part)) {
            models.clear();
        }
        let tries = models.into_iter().map(|name| Tries::new(name, &on, way.device));
        let tries = tries.collect::<anyhow::Result<Vec<_>>>()?;
        let clock = Clock::system();
        let begun = clock.now();
        loop {
            tries.iter().flat_map(|tries| tries.run(&wanted)).for_each(&mut told);
            if tries.is_empty() || clock.now().since(begun) >= burn_in {
                break;
            }
        }
    }
    if tried == 0 {
        return Err(anyhow!("--filter {filter}: nothing has that in its name"));
    }
    if as_json {
        println!("{}", json!({"tried": tried, "failed": failed, "outcomes": rows}));
    } else {
        println!("{tried} tried, {failed} failed");
    }
    Ok(u8::from(failed > 0))
}

/// A device, and how kernels are launched there.
struct Way<'a> {
    device: &'a DeviceKind,
    dependent: bool,
}

/// Each device in the ordinary way, and by programmatic dependent launch where there is such a thing.
fn ways(config: &Config) -> anyhow::Result<Vec<Way<'_>>> {
    let mut all = Vec::new();
    for device in &config.devices {
        all.push(Way { device, dependent: false });
        if let DeviceKind::Cuda(ordinal) = device
            && cuda::has_dependent_launch(*ordinal)?
        {
            all.push(Way { device, dependent: true });
        }
    }
    Ok(all)
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
    name: &'static str,
    cpu: Arc<crate::model::decoder::Decoder>,
    there: Arc<crate::model::decoder::Decoder>,
    on: &'a Exec,
    device: &'a DeviceKind,
}

impl<'a> Tries<'a> {
    fn new(name: &'static str, on: &'a Exec, device: &'a DeviceKind) -> anyhow::Result<Tries<'a>> {
        let checkpoint = Checkpoint::open(name, &on.pool)?;
        let load = |precision| checkpoint.load(precision, false, &|_| {}).map(Arc::new);
        // The CPU is held against itself in the finer type; a GPU computes in the coarser one too.
        let (cpu, coarse) = (load(Precision::F32)?, load(Precision::Bf16)?);
        let there = match on.launcher {
            Some(_) => Arc::new(coarse.on_device(&on.device)?),
            None => coarse,
        };
        Ok(Tries { name, cpu, there, on, device })
    }

    fn run(&self, wanted: &dyn Fn(&str) -> bool) -> Vec<Outcome> {
        let mut all = Vec::new();
        let [parity, layers, repeats, graphs] = PARTS;
        if wanted(parity) {
            all.push(model::parity(self.name, &self.cpu, &self.there, self.on));
        }
        if wanted(layers) {
            all.extend(model::layers(self.name, &self.cpu, &self.there, self.on));
        }
        if wanted(repeats) {
            all.push(model::repeats(self.name, &self.there, self.on, REPEATS));
        }
        if wanted(graphs) && self.on.launcher.is_some() {
            let free = || match self.device {
                DeviceKind::Cuda(ordinal) => cuda::memory(*ordinal).ok().map(|(free, _)| free),
                _ => None,
            };
            all.extend(model::graphs(self.name, &self.there, self.on, REPLAYS, &free));
        }
        all
    }
}
