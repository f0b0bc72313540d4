//! Throughput per watt × price beside mining revenue per watt, from the joule suite of the same run.
//!
//! criterion's results are read back (missing, stale and zero ones fail by name) and set against every
//! machine of `miners.toml` at the market snapshot. Assumed watts or an example market head it EXAMPLE.

use std::path::Path;

use hashwatt::economics::market::Market;
use hashwatt::economics::{inference, miners, mining};
use hashwatt::measure::criterion_results::{self, CriterionResult};
use hashwatt::power::MeterInfo;
use hashwatt::quantity::{Hashprice, TokensPerJoule};

use crate::joules::Source;

const EXAMPLE: &str = include_str!("../market.example.toml");

/// The snapshot: a file, or the example.
pub fn market(file: Option<&str>) -> Result<Market, String> {
    let text = match file {
        Some(file) => std::fs::read_to_string(file).map_err(|e| format!("{file}: {e}"))?,
        None => EXAMPLE.into(),
    };
    Market::parse(&text).map_err(|e| format!("{}: {e}", file.unwrap_or("the example market")))
}

/// Reads the results and prints the table.
///
/// # Errors
/// Every bench without a sound result, and every one whose meter failed in a sample, by name.
pub fn run(source: &Source, folder: &Path, started: u64, market: &Market, model: &str) -> Result<(), String> {
    let results = criterion_results::read(folder, &source.ids(), started).map_err(|problems| {
        let all: Vec<String> = problems.iter().map(ToString::to_string).collect();
        format!("{} of {} benches have no result:\n  {}", all.len(), source.ids().len(), all.join("\n  "))
    })?;
    let unsound = source.unsound();
    if !unsound.is_empty() {
        return Err(format!("the meter failed in {} samples:\n  {}", unsound.len(), unsound.join("\n  ")));
    }
    let example = market.example || source.info.method == hashwatt::power::Method::Assumed;
    if example {
        println!("\nEXAMPLE: not a measurement of what this site earns");
    }
    serving(&results, market, model, &source.info);
    mining_rows(market);
    if source.info.method == hashwatt::power::Method::Assumed {
        println!("\nverdict: UNKNOWN. The watts are assumed, not measured; the rows show the arithmetic.");
    } else {
        println!("\n`hashwatt bench --market FILE --site FILE` measures the same and judges it for a site.");
    }
    Ok(())
}

/// $ a day of each watt that runs all day.
fn per_watt_day(usd_per_mwh: f64) -> f64 {
    usd_per_mwh * 24.0 / 1e6
}

fn serving(results: &[CriterionResult], market: &Market, model: &str, meter: &MeterInfo) {
    let Some(price) = market.token_price(model) else {
        println!(
            "\nserving: the market has no price for tokens of `{model}`; token/J are in the results above"
        );
        return;
    };
    println!(
        "\nserving `{model}` ({}, {}; only what this boundary holds), tokens sold at ${} in, ${} out per million ({})",
        meter.boundary,
        meter.method,
        price.usd_per_million_input_tokens,
        price.usd_per_million_output_tokens,
        price.date
    );
    println!("  {:<44} {:>26} {:>11} {:>10}", "", "token/J (95 %)", "$/MWh", "$/W·day");
    for result in results {
        let usd = match result.id.starts_with("joules-prefill") {
            true => price.usd_per_million_input_tokens,
            false => price.usd_per_million_output_tokens,
        };
        let (median, low, high) = result.throughput();
        let earned = inference::revenue(TokensPerJoule(median), usd).0;
        println!(
            "  {:<44} {median:>9.2} ({low:.2} to {high:.2}) {earned:>11.2} {:>10.6}",
            result.id,
            per_watt_day(earned)
        );
    }
}

fn mining_rows(market: &Market) {
    let hashprice = market.hashprice();
    let name = if market.example { "EXAMPLE market" } else { "market" };
    println!(
        "\nmining at {} ({name} of {}; nameplate watts at the machine)",
        Hashprice(hashprice.value),
        market.as_of
    );
    println!("  {:<44} {:>26} {:>11} {:>10}", "", "J/TH (nameplate)", "$/MWh", "$/W·day");
    let table = miners::parse(miners::BUILT_IN).expect("the built-in table is sound");
    for miner in table {
        let earned = mining::revenue(Hashprice(hashprice.value), miner.efficiency()).0;
        println!(
            "  {:<44} {:>26.1} {earned:>11.2} {:>10.6}",
            miner.name,
            miner.efficiency().0,
            per_watt_day(earned)
        );
    }
}
