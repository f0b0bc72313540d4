//! Windows of one operating point: tokens and joules between the same two moments.
//!
//! Windows begin and end where the meters move (`power::monitor`). Here is also what goes before them:
//! the wait until a load is steady, and idle watts. Meters of one scope are added up; unlike ones never.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::load::Tally;
use super::report::Scope;
use crate::clock::{Clock, Tick};
use crate::power::monitor::{Monitor, SpanEnergy};
use crate::power::{Boundary, SHORT_WINDOW_PERIODS};
use crate::quantity::Joules;

/// How often a wait looks whether it is told to end.
const SLICE: Duration = Duration::from_millis(20);
/// A load counts as steady when its power changes by less than this share in a second.
const STEADY_SLOPE: f64 = 0.01;
const SLOPE_OVER: Duration = Duration::from_secs(4);
const SLOPE_STEP: Duration = Duration::from_millis(500);
const LONGEST_SETTLING: Duration = Duration::from_secs(60);
/// For the first tokens of a load.
const LONGEST_START: Duration = Duration::from_secs(300);
/// Shortest window on a meter that measures, whatever its period.
const SHORTEST_MEASURED: Duration = Duration::from_secs(5);

/// The meters of a bench, its clock and its end.
#[derive(Clone)]
pub struct Instruments {
    pub clock: Clock,
    /// When the bench began.
    pub begun: Tick,
    pub monitor: Option<Arc<Monitor>>,
    pub stop: CancellationToken,
}

/// One window.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    pub seconds: f64,
    pub input_tokens: u64,
    pub output_tokens: u64,
    /// One a meter.
    pub spans: Vec<SpanEnergy>,
}

/// Someone said stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

pub fn scope(span: &SpanEnergy) -> Scope {
    Scope { boundary: span.info.boundary, method: span.info.method }
}

/// The scopes of some meters, each once, measured ones first.
pub fn scopes(all: impl Iterator<Item = Scope>) -> Vec<Scope> {
    let mut scopes: Vec<Scope> = all.collect();
    scopes.sort_by_key(|s| (!s.method.is_measured(), *s));
    scopes.dedup();
    scopes
}

/// The scope a bench is about: a measured one before others; of those the one nearest to the device that
/// works. Memory modules alone never are.
pub fn primary(scopes: &[Scope], on_cpu: bool) -> Option<Scope> {
    let order = match on_cpu {
        true => [Boundary::CpuPackage, Boundary::Node, Boundary::Site, Boundary::GpuBoard],
        false => [Boundary::GpuBoard, Boundary::Node, Boundary::Site, Boundary::CpuPackage],
    };
    let rank = |s: &Scope| order.iter().position(|b| *b == s.boundary);
    let fit = scopes.iter().filter_map(|s| Some((!s.method.is_measured(), rank(s)?, *s)));
    fit.min_by_key(|(unmeasured, rank, _)| (*unmeasured, *rank)).map(|(_, _, s)| s)
}

impl Instruments {
    pub fn seconds(&self) -> f64 {
        self.clock.now().since(self.begun).as_secs_f64()
    }

    /// True when a meter of this process measures.
    pub fn measures(&self) -> bool {
        self.monitor.as_ref().is_some_and(|m| m.infos().iter().any(|i| i.method.is_measured()))
    }

    /// A window as long as the meters need it, at least `wanted`.
    pub fn window_length(&self, wanted: Duration) -> Duration {
        let infos = self.monitor.as_ref().map(|m| m.infos()).unwrap_or_default();
        let measured = infos.iter().filter(|i| i.method.is_measured());
        let needed = measured.map(|i| (i.period * SHORT_WINDOW_PERIODS).max(SHORTEST_MEASURED));
        needed.max().unwrap_or_default().max(wanted)
    }

