//! Qwen1.5 and Qwen2 with experts: as Qwen2, with experts in place of feed-forward networks, and one that every row takes.

use super::qwen2;
use super::qwen3_moe;
use super::reader::ConfigReader;
use crate::model::LoadError;
use crate::model::spec::{DecoderSpec, SharedExpert};

pub(super) fn spec(c: &ConfigReader) -> Result<DecoderSpec, LoadError> {
    let spec = qwen2::spec(c)?;
    let qkv_bias = c.bool_or("qkv_bias", true)?;
    let shared = SharedExpert { intermediate: c.usize("shared_expert_intermediate_size")?, gated: true };
    let c = &c.or("num_experts", 60).or("num_experts_per_tok", 4);
    let experts = qwen3_moe::experts(c, spec.layers, Some(shared))?;
    Ok(DecoderSpec { architecture: "qwen2_moe", qkv_bias, experts: Some(experts), ..spec })
}
