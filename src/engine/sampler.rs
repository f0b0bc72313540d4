//! From logits to a token: penalties, bias, temperature, top-k, min-p, top-p, a seeded draw, logprobs.
//!
//! One row of logits in, one token out. The draw is a function of (seed, index of the token) alone, so
//! neither the batch nor a preemption changes it. Log-probabilities are those of the raw logits.

use std::collections::HashMap;

use crate::engine::event::TokenLogprob;

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
    fn has_penalties(&self) -> bool {
        self.presence_penalty != 0.0 || self.frequency_penalty != 0.0 || self.repetition_penalty != 1.0
    }
}

/// What a sequence's sampling remembers: how often each token occurred.
#[derive(Debug, Default)]
pub struct History {
    /// (times in the output, is in the prompt); kept only under penalties.
    counts: HashMap<u32, (u32, bool)>,
}

impl History {
    pub fn new(params: &SamplingParams, prompt: &[u32]) -> History {
        let mut history = History::default();
        if params.has_penalties() {
            for &token in prompt {
                history.counts.entry(token).or_default().1 = true;
            }
        }
        history
    }

    pub fn record(&mut self, params: &SamplingParams, token: u32) {
        if params.has_penalties() {
            self.counts.entry(token).or_default().0 += 1;
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

/// The logits held a number that is not finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NonFinite;

/// Scratch memory for sampling, made once.
#[derive(Default)]
pub struct Sampler {
    work: Vec<f32>,
    candidates: Vec<(f32, u32)>,
}

impl Sampler {
    pub fn new(vocab: usize) -> Sampler {
        Sampler { work: Vec::with_capacity(vocab), candidates: Vec::with_capacity(vocab) }
    }

    /// The next token of a row of logits, with its log-probability when asked for.
    pub fn sample(&mut self, logits: &[f32], draw: &Draw) -> Result<(u32, Option<TokenLogprob>), NonFinite> {
        let best = argmax(logits)?;
        let p = draw.params;
        let changed =
            p.has_penalties() || !p.logit_bias.is_empty() || !draw.banned.is_empty() || draw.mask.is_some();
        let token = match (changed, p.temperature <= 0.0) {
            (false, true) => best,
            (true, true) => {
                self.adjust(logits, draw);
                // Finite entries remain: a mask never forbids everything, a ban leaves the rest.
                largest(&self.work)
            }
            (_, false) => {
                self.adjust(logits, draw);
                self.draw(p, uniform(p.seed, draw.index))
            }
        };
        let logprob = p.logprobs.map(|top| self.logprob(logits, token, top));
        Ok((token, logprob))
    }

    /// Copies the logits and applies bias, penalties and prohibitions.
    fn adjust(&mut self, logits: &[f32], draw: &Draw) {
        let p = draw.params;
        self.work.clear();
        self.work.extend_from_slice(logits);
        if p.has_penalties() {
            for (&token, &(count, in_prompt)) in &draw.history.counts {
                let Some(x) = self.work.get_mut(token as usize) else { continue };
                if count > 0 || in_prompt {
                    *x = if *x > 0.0 { *x / p.repetition_penalty } else { *x * p.repetition_penalty };
                }
                if count > 0 {
                    *x -= p.frequency_penalty * count as f32 + p.presence_penalty;
                }
            }
        }
        for &(token, bias) in &p.logit_bias {
            if let Some(x) = self.work.get_mut(token as usize) {
                *x += bias;
            }
        }
        for &token in draw.banned {
            if let Some(x) = self.work.get_mut(token as usize) {
                *x = f32::NEG_INFINITY;
            }
        }
        if let Some(mask) = draw.mask {
            for (i, x) in self.work.iter_mut().enumerate() {
                if mask.get(i / 32).is_none_or(|word| word >> (i % 32) & 1 == 0) {
                    *x = f32::NEG_INFINITY;
                }
            }
        }
    }

    /// Draws from the adjusted logits: the first candidate at which the cumulative mass passes `u`.
    fn draw(&mut self, p: &SamplingParams, u: f64) -> u32 {
        let best = largest(&self.work);
        let max = self.work[best as usize];
        let mass = |x: f32| f64::from((x - max) / p.temperature).exp();
        let floor = if p.min_p > 0.0 { max + p.temperature * p.min_p.ln() } else { f32::NEG_INFINITY };
        if p.top_k == 0 && p.top_p >= 1.0 {
            let kept = |x: &f32| *x >= floor && x.is_finite();
            let total: f64 = self.work.iter().filter(|x| kept(x)).map(|x| mass(*x)).sum();
            let mut left = u * total;
            for (i, x) in self.work.iter().enumerate().filter(|(_, x)| kept(x)) {
                left -= mass(*x);
                if left < 0.0 {
                    return i as u32;
                }
            }
            return best;
        }
        self.candidates.clear();
        let finite = self.work.iter().enumerate().filter(|(_, x)| **x >= floor && x.is_finite());
        self.candidates.extend(finite.map(|(i, x)| (*x, i as u32)));
        let limit = if p.top_k == 0 { usize::MAX } else { p.top_k };
        if limit < self.candidates.len() {
            self.candidates.select_nth_unstable_by(limit, by_rank);
            self.candidates.truncate(limit);
        }
        let total: f64 = self.candidates.iter().map(|c| mass(c.0)).sum();
        let kept = nucleus(&mut self.candidates, total * f64::from(p.top_p), mass);
        let mut left = u * self.candidates[..kept].iter().map(|c| mass(c.0)).sum::<f64>();
        for (x, token) in &self.candidates[..kept] {
            left -= mass(*x);
            if left < 0.0 {
                return *token;
            }
        }
        best
    }

    /// Log-probability of `token` and of the `top` most likely under the raw logits.
    pub fn logprob(&mut self, logits: &[f32], token: u32, top: usize) -> TokenLogprob {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|x| f64::from(x - max).exp()).sum();
        let log_sum = f64::from(max) + sum.ln();
        let logprob = |x: f32| (f64::from(x) - log_sum) as f32;
        self.candidates.clear();
        if top > 0 {
            self.candidates.extend(logits.iter().enumerate().map(|(i, x)| (*x, i as u32)));
            if top < self.candidates.len() {
                self.candidates.select_nth_unstable_by(top, by_rank);
                self.candidates.truncate(top);
            }
            self.candidates.sort_unstable_by(by_rank);
        }
        TokenLogprob {
            id: token,
            logprob: logits.get(token as usize).map_or(-9999.0, |x| logprob(*x)),
            top: self.candidates.iter().map(|(x, id)| (*id, logprob(*x))).collect(),
        }
    }
}

/// Most likely first; among equals the smaller id, so that the order is total.
fn by_rank(a: &(f32, u32), b: &(f32, u32)) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// Sorts just enough of the candidates to find how many of the most likely reach `target` mass.
fn nucleus(candidates: &mut [(f32, u32)], target: f64, mass: impl Fn(f32) -> f64) -> usize {
    let (mut sorted, mut reached) = (0, 0.0);
    while sorted < candidates.len() {
        let rest = &mut candidates[sorted..];
        // Four times as many each round: a peaked distribution never sorts the whole vocabulary.
        let next = (3 * sorted).max(64).min(rest.len());
        if next < rest.len() {
            rest.select_nth_unstable_by(next, by_rank);
        }
        rest[..next].sort_unstable_by(by_rank);
        for (i, c) in rest[..next].iter().enumerate() {
            reached += mass(c.0);
            if reached >= target {
                return sorted + i + 1;
            }
        }
        sorted += next;
    }
    candidates.len()
}

/// Index of the largest entry, the first among equals; an error when any entry is not finite.
fn argmax(logits: &[f32]) -> Result<u32, NonFinite> {
    // x × 0 is 0 for finite x and NaN otherwise; sixteen lanes so that the loop is vectorised.
    let mut lanes = [0f32; 16];
    let chunks = logits.chunks_exact(16);
    let tail = chunks.remainder();
    for chunk in chunks {
        for (l, x) in lanes.iter_mut().zip(chunk) {
            *l += x * 0.0;
        }
    }
    for (l, x) in lanes.iter_mut().zip(tail) {
        *l += x * 0.0;
    }
    if logits.is_empty() || lanes.iter().any(|l| *l != 0.0) {
        return Err(NonFinite);
    }
    Ok(largest(logits))
}

fn largest(values: &[f32]) -> u32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let chunks = values.chunks_exact(16);
    let tail = chunks.remainder();
    for chunk in chunks {
        for (l, x) in lanes.iter_mut().zip(chunk) {
            *l = if *x > *l { *x } else { *l };
        }
    }
    let max = lanes.iter().chain(tail).copied().fold(f32::NEG_INFINITY, f32::max);
    values.iter().position(|x| *x == max).unwrap_or(0) as u32
}

/// Uniform in [0, 1), a function of its arguments alone (splitmix64).
fn uniform(seed: u64, index: u64) -> f64 {
    let mut z = seed.wrapping_add((index + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}
