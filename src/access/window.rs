//! What was used within the last minute, exactly in any minute, in bounded memory.
//!
//! Amounts are kept by tenths of a second and leave a minute after their tenth has ended: a window never holds less
//! than what the last 60 s used, and at most 601 entries.

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::Tick;

const WINDOW: Duration = Duration::from_secs(60);
const GRAIN: u64 = 100_000_000;

#[derive(Debug, Default)]
pub struct Window {
    /// End of a tenth of a second, and what was used in it.
    used: VecDeque<(Tick, u64)>,
    sum: u64,
}

impl Window {
    /// Forgets what is older than a minute.
    fn pass(&mut self, now: Tick) {
        while let Some((slot, amount)) = self.used.front().copied() {
            if now < slot + WINDOW {
                return;
            }
            self.sum -= amount;
            self.used.pop_front();
        }
    }

    /// Used within the last minute.
    pub fn sum(&mut self, now: Tick) -> u64 {
        self.pass(now);
        self.sum
    }

    /// Uses an amount; the slot to [`Window::give_back`] to.
    pub fn take(&mut self, now: Tick, amount: u64) -> Tick {
        self.pass(now);
        let slot = Tick((now.0 / GRAIN + 1) * GRAIN);
        match self.used.back_mut() {
            // A clock never goes back; should it, the amount stays longer.
            Some((last, used)) if *last >= slot => {
                *used += amount;
                self.sum += amount;
                return *last;
            }
            _ => self.used.push_back((slot, amount)),
        }
        self.sum += amount;
        slot
    }

    /// What was not used after all. Nothing, when its minute is over.
    pub fn give_back(&mut self, slot: Tick, amount: u64) {
        if let Ok(at) = self.used.binary_search_by_key(&slot, |(slot, _)| *slot) {
            let given = amount.min(self.used[at].1);
            self.used[at].1 -= given;
            self.sum -= given;
        }
    }

    /// What was used beyond what was taken.
    pub fn add(&mut self, slot: Tick, amount: u64) {
        if let Ok(at) = self.used.binary_search_by_key(&slot, |(slot, _)| *slot) {
            self.used[at].1 += amount;
            self.sum += amount;
        }
    }

    /// How long until `amount` more fit under a limit, if nothing else is used. `None`: never.
    pub fn wait(&mut self, now: Tick, amount: u64, limit: u64) -> Option<Duration> {
        self.pass(now);
        let mut left = self.sum;
        if amount > limit {
            return None;
        }
        if left + amount <= limit {
            return Some(Duration::ZERO);
        }
        for (slot, used) in &self.used {
            left -= used;
            if left + amount <= limit {
                return Some((*slot + WINDOW).since(now));
            }
        }
        None
    }

    /// How long until all of it is free again.
    pub fn reset(&mut self, now: Tick) -> Duration {
        self.pass(now);
        let last = self.used.iter().rev().find(|(_, used)| *used > 0);
        last.map_or(Duration::ZERO, |(slot, _)| (*slot + WINDOW).since(now))
    }
}
