//! The blocks of the KV cache: who holds them, and which full ones can be found again by content.
//!
//! A full block is known by a hash chained from its predecessor, down to a root of model, adapter and
//! tenant; on a hit its tokens are compared too. A block nobody holds keeps its content, and is found
//! again, until it is the least recently used and someone needs room. Knows ids only, no tensors.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;

/// Index of a block in the cache tensors.
pub type BlockId = u32;

/// Identifies a full block together with all tokens before it. 128 bits under per-process random
/// keys: nobody outside can aim for a collision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockHash(u64, u64);

const NONE: u32 = u32::MAX;

#[derive(Default)]
struct Block {
    holders: u32,
    /// Set while the block can be found by content.
    hash: Option<BlockHash>,
    tokens: Vec<u32>,
    /// Neighbours in the list of free blocks.
    previous: u32,
    next: u32,
}

/// Counts and finds blocks. Sequences reach it through their [`BlockTable`].
pub struct BlockPool {
    blocks: Vec<Block>,
    block_size: usize,
    /// Least recently used first.
    free_head: u32,
    free_tail: u32,
    free: usize,
    cached: HashMap<BlockHash, BlockId>,
    keys: (RandomState, RandomState),
}

/// The pool as sequences of one thread share it.
pub type SharedPool = Rc<RefCell<BlockPool>>;

impl BlockPool {
    pub fn new(blocks: usize, block_size: usize) -> SharedPool {
        let mut pool = BlockPool {
            blocks: (0..blocks).map(|_| Block::default()).collect(),
            block_size,
            free_head: NONE,
            free_tail: NONE,
            free: 0,
            cached: HashMap::with_capacity(blocks),
            keys: (RandomState::new(), RandomState::new()),
        };
        for block in &mut pool.blocks {
            block.tokens.reserve_exact(block_size);
        }
        (0..blocks as u32).for_each(|id| pool.push_free(id));
        Rc::new(RefCell::new(pool))
    }

    pub fn block_size(&self) -> usize {
        self.block_size
    }
    pub fn total(&self) -> usize {
        self.blocks.len()
    }
    /// Blocks nobody holds, cached content or not.
    pub fn free(&self) -> usize {
        self.free
    }
    /// Blocks some sequence holds.
    pub fn held(&self) -> usize {
        self.total() - self.free
    }
    /// Sequences that hold this block.
    pub fn holders(&self, id: BlockId) -> u32 {
        self.blocks[id as usize].holders
    }
    /// True when the block is full and findable.
    pub fn is_cached(&self, id: BlockId) -> bool {
        self.blocks[id as usize].hash.is_some()
    }

    /// The start of a hash chain. Requests of different salts never share blocks.
    pub fn root(&self, salt: u64) -> BlockHash {
        BlockHash(self.keys.0.hash_one(salt), self.keys.1.hash_one(salt))
    }

    /// The hash of a full block behind `parent`.
    pub fn chain(&self, parent: BlockHash, tokens: &[u32]) -> BlockHash {
        BlockHash(self.keys.0.hash_one((parent.0, tokens)), self.keys.1.hash_one((parent.1, tokens)))
    }

    /// The block with this content, if it is still there.
    fn find(&self, hash: BlockHash, tokens: &[u32]) -> Option<BlockId> {
        let id = *self.cached.get(&hash)?;
        (self.blocks[id as usize].tokens == tokens).then_some(id)
    }

    fn hold(&mut self, id: BlockId) {
        if self.blocks[id as usize].holders == 0 {
            self.unlink(id);
        }
        self.blocks[id as usize].holders += 1;
    }

    /// A block with no content, taken from the least recently used.
    fn allocate(&mut self) -> Option<BlockId> {
        let id = (self.free_head != NONE).then_some(self.free_head)?;
        self.unlink(id);
        self.forget(id);
        self.blocks[id as usize].holders = 1;
        Some(id)
    }

    fn release(&mut self, id: BlockId) {
        let block = &mut self.blocks[id as usize];
        block.holders -= 1;
        if block.holders == 0 {
            self.push_free(id);
        }
    }

