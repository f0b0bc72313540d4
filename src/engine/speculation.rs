//! Speculation: tokens that are guessed, computed in one step with the last known one, and kept where they are what
//! would have been chosen anyway (arXiv 2211.17192, with what a draw is made of fixed by seed and index).
//!
//! A guess changes no answer: every row is sampled as it would be without, from the same logits (where a row's do not
//! depend on the others: on processors always, on GPUs under `batch_invariant`) and the same random bits, so a guess is right or it is not, whatever the temperature. Guesses come
//! from what the sequence has said or read before or is thought to say ([`lookup`]), or from a smaller model (`draft`).

use std::mem::Discriminant;

use crate::engine::draft::DraftModel;
use crate::engine::event::EngineError;
use crate::engine::live::Live;
use crate::engine::scheduler::Entry;

/// Tokens at the end of a sequence that must have been there before, and those that are looked at.
const SHORTEST_MATCH: usize = 2;
const LONGEST_MATCH: usize = 8;
/// Guesses for a sequence nothing is known of.
const FIRST_GUESSES: usize = 4;
/// Steps without guesses after the draft model has failed; twice as many after each further failure in a row.
const REST: usize = 16;
/// Failures in a row that end its guessing.
const MOST_FAILURES: u32 = 6;

/// Where guesses come from.
pub(super) enum Source {
    PromptLookup,
    Draft(Box<DraftModel>),
}

/// Guesses for the sequences of a resident.
pub(super) struct Speculation {
    source: Source,
    /// In one step, of all sequences together: each is a row more that the step computes.
    most: usize,
    health: Health,
}

/// What has gone wrong with the draft model.
#[derive(Default)]
struct Health {
    /// In a row.
    failures: u32,
    /// Steps until it is asked again.
    rest: usize,
    /// Kinds of errors that have been told.
    told: Vec<Discriminant<EngineError>>,
}

impl Health {
    fn fail(&mut self, error: &EngineError) {
        self.failures += 1;
        self.rest = REST << self.failures.min(MOST_FAILURES) >> 1;
        let kind = std::mem::discriminant(error);
        if error.is_of_the_device() || self.failures >= MOST_FAILURES {
            self.failures = MOST_FAILURES;
            tracing::error!(%error, "speculation: the draft model goes on failing; no more is guessed");
        } else if !self.told.contains(&kind) {
            self.told.push(kind);
            tracing::warn!(%error, "speculation: the draft model failed; it is tried again later");
        }
    }

    fn has_ended(&self) -> bool {
        self.failures >= MOST_FAILURES
    }
}

impl Speculation {
    pub fn new(source: Source, most: usize) -> Speculation {
        Speculation { source, most, health: Health::default() }
    }

    /// Whether guesses are work of the device.
    pub fn has_model(&self) -> bool {
        matches!(self.source, Source::Draft(_))
    }

    /// Whether the next step may have guesses, for which the tokens before them must be known.
    pub fn is_on(&self) -> bool {
        self.health.rest == 0 && !self.health.has_ended()
    }

    /// A step without guesses begins.
    pub fn rest(&mut self) {
        self.health.rest = self.health.rest.saturating_sub(1);
    }

    /// Sequences that guesses are of use for.
    pub fn decoding(running: &[Entry<Live>]) -> usize {
        running.iter().filter(|entry| wanted(entry, 1) > 0).count()
    }

    /// Guesses for each running sequence that decodes. A draft model that fails has none, and is asked again later.
    /// `fails`: it is to, for tests and drills.
    pub fn guess(&mut self, running: &mut [Entry<Live>], vocab: usize, fails: bool) {
        let share = self.most / Self::decoding(running).max(1);
        for Entry { sequence, .. } in running.iter_mut() {
            sequence.guesses.clear();
        }
        let draft = match &mut self.source {
            Source::PromptLookup => {
                for entry in running {
                    let (wanted, Entry { sequence, payload }) = (wanted(entry, share), entry);
                    lookup(&sequence.tokens, &payload.prediction, wanted, &mut sequence.guesses);
                }
                return;
            }
            Source::Draft(draft) => draft,
        };
        let guessed = draft.guess(running, |entry| wanted(entry, share)).and_then(|guessed| match fails {
            true => Err(EngineError::Step("the draft model's step, on order".into())),
            false => Ok(guessed),
        });
        match guessed {
            Ok(true) => self.health.failures = 0,
            Ok(false) => {}
            Err(error) => {
                draft.forget();
                running.iter_mut().for_each(|entry| entry.sequence.guesses.clear());
                self.health.fail(&error);
            }
        }
        // A vocabulary may be padded to another size.
        for Entry { sequence: s, .. } in running {
            let known = s.guesses.iter().take_while(|token| (**token as usize) < vocab).count();
            s.guesses.truncate(known);
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
            // No more than twice what a step has had room for.
            true => self.0.max(guessed * 2),
            false => (right + 1).max(self.0 / 2),
        };
    }
}

