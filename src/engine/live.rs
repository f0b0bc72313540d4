//! What the engine keeps of a request beside its sequence: whom it tells, how it samples, when it ends.
//!
//! Outcomes of sampling in, events out. Knows no scheduler and no device.

use std::sync::Arc;

use crate::clock::Tick;
use crate::engine::constraint::TokenConstraint;
use crate::engine::event::{
    EngineError, EventSender, FinishReason, GenerateRequest, SequenceStats, TokenEvent, TokenLogprob,
};
use crate::engine::sampler::{self, Draw, History, SamplingParams};
use crate::ops::sample::{Outcome, Samples};

pub(super) struct Live {
    pub events: EventSender,
    pub account: u64,
    params: SamplingParams,
    history: History,
    constraint: Option<Box<dyn TokenConstraint>>,
    mask: Vec<u32>,
    pub max_tokens: usize,
    min_tokens: usize,
    stop_tokens: Arc<[u32]>,
    /// Alternatives to report for the prompt's tokens, and what has been computed of them.
    prompt_logprobs: Option<usize>,
    prompt_scores: Vec<TokenLogprob>,
    pub stats: SequenceStats,
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
            ended: false,
            last_event: None,
        }
    }

    pub fn end(&mut self, event: TokenEvent) {
        self.last_event = Some(event);
        self.ended = true;
    }

    pub fn fail(&mut self, error: EngineError) {
        self.end(TokenEvent::failed(error));
    }

    /// True when this error ended it.
    pub fn failed_with(&self, error: &EngineError) -> bool {
        matches!(&self.last_event, Some(TokenEvent::Failed(e)) if **e == *error)
    }

    /// Adds the task of choosing the next token, after `generated` ones; asks the constraint, while the device
    /// works, what it may be.
    pub fn draw(&mut self, generated: usize, samples: &mut Samples) {
        if let Some(constraint) = &mut self.constraint {
            self.mask.fill(u32::MAX);
            constraint.fill_mask(&mut self.mask);
        }
        let draw = Draw {
            params: &self.params,
            history: &self.history,
            banned: if generated < self.min_tokens { &self.stop_tokens } else { &[] },
            mask: self.constraint.is_some().then_some(&self.mask),
            index: generated as u64,
        };
        draw.add_to(samples);
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

    /// Takes a sampled token, the `generated`-th: records and reports it, and ends the sequence where it must end.
    pub fn accept(&mut self, token: u32, outcome: Outcome<'_>, generated: usize, now: Tick) {
        if self.stats.first_token_at == Tick::default() {
            self.stats.first_token_at = now;
        }
        self.stats.generated_tokens = generated;
        self.history.record(&self.params, token);
        let logprob = self.params.logprobs.map(|_| Box::new(sampler::logprob(token, outcome)));
        if !self.events.send(TokenEvent::Token { id: token, logprob }) {
            self.ended = true;
            return;
        }
        let goes_on = self.constraint.as_mut().is_none_or(|c| c.accept(token));
        let reason = if self.stop_tokens.contains(&token) || !goes_on {
            Some(FinishReason::Stop)
        } else {
            (generated >= self.max_tokens).then_some(FinishReason::Length)
        };
        if let Some(reason) = reason {
            self.stats.finished_at = now;
            self.end(TokenEvent::Finished { reason, stats: Box::new(self.stats) });
        }
    }
}
