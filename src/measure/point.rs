//! Windows and records of one load → a [`Point`] of the report; later passes fill in what other points tell.
//!
//! Arithmetic only. Intervals are those between windows; a meter's gain error stays beside them.

use super::ceilings::{copy_share, gemm_share};
use super::load::Records;
use super::report::{Board, Energy, Kind, Point, Report, Scope};
use super::statistics::{inverse, quantiles, ratio};
use super::window::{Window, of_scope, scope, scopes};
use crate::economics::estimate::Estimate;
use crate::power::Throttle;
use crate::power::monitor::SpanEnergy;

/// Rates of the two halves of a point that differ by more than this share are flagged.
const STEADY: f64 = 0.10;
const WINDOWS_TO_JUDGE: usize = 6;
/// An open load of which less than this share ends has outrun its target.
const KEPT_UP: f64 = 0.8;
/// A counter and samples of power, one a second, differ by less than this share on a sound board...
const DISAGREEMENT: f64 = 0.05;
/// ...over so many seconds.
const ENOUGH_SECONDS: f64 = 20.0;

/// What is known of a point before it is measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Setup {
    pub kind: Kind,
    pub concurrency: u32,
    pub requests_per_second: Option<f64>,
    pub duty: Option<f64>,
    pub power_cap_watts: Option<f64>,
    /// Mean lengths asked for: they stand where no request ended.
    pub asked_input_tokens: f64,
    pub asked_output_tokens: f64,
    pub start_seconds: f64,
    /// The load became steady before the windows.
    pub settled: bool,
}

/// Puts a point together. `None` when there is no window.
pub fn point(setup: &Setup, windows: &[Window], records: Records) -> Option<Point> {
    let seconds: Vec<f64> = windows.iter().map(|w| w.seconds).collect();
    let tokens = |pick: fn(&Window) -> u64| windows.iter().map(pick).collect::<Vec<u64>>();
    let (input, output) = (tokens(|w| w.input_tokens), tokens(|w| w.output_tokens));
    let counted = if setup.kind == Kind::Prefill { &input } else { &output };
    let mean = |tokens: usize, asked: f64| match records.requests {
        0 => asked,
        n => tokens as f64 / n as f64,
    };
    let open = matches!(setup.kind, Kind::OpenLoop | Kind::Trace);
    Some(Point {
        kind: setup.kind,
        concurrency: if open { records.most_running as u32 } else { setup.concurrency },
        requests_per_second: setup.requests_per_second,
        duty: setup.duty,
        power_cap_watts: setup.power_cap_watts,
        asked_input_tokens: setup.asked_input_tokens,
        asked_output_tokens: setup.asked_output_tokens,
        mean_input_tokens: mean(records.counts.input_tokens, setup.asked_input_tokens),
        mean_output_tokens: mean(records.counts.output_tokens, setup.asked_output_tokens),
        start_seconds: setup.start_seconds,
        seconds: seconds.iter().sum(),
        requests: records.requests,
        failed: records.failed,
        input_tokens: input.iter().sum(),
        output_tokens: output.iter().sum(),
        input_tokens_per_second: ratio(&floats(&input), &seconds)?,
        output_tokens_per_second: ratio(&floats(&output), &seconds)?,
        energy: energies(windows, counted),
        boards: boards(windows),
        flags: flags(setup, windows, counted, &records),
        ttft_seconds: quantiles(records.ttft_seconds),
        itl_seconds: quantiles(records.itl_seconds),
        copy_bandwidth_share: None,
        gemm_share: None,
        window_tokens: counted.clone(),
        window_seconds: seconds,
    })
}

fn floats(counts: &[u64]) -> Vec<f64> {
    counts.iter().map(|n| *n as f64).collect()
}

fn all_spans(windows: &[Window]) -> impl Iterator<Item = &SpanEnergy> {
    windows.iter().flat_map(|w| &w.spans)
}

fn energies(windows: &[Window], tokens: &[u64]) -> Vec<Energy> {
    scopes(all_spans(windows).map(scope)).into_iter().filter_map(|s| energy(windows, tokens, s)).collect()
}

fn energy(windows: &[Window], tokens: &[u64], of: Scope) -> Option<Energy> {
    let all: Vec<_> = windows.iter().map(|w| of_scope(&w.spans, of)).collect();
    let joules: Vec<f64> = all.iter().map(|e| e.joules.0).collect();
    let seconds: Vec<f64> = windows.iter().map(|w| w.seconds).collect();
    let tokens_per_joule = ratio(&floats(tokens), &joules).filter(|e| e.value > 0.0);
    Some(Energy {
        meter: all.first()?.meter.clone(),
        boundary: of.boundary,
        method: of.method,
        measured: of.method.is_measured(),
        gain_error: all.first()?.gain_error,
        joules: joules.iter().sum(),
        watts: ratio(&joules, &seconds)?,
        tokens_per_joule,
        joules_per_token: tokens_per_joule.and_then(inverse),
        idle_subtracted_joules: None,
        idle_subtracted_tokens_per_joule: None,
        joules_per_prefill_token: None,
        joules_per_decode_token: None,
        window_joules: joules,
        problem: all.into_iter().find_map(|e| e.problem),
    })
}

