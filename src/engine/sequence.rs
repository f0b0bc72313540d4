//! One sequence as the scheduler sees it: its tokens, how many are computed, and the blocks it owns.

use crate::engine::block_pool::{BlockTable, SharedPool};
use crate::engine::event::Tier;

/// Priority among sequences: tier first, then age. Smaller is served first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    pub tier: Tier,
    /// Order of arrival; unique.
    pub arrival: u64,
}

/// Tokens and blocks of a request. Owns its blocks: dropping it frees them.
pub struct Sequence {
    pub rank: Rank,
    /// Prompt, then what was generated.
    pub tokens: Vec<u32>,
    pub prompt_len: usize,
    /// Tokens whose keys and values are in the cache.
    pub computed: usize,
    pub table: BlockTable,
    salt: u64,
    /// May begin with blocks that another request filled.
    pub use_prefix: bool,
    /// Wants logits of its prompt's rows, from this position on (it moves as they are computed).
    pub score_from: Option<usize>,
    /// Of the prompt, found in the prefix cache at first admission.
    pub cached_tokens: usize,
    pub preemptions: usize,
}

impl Sequence {
    /// A sequence that will hold `max_len` tokens at most.
    pub fn new(rank: Rank, prompt: &[u32], max_len: usize, salt: u64, pool: &SharedPool) -> Sequence {
        let mut tokens = Vec::with_capacity(max_len.max(prompt.len()));
        tokens.extend_from_slice(prompt);
        let mut table = BlockTable::new(pool, salt);
        table.reserve(max_len);
        Sequence {
            rank,
            tokens,
            prompt_len: prompt.len(),
            computed: 0,
            table,
            salt,
            use_prefix: true,
            score_from: None,
            cached_tokens: 0,
            preemptions: 0,
        }
    }

    /// Tokens not yet computed: one while decoding, more while prefilling.
    pub fn uncomputed(&self) -> usize {
        self.tokens.len() - self.computed
    }

    pub fn generated(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }

    /// Gives up the cache; everything is computed again when the sequence is next admitted.
    pub fn preempt(&mut self) {
        self.table.clear(self.salt);
        self.computed = 0;
        self.preemptions += 1;
    }

    /// Gives back a prefix taken for an admission that then failed.
    pub fn give_back_prefix(&mut self) {
        self.table.clear(self.salt);
        self.computed = 0;
    }

    /// Records that tokens up to `computed` are in the cache.
    pub fn advance(&mut self, computed: usize) {
        self.computed = computed;
        self.table.publish(&self.tokens, computed);
    }
}
