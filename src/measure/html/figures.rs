//! A report → its plots, each an SVG with a caption that says method and boundary. Draws only what is there.

use super::markup::{estimate, of_figure};
use crate::economics::estimate::{Estimate, Figure};
use crate::economics::verdict::{Comparison, Outcome, ServingFigures};
use crate::measure::plot::{Bar, Bars, Crossing, Lines, Mark, Phase, Sample, Scale, Series, Words};
use crate::measure::report::{Kind, Point, PowerTrace, Report};

/// A plot and the words under it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plot {
    pub svg: String,
    pub caption: String,
}

/// A power trace is drawn with at most twice as many samples as this: the lowest and highest of each part.
const PARTS: usize = 300;

/// A curve that reaches this many times farther than the others is not drawn with them.
const FAR_BELOW: f64 = 5.0;

/// All plots that the report has data for.
pub fn all(report: &Report) -> Vec<Plot> {
    let outcome = report.economics.as_ref().map(|e| &e.outcome);
    let utilisation = report.economics.as_ref().and_then(|e| e.inputs.site.as_ref()?.serving.utilisation);
    let mut plots: Vec<Plot> = Vec::new();
    plots.extend(tokens_per_joule(report));
    plots.extend(outcome.and_then(|o| revenue(o, utilisation)));
    plots.extend(outcome.and_then(break_even));
    plots.extend(report.power.iter().filter_map(|trace| power(report, trace)));
    plots
}

/// Tokens for a joule at each concurrency.
pub fn tokens_per_joule(report: &Report) -> Option<Plot> {
    let scope = report.primary?;
    let mut points: Vec<&Point> = report.points.iter().filter(|p| p.kind == Kind::Concurrency).collect();
    points.sort_by_key(|p| p.concurrency);
    let samples = |of: fn(&crate::measure::report::Energy) -> Option<Estimate>| -> Vec<Sample> {
        let sample =
            |p: &&Point| Some(Sample { x: f64::from(p.concurrency), y: of(report.primary_energy(p)?)? });
        points.iter().filter_map(sample).collect()
    };
    let gross = samples(|e| e.tokens_per_joule);
    let without_idle = samples(|e| e.idle_subtracted_tokens_per_joule);
    if gross.is_empty() {
        return None;
    }
    let series = |label: &str, samples, mark| Series { label: label.into(), samples, mark, band: false };
    let mut all = vec![series("all energy", gross, Mark::Filled)];
    if !without_idle.is_empty() {
        all.push(series("less the idle watts", without_idle, Mark::Hollow));
    }
    let title = "Tokens per joule against requests at once";
    let lines = Lines {
        words: words(title, format!("Output tokens per joule of the {}, {}.", scope.boundary, scope.method)),
        x_label: "requests at once".into(),
        x_scale: Scale::Log2,
        y_label: format!("output tokens per joule, {}", scope.boundary),
        y_from_zero: true,
        series: all,
        phases: Vec::new(),
        crossing: None,
    };
    let caption = format!(
        "{title}: throughput per watt. Bars: 95 % interval from how much the windows differ, without the \
         instrument's gain error. Method: {}. Boundary: {}.",
        scope.method, scope.boundary
    );
    Some(Plot { svg: lines.svg(), caption })
}

/// Watts of one meter over the whole bench.
pub fn power(report: &Report, trace: &PowerTrace) -> Option<Plot> {
    let samples: Vec<Sample> = thinned(&trace.seconds_watts)
        .into_iter()
        .map(|[x, watts]| Sample { x, y: Estimate::exact(watts) })
        .collect();
    if samples.is_empty() {
        return None;
    }
    let phase =
        |p: &Point| Phase { start: p.start_seconds, end: p.start_seconds + p.seconds, label: short_label(p) };
    let title = format!("Power of {} over time", trace.meter);
    let lines = Lines {
        words: words(&title, format!("Watts of the {}, {}.", trace.boundary, trace.method)),
        x_label: "seconds since the bench began".into(),
        x_scale: Scale::Linear,
        y_label: format!("watts, {}", trace.boundary),
        y_from_zero: true,
        series: vec![Series { label: trace.meter.clone(), samples, mark: Mark::Plain, band: false }],
        phases: report.points.iter().map(phase).collect(),
        crossing: None,
    };
    let caption = format!(
        "{title}; grey: the windows of each point. Method: {}. Boundary: {}.",
        trace.method, trace.boundary
    );
    Some(Plot { svg: lines.svg(), caption })
}

