//! `hashwatt report verdict REPORT.json`: the economics of a saved report under what is given now.

use clap::{ArgMatches, Command};

use super::{Exit, columns, file, json, path};
use crate::cli::given;
use crate::clock::unix_seconds;
use crate::economics::estimate::Figure;
use crate::economics::verdict::{Comparison, Outcome};
use crate::error::printable;
use crate::measure::economics::judge;
use crate::measure::plot::scale::number;
use crate::measure::report::{Economics, Report};
use crate::measure::table::EXAMPLE;

/// Characters of a warning in a report that are shown.
const MOST_OF_A_WARNING: usize = 500;

pub fn command() -> Command {
    Command::new("verdict")
        .about("Judge a saved report again; what is not given is taken from the report")
        .arg(file("report", "REPORT.json").required(true))
        .args(given::options())
        .arg(json())
}

pub fn run(matches: &ArgMatches) -> Exit {
    let report = Report::read(path(matches, "report")?)?;
    let economics = judge(&report, given::given(matches)?, unix_seconds())?;
    if matches.get_flag("json") {
        println!("{}", serde_json::to_string_pretty(&economics)?);
    } else {
        print!("{}", text(&report, &economics));
    }
    Ok(0)
}

fn text(report: &Report, economics: &Economics) -> String {
    let outcome = &economics.outcome;
    let mut out = String::new();
    if outcome.example || report.example {
        out += &format!("{EXAMPLE}\n\n");
    }
    out += &basis(report, economics);
    if let Some(row) = outcome.rows.first() {
        let lead = &row.marginal.advantage;
        out += &format!(
            "\nnet of power, and of capital where it is counted; {}; {}\nboundary: {}\n",
            lead.unit, lead.method, lead.boundary
        );
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
        // A report is a file that anyone may have written.
        out += &format!("warning: {}\n", printable(warning, MOST_OF_A_WARNING));
    }
    out + &format!("verdict: {}\n{}\n", outcome.verdict, outcome.reasons)
}

/// What the verdict rests on: prices, power, and what the unit earns at full load.
fn basis(report: &Report, economics: &Economics) -> String {
    let Economics { inputs, outcome } = economics;
    let mut lines = Vec::new();
    let mut line = |name: &str, text: String| lines.push(vec![name.to_string(), text]);
    let with_basis = |f: &Figure| format!("{} {} ({}; {})", span(f, 1.0), f.unit, f.method, f.boundary);
    if let Some(p) = inputs.token_prices_of(&report.model.id) {
        let prices = [
            p.usd_per_million_input_tokens,
            p.usd_per_million_cached_tokens,
            p.usd_per_million_output_tokens,
        ];
        let [input, cached, output] = prices.map(number);
        let shape = &inputs.shape;
        let tokens = [shape.input_tokens, shape.cached_tokens, shape.output_tokens].map(number).join(", ");
        line(
            "token prices",
            format!("{input} in, {cached} cached, {output} out, $ a million; a request: {tokens}"),
        );
    }
    if let Some(power) = inputs.site.as_ref().and_then(|s| s.power.as_ref()) {
        let demand = power.demand_usd_per_mwh();
        line(
            "power",
            format!(
                "{} $/MWh in the mean, {} demand charge",
                number(power.mean_usd_per_mwh()),
                number(demand)
            ),
        );
    }
    if let Some(mining) = &outcome.mining {
        line("hashprice", with_basis(&mining.hashprice));
        if mining.share_after_halving > 0.0 {
            line("  of the horizon", with_basis(&mining.hashprice_of_horizon));
        }
    }
    if let Some(serving) = &outcome.serving {
        line("served, full load", with_basis(&serving.measured_usd_per_mwh));
        line("", with_basis(&serving.drawn_usd_per_mwh));
        line("", with_basis(&serving.allocated_usd_per_mwh));
        if let Some(idle) = &serving.idle_usd_per_hour {
            line("an idle hour", with_basis(idle));
        }
    }
    if lines.is_empty() { String::new() } else { columns(&lines) }
}

/// Why no utilisation makes the sides meet.
fn nowhere(c: &Comparison) -> String {
    match c.advantage.value > 0.0 {
        true => "leads at any".into(),
        false => "never".into(),
    }
}

fn span(f: &Figure, factor: f64) -> String {
    let [value, low, high] = [f.value, f.low, f.high].map(|v| number(v * factor));
    if low == high { value } else { format!("{value} ({low} to {high})") }
}

fn cells(name: String, capital: &str, c: &Comparison) -> Vec<String> {
    let even = c.break_even.utilisation.as_ref();
    let mut row = vec![name, capital.into()];
    row.extend([&c.serve, &c.mine, &c.off, &c.advantage].map(|f| span(f, 1.0)));
    row.push(even.map_or_else(|| nowhere(c), |u| format!("{} % sold", span(u, 100.0))));
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
