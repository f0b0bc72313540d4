//! The threads of one device: runs a step's loops, one at a time, with no allocation.
//!
//! Workers spin briefly for the next loop, because a step is a row of short loops, and then sleep.
//! Which thread takes which task is not fixed, so an operation's result must not depend on it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Turns of the spin loop before a waiting thread sleeps (about 20 µs).
const SPINS: usize = 2_000;

type Body = dyn Fn(usize) + Sync;

struct Shared {
    /// The loop in flight: a fat pointer to the caller's closure, valid while `unfinished > 0`.
    job: Mutex<Job>,
    wake: Condvar,
    /// Counts the jobs published; workers watch it without the lock.
    generation: AtomicUsize,
    next_task: AtomicUsize,
    /// Workers that have not yet left the present job.
    unfinished: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
}

#[derive(Clone, Copy)]
struct Job {
    generation: usize,
    body: Option<*const Body>,
    tasks: usize,
}

// SAFETY: the pointer is dereferenced only between publication and the moment `run` sees that every
// worker has left, and the closure behind it is Sync.
unsafe impl Send for Job {}

/// `threads` threads, the caller of [`Pool::run`] among them.
pub struct Pool {
    shared: Arc<Shared>,
    threads: usize,
    workers: Vec<JoinHandle<()>>,
    running: Mutex<()>,
}

impl Pool {
    /// A pool of `threads` (at least one): the caller and `threads − 1` workers.
    pub fn new(threads: usize) -> Pool {
        let threads = threads.max(1);
        let shared = Arc::new(Shared {
            job: Mutex::new(Job { generation: 0, body: None, tasks: 0 }),
            wake: Condvar::new(),
            generation: AtomicUsize::new(0),
            next_task: AtomicUsize::new(0),
            unfinished: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let workers = (1..threads)
            .filter_map(|i| {
                let shared = shared.clone();
                // A thread that cannot be had makes the pool smaller, not wrong.
                std::thread::Builder::new()
                    .name(format!("hashwatt-pool-{i}"))
                    .spawn(move || worker(&shared))
                    .ok()
            })
            .collect::<Vec<_>>();
        Pool { shared, threads: workers.len() + 1, workers, running: Mutex::new(()) }
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
        let _one_at_a_time = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let s = &*self.shared;
        s.next_task.store(0, Ordering::Relaxed);
        s.panicked.store(false, Ordering::Relaxed);
        s.unfinished.store(self.workers.len(), Ordering::Relaxed);
        {
            let mut job = s.job.lock().unwrap_or_else(PoisonError::into_inner);
            job.generation += 1;
            job.tasks = tasks;
            // SAFETY: only the lifetime changes; `run` does not return before every worker has left.
            job.body =
                Some(unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync), *const Body>(body) });
            s.generation.store(job.generation, Ordering::Release);
        }
        s.wake.notify_all();
        take_tasks(s, tasks, body);
        let mut spins = 0;
        while s.unfinished.load(Ordering::Acquire) > 0 {
            spins += 1;
            if spins > SPINS { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
        assert!(!s.panicked.load(Ordering::Acquire), "an operation panicked on the device's pool");
    }
}

fn take_tasks(s: &Shared, tasks: usize, body: &(dyn Fn(usize) + Sync)) {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
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
        let mut spins = 0;
        while s.generation.load(Ordering::Acquire) == seen && spins < SPINS {
            spins += 1;
            std::hint::spin_loop();
        }
        let job = {
            let mut job = s.job.lock().unwrap_or_else(PoisonError::into_inner);
            while job.generation == seen && !s.stop.load(Ordering::Acquire) {
                job = s.wake.wait(job).unwrap_or_else(PoisonError::into_inner);
            }
            *job
        };
        if s.stop.load(Ordering::Acquire) {
            return;
        }
        seen = job.generation;
        if let Some(body) = job.body {
            // SAFETY: `run` waits for `unfinished` to reach zero before the closure goes away, and this
            // worker has not yet counted itself out of this job.
            take_tasks(s, job.tasks, unsafe { &*body });
        }
        s.unfinished.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        {
            let _job = self.shared.job.lock().unwrap_or_else(PoisonError::into_inner);
            self.shared.stop.store(true, Ordering::Release);
            self.shared.generation.fetch_add(1, Ordering::Release);
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
