//! L0. The one source of time: a system clock, or one that tests move by hand.
//!
//! Everything that measures or waits takes a [`Clock`], so schedulers and energy attribution run on
//! a fake clock. `Instant::now` is forbidden elsewhere by `clippy.toml`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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

/// Time a device has spent in steps: the worker adds, `power` reads its utilisation from it.
#[derive(Debug, Clone, Default)]
pub struct BusyTime(Arc<AtomicU64>);

impl BusyTime {
    pub fn add(&self, d: Duration) {
        self.0.fetch_add(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
    pub fn total(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}
