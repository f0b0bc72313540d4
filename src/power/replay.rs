//! A recording played back, for tests and for showing a day again: CSV with `seconds` and `watts` or `joules`.
//!
//! A column `meter` separates several recordings in one file; they share one time, whose first row is played
//! when the file is opened. Between two rows power is that of the earlier row, energy is interpolated; before
//! a meter's first row it stands at that row. After its last row the meter is lost.

use std::path::Path;
use std::time::Duration;

use super::{Boundary, MeterInfo, Method, PowerError, PowerMeter, Reading};
use crate::clock::{Clock, Tick};
use crate::quantity::{Joules, Watts};

/// Seconds, watts or joules above this are a slip.
const MOST: f64 = 1e12;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Watts,
    Joules,
}

struct Replay {
    info: MeterInfo,
    kind: Kind,
    /// (seconds, value), in order of time.
    rows: Vec<(f64, f64)>,
    clock: Clock,
    begun: Tick,
    /// Seconds of the file's earliest row, which plays at `begun`.
    first: f64,
}

/// The meters of a recording.
///
/// # Errors
/// A file that is not such a table; names file, row and problem.
pub fn open(file: &Path, clock: &Clock) -> Result<Vec<Box<dyn PowerMeter>>, PowerError> {
    let name = format!("replay:{}", file.display());
    let wrong = |problem: String| PowerError::Absent { meter: name.clone(), problem };
    let mut reader =
        csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(file).map_err(|e| wrong(e.to_string()))?;
    let headers = reader.headers().map_err(|e| wrong(e.to_string()))?.clone();
    let column = |name: &str| headers.iter().position(|h| h.eq_ignore_ascii_case(name));
    let (value, kind) = match (column("watts"), column("joules")) {
        (Some(at), None) => (at, Kind::Watts),
        (None, Some(at)) => (at, Kind::Joules),
        _ => return Err(wrong("the header has to name `seconds` and one of `watts` and `joules`".into())),
    };
    let seconds = column("seconds").ok_or_else(|| wrong("the header has no `seconds`".into()))?;
    let meter = column("meter");
    let mut found: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|e| wrong(e.to_string()))?;
        let line = record.position().map_or(0, csv::Position::line);
        let number = |at: usize| {
            let text = record.get(at).unwrap_or_default();
            let number = text.parse::<f64>().ok().filter(|n| (0.0..=MOST).contains(n));
            number.ok_or_else(|| wrong(format!("line {line}: {text:?} is not a number of at least 0")))
        };
        let row = (number(seconds)?, number(value)?);
        let of = meter.and_then(|at| record.get(at)).unwrap_or_default();
        let rows = match found.iter_mut().find(|(name, _)| name == of) {
            Some((_, rows)) => rows,
            None => {
                found.push((of.to_string(), Vec::new()));
                &mut found.last_mut().expect("it was pushed").1
            }
        };
        if rows.last().is_some_and(|last| row.0 <= last.0 || kind == Kind::Joules && row.1 < last.1) {
            return Err(wrong(format!("line {line}: time must grow, and joules must not fall")));
        }
        rows.push(row);
    }
    if found.is_empty() {
        return Err(wrong("a recording has two rows at least".into()));
    }
    if let Some((of, _)) = found.iter().find(|(_, rows)| rows.len() < 2) {
        let whose = if of.is_empty() { String::new() } else { format!("meter {of:?}: ") };
        return Err(wrong(format!("{whose}a recording has two rows at least")));
    }
    let begun = clock.now();
    let first = found.iter().map(|(_, rows)| rows[0].0).fold(f64::INFINITY, f64::min);
    Ok(found
        .into_iter()
        .map(|(of, rows)| -> Box<dyn PowerMeter> {
            let name = if of.is_empty() { name.clone() } else { format!("{name}:{of}") };
            Box::new(Replay { info: info(name, &rows), kind, rows, clock: clock.clone(), begun, first })
        })
        .collect())
}

fn info(name: String, rows: &[(f64, f64)]) -> MeterInfo {
    let length = rows[rows.len() - 1].0 - rows[0].0;
    let period = Duration::from_secs_f64(length / (rows.len() - 1) as f64);
    MeterInfo {
        name,
        device: None,
        boundary: Boundary::Node,
        method: Method::Replayed,
        period,
        lag: Duration::ZERO,
        full: None,
        wraps_at: None,
        gain_error: 0.05,
    }
}

