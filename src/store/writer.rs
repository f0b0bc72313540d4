//! The thread that writes: records in batches a few times a second, questions in between, joules when they settle.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::Duration;

use rusqlite::Connection;

use super::usage::{self, Energy, UsageRecord};
use crate::clock::{Clock, Tick};

/// A record is on disk after so long; the bound that is promised is a second.
const BATCH: Duration = Duration::from_millis(250);
/// Joules that are not settled after so long (a lost meter) stay an estimate.
const PATIENCE: Duration = Duration::from_secs(10);
/// For the last joules to settle when the process ends.
const LAST_WINDOW: Duration = Duration::from_secs(1);
/// Records that are kept while the disk takes none.
const MOST_UNWRITTEN: usize = 1 << 18;

/// What a meter says of a request that has ended.
pub enum Settled {
    NotYet,
    Now(Energy),
}

/// Asks for the joules of a request that has ended.
pub type Later = Box<dyn FnMut() -> Settled + Send>;

pub(super) enum Command {
    Record(Box<UsageRecord>, Option<Later>),
    Do(Box<dyn FnOnce(&mut Connection) + Send>),
    /// Writes what waits, and joules that settle soon; then answers.
    Finish(SyncSender<()>),
    End,
}

/// A record that is not on disk yet.
struct Unwritten {
    record: Box<UsageRecord>,
    later: Option<Later>,
    since: Tick,
    /// Its joules have settled meanwhile.
    settled: bool,
}

struct Unsettled {
    id: i64,
    since: Tick,
    later: Later,
}

pub(super) struct Writer {
    connection: Connection,
    clock: Clock,
    batch: Vec<Unwritten>,
    unsettled: Vec<Unsettled>,
    /// The last commit failed: said once.
    failing: bool,
}

impl Writer {
    pub fn new(connection: Connection) -> Writer {
        let clock = Clock::system();
        Writer { connection, clock, batch: Vec::new(), unsettled: Vec::new(), failing: false }
    }

    pub fn run(mut self, commands: &Receiver<Command>) {
        let mut flushed = self.clock.now();
        loop {
            let idle = self.batch.is_empty() && self.unsettled.is_empty();
            let wait = BATCH.saturating_sub(self.clock.now().since(flushed));
            let next = match idle {
                true => commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
                false => commands.recv_timeout(wait),
            };
            match next {
                Ok(Command::Record(record, later)) => {
                    if idle {
                        flushed = self.clock.now();
                    }
                    let since = self.clock.now();
                    self.batch.push(Unwritten { record, later, since, settled: false });
                }
                Ok(Command::Do(work)) => {
                    self.flush();
                    work(&mut self.connection);
                }
                Ok(Command::Finish(done)) => {
                    self.finish();
                    // Who asked may have gone.
                    let _ = done.send(());
                }
                Ok(Command::End) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if self.clock.now().since(flushed) >= BATCH {
                self.flush();
                self.settle();
                flushed = self.clock.now();
            }
        }
        self.flush();
        self.settle();
    }

    /// The process ends: a last window of the meters is waited for.
    fn finish(&mut self) {
        self.flush();
        let begun = self.clock.now();
        loop {
            self.settle();
            if self.unsettled.is_empty() || self.clock.now().since(begun) > LAST_WINDOW {
                return;
            }
            std::thread::sleep(BATCH / 5);
        }
    }

    /// Commits what waits. What a full disk refuses is tried again.
    fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        match self.commit() {
            Ok(ids) => {
                let written = std::mem::take(&mut self.batch).into_iter().zip(ids);
                let later = written
                    .filter_map(|(one, id)| Some(Unsettled { id, since: one.since, later: one.later? }));
                self.unsettled.extend(later);
                self.failing = false;
            }
            Err(error) => {
                if !self.failing {
                    tracing::error!(%error, "usage cannot be written; it is kept and tried again");
                }
                self.failing = true;
                if self.batch.len() > MOST_UNWRITTEN {
                    tracing::error!(records = self.batch.len(), "usage is lost: it could not be written");
                    self.batch.clear();
                }
            }
        }
    }

    fn commit(&mut self) -> rusqlite::Result<Vec<i64>> {
        let transaction = self.connection.transaction()?;
        let insert = |one: &Unwritten| usage::insert(&transaction, &one.record, one.settled);
        let ids = self.batch.iter().map(insert).collect::<Result<Vec<_>, _>>()?;
        transaction.commit()?;
        Ok(ids)
    }

    /// Writes the joules that have become final.
    fn settle(&mut self) {
        let now = self.clock.now();
        // What cannot be written settles all the same: accounts wait for it.
        for one in &mut self.batch {
            match one.later.as_mut().map(|later| later()) {
                Some(Settled::Now(energy)) => {
                    (one.record.energy, one.later, one.settled) = (Some(energy), None, true);
                }
                Some(Settled::NotYet) if now.since(one.since) >= PATIENCE => one.later = None,
                _ => {}
            }
        }
        let mut known = Vec::new();
        self.unsettled.retain_mut(|one| match (one.later)() {
            Settled::Now(energy) => {
                known.push((one.id, energy));
                false
            }
            Settled::NotYet => now.since(one.since) < PATIENCE,
        });
        if known.is_empty() {
            return;
        }
        let wrote = self.connection.transaction().and_then(|transaction| {
            for (id, energy) in &known {
                usage::settle(&transaction, *id, energy)?;
            }
            transaction.commit()
        });
        if let Err(error) = wrote {
            tracing::error!(%error, "settled joules could not be written; the estimates stay");
        }
    }
}
