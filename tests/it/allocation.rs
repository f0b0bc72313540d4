//! A step allocates nothing: counted by the test binary's allocator on the worker's thread and its pool. [`peak_of`] is for
//! tests of what opening a file takes.
//!
//! Only threads that say so are counted, so other tests may run beside this one. The worker's thread says
//! so from inside a token constraint, which it calls between launch and sample.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};

use hashwatt::clock::Clock;
use hashwatt::engine::constraint::{ConstraintError, TokenConstraint};
use hashwatt::engine::step_log::Observed;
use hashwatt::engine::worker::{EngineConfig, Limits, spawn};
use hashwatt::model::decoder::{Decoder, Precision, Quantize};
use hashwatt::model::kv_cache::CacheType;
use hashwatt::model::runner::Runner;
use hashwatt::model::workspace::Capacity;
use hashwatt::ops::pool::Pool;

use crate::support::{checkpoint, decoder, drain, greedy, prompt, qwen3, request};

/// Smaller ones (a row of a queue, a view's shape) are allowed.
const LARGE: usize = 1024;

pub struct Counting;

static ON: AtomicBool = AtomicBool::new(false);
static LARGE_ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);
static LARGEST: AtomicUsize = AtomicUsize::new(0);
thread_local! {
    static WATCHED: Cell<bool> = const { Cell::new(false) };
    /// Bytes held since [`peak_of`] began, by this thread; less than none where it frees what was there before.
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// What `work` makes, and how many bytes this thread held in between, above what it held before.
pub fn peak_of<R>(work: impl FnOnce() -> R) -> (R, usize) {
    HELD.set(0);
    PEAK.set(0);
    let made = work();
    (made, usize::try_from(PEAK.get()).unwrap_or(0))
}

fn hold(bytes: isize) {
    // A thread that ends has no cells any more.
    let _ = HELD.try_with(|held| {
        held.set(held.get().wrapping_add(bytes));
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

fn note(size: usize) {
    if size >= LARGE && ON.load(Ordering::Relaxed) && WATCHED.try_with(Cell::get).unwrap_or(false) {
        LARGE_ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        LARGEST.fetch_max(size, Ordering::Relaxed);
    }
}

// SAFETY: everything is handed on to the system's allocator; counting touches no memory of its own.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        hold(layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        hold(layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        hold(size as isize - layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(pointer, layout, size) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        hold(-(layout.size() as isize));
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Allows everything; counts the steps of its sequence, and watches the thread it is called on.
struct Watch {
    step: usize,
}

const WARM_UP: usize = 20;
const COUNTED: usize = 100;

impl TokenConstraint for Watch {
    fn fill_mask(&mut self, _: &mut [u32]) -> Result<bool, ConstraintError> {
        WATCHED.with(|w| w.set(true));
        ON.store((WARM_UP..WARM_UP + COUNTED).contains(&self.step), Ordering::Relaxed);
        self.step += 1;
        Ok(false)
    }
    fn accept(&mut self, _: u32) -> Result<bool, ConstraintError> {
        Ok(true)
    }
    fn again(&self) -> Box<dyn TokenConstraint> {
        Box::new(Watch { step: 0 })
    }
}

#[test]
fn a_hundred_decode_steps_make_no_large_allocation() {
    count_decode_steps(decoder(&qwen3(1), Precision::Bf16));
    let fp8 = checkpoint(qwen3(1)).load_as(Quantize::Fp8, Precision::Bf16, true, &|_| {}).unwrap();
    count_decode_steps(Arc::new(fp8.with_cache(CacheType::Fp8)));
    let plain = checkpoint(qwen3(1)).load(Precision::Bf16, true, &|_| {}).unwrap();
    count_decode_steps(Arc::new(plain.with_cache(CacheType::Q8)));
    let mut of_blocks = qwen3(1);
    of_blocks["hidden_size"] = 256.into();
    let quantize = Quantize::blocks("q4_k").unwrap();
    let blocks = checkpoint(of_blocks).load_as(quantize, Precision::Bf16, true, &|_| {}).unwrap();
    count_decode_steps(Arc::new(blocks));
}

fn count_decode_steps(model: Arc<Decoder>) {
    const THREADS: usize = 2;
    let pool = Arc::new(Pool::new(THREADS));
    let all_here = Barrier::new(THREADS);
    pool.run(THREADS, &|_| {
        // Each thread takes one task, because none leaves before all are here.
        all_here.wait();
        WATCHED.with(|w| w.set(true));
    });
    WATCHED.with(|w| w.set(false));
    let runner = Runner::new(model, pool, Capacity { rows: 64, logit_rows: 8 }, 256).unwrap();
    let limits = Limits { max_rows: 8, max_tokens: 64, duty: 1.0 };
    let config = EngineConfig {
        device: "count".into(),
        limits,
        prefix_caching: true,
        run_ahead: false,
        faults: Default::default(),
        speculative_tokens: 0,
        max_queue: 64,
    };
    // With the steps kept for energy, as in a server with a meter.
    let observed = Observed::default();
    observed.steps.listen();
    let (engine, _) = spawn(runner, config, Clock::system(), observed).unwrap();

    let streams: Vec<_> = (0..8)
        .map(|i| {
            let mut r = request(&prompt(20, 517, i), WARM_UP + COUNTED + 20, greedy());
            r.constraint = (i == 0).then(|| Box::new(Watch { step: 0 }) as Box<dyn TokenConstraint>);
            engine.submit(r).unwrap()
        })
        .collect();
    for s in streams {
        assert_eq!(drain(s).0.len(), WARM_UP + COUNTED + 20);
    }
    ON.store(false, Ordering::Relaxed);
    let (count, largest) = (LARGE_ALLOCATIONS.load(Ordering::Relaxed), LARGEST.load(Ordering::Relaxed));
    assert_eq!(count, 0, "{count} allocations of {LARGE} bytes or more, the largest of {largest}");
}
