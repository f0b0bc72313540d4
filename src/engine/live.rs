//! What the engine keeps of a request beside its sequence: whom it tells, how it samples, when it ends.
//!
//! Outcomes of sampling in, events out. Knows no scheduler and no device.

use std::sync::Arc;

use crate::clock::Tick;
use crate::engine::constraint::{ConstraintError, TokenConstraint};
use crate::engine::event::{
    EngineError, EventSender, FinishReason, GenerateRequest, Guess, SequenceStats, TokenEvent, TokenLogprob,
};
use crate::engine::sampler::{self, Draw, History, SamplingParams};
use crate::engine::speculation::Trust;
use crate::ops::sample::{Outcome, Samples};

pub(super) struct Live {
    pub events: EventSender,
    pub account: u64,
    params: SamplingParams,
    history: History,
    constraint: Option<Box<dyn TokenConstraint>>,
    mask: Vec<u32>,
    /// Tokens that the constraint has forced and whose sequence does not have them yet.
    forced: Vec<u32>,
    pub max_tokens: usize,
    min_tokens: usize,
    stop_tokens: Arc<[u32]>,
    /// Alternatives to report for the prompt's tokens, and what has been computed of them.
    prompt_logprobs: Option<usize>,
    prompt_scores: Vec<TokenLogprob>,
    pub stats: SequenceStats,
    /// Tokens that it is thought to say.
    pub prediction: Arc<[u32]>,
    /// In guesses of its tokens.
    pub trust: Trust,
    /// Set when the sequence must leave after this step.
    pub ended: bool,
    /// What its client is told once it has left.
    pub last_event: Option<TokenEvent>,
}

impl Live {
    pub fn new(mut request: GenerateRequest, events: EventSender, vocab: usize, now: Tick) -> Live {
        request.sampling.merge_bias();
        let mask = request.constraint.as_ref().map_or(0, |_| vocab.div_ceil(32));
        Live {
            events,
            history: History::new(&request.sampling, &request.prompt),
            account: request.account,
            params: request.sampling,
            constraint: request.constraint,
            mask: vec![0; mask],
            forced: Vec::new(),
            max_tokens: request.max_tokens,
            min_tokens: request.min_tokens,
            stop_tokens: request.stop_token_ids,
            prompt_logprobs: request.prompt_logprobs,
            prompt_scores: Vec::new(),
            stats: SequenceStats {
                prompt_tokens: request.prompt.len(),
                queued_at: now,
                ..SequenceStats::default()
            },
            prediction: request.prediction,
            trust: Trust::default(),
            ended: false,
            last_event: None,
        }
    }

    pub fn end(&mut self, event: TokenEvent) {
        self.last_event = Some(event);
        self.ended = true;
    }

    /// One that has its end already keeps it.
    pub fn fail(&mut self, error: EngineError) {
        if !self.ended {
            self.end(TokenEvent::failed(error));
        }
    }

    /// True when this error ended it.
    pub fn failed_with(&self, error: &EngineError) -> bool {
        matches!(&self.last_event, Some(TokenEvent::Failed(e)) if **e == *error)
    }

    /// The tokens that the constraint wants before anything is sampled: they are computed with the prompt. One is left
    /// to be sampled, so that there is a step to tell them after.
    pub fn begin(&mut self, tokens: &mut Vec<u32>) {
        if let Err(error) = self.force(self.max_tokens.saturating_sub(1)) {
            return self.fail(error.into());
        }
        if self.forced.iter().any(|forced| self.stop_tokens.contains(forced)) {
            // One that ends the sequence is to be drawn, as any other end.
            self.forced.clear();
            self.constraint = self.constraint.as_ref().map(|constraint| constraint.again());
        }
        for &forced in &self.forced {
            self.history.record(&self.params, forced);
        }
        tokens.extend_from_slice(&self.forced);
    }

    /// Asks the constraint for what alone may come next, at most so many tokens. False when the sequence ends there.
    /// Where log-probabilities are wanted each token is computed on its own.
    fn force(&mut self, most: usize) -> Result<bool, ConstraintError> {
        match &mut self.constraint {
            Some(constraint) if self.params.logprobs.is_none() && self.prompt_logprobs.is_none() => {
                constraint.force(most, &mut self.forced)
            }
            _ => Ok(true),
        }
    }

    /// Adds the task of choosing the next token, after `generated` ones; asks the constraint, while the device
    /// works, what it may be. False when the constraint fails, which ends the request.
    pub fn draw(&mut self, generated: usize, samples: &mut Samples) -> bool {
        let mut banned: &[u32] = if generated < self.min_tokens { &self.stop_tokens } else { &[] };
        let mut masked = false;
        if let Some(constraint) = &mut self.constraint {
            self.mask.fill(0);
            masked = match constraint.fill_mask(&mut self.mask) {
                Ok(masked) => masked,
                Err(error) => {
                    self.fail(error.into());
                    return false;
                }
            };
            // A grammar that has come to its end is not kept going.
            if masked && !banned.is_empty() && !leaves_a_choice(&self.mask, banned) {
                banned = &[];
            }
        }
        let draw = Draw {
            params: &self.params,
            history: &self.history,
            banned,
            mask: masked.then_some(&self.mask),
            index: generated as u64,
        };
        draw.add_to(samples);
        true
    }

