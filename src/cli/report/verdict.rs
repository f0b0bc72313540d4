//! `hashwatt report verdict REPORT.json`: the economics of a saved report under what is given now.

use clap::{ArgMatches, Command};

use super::{Exit, columns, file, json, path};
use crate::cli::given;
use crate::clock::unix_seconds;
use crate::economics::estimate::Figure;
use crate::economics::verdict::{Comparison, Outcome};
use crate::measure::economics::judge;
use crate::measure::plot::scale::number;
use crate::measure::report::Report;
use crate::measure::table::EXAMPLE;

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
        print!("{}", text(&report, &economics.outcome));
    }
    Ok(0)
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
