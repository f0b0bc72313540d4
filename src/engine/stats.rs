//! What a worker publishes about itself, read by metrics, readiness and placement without a lock.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crate::clock::Tick;

/// Counters and gauges of one engine. All are written by its worker thread only.
#[derive(Debug, Default)]
pub struct EngineStats {
    pub running: AtomicUsize,
    pub waiting: AtomicUsize,
    pub blocks_total: AtomicUsize,
    /// Blocks owned by sequences; free blocks that still carry a cached prefix do not count.
    pub blocks_held: AtomicUsize,
    /// Tokens a block holds.
    pub block_size: AtomicUsize,
    /// Prompt tokens looked up in, and found in, the prefix cache.
    pub prefix_queries: AtomicU64,
    pub prefix_hits: AtomicU64,
    pub preemptions: AtomicU64,
    pub steps: AtomicU64,
    /// Rows (tokens) of the last step, and of the largest step so far.
    pub last_rows: AtomicUsize,
    pub max_rows: AtomicUsize,
    /// Sequences in the largest step so far.
    pub max_sequences: AtomicUsize,
    pub prompt_tokens: AtomicU64,
    pub generated_tokens: AtomicU64,
    /// Tokens that were guessed and computed, and those of them that were right.
    pub guessed_tokens: AtomicU64,
    pub right_guesses: AtomicU64,
    /// Requests at encoders, and their texts that are not computed yet.
    pub encodes: AtomicUsize,
    pub encoder_texts: AtomicUsize,
    /// What encoders have computed: texts, their tokens, and padding beside them.
    pub encoded_texts: AtomicU64,
    pub encoded_tokens: AtomicU64,
    pub padding_tokens: AtomicU64,
    /// Clock reading of the worker's last sign of life, in nanoseconds; 0 before the first.
    pub heartbeat: AtomicU64,
    /// Prompts that begin alike find each other's blocks.
    pub prefix_caching: AtomicBool,
    /// True between the warm-up forward and the end of the worker.
    pub ready: AtomicBool,
}

impl EngineStats {
    pub fn beat(&self, now: Tick) {
        self.heartbeat.store(now.0.max(1), Ordering::Release);
    }

    /// True when the worker is up and has been silent for `max_age` at most, of the time after `from`. A worker that
    /// waits for work beats too, so silence means that a step hangs.
    pub fn is_alive(&self, now: Tick, from: Tick, max_age: std::time::Duration) -> bool {
        let last = Tick(self.heartbeat.load(Ordering::Acquire).max(from.0));
        self.ready.load(Ordering::Acquire) && now.since(last) <= max_age
    }
}
