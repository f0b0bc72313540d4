//! Gemma 2: norms before and behind, windows in every other layer, scores and logits capped.

use super::HF_NAMES;
use super::llama;
use super::reader::ConfigReader;
use crate::model::LoadError;
use crate::model::spec::{DecoderSpec, FloatType, GateActivation, TensorNames};

const NAMES: TensorNames = TensorNames {
    attention_out_norm: Some("model.layers.{}.post_attention_layernorm.weight"),
    mlp_norm: Some("model.layers.{}.pre_feedforward_layernorm.weight"),
    mlp_out_norm: Some("model.layers.{}.post_feedforward_layernorm.weight"),
    ..HF_NAMES
};

/// What Gemma 2 and 3 share.
pub(super) fn gemma(c: &ConfigReader) -> Result<DecoderSpec, LoadError> {
    for key in ["hidden_activation", "hidden_act"] {
        c.require(key, &"gelu_pytorch_tanh".into())?;
    }
    let spec = llama::shape(&c.or("head_dim", 256).or("max_position_embeddings", 8192))?;
    let queries = c.optional_f64("query_pre_attn_scalar")?.unwrap_or(256.0);
    // In the type of the hidden states, as the reference has it.
    let root = (spec.hidden as f32).sqrt();
    let embedding_scale = match spec.float_type {
        FloatType::Bf16 => half::bf16::from_f32(root).to_f32(),
        FloatType::F16 => half::f16::from_f32(root).to_f32(),
        FloatType::F32 => root,
    };
    Ok(DecoderSpec {
        tied_head: c.bool_or("tie_word_embeddings", true)?,
        activation: GateActivation::GeluTanh,
        norm_offset: 1.0,
        attention_scale: 1.0 / (queries as f32).sqrt(),
        attention_cap: c.optional_cap("attn_logit_softcapping")?,
        logit_cap: c.optional_cap("final_logit_softcapping")?,
        embedding_scale,
        names: &NAMES,
        ..spec
    })
}

pub(super) fn spec(c: &ConfigReader) -> Result<DecoderSpec, LoadError> {
    let spec = gemma(c)?;
    let layer_windows = c.or("sliding_window", 4096).windows(spec.layers, |layer| layer % 2 == 0)?;
    Ok(DecoderSpec { architecture: "gemma2", layer_windows, ..spec })
}
