//! `hashwatt usage`: what was used, by whom and when; in money at the model's token prices, in energy at the site's.
//!
//! Counts come from the unit or its store, prices from the same flags and files as a verdict's. Joules are what the
//! meters saw inside their boundary: their cost is that of the power at that meter, without PUE.

use std::collections::BTreeMap;

use clap::{Arg, ArgMatches, Command};
use serde::Serialize;
use serde_json::Value;

use super::accounts::Admin;
use super::{Exit, given};
use crate::config::Config;
use crate::economics::inference::TokenPrices;
use crate::measure::economics::Given;
use crate::store::{By, Sum};

const JOULES_PER_MWH: f64 = 3.6e9;

pub fn command() -> Command {
    let option = |name: &'static str, shape: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(shape).help(help)
    };
    let prices = ["market", "site", "price-input", "price-cached", "price-output", "power-price"];
    Command::new("usage")
        .about("What was used, in tokens, joules and money")
        .arg(
            option("by", "WHAT,…", "Sums by key, day (UTC), model, endpoint")
                .default_value("key,day")
                .value_delimiter(',')
                .value_parser(|text: &str| text.parse::<By>()),
        )
        .arg(option("since", "DAY", "From this day on, as 2026-11-01"))
        .arg(option("until", "DAY", "Up to this day, which is not counted"))
        .arg(option("key", "KEY", "Of this key only, by its id or its name"))
        .arg(
            option("format", "FORMAT", "table, csv or json")
                .default_value("table")
                .value_parser(["table", "csv", "json"]),
        )
        .args(given::options().into_iter().filter(|arg| prices.contains(&arg.get_id().as_str())))
}

/// One line of the answer; amounts are `None` where no price is known.
#[derive(Debug, Clone, Default, Serialize)]
struct Row {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    day: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<String>,
    requests: u64,
    failed: u64,
    input_tokens: u64,
    cached_tokens: u64,
    output_tokens: u64,
    amount_usd: Option<f64>,
    prefill_joules: f64,
    decode_joules: f64,
    kwh: f64,
    energy_usd: Option<f64>,
    energy_method: Option<String>,
    energy_boundary: Option<String>,
    unsettled: u64,
}

pub fn run(config: &Config, m: &ArgMatches) -> Exit {
    let given = given::prices(m)?;
    let by: Vec<By> = m.get_many::<By>("by").unwrap_or_default().copied().collect();
    let admin = Admin::find(config)?;
    // Each model has its price.
    let mut asked: Vec<&str> = by.iter().map(|by| by.word()).collect();
    if !by.contains(&By::Model) {
        asked.push("model");
    }
    let mut path = format!("/admin/usage?by={}", asked.join(","));
    for name in ["since", "until", "key"] {
        if let Some(value) = m.get_one::<String>(name) {
            anyhow::ensure!(
                value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)),
                "--{name} {value:?}"
            );
            path += &format!("&{name}={value}");
        }
    }
    let answer = admin.ask(&path, None)?;
    let sums: Vec<Sum> = serde_json::from_value(answer["data"].clone())?;
    let names: BTreeMap<String, String> = match by.contains(&By::Key) {
        true => names(&admin.ask("/admin/keys", None)?),
        false => BTreeMap::new(),
    };
    let rows = rows(sums, &by, &given, &names)?;
    match m.get_one::<String>("format").map(String::as_str) {
        Some("json") => println!("{}", serde_json::to_string_pretty(&rows)?),
        Some("csv") => print!("{}", csv(&rows, &by)?),
        _ => table(&rows, &by),
    }
    Ok(0)
}

fn names(answer: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    answer["data"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|key| (text(&key["id"]), text(&key["name"])))
        .collect()
}

/// Dollars of a sum's tokens.
fn amount(sum: &Sum, prices: Option<TokenPrices>) -> Option<f64> {
    let prices = prices?;
    let fresh = sum.prompt_tokens.saturating_sub(sum.cached_tokens) as f64;
    let dollars = fresh * prices.usd_per_million_input_tokens
        + sum.cached_tokens as f64 * prices.usd_per_million_cached_tokens
        + sum.completion_tokens as f64 * prices.usd_per_million_output_tokens;
    Some(dollars / 1e6)
}

