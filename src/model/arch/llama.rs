//! Llama 1, 2 and 3.x, and what shares its shape (SmolLM2): `LlamaForCausalLM`.

use super::reader::ConfigReader;
use super::{HF_NAMES, MOST_LAYERS};
use crate::model::LoadError;
use crate::model::spec::{DecoderSpec, GateActivation, QkNorm};

/// The shape that most others differ from in a few places.
pub(super) fn spec(c: &ConfigReader) -> Result<DecoderSpec, LoadError> {
    c.require("hidden_act", &"silu".into())?;
    shape(c)
}

/// The same whatever the activation.
pub(super) fn shape(c: &ConfigReader) -> Result<DecoderSpec, LoadError> {
    let (hidden, heads) = (c.usize("hidden_size")?, c.usize("num_attention_heads")?);
    let head_dim = c.optional_usize("head_dim")?.unwrap_or(hidden / heads.max(1));
    let bias = c.bool_or("attention_bias", false)?;
    Ok(DecoderSpec {
        architecture: "llama",
        hidden,
        layers: c.usize_up_to("num_hidden_layers", MOST_LAYERS)?,
        heads,
        kv_heads: c.optional_usize("num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        intermediate: c.usize("intermediate_size")?,
        vocab: c.usize("vocab_size")?,
        norm_eps: c.optional_f64("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        ropes: vec![c.rope(head_dim)?],
        layer_ropes: Vec::new(),
        layer_windows: Vec::new(),
        max_positions: c.optional_usize("max_position_embeddings")?.unwrap_or(2048),
        tied_head: c.bool_or("tie_word_embeddings", false)?,
        qk_norm: QkNorm::None,
        qkv_bias: bias,
        o_bias: bias,
        mlp_bias: c.bool_or("mlp_bias", false)?,
        embedding_scale: 1.0,
        attention_scale: 1.0 / (head_dim as f32).sqrt(),
        attention_cap: None,
        logit_scale: 1.0,
        logit_cap: None,
        activation: GateActivation::Silu,
        experts: None,
        norm_offset: 0.0,
        float_type: c.float_type()?,
        names: &HF_NAMES,
    })
}
