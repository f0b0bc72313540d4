//! What a decoder is, as data: the decoder reads these flags and never asks for a model's name.
//!
//! `arch` makes a spec from a checkpoint's configuration. Work per token (FLOPs, bytes) follows from
//! the spec alone.

/// What reading a byte costs in the work model, in FLOP. Between the balance of CPUs (10 to 20) and that of
/// GPUs' tensor cores (200 to 300): it only weighs long contexts against short ones within a step.
const FLOP_PER_BYTE: f64 = 100.0;

mod rope;
pub use rope::{RopeScaling, RopeSpec};

pub use crate::ops::activation::GateActivation;
use crate::ops::cache_type::CacheType;
use crate::ops::experts::Gating;
use crate::ops::paged_attention::AttentionLimits;

/// Matrices over the same input: apart, or one below the other in one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parts<const N: usize> {
    Apart([&'static str; N]),
    Together(&'static str),
}

/// Names of a layer's tensors in its checkpoint; `{}` stands for the layer's index. A norm without a name is one that
/// the model does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorNames {
    pub embedding: &'static str,
    pub final_norm: &'static str,
    pub head: &'static str,
    /// Before attention, and of what it adds to the residual.
    pub input_norm: Option<&'static str>,
    pub attention_out_norm: Option<&'static str>,
    /// The same of the feed-forward network.
    pub mlp_norm: Option<&'static str>,
    pub mlp_out_norm: Option<&'static str>,
    /// Without `.weight` / `.bias`, which the loader adds; so are those below.
    pub qkv: Parts<3>,
    pub o: &'static str,
    pub q_norm: &'static str,
    pub k_norm: &'static str,
    /// A number for each query head, where the model has attention sinks.
    pub sinks: Option<&'static str>,
    pub gate_up: Parts<2>,
    pub down: &'static str,
    /// Of layers with experts.
    pub experts: Option<ExpertNames>,
}

/// Names of the tensors of a layer's experts, without `.weight` and `.bias`; `{e}` stands for the expert's index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpertNames {
    pub router: &'static str,
    pub gate_up: Parts<2>,
    pub down: &'static str,
    /// Of the one that every row takes.
    pub shared_gate_up: Parts<2>,
    pub shared_down: &'static str,
    pub shared_gate: &'static str,
}

/// Feed-forward networks of which a router picks some for each row (arXiv 1701.06538).
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertSpec {
    pub gating: Gating,
    /// Of each.
    pub intermediate: usize,
    /// The router and each expert's matrices have biases.
    pub biases: bool,
    /// One that every row takes besides.
    pub shared: Option<SharedExpert>,
    /// Layers with a plain network in place of experts.
    pub dense_layers: Vec<usize>,
}

