//! The verdict: text-file cases, the published table, and how it moves when one input moves.
//!
//! A case changes inputs by their JSON path (`market.btc_usd=20000`) from a base, and says what comes out.

use std::fmt::Write as _;

use hashwatt::economics::contract::{Curtailment, PowerContract, PowerPrice};
use hashwatt::economics::estimate::{Basis, Estimate};
use hashwatt::economics::inference::{Efficiency, HostOverhead, Served, Shape, TokenPrices};
use hashwatt::economics::market::Market;
use hashwatt::economics::miners::{self, Miner};
use hashwatt::economics::site::{MiningSite, ServingSite, Site, UnitCost};
use hashwatt::economics::verdict::{Hours, Inputs, Outcome, Verdict, evaluate};
use proptest::prelude::*;
use serde_json::Value;

/// 2026-11-01T01:00:00Z, an hour after the base's market.
const NOW: u64 = 1_793_494_800;

const MARKET: &str = r#"
example = false
as_of = "2026-11-01T00:00:00Z"
source = "made for tests"
difficulty = 150e12
subsidy_btc = 3.125
fees_btc_per_block = 0.02
btc_usd = 90000.0
pool_fee = 0.01
height = 975000
hashprice_low_usd_per_ph_day = 36.0
hashprice_high_usd_per_ph_day = 40.0
hashprice_range = "30 days"
published_hashprice_usd_per_ph_day = 38.0
published_hashprice_source = "an index"

[[token_price]]
model = "M"
usd_per_million_input_tokens = 0.035
usd_per_million_cached_tokens = 0.0175
usd_per_million_output_tokens = 0.138
source = "made for tests"
date = "2026-10-30"
"#;

/// One board of 690 W at low concurrency, in a node that a meter on the board does not see.
fn base() -> Inputs {
    Inputs {
        served: Some(Served {
            model: "M".into(),
            concurrency: 16,
            efficiency: Efficiency::ByPhase {
                joules_per_prefill_token: Estimate::within(0.05, 0.02),
                joules_per_decode_token: Estimate::within(0.5, 0.02),
            },
            load_watts: 690.0,
            idle_watts: Some(80.0),
            basis: Basis {
                method: "counter".into(),
                boundary: "gpu_board".into(),
                measured: true,
                assumed: false,
            },
            gain_error: 0.05,
        }),
        shape: Shape { input_tokens: 500.0, cached_tokens: 200.0, output_tokens: 250.0 },
        market: Some(Market::parse(MARKET).unwrap()),
        token_prices: None,
        site: Some(Site {
            example: false,
            horizon_years: 1.0,
            power: Some(PowerContract::fixed(50.0)),
            serving: ServingSite {
                pue: Some(1.1),
                host: Some(HostOverhead::Factor(2.0)),
                utilisation: Some(Estimate::new(0.3, 0.28, 0.32)),
                capex_is_sunk: true,
                cost: Some(UnitCost::UsdPerHour(0.2)),
                ..ServingSite::default()
            },
            mining: MiningSite {
                pue: Some(1.05),
                uptime: 0.95,
                machines: vec!["Antminer S21".into()],
                ..MiningSite::default()
            },
        }),
        miners: miners::parse(miners::BUILT_IN).unwrap(),
        now_unix_seconds: NOW,
    }
}

/// The inputs with `path=JSON` changed; a bare word is a string.
fn change(inputs: &Inputs, changes: &str) -> Inputs {
    let mut all = serde_json::to_value(inputs).unwrap();
    for change in changes.split_whitespace() {
        let (path, text) = change.split_once('=').unwrap_or_else(|| panic!("`{change}` has no `=`"));
        let value = serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.into()));
        let mut at = &mut all;
        for part in path.split('.') {
            at = match part.parse::<usize>() {
                Ok(i) => &mut at[i],
                Err(_) => &mut at[part],
            };
        }
        assert_ne!(*at, value, "`{change}` changes nothing");
        *at = value;
    }
    serde_json::from_value(all).unwrap_or_else(|e| panic!("`{changes}`: {e}"))
}

fn said(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Unknown { reasons } => {
            let reasons: Vec<String> = reasons.iter().map(ToString::to_string).collect();
            format!("UNKNOWN: {}", reasons.join("; "))
        }
        other => other.to_string(),
    }
}

fn print_rows(outcome: &Outcome, out: &mut String) {
    for row in &outcome.rows {
        let c = &row.marginal;
        let (s, m) = (&c.serve, &c.mine);
        writeln!(
            out,
            "{}: serve {:.1} ({:.1} to {:.1}), mine {:.1} ({:.1} to {:.1}), off {:.1}: {}",
            row.hours.as_str(),
            s.value,
            s.low,
            s.high,
            m.value,
            m.low,
            m.high,
            c.off.value,
            c.verdict
        )
        .unwrap();
    }
}

fn wrapped(text: &str) -> String {
    let (mut out, mut column) = (String::new(), 0);
    for word in text.split_whitespace() {
        if column + word.len() > 100 {
            out.push('\n');
            column = 0;
        }
        if column > 0 {
            out.push(' ');
        }
        out.push_str(word);
        column += word.len() + 1;
    }
    out + "\n"
}

/// Runs one line of a case; what it prints.
fn command(start: &mut Inputs, line: &str) -> String {
    let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
    let mut out = String::new();
    match verb {
        "base" => *start = change(&base(), rest),
        "verdict" => writeln!(out, "{}", said(&evaluate(&change(start, rest)).verdict)).unwrap(),
        "flip" => {
            let (before, after) = (evaluate(start).verdict, evaluate(&change(start, rest)).verdict);
            assert_ne!(before, after, "`{line}` does not flip the verdict");
            writeln!(out, "{before} -> {after}").unwrap();
        }
        "rows" => print_rows(&evaluate(&change(start, rest)), &mut out),
        "reasons" => out.push_str(&wrapped(&evaluate(&change(start, rest)).reasons)),
        "notes" => {
            let outcome = evaluate(&change(start, rest));
            outcome.warnings.iter().chain(&outcome.taken).for_each(|w| writeln!(out, "{w}").unwrap());
        }
        other => panic!("unknown command `{other}`"),
    }
    out
}

fn replay(text: &str) -> String {
    let (mut start, mut out) = (base(), String::new());
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        writeln!(out, "{line}").unwrap();
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let got = command(&mut start, line);
        if lines.next_if(|l| *l == "----").is_some() {
            while lines.next_if(|l| !l.trim().is_empty()).is_some() {}
            write!(out, "----\n{got}").unwrap();
        } else {
            assert_eq!(got, "", "`{line}` prints something and expects nothing");
        }
    }
    out
}

/// `UPDATE_CASES=1 cargo test` writes what comes out into the files; read the diff before committing.
#[test]
#[allow(clippy::disallowed_methods)] // the one switch of this test
fn cases() {
    for file in ["flips.txt", "unknown.txt", "hours.txt", "paragraphs.txt"] {
        let path = format!("{}/tests/it/cases/verdict/{file}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).unwrap();
        let now = replay(&text);
        if std::env::var("UPDATE_CASES").is_ok() {
            std::fs::write(&path, &now).unwrap();
        } else {
            for (i, (want, got)) in text.lines().zip(now.lines()).enumerate() {
                assert_eq!(got, want, "{file}:{}", i + 1);
            }
            assert_eq!(text.lines().count(), now.lines().count(), "{file} ends differently");
        }
    }
}
