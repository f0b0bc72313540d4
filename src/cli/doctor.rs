//! `hashwatt doctor`: whether this machine can run this configuration; each finding with its fix.

use std::net::{SocketAddr, TcpListener};

use serde_json::{Value, json};

mod gpu;
mod xid;

use super::devices::Chosen;
use super::{Exit, accounts, assemble, hub, machine};
use crate::clock::Clock;
use crate::config::Config;
use crate::ops::cpu::Isa;
use crate::power::health;
use crate::power::spec::{self, MeterContext};
use crate::unit::Unit;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Pass,
    Warn,
    Error,
}

impl Level {
    fn as_str(self) -> &'static str {
        match self {
            Level::Pass => "PASS",
            Level::Warn => "WARN",
            Level::Error => "ERROR",
        }
    }
}

struct Finding {
    check: &'static str,
    level: Level,
    found: String,
    /// What to do about it; empty when nothing is to be done.
    fix: String,
}

fn finding(check: &'static str, level: Level, found: String, fix: &str) -> Finding {
    Finding { check, level, found, fix: fix.into() }
}

/// Prints all findings; 1 when one is an error.
pub fn run(config: &Config, chosen: &Chosen, as_json: bool) -> Exit {
    let mut all = vec![device(config, chosen)];
    all.extend(gpu::findings(health::read(None), xid::kernel_log));
    all.extend([
        threads(config),
        memory(),
        model(config),
        power(config),
        port(config),
        exposure(config),
        files(),
    ]);
    if as_json {
        let rows: Vec<Value> = all
            .iter()
            .map(|f| json!({"check": f.check, "level": f.level.as_str(), "found": f.found, "fix": f.fix}))
            .collect();
        println!("{}", Value::from(rows));
    } else {
        for f in &all {
            println!("{:<5}  {:<9} {}", f.level.as_str(), f.check, f.found);
            if !f.fix.is_empty() {
                println!("                 → {}", f.fix);
            }
        }
    }
    Ok(u8::from(all.iter().any(|f| f.level == Level::Error)))
}

const BUILD_FIX: &str =
    "run a build with --features cuda (docs/cuda.md) on a driver of 580 or newer, or say --device cpu";

fn device(config: &Config, chosen: &Chosen) -> Finding {
    if let Some(problem) = &chosen.problem {
        return finding("device", Level::Error, problem.clone(), BUILD_FIX);
    }
    if assemble::on_gpus(config) {
        return finding("device", Level::Pass, chosen.to_string(), "");
    }
    let isa = Isa::detect();
    let found = format!("{chosen}; {}", machine::instructions());
    if chosen.leaves_boards {
        return finding("device", Level::Warn, found, BUILD_FIX);
    }
    match isa {
        Isa::Avx512 => finding("device", Level::Pass, found, ""),
        Isa::Avx2 => finding("device", Level::Pass, found, ""),
        Isa::Scalar => finding(
            "device",
            Level::Warn,
            found,
            "the CPU kernels are many times faster with AVX2 and FMA: use a newer CPU, or pass the host's CPU \
             flags through to this virtual machine",
        ),
    }
}

fn threads(config: &Config) -> Finding {
    let cores = machine::cores();
    let wanted = config.threads.unwrap_or(cores);
    let found = format!("{wanted} threads on {cores} cores for {} device(s)", config.devices.len());
    if wanted > cores {
        return finding("threads", Level::Warn, found, "set --threads to the number of cores or less");
    }
    if config.devices.len() > wanted {
        return finding(
            "threads",
            Level::Warn,
            found,
            "list fewer devices, or give each at least one thread",
        );
    }
    finding("threads", Level::Pass, found, "")
}

fn memory() -> Finding {
    let Some(memory) = machine::memory() else {
        let found = "the system does not say how much is free".into();
        return finding("memory", Level::Warn, found, "set --kv-memory so that nothing is guessed");
    };
    let gib = memory.available as f64 / f64::from(1 << 30);
    let limit = if memory.by_cgroup { ", limited by the control group" } else { "" };
    let found = format!("{gib:.1} GiB available{limit}");
    if gib < 0.5 {
        return finding("memory", Level::Error, found, "free memory, or raise the container's limit");
    }
    finding("memory", Level::Pass, found, "")
}