impl ExpertSpec {
    /// Of every layer, without biases, and none that every row takes.
    pub fn plain(gating: Gating, intermediate: usize) -> ExpertSpec {
        ExpertSpec { gating, intermediate, biases: false, shared: None, dense_layers: Vec::new() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedExpert {
    pub intermediate: usize,
    /// Its output is multiplied by σ of a number that is a product of the row.
    pub gated: bool,
}

/// Norms of queries and keys, before they are turned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    None,
    /// Of every head.
    Head,
    /// Of all heads together.
    Whole,
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
    /// The kinds of positions that its layers have.
    pub ropes: Vec<RopeSpec>,
    /// Which of them each layer has; all the first one where nothing is said.
    pub layer_ropes: Vec<usize>,
    /// Positions that a row of each layer sees, its own and those before it; `None`, and where nothing is said: all.
    pub layer_windows: Vec<Option<usize>>,
    pub max_positions: usize,
    pub tied_head: bool,
    pub qk_norm: QkNorm,
    pub qkv_bias: bool,
    pub o_bias: bool,
    pub mlp_bias: bool,
    /// What a token's embedding is multiplied by.
    pub embedding_scale: f32,
    /// Queries times keys, before the softmax.
    pub attention_scale: f32,
    /// cap · tanh(x / cap) in place of what goes into the softmax of attention.
    pub attention_cap: Option<f32>,
    pub logit_scale: f32,
    /// The same in place of logits.
    pub logit_cap: Option<f32>,
    pub activation: GateActivation,
    /// In place of the one feed-forward network of `intermediate`.
    pub experts: Option<ExpertSpec>,
    /// What is added to the weights of norms when they are read.
    pub norm_offset: f32,
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

    /// Whether what layers add to the residual is normed first.
    pub fn norms_outputs(&self) -> bool {
        self.names.attention_out_norm.is_some() || self.names.mlp_out_norm.is_some()
    }

    /// What a layer has besides plain causal attention.
    pub fn limits_of(&self, layer: usize) -> AttentionLimits {
        let window = self.layer_windows.get(layer).copied().flatten();
        AttentionLimits { window, soft_cap: self.attention_cap }
    }

    /// The kind of positions of a layer, by its place in `ropes`.
    pub fn rope_of(&self, layer: usize) -> usize {
        self.layer_ropes.get(layer).copied().unwrap_or(0)
    }

    /// Its context unless a longer one is asked for: LongRoPE's short factors are the better ones for short texts.
    pub fn usual_context(&self) -> usize {
        self.ropes.iter().filter_map(RopeSpec::original_context).fold(self.max_positions, usize::min)
    }

    /// Settles what depends on the context that is served: the one that is asked for, or the usual one.
    pub fn settle_context(&mut self, asked: Option<usize>) {
        let usual = self.usual_context();
        let context = asked.unwrap_or(usual);
        self.ropes.iter_mut().for_each(|rope| rope.settle(context));
        if context <= usual {
            self.max_positions = usual;
        }
    }

    /// The experts of a layer that has some.
    pub fn experts_of(&self, layer: usize) -> Option<&ExpertSpec> {
        self.experts.as_ref().filter(|experts| !experts.dense_layers.contains(&layer))
    }

    /// Weights of the matrix products of all layers, with so many experts in each that has some.
    fn product_parameters(&self, experts: impl Fn(&Gating) -> usize) -> usize {
        let (network, attention) =
            (3 * self.hidden, self.hidden * (2 * self.q_width() + 2 * self.kv_width()));
        let layer = |layer| match self.experts_of(layer) {
            None => attention + network * self.intermediate,
            Some(spec) => {
                let shared =
                    spec.shared.map_or(0, |s| network * s.intermediate + self.hidden * usize::from(s.gated));
                let router = self.hidden * spec.gating.experts;
                attention + router + shared + experts(&spec.gating) * network * spec.intermediate
            }
        };
        (0..self.layers).map(layer).sum()
    }

    /// Of the layers' matrices, those that one row meets.
    fn row_parameters(&self) -> usize {
        self.product_parameters(|gating| gating.per_token)
    }

    /// All parameters, norms and biases left out.
    pub fn parameters(&self) -> usize {
        let tables = if self.tied_head { 1 } else { 2 };
        self.product_parameters(|gating| gating.experts) + tables * self.vocab * self.hidden
    }

    /// Parameters that a step of so many rows reads, where each row takes its experts by chance.
    fn parameters_met(&self, rows: usize) -> usize {
        let met = |gating: &Gating| {
            let (all, of_row) = (gating.experts as f64, gating.per_token as f64);
            (all * (1.0 - (1.0 - of_row / all).powf(rows as f64))).round() as usize
        };
        self.parameters() - self.product_parameters(|gating| gating.experts) + self.product_parameters(met)
    }

    /// Parameters of experts that a step of so many rows reads, beyond those that one row takes.
    pub fn more_experts_met(&self, rows: usize) -> usize {
        (self.parameters_met(rows) - self.parameters_met(1)).min(self.parameters())
    }

    /// Floating-point operations of one row at `position`, with or without the head.
    pub fn row_flops(&self, position: usize, with_logits: bool) -> f64 {
        let products = self.row_parameters();
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
        (self.row_parameters(), self.vocab * self.hidden)
    }

    /// Weights of all layers, and of the head.
    pub fn held_parameters(&self) -> (usize, usize) {
        (self.product_parameters(|gating| gating.experts), self.vocab * self.hidden)
    }

    /// Modelled work of a sequence's rows in a step of `step_rows` rows, in FLOP: its arithmetic, plus the
    /// bytes it reads (its keys and values once, its rows' part of the weights) at `FLOP_PER_BYTE`. Only
    /// ratios of it mean anything.
    pub fn chunk_work(&self, tokens: &std::ops::Range<usize>, logit_rows: usize, step_rows: usize) -> f64 {
        const ELEMENT_BYTES: usize = 2;
        let rows = tokens.len() as f64;
        let products = self.row_parameters() as f64;
        // Σ (position + 1) over the rows.
        let keys = rows * (tokens.start + tokens.end + 1) as f64 / 2.0;
        let attention = (2 * self.layers * self.q_width()) as f64 * keys;
        let head = (logit_rows * self.vocab * self.hidden) as f64;
        let cache = (self.kv_bytes_per_token(CacheType::Bf16) * tokens.end) as f64;
        let weights =
            (self.parameters_met(step_rows) * ELEMENT_BYTES) as f64 * rows / step_rows.max(1) as f64;
        2.0 * (rows * products + attention + head) + FLOP_PER_BYTE * (cache + weights)
    }

    /// Bytes of keys and values one token occupies.
    pub fn kv_bytes_per_token(&self, cache: CacheType) -> usize {
        2 * self.layers * self.kv_heads * cache.bytes_per_head(self.head_dim)
    }
}
