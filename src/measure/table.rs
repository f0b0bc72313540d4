//! A report as people read it: a table for the terminal, Markdown, and CSV with one line a point and scope.
//!
//! Every column of energy names its scope. What is assumed or an example is headed EXAMPLE.

use super::report::{Ceilings, DeviceCeiling, Energy, Kind, Model, Point, Quantiles, Report, Scope, Target};
use super::worth;
use crate::economics::inference::TokenPrices;

/// Heads whatever rests on something that is not real.
pub const EXAMPLE: &str = "EXAMPLE: not a measurement of what this site earns";

/// The table for the terminal.
pub fn text(report: &Report) -> String {
    let mut out = heading(report).join("\n");
    let rows = rows(report);
    let widths: Vec<usize> = (0..rows[0].len())
        .map(|c| rows.iter().map(|r| r[c].chars().count()).max().unwrap_or_default())
        .collect();
    out += "\n\n";
    for row in &rows {
        let cells = row.iter().zip(&widths).enumerate().map(|(i, (cell, width))| match i {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        let line: Vec<String> = cells.collect();
        out += line.join("  ").trim_end();
        out.push('\n');
    }
    out.push('\n');
    out += &remarks(report).join("\n");
    out.push('\n');
    out
}

/// The same in Markdown.
pub fn markdown(report: &Report) -> String {
    let mut out = String::from("# hashwatt bench\n\n");
    for line in heading(report) {
        out += &format!("{line}  \n");
    }
    out.push('\n');
    for (number, row) in rows(report).iter().enumerate() {
        out += &format!("| {} |\n", row.join(" | "));
        if number == 0 {
            out += &format!("|---|{}\n", "---:|".repeat(row.len() - 1));
        }
    }
    out.push('\n');
    for line in remarks(report) {
        out += &format!("{line}\n\n");
    }
    out
}

fn heading(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    if report.example {
        lines.push(EXAMPLE.into());
    }
    if !report.complete {
        let why = report.partial_because.as_deref().unwrap_or("the bench has not ended");
        lines.push(format!("PARTIAL: {why}"));
    }
    let hardware = &report.hardware;
    let gpus: String = hardware.gpus.iter().map(|g| format!(", {}", g.name)).collect();
    lines.push(format!("{}, {} on {}", report.created, model(&report.model), target(&report.target)));
    lines.push(format!("{}, {} cores{gpus}", hardware.cpu, hardware.cores));
    lines.extend(report.ceilings.as_ref().map(ceilings));
    lines.push(match report.primary {
        Some(scope) => format!("joules and watts: {}", scope_name(scope)),
        None => "joules and watts: none, there is no meter".into(),
    });
    for idle in &report.idle {
        let watts = |w: Option<f64>| w.map_or("–".into(), |w| format!("{w:.1} W"));
        lines.push(format!(
            "idle: {} before, {} after ({}, {})",
            watts(idle.watts_before),
            watts(idle.watts_after),
            idle.boundary,
            idle.method
        ));
    }
    lines
}

/// What the devices did at their best.
fn ceilings(ceilings: &Ceilings) -> String {
    let one = |d: &DeviceCeiling| {
        format!(
            "{}: copy {} GB/s, GEMM {} TFLOP/s ({})",
            d.device,
            significant(d.copy_bytes_per_second.median / 1e9),
            significant(d.gemm_flops_per_second.median / 1e12),
            d.gemm_dtype
        )
    };
    let devices: Vec<String> = ceilings.devices.iter().map(one).collect();
    format!("measured in this run: {}", devices.join("; "))
}

fn model(model: &Model) -> String {
    let parameters = model.parameters.map(|n| format!(" ({:.1} M parameters", n as f64 / 1e6));
    let dtype = model.dtype.as_ref().map(|d| format!(", {d}")).unwrap_or_default();
    parameters.map_or(model.id.clone(), |p| format!("{}{p}{dtype})", model.id))
}

fn target(target: &Target) -> String {
    match target {
        Target::InProcess { .. } => "this program's engine".into(),
        Target::CandleTransformers { .. } => "candle-transformers".into(),
        Target::Url { url, server: Some(server) } => format!("{url} ({server})"),
        Target::Url { url, server: None } => url.clone(),
    }
}

pub fn scope_name(scope: Scope) -> String {
    format!("{}, {}", scope.boundary, scope.method)
}

/// What a point is, in a few words.
pub fn label(point: &Point) -> String {
    let at = point.concurrency;
    match point.kind {
        Kind::Concurrency => format!("{at} at once"),
        Kind::Prefill => format!("prefill, {at} at once"),
        Kind::Duty => format!("duty {:.0} %, {at} at once", point.duty.unwrap_or(1.0) * 100.0),
        Kind::PowerCap => format!("cap {:.0} W, {at} at once", point.power_cap_watts.unwrap_or_default()),
        Kind::Sustained => format!("sustained {:.0} s, {at} at once", point.seconds),
        Kind::OpenLoop => format!("{} requests/s", point.requests_per_second.unwrap_or_default()),
        Kind::Trace => "recorded arrivals".into(),
    }
}

/// The scopes that any point has figures of, the primary one first.
fn scopes(report: &Report) -> Vec<Scope> {
    let mut scopes: Vec<Scope> = report.primary.into_iter().collect();
    for energy in report.points.iter().flat_map(|p| &p.energy) {
        if !scopes.contains(&energy.scope()) {
            scopes.push(energy.scope());
        }
    }
    scopes
}

/// Header and cells.
fn rows(report: &Report) -> Vec<Vec<String>> {
    let scopes = scopes(report);
    let mut header: Vec<String> =
        ["", "token/s", "TTFT ms p50/p90/p99", "ITL ms p50/p90/p99"].map(String::from).into();
    header.extend(scopes.iter().map(|s| format!("W ({})", scope_name(*s))));
    if report.ceilings.is_some() {
        header.extend(["of copy", "of GEMM"].map(String::from));
    }
    header.extend(["J/token", "token/kWh", "$/M tokens of energy", "$/MWh"].map(String::from));
    let mut rows = vec![header];
    rows.extend(report.points.iter().map(|p| row(report, p, &scopes)));
    rows
}

fn row(report: &Report, point: &Point, scopes: &[Scope]) -> Vec<String> {
    let rate = match point.kind {
        Kind::Prefill => point.input_tokens_per_second,
        _ => point.output_tokens_per_second,
    };
    let mut row = vec![label(point), plus_minus(rate.value, rate.low, rate.high)];
    row.extend([milliseconds(point.ttft_seconds), milliseconds(point.itl_seconds)]);
    let energy_of = |scope: &Scope| point.energy.iter().find(|e| e.scope() == *scope);
    row.extend(scopes.iter().map(|s| energy_of(s).map_or("–".into(), |e| format!("{:.1}", e.watts.value))));
    if report.ceilings.is_some() {
        let share = |of: Option<f64>| of.map_or("–".into(), |share| format!("{:.0} %", share * 100.0));
        row.extend([point.copy_bandwidth_share, point.gemm_share].map(share));
    }
    let energy = report.primary_energy(point);
    let number = |value: Option<f64>| value.map_or("–".into(), significant);
    let joules = energy.and_then(|e| e.joules_per_token);
    row.push(joules.map_or("–".into(), |e| plus_minus(e.value, e.low, e.high)));
    row.push(number(energy.and_then(worth::tokens_per_kwh)));
    row.push(number(energy.and_then(|e| worth::usd_per_million_tokens(e, power_price(report)?))));
    row.push(number(energy.and_then(|e| money(report, point, e))));
    row
}

fn power_price(report: &Report) -> Option<f64> {
    let site = report.economics.as_ref()?.inputs.site.as_ref()?;
    Some(site.power.as_ref()?.mean_usd_per_mwh())
}

fn prices(report: &Report) -> Option<TokenPrices> {
    report.economics.as_ref()?.inputs.token_prices_of(&report.model.id)
}

fn money(report: &Report, point: &Point, energy: &Energy) -> Option<f64> {
    Some(worth::usd_per_mwh(point, energy, &prices(report)?)?.value)
}

fn milliseconds(q: Option<Quantiles>) -> String {
    // A tenth of a millisecond is as fine as these are known; below one, a hundredth.
    let one = |seconds: f64| match seconds * 1e3 {
        ms if ms >= 100.0 => format!("{ms:.0}"),
        ms if ms >= 10.0 => format!("{ms:.1}"),
        ms => format!("{ms:.2}"),
    };
    q.map_or("–".into(), |q| format!("{}/{}/{}", one(q.p50), one(q.p90), one(q.p99)))
}

/// Four digits, whatever the size.
fn significant(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        v if v >= 1e7 => format!("{value:.3e}"),
        v if v >= 1000.0 => format!("{value:.0}"),
        v if v >= 100.0 => format!("{value:.1}"),
        v if v >= 10.0 => format!("{value:.2}"),
        v if v >= 1.0 => format!("{value:.3}"),
        v if v >= 1e-4 => format!("{value:.5}"),
        _ => format!("{value:.3e}"),
    }
}

fn plus_minus(value: f64, low: f64, high: f64) -> String {
    let half = (high - low) / 2.0;
    match value > 0.0 && half > 0.0 {
        true => format!("{} ±{:.1} %", significant(value), half / value * 100.0),
        false => significant(value),
    }
}

fn remarks(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    for point in report.points.iter().filter(|p| !p.flags.is_empty()) {
        lines.push(format!("{}: {}", label(point), point.flags.join("; ")));
    }
    lines.extend(report.warnings.iter().map(|w| format!("warning: {w}")));
    if report.primary.is_some() {
        let gains = report.points.iter().filter_map(|p| report.primary_energy(p)).map(|e| e.gain_error);
        let gain = gains.fold(0.0, f64::max) * 100.0;
        lines.push(format!(
            "Tokens are input tokens in prefill rows, else output tokens, with all energy of the run. ± is \
             the spread between windows (95 %); the meter's own gain error, ±{gain:.0} %, comes on top and \
             cancels in ratios on one meter. $/MWh is revenue inside the boundary, before power and host."
        ));
    }
    if let Some(economics) = &report.economics {
        let outcome = &economics.outcome;
        lines.extend(outcome.warnings.iter().map(|w| format!("warning: {w}")));
        lines.push(format!("verdict: {}", outcome.verdict));
        lines.push(outcome.reasons.clone());
    }
    lines
}

const COLUMNS: [&str; 37] = [
    "kind",
    "label",
    "concurrency",
    "requests_per_second",
    "duty",
    "power_cap_watts",
    "seconds",
    "requests",
    "failed",
    "input_tokens",
    "output_tokens",
    "input_tokens_per_second",
    "output_tokens_per_second",
    "ttft_p50_seconds",
    "ttft_p90_seconds",
    "ttft_p99_seconds",
    "itl_p50_seconds",
    "itl_p90_seconds",
    "itl_p99_seconds",
    "copy_bandwidth_share",
    "gemm_share",
    "boundary",
    "method",
    "meter",
    "measured",
    "joules",
    "watts",
    "tokens_per_joule",
    "tokens_per_joule_low",
    "tokens_per_joule_high",
    "joules_per_token",
    "idle_subtracted_joules",
    "joules_per_prefill_token",
    "joules_per_decode_token",
    "revenue_usd_per_mwh",
    "example",
    "flags",
];

/// One line a point and scope, units in the names.
pub fn csv(report: &Report) -> String {
    let mut writer = csv::Writer::from_writer(Vec::new());
    // Writing to memory cannot fail.
    let _ = writer.write_record(COLUMNS);
    for point in &report.points {
        let energies: Vec<Option<&Energy>> = match point.energy.is_empty() {
            true => vec![None],
            false => point.energy.iter().map(Some).collect(),
        };
        for energy in energies {
            let _ = writer.write_record(csv_line(report, point, energy));
        }
    }
    String::from_utf8(writer.into_inner().unwrap_or_default()).unwrap_or_default()
}

fn csv_line(report: &Report, point: &Point, energy: Option<&Energy>) -> Vec<String> {
    let number = |value: Option<f64>| value.map(|v| v.to_string()).unwrap_or_default();
    let mut line = vec![point.kind.as_str().into(), label(point), point.concurrency.to_string()];
    line.extend([point.requests_per_second, point.duty, point.power_cap_watts].map(number));
    line.push(point.seconds.to_string());
    line.extend(
        [point.requests, point.failed, point.input_tokens, point.output_tokens].map(|n| n.to_string()),
    );
    line.push(point.input_tokens_per_second.value.to_string());
    line.push(point.output_tokens_per_second.value.to_string());
    for q in [point.ttft_seconds, point.itl_seconds] {
        line.extend([q.map(|q| q.p50), q.map(|q| q.p90), q.map(|q| q.p99)].map(number));
    }
    line.extend([point.copy_bandwidth_share, point.gemm_share].map(number));
    let word = |value: Option<String>| value.unwrap_or_default();
    line.push(word(energy.map(|e| e.boundary.as_str().into())));
    line.push(word(energy.map(|e| e.method.to_string())));
    line.push(word(energy.map(|e| e.meter.clone())));
    line.push(word(energy.map(|e| e.measured.to_string())));
    line.extend([energy.map(|e| e.joules), energy.map(|e| e.watts.value)].map(number));
    let efficiency = energy.and_then(|e| e.tokens_per_joule);
    line.extend(
        [efficiency.map(|e| e.value), efficiency.map(|e| e.low), efficiency.map(|e| e.high)].map(number),
    );
    line.push(number(energy.and_then(|e| e.joules_per_token).map(|e| e.value)));
    line.push(number(energy.and_then(|e| e.idle_subtracted_joules)));
    line.push(number(energy.and_then(|e| e.joules_per_prefill_token).map(|e| e.value)));
    line.push(number(energy.and_then(|e| e.joules_per_decode_token).map(|e| e.value)));
    line.push(number(energy.and_then(|e| money(report, point, e))));
    line.push(report.example.to_string());
    line.push(point.flags.join("; "));
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::economics::{Given, judge};
    use crate::measure::report::Range;
    use crate::measure::testing;

    fn report() -> Report {
        let mut report = testing::report();
        report.points = vec![
            testing::point(Kind::Concurrency, 8, 1000.0, 100.0),
            testing::point(Kind::Sustained, 8, 900.0, 90.0),
        ];
        report.points[1].flags.push("thermal throttling of a, \"b\"".into());
        report.economics = Some(judge(&report, Given::default(), 0).unwrap());
        report
    }

    #[test]
    fn the_table_says_what_every_figure_is() {
        let text = text(&report());
        for want in [
            "joules and watts: CPU package, counter",
            "W (CPU package, counter)",
            "8 at once",
            "1000 ±2.0 %",
            "100/200/300",
            "0.10000 ±2.0 %",
            "3.600e7",
            "sustained 50 s",
            "thermal throttling",
            "±5 %",
            "verdict: UNKNOWN",
        ] {
            assert!(text.contains(want), "`{want}` is not in\n{text}");
        }
        assert!(!text.contains("EXAMPLE") && !text.contains("PARTIAL"), "{text}");
    }

    #[test]
    fn what_is_not_real_or_not_whole_is_headed_so() {
        let mut report = report();
        report.example = true;
        report.complete = false;
        report.partial_because = Some("interrupted".into());
        for text in [text(&report), markdown(&report)] {
            assert!(text.contains(EXAMPLE) && text.contains("PARTIAL: interrupted"), "{text}");
        }
        assert!(csv(&report).contains(",true,"));
    }

    #[test]
    fn without_a_meter_there_are_no_joules() {
        let mut report = report();
        report.primary = None;
        report.points.iter_mut().for_each(|p| p.energy.clear());
        let text = text(&report);
        assert!(
            text.contains("there is no meter") && !text.contains("W (") && !text.contains("±5 %"),
            "{text}"
        );
    }

    #[test]
    fn every_line_of_the_csv_has_every_column() {
        let text = csv(&report());
        let mut reader = csv_reader(&text);
        let columns = reader.headers().unwrap().len();
        let records: Vec<csv::StringRecord> = reader.records().map(|r| r.unwrap()).collect();
        assert_eq!((records.len(), columns), (2, 37));
        assert_eq!(records[1].get(36), Some("thermal throttling of a, \"b\""));
        assert_eq!(records[0].get(27), Some("10"));
    }

    #[test]
    fn shares_stand_beside_the_figures_where_the_ceilings_are_known() {
        let mut report = report();
        assert!(!text(&report).contains("of GEMM"));
        let range = |median: f64| Range { median, least: median, most: median };
        let device = DeviceCeiling {
            device: "cuda:0".into(),
            copied_bytes: 1 << 29,
            copy_bytes_per_second: range(4.3e12),
            gemm: [8192; 3],
            gemm_dtype: "bf16".into(),
            gemm_flops_per_second: range(7.8e14),
        };
        report.ceilings = Some(Ceilings {
            devices: vec![device],
            step_weight_bytes: 0,
            kv_bytes_per_token: 0,
            flops_per_token: 0.0,
            flops_per_key: 0.0,
        });
        report.points[0].copy_bandwidth_share = Some(0.724);
        let text = text(&report);
        for want in ["cuda:0: copy 4300 GB/s, GEMM 780.0 TFLOP/s (bf16)", "of copy", " 72 % "] {
            assert!(text.contains(want), "`{want}` is not in\n{text}");
        }
        assert!(csv(&report).contains(",0.724,,"));
    }

    fn csv_reader(text: &str) -> csv::Reader<&[u8]> {
        csv::Reader::from_reader(text.as_bytes())
    }
}