/// What a megawatt-hour brings in, serving and on each machine, before power.
pub fn revenue(outcome: &Outcome, utilisation: Option<Estimate>) -> Option<Plot> {
    let serving = outcome.serving.as_ref()?;
    if outcome.miners.is_empty() {
        return None;
    }
    let full = of_figure(&serving.allocated_usd_per_mwh);
    let bar = |label: String, value, mark| Bar { label, value, mark };
    let mut bars = vec![bar("serving, full load".into(), full, Mark::Filled)];
    if let Some(u) = utilisation {
        let sold = Estimate::new(full.value * u.value, full.low * u.low, full.high * u.high);
        bars.push(bar(format!("serving, {:.0} % sold", u.value * 100.0), sold, Mark::Filled));
    }
    bars.extend(outcome.miners.iter().map(|m| {
        let label = if m.owned { format!("{} *", m.name) } else { m.name.clone() };
        bar(label, of_figure(&m.meter_usd_per_mwh), Mark::Hollow)
    }));
    bars.sort_by(|a, b| b.value.value.total_cmp(&a.value.value));
    let title = "Revenue of a megawatt-hour, serving and mining";
    let plot = Bars {
        words: words(title, "One row for serving and for each mining machine.".into()),
        label: "$ per MWh at the site, before power".into(),
        bars,
    };
    let mining = &outcome.miners[0].meter_usd_per_mwh;
    let caption = format!(
        "{title}, with their intervals; * is yours. {}. Mining: method: {}; boundary: {}.",
        of_serving(serving),
        mining.method,
        mining.boundary
    );
    Some(Plot { svg: plot.svg(), caption })
}

fn of_serving(serving: &ServingFigures) -> String {
    let figure = &serving.allocated_usd_per_mwh;
    format!("Serving: method: {}; boundary: {}", figure.method, figure.boundary)
}

