//! `hashwatt report verdict REPORT.json`: the economics of a saved report under what is given now.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Arg, ArgMatches, Command, value_parser};

use super::{Exit, columns, file, json, path};
use crate::clock::unix_seconds;
use crate::economics::estimate::{Estimate, Figure};
use crate::economics::inference::Shape;
use crate::economics::market::Market;
use crate::economics::miners;
use crate::economics::site::Site;
use crate::economics::verdict::{Comparison, Outcome};
use crate::measure::economics::{Given, PricesGiven, judge};
use crate::measure::plot::scale::number;
use crate::measure::report::Report;
use crate::measure::table::EXAMPLE;

pub fn command() -> Command {
    let option = |name: &'static str, shape: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(shape).help(help).allow_hyphen_values(true)
    };
    let number = |name, shape, help| option(name, shape, help).value_parser(value_parser!(f64));
    let file_option = |name, help| option(name, "FILE", help).value_parser(value_parser!(PathBuf));
    Command::new("verdict")
        .about("Judge a saved report again; what is not given is taken from the report")
        .arg(file("report", "REPORT.json").required(true))
        .arg(file_option("market", "Another market (hashwatt market fetch)"))
        .arg(file_option("site", "Another site: contract, PUEs, host, utilisation, costs, machines"))
        .arg(file_option("miners", "Own machines, laid over the built-in table"))
        .arg(number("price-input", "USD_PER_MILLION", "Price of input tokens"))
        .arg(number("price-cached", "USD_PER_MILLION", "Price of input tokens found in the prefix cache"))
        .arg(number("price-output", "USD_PER_MILLION", "Price of output tokens"))
        .arg(number("power-price", "USD_PER_MWH", "A fixed price of power; the rest of the contract stays"))
        .arg(option("utilisation", "SHARE[,LOW,HIGH]", "Share of the capacity that is sold, 0 to 1"))
        .arg(option("shape", "IN,CACHED,OUT", "Tokens of a request, instead of those measured"))
        .arg(json())
}

pub fn run(matches: &ArgMatches) -> Exit {
    let report = Report::read(path(matches, "report")?)?;
    let economics = judge(&report, given(matches)?, unix_seconds())?;
    if matches.get_flag("json") {
        println!("{}", serde_json::to_string_pretty(&economics)?);
    } else {
        print!("{}", text(&report, &economics.outcome));
    }
    Ok(0)
}

/// What the flags say.
fn given(matches: &ArgMatches) -> anyhow::Result<Given> {
    let number = |name: &str| matches.get_one::<f64>(name).copied();
    Ok(Given {
        market: read(matches, "market", |text| Ok(Market::parse(text)?))?,
        site: read(matches, "site", |text| Ok(Site::parse(text)?))?,
        miners: read(matches, "miners", |text| Ok(miners::with_own(Some(text))?))?,
        prices: PricesGiven {
            input: number("price-input"),
            cached: number("price-cached"),
            output: number("price-output"),
        },
        power_usd_per_mwh: number("power-price"),
        utilisation: match numbers(matches, "utilisation")?.as_deref() {
            None => None,
            Some([value]) => Some(Estimate::exact(*value)),
            Some([value, low, high]) => Some(Estimate { value: *value, low: *low, high: *high }),
            Some(_) => bail!("--utilisation takes one share, or three: the value, its low and its high end"),
        },
        shape: match numbers(matches, "shape")?.as_deref() {
            None => None,
            Some([input_tokens, cached_tokens, output_tokens]) => Some(Shape {
                input_tokens: *input_tokens,
                cached_tokens: *cached_tokens,
                output_tokens: *output_tokens,
            }),
            Some(_) => bail!("--shape takes three numbers: input, cached and output tokens"),
        },
    })
}

fn read<T>(
    matches: &ArgMatches,
    name: &str,
    parse: impl Fn(&str) -> anyhow::Result<T>,
) -> anyhow::Result<Option<T>> {
    let Some(file) = matches.get_one::<PathBuf>(name) else { return Ok(None) };
    let shown = || format!("--{name} {}", file.display());
    let text = std::fs::read_to_string(file).with_context(shown)?;
    parse(&text).with_context(shown).map(Some)
}

fn numbers(matches: &ArgMatches, name: &str) -> anyhow::Result<Option<Vec<f64>>> {
    let Some(text) = matches.get_one::<String>(name) else { return Ok(None) };
    let one = |part: &str| {
        let number = part.trim().parse::<f64>().ok().filter(|n| n.is_finite());
        number.with_context(|| format!("--{name} {text}: {part:?} is not a number"))
    };
    text.split(',').map(one).collect::<anyhow::Result<Vec<f64>>>().map(Some)
}

fn text(report: &Report, outcome: &Outcome) -> String {
    let mut out = String::new();
    if outcome.example || report.example {
        out += &format!("{EXAMPLE}\n\n");
    }
    if let Some(row) = outcome.rows.first() {
        let lead = &row.marginal.advantage;
        out += &format!("net of power, {}; {}\nboundary: {}\n", lead.unit, lead.method, lead.boundary);
    }
    let head = ["", "capital", "serve", "mine", "stand still", "lead", "break-even", "verdict"];
    let mut rows = vec![head.map(String::from).to_vec()];
    for row in &outcome.rows {
        let name = format!("{} ({:.0} %)", row.hours.as_str(), row.share * 100.0);
        rows.push(cells(name.clone(), "sunk", &row.marginal));
        rows.extend(row.loaded.as_ref().map(|loaded| cells(name, "counted", loaded)));
    }
    if rows.len() > 1 {
        out += &format!("{}\n", columns(&rows));
    }
    out += &miners_text(outcome);
    for warning in report.warnings.iter().chain(&outcome.warnings) {
        out += &format!("warning: {warning}\n");
    }
    out + &format!("verdict: {}\n{}\n", outcome.verdict, outcome.reasons)
}

fn span(f: &Figure, factor: f64) -> String {
    let [value, low, high] = [f.value, f.low, f.high].map(|v| number(v * factor));
    if low == high { value } else { format!("{value} ({low} to {high})") }
}

fn cells(name: String, capital: &str, c: &Comparison) -> Vec<String> {
    let even = c.break_even.utilisation.as_ref();
    let mut row = vec![name, capital.into()];
    row.extend([&c.serve, &c.mine, &c.off, &c.advantage].map(|f| span(f, 1.0)));
    row.push(even.map_or("nowhere".into(), |u| format!("{} % sold", span(u, 100.0))));
    row.push(c.verdict.to_string());
    row
}

fn miners_text(outcome: &Outcome) -> String {
    let Some(first) = outcome.miners.first() else { return String::new() };
    let of = &first.meter_usd_per_mwh;
    let head = ["mining machine (* is yours)", "J/TH", "$/MWh", "net $/MWh", "verdict, were it yours"];
    let mut rows = vec![head.map(String::from).to_vec()];
    rows.extend(outcome.miners.iter().map(|m| {
        let owned = if m.owned { " *" } else { "" };
        vec![
            format!("{}{owned}", m.name),
            number(m.joules_per_terahash.value),
            span(&m.meter_usd_per_mwh, 1.0),
            m.net_usd_per_mwh.as_ref().map_or("–".into(), |f| span(f, 1.0)),
            m.verdict.to_string(),
        ]
    }));
    format!("method: {}; boundary: {}\n{}\n", of.method, of.boundary, columns(&rows))
}