/// Prices each model's sums, then adds up those that are told as one.
fn rows(
    sums: Vec<Sum>,
    by: &[By],
    given: &Given,
    names: &BTreeMap<String, String>,
) -> anyhow::Result<Vec<Row>> {
    let power = given.power_price();
    let mut rows: Vec<Row> = Vec::new();
    for sum in sums {
        let prices = given.token_prices(sum.model.as_deref().unwrap_or_default())?;
        let joules = sum.prefill_joules + sum.decode_joules;
        let row = Row {
            amount_usd: amount(&sum, prices),
            kwh: joules / 3.6e6,
            energy_usd: power.map(|usd_per_mwh| joules / JOULES_PER_MWH * usd_per_mwh),
            name: sum.key.as_ref().map(|id| names.get(id).cloned().unwrap_or_default()),
            model: sum.model.filter(|_| by.contains(&By::Model)),
            key: sum.key,
            day: sum.day,
            endpoint: sum.endpoint,
            requests: sum.requests,
            failed: sum.failed,
            input_tokens: sum.prompt_tokens,
            cached_tokens: sum.cached_tokens,
            output_tokens: sum.completion_tokens,
            prefill_joules: sum.prefill_joules,
            decode_joules: sum.decode_joules,
            energy_method: sum.method,
            energy_boundary: sum.boundary,
            unsettled: sum.unsettled,
        };
        match rows.iter_mut().find(|one| one.is_told_as_one_with(&row)) {
            Some(one) => one.add(&row),
            None => rows.push(row),
        }
    }
    Ok(rows)
}

impl Row {
    fn is_told_as_one_with(&self, other: &Row) -> bool {
        let of = |row: &Row| {
            let Row { key, day, model, endpoint, energy_method, energy_boundary, .. } = row.clone();
            [key, day, model, endpoint, energy_method, energy_boundary]
        };
        of(self) == of(other)
    }

    fn add(&mut self, other: &Row) {
        // An amount without a price for all of it is none.
        let both = |a: Option<f64>, b: Option<f64>| Some(a? + b?);
        self.amount_usd = both(self.amount_usd, other.amount_usd);
        self.energy_usd = both(self.energy_usd, other.energy_usd);
        self.requests += other.requests;
        self.failed += other.failed;
        self.input_tokens += other.input_tokens;
        self.cached_tokens += other.cached_tokens;
        self.output_tokens += other.output_tokens;
        self.prefill_joules += other.prefill_joules;
        self.decode_joules += other.decode_joules;
        self.kwh += other.kwh;
        self.unsettled += other.unsettled;
    }

    /// Heads and cells, in the order they are shown.
    fn cells(&self, by: &[By]) -> Vec<(&'static str, String)> {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let dollars = |value: Option<f64>| value.map(|v| format!("{v:.6}")).unwrap_or_default();
        let mut cells = Vec::new();
        for one in by {
            match one {
                By::Key => cells.extend([("key", text(&self.key)), ("name", text(&self.name))]),
                By::Day => cells.push(("day", text(&self.day))),
                By::Model => cells.push(("model", text(&self.model))),
                By::Endpoint => cells.push(("endpoint", text(&self.endpoint))),
            }
        }
        cells.extend([
            ("requests", self.requests.to_string()),
            ("failed", self.failed.to_string()),
            ("input_tokens", self.input_tokens.to_string()),
            ("cached_tokens", self.cached_tokens.to_string()),
            ("output_tokens", self.output_tokens.to_string()),
            ("amount_usd", dollars(self.amount_usd)),
            ("prefill_joules", format!("{:.3}", self.prefill_joules)),
            ("decode_joules", format!("{:.3}", self.decode_joules)),
            ("kwh", format!("{:.9}", self.kwh)),
            ("energy_usd", dollars(self.energy_usd)),
            ("energy_method", text(&self.energy_method)),
            ("energy_boundary", text(&self.energy_boundary)),
            ("unsettled", self.unsettled.to_string()),
        ]);
        cells
    }
}

/// Heads of columns, also where there is no row.
fn heads(by: &[By]) -> Vec<&'static str> {
    let empty = Row::default();
    empty.cells(by).into_iter().map(|(head, _)| head).collect()
}

fn csv(rows: &[Row], by: &[By]) -> anyhow::Result<String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(heads(by))?;
    for row in rows {
        writer.write_record(row.cells(by).into_iter().map(|(_, cell)| cell))?;
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}

fn table(rows: &[Row], by: &[By]) {
    let mut lines = vec![heads(by).iter().map(ToString::to_string).collect::<Vec<_>>()];
    lines.extend(rows.iter().map(|row| row.cells(by).into_iter().map(|(_, cell)| cell).collect()));
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
    for line in &lines {
        let cells: Vec<String> = line.iter().zip(&widths).map(|(cell, w)| format!("{cell:<w$}")).collect();
        println!("{}", cells.join("  ").trim_end());
    }
}
