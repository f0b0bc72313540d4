//! Whose turn it is to compile a grammar: few at a time, and what cannot be stopped is bounded in number.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Longest wait for a turn at it: who waits holds a place among the requests that are prepared.
const COMPILE_WAIT: Duration = Duration::from_millis(100);
/// Compiled at a time: fewer than the requests that are prepared, so that those without a grammar find a place.
const COMPILE_THREADS: usize = 1;
/// Compilations that nobody waits for any more, and that cannot be stopped; with so many nothing new is compiled.
const MOST_ABANDONED: usize = 3;

/// What all turns share.
pub type Turns = Arc<(Mutex<Compiling>, Condvar)>;

/// Compilations under way.
#[derive(Default)]
pub struct Compiling {
    awaited: usize,
    abandoned: usize,
}

/// One of the threads that compile.
pub struct Turn {
    abandoned: Arc<Abandoned>,
}

/// Whether anybody still waits for a turn's result. `state` changes under the lock of the counts.
pub struct Abandoned {
    compiling: Turns,
    state: AtomicU8,
}

const AWAITED: u8 = 0;
const ABANDONED: u8 = 1;
const OVER: u8 = 2;

impl Turn {
    /// `None` when there was none in time.
    pub fn wait(compiling: &Turns) -> Option<Turn> {
        let (count, changed) = &**compiling;
        let lock = count.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |c: &mut Compiling| c.awaited >= COMPILE_THREADS || c.abandoned >= MOST_ABANDONED;
        let (mut count, _) =
            changed.wait_timeout_while(lock, COMPILE_WAIT, full).unwrap_or_else(PoisonError::into_inner);
        if full(&mut count) {
            return None;
        }
        count.awaited += 1;
        let abandoned = Abandoned { compiling: compiling.clone(), state: AtomicU8::new(AWAITED) };
        Some(Turn { abandoned: Arc::new(abandoned) })
    }
}

impl Turn {
    pub fn abandoned(&self) -> Arc<Abandoned> {
        self.abandoned.clone()
    }
}

impl Abandoned {
    /// Others may have their turn although this one goes on.
    pub fn abandon(&self) {
        let mut count = self.compiling.0.lock().unwrap_or_else(PoisonError::into_inner);
        if self.state.load(Ordering::Relaxed) == AWAITED {
            self.state.store(ABANDONED, Ordering::Relaxed);
            (count.awaited, count.abandoned) = (count.awaited - 1, count.abandoned + 1);
            self.compiling.1.notify_one();
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut count = self.abandoned.compiling.0.lock().unwrap_or_else(PoisonError::into_inner);
        match self.abandoned.state.swap(OVER, Ordering::Relaxed) {
            ABANDONED => count.abandoned -= 1,
            _ => count.awaited -= 1,
        }
        self.abandoned.compiling.1.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_come_back_and_abandoned_ones_are_bounded() {
        let turns = Turns::default();
        let first = Turn::wait(&turns).unwrap();
        assert!(Turn::wait(&turns).is_none(), "one at a time");
        drop(first);
        let mut running = Vec::new();
        for _ in 0..MOST_ABANDONED {
            let turn = Turn::wait(&turns).unwrap();
            turn.abandoned().abandon();
            turn.abandoned().abandon();
            running.push(turn);
        }
        assert!(Turn::wait(&turns).is_none(), "too many go on");
        let late = running[0].abandoned();
        drop(running);
        // It has ended: nobody waits for it, and nobody counts it.
        late.abandon();
        let count = turns.0.lock().unwrap();
        assert_eq!((count.awaited, count.abandoned), (0, 0));
    }
}
