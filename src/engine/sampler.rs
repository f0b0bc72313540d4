//! From logits to a token: penalties, bias, temperature, top-k, top-p, min-p, seeded draw, logprobs.

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
