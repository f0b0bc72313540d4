//! What each step was for: when it ran, how many rows, and whose modelled work it did. Energy reads it.
//!
//! The worker appends under a lock that is held for microseconds; the reader swaps the log out against its
//! emptied twin, so a step allocates nothing. Nobody listens by default, and then nothing is kept.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::clock::{BusyTime, Tick};

/// The account of work that is nobody's: warm-up, steps that failed.
pub const OVERHEAD: u64 = 0;

/// Steps and shares that fit before the log has to grow: a second of the fastest steps of a full batch.
const STEPS: usize = 4096;
const SHARES: usize = 1 << 16;

/// A step's work for one account, in the model's own unit ([`crate::model::spec::DecoderSpec::chunk_work`]).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share {
    pub account: u64,
    pub prefill: f64,
    pub decode: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepRecord {
    pub started: Tick,
    pub ended: Tick,
    /// Tokens.
    pub rows: usize,
    /// Sequences.
    pub sequences: usize,
    /// It failed, or was for nobody: its shares go to [`OVERHEAD`].
    pub overhead: bool,
    /// How many of [`Steps::shares`], in order, are this step's.
    pub shares: usize,
}

/// Records in the order they happened.
#[derive(Debug, Default)]
pub struct Steps {
    pub records: Vec<StepRecord>,
    pub shares: Vec<Share>,
}

#[derive(Debug, Default)]
struct Inner {
    listening: AtomicBool,
    steps: Mutex<Steps>,
    /// Start of the step under way plus one, in nanoseconds; 0 between steps.
    running_since: AtomicU64,
}

/// Shared by a worker and whoever listens.
#[derive(Debug, Clone, Default)]
pub struct StepLog(Arc<Inner>);

impl StepLog {
    /// From now on steps are kept until they are taken.
    pub fn listen(&self) {
        let steps = Steps { records: Vec::with_capacity(STEPS), shares: Vec::with_capacity(SHARES) };
        *self.0.steps.lock().unwrap_or_else(PoisonError::into_inner) = steps;
        self.0.listening.store(true, Ordering::Release);
    }

    /// A step begins.
    pub fn begin(&self, now: Tick) {
        self.0.running_since.store(now.0 + 1, Ordering::Release);
    }

    /// The step that began has ended. `shares` are counted here, not by the caller.
    pub fn end(&self, mut record: StepRecord, shares: impl Iterator<Item = Share>) {
        if self.0.listening.load(Ordering::Acquire) {
            let mut steps = self.0.steps.lock().unwrap_or_else(PoisonError::into_inner);
            let before = steps.shares.len();
            steps.shares.extend(shares);
            record.shares = steps.shares.len() - before;
            steps.records.push(record);
        }
        // Only now: who sees no step running finds this one in the log.
        self.0.running_since.store(0, Ordering::Release);
    }

    /// The step that began will not end by itself: it panicked. Its energy is nobody's.
    pub fn abandon(&self, now: Tick) {
        if let Some(started) = self.running_since() {
            let record = StepRecord { started, ended: now, rows: 1, sequences: 0, overhead: true, shares: 0 };
            self.end(record, std::iter::empty());
        }
    }

    /// When the step under way began.
    pub fn running_since(&self) -> Option<Tick> {
        self.0.running_since.load(Ordering::Acquire).checked_sub(1).map(Tick)
    }

    /// Exchanges what was logged for `empty`, whose memory is used from then on.
    pub fn take(&self, empty: &mut Steps) {
        empty.records.clear();
        empty.shares.clear();
        std::mem::swap(&mut *self.0.steps.lock().unwrap_or_else(PoisonError::into_inner), empty);
    }
}

/// What can be seen of a worker from outside: how busy it is and with whose work.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    pub busy: BusyTime,
    pub steps: StepLog,
}

impl Observed {
    /// A step begins.
    pub fn begin(&self, now: Tick) {
        self.busy.begin(now);
        self.steps.begin(now);
    }

    /// The step that began has ended.
    pub fn end(&self, record: StepRecord, shares: impl Iterator<Item = Share>) {
        self.busy.end(record.ended);
        self.steps.end(record, shares);
    }

    /// The step that began will not end by itself.
    pub fn abandon(&self, now: Tick) {
        self.busy.end(now);
        self.steps.abandon(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(started: u64) -> StepRecord {
        let (started, ended) = (Tick(started), Tick(started + 5));
        StepRecord { started, ended, rows: 1, sequences: 1, overhead: false, shares: 0 }
    }

    #[test]
    fn steps_are_kept_for_listeners_only_and_taken_once() {
        let (log, mut taken) = (StepLog::default(), Steps::default());
        let share = |account| Share { account, prefill: 0.0, decode: 1.0 };
        log.end(record(0), [share(1)].into_iter());
        log.take(&mut taken);
        assert!(taken.records.is_empty());
        log.listen();
        log.begin(Tick(7));
        assert_eq!(log.running_since(), Some(Tick(7)));
        log.end(record(7), [share(1), share(2)].into_iter());
        log.end(record(20), std::iter::empty());
        assert_eq!(log.running_since(), None);
        log.take(&mut taken);
        assert_eq!(taken.records.iter().map(|r| r.shares).collect::<Vec<_>>(), [2, 0]);
        assert_eq!(taken.shares.len(), 2);
        log.take(&mut taken);
        assert!(taken.records.is_empty() && taken.shares.is_empty());
    }
}
