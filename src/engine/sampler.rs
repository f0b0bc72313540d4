//! How a sequence samples, and the task that it sets the device for a row of logits.
//!
//! The draw's random bits are a function of (seed, index of the token) alone, so neither the batch nor a preemption
//! changes it. The sampling itself is `ops::sample`.

use std::collections::HashMap;

use crate::engine::event::TokenLogprob;
use crate::ops::sample::{NONE, Outcome, Samples, Task};

/// How one sequence samples. `Default` is plain sampling at temperature 1.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy.
    pub temperature: f32,
    /// 0 keeps all.
    pub top_k: usize,
    /// 1.0 keeps all.
    pub top_p: f32,
    /// 0.0 keeps all.
    pub min_p: f32,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    /// 1.0 is none; over prompt and output, as in the CTRL paper (arXiv 1909.05858).
    pub repetition_penalty: f32,
    /// Added to the logits of these tokens, −100..100.
    pub logit_bias: Vec<(u32, f32)>,
    /// The same seed, prompt and parameters give the same tokens whoever shares the batch.
    pub seed: u64,
    /// Number of alternatives to report with each token's log-probability; `None` reports nothing.
    pub logprobs: Option<usize>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            seed: 0,
            logprobs: None,
        }
    }
}

impl SamplingParams {
    /// Each token of the bias once, as the device wants it.
    pub fn merge_bias(&mut self) {
        self.logit_bias.sort_by_key(|(token, _)| *token);
        self.logit_bias.dedup_by(|next, kept| {
            let same = next.0 == kept.0;
            if same {
                kept.1 += next.1;
            }
            same
        });
    }

    pub(super) fn has_penalties(&self) -> bool {
        self.presence_penalty != 0.0 || self.frequency_penalty != 0.0 || self.repetition_penalty != 1.0
    }
}

/// What a sequence's sampling remembers: how often each token occurred. Kept only under penalties.
#[derive(Debug, Default)]
pub struct History {
    /// (token, times in the output; 0 for one of the prompt alone), each token once.
    seen: Vec<[u32; 2]>,
    places: HashMap<u32, usize>,
}

impl History {
    pub fn new(params: &SamplingParams, prompt: &[u32]) -> History {
        let mut history = History::default();
        if params.has_penalties() {
            for &token in prompt {
                history.add(token, 0);
            }
        }
        history
    }

    pub fn record(&mut self, params: &SamplingParams, token: u32) {
        if params.has_penalties() {
            self.add(token, 1);
        }
    }

    fn add(&mut self, token: u32, times: u32) {
        let place = *self.places.entry(token).or_insert(self.seen.len());
        match self.seen.get_mut(place) {
            Some(pair) => pair[1] += times,
            None => self.seen.push([token, times]),
        }
    }
}

/// One row to sample.
pub struct Draw<'a> {
    pub params: &'a SamplingParams,
    pub history: &'a History,
    /// Tokens that may not come now (stop tokens before `min_tokens`).
    pub banned: &'a [u32],
    /// One bit a token, least significant first; a cleared bit forbids it.
    pub mask: Option<&'a [u32]>,
    /// How many tokens the sequence has generated so far.
    pub index: u64,
}

impl Draw<'_> {
    /// The task of this row, its lists among the words of `samples`.
    pub fn add_to(&self, samples: &mut Samples) {
        let p = self.params;
        let bits = random(p.seed, self.index);
        let task = Task {
            temperature: p.temperature.max(0.0),
            top_p: p.top_p,
            ln_min_p: p.min_p.ln(),
            repetition_penalty: p.repetition_penalty,
            presence_penalty: p.presence_penalty,
            frequency_penalty: p.frequency_penalty,
            top_k: u32::try_from(p.top_k).unwrap_or(0),
            score: NONE,
            random: [bits as u32, (bits >> 32) as u32],
            seen: samples.pairs(self.history.seen.iter().copied()),
            bias: samples.pairs(p.logit_bias.iter().map(|(token, bias)| [*token, bias.to_bits()])),
            banned: samples.tokens(self.banned),
            mask: self.mask.map_or(NONE, |mask| samples.mask(mask)),
            top: p.logprobs.map_or(NONE, |top| top as u32),
        };
        samples.tasks.push(task);
    }
}

/// Adds a task that gives the log-probability of `token` and of the `top` most likely ones.
pub fn score(token: u32, top: usize, samples: &mut Samples) {
    samples.tasks.push(Task { score: token, top: top as u32, ..Task::GREEDY });
}

/// The log-probabilities of a row whose task asked for them.
pub fn logprob(token: u32, outcome: Outcome<'_>) -> TokenLogprob {
    TokenLogprob { id: token, logprob: outcome.logprob(), top: outcome.top().collect() }
}

/// 64 random bits, a function of the arguments alone (splitmix64).
fn random(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add((index + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_counts_outputs_and_knows_the_prompt() {
        let params = SamplingParams { presence_penalty: 0.5, ..SamplingParams::default() };
        let mut history = History::new(&params, &[5, 7, 5]);
        history.record(&params, 7);
        history.record(&params, 9);
        history.record(&params, 7);
        assert_eq!(history.seen, [[5, 0], [7, 2], [9, 1]]);
        assert!(History::new(&SamplingParams::default(), &[5]).seen.is_empty());
    }

    #[test]
    fn a_bias_given_twice_is_added_once() {
        let logit_bias = vec![(3, 1.0), (1, 2.0), (3, 0.5)];
        let mut params = SamplingParams { logit_bias, ..SamplingParams::default() };
        params.merge_bias();
        assert_eq!(params.logit_bias, [(1, 2.0), (3, 1.5)]);
    }
}
