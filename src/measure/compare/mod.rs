//! Two reports → ratios B/A of the points they share, each with its error, and which of them regressed.
//!
//! Refuses what a ratio would mean nothing for (other hardware, other boundary or method) unless forced. The
//! gain error of an instrument cancels where both used the same one; else it is added and said.

mod differences;
mod interval;

use serde::Serialize;

use self::differences::{boards, hardware, others, scope};
use self::interval::{of_median, quotient};
use super::report::{Energy, Kind, Point, Quantiles, Report};
use super::table::{label, scope_name};
use crate::economics::estimate::Estimate;

/// Lengths that differ by less than this share are the same.
const SAME_LENGTH: f64 = 0.05;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// As a share: a ratio that is worse by more than this, and surely worse than 1, is a regression.
    pub max_regression: f64,
    /// Compare what does not compare.
    pub force: bool,
}

/// Why two reports are not compared.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refused {
    #[error("reports of unlike schema: {first} and {second}")]
    Schema { first: u32, second: u32 },
    #[error("measured on unlike hardware: {}", joined(.0))]
    Hardware(Vec<Difference>),
    #[error("energy of unlike boundary or method: {}", joined(.0))]
    Scope(Vec<Difference>),
    #[error("no point is in both reports; A has {first}; B has {second}")]
    NothingShared { first: String, second: String },
}

/// A field that the reports differ in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    pub field: String,
    pub first: String,
    pub second: String,
}

fn joined(differences: &[Difference]) -> String {
    let one = |d: &Difference| format!("{}: {} against {}", d.field, d.first, d.second);
    differences.iter().map(one).collect::<Vec<_>>().join("; ")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Input tokens where the kind is prefill, else output tokens.
    TokensPerSecond,
    TokensPerJoule,
    TtftP50,
    ItlP50,
}

impl Metric {
    pub const ALL: [Metric; 4] =
        [Metric::TokensPerSecond, Metric::TokensPerJoule, Metric::TtftP50, Metric::ItlP50];

    pub fn as_str(self) -> &'static str {
        match self {
            Metric::TokensPerSecond => "token/s",
            Metric::TokensPerJoule => "token/J",
            Metric::TtftP50 => "TTFT p50",
            Metric::ItlP50 => "ITL p50",
        }
    }

    pub fn higher_is_better(self) -> bool {
        matches!(self, Metric::TokensPerSecond | Metric::TokensPerJoule)
    }
}

/// B over A.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ratio {
    pub point: String,
    pub metric: Metric,
    pub first: f64,
    pub second: f64,
    pub ratio: Estimate,
    /// False where a side had a single window: then the interval is only the value.
    pub error_known: bool,
    /// The instruments' gain errors are in the interval: they were not the same instrument.
    pub gain_added: bool,
    /// Of the energy; `wall time` and `client` for rates and times.
    pub method: String,
    pub boundary: String,
    pub regressed: bool,
    /// Whatever was flagged about the point on either side.
    pub flags: Vec<String>,
}

/// Over all points of a metric.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Mean {
    pub metric: Metric,
    pub points: usize,
    pub ratio: Estimate,
    pub error_known: bool,
    pub method: String,
    pub boundary: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    pub max_regression: f64,
    /// What the reports differ in besides their points; refused ones only under force.
    pub differences: Vec<Difference>,
    pub ratios: Vec<Ratio>,
    pub geometric_means: Vec<Mean>,
    /// Points of one report only.
    pub only_in_first: Vec<String>,
    pub only_in_second: Vec<String>,
    pub notes: Vec<String>,
    pub regressed: bool,
}