    /// # Errors
    /// When the bench is told to end.
    pub fn wait(&self, time: Duration) -> Result<(), Interrupted> {
        let begun = self.clock.now();
        loop {
            let left = time.saturating_sub(self.clock.now().since(begun));
            if self.stop.is_cancelled() {
                return Err(Interrupted);
            }
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(SLICE));
        }
    }

    /// Energy while nothing is done here.
    ///
    /// # Errors
    /// When the bench is told to end.
    pub fn idle(&self, time: Duration) -> Result<Vec<SpanEnergy>, Interrupted> {
        let Some(monitor) = &self.monitor else { return Ok(Vec::new()) };
        let span = monitor.open_span();
        self.wait(time)?;
        Ok(monitor.close_span(span))
    }

    /// Waits until tokens come, then `least`, then (`thorough`, on meters that measure) until the power is
    /// steady. False when it never was.
    ///
    /// # Errors
    /// When the bench is told to end.
    pub fn settle(
        &self,
        tally: &Tally,
        streams: usize,
        least: Duration,
        thorough: bool,
    ) -> Result<bool, Interrupted> {
        let begun = self.clock.now();
        let waited = |longest| self.clock.now().since(begun) > longest;
        while tally.tokens().1 < streams as u64 && tally.given_up().is_none() && !tally.is_over() {
            if waited(LONGEST_START) {
                return Ok(false);
            }
            self.wait(SLICE)?;
        }
        self.wait(least)?;
        if !thorough || !self.measures() {
            return Ok(true);
        }
        let mut watts: Vec<f64> = Vec::new();
        let points = SLOPE_OVER.div_duration_f64(SLOPE_STEP) as usize;
        while !waited(LONGEST_SETTLING) {
            watts.push(self.measured_watts());
            if watts.len() > points && is_steady(&watts[watts.len() - points..], SLOPE_STEP) {
                return Ok(true);
            }
            tally.tell_busy();
            self.wait(SLOPE_STEP)?;
        }
        Ok(false)
    }

    fn measured_watts(&self) -> f64 {
        let meters = self.monitor.as_ref().map(|m| m.meters()).unwrap_or_default();
        let measured = meters.iter().filter(|m| m.info.method.is_measured());
        measured.filter_map(|m| m.watts).map(|w| w.0).sum()
    }

    /// Adds `count` windows one after another; fewer when the load ends by itself. Those that were whole
    /// stay when the bench is told to end.
    ///
    /// # Errors
    /// When the bench is told to end.
    pub fn windows(
        &self,
        tally: &Tally,
        count: usize,
        length: Duration,
        windows: &mut Vec<Window>,
        mut after_each: impl FnMut(usize),
    ) -> Result<(), Interrupted> {
        while windows.len() < count && !tally.is_over() && tally.given_up().is_none() {
            windows.push(self.window(tally, length)?);
            after_each(windows.len());
        }
        Ok(())
    }

    fn window(&self, tally: &Tally, length: Duration) -> Result<Window, Interrupted> {
        // What ran before belongs to no window; watts that follow utilisation would book it here.
        tally.tell_busy();
        let span = self.monitor.as_ref().map(|m| m.open_span());
        let begun = self.clock.now();
        let before = tally.tokens();
        while !tally.is_over() && self.clock.now().since(begun) < length {
            let left = length.saturating_sub(self.clock.now().since(begun));
            tally.tell_busy();
            self.wait(left.min(SLICE))?;
        }
        let time = self.clock.now().since(begun);
        let after = tally.tokens();
        let spans = match (&self.monitor, span) {
            (Some(monitor), Some(span)) => monitor.close_span(span),
            _ => Vec::new(),
        };
        Ok(Window {
            // Both ends of a meter's span are read within a poll of the tokens; its own time goes with them.
            seconds: spans.first().map_or(time, |s| s.time).as_secs_f64(),
            input_tokens: after.0.saturating_sub(before.0),
            output_tokens: after.1.saturating_sub(before.1),
            spans,
        })
    }
}

/// Least-squares slope of the samples, as a share of their mean, for a second.
fn is_steady(watts: &[f64], step: Duration) -> bool {
    let n = watts.len() as f64;
    let (middle, mean) = ((n - 1.0) / 2.0, watts.iter().sum::<f64>() / n);
    let offset = |i: usize| i as f64 - middle;
    let top: f64 = watts.iter().enumerate().map(|(i, w)| offset(i) * (w - mean)).sum();
    let bottom: f64 = (0..watts.len()).map(|i| offset(i).powi(2)).sum();
    mean <= 0.0 || (top / bottom / step.as_secs_f64() / mean).abs() < STEADY_SLOPE
}

/// Joules of one scope, its meters' names, and what is wrong with any of them.
pub struct OfScope {
    pub meter: String,
    pub joules: Joules,
    pub gain_error: f64,
    pub problem: Option<String>,
}

/// The spans of one scope added up.
pub fn of_scope(spans: &[SpanEnergy], of: Scope) -> OfScope {
    let spans: Vec<&SpanEnergy> = spans.iter().filter(|s| scope(s) == of).collect();
    let names: Vec<&str> = spans.iter().map(|s| s.info.name.as_str()).collect();
    OfScope {
        meter: names.join(" + "),
        joules: spans.iter().map(|s| s.joules).sum(),
        gain_error: spans.iter().map(|s| s.info.gain_error).fold(0.0, f64::max),
        problem: spans.iter().find_map(|s| Some(format!("{}: {}", s.info.name, s.problem.as_ref()?))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::power::Method;

    #[test]
    fn a_slope_is_seen() {
        let step = Duration::from_millis(500);
        let rising: Vec<f64> = (0..8).map(|i| 300.0 + f64::from(i) * 3.0).collect();
        assert!(!is_steady(&rising, step), "2 % a second");
        let nearly: Vec<f64> = (0..8).map(|i| 300.0 + f64::from(i)).collect();
        assert!(is_steady(&nearly, step), "0.7 % a second");
        assert!(is_steady(&[0.0; 8], step));
    }

    #[test]
    fn the_primary_scope_is_measured_and_of_the_device_that_works() {
        let scope = |boundary, method| Scope { boundary, method };
        let package = scope(Boundary::CpuPackage, Method::Counter);
        let board = scope(Boundary::GpuBoard, Method::Counter);
        let declared = scope(Boundary::Node, Method::Declared);
        let dram = scope(Boundary::Dram, Method::Counter);
        assert_eq!(primary(&[dram, board, package], true), Some(package));
        assert_eq!(primary(&[dram, board, package], false), Some(board));
        assert_eq!(primary(&[declared, board], true), Some(board));
        assert_eq!(primary(&[declared, dram], true), Some(declared));
        assert_eq!(primary(&[dram], true), None);
        assert_eq!(scopes([declared, board, declared].into_iter()), [board, declared]);
    }
}
