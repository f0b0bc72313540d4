//! Intervals of time: overlap, and the length of a union (steps of several engines may run at once).

use std::time::Duration;

use crate::clock::Tick;

/// `start ≤ end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interval {
    pub start: Tick,
    pub end: Tick,
}

impl Interval {
    pub fn length(self) -> Duration {
        self.end.since(self.start)
    }

    /// The part inside `other`; `None` when they do not overlap.
    pub fn clipped(self, other: Interval) -> Option<Interval> {
        let clipped = Interval { start: self.start.max(other.start), end: self.end.min(other.end) };
        (clipped.start < clipped.end).then_some(clipped)
    }

    /// Earlier by `lag`; time does not begin before zero.
    pub fn earlier(self, lag: Duration) -> Interval {
        let lag = u64::try_from(lag.as_nanos()).unwrap_or(u64::MAX);
        Interval { start: Tick(self.start.0.saturating_sub(lag)), end: Tick(self.end.0.saturating_sub(lag)) }
    }
}

/// Time that at least one of them covers.
pub fn union_length(mut intervals: Vec<Interval>) -> Duration {
    intervals.sort_by_key(|i| i.start);
    let mut total = Duration::ZERO;
    let mut covered = Tick(0);
    for Interval { start, end } in intervals {
        let start = start.max(covered);
        total += end.since(start);
        covered = covered.max(end);
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: u64, end: u64) -> Interval {
        Interval { start: Tick(start), end: Tick(end) }
    }

    #[test]
    fn unions_count_no_moment_twice() {
        let length = |i: &[Interval]| union_length(i.to_vec()).as_nanos();
        assert_eq!(length(&[]), 0);
        assert_eq!(length(&[at(5, 9), at(0, 4)]), 8);
        assert_eq!(length(&[at(0, 10), at(2, 4), at(8, 12)]), 12);
        assert_eq!(length(&[at(3, 3), at(1, 2)]), 1);
    }

    #[test]
    fn clipping_keeps_what_lies_inside() {
        assert_eq!(at(2, 8).clipped(at(5, 10)), Some(at(5, 8)));
        assert_eq!(at(2, 5).clipped(at(5, 10)), None);
        assert_eq!(at(2, 8).earlier(Duration::from_nanos(4)), at(0, 4));
    }
}
