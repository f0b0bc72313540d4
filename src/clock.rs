//! L0. The one source of time: a system clock, or one that tests move by hand.
//!
//! Everything that measures or waits takes a [`Clock`], so schedulers and energy attribution run on
//! a fake clock. `Instant::now` is forbidden elsewhere by `clippy.toml`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A point on a [`Clock`], in nanoseconds since that clock was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Tick(pub u64);

impl Tick {
    /// Time from `earlier` to `self`; zero when `earlier` is later.
    pub fn since(self, earlier: Tick) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for Tick {
    type Output = Tick;
    fn add(self, d: Duration) -> Tick {
        Tick(self.0.saturating_add(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// The source of time. Cheap to clone; clones share their origin.
#[derive(Debug, Clone)]
pub enum Clock {
    System { origin: Instant },
    Fake { now: Arc<AtomicU64> },
}

impl Clock {
    #[allow(clippy::disallowed_methods)] // the one place that reads the system's clock
    pub fn system() -> Clock {
        Clock::System { origin: Instant::now() }
    }

    /// A clock that stands still until [`Clock::advance`].
    pub fn fake() -> Clock {
        Clock::Fake { now: Arc::new(AtomicU64::new(0)) }
    }

    pub fn now(&self) -> Tick {
        match self {
            Clock::System { origin } => Tick(u64::try_from(origin.elapsed().as_nanos()).unwrap_or(u64::MAX)),
            Clock::Fake { now } => Tick(now.load(Ordering::Acquire)),
        }
    }

    /// Seconds since 1970-01-01 UTC; of a fake clock, since it was made.
    pub fn unix_seconds(&self) -> u64 {
        match self {
            Clock::System { .. } => unix_seconds(),
            Clock::Fake { .. } => self.now().0 / 1_000_000_000,
        }
    }

    /// Moves a fake clock; a system clock moves by itself.
    pub fn advance(&self, by: Duration) {
        if let Clock::Fake { now } = self {
            now.fetch_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX), Ordering::AcqRel);
        }
    }
}

impl Default for Clock {
    fn default() -> Self {
        Clock::system()
    }
}

/// Seconds since 1970-01-01 UTC, for the `created` fields of the wire and for file names.
#[allow(clippy::disallowed_methods)]
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Time a device has spent in steps: the worker tells, `power` reads its utilisation from it.
#[derive(Debug, Clone, Default)]
pub struct BusyTime(Arc<Mutex<Busy>>);

#[derive(Debug, Default)]
struct Busy {
    total: Duration,
    /// Start of the step under way.
    since: Option<Tick>,
}

impl BusyTime {
    fn busy(&self) -> MutexGuard<'_, Busy> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A step begins.
    pub fn begin(&self, now: Tick) {
        self.busy().since = Some(now);
    }

    /// The step that began ends.
    pub fn end(&self, now: Tick) {
        let mut busy = self.busy();
        if let Some(since) = busy.since.take() {
            busy.total += now.since(since);
        }
    }

    /// Time that was measured elsewhere.
    pub fn add(&self, d: Duration) {
        self.busy().total += d;
    }

    /// In steps that have ended.
    pub fn total(&self) -> Duration {
        self.busy().total
    }

    /// The step under way included, so that a long one does not come all at once.
    pub fn total_at(&self, now: Tick) -> Duration {
        let busy = self.busy();
        busy.total + busy.since.map_or(Duration::ZERO, |since| now.since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_step_under_way_counts_and_never_twice() {
        let busy = BusyTime::default();
        busy.begin(Tick(10));
        assert_eq!((busy.total().as_nanos(), busy.total_at(Tick(15)).as_nanos()), (0, 5));
        busy.end(Tick(17));
        busy.end(Tick(30));
        assert_eq!((busy.total().as_nanos(), busy.total_at(Tick(40)).as_nanos()), (7, 7));
    }
}
