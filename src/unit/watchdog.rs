//! Takes out replicas that have gone silent, and boards that report that they are broken.
//!
//! A thread of its own: an engine that hangs in a step cannot say so.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::Unit;
use crate::clock::Tick;
use crate::power::CRITICAL_XIDS;

/// How often it looks; a quarter of the patience, if that is less.
const LONGEST_PERIOD: Duration = Duration::from_millis(500);
/// An idle engine gives a sign twice a second.
const LEAST_PATIENCE: Duration = Duration::from_secs(2);

impl Unit {
    /// Watches the replicas until the unit is dropped. One that gives no sign of life for `patience`
    /// (two seconds at least) hangs.
    ///
    /// # Errors
    /// When the thread cannot start.
    pub fn watch(self: &Arc<Unit>, patience: Duration) -> std::io::Result<()> {
        let patience = *self.patience.get_or_init(|| patience.max(LEAST_PATIENCE));
        let unit: Weak<Unit> = Arc::downgrade(self);
        let period = (patience / 4).min(LONGEST_PERIOD);
        std::thread::Builder::new().name("hashwatt-watchdog".into()).spawn(move || {
            let mut last = None;
            while let Some(unit) = unit.upgrade() {
                let now = unit.clock().now();
                // Where the whole process stood still (a stopped container, a frozen machine) everyone was silent.
                if last.is_some_and(|last| now.since(last) > 2 * period + patience / 2) {
                    unit.thawed(now);
                }
                unit.inspect(patience);
                last = Some(now);
                drop(unit);
                std::thread::sleep(period);
            }
        })?;
        Ok(())
    }

    /// Silence until now was not the replicas' own.
    pub fn thawed(&self, now: Tick) {
        self.silence_counts_from.store(now.0, Ordering::Release);
    }

    /// Looks at each replica once.
    pub fn inspect(&self, patience: Duration) {
        let now = self.clock().now();
        for (index, replica) in self.replicas().iter().enumerate().filter(|(_, r)| r.is_in()) {
            if !replica.stats().ready.load(Ordering::Acquire) {
                self.take_out(index, "it has ended; the log says why");
            } else if !self.is_alive(replica, now, patience) {
                self.take_out(index, &format!("no sign of life for {patience:?}"));
            }
        }
        let metered = self.ledger().map(|ledger| ledger.monitor());
        for meter in metered.into_iter().chain(self.boards.get()).flat_map(|m| m.meters()) {
            let xid = meter.board.as_ref().and_then(|b| b.xid).filter(|xid| CRITICAL_XIDS.contains(xid));
            if let (Some(xid), Some(index)) = (xid, meter.info.device) {
                self.take_out(index, &format!("{} reports Xid {xid}", meter.info.name));
            }
        }
    }
}