    /// Makes a full block findable, unless its content is already.
    fn publish(&mut self, id: BlockId, hash: BlockHash, tokens: &[u32]) {
        if self.cached.contains_key(&hash) || self.blocks[id as usize].hash.is_some() {
            return;
        }
        self.cached.insert(hash, id);
        let block = &mut self.blocks[id as usize];
        block.hash = Some(hash);
        block.tokens.clear();
        block.tokens.extend_from_slice(tokens);
    }

    fn forget(&mut self, id: BlockId) {
        if let Some(hash) = self.blocks[id as usize].hash.take() {
            self.cached.remove(&hash);
        }
    }

    /// Appends to the free list. A block with nothing to find goes to the front: it is used first.
    fn push_free(&mut self, id: BlockId) {
        let front = self.blocks[id as usize].hash.is_none();
        let (previous, next) = if front { (NONE, self.free_head) } else { (self.free_tail, NONE) };
        self.blocks[id as usize].previous = previous;
        self.blocks[id as usize].next = next;
        match previous {
            NONE => self.free_head = id,
            p => self.blocks[p as usize].next = id,
        }
        match next {
            NONE => self.free_tail = id,
            n => self.blocks[n as usize].previous = id,
        }
        self.free += 1;
    }

    fn unlink(&mut self, id: BlockId) {
        let Block { previous, next, .. } = self.blocks[id as usize];
        match previous {
            NONE => self.free_head = next,
            p => self.blocks[p as usize].next = next,
        }
        match next {
            NONE => self.free_tail = previous,
            n => self.blocks[n as usize].previous = previous,
        }
        self.free -= 1;
    }
}

/// The blocks of one sequence, in order. Dropping it gives them back.
pub struct BlockTable {
    pool: SharedPool,
    blocks: Vec<BlockId>,
    /// Hash of the last published block of this sequence, and how many are published.
    chain: BlockHash,
    published: usize,
}

impl BlockTable {
    /// An empty table whose prefix chain starts from `salt`.
    pub fn new(pool: &SharedPool, salt: u64) -> BlockTable {
        let chain = pool.borrow().root(salt);
        BlockTable { pool: pool.clone(), blocks: Vec::new(), chain, published: 0 }
    }

    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Tokens the table has room for.
    pub fn capacity(&self) -> usize {
        self.blocks.len() * self.pool.borrow().block_size
    }

    /// Room for the ids of a sequence of `tokens`, so that decoding does not grow the table.
    pub fn reserve(&mut self, tokens: usize) {
        let blocks = tokens.div_ceil(self.pool.borrow().block_size);
        self.blocks.reserve_exact(blocks.saturating_sub(self.blocks.len()));
    }

    /// Takes the cached blocks that begin `tokens`, and returns how many tokens they hold. The last
    /// token is never taken: its logits are wanted. Only for an empty table.
    pub fn take_prefix(&mut self, tokens: &[u32]) -> usize {
        debug_assert!(self.blocks.is_empty(), "a prefix is taken first");
        let mut pool = self.pool.borrow_mut();
        let size = pool.block_size;
        let usable = tokens.len().saturating_sub(1) / size * size;
        for block in tokens[..usable].chunks_exact(size) {
            let hash = pool.chain(self.chain, block);
            let Some(id) = pool.find(hash, block) else { break };
            pool.hold(id);
            self.blocks.push(id);
            self.chain = hash;
        }
        self.published = self.blocks.len();
        self.blocks.len() * size
    }

