//! Which replica has seen a prompt's beginning: tokens in, replica and matching tokens out.
//!
//! An approximation kept here, so that placing a request asks no engine: a prompt's full blocks are remembered
//! with the replica it was sent to, under hashes chained from its salt (random per process). Two generations bound
//! the memory: what is not met again while one fills is forgotten. Knows nothing of load.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

/// Blocks remembered in a generation: at 16 tokens each, eight prompts of 128 Ki tokens, or 4,000 of 256.
const GENERATION: usize = 1 << 16;

#[derive(Default)]
pub struct Affinity {
    keys: RandomState,
    now: HashMap<u64, usize>,
    before: HashMap<u64, usize>,
}

impl Affinity {
    /// Hashes of a prompt's full blocks, each chained to those before it.
    fn chain<'a>(&'a self, prompt: &'a [u32], block: usize, salt: u64) -> impl Iterator<Item = u64> + 'a {
        let mut last = self.keys.hash_one(salt);
        prompt.chunks_exact(block.max(1)).map(move |tokens| {
            last = self.keys.hash_one((last, tokens));
            last
        })
    }

    /// The replica that has seen the longest beginning of the prompt, of those that `serves` allows, and how many
    /// tokens that is.
    pub fn find(
        &self,
        prompt: &[u32],
        block: usize,
        salt: u64,
        serves: impl Fn(usize) -> bool,
    ) -> Option<(usize, usize)> {
        let known = |hash: u64| self.now.get(&hash).or_else(|| self.before.get(&hash)).copied();
        let seen = self.chain(prompt, block, salt).map_while(known).enumerate();
        let (blocks, replica) = seen.filter(|(_, replica)| serves(*replica)).last()?;
        Some((replica, (blocks + 1) * block))
    }

    /// The prompt goes to this replica.
    pub fn note(&mut self, prompt: &[u32], block: usize, salt: u64, replica: usize) {
        let hashes: Vec<u64> = self.chain(prompt, block, salt).collect();
        for hash in hashes {
            if self.now.len() >= GENERATION {
                self.before = std::mem::take(&mut self.now);
            }
            self.now.insert(hash, replica);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_beginning_is_found_where_it_was_sent_last() {
        let mut affinity = Affinity::default();
        let prompt: Vec<u32> = (0..40).collect();
        affinity.note(&prompt, 16, 1, 0);
        assert_eq!(affinity.find(&prompt, 16, 1, |_| true), Some((0, 32)));
        let mut other = prompt.clone();
        other[20] = 99;
        assert_eq!(affinity.find(&other, 16, 1, |_| true), Some((0, 16)));
        affinity.note(&other, 16, 1, 1);
        // The shared block is the second one's now, the block behind it still the first one's.
        assert_eq!(affinity.find(&prompt, 16, 1, |_| true), Some((0, 32)));
        assert_eq!(affinity.find(&other, 16, 1, |_| true), Some((1, 32)));
        assert_eq!(affinity.find(&other, 16, 1, |replica| replica == 0), None);
        // Another tenant, another beginning, less than a block.
        assert_eq!(affinity.find(&prompt, 16, 2, |_| true), None);
        assert_eq!(affinity.find(&prompt[1..], 16, 1, |_| true), None);
        assert_eq!(affinity.find(&prompt[..15], 16, 1, |_| true), None);
    }

    #[test]
    fn what_is_not_met_again_is_forgotten() {
        let mut affinity = Affinity::default();
        affinity.note(&[7; 16], 16, 0, 1);
        for salt in 1..=2 * GENERATION as u64 {
            affinity.note(&[7; 16], 16, salt, 0);
        }
        assert_eq!(affinity.find(&[7; 16], 16, 0, |_| true), None);
        assert!(affinity.now.len() + affinity.before.len() <= 2 * GENERATION);
    }
}
