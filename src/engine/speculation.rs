//! Speculation: tokens that are guessed, computed in one step with the last known one, and kept where they are what
//! would have been chosen anyway (arXiv 2211.17192, with what a draw is made of fixed by seed and index).
//!
//! A guess changes no answer: every row is sampled as it would be without, from the same logits (where a row's do not
//! depend on the others: on processors always, on GPUs under `batch_invariant`) and the same random bits, so a guess is right or it is not, whatever the temperature. Guesses come
//! from what the sequence has said or read before ([`lookup`]), or from a smaller model (`draft`).

use crate::engine::draft::DraftModel;
use crate::engine::event::EngineError;
use crate::engine::live::Live;
use crate::engine::scheduler::Entry;

/// Tokens guessed in one step at most.
pub const MOST_GUESSES: usize = 64;
/// Tokens at the end of a sequence that must have been there before, and those that are looked at.
const SHORTEST_MATCH: usize = 2;
const LONGEST_MATCH: usize = 8;
/// Guesses for a sequence nothing is known of.
const FIRST_GUESSES: usize = 4;

/// Where guesses come from.
pub(super) enum Source {
    PromptLookup,
    Draft(Box<DraftModel>),
}

/// Guesses for the sequences of a resident.
pub(super) struct Speculation {
    pub source: Source,
    /// In one step, of all sequences together: each is a row more that the step computes.
    pub most: usize,
}

impl Speculation {
    /// Whether guesses are work of the device.
    pub fn has_model(&self) -> bool {
        matches!(self.source, Source::Draft(_))
    }

    /// Sequences that guesses are of use for.
    pub fn decoding(running: &[Entry<Live>]) -> usize {
        running.iter().filter(|entry| wanted(entry, 1) > 0).count()
    }

    /// Guesses for each running sequence that decodes.
    ///
    /// # Errors
    /// A step of the draft model that fails.
    pub fn guess(&mut self, running: &mut [Entry<Live>], vocab: usize) -> Result<(), EngineError> {
        let share = self.most / Self::decoding(running).max(1);
        for Entry { sequence, .. } in running.iter_mut() {
            sequence.guesses.clear();
        }
        match &mut self.source {
            Source::PromptLookup => {
                for entry in running {
                    let (wanted, sequence) = (wanted(entry, share), &mut entry.sequence);
                    lookup(&sequence.tokens, wanted, &mut sequence.guesses);
                }
                Ok(())
            }
            Source::Draft(draft) => {
                draft.guess(running, |entry| wanted(entry, share))?;
                // A vocabulary may be padded to another size.
                for Entry { sequence: s, .. } in running {
                    let known = s.guesses.iter().take_while(|token| (**token as usize) < vocab).count();
                    s.guesses.truncate(known);
                }
                Ok(())
            }
        }
    }
}

/// How many guesses a sequence may use: none if it does not decode, or its next choice depends on more than its tokens'
/// logits.
fn wanted(entry: &Entry<Live>, most: usize) -> usize {
    let Entry { sequence: s, payload: live } = entry;
    let decodes = s.uncomputed() == 1 && s.pending.is_none() && s.score_from.is_none();
    // The last token is chosen, not guessed.
    let left = live.max_tokens.saturating_sub(s.generated() + 1);
    match decodes && !live.ended && live.draws_by_logits() {
        true => live.trust.guesses().min(most).min(left),
        false => 0,
    }
}

/// How many tokens it is worth to guess: more while guesses are right, fewer when they are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trust(usize);

impl Default for Trust {
    fn default() -> Trust {
        Trust(FIRST_GUESSES)
    }
}

impl Trust {
    pub fn guesses(self) -> usize {
        self.0
    }

    /// So many of the guesses were right, from the first on.
    pub fn learn(&mut self, guessed: usize, right: usize) {
        self.0 = match right == guessed {
            true => (self.0.max(guessed) * 2).min(MOST_GUESSES),
            false => (right + 1).max(self.0 / 2),
        };
    }
}

/// Adds what may come next: what stands behind the longest earlier match of the end, of equal ones the last, and from
/// there on what was added, so that what goes in circles goes on. Looks at each token once; adds nothing when there is no
/// match.
fn lookup(tokens: &[u32], most: usize, guesses: &mut Vec<u32>) {
    let Some((last, before)) = tokens.split_last().filter(|_| most > 0) else { return };
    let mut best = (SHORTEST_MATCH - 1, tokens.len());
    for end in (1..=before.len()).rev().filter(|end| tokens[end - 1] == *last) {
        let longest = LONGEST_MATCH.min(end);
        let same =
            (1..longest).take_while(|back| tokens[end - 1 - back] == before[before.len() - back]).count() + 1;
        if same > best.0 {
            best = (same, end);
            if same == LONGEST_MATCH {
                break;
            }
        }
    }
    let behind = &tokens[best.1..];
    guesses.extend(behind.iter().cycle().take(most));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_next_stands_behind_the_longest_match() {
        let found = |tokens: &[u32], most| {
            let mut guesses = Vec::new();
            lookup(tokens, most, &mut guesses);
            guesses
        };
        assert_eq!(found(&[1, 2, 3, 4, 9, 1, 2], 3), [3, 4, 9]);
        // Of equal ones the last, which runs into the end itself.
        assert_eq!(found(&[1, 2, 3, 1, 2, 4, 1, 2], 5), [4, 1, 2, 4, 1]);
        // The longer one, though it is older.
        assert_eq!(found(&[5, 1, 2, 3, 7, 1, 2, 4, 5, 1, 2], 1), [3]);
        assert_eq!(found(&[7, 7, 7, 7], 3), [7; 3]);
        // One token is no match, nor is the end itself.
        assert!(found(&[1, 2, 3, 2], 4).is_empty());
        assert!(found(&[1, 2], 4).is_empty() && found(&[], 4).is_empty() && found(&[1, 1, 1], 0).is_empty());
    }

    #[test]
    fn guesses_grow_while_they_are_right() {
        let mut trust = Trust::default();
        trust.learn(4, 4);
        assert_eq!(trust.guesses(), 8);
        trust.learn(8, 2);
        assert_eq!(trust.guesses(), 4);
        trust.learn(4, 0);
        trust.learn(2, 0);
        assert_eq!(trust.guesses(), 1);
        (0..20).for_each(|_| trust.learn(trust.guesses(), trust.guesses()));
        assert_eq!(trust.guesses(), MOST_GUESSES);
    }
}
