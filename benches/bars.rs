//! The bars of the project, measured side by side in one run: `cargo bench --bench bars -- SECTION…`
//!
//! Sections: `cpu` (against candle-transformers), `quantised` (the same on the GGUF files that are named), `http` (against
//! the same load in process), `layers` (what stands before the service), `memory`, `start`, `meter` (what metering costs),
//! `grammar` (what structured output costs), `embeddings` (against HuggingFace transformers); `all` is every one. Rivals
//! alternate round by round; ratios are paired within a round, and the median is printed with the range. `--json FILE`
//! keeps every reading.

#[path = "bars/cpu.rs"]
mod cpu;
#[path = "bars/embeddings.rs"]
mod embeddings;
#[path = "bars/grammar.rs"]
mod grammar;
#[path = "bars/http.rs"]
mod http;
#[path = "bars/meter.rs"]
mod meter;
#[path = "bars/process.rs"]
mod process;
#[path = "bars/quantised.rs"]
mod quantised;

use std::io::Write;

use serde_json::{Value, json};

/// Named readings of one section: what was measured, in which unit, every round.
pub struct Report {
    rows: Vec<Value>,
}

impl Report {
    /// Prints a row and keeps it. `bar` is what the median is held against, when there is one.
    pub fn row(&mut self, name: &str, unit: &str, readings: &[f64], bar: Option<(&str, f64)>) {
        let mut sorted = readings.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (sorted[0], sorted[sorted.len() - 1]);
        let median = sorted[sorted.len() / 2];
        let verdict = match bar {
            None => String::new(),
            Some((sign, bar)) => {
                let met = if sign == "≥" { median >= bar } else { median <= bar };
                format!("  bar {sign} {bar}: {}", if met { "met" } else { "NOT MET" })
            }
        };
        println!("{name:<54} {median:>10.3} {unit:<8} ({min:.3} to {max:.3}){verdict}");
        let bar = bar.map(|(sign, bar)| format!("{sign} {bar}"));
        self.rows
            .push(json!({"name": name, "unit": unit, "median": median, "readings": readings, "bar": bar}));
    }

    /// Ratios of two series, round by round.
    pub fn ratio(&mut self, name: &str, ours: &[f64], theirs: &[f64], bar: Option<f64>) {
        let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(a, b)| a / b).collect();
        self.row(name, "×", &ratios, bar.map(|bar| ("≥", bar)));
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    if let [mode, url, model_clients @ ..] = arguments.as_slice()
        && mode == "http-client"
    {
        return http::client(url, model_clients);
    }
    let json_file = arguments.iter().position(|a| a == "--json").and_then(|i| arguments.get(i + 1));
    let wanted = |section: &str| arguments.iter().any(|a| a == section || a == "all");
    let mut report = Report { rows: Vec::new() };
    type Section = (&'static str, fn(&mut Report));
    let sections: [Section; 9] = [
        ("cpu", cpu::run),
        ("quantised", quantised::run),
        ("http", http::run),
        ("layers", http::layers),
        ("memory", process::memory),
        ("start", process::start),
        ("meter", meter::run),
        ("grammar", grammar::run),
        ("embeddings", embeddings::run),
    ];
    if !sections.iter().any(|(name, _)| wanted(name)) {
        println!(
            "sections: cpu quantised http layers memory start meter grammar embeddings all; add --json FILE to keep the readings"
        );
        return;
    }
    for (name, run) in sections {
        if wanted(name) {
            println!("\n{name}");
            run(&mut report);
        }
    }
    if let Some(file) = json_file {
        let machine = json!({"cores": cores(), "isa": format!("{:?}", hashwatt::ops::cpu::Isa::detect()),
                             "candle_threads": candle_core::utils::get_num_threads()});
        let all = json!({"unix_seconds": hashwatt::clock::unix_seconds(), "machine": machine,
                         "command": arguments, "rows": report.rows});
        let written = std::fs::File::create(file).and_then(|mut f| writeln!(f, "{all:#}"));
        if let Err(e) = written {
            eprintln!("{file}: {e}");
            std::process::exit(1);
        }
    }
}

pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