/// Compares `second` (B) with `first` (A).
///
/// # Errors
/// Reports that do not compare.
pub fn compare(first: &Report, second: &Report, options: Options) -> Result<Comparison, Refused> {
    if first.schema != second.schema && !options.force {
        return Err(Refused::Schema { first: first.schema, second: second.schema });
    }
    let hardware = hardware(&first.hardware, &second.hardware);
    let scope = scope(first, second);
    if !options.force {
        refuse(&hardware, Refused::Hardware)?;
        refuse(&scope, Refused::Scope)?;
    }
    let pairs = pairs(first, second);
    if pairs.is_empty() {
        let all = |r: &Report| r.points.iter().map(label).collect::<Vec<_>>().join(", ");
        return Err(Refused::NothingShared { first: all(first), second: all(second) });
    }
    let same_boards = hardware.is_empty() && boards(&first.hardware) == boards(&second.hardware);
    let mut ratios = Vec::new();
    for (a, b) in &pairs {
        let energies = first.primary_energy(a).zip(second.primary_energy(b));
        ratios.extend(of_pair(a, b, energies, same_boards, options.max_regression));
    }
    let lonely = |report: &Report, paired: &dyn Fn(&Point) -> bool| -> Vec<String> {
        report.points.iter().filter(|p| !paired(p)).map(label).collect()
    };
    let geometric_means = Metric::ALL.into_iter().filter_map(|m| mean(m, &ratios)).collect();
    let notes = notes(first, second, &ratios);
    let mut differences = hardware;
    differences.extend(scope);
    differences.extend(others(first, second));
    Ok(Comparison {
        max_regression: options.max_regression,
        differences,
        regressed: ratios.iter().any(|r| r.regressed),
        geometric_means,
        only_in_first: lonely(first, &|p| pairs.iter().any(|(a, _)| std::ptr::eq(*a, p))),
        only_in_second: lonely(second, &|p| pairs.iter().any(|(_, b)| std::ptr::eq(*b, p))),
        notes,
        ratios,
    })
}

fn refuse(differences: &[Difference], why: fn(Vec<Difference>) -> Refused) -> Result<(), Refused> {
    if differences.is_empty() { Ok(()) } else { Err(why(differences.to_vec())) }
}

/// Points of the same kind, concurrency, lengths, duty, cap and rate, in order.
fn pairs<'a>(first: &'a Report, second: &'a Report) -> Vec<(&'a Point, &'a Point)> {
    let mut left: Vec<&Point> = second.points.iter().collect();
    let mut pairs = Vec::new();
    for a in &first.points {
        if let Some(at) = left.iter().position(|b| is_same(a, b)) {
            pairs.push((a, left.remove(at)));
        }
    }
    pairs
}

fn is_same(a: &Point, b: &Point) -> bool {
    let close = |a: f64, b: f64| (a - b).abs() <= SAME_LENGTH * a.abs().max(b.abs());
    // What ran at most in an open loop is a result, not a setting.
    let open = matches!(a.kind, Kind::OpenLoop | Kind::Trace);
    a.kind == b.kind
        && (open || a.concurrency == b.concurrency)
        && a.requests_per_second == b.requests_per_second
        && a.duty == b.duty
        && a.power_cap_watts == b.power_cap_watts
        && close(a.asked_input_tokens, b.asked_input_tokens)
        && close(a.asked_output_tokens, b.asked_output_tokens)
        // A recording asks by itself.
        && (a.kind != Kind::Trace || close(a.mean_input_tokens, b.mean_input_tokens))
}

