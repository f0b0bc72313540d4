//! A report → its tables of measurements and of what they were measured on. Every caption says method and
//! boundary, or that the table holds no energy.

use super::markup::{estimate, or_dash, table};
use crate::economics::estimate::Estimate;
use crate::measure::plot::scale::number;
use crate::measure::report::{
    DeviceCeiling, Energy, Kind, Meter, Point, Quantiles, Range, Report, Scope, Target,
};
use crate::measure::table::label;

/// Scopes as `method: counter, boundary: GPU board; …`.
fn scopes(scopes: impl Iterator<Item = Scope>) -> String {
    let mut names: Vec<String> =
        scopes.map(|s| format!("method: {}, boundary: {}", s.method, s.boundary)).collect();
    names.sort();
    names.dedup();
    if names.is_empty() { "no meter: no method, no boundary".into() } else { names.join("; ") }
}

/// One row a point and scope.
pub fn points(report: &Report) -> String {
    let head = [
        "point",
        "scope",
        "output token/s",
        "input token/s",
        "W",
        "J/token",
        "token/J",
        "token/J less idle",
        "J",
        "J/input token",
        "J/output token",
        "gain error",
        "meter",
    ];
    let mut rows = Vec::new();
    for point in &report.points {
        let rates = [estimate(point.output_tokens_per_second), estimate(point.input_tokens_per_second)];
        if point.energy.is_empty() {
            let mut row = vec![label(point), "–".into()];
            row.extend(rates.clone());
            row.resize(head.len(), "–".into());
            rows.push(row);
        }
        rows.extend(point.energy.iter().map(|energy| energy_row(point, energy, &rates)));
    }
    let all = report.points.iter().flat_map(|p| &p.energy).map(Energy::scope);
    let caption = format!(
        "Rates and energy of each point ({}). Intervals are 95 %, from how much the windows differ; the gain error \
         of the instrument comes on top. A token is an input token in prefill rows, else an output token, and all \
         energy of the windows is on it.",
        scopes(all)
    );
    table(&caption, &head, &rows)
}

fn energy_row(point: &Point, energy: &Energy, rates: &[String; 2]) -> Vec<String> {
    let show = |e: Option<Estimate>| or_dash(e, estimate);
    let problem = energy.problem.as_ref().map(|p| format!(" (not to be trusted: {p})")).unwrap_or_default();
    let mut row = vec![label(point), format!("{}, {}{problem}", energy.boundary, energy.method)];
    row.extend(rates.clone());
    row.extend([
        estimate(energy.watts),
        show(energy.joules_per_token),
        show(energy.tokens_per_joule),
        show(energy.idle_subtracted_tokens_per_joule),
        number(energy.joules),
        show(energy.joules_per_prefill_token),
        show(energy.joules_per_decode_token),
        percent(energy.gain_error),
        energy.meter.clone(),
    ]);
    row
}

fn percent(share: f64) -> String {
    format!("±{} %", number(share * 100.0))
}

fn share(of: f64) -> String {
    format!("{} %", number(of * 100.0))
}

/// What the devices do at their best; nothing where nobody measured it.
pub fn ceilings(report: &Report) -> String {
    let Some(ceilings) = &report.ceilings else { return String::new() };
    let head =
        ["device", "copy GB/s", "least", "most", "of MB", "GEMM TFLOP/s", "least", "most", "of", "type"];
    let range = |r: Range, unit: f64| [r.median, r.least, r.most].map(|x| number(x / unit));
    let row = |d: &DeviceCeiling| {
        let mut row = vec![d.device.clone()];
        row.extend(range(d.copy_bytes_per_second, 1e9));
        row.push(number(d.copied_bytes as f64 / 1e6));
        row.extend(range(d.gemm_flops_per_second, 1e12));
        row.push(d.gemm.map(|n| n.to_string()).join(" × "));
        row.push(d.gemm_dtype.clone());
        row
    };
    let rows: Vec<_> = ceilings.devices.iter().map(row).collect();
    table(
        "What the devices do at their best (method: a copy, bytes read and written, and a product of matrices as the \
         engine makes it, before the first point, all engines at once; median, least and most of seven; no energy).",
        &head,
        &rows,
    )
}

/// Latency, load and whatever is to be said of each point.
pub fn latency(report: &Report) -> String {
    let head = [
        "point",
        "TTFT ms p50 / p90 / p99",
        "ITL ms p50 / p90 / p99",
        "of copy bandwidth",
        "of GEMM rate",
        "requests",
        "failed",
        "mean input",
        "mean output",
        "windows",
        "from s",
        "for s",
        "flags",
    ];
    let milliseconds =
        |q: Option<Quantiles>| or_dash(q, |q| [q.p50, q.p90, q.p99].map(|s| number(s * 1e3)).join(" / "));
    let row = |p: &Point| {
        vec![
            label(p),
            milliseconds(p.ttft_seconds),
            milliseconds(p.itl_seconds),
            or_dash(p.copy_bandwidth_share, share),
            or_dash(p.gemm_share, share),
            p.requests.to_string(),
            p.failed.to_string(),
            number(p.mean_input_tokens),
            number(p.mean_output_tokens),
            p.window_seconds.len().to_string(),
            number(p.start_seconds),
            number(p.seconds),
            p.flags.join("; "),
        ]
    };
    let rows: Vec<_> = report.points.iter().map(row).collect();
    table(
        "Latency and load of each point (method: the bench's clock at the client's side; boundary: from sending a \
         request to each of its tokens; no energy).",
        &head,
        &rows,
    )
}

