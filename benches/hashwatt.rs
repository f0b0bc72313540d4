//! The criterion suites, as one binary: `cargo bench --bench hashwatt [-- FILTER] [-- --profile full]`.
//!
//! `decode` measures seconds; `joules-*` repeats it in joules on the meter of `HASHWATT_METER`, over
//! concurrency, prefill and duty cycles; then throughput per watt × price is set beside mining revenue per
//! watt. Also read: `HASHWATT_BENCH_MODEL` (demo), `HASHWATT_BENCH_MARKET` (a snapshot's file),
//! `HASHWATT_BENCH_SAMPLES` (the side file). A bench without a sound result fails the run by name.

#[path = "suites/decode.rs"]
mod decode;
#[path = "suites/economics.rs"]
mod economics;
#[path = "suites/joules.rs"]
mod joules;

use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;

use criterion::Criterion;
use hashwatt::clock::unix_seconds;
use hashwatt::config::process_environment;

use joules::{Joules, PROFILES, Profile, Source};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("\nerror: {problem}");
            ExitCode::FAILURE
        }
    }
}

/// The named profile and the arguments that criterion understands.
fn profile(arguments: impl Iterator<Item = String>) -> Result<(&'static Profile, Vec<String>), String> {
    let mut rest: Vec<String> = arguments.collect();
    let mut name = "default".to_string();
    if let Some(at) = rest.iter().position(|a| a == "--profile") {
        let taken: Vec<String> = rest.drain(at..(at + 2).min(rest.len())).collect();
        name = taken.get(1).cloned().unwrap_or_default();
    }
    let found = PROFILES.iter().find(|p| p.name == name);
    let found = found.ok_or_else(|| format!("--profile {name:?}: there are default and full"))?;
    Ok((found, rest))
}

/// criterion with the flags it was given; its own reader of the command line knows no others.
fn configured(arguments: &[String], folder: &std::path::Path) -> Criterion {
    let filter = arguments.iter().skip(1).find(|a| !a.starts_with('-'));
    let criterion = Criterion::default().output_directory(folder);
    match filter {
        Some(filter) => criterion.with_filter(filter),
        None => criterion,
    }
}

fn run() -> Result<(), String> {
    let (profile, arguments) = profile(std::env::args())?;
    let unknown = arguments.iter().skip(1).find(|a| a.starts_with('-') && *a != "--bench");
    if let Some(flag) = unknown {
        return Err(format!("{flag} is not known here: a filter, or --profile default|full"));
    }
    let environment = process_environment();
    let variable = |name: &str| environment.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    let folder = PathBuf::from(variable("CARGO_TARGET_DIR").unwrap_or("target")).join("criterion");
    let model = variable("HASHWATT_BENCH_MODEL").unwrap_or("demo");
    let market = economics::market(variable("HASHWATT_BENCH_MARKET"))?;

    let engine = decode::engine(model);
    let mut seconds = configured(&arguments, &folder);
    decode::run(&mut seconds, &engine);
    seconds.final_summary();

    let started = unix_seconds();
    let source = Rc::new(Source::open(
        &engine,
        variable("HASHWATT_METER").unwrap_or("auto"),
        &folder,
        variable("HASHWATT_BENCH_SAMPLES"),
    )?);
    let info = &source.info;
    println!(
        "\njoules of {} ({}, {}), profile {}: about {:.0} s, and criterion's statistics",
        info.name,
        info.boundary,
        info.method,
        profile.name,
        profile.length(source.measured()).as_secs_f64()
    );
    if !source.measured() {
        println!("these watts are {}, not measured", info.method);
    }
    let mut criterion = configured(&arguments, &folder).with_measurement(Joules(source.clone()));
    joules::run(&mut criterion, &source, &engine, profile);
    criterion.final_summary();
    println!(
        "\nevery sample with its time, tokens, joules, clocks and throttling: {}",
        source.side_file.display()
    );
    economics::run(&source, &folder, started, &market, model)
}