/// Adds what may come next: what stands behind the longest earlier match of the end, in what was predicted or in what was
/// read and said; of equal ones in the prediction, and the last. What was said goes on with what was added, so that what
/// goes in circles goes on: so must a prediction that does, and ends too early. Adds nothing when there is no match.
fn lookup(tokens: &[u32], prediction: &[u32], most: usize, guesses: &mut Vec<u32>) {
    if most == 0 {
        return;
    }
    let ((predicted, next), (said, behind)) =
        (longest_match(tokens, prediction), longest_match(tokens, tokens));
    let in_circles = said == LONGEST_MATCH && next.len() < most;
    match predicted.max(said) >= SHORTEST_MATCH {
        true if predicted >= said && !in_circles => guesses.extend(next.iter().take(most)),
        true => guesses.extend(behind.iter().cycle().take(most)),
        false => {}
    }
}

/// How many tokens before some place in `text`, not its end, are those that `tokens` end with, at most, and what stands
/// behind the last such place. Looks at each token once.
fn longest_match<'a>(tokens: &[u32], text: &'a [u32]) -> (usize, &'a [u32]) {
    let mut best = (0, text.len());
    for end in (1..text.len()).rev() {
        let pairs = text[..end].iter().rev().zip(tokens.iter().rev()).take(LONGEST_MATCH);
        let same = pairs.take_while(|(a, b)| a == b).count();
        if same > best.0 {
            best = (same, end);
            if same == LONGEST_MATCH {
                break;
            }
        }
    }
    (best.0, &text[best.1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_next_stands_behind_the_longest_match() {
        let found = |tokens: &[u32], most| {
            let mut guesses = Vec::new();
            lookup(tokens, &[], most, &mut guesses);
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
    fn what_was_predicted_comes_first_where_it_matches_as_well() {
        let found = |tokens: &[u32], prediction: &[u32], most| {
            let mut guesses = Vec::new();
            lookup(tokens, prediction, most, &mut guesses);
            guesses
        };
        let said = [1, 2, 3, 4, 9, 1, 2];
        assert_eq!(found(&said, &[7, 1, 2, 5, 6], 9), [5, 6]);
        assert_eq!(found(&said, &[7, 1, 2, 5, 6], 1), [5]);
        assert_eq!(found(&said, &[7, 2, 5, 6], 2), [3, 4]);
        assert_eq!(found(&[8, 9, 1, 2], &[9, 1, 2, 5, 1, 2, 6], 1), [5]);
        let circle = [1, 2].repeat(5);
        assert_eq!(found(&circle, &circle, 4), [1, 2, 1, 2]);
        // Behind its end nothing is predicted.
        assert_eq!(found(&said, &[9, 1, 2], 2), [3, 4]);
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
        (0..20).for_each(|_| {
            let guessed = trust.guesses().min(16);
            trust.learn(guessed, guessed);
        });
        assert_eq!(trust.guesses(), 32);
    }

    #[test]
    fn failures_in_a_row_end_it_and_others_do_not() {
        let speculation = |failures| {
            let mut speculation = Speculation::new(Source::PromptLookup, 4);
            for _ in 0..failures {
                assert!(speculation.is_on());
                speculation.health.fail(&EngineError::Step("no memory".into()));
                let mut rested = 0;
                while speculation.health.rest > 0 {
                    assert!(!speculation.is_on());
                    speculation.rest();
                    rested += 1;
                }
                assert_eq!(rested, REST << (speculation.health.failures - 1));
            }
            speculation
        };
        assert!(speculation(MOST_FAILURES - 1).is_on());
        assert!(!speculation(MOST_FAILURES).is_on());
        // A context that is lost does not come back.
        let mut lost = speculation(0);
        lost.health.fail(&EngineError::Device("lost".into()));
        (0..1000).for_each(|_| lost.rest());
        assert!(!lost.is_on());
    }
}