fn boards(windows: &[Window]) -> Vec<Board> {
    let Some(last) = windows.last() else { return Vec::new() };
    let known = last.spans.iter().enumerate().filter_map(|(i, s)| Some((i, s, s.board.as_ref()?)));
    let of = |(meter, span, board): (usize, &SpanEnergy, &crate::power::BoardState)| {
        let throttled = |reason: Throttle| {
            let index = Throttle::ALL.iter().position(|r| *r == reason).unwrap_or_default();
            let each = windows.iter().filter_map(|w| w.spans.get(meter));
            each.map(|s| s.throttled[index].as_secs_f64()).sum()
        };
        Board {
            meter: span.info.name.clone(),
            temperature_celsius: board.temperature_celsius,
            clock_megahertz: board.clock_megahertz,
            memory_clock_megahertz: board.memory_clock_megahertz,
            power_limit_watts: board.power_limit_watts,
            instantaneous_watts: {
                let each = windows.iter().filter_map(|w| w.spans.get(meter)?.instantaneous);
                let watts: Vec<f64> = each.map(|w| w.0).collect();
                (!watts.is_empty()).then(|| watts.iter().sum::<f64>() / watts.len() as f64)
            },
            power_cap_throttle_seconds: throttled(Throttle::PowerCap),
            thermal_throttle_seconds: throttled(Throttle::Thermal),
            power_brake_throttle_seconds: throttled(Throttle::PowerBrake),
            other_throttle_seconds: throttled(Throttle::Other),
            other_processes: board.other_processes.map(|n| n as u32),
        }
    };
    known.map(of).collect()
}

/// How a board's mean power by its other path compares with its meter's readings; `None` where it has no
/// other path, or too little time to tell.
fn disagreement(windows: &[Window], board: &Board) -> Option<f64> {
    let own = || all_spans(windows).filter(|s| s.info.name == board.meter);
    let (joules, seconds) =
        own().fold((0.0, 0.0), |(j, s), span| (j + span.joules.0, s + span.time.as_secs_f64()));
    let other = board.instantaneous_watts.filter(|_| joules > 0.0 && seconds >= ENOUGH_SECONDS)?;
    Some(other * seconds / joules - 1.0)
}

fn flags(setup: &Setup, windows: &[Window], tokens: &[u64], records: &Records) -> Vec<String> {
    let mut flags = Vec::new();
    let mut flag = |is: bool, what: String| {
        if is {
            flags.push(what);
        }
    };
    let measured = || all_spans(windows).filter(|s| s.info.method.is_measured());
    flag(measured().any(|s| s.short), "short window".into());
    let lost = all_spans(windows).find_map(|s| Some(format!("{}: {}", s.info.name, s.problem.as_ref()?)));
    flag(lost.is_some(), lost.unwrap_or_default());
    for board in boards(windows) {
        flag(board.other_processes.is_some_and(|n| n > 0), format!("other process on {}", board.meter));
        flag(board.thermal_throttle_seconds > 0.0, format!("thermal throttling of {}", board.meter));
        flag(board.power_brake_throttle_seconds > 0.0, format!("power brake of {}", board.meter));
        let apart = disagreement(windows, &board).unwrap_or(0.0);
        let text = format!("{}: instantaneous power {:+.0} % off the meter", board.meter, apart * 100.0);
        flag(apart.abs() > DISAGREEMENT, text);
    }
    let ended = records.requests as f64 / windows.iter().map(|w| w.seconds).sum::<f64>();
    if let Some(asked) = setup.requests_per_second.filter(|asked| ended < KEPT_UP * asked) {
        flag(true, format!("of {asked} requests a second {ended:.2} ended: the target did not keep up"));
    }
    flag(!setup.settled, "the power was not steady before the windows".into());
    flag(drifts(windows, tokens), "the rate was not steady".into());
    flag(windows.len() < 2, "a single window: its error is not known".into());
    flag(
        records.failed > 0,
        format!("{} requests failed: {}", records.failed, records.problem.as_deref().unwrap_or("")),
    );
    flag(records.requests == 0, "no request ended in the windows: its lengths are those asked for".into());
    flag(records.cut > 0, format!("{} requests were cut to the context", records.cut));
    flag(tokens.iter().sum::<u64>() == 0, "no tokens came".into());
    flags
}

