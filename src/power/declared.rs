//! Watts without an instrument: idle and full-load watts that someone stated, by utilisation in between.
//!
//! Clock and busy time → a counter: idle watts all the time, the difference for the time in steps. Exact for
//! any window, since both are integrals already. Serves `declared` (the operator's word) and `assumed` (a
//! nameplate); it knows no engine, the workers add to the busy times it is given.

use std::time::Duration;

use super::{MeterInfo, PowerError, PowerMeter, Reading};
use crate::clock::{BusyTime, Clock, Tick};
use crate::quantity::Watts;

/// What meters and nameplates of this kind are worth: ±5 %.
pub const GAIN_ERROR: f64 = 0.05;
/// The counter is computed, so it has no tick of its own; it moves when a step ends.
pub const PERIOD: Duration = Duration::from_millis(10);

/// A counter that starts at zero when it is made.
pub struct Declared {
    info: MeterInfo,
    idle: Watts,
    full: Watts,
    clock: Clock,
    /// Of each engine; utilisation is their mean.
    busy: Vec<BusyTime>,
    made: Tick,
    busy_before: Duration,
}

impl Declared {
    /// # Errors
    /// `Spec` unless 0 ≤ idle ≤ full, both finite.
    pub fn new(
        info: MeterInfo,
        idle: Watts,
        full: Watts,
        clock: Clock,
        busy: Vec<BusyTime>,
    ) -> Result<Declared, PowerError> {
        if !(idle.0 >= 0.0 && idle <= full && full.0.is_finite()) {
            let problem = "idle and full watts must be numbers with 0 <= idle <= full".into();
            return Err(PowerError::Spec { value: format!("{},{}", idle.0, full.0), problem });
        }
        let made = clock.now();
        let busy_before = total(&busy, made);
        let info = MeterInfo { full: Some(full), ..info };
        Ok(Declared { info, idle, full, clock, busy, made, busy_before })
    }
}

fn total(busy: &[BusyTime], now: Tick) -> Duration {
    busy.iter().map(|b| b.total_at(now)).sum()
}

impl PowerMeter for Declared {
    fn info(&self) -> &MeterInfo {
        &self.info
    }

    fn read(&mut self) -> Result<Reading, PowerError> {
        let now = self.clock.now();
        let elapsed = now.since(self.made);
        let engines = u32::try_from(self.busy.len().max(1)).unwrap_or(u32::MAX);
        // Whatever is added to it: never busier than there is time.
        let busy = (total(&self.busy, now).saturating_sub(self.busy_before) / engines).min(elapsed);
        Ok(Reading::Counter(self.idle * elapsed + Watts(self.full.0 - self.idle.0) * busy))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::power::{Boundary, Method};
    use crate::quantity::Joules;

    fn info() -> MeterInfo {
        MeterInfo {
            name: "test".into(),
            device: None,
            boundary: Boundary::Node,
            method: Method::Declared,
            period: PERIOD,
            lag: Duration::ZERO,
            full: None,
            wraps_at: None,
            gain_error: GAIN_ERROR,
        }
    }

    #[test]
    fn energy_follows_the_engines_mean_utilisation_and_never_exceeds_full_load() {
        let (clock, busy) = (Clock::fake(), [BusyTime::default(), BusyTime::default()]);
        busy[0].add(Duration::from_secs(100));
        let mut meter =
            Declared::new(info(), Watts(100.0), Watts(600.0), clock.clone(), busy.to_vec()).unwrap();
        let mut read = || meter.read().unwrap();
        assert_eq!(read(), Reading::Counter(Joules(0.0)));
        clock.advance(Duration::from_secs(10));
        assert_eq!(read(), Reading::Counter(Joules(1000.0)), "idle");
        clock.advance(Duration::from_secs(10));
        busy[0].add(Duration::from_secs(5));
        busy[1].add(Duration::from_secs(5));
        assert_eq!(read(), Reading::Counter(Joules(2000.0 + 2500.0)), "a quarter busy");
        busy[1].add(Duration::from_secs(500));
        assert_eq!(read(), Reading::Counter(Joules(600.0 * 20.0)), "not more than full");
    }

    #[test]
    fn a_declaration_that_cannot_be_is_refused() {
        for (idle, full) in [(-1.0, 5.0), (6.0, 5.0), (0.0, f64::INFINITY), (f64::NAN, 5.0), (1.0, f64::NAN)]
        {
            let made = Declared::new(info(), Watts(idle), Watts(full), Clock::fake(), vec![]);
            assert!(matches!(made.err(), Some(PowerError::Spec { .. })), "{idle} {full}");
        }
    }
}