    /// Blocks that must be allocated before the table has room for `tokens`.
    pub fn missing(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.pool.borrow().block_size).saturating_sub(self.blocks.len())
    }

    /// Makes room for `tokens`. False, and nothing taken, when there are not enough free blocks.
    pub fn grow_to(&mut self, tokens: usize) -> bool {
        let missing = self.missing(tokens);
        let mut pool = self.pool.borrow_mut();
        if missing > pool.free {
            return false;
        }
        for _ in 0..missing {
            match pool.allocate() {
                Some(id) => self.blocks.push(id),
                None => return false,
            }
        }
        true
    }

    /// Publishes the blocks that `computed` of these tokens have filled.
    pub fn publish(&mut self, tokens: &[u32], computed: usize) {
        let mut pool = self.pool.borrow_mut();
        let size = pool.block_size;
        while (self.published + 1) * size <= computed {
            let block = &tokens[self.published * size..(self.published + 1) * size];
            self.chain = pool.chain(self.chain, block);
            pool.publish(self.blocks[self.published], self.chain, block);
            self.published += 1;
        }
    }

    /// Lets nobody find the content of these blocks any more, also what was found here: it is not to be trusted.
    pub fn forget(&mut self) {
        let mut pool = self.pool.borrow_mut();
        for id in &self.blocks {
            pool.forget(*id);
        }
    }

    /// Gives all blocks back; the content of full ones stays findable.
    pub fn clear(&mut self, salt: u64) {
        let mut pool = self.pool.borrow_mut();
        // The end of the sequence is the least useful prefix: it is given back, and evicted, first.
        for id in self.blocks.drain(..).rev() {
            pool.release(id);
        }
        self.chain = pool.root(salt);
        self.published = 0;
    }
}

impl Drop for BlockTable {
    fn drop(&mut self) {
        self.clear(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(n: u32) -> Vec<u32> {
        (0..n).collect()
    }

    #[test]
    fn a_dropped_table_gives_its_blocks_back_and_its_prefix_is_found() {
        let pool = BlockPool::new(8, 4);
        let mut a = BlockTable::new(&pool, 1);
        assert_eq!(a.take_prefix(&tokens(10)), 0);
        assert!(a.grow_to(10));
        a.publish(&tokens(10), 10);
        let first = a.blocks().to_vec();
        assert_eq!(pool.borrow().held(), 3);
        drop(a);
        assert_eq!(pool.borrow().held(), 0);

        let mut b = BlockTable::new(&pool, 1);
        assert_eq!(b.take_prefix(&tokens(10)), 8);
        assert_eq!(b.blocks(), &first[..2]);
        // Another tenant finds nothing; another content finds nothing.
        assert_eq!(BlockTable::new(&pool, 2).take_prefix(&tokens(10)), 0);
        assert_eq!(BlockTable::new(&pool, 1).take_prefix(&[9; 10]), 0);
        // The last token is always computed.
        let mut c = BlockTable::new(&pool, 1);
        assert_eq!(c.take_prefix(&tokens(8)), 4);
        assert_eq!(pool.borrow().holders(first[0]), 2);
    }

    #[test]
    fn forgotten_blocks_are_found_by_nobody_and_can_be_published_anew() {
        let pool = BlockPool::new(8, 4);
        let fill = |salt| {
            let mut table = BlockTable::new(&pool, salt);
            let found = table.take_prefix(&tokens(10));
            assert!(table.grow_to(10));
            table.publish(&tokens(10), 10);
            (table, found)
        };
        drop(fill(1));
        drop(fill(2));
        let (mut broken, found) = fill(1);
        assert_eq!(found, 8);
        broken.forget();
        drop(broken);
        assert_eq!(fill(1).1, 0);
        assert_eq!((fill(1).1, fill(2).1), (8, 8), "others stay");
    }

    #[test]
    fn unpublished_blocks_are_reused_before_cached_ones() {
        let pool = BlockPool::new(4, 4);
        let mut a = BlockTable::new(&pool, 0);
        assert!(a.grow_to(8));
        a.publish(&tokens(8), 8);
        drop(a);
        let mut b = BlockTable::new(&pool, 5);
        assert!(b.grow_to(8));
        assert_eq!(BlockTable::new(&pool, 0).take_prefix(&tokens(9)), 8, "both prefix blocks survive");
        assert!(b.grow_to(12));
        // Now one of them had to go: the later one, which is worth less.
        assert_eq!(BlockTable::new(&pool, 0).take_prefix(&tokens(9)), 4);
        assert!(!b.grow_to(20), "there are four blocks");
        assert_eq!(b.blocks().len(), 3, "a failed growth takes nothing");
    }
}