/// Net of power against utilisation, with mining and standing still beside it.
pub fn break_even(outcome: &Outcome) -> Option<Plot> {
    let row = outcome.rows.first()?;
    let chosen: &Comparison = match &row.loaded {
        Some(loaded) if outcome.fully_loaded => loaded,
        _ => &row.marginal,
    };
    let first = outcome.curve.first()?;
    let percent = |share: f64| share * 100.0;
    let curve = |of: fn(&crate::economics::verdict::CurvePoint) -> Option<&Figure>| -> Vec<Sample> {
        let sample = |p: &crate::economics::verdict::CurvePoint| {
            Some(Sample { x: percent(p.utilisation), y: of_figure(of(p)?) })
        };
        outcome.curve.iter().filter_map(sample).collect()
    };
    let flat = |f: &Figure| [0.0, 100.0].map(|x| Sample { x, y: of_figure(f) }).to_vec();
    let series =
        |label: &str, samples: Vec<Sample>, mark, band| Series { label: label.into(), samples, mark, band };
    let mut all =
        vec![series("serving, the unit is paid for", curve(|p| Some(&p.marginal)), Mark::Solid, true)];
    let loaded = curve(|p| p.loaded.as_ref());
    let farthest = |all: &[Sample]| all.iter().map(|s| s.y.value.abs()).fold(0.0, f64::max);
    // A unit that costs many times what power earns would press all other lines into one.
    let below = !outcome.fully_loaded
        && farthest(&loaded) > FAR_BELOW * farthest(&all[0].samples).max(chosen.mine.value.abs());
    if !loaded.is_empty() && !below {
        all.push(series("serving, with the unit's price", loaded, Mark::Dashed, false));
    }
    all.push(series("mining", flat(&chosen.mine), Mark::Dotted, true));
    all.push(series("standing still", flat(&chosen.off), Mark::Plain, false));
    let reachable = chosen.break_even.utilisation.as_ref().filter(|u| u.value <= 1.0).map(of_figure);
    let crossing = reachable.map(|u| {
        let x = u.scaled(100.0);
        Crossing { x, label: format!("break-even at {} %", estimate(x)) }
    });
    let capital = if outcome.fully_loaded { "with the unit's price" } else { "with the unit paid for" };
    let found = match &crossing {
        Some(crossing) => format!("{}, {capital}", crossing.label),
        None => format!(
            "no utilisation up to 100 % makes serving earn as much as its best alternative, {capital}"
        ),
    };
    let left_out = if below { " With the unit's price serving lies far below what is drawn." } else { "" };
    let title = "Net earnings of a megawatt-hour against utilisation";
    let lines = Lines {
        words: words(title, format!("{found}.")),
        x_label: "utilisation, %".into(),
        x_scale: Scale::Linear,
        y_label: "net $ per MWh allocated, after power".into(),
        y_from_zero: true,
        series: all,
        phases: Vec::new(),
        crossing,
    };
    let caption = format!(
        "{title}, all hours: {found}. Grey areas and bars: intervals.{left_out} Serving: method: {}. Mining: method: {}. \
         Boundary: {}.",
        first.marginal.method, chosen.mine.method, first.marginal.boundary
    );
    Some(Plot { svg: lines.svg(), caption })
}

fn words(title: &str, description: String) -> Words {
    Words { title: title.into(), description }
}

/// Fits above a narrow phase.
fn short_label(point: &Point) -> String {
    match point.kind {
        Kind::Concurrency => format!("{} at once", point.concurrency),
        Kind::Prefill => "prefill".into(),
        Kind::Duty => format!("duty {:.0} %", point.duty.unwrap_or(1.0) * 100.0),
        Kind::PowerCap => format!("cap {:.0} W", point.power_cap_watts.unwrap_or_default()),
        Kind::Sustained => "sustained".into(),
        Kind::OpenLoop => "open loop".into(),
        Kind::Trace => "recorded".into(),
    }
}

/// The lowest and highest sample of each part, in their order: peaks stay.
fn thinned(samples: &[[f64; 2]]) -> Vec<[f64; 2]> {
    if samples.len() <= 2 * PARTS {
        return samples.to_vec();
    }
    let mut kept = Vec::with_capacity(2 * PARTS);
    for part in samples.chunks(samples.len().div_ceil(PARTS)) {
        let by_watts = |a: &&[f64; 2], b: &&[f64; 2]| a[1].total_cmp(&b[1]);
        let ends = part.iter().min_by(by_watts).zip(part.iter().max_by(by_watts));
        let Some((low, high)) = ends else { continue };
        kept.extend(if low[0] <= high[0] { [*low, *high] } else { [*high, *low] });
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_trace_is_thinned_and_keeps_its_peaks() {
        let mut trace: Vec<[f64; 2]> = (0..100_000).map(|i| [f64::from(i), 100.0]).collect();
        trace[54_321][1] = 700.0;
        trace[77_777][1] = 3.0;
        let kept = thinned(&trace);
        assert!(kept.len() <= 2 * PARTS && kept.is_sorted_by(|a, b| a[0] <= b[0]));
        assert!(kept.contains(&[54_321.0, 700.0]) && kept.contains(&[77_777.0, 3.0]));
        assert_eq!(thinned(&trace[..50]), trace[..50]);
    }
}
