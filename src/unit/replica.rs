//! One engine of the unit, and whether it still serves.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

use crate::engine::stats::EngineStats;
use crate::engine::worker::EngineHandle;

pub struct Replica {
    pub(super) engine: EngineHandle,
    /// Why it was taken out, once it is.
    out: OnceLock<String>,
    /// True when it is out: wakes those who wait for it.
    lost: watch::Sender<bool>,
    /// Requests that went on elsewhere.
    pub(super) moved: AtomicU64,
    /// Requests that it took.
    pub(super) placed: AtomicU64,
}

impl Replica {
    pub(super) fn new(engine: EngineHandle) -> Replica {
        Replica {
            engine,
            out: OnceLock::new(),
            lost: watch::Sender::new(false),
            moved: AtomicU64::new(0),
            placed: AtomicU64::new(0),
        }
    }

    pub fn stats(&self) -> &EngineStats {
        self.engine.stats()
    }

    /// Why it serves nobody any more, if it does not.
    pub fn why_out(&self) -> Option<&str> {
        self.out.get().map(String::as_str)
    }

    pub fn is_in(&self) -> bool {
        self.out.get().is_none()
    }

    /// Requests that were begun here and went on elsewhere.
    pub fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Requests that were given to it, also those that went on elsewhere.
    pub fn placed(&self) -> u64 {
        self.placed.load(Ordering::Relaxed)
    }

    /// True the first time.
    pub(super) fn take_out(&self, why: String) -> bool {
        let first = self.out.set(why).is_ok();
        self.lost.send_replace(true);
        first
    }

    pub(super) fn when_lost(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut lost = self.lost.subscribe();
        async move {
            // The sender ends with the unit, and then nobody waits.
            let _ = lost.wait_for(|lost| *lost).await;
        }
    }

    /// Requests that run or wait.
    pub(super) fn load(&self) -> usize {
        let stats = self.stats();
        stats.running.load(Ordering::Acquire) + stats.waiting.load(Ordering::Acquire)
    }

    /// Whether it would take a request now.
    pub(super) fn has_places(&self) -> bool {
        self.load() < self.engine.places()
    }

    /// The share of its places that is taken, and that of its cache's pages, added: 0 is idle, 2 is full, and a
    /// queue makes it more. A few long contexts weigh what many short ones do.
    pub(super) fn taken(&self) -> f64 {
        let stats = self.stats();
        let total = stats.blocks_total.load(Ordering::Acquire).max(1);
        let pages = stats.blocks_held.load(Ordering::Acquire) as f64 / total as f64;
        self.load() as f64 / self.engine.slots().max(1) as f64 + pages
    }

    /// Tokens that its free pages hold.
    pub(super) fn room(&self) -> usize {
        let stats = self.stats();
        let (total, held) =
            (stats.blocks_total.load(Ordering::Acquire), stats.blocks_held.load(Ordering::Acquire));
        total.saturating_sub(held) * stats.block_size.load(Ordering::Acquire)
    }
}