fn of_pair(
    a: &Point,
    b: &Point,
    energies: Option<(&Energy, &Energy)>,
    same_boards: bool,
    max_regression: f64,
) -> Vec<Ratio> {
    let mut flags: Vec<String> = a.flags.iter().map(|f| format!("A: {f}")).collect();
    flags.extend(b.flags.iter().map(|f| format!("B: {f}")));
    let (x, y) = (a.mean_output_tokens, b.mean_output_tokens);
    if (x - y).abs() > SAME_LENGTH * x.max(y) {
        flags.push(format!("mean answers of unlike length: A {x:.0} tokens, B {y:.0}"));
    }
    let make = |metric: Metric, first: Estimate, second: Estimate, gain: Option<f64>, scope: (&str, &str)| {
        let known = |e: Estimate| e.low < e.high;
        let error_known = known(first) && known(second);
        // Nothing where there was something is the worst regression, not a point to leave out.
        let nothing = metric.higher_is_better() && first.value > 0.0 && second.value <= 0.0;
        let ratio = match quotient(second, first, gain.unwrap_or(0.0)) {
            Some(ratio) => ratio,
            None if nothing => Estimate::exact(0.0),
            None => return None,
        };
        Some(Ratio {
            point: label(a),
            metric,
            first: first.value,
            second: second.value,
            ratio,
            error_known,
            gain_added: gain.is_some(),
            method: scope.0.into(),
            boundary: scope.1.into(),
            regressed: nothing || error_known && is_regression(metric, ratio, max_regression),
            flags: flags.clone(),
        })
    };
    let rate = |p: &Point| match p.kind {
        Kind::Prefill => p.input_tokens_per_second,
        _ => p.output_tokens_per_second,
    };
    let median = |q: Option<Quantiles>, p: &Point| Some(of_median(q?, p.requests));
    let mut ratios = vec![make(Metric::TokensPerSecond, rate(a), rate(b), None, ("wall time", "client"))];
    if let Some((x, y)) = energies
        && let Some((first, second)) = x.tokens_per_joule.zip(y.tokens_per_joule)
    {
        // A bound for each instrument: the worst of both together.
        let same_meter = same_boards && x.meter == y.meter;
        let gain = (!same_meter).then_some((1.0 + x.gain_error) * (1.0 + y.gain_error) - 1.0);
        let scopes = [x, y].map(|e| (e.method.to_string(), e.boundary.to_string()));
        let both = |a: &str, b: &str| if a == b { a.to_owned() } else { format!("{a} against {b}") };
        let (method, boundary) = (both(&scopes[0].0, &scopes[1].0), both(&scopes[0].1, &scopes[1].1));
        ratios.push(make(Metric::TokensPerJoule, first, second, gain, (&method, &boundary)));
    }
    for (metric, x, y) in
        [(Metric::TtftP50, a.ttft_seconds, b.ttft_seconds), (Metric::ItlP50, a.itl_seconds, b.itl_seconds)]
    {
        if let Some((first, second)) = median(x, a).zip(median(y, b)) {
            ratios.push(make(metric, first, second, None, ("wall time", "client")));
        }
    }
    ratios.into_iter().flatten().collect()
}

fn is_regression(metric: Metric, ratio: Estimate, threshold: f64) -> bool {
    match metric.higher_is_better() {
        true => ratio.value < 1.0 - threshold && ratio.high < 1.0,
        false => ratio.value > 1.0 + threshold && ratio.low > 1.0,
    }
}

/// Geometric mean; errors of points are independent, gains of instruments are common to all.
fn mean(metric: Metric, ratios: &[Ratio]) -> Option<Mean> {
    let of: Vec<&Ratio> = ratios.iter().filter(|r| r.metric == metric && r.ratio.value > 0.0).collect();
    if of.is_empty() {
        return None;
    }
    let n = of.len() as f64;
    let log = of.iter().map(|r| r.ratio.value.ln()).sum::<f64>() / n;
    let common = of.iter().any(|r| r.gain_added);
    let half = |end: fn(&Estimate) -> f64| {
        let each = of.iter().map(|r| (end(&r.ratio) / r.ratio.value).ln().abs());
        // With a common gain in them the errors do not average out: the mean of them is a bound.
        if common { each.sum::<f64>() / n } else { each.map(|e| e * e).sum::<f64>().sqrt() / n }
    };
    let (low, high) = ((log - half(|e| e.low)).exp(), (log + half(|e| e.high)).exp());
    let error_known = of.iter().all(|r| r.error_known);
    let ratio = Estimate::new(log.exp(), low, high);
    // The same for all: every ratio is of the primary scopes.
    let (method, boundary) = (of[0].method.clone(), of[0].boundary.clone());
    Some(Mean { metric, points: of.len(), ratio, error_known, method, boundary })
}