/// Temperatures, clocks and throttling.
pub fn boards(report: &Report) -> String {
    let head = [
        "point",
        "board",
        "°C",
        "MHz",
        "memory MHz",
        "limit W",
        "instantaneous W",
        "throttled s: cap",
        "heat",
        "brake",
        "other",
        "other processes",
    ];
    let mut rows = Vec::new();
    for point in &report.points {
        rows.extend(point.boards.iter().map(|b| {
            let mut row = vec![label(point), b.meter.clone()];
            row.extend(
                [
                    b.temperature_celsius,
                    b.clock_megahertz,
                    b.memory_clock_megahertz,
                    b.power_limit_watts,
                    b.instantaneous_watts,
                ]
                .map(|v| or_dash(v, number)),
            );
            row.extend(
                [
                    b.power_cap_throttle_seconds,
                    b.thermal_throttle_seconds,
                    b.power_brake_throttle_seconds,
                    b.other_throttle_seconds,
                ]
                .map(number),
            );
            row.push(b.other_processes.map_or("–".into(), |n| n.to_string()));
            row
        }));
    }
    table(
        "Boards at the end of each point (method: the driver's readings; boundary: GPU board).",
        &head,
        &rows,
    )
}

/// Meters and idle watts.
pub fn meters(report: &Report) -> String {
    let head = [
        "meter",
        "boundary",
        "method",
        "period s",
        "lag s",
        "gain error",
        "idle W before",
        "after",
        "problem",
    ];
    let row = |m: &Meter| {
        let idle = report.idle.iter().find(|i| i.meter == m.name);
        let watts = |of: Option<f64>| or_dash(of, number);
        vec![
            m.name.clone(),
            m.boundary.to_string(),
            m.method.to_string(),
            number(m.period_seconds),
            number(m.lag_seconds),
            percent(m.gain_error),
            watts(idle.and_then(|i| i.watts_before)),
            watts(idle.and_then(|i| i.watts_after)),
            m.problem.clone().unwrap_or_default(),
        ]
    };
    let mut rows: Vec<_> = report.meters.iter().map(row).collect();
    let unnamed = report.idle.iter().filter(|i| !report.meters.iter().any(|m| m.name == i.meter));
    rows.extend(unnamed.map(|i| {
        let mut row = vec![i.meter.clone(), i.boundary.to_string(), i.method.to_string()];
        row.extend(["–", "–", "–"].map(String::from));
        row.extend([i.watts_before, i.watts_after].map(|w| or_dash(w, number)));
        row.push(String::new());
        row
    }));
    let all = report.meters.iter().map(|m| Scope { boundary: m.boundary, method: m.method });
    table(
        &format!("Meters, and watts with the model loaded and nothing to do ({}).", scopes(all)),
        &head,
        &rows,
    )
}

/// What it ran on and what ran.
pub fn setting(report: &Report) -> String {
    let hardware = &report.hardware;
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut put = |name: &str, value: String| {
        if !value.is_empty() {
            rows.push(vec![name.into(), value]);
        }
    };
    let gigabytes = |bytes: u64| format!("{} GB", number(bytes as f64 / 1e9));
    put("processor", format!("{}, {} cores, {}", hardware.cpu, hardware.cores, hardware.instructions));
    put("memory", gigabytes(hardware.memory_bytes));
    put("system", format!("{}, kernel {}", hardware.os, hardware.kernel));
    for gpu in &hardware.gpus {
        let named = |name: &str, value: &Option<String>| value.as_ref().map(|v| format!("{name} {v}"));
        let parts = [Some(gpu.name.clone()), gpu.uuid.clone(), named("driver", &gpu.driver)];
        let mut parts: Vec<String> = parts.into_iter().flatten().collect();
        parts.extend(gpu.memory_bytes.map(gigabytes));
        let limits = [gpu.power_limit_watts, gpu.minimum_power_limit_watts, gpu.maximum_power_limit_watts];
        let [limit, least, most] = limits.map(|w| or_dash(w, number));
        parts.push(format!("power limit {limit} W (of {least} to {most} W)"));
        put("GPU", parts.join(", "));
    }
    put("hardware fingerprint", hardware.fingerprint.clone());
    let model = &report.model;
    put("model", model.id.clone());
    put("architecture", model.architecture.clone().unwrap_or_else(|| "–".into()));
    put("parameters", or_dash(model.parameters, |n| number(n as f64)));
    put("numbers", model.dtype.clone().unwrap_or_else(|| "–".into()));
    put(
        &format!("SHA-256 of {}", model.sha256_of.as_deref().unwrap_or("the model")),
        model.sha256.clone().unwrap_or_else(|| "–".into()),
    );
    let settings = match &report.target {
        Target::InProcess { settings } => {
            put("measured", "this program's engine, in the bench's process".into());
            settings.as_slice()
        }
        Target::CandleTransformers { settings } => {
            put("measured", "candle-transformers, in the bench's process, one sequence at a time".into());
            settings
        }
        Target::Url { url, server } => {
            put("measured", format!("{url} ({})", server.as_deref().unwrap_or("server unknown")));
            &[]
        }
    };
    let named: Vec<String> = settings.iter().map(|s| format!("{} = {}", s.name, s.value)).collect();
    put("settings", named.join("; "));
    put("hashwatt", format!("{} ({})", report.version, report.commit));
    put("command", report.command.join(" "));
    put("begun", format!("{}, ran {} s", report.created, number(report.elapsed_seconds)));
    table("Machine, model and program (what the bench found and was given; no energy).", &["", ""], &rows)
}

/// True where some point is of prefill.
pub fn has_prefill(report: &Report) -> bool {
    report.points.iter().any(|p| p.kind == Kind::Prefill)
}