    /// True when the choice of a token depends on the logits alone, and not on how the tokens before it were taken.
    pub fn draws_by_logits(&self) -> bool {
        self.constraint.is_none() && !self.params.has_penalties()
    }

    /// True when all tokens that its draws are told of are below.
    pub fn names_only_below(&self, vocab: u32) -> bool {
        let biased = self.params.logit_bias.iter().map(|(token, _)| token);
        self.stop_tokens.iter().chain(biased).all(|token| *token < vocab)
    }

    pub fn stops_at(&self, token: u32) -> bool {
        self.stop_tokens.contains(&token)
    }

    /// Adds the task of scoring a token of the prompt.
    pub fn score(&self, token: u32, samples: &mut Samples) {
        sampler::score(token, self.prompt_logprobs.unwrap_or(0), samples);
    }

    /// Takes the score of a token of the prompt.
    pub fn take_score(&mut self, token: u32, outcome: Outcome<'_>) {
        if outcome.token().is_none() {
            return self.fail(EngineError::NonFiniteLogits);
        }
        self.prompt_scores.push(sampler::logprob(token, outcome));
    }

    /// Hands the scores of the prompt over, if they were asked for. True when they were.
    pub fn send_scores(&mut self) -> bool {
        let asked = self.prompt_logprobs.take().is_some();
        if asked {
            self.events.send(TokenEvent::Prompt(std::mem::take(&mut self.prompt_scores)));
        }
        asked
    }

    /// Takes a sampled token, the last of `tokens`, of which `prompt` are the prompt's: records and reports it, appends
    /// what the constraint then forces, and ends the sequence where it must end.
    pub fn accept(
        &mut self,
        tokens: &mut Vec<u32>,
        prompt: usize,
        outcome: Outcome<'_>,
        guess: Guess,
        now: Tick,
    ) {
        if self.stats.first_token_at == Tick::default() {
            self.stats.first_token_at = now;
        }
        let end = self.go_on(tokens, prompt, outcome, guess);
        self.stats.generated_tokens = tokens.len() - prompt;
        match end {
            Ok(None) => {}
            Ok(Some(reason)) => {
                self.stats.finished_at = now;
                self.end(TokenEvent::Finished { reason, stats: Box::new(self.stats) });
            }
            Err(error) => self.fail(error.into()),
        }
    }

    /// Hands one token over; false when nobody listens.
    fn tell(&mut self, id: u32, logprob: Option<Box<TokenLogprob>>, guess: Guess) -> bool {
        self.events.send(TokenEvent::Token { id, logprob, guess })
    }

    /// Tells the last token and what comes after it: an end, or the tokens that the constraint forces.
    fn go_on(
        &mut self,
        tokens: &mut Vec<u32>,
        prompt: usize,
        outcome: Outcome<'_>,
        guess: Guess,
    ) -> Result<Option<FinishReason>, ConstraintError> {
        let Some(&token) = tokens.last() else { return Ok(None) };
        let logprob = self.params.logprobs.map(|_| Box::new(sampler::logprob(token, outcome)));
        self.history.record(&self.params, token);
        let begun = std::mem::take(&mut self.forced);
        let forced = Guess::default();
        self.ended =
            !(begun.iter().all(|&id| self.tell(id, None, forced)) && self.tell(token, logprob, guess));
        if self.ended {
            return Ok(None);
        }
        let goes_on = self.constraint.as_mut().map_or(Ok(true), |c| c.accept(token))?;
        if self.stop_tokens.contains(&token) || !goes_on {
            return Ok(Some(FinishReason::Stop));
        }
        let left = self.max_tokens.saturating_sub(tokens.len() - prompt);
        if left == 0 {
            return Ok(Some(FinishReason::Length));
        }
        let goes_on = self.force(left)?;
        let mut reason = if goes_on { None } else { Some(FinishReason::Stop) };
        for forced in std::mem::take(&mut self.forced) {
            tokens.push(forced);
            self.history.record(&self.params, forced);
            if !self.tell(forced, None, Guess::default()) {
                self.ended = true;
                return Ok(None);
            }
            if self.stop_tokens.contains(&forced) {
                reason = Some(FinishReason::Stop);
                break;
            }
        }
        let full = tokens.len() - prompt >= self.max_tokens;
        Ok(reason.or(full.then_some(FinishReason::Length)))
    }
}

/// Whether a mask has a bit that is not one of the banned tokens'.
fn leaves_a_choice(mask: &[u32], banned: &[u32]) -> bool {
    let word_of = |(i, word): (usize, &u32)| {
        let of_word = banned.iter().filter(|token| **token as usize / 32 == i);
        word & !of_word.fold(0, |bits, token| bits | 1 << (token % 32))
    };
    mask.iter().enumerate().filter(|(_, word)| **word != 0).any(|word| word_of(word) != 0)
}

#[cfg(test)]
mod tests {
    use super::leaves_a_choice;

    #[test]
    fn a_choice_is_a_bit_beside_the_banned_ones() {
        assert!(leaves_a_choice(&[0, 0b11], &[32]));
        assert!(!leaves_a_choice(&[0, 0b11], &[32, 33, 7]));
        assert!(!leaves_a_choice(&[0, 0], &[]));
        assert!(leaves_a_choice(&[1, 0], &[1, 32]));
    }
}
