//! A smaller model that guesses what a larger one will say.
//!
//! It follows the sequences with a cache of its own, a step behind: first it reads what it has not seen, then it goes on
//! by itself, a token of every sequence in each of its steps. It draws with the parameters and the random bits that the
//! larger model will draw with, so that the two agree wherever their distributions do.

use std::collections::HashMap;

use crate::engine::batch::push_span;
use crate::engine::block_pool::{BlockPool, BlockTable, SharedPool};
use crate::engine::event::EngineError;
use crate::engine::live::Live;
use crate::engine::scheduler::Entry;
use crate::engine::sequence::Rank;
use crate::model::input::{BLOCK_SIZE, StepInput};
use crate::model::runner::Runner;
use crate::ops::sample::{Outcome, Samples};

/// What the draft model has read of a sequence.
struct Follower {
    table: BlockTable,
    /// The tokens whose keys and values are in its cache.
    read: Vec<u32>,
}

/// A sequence that is being guessed for.
struct Guessing {
    /// Among the running ones.
    sequence: usize,
    wanted: usize,
}

pub(super) struct DraftModel {
    runner: Runner,
    pool: SharedPool,
    followers: HashMap<Rank, Follower>,
    input: StepInput,
    samples: Samples,
    guessing: Vec<Guessing>,
}

impl DraftModel {
    pub fn new(runner: Runner) -> DraftModel {
        DraftModel {
            pool: BlockPool::new(runner.blocks(), BLOCK_SIZE),
            runner,
            followers: HashMap::new(),
            input: StepInput::default(),
            samples: Samples::default(),
            guessing: Vec::new(),
        }
    }

    /// Guesses tokens for the running sequences, as many as `wanted` says of each, or fewer: none while it has not read
    /// what is known, which takes a step for as many tokens as a step holds. True when it has computed anything.
    ///
    /// # Errors
    /// A step that fails: what it has read is to be forgotten.
    pub fn guess(
        &mut self,
        running: &mut [Entry<Live>],
        wanted: impl Fn(&Entry<Live>) -> usize,
    ) -> Result<bool, EngineError> {
        self.followers.retain(|rank, _| running.binary_search_by_key(rank, |e| e.sequence.rank).is_ok());
        self.catch_up(running, wanted);
        let works = self.input.rows() > 0;
        while self.input.rows() > 0 {
            let runner = &mut self.runner;
            let step = |e: candle_core::Error| EngineError::of_step(&e);
            runner.launch(&mut self.input).map_err(step)?;
            self.input.clear();
            if self.guessing.is_empty() {
                // It has read, and has nothing to say yet.
                break;
            }
            runner.sample(&self.samples).map_err(step)?;
            let results = runner.collect().map_err(step)?;
            let mut row = 0;
            self.guessing.retain(|guessing| {
                let Entry { sequence, payload } = &mut running[guessing.sequence];
                let token = Outcome::of(results, row).token();
                row += 1;
                // What ends a sequence is followed by nothing.
                token.is_some_and(|token| {
                    sequence.guesses.push(token);
                    sequence.guesses.len() < guessing.wanted && !payload.stops_at(token)
                })
            });
            self.go_on(running);
        }
        Ok(works)
    }

    /// Forgets what it has read: all sequences are read again.
    pub fn forget(&mut self) {
        self.followers.clear();
        self.guessing.clear();
    }

    /// Lays out what has not been read yet.
    fn catch_up(&mut self, running: &mut [Entry<Live>], wanted: impl Fn(&Entry<Live>) -> usize) {
        let capacity = self.runner.capacity();
        // It may be padded to another size.
        let vocab = self.runner.decoder().spec().vocab as u32;
        let mut room = capacity.rows;
        self.input.clear();
        self.samples.clear();
        self.guessing.clear();
        for (index, entry) in running.iter_mut().enumerate() {
            let wanted = wanted(entry);
            if wanted == 0 || room == 0 || self.guessing.len() == capacity.logit_rows {
                continue;
            }
            let Entry { sequence, payload } = entry;
            let (known, pool) = (sequence.tokens.len(), &self.pool);
            let follower = self.followers.entry(sequence.rank).or_insert_with(|| Follower {
                table: BlockTable::new(pool, 0),
                read: Vec::with_capacity(sequence.tokens.capacity()),
            });
            // The last known token is read again: its logits are wanted.
            let same =
                follower.read.iter().zip(&sequence.tokens[..known - 1]).take_while(|(a, b)| a == b).count();
            // What it has read is in its vocabulary.
            let knows = |tokens: &[u32]| tokens.iter().all(|token| *token < vocab);
            if !knows(&sequence.tokens[same..]) || !payload.names_only_below(vocab) {
                continue;
            }
            follower.read.truncate(same);
            if !follower.table.grow_to(known + wanted) {
                continue;
            }
            let end = known.min(same + room);
            let complete = end == known;
            let tokens = &sequence.tokens[same..end];
            push_span(&mut self.input, tokens, same, follower.table.blocks(), usize::from(complete));
            follower.read.extend_from_slice(tokens);
            room -= tokens.len();
            if complete && payload.draw(sequence.generated(), &mut self.samples) {
                self.guessing.push(Guessing { sequence: index, wanted });
            }
        }
    }

    /// Lays out the last guess of each sequence that wants more.
    fn go_on(&mut self, running: &mut [Entry<Live>]) {
        self.samples.clear();
        for guessing in &self.guessing {
            let Entry { sequence, payload } = &mut running[guessing.sequence];
            let Some(follower) = self.followers.get_mut(&sequence.rank) else { continue };
            let count = sequence.guesses.len();
            let last = &sequence.guesses[count - 1..];
            push_span(&mut self.input, last, follower.read.len(), follower.table.blocks(), 1);
            follower.read.extend_from_slice(last);
            payload.draw(sequence.generated() + count, &mut self.samples);
        }
    }
}
