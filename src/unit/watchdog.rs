//! Takes out replicas that have gone silent, and boards that report that they are broken.
//!
//! A thread of its own: an engine that hangs in a step cannot say so.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::Unit;

/// Fault codes after which a board is not to be used, by NVIDIA's "Xid Errors" (deployment guide, 2025): memory
/// errors that are not contained, failed row remapping, a board off the bus, a GSP that does not answer. Codes that
/// an application causes (13, 31, 43, 45) take nothing out by themselves: if they matter, a step fails.
const CRITICAL: [u64; 10] = [46, 48, 62, 64, 74, 79, 95, 119, 120, 140];

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
            while let Some(unit) = unit.upgrade() {
                unit.inspect(patience);
                drop(unit);
                std::thread::sleep(period);
            }
        })?;
        Ok(())
    }

    /// Looks at each replica once.
    pub fn inspect(&self, patience: Duration) {
        let now = self.clock().now();
        for (index, replica) in self.replicas().iter().enumerate().filter(|(_, r)| r.is_in()) {
            if !replica.stats().is_alive(now, patience) {
                let silent = format!("no sign of life for {patience:?}");
                self.take_out(index, &silent);
            }
        }
        let Some(ledger) = self.ledger() else { return };
        for meter in ledger.monitor().meters() {
            let xid = meter.board.as_ref().and_then(|b| b.xid).filter(|xid| CRITICAL.contains(xid));
            if let (Some(xid), Some(index)) = (xid, meter.info.device) {
                self.take_out(index, &format!("{} reports Xid {xid}", meter.info.name));
            }
        }
    }
}
