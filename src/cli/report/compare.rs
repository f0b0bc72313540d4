//! `hashwatt report compare A.json B.json`: ratios with their error; 1 on a regression, 2 where none can be told.

use std::path::Path;

use clap::{Arg, ArgMatches, Command, value_parser};

use super::{Exit, columns, file, json, path, switch};
use crate::economics::estimate::Estimate;
use crate::measure::compare::{Comparison, Mean, Options, Ratio, compare};
use crate::measure::plot::scale::number;
use crate::measure::report::Report;

const REGRESSED: u8 = 1;
const NOT_COMPARED: u8 = 2;

pub fn command() -> Command {
    Command::new("compare")
        .about("Ratios B/A of two reports; 1 if B regressed, 2 if the two do not compare")
        .arg(file("first", "A.json").required(true))
        .arg(file("second", "B.json").required(true))
        .arg(
            Arg::new("max-regression")
                .long("max-regression")
                .value_name("PERCENT")
                .default_value("5")
                .value_parser(value_parser!(f64))
                .help("A ratio worse by more than this, and surely worse, is a regression"),
        )
        .arg(switch("force", "Compare unlike hardware, boundaries and methods"))
        .arg(json())
}

pub fn run(matches: &ArgMatches) -> Exit {
    let (first, second) = (path(matches, "first")?, path(matches, "second")?);
    let percent = matches.get_one::<f64>("max-regression").copied().unwrap_or(5.0);
    let options = Options { max_regression: percent / 100.0, force: matches.get_flag("force") };
    if !(0.0..1.0).contains(&options.max_regression) {
        eprintln!("--max-regression {percent}: give 0 or more and less than 100");
        return Ok(NOT_COMPARED);
    }
    match compared(first, second, options) {
        Ok(comparison) => {
            if matches.get_flag("json") {
                println!("{}", serde_json::to_string_pretty(&comparison)?);
            } else {
                print!("{}", text(&comparison));
            }
            Ok(if comparison.regressed { REGRESSED } else { 0 })
        }
        // A file that cannot be read must not look like a regression.
        Err(error) => {
            eprintln!("{error}");
            Ok(NOT_COMPARED)
        }
    }
}

fn compared(first: &Path, second: &Path, options: Options) -> anyhow::Result<Comparison> {
    Ok(compare(&Report::read(first)?, &Report::read(second)?, options)?)
}

fn text(c: &Comparison) -> String {
    let mut out = String::new();
    for d in &c.differences {
        out += &format!("{}: A {}, B {}\n", d.field, d.first, d.second);
    }
    for note in &c.notes {
        out += &format!("{note}\n");
    }
    let head = ["", "", "A", "B", "B/A", "95 %", "", "method, boundary"].map(String::from).to_vec();
    let mut rows = vec![head];
    rows.extend(c.ratios.iter().map(row));
    rows.extend(c.geometric_means.iter().map(mean));
    out += &format!("\n{}\n", columns(&rows));
    for (name, points) in [("A", &c.only_in_first), ("B", &c.only_in_second)] {
        if !points.is_empty() {
            out += &format!("only in {name}: {}\n", points.join("; "));
        }
    }
    let mut flagged: Vec<String> = c
        .ratios
        .iter()
        .filter(|r| !r.flags.is_empty())
        .map(|r| format!("{}: {}", r.point, r.flags.join("; ")))
        .collect();
    flagged.dedup();
    out += &flagged.iter().map(|f| format!("flagged, {f}\n")).collect::<String>();
    let worst = c.ratios.iter().filter(|r| r.regressed).count();
    out += &match worst {
        0 => format!("no regression of more than {} %\n", number(c.max_regression * 100.0)),
        n => format!(
            "REGRESSED: {n} of {} ratios by more than {} %\n",
            c.ratios.len(),
            number(c.max_regression * 100.0)
        ),
    };
    out
}

fn row(r: &Ratio) -> Vec<String> {
    let mark = if r.regressed { "REGRESSED" } else { "" };
    let mut row = vec![r.point.clone(), r.metric.as_str().into(), number(r.first), number(r.second)];
    row.extend([format!("{:.3}", r.ratio.value), interval(r.ratio, r.error_known)]);
    row.extend([mark.into(), format!("{}, {}", r.method, r.boundary)]);
    row
}

fn mean(m: &Mean) -> Vec<String> {
    let name = format!("geometric mean of {}", m.points);
    let mut row = vec![name, m.metric.as_str().into(), String::new(), String::new()];
    row.extend([format!("{:.3}", m.ratio.value), interval(m.ratio, m.error_known)]);
    row.extend([String::new(), format!("{}, {}", m.method, m.boundary)]);
    row
}

fn interval(e: Estimate, known: bool) -> String {
    if known { format!("{:.3} to {:.3}", e.low, e.high) } else { "error not known".into() }
}
