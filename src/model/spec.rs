//! What a decoder is, as data: the decoder reads these flags and never asks for a model's name.
//!
//! `arch` makes a spec from a checkpoint's configuration. Work per token (FLOPs, bytes) follows from
//! the spec alone.

/// What reading a byte costs in the work model, in FLOP. Between the balance of CPUs (10 to 20) and that of
/// GPUs' tensor cores (200 to 300): it only weighs long contexts against short ones within a step.
const FLOP_PER_BYTE: f64 = 100.0;

/// How positions become angles.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeSpec {
    pub theta: f64,
    pub scaling: RopeScaling,
}

#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    None,
    /// All frequencies divided by the factor.
    Linear {
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, a smooth band between.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_positions: f64,
    },
}

impl RopeSpec {
    /// One frequency per pair of a head's dimensions: `[head_dim / 2]`, f32 as the peers compute it.
    pub fn inverse_frequencies(&self, head_dim: usize) -> Vec<f32> {
        (0..head_dim / 2)
            .map(|i| {
                let f = 1f32 / (self.theta as f32).powf((2 * i) as f32 / head_dim as f32);
                self.scaling.apply(f)
            })
            .collect()
    }
}

impl RopeScaling {
    fn apply(&self, frequency: f32) -> f32 {
        match *self {
            RopeScaling::None => frequency,
            RopeScaling::Linear { factor } => frequency / factor as f32,
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                let (factor, low, high) = (factor as f32, low_freq_factor as f32, high_freq_factor as f32);
                let original = original_max_positions as f32;
                let wavelength = 2.0 * std::f32::consts::PI / frequency;
                if wavelength < original / high {
                    frequency
                } else if wavelength > original / low {
                    frequency / factor
                } else {
                    let smooth = (original / wavelength - low) / (high - low);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
        }
    }
}

/// Names of a layer's tensors in its checkpoint; `{}` stands for the layer's index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorNames {
    pub embedding: &'static str,
    pub final_norm: &'static str,
    pub head: &'static str,
    pub input_norm: &'static str,
    pub post_attention_norm: &'static str,
    /// Without `.weight` / `.bias`, which the loader adds.
    pub q: &'static str,
    pub k: &'static str,
    pub v: &'static str,
    pub o: &'static str,
    pub q_norm: &'static str,
    pub k_norm: &'static str,
    pub gate: &'static str,
    pub up: &'static str,
    pub down: &'static str,
}

/// Type a checkpoint was saved in, as its configuration says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloatType {
    F32,
    F16,
    Bf16,
}

/// A decoder-only transformer with grouped-query attention and a gated feed-forward network.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderSpec {
    pub architecture: &'static str,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub intermediate: usize,
    pub vocab: usize,
    pub norm_eps: f32,
    pub rope: RopeSpec,
    pub max_positions: usize,
    pub tied_head: bool,
    /// RMS norm of every query and key head before the rotation.
    pub qk_norm: bool,
    pub qkv_bias: bool,
    pub o_bias: bool,
    pub mlp_bias: bool,
    pub float_type: FloatType,
    pub names: &'static TensorNames,
}

impl DecoderSpec {
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Weights of the matrix products of one layer.
    fn layer_parameters(&self) -> usize {
        self.hidden * (2 * self.q_width() + 2 * self.kv_width()) + 3 * self.hidden * self.intermediate
    }

    /// All parameters, norms and biases left out.
    pub fn parameters(&self) -> usize {
        let tables = if self.tied_head { 1 } else { 2 };
        self.layers * self.layer_parameters() + tables * self.vocab * self.hidden
    }

    /// Floating-point operations of one row at `position`, with or without the head.
    pub fn row_flops(&self, position: usize, with_logits: bool) -> f64 {
        let products = self.layers * self.layer_parameters();
        let attention = 2 * self.layers * self.q_width() * (position + 1);
        let head = if with_logits { self.vocab * self.hidden } else { 0 };
        2.0 * (products + attention + head) as f64
    }

    /// Of [`DecoderSpec::row_flops`], those for each position that a row sees.
    pub fn flops_per_key(&self) -> f64 {
        (4 * self.layers * self.q_width()) as f64
    }

    /// Weights that a row of a decode step is multiplied by: those of all layers, and of the head.
    pub fn step_parameters(&self) -> (usize, usize) {
        (self.layers * self.layer_parameters(), self.vocab * self.hidden)
    }

    /// Modelled work of a sequence's rows in a step of `step_rows` rows, in FLOP: its arithmetic, plus the
    /// bytes it reads (its keys and values once, its rows' part of the weights) at `FLOP_PER_BYTE`. Only
    /// ratios of it mean anything.
    pub fn chunk_work(&self, tokens: &std::ops::Range<usize>, logit_rows: usize, step_rows: usize) -> f64 {
        const ELEMENT_BYTES: usize = 2;
        let rows = tokens.len() as f64;
        let products = (self.layers * self.layer_parameters()) as f64;
        // Σ (position + 1) over the rows.
        let keys = rows * (tokens.start + tokens.end + 1) as f64 / 2.0;
        let attention = (2 * self.layers * self.q_width()) as f64 * keys;
        let head = (logit_rows * self.vocab * self.hidden) as f64;
        let cache = (self.kv_bytes_per_token(ELEMENT_BYTES) * tokens.end) as f64;
        let weights = (self.parameters() * ELEMENT_BYTES) as f64 * rows / step_rows.max(1) as f64;
        2.0 * (rows * products + attention + head) + FLOP_PER_BYTE * (cache + weights)
    }

    /// Bytes of keys and values one token occupies.
    pub fn kv_bytes_per_token(&self, element_bytes: usize) -> usize {
        2 * self.layers * self.kv_width() * element_bytes
    }
}