/// The two halves differ by more than [`STEADY`], and by more than chance.
fn drifts(windows: &[Window], tokens: &[u64]) -> bool {
    if windows.len() < WINDOWS_TO_JUDGE {
        return false;
    }
    let half = windows.len() / 2;
    let rate = |range: std::ops::Range<usize>| {
        let seconds: Vec<f64> = windows[range.clone()].iter().map(|w| w.seconds).collect();
        ratio(&floats(&tokens[range]), &seconds)
    };
    match (rate(0..half), rate(half..windows.len())) {
        (Some(a), Some(b)) => (a.value / b.value - 1.0).abs() > STEADY && (a.low > b.high || b.low > a.high),
        _ => false,
    }
}

/// What points tell of each other: idle watts are taken off, and the prefill point splits the others' joules. And
/// what the ceilings tell of each.
pub fn fill(report: &mut Report) {
    let prefill: Vec<(Scope, Estimate)> = report
        .points
        .iter()
        .filter(|p| p.kind == Kind::Prefill)
        .flat_map(|p| p.energy.iter().filter_map(|e| Some((e.scope(), e.joules_per_token?))))
        .collect();
    let idle: Vec<(Scope, f64)> = report
        .idle
        .iter()
        .filter_map(|i| Some((Scope { boundary: i.boundary, method: i.method }, i.watts()?)))
        .collect();
    for point in &mut report.points {
        if let Some(ceilings) = &report.ceilings {
            point.copy_bandwidth_share = copy_share(ceilings, point);
            point.gemm_share = gemm_share(ceilings, point);
        }
        let (tokens, kind) = (point.tokens() as f64, point.kind);
        let inputs_per_output = point.input_tokens as f64 / point.output_tokens as f64;
        for energy in &mut point.energy {
            let of = |all: &[(Scope, f64)]| all.iter().find(|(s, _)| *s == energy.scope()).map(|(_, w)| *w);
            if let Some(watts) = of(&idle) {
                let active = energy.joules - watts * point.seconds;
                energy.idle_subtracted_joules = Some(active);
                energy.idle_subtracted_tokens_per_joule = energy
                    .tokens_per_joule
                    .filter(|_| active > 0.0)
                    .map(|e| relative(e, tokens / active, energy.joules / active));
            }
            if kind == Kind::Prefill {
                energy.joules_per_prefill_token = energy.joules_per_token;
                continue;
            }
            let per_prompt_token = prefill.iter().find(|(s, _)| *s == energy.scope()).map(|(_, e)| *e);
            if let (Some(each), Some(all)) = (per_prompt_token, energy.joules_per_token) {
                energy.joules_per_prefill_token = Some(each);
                energy.joules_per_decode_token = decode(all, each, inputs_per_output);
            }
        }
    }
}

/// The value with the interval of another, as a share, stretched.
fn relative(of: Estimate, value: f64, stretch: f64) -> Estimate {
    let end = |end: f64| (value * (1.0 + (end / of.value - 1.0) * stretch)).max(0.0);
    Estimate::new(value, end(of.low), end(of.high))
}