impl PowerMeter for Replay {
    fn info(&self) -> &MeterInfo {
        &self.info
    }

    fn read(&mut self) -> Result<Reading, PowerError> {
        let now = self.clock.now().since(self.begun).as_secs_f64() + self.first;
        let after = self.rows.partition_point(|(t, _)| *t <= now);
        let last = self.rows[self.rows.len() - 1];
        if after == self.rows.len() && now > last.0 {
            let problem = format!("the recording of {:.1} s is over", last.0 - self.rows[0].0);
            return Err(PowerError::Lost { meter: self.info.name.clone(), problem });
        }
        let (t0, v0) = self.rows[after.saturating_sub(1)];
        Ok(match self.kind {
            Kind::Watts => Reading::Power(Watts(v0)),
            Kind::Joules => {
                let (t1, v1) = self.rows[after.min(self.rows.len() - 1)];
                let share = if t1 > t0 { ((now - t0) / (t1 - t0)).max(0.0) } else { 0.0 };
                Reading::Counter(Joules(v0 + (v1 - v0) * share))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(text: &str) -> (Result<Vec<Box<dyn PowerMeter>>, PowerError>, Clock) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("day.csv");
        std::fs::write(&file, text).unwrap();
        let clock = Clock::fake();
        (open(&file, &clock), clock)
    }

    #[test]
    fn a_recording_plays_from_its_opening_and_ends() {
        let (meters, clock) = opened("seconds,meter,joules\n100,a,5\n100,b,0\n110,a,25\n110,b,100\n");
        let mut meters = meters.unwrap();
        assert_eq!(meters.len(), 2);
        let (first, rest) = meters.split_at_mut(1);
        let (a, b) = (&mut first[0], &mut rest[0]);
        assert_eq!(a.info().method, Method::Replayed);
        assert_eq!(a.read(), Ok(Reading::Counter(Joules(5.0))));
        clock.advance(Duration::from_secs(5));
        assert_eq!(a.read(), Ok(Reading::Counter(Joules(15.0))));
        assert_eq!(b.read(), Ok(Reading::Counter(Joules(50.0))));
        clock.advance(Duration::from_secs(6));
        assert!(matches!(a.read(), Err(PowerError::Lost { .. })));
    }

    #[test]
    fn meters_of_one_file_share_its_time() {
        let (meters, clock) = opened("seconds,meter,joules\n100,a,0\n105,b,0\n110,a,100\n115,b,100\n");
        let mut meters = meters.unwrap();
        clock.advance(Duration::from_secs(3));
        assert_eq!(meters[0].read(), Ok(Reading::Counter(Joules(30.0))));
        assert_eq!(meters[1].read(), Ok(Reading::Counter(Joules(0.0))), "before its first row");
        clock.advance(Duration::from_secs(7));
        assert_eq!(meters[1].read(), Ok(Reading::Counter(Joules(50.0))));
        clock.advance(Duration::from_secs(1));
        let over = meters[0].read().unwrap_err().to_string();
        assert!(over.contains("day.csv:a") && over.contains("10.0 s"), "{over}");
        assert_eq!(meters[1].read(), Ok(Reading::Counter(Joules(60.0))), "it goes on alone");
    }

    #[test]
    fn power_is_that_of_the_row_before() {
        let (meters, clock) = opened("Seconds, Watts\n0, 80\n1, 300\n2, 80\n");
        let mut meters = meters.unwrap();
        clock.advance(Duration::from_millis(1500));
        assert_eq!(meters[0].read(), Ok(Reading::Power(Watts(300.0))));
    }

    #[test]
    fn bad_rows_are_named() {
        for (text, want) in [
            ("seconds,watts\n0,1\n1,many\n", "line 3"),
            ("seconds,watts\n0,1\n0,1\n", "line 3"),
            ("seconds,joules\n0,9\n1,1\n", "line 3"),
            ("seconds,watts\n0,-1\n", "line 2"),
            ("seconds,amps\n0,1\n", "watts"),
            ("watts\n1\n", "seconds"),
            ("seconds,watts\n0,1\n", "two rows"),
            ("seconds,watts\n", "two rows"),
            ("seconds,meter,watts\n0,a,1\n0,b,1\n1,a,1\n", "\"b\""),
            ("", "header"),
        ] {
            let error = opened(text).0.err().unwrap().to_string();
            assert!(error.contains(want) && error.contains("day.csv"), "{text:?}: {error}");
        }
    }
}
