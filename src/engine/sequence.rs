//! One sequence as the scheduler sees it: its tokens, how many are computed, and the blocks it owns.

use crate::engine::block_pool::{BlockTable, SharedPool};
use crate::engine::event::Tier;

/// Priority among sequences: tier first, then age. Smaller is served first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
    /// Where the step in flight samples its last token, while the host does not know it.
    pub pending: Option<u32>,
    /// What may come next: computed with the last token, and kept where it is what is chosen.
    pub guesses: Vec<u32>,
    /// Has all the tokens it may have, the last of them pending.
    pub complete: bool,
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
            pending: None,
            guesses: Vec::new(),
            complete: false,
            cached_tokens: 0,
            preemptions: 0,
        }
    }

    /// Tokens not yet computed: one while decoding, more while prefilling.
    pub fn uncomputed(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Guesses that a step may compute with the last token.
    pub fn usable_guesses(&self) -> usize {
        if self.uncomputed() == 1 && self.pending.is_none() { self.guesses.len() } else { 0 }
    }

    pub fn generated(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }

    /// Gives up the cache; everything is computed again when the sequence is next admitted.
    pub fn preempt(&mut self) {
        self.table.clear(self.salt);
        self.computed = 0;
        self.guesses.clear();
        self.preemptions += 1;
    }

    /// Gives back a prefix taken for an admission that then failed.
    pub fn give_back_prefix(&mut self) {
        self.table.clear(self.salt);
        self.computed = 0;
    }

    /// Tokens up to `end` will be in the cache when the step in flight is done.
    pub fn schedule(&mut self, end: usize) {
        self.computed = end;
    }

    /// One more token will be known: sample `index` of the step in flight.
    pub fn expect(&mut self, index: u32) {
        self.tokens.push(0);
        self.pending = Some(index);
    }

    /// The token that was expected.
    pub fn settle(&mut self, token: u32) {
        if self.pending.take().is_some()
            && let Some(last) = self.tokens.last_mut()
        {
            *last = token;
        }
    }

    /// Of the guesses in the cache, only those before `end` are what came next.
    pub fn take_back(&mut self, end: usize) {
        self.computed = self.computed.min(end);
    }

    /// Lets others find what is in the cache of the first `end` tokens.
    pub fn publish(&mut self, end: usize) {
        // Less, when it was preempted meanwhile.
        self.table.publish(&self.tokens, end.min(self.computed));
    }

    /// Tokens up to `computed` are in the cache, and known.
    pub fn advance(&mut self, computed: usize) {
        self.schedule(computed);
        self.publish(computed);
    }
}