/// Which meters there are; the remedy names the permission where one is missing.
fn power(config: &Config) -> Finding {
    let mut context = MeterContext::new(Clock::system(), Vec::new(), machine::cores());
    context.gpus = assemble::on_gpus(config);
    match spec::open(&config.meter, &context) {
        Ok(opened) => {
            let names: Vec<String> = opened
                .meters
                .iter()
                .map(|m| format!("{} ({}, {})", m.info().name, m.info().boundary, m.info().method))
                .collect();
            let found = names.join(", ");
            match opened.meters.iter().any(|m| m.info().method.is_measured()) {
                true => finding("power", Level::Pass, found, ""),
                false if config.require_measured => finding(
                    "power",
                    Level::Error,
                    found,
                    "--require-measured wants an instrument: choose another --meter",
                ),
                false => {
                    let why = opened.notes.join("; ");
                    let fix = format!(
                        "watts are not measured ({why}); --meter http:URL#PATH reads a PDU or BMC, \
                         --meter declared:IDLE,FULL takes your word"
                    );
                    finding("power", Level::Warn, found, &fix)
                }
            }
        }
        Err(error) => finding("power", Level::Error, error.to_string(), "choose another --meter"),
    }
}

fn model(config: &Config) -> Finding {
    let away = config.models.iter().find_map(|m| hub::named(&m.model).ok().flatten());
    if let Some(name) = away {
        let fix =
            format!("`hashwatt models pull {name}` fetches it; `serve` does so, too, before its port opens");
        return finding("model", Level::Warn, format!("{name}: is not in the hub's cache"), &fix);
    }
    match assemble::open(config, &Unit::new(Clock::system())) {
        Ok(opened) => {
            let s = opened.sizes;
            let chat = opened.checkpoint.iter().map(|c| {
                format!(
                    "{}: {:.1} M parameters, context {}, KV cache {:.0} MB at most",
                    c.name,
                    c.spec.parameters() as f64 / 1e6,
                    s.max_model_len,
                    s.kv_bytes as f64 / 1e6
                )
            });
            let encoders = opened.encoders.iter().map(|e| {
                let (c, longest) = (&e.checkpoint, e.max_model_len);
                format!(
                    "{}: {:.1} M parameters, texts of up to {longest} tokens",
                    c.name,
                    c.parameters() as f64 / 1e6
                )
            });
            finding("model", Level::Pass, chat.chain(encoders).collect::<Vec<_>>().join("; "), "")
        }
        Err(e) => finding(
            "model",
            Level::Error,
            format!("{e:#}"),
            "give --model a complete folder, demo, or a preset of `hashwatt models`",
        ),
    }
}

fn port(config: &Config) -> Finding {
    let address = SocketAddr::new(config.host, config.port);
    match TcpListener::bind(address) {
        Ok(_) => finding("port", Level::Pass, format!("{address} is free"), ""),
        Err(e) => finding(
            "port",
            Level::Error,
            format!("{address}: {e}"),
            "stop what listens there, or choose another --port or --host",
        ),
    }
}

fn exposure(config: &Config) -> Finding {
    let kept = accounts::has_keys(config);
    match config.check_exposure(kept) {
        Ok(()) if kept || config.api_key.is_some() => {
            finding("access", Level::Pass, "an API key is required".into(), "")
        }
        Ok(()) if config.host.is_loopback() => {
            finding("access", Level::Pass, "this machine only, without a key".into(), "")
        }
        Ok(()) => finding(
            "access",
            Level::Warn,
            format!("{} is open to every machine that can reach it", config.host),
            "make a key (hashwatt keys create), or set --api-key or HASHWATT_API_KEY",
        ),
        Err(e) => finding(
            "access",
            Level::Error,
            e.to_string(),
            "make a key (hashwatt keys create), or set --api-key or HASHWATT_API_KEY",
        ),
    }
}

/// Open files bound how many clients can be connected.
fn files() -> Finding {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let soft = limits
        .lines()
        .find_map(|l| l.strip_prefix("Max open files"))
        .and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    match soft {
        Some(n) if n < 4096 => finding(
            "files",
            Level::Warn,
            format!("{n} open files allowed"),
            "raise the limit (ulimit -n 65536, LimitNOFILE= in systemd) for many connected clients",
        ),
        Some(n) => finding("files", Level::Pass, format!("{n} open files allowed"), ""),
        None => finding("files", Level::Pass, "no limit on open files was found".into(), ""),
    }
}
