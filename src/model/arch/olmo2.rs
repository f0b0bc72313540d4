//! OLMo 2: norms behind attention and feed-forward network, and of all queries and of all keys together.

use super::HF_NAMES;
use super::llama;
use super::reader::ConfigReader;
use crate::model::LoadError;
use crate::model::spec::{DecoderSpec, QkNorm, TensorNames};

const NAMES: TensorNames = TensorNames {
    input_norm: None,
    attention_out_norm: Some("model.layers.{}.post_attention_layernorm.weight"),
    mlp_norm: None,
    mlp_out_norm: Some("model.layers.{}.post_feedforward_layernorm.weight"),
    ..HF_NAMES
};

pub(super) fn spec(c: &ConfigReader) -> Result<DecoderSpec, LoadError> {
    let c = &c.or("rms_norm_eps", 1e-5);
    Ok(DecoderSpec { architecture: "olmo2", qk_norm: QkNorm::Whole, names: &NAMES, ..llama::spec(c)? })
}
