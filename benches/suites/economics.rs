//! Tokens per joule on assumed watts, and what they would earn beside three mining machines.
//!
//! Everything printed is headed EXAMPLE: the watts are a nameplate and the market is of the past.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use hashwatt::clock::Clock;
use hashwatt::economics::market::Market;
use hashwatt::economics::miners::{self, Miner};
use hashwatt::measure::economics_table::{Served, render};
use hashwatt::power::assumed;
use hashwatt::quantity::TokensPerSecond;

use crate::decode::{CONCURRENCY, TOKENS, cores, engine, generate};
use crate::joules::Joules;

const MARKET: &str = include_str!("../market.example.toml");
/// Machines of three generations.
const BESIDE: [&str; 3] = ["Antminer S19j Pro", "Antminer S21", "Antminer S23 Hyd"];
/// What small models sell for, per million output tokens.
const USD_PER_MILLION_TOKENS: f64 = 0.01;
const WINDOW: Duration = Duration::from_secs(3);

pub fn run() {
    let engine = engine();
    // All cores are busy while the engine decodes: full nameplate.
    let power = assumed::cpu(cores(), 1.0);
    println!(
        "\nEXAMPLE: joules below are {} W of {} ({}), not measured",
        power.watts.0, power.boundary, power.method
    );
    let clock = Clock::system();
    let millijoules = {
        let clock = clock.clone();
        move || (clock.now().0 as f64 * 1e-9 * power.watts.0 * 1e3) as u64
    };
    let mut criterion = Criterion::default().with_measurement(Joules(millijoules)).configure_from_args();
    let mut group = criterion.benchmark_group("economics/demo-assumed-watts");
    group
        .sampling_mode(SamplingMode::Flat)
        .sample_size(10)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(5));
    let mut served = Vec::new();
    for sequences in CONCURRENCY {
        group.throughput(Throughput::Elements((sequences * TOKENS) as u64));
        group.bench_function(BenchmarkId::from_parameter(sequences), |b| {
            b.iter(|| generate(&engine, sequences));
        });
        // The table's own window: criterion keeps its samples to itself.
        let (start, mut tokens) = (clock.now(), 0);
        while clock.now().since(start) < WINDOW {
            tokens += generate(&engine, sequences);
        }
        let rate = TokensPerSecond(tokens as f64 / clock.now().since(start).as_secs_f64());
        served.push(Served { label: format!("demo, {sequences} at once"), rate, power });
    }
    group.finish();
    criterion.final_summary();
    let market = Market::parse(MARKET).expect("the example market is sound");
    let all = miners::parse(miners::BUILT_IN).expect("the built-in table is sound");
    let beside: Vec<Miner> = all.into_iter().filter(|m| BESIDE.contains(&m.name.as_str())).collect();
    println!("\n{}", render(&served, &market, &beside, USD_PER_MILLION_TOKENS));
}
