//! The threads of one device: runs a step's loops, one at a time, with no allocation.
//!
//! Workers spin briefly for the next loop, because a step is a row of short loops, and then sleep. A
//! loop waits only for workers that entered it: one that wakes too late finds it closed. Which thread
//! takes which task is not fixed, so an operation's result must not depend on it.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Turns of the spin loop before a waiting thread sleeps (some ten microseconds).
const SPINS: usize = 2_000;
/// Numbers of a task's scratch at first: a panel of weights.
pub const SCRATCH: usize = 1 << 16;
/// Set in `Shared::entered` while no loop may be entered.
const CLOSED: usize = 1 << (usize::BITS - 1);

type Body = dyn Fn(usize) + Sync;

#[derive(Clone, Copy)]
struct Job {
    generation: usize,
    body: Option<*const Body>,
    tasks: usize,
}

struct Shared {
    /// The loop in flight. Written by the caller while `entered` is CLOSED and nobody is inside, read
    /// by workers that are inside.
    job: UnsafeCell<Job>,
    /// Workers inside the loop, and the CLOSED bit.
    entered: AtomicUsize,
    /// Counts the loops; workers watch it.
    generation: AtomicUsize,
    next_task: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
    /// Workers asleep on `wake`, or about to be.
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
}

// SAFETY: `job` is written only while nobody reads it (see its comment); the closure behind its pointer is
// Sync and outlives the loop; everything else is atomic.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

/// `threads` threads, the caller of [`Pool::run`] among them.
pub struct Pool {
    shared: Arc<Shared>,
    threads: usize,
    workers: Vec<JoinHandle<()>>,
    one_loop: Mutex<()>,
    /// As many as there are threads, less those in use.
    scratch: Mutex<Vec<Vec<f32>>>,
}

impl Pool {
    /// A pool of `threads` (at least one): the caller and `threads − 1` workers.
    pub fn new(threads: usize) -> Pool {
        let shared = Arc::new(Shared {
            job: UnsafeCell::new(Job { generation: 0, body: None, tasks: 0 }),
            entered: AtomicUsize::new(CLOSED),
            generation: AtomicUsize::new(0),
            next_task: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
        });
        let workers = (1..threads.max(1))
            .filter_map(|i| {
                let shared = shared.clone();
                // A thread that cannot be had makes the pool smaller, not wrong.
                std::thread::Builder::new()
                    .name(format!("hashwatt-pool-{i}"))
                    .spawn(move || worker(&shared))
                    .ok()
            })
            .collect::<Vec<_>>();
        let threads = workers.len() + 1;
        let scratch = Mutex::new((0..threads).map(|_| vec![0.0; SCRATCH]).collect());
        Pool { shared, threads, workers, one_loop: Mutex::new(()), scratch }
    }

    /// Lends a task memory that stays with the pool; it has [`SCRATCH`] numbers at least, and keeps what it grows to.
    pub fn with_scratch<R>(&self, task: impl FnOnce(&mut Vec<f32>) -> R) -> R {
        let lists = || self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let mut own = lists().pop().unwrap_or_default();
        let result = task(&mut own);
        lists().push(own);
        result
    }

    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Calls `body(0) … body(tasks − 1)`, each once, on all threads; returns when all are done.
    ///
    /// # Panics
    /// When a call panicked.
    pub fn run(&self, tasks: usize, body: &(dyn Fn(usize) + Sync)) {
        if tasks <= 1 || self.workers.is_empty() {
            (0..tasks).for_each(body);
            return;
        }
        let _one_at_a_time = self.one_loop.lock().unwrap_or_else(PoisonError::into_inner);
        let s = &*self.shared;
        s.next_task.store(0, Ordering::Relaxed);
        s.panicked.store(false, Ordering::Relaxed);
        let generation = s.generation.load(Ordering::Relaxed) + 1;
        // SAFETY: only the lifetime changes; `run` does not return before every worker has left.
        let body_pointer = unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync), *const Body>(body) };
        // SAFETY: the last loop was closed and left by all, so nobody reads the job.
        unsafe { *s.job.get() = Job { generation, body: Some(body_pointer), tasks } };
        s.entered.fetch_and(!CLOSED, Ordering::Release);
        s.generation.store(generation, Ordering::SeqCst);
        if s.sleepers.load(Ordering::SeqCst) > 0 {
            let _asleep = s.sleep.lock().unwrap_or_else(PoisonError::into_inner);
            s.wake.notify_all();
        }
        take_tasks(s, tasks, body);
        s.entered.fetch_or(CLOSED, Ordering::AcqRel);
        let mut spins = 0;
        while s.entered.load(Ordering::Acquire) != CLOSED {
            spins += 1;
            if spins > SPINS { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
        assert!(!s.panicked.load(Ordering::Acquire), "an operation panicked on the device's pool");
    }
}

fn take_tasks(s: &Shared, tasks: usize, body: &(dyn Fn(usize) + Sync)) {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        loop {
            let task = s.next_task.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                return;
            }
            body(task);
        }
    }));
    if outcome.is_err() {
        s.panicked.store(true, Ordering::Release);
    }
}

fn worker(s: &Shared) {
    let mut seen = 0;
    loop {
        wait_for_other_than(s, seen);
        if s.stop.load(Ordering::Acquire) {
            return;
        }
        seen = s.generation.load(Ordering::Acquire);
        if s.entered.fetch_add(1, Ordering::AcqRel) & CLOSED == 0 {
            // SAFETY: this worker is inside an open loop, so the caller neither writes the job nor drops
            // the closure before it has left.
            let job = unsafe { *s.job.get() };
            seen = job.generation;
            if let Some(body) = job.body {
                // SAFETY: as above.
                take_tasks(s, job.tasks, unsafe { &*body });
            }
        }
        s.entered.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Spins, then sleeps, until there is another loop than `seen`, or the pool ends.
fn wait_for_other_than(s: &Shared, seen: usize) {
    for _ in 0..SPINS {
        if s.generation.load(Ordering::Acquire) != seen {
            return;
        }
        std::hint::spin_loop();
    }
    let mut asleep = s.sleep.lock().unwrap_or_else(PoisonError::into_inner);
    // The caller publishes, then looks for sleepers; here it is the other way round: one sees the other.
    s.sleepers.fetch_add(1, Ordering::SeqCst);
    while s.generation.load(Ordering::SeqCst) == seen && !s.stop.load(Ordering::SeqCst) {
        asleep = s.wake.wait(asleep).unwrap_or_else(PoisonError::into_inner);
    }
    s.sleepers.fetch_sub(1, Ordering::SeqCst);
}

impl Drop for Pool {
    fn drop(&mut self) {
        {
            let _asleep = self.shared.sleep.lock().unwrap_or_else(PoisonError::into_inner);
            self.shared.stop.store(true, Ordering::SeqCst);
            self.shared.generation.fetch_add(1, Ordering::SeqCst);
        }
        self.shared.wake.notify_all();
        for w in self.workers.drain(..) {
            // A worker that panicked has nothing left to clean up.
            let _ = w.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 4] {
            let pool = Pool::new(threads);
            for tasks in [0, 1, 2, 7, 100] {
                let hits: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                for _ in 0..50 {
                    pool.run(tasks, &|i| {
                        hits[i].fetch_add(1, Ordering::Relaxed);
                    });
                }
                assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 50));
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let pool = Pool::new(2);
        let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pool.run(8, &|i| assert!(i != 5, "task five fails"));
        }));
        assert!(failed.is_err());
        let sum = AtomicUsize::new(0);
        pool.run(10, &|i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.load(Ordering::Relaxed), 45);
    }
}
