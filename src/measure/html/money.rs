//! An outcome → its tables: verdicts by hours, figures of serving and mining, the machines.
//!
//! Each figure stands with its own method and boundary; nothing is computed here.

use super::markup::{estimate, of_figure, or_dash, table};
use crate::economics::estimate::Figure;
use crate::economics::verdict::{Comparison, Outcome, Row};

/// Interruptible and firm hours, without and with the price of the unit.
pub fn rows(outcome: &Outcome) -> String {
    let head = [
        "hours",
        "share",
        "capital",
        "verdict",
        "serve",
        "mine",
        "stand still",
        "serving's lead",
        "break-even: utilisation",
        "$/M output token",
        "hashprice, $/PH/day",
    ];
    let mut rows = Vec::new();
    for row in &outcome.rows {
        rows.push(cells(row, "not counted (marginal)", &row.marginal));
        rows.extend(row.loaded.as_ref().map(|loaded| cells(row, "counted (fully loaded)", loaded)));
    }
    let Some(first) = outcome.rows.first() else { return String::new() };
    let advantage = &first.marginal.advantage;
    let caption = format!(
        "Net of power, {}, with the interval from worst to best. Method: {}. Boundary: {}.",
        advantage.unit, advantage.method, advantage.boundary
    );
    table(&caption, &head, &rows)
}

fn cells(row: &Row, capital: &str, c: &Comparison) -> Vec<String> {
    let share = |f: &Figure| format!("{} %", estimate(of_figure(f).scaled(100.0)));
    let plain = |f: &Figure| estimate(of_figure(f));
    let nowhere = |f: Option<&Figure>, show: &dyn Fn(&Figure) -> String| f.map_or("nowhere".into(), show);
    vec![
        row.hours.as_str().into(),
        format!("{:.0} %", row.share * 100.0),
        capital.into(),
        c.verdict.to_string(),
        plain(&c.serve),
        plain(&c.mine),
        plain(&c.off),
        plain(&c.advantage),
        nowhere(c.break_even.utilisation.as_ref(), &share),
        nowhere(c.break_even.output_price.as_ref(), &plain),
        nowhere(c.break_even.hashprice.as_ref(), &plain),
    ]
}

/// All single figures.
pub fn figures(outcome: &Outcome) -> String {
    let mut rows = Vec::new();
    let mut put = |name: &str, f: &Figure| {
        let cells = [name, &estimate(of_figure(f)), &f.unit, &f.method, &f.boundary];
        rows.push(cells.map(String::from).to_vec());
    };
    if let Some(s) = &outcome.serving {
        put("serving at full load, revenue inside the meter's boundary", &s.measured_usd_per_mwh);
        put("serving at full load, revenue of what is drawn", &s.drawn_usd_per_mwh);
        put("serving at full load, revenue of what is allocated", &s.allocated_usd_per_mwh);
        put("serving at full load, revenue of an hour", &s.usd_per_hour);
        put("watts at full load", &s.load_watts);
        put("watts idle", &s.idle_watts);
        put("watts allocated", &s.allocated_watts);
        if let Some(idle) = &s.idle_usd_per_hour {
            put("power of an hour without a request", idle);
        }
    }
    if let Some(m) = &outcome.mining {
        put("bitcoin of a petahash per second in a day", &m.btc_per_ph_day);
        put("hashprice today", &m.hashprice);
        put("hashprice after the next halving", &m.hashprice_after_halving);
        put("hashprice over the horizon", &m.hashprice_of_horizon);
    }
    let head = ["figure", "value (low to high)", "unit", "method", "boundary"];
    table("What the verdict is made of; each row names its method and boundary.", &head, &rows)
}

/// Every machine of the table.
pub fn miners(outcome: &Outcome) -> String {
    let head = [
        "machine",
        "yours",
        "J/TH",
        "$/MWh at the machine",
        "$/MWh at the meter",
        "$/W·day",
        "net $/MWh",
        "verdict, were it yours",
        "break-even utilisation",
    ];
    let plain = |f: &Figure| estimate(of_figure(f));
    let rows: Vec<Vec<String>> = outcome
        .miners
        .iter()
        .map(|m| {
            let even = m.break_even_utilisation.as_ref();
            vec![
                m.name.clone(),
                if m.owned { "yes" } else { "" }.into(),
                plain(&m.joules_per_terahash),
                plain(&m.machine_usd_per_mwh),
                plain(&m.meter_usd_per_mwh),
                plain(&m.usd_per_watt_day),
                or_dash(m.net_usd_per_mwh.as_ref(), plain),
                m.verdict.to_string(),
                or_dash(even, |f| format!("{} %", estimate(of_figure(f).scaled(100.0)))),
            ]
        })
        .collect();
    let Some(first) = outcome.miners.first() else { return String::new() };
    let caption = format!(
        "Mining machines. At the machine: method: {}; boundary: {}. At the meter: method: {}; boundary: {}.",
        first.machine_usd_per_mwh.method,
        first.machine_usd_per_mwh.boundary,
        first.meter_usd_per_mwh.method,
        first.meter_usd_per_mwh.boundary
    );
    table(&caption, &head, &rows)
}
