//! The book of one meter: settles its windows against the steps that ran, and knows its idle power.
//!
//! Window + overlapping step pieces → joules of each piece, of idleness and of overhead. It knows no account;
//! the ledger says what a piece's joules are for.

use std::collections::VecDeque;
use std::time::Duration;

use super::intervals::{Interval, union_length};
use crate::clock::Tick;
use crate::power::MeterInfo;
use crate::power::monitor::EnergyWindow;
use crate::quantity::{Joules, Watts};

/// Nothing may have run for so long before a window whose power is called idle.
pub const QUIET: Duration = Duration::from_secs(2);
/// Idle power is the mean over so many of the latest quiet windows.
const QUIET_WINDOWS: usize = 10;
/// How much of what earlier windows said of a step's watts a window full of steps replaces.
const NEWEST: f64 = 0.5;
/// Steps draw no more than this much of what their meter shows at most: the rest of a window is noise of the
/// idleness around them, and short requests would be billed for it.
const HEADROOM: f64 = 1.25;
/// A window that is busy for this share says what a step draws even where idle power is not known yet.
const NEARLY_ALL: f64 = 0.9;

/// Energy of one meter since it was opened; `prefill + decode + overhead + idle = total`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct MeterTotals {
    pub total: f64,
    pub prefill: f64,
    pub decode: f64,
    /// Failed steps, warm-up, self-tests.
    pub overhead: f64,
    pub idle: f64,
}

/// A part of a step inside a window.
#[derive(Debug, Clone, Copy)]
pub struct Piece {
    pub time: Interval,
    /// Modelled power relative to a full step, as [`super::relative_power`].
    pub relative_power: f64,
}

impl Piece {
    /// Modelled energy, in seconds of a full step.
    pub fn weight(&self) -> f64 {
        self.time.length().as_secs_f64() * self.relative_power
    }
}

pub struct Book {
    pub info: MeterInfo,
    pub totals: MeterTotals,
    /// Windows that wait for a step under way.
    pub waiting: VecDeque<EnergyWindow>,
    /// Steps up to here are settled.
    pub settled_until: Tick,
    quiet: VecDeque<Watts>,
    /// Least mean power of any window: stands for idle power until that is measured.
    least: Option<Watts>,
    /// Joules of the latest steps and their modelled weight: their ratio is the watts of a full step.
    recent: (f64, f64),
    /// Joules of prefill and decode that are to become overhead. Paid out of those that come, so that no total
    /// ever falls.
    owed: [f64; 2],
}

impl Book {
    pub fn new(info: MeterInfo) -> Book {
        Book {
            info,
            totals: MeterTotals::default(),
            waiting: VecDeque::new(),
            settled_until: Tick(0),
            quiet: VecDeque::new(),
            least: None,
            recent: (0.0, 0.0),
            owed: [0.0; 2],
        }
    }

    /// The time of the steps whose power a window shows.
    pub fn steps_of(&self, window: &EnergyWindow) -> Interval {
        Interval { start: window.start, end: window.end }.earlier(self.info.lag)
    }

    /// Power with models resident and nothing to do, and whether that was measured.
    pub fn idle_power(&self) -> Option<(Watts, bool)> {
        if self.quiet.is_empty() {
            return self.least.map(|watts| (watts, false));
        }
        let sum: f64 = self.quiet.iter().map(|w| w.0).sum();
        Some((Watts(sum / self.quiet.len() as f64), true))
    }

    /// Joules a modelled weight is likely to come to: by the watts of the latest windows with steps, before
    /// the first by the most the meter shows. `None` where neither is known.
    pub fn estimate(&self, weight: f64) -> Option<f64> {
        match self.recent {
            (joules, of) if of > 0.0 => Some(weight * joules / of),
            _ if weight <= 0.0 => Some(0.0),
            _ => self.info.full.map(|full| weight * full.0),
        }
    }

    /// Splits a window's energy: idle first, the rest to the pieces by modelled power. Gives the joules of a
    /// unit of weight. `quiet_for`: time without a step before the window's end.
    pub fn settle(&mut self, window: &EnergyWindow, pieces: &[Piece], quiet_for: Duration) -> f64 {
        let span = self.steps_of(window);
        let length = window.end.since(window.start);
        let mean = window.joules / length.max(Duration::from_nanos(1));
        self.settled_until = self.settled_until.max(span.end);
        self.totals.total += window.joules.0;
        if !window.gap && self.least.is_none_or(|least| mean.0 < least.0) {
            self.least = Some(mean);
        }
        if !window.gap && quiet_for >= QUIET + length {
            self.quiet.push_back(mean);
            if self.quiet.len() > QUIET_WINDOWS {
                self.quiet.pop_front();
            }
        }
        let weight: f64 = pieces.iter().map(Piece::weight).sum();
        if weight <= 0.0 {
            self.totals.idle += window.joules.0;
            return 0.0;
        }
        let busy = union_length(pieces.iter().map(|p| p.time).collect());
        let idle_power = self.idle_power().map_or(Watts(0.0), |(watts, _)| watts);
        let most = self.info.full.map_or(f64::INFINITY, |full| (full * busy).0 * HEADROOM);
        let idle =
            (idle_power * length.saturating_sub(busy)).0.max(window.joules.0 - most).min(window.joules.0);
        self.totals.idle += idle;
        let per_weight = (window.joules.0 - idle) / weight;
        let busy_share = (busy.as_secs_f64() / length.as_secs_f64()).min(1.0);
        let idle_is_known = self.idle_power().is_some_and(|(_, measured)| measured);
        if !window.gap && (idle_is_known || busy_share > NEARLY_ALL || self.recent.1 == 0.0) {
            // A window that hardly ran says little, and counts by its weight.
            let kept = 1.0 - NEWEST * busy_share;
            let (joules, of) = self.recent;
            self.recent = (joules * kept + per_weight * weight, of * kept + weight);
        }
        per_weight
    }

    /// Adds joules of prefill and decode. Gives what became of them: prefill, decode, overhead.
    pub fn add(&mut self, [prefill, decode]: [f64; 2]) -> [f64; 3] {
        let left = [self.pay(0, prefill), self.pay(1, decode)];
        self.totals.prefill += left[0];
        self.totals.decode += left[1];
        [left[0], left[1], prefill + decode - left[0] - left[1]]
    }
    /// What was settled for a failed attempt is overhead after all.
    pub fn owe(&mut self, [prefill, decode]: [f64; 2]) {
        self.owed[0] += prefill;
        self.owed[1] += decode;
    }
    /// What is left of new joules when what is owed has been paid to overhead.
    fn pay(&mut self, kind: usize, joules: f64) -> f64 {
        let paid = self.owed[kind].min(joules);
        self.owed[kind] -= paid;
        self.totals.overhead += paid;
        joules - paid
    }
    pub fn add_overhead(&mut self, joules: f64) {
        self.totals.overhead += joules;
    }
}

impl MeterTotals {
    pub fn attributed(&self) -> Joules {
        Joules(self.prefill + self.decode + self.overhead + self.idle)
    }
}
