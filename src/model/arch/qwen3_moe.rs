//! Qwen3 with experts: as Qwen3, with experts in place of most feed-forward networks.

use super::qwen3;
use super::reader::ConfigReader;
use crate::model::LoadError;
use crate::model::spec::{DecoderSpec, ExpertSpec, SharedExpert};
use crate::ops::experts::Gating;

pub(super) fn spec(c: &ConfigReader) -> Result<DecoderSpec, LoadError> {
    let spec = qwen3::spec(c)?;
    let experts = experts(&c.or("num_experts", 128).or("num_experts_per_tok", 8), spec.layers, None)?;
    Ok(DecoderSpec { architecture: "qwen3_moe", experts: Some(experts), ..spec })
}

/// Experts of every `decoder_sparse_step`-th layer, but for `mlp_only_layers`.
pub(super) fn experts(
    c: &ConfigReader,
    layers: usize,
    shared: Option<SharedExpert>,
) -> Result<ExpertSpec, LoadError> {
    let step = c.optional_usize("decoder_sparse_step")?.unwrap_or(1);
    if step == 0 {
        return Err(c.error("decoder_sparse_step", "0 is no step"));
    }
    let plain = c.numbers("mlp_only_layers")?.unwrap_or_default();
    let is_plain = |layer: &usize| !(layer + 1).is_multiple_of(step) || plain.contains(&(*layer as f64));
    Ok(ExpertSpec {
        gating: Gating {
            experts: c.usize("num_experts")?,
            per_token: c.usize("num_experts_per_tok")?,
            normalised: c.bool_or("norm_topk_prob", false)?,
        },
        intermediate: c.usize("moe_intermediate_size")?,
        biases: false,
        shared,
        dense_layers: (0..layers).filter(is_plain).collect(),
    })
}