/// Joules of an output token less its share of prompts; `None` where the prompts take it all.
fn decode(all: Estimate, prefill: Estimate, inputs_per_output: f64) -> Option<Estimate> {
    let value = all.value - inputs_per_output * prefill.value;
    let spread = |a: f64, b: f64| (a.powi(2) + (inputs_per_output * b).powi(2)).sqrt();
    let low = value - spread(all.value - all.low, prefill.high - prefill.value);
    let high = value + spread(all.high - all.value, prefill.value - prefill.low);
    (value > 0.0).then(|| Estimate::new(value, low.max(0.0), high))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::measure::target::Counts;
    use crate::power::{Boundary, MeterInfo, Method};
    use crate::quantity::Joules;

    fn span(name: &str, boundary: Boundary, joules: f64, seconds: f64) -> SpanEnergy {
        SpanEnergy {
            info: MeterInfo {
                name: name.into(),
                device: None,
                boundary,
                method: Method::Counter,
                period: Duration::from_millis(100),
                lag: Duration::ZERO,
                full: None,
                wraps_at: None,
                gain_error: 0.05,
            },
            joules: Joules(joules),
            time: Duration::from_secs_f64(seconds),
            short: false,
            problem: None,
            throttled: Default::default(),
            board: None,
            instantaneous: None,
        }
    }

    fn window(seconds: f64, input: u64, output: u64, spans: Vec<SpanEnergy>) -> Window {
        Window { seconds, input_tokens: input, output_tokens: output, spans }
    }

    fn setup(kind: Kind) -> Setup {
        Setup {
            kind,
            concurrency: 8,
            requests_per_second: None,
            duty: None,
            power_cap_watts: None,
            asked_input_tokens: 5.0,
            asked_output_tokens: 6.0,
            start_seconds: 1.0,
            settled: true,
        }
    }

    fn two_packages(joules: f64) -> Vec<SpanEnergy> {
        vec![
            span("package-0", Boundary::CpuPackage, joules, 2.0),
            span("dram", Boundary::Dram, 10.0, 2.0),
            span("package-1", Boundary::CpuPackage, joules, 2.0),
        ]
    }

    #[test]
    fn meters_of_one_scope_add_up_and_unlike_ones_do_not() {
        let windows = vec![window(2.0, 100, 400, two_packages(50.0)); 4];
        let records = Records {
            requests: 10,
            counts: Counts { input_tokens: 80, output_tokens: 320 },
            ..Records::default()
        };
        let point = point(&setup(Kind::Concurrency), &windows, records).unwrap();
        assert_eq!((point.output_tokens, point.input_tokens, point.seconds), (1600, 400, 8.0));
        assert_eq!((point.mean_input_tokens, point.mean_output_tokens), (8.0, 32.0));
        let [package, dram] = &point.energy[..] else { panic!("{:?}", point.energy) };
        assert_eq!((package.meter.as_str(), package.joules), ("package-0 + package-1", 400.0));
        assert_eq!(package.tokens_per_joule, Some(Estimate::exact(4.0)));
        assert_eq!((package.watts.value, dram.joules), (50.0, 40.0));
        assert!(point.flags.is_empty(), "{:?}", point.flags);
    }

    #[test]
    fn what_spoils_a_point_is_flagged() {
        let mut spans = two_packages(50.0);
        spans[0].short = true;
        spans[1].problem = Some("lost: gone".into());
        spans[2].board = Some(crate::power::BoardState { other_processes: Some(2), ..Default::default() });
        spans[2].throttled[1] = Duration::from_secs(1);
        spans[2].instantaneous = Some(crate::quantity::Watts(30.0));
        let mut windows = vec![window(2.0, 0, 400, spans); 10];
        windows[4..].iter_mut().for_each(|w| w.output_tokens = 200);
        let records = Records { failed: 3, problem: Some("no".into()), ..Records::default() };
        let mut setup = setup(Kind::Duty);
        setup.settled = false;
        let flags = point(&setup, &windows, records).unwrap().flags.join("; ");
        for want in [
            "short window",
            "dram: lost: gone",
            "other process on package-1",
            "thermal throttling of package-1",
            "package-1: instantaneous power +20 % off the meter",
            "power was not steady",
            "rate was not steady",
            "3 requests failed: no",
            "no request ended",
        ] {
            assert!(flags.contains(want), "{want}: {flags}");
        }
        assert!(point(&setup, &[], Records::default()).is_none());
    }

    proptest! {
        /// Joules that follow a known cost of prompt and answer come apart into those costs.
        #[test]
        fn phases_come_apart(
            prefill in 0.001..1.0f64, decode_cost in 0.01..10.0f64, idle in 0.0..50.0f64,
            input in 1u64..5000, output in 100u64..5000
        ) {
            let joules = |i: u64, o: u64| i as f64 * prefill + o as f64 * decode_cost;
            let one = |kind, i: u64, o: u64| {
                let spans = || vec![span("package-0", Boundary::CpuPackage, joules(i, o), 1.0)];
                let windows: Vec<Window> = (0..3).map(|_| window(1.0, i, o, spans())).collect();
                point(&setup(kind), &windows, Records::default()).unwrap()
            };
            let mut report = crate::measure::testing::report();
            report.points = vec![one(Kind::Concurrency, input, output), one(Kind::Prefill, 1000, 0)];
            report.idle = vec![crate::measure::report::Idle {
                meter: "package-0".into(), boundary: Boundary::CpuPackage, method: Method::Counter,
                watts_before: Some(idle), watts_after: Some(idle),
            }];
            fill(&mut report);
            let energy = &report.points[0].energy[0];
            let close = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-6;
            prop_assert!(close(energy.joules_per_prefill_token.unwrap().value, prefill));
            prop_assert!(close(energy.joules_per_decode_token.unwrap().value, decode_cost));
            let active = energy.idle_subtracted_joules.unwrap();
            prop_assert!((active - (energy.joules - idle * 3.0)).abs() < 1e-6 * energy.joules.max(1.0));
            prop_assert_eq!(energy.idle_subtracted_tokens_per_joule.is_some(), active > 0.0);
        }
    }
}