fn notes(first: &Report, second: &Report, ratios: &[Ratio]) -> Vec<String> {
    let mut notes = Vec::new();
    for (name, report) in [("A", first), ("B", second)] {
        if !report.complete {
            let because = report.partial_because.as_deref().unwrap_or("the bench did not end");
            notes.push(format!("{name} is partial: {because}"));
        }
        match report.primary {
            Some(scope) => notes.push(format!("energy of {name}: {}", scope_name(scope))),
            None => notes.push(format!("{name} has no meter: there is no ratio of token/J")),
        }
        if report.example {
            notes.push(format!("{name} is an EXAMPLE: something in it is assumed"));
        }
    }
    if ratios.iter().any(|r| r.gain_added) {
        notes.push(
            "token/J: not the same instrument in both, so the gain errors are added to the intervals".into(),
        );
    } else if ratios.iter().any(|r| r.metric == Metric::TokensPerJoule) {
        notes.push("token/J: the same instrument in both, so its gain error cancels".into());
    }
    if ratios.iter().any(|r| !r.error_known) {
        notes.push("where the error is not known (a single window) a ratio is no regression".into());
    }
    notes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::measure::report::{Gpu, Scope};
    use crate::measure::testing;
    use crate::power::{Boundary, Method};

    const FIVE: Options = Options { max_regression: 0.05, force: false };
    const FORCED: Options = Options { max_regression: 0.05, force: true };

    fn report(factor: f64) -> Report {
        let mut report = testing::report();
        report.hardware.fingerprint = "one".into();
        report.points = vec![
            testing::point(Kind::Concurrency, 1, 100.0 * factor, 50.0),
            testing::point(Kind::Concurrency, 8, 600.0 * factor, 80.0),
            testing::point(Kind::Prefill, 1, 3000.0 * factor, 90.0),
        ];
        report
    }

    fn find<'a>(c: &'a Comparison, point: &str, metric: Metric) -> &'a Ratio {
        c.ratios.iter().find(|r| r.point == point && r.metric == metric).unwrap()
    }

    #[test]
    fn a_report_is_itself() {
        let c = compare(&report(1.0), &report(1.0), FIVE).unwrap();
        assert!(!c.regressed && c.differences.is_empty());
        assert_eq!(c.ratios.len(), 3 * 4);
        assert!(c.ratios.iter().all(|r| r.ratio.value == 1.0 && r.ratio.low < 1.0 && r.ratio.high > 1.0));
        assert_eq!(c.geometric_means.len(), 4);
        assert!(c.notes.iter().any(|n| n.contains("cancels")), "{:?}", c.notes);
    }

    #[test]
    fn errors_add_as_squares_and_a_common_gain_cancels() {
        let c = compare(&report(1.0), &report(0.9), FIVE).unwrap();
        let r = find(&c, "8 at once", Metric::TokensPerJoule);
        assert!((r.ratio.value - 0.9).abs() < 1e-12 && !r.gain_added);
        // ±2 % on both sides: 2·√2 % on the ratio.
        assert!((r.ratio.high / 0.9 - 1.0288).abs() < 2e-4, "{r:?}");
        assert!(r.regressed && c.regressed);
        // Times did not change.
        assert!(!find(&c, "8 at once", Metric::ItlP50).regressed);
        assert!(!compare(&report(0.9), &report(1.0), FIVE).unwrap().regressed);
    }

    #[test]
    fn a_gain_of_two_instruments_is_added_and_said() {
        let mut other = report(0.9);
        other.points.iter_mut().for_each(|p| p.energy[0].meter = "rapl:package-1".into());
        let c = compare(&report(1.0), &other, FIVE).unwrap();
        let r = find(&c, "8 at once", Metric::TokensPerJoule);
        assert!(r.gain_added && !r.regressed, "{r:?}");
        assert!((r.ratio.high / (0.9 * 1.0288 * 1.1025) - 1.0).abs() < 1e-3, "{r:?}");
        assert!(find(&c, "8 at once", Metric::TokensPerSecond).regressed, "rates know no gain");
        assert!(c.notes.iter().any(|n| n.contains("gain errors are added")));
        // The same name on another board is another instrument.
        let mut twins = [report(1.0), report(1.0)];
        for (report, uuid) in twins.iter_mut().zip(["GPU-1", "GPU-2"]) {
            report.hardware.gpus = vec![Gpu { uuid: Some(uuid.into()), ..Gpu::default() }];
        }
        let c = compare(&twins[0], &twins[1], FIVE).unwrap();
        assert!(find(&c, "8 at once", Metric::TokensPerJoule).gain_added);
    }

    #[test]
    fn a_regression_is_beyond_the_threshold_and_beyond_doubt() {
        let regressed = |factor| compare(&report(1.0), &report(factor), FIVE).unwrap().regressed;
        assert!(!regressed(0.96), "within the threshold");
        assert!(regressed(0.94));
        let mut noisy = report(0.94);
        for point in &mut noisy.points {
            point.output_tokens_per_second = Estimate::within(point.output_tokens_per_second.value, 0.2);
            point.input_tokens_per_second = point.output_tokens_per_second;
            point.energy[0].tokens_per_joule = None;
        }
        assert!(!compare(&report(1.0), &noisy, FIVE).unwrap().regressed, "not beyond doubt");
        let mut single = report(0.5);
        for point in &mut single.points {
            let exact = |e: Estimate| Estimate::exact(e.value);
            point.output_tokens_per_second = exact(point.output_tokens_per_second);
            point.input_tokens_per_second = exact(point.input_tokens_per_second);
            point.energy[0].tokens_per_joule = point.energy[0].tokens_per_joule.map(exact);
        }
        let c = compare(&report(1.0), &single, FIVE).unwrap();
        assert!(!c.regressed && c.notes.iter().any(|n| n.contains("single window")), "{:?}", c.notes);
        let mut slow = report(1.0);
        slow.points[0].ttft_seconds = Some(Quantiles { p50: 0.2, p90: 0.3, p99: 0.4 });
        let c = compare(&report(1.0), &slow, FIVE).unwrap();
        assert!(find(&c, "1 at once", Metric::TtftP50).regressed);
        assert!(!compare(&slow, &report(1.0), FIVE).unwrap().regressed, "faster is no regression");
        let mut dead = report(1.0);
        dead.points[0].output_tokens_per_second = Estimate::exact(0.0);
        dead.points[0].energy[0].tokens_per_joule = None;
        let c = compare(&report(1.0), &dead, FIVE).unwrap();
        assert!(c.regressed && find(&c, "1 at once", Metric::TokensPerSecond).ratio.value == 0.0);
    }

    #[test]
    fn unlike_hardware_is_refused_by_name() {
        let mut other = report(1.0);
        other.hardware.fingerprint = "two".into();
        other.hardware.cores = 64;
        other.hardware.gpus = vec![Gpu { name: "NVIDIA H200".into(), ..Gpu::default() }];
        let error = compare(&report(1.0), &other, FIVE).unwrap_err().to_string();
        assert!(error.contains("cores: 2 against 64") && error.contains("NVIDIA H200"), "{error}");
        let c = compare(&report(1.0), &other, FORCED).unwrap();
        assert!(c.differences.iter().any(|d| d.field == "cores"));
        assert!(find(&c, "1 at once", Metric::TokensPerJoule).gain_added, "not the same instrument");
        let mut unnamed = report(1.0);
        unnamed.hardware.fingerprint = "two".into();
        let error = compare(&report(1.0), &unnamed, FIVE).unwrap_err().to_string();
        assert!(error.contains("fingerprint: one against two"), "{error}");
    }

    #[test]
    fn unlike_boundary_method_or_schema_is_refused() {
        for (boundary, method, want) in [
            (Boundary::GpuBoard, Method::Counter, "boundary: CPU package against GPU board"),
            (Boundary::CpuPackage, Method::Declared, "method: counter against declared"),
        ] {
            let mut other = report(1.0);
            other.primary = Some(Scope { boundary, method });
            for energy in other.points.iter_mut().flat_map(|p| &mut p.energy) {
                (energy.boundary, energy.method) = (boundary, method);
            }
            let error = compare(&report(1.0), &other, FIVE).unwrap_err();
            assert!(matches!(&error, Refused::Scope(_)) && error.to_string().contains(want), "{error}");
            let c = compare(&report(1.0), &other, FORCED).unwrap();
            let r = find(&c, "1 at once", Metric::TokensPerJoule);
            assert!(format!("{} {}", r.boundary, r.method).contains(" against "), "{r:?}");
        }
        let mut other = report(1.0);
        other.schema += 1;
        assert!(matches!(compare(&report(1.0), &other, FIVE), Err(Refused::Schema { .. })));
        // No meter at all is said, not refused.
        let mut blind = report(1.0);
        (blind.primary, blind.complete) = (None, false);
        let c = compare(&report(1.0), &blind, FIVE).unwrap();
        assert!(c.ratios.iter().all(|r| r.metric != Metric::TokensPerJoule));
        let said = c.notes.join("; ");
        assert!(said.contains("B has no meter") && said.contains("B is partial"), "{said}");
    }

    #[test]
    fn only_like_points_are_matched() {
        type Change = fn(&mut Point);
        let changes: [Change; 6] = [
            |p| p.kind = Kind::Sustained,
            |p| p.concurrency = 2,
            |p| p.asked_input_tokens = 256.0,
            |p| p.asked_output_tokens = 64.0,
            |p| p.duty = Some(0.5),
            |p| p.power_cap_watts = Some(300.0),
        ];
        for change in changes {
            let mut other = report(1.0);
            change(&mut other.points[0]);
            let c = compare(&report(1.0), &other, FIVE).unwrap();
            assert_eq!((c.only_in_first.len(), c.only_in_second.len()), (1, 1));
            assert_eq!(c.ratios.len(), 8);
        }
        // Models may end their answers early: that is said, and compared.
        let mut shorter = report(1.0);
        shorter.points[0].mean_output_tokens = 60.0;
        let c = compare(&report(1.0), &shorter, FIVE).unwrap();
        assert!(c.only_in_second.is_empty());
        assert!(find(&c, "1 at once", Metric::ItlP50).flags.iter().any(|f| f.contains("A 128 tokens, B 60")));
        let mut none = report(1.0);
        none.points.clear();
        assert!(matches!(compare(&report(1.0), &none, FIVE), Err(Refused::NothingShared { .. })));
    }

    #[test]
    fn a_setting_that_changed_is_named() {
        let with = |value: &str| {
            let mut report = report(1.0);
            let setting = |value: &str| Setting { name: "dtype".into(), value: value.into() };
            report.target = Target::InProcess { settings: vec![setting(value)] };
            report
        };
        use crate::measure::report::{Setting, Target};
        let c = compare(&with("f32"), &with("bf16"), FIVE).unwrap();
        assert_eq!(
            c.differences,
            [Difference { field: "dtype".into(), first: "f32".into(), second: "bf16".into() }]
        );
    }

    proptest! {
        /// B/A and A/B are reciprocal, and the mean of equal ratios is that ratio, more surely known.
        #[test]
        fn ratios_turn_around(factor in 0.2..5.0f64) {
            let there = compare(&report(1.0), &report(factor), FIVE).unwrap();
            let back = compare(&report(factor), &report(1.0), FIVE).unwrap();
            for (x, y) in there.ratios.iter().zip(&back.ratios) {
                prop_assert!((x.ratio.value * y.ratio.value - 1.0).abs() < 1e-9);
                prop_assert!((x.ratio.low * y.ratio.high - 1.0).abs() < 1e-9);
            }
            let mean = there.geometric_means[0].ratio;
            let one = there.ratios[0].ratio;
            prop_assert!((mean.value - factor).abs() < 1e-9);
            prop_assert!(mean.high - mean.low < one.high - one.low);
        }

        #[test]
        fn nothing_in_a_report_makes_it_panic(
            a in prop::num::f64::ANY, b in prop::num::f64::ANY, c in prop::num::f64::ANY, requests in 0u64..9
        ) {
            let mut odd = report(1.0);
            for point in &mut odd.points {
                point.requests = requests;
                point.output_tokens_per_second = Estimate { value: a, low: b, high: c };
                point.ttft_seconds = Some(Quantiles { p50: a, p90: b, p99: c });
            }
            for r in compare(&report(1.0), &odd, FIVE).unwrap().ratios {
                prop_assert!(r.ratio.value.is_finite() && r.ratio.low.is_finite() && r.ratio.high.is_finite(), "{r:?}");
            }
        }
    }
}
