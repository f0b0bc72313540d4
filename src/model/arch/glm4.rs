//! GLM-4 (0414): norms before and behind, half of each head turned, its pairs side by side.

use super::llama;
use super::reader::ConfigReader;
use super::{FUSED_GATE_UP, HF_NAMES};
use crate::model::LoadError;
use crate::model::spec::{DecoderSpec, RopeSpec, TensorNames};

const NAMES: TensorNames = TensorNames {
    attention_out_norm: Some("model.layers.{}.post_self_attn_layernorm.weight"),
    mlp_out_norm: Some("model.layers.{}.post_mlp_layernorm.weight"),
    gate_up: FUSED_GATE_UP,
    ..HF_NAMES
};

pub(super) fn spec(c: &ConfigReader) -> Result<DecoderSpec, LoadError> {
    let c = &c.or("partial_rotary_factor", 0.5).or("head_dim", 128).or("max_position_embeddings", 131_072);
    let spec = llama::spec(c)?;
    let ropes = spec.ropes.iter().map(|rope| RopeSpec { interleaved: true, ..rope.clone() }).collect();
    Ok(DecoderSpec { architecture: "glm4", ropes, o_bias: false, names: &NAMES, ..spec })
}
