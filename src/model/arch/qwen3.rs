//! Qwen3, dense: as Llama, with an RMS norm on every query and key head.

use super::llama;
use super::qwen2;
use super::reader::ConfigReader;
use crate::model::LoadError;
use crate::model::spec::{DecoderSpec, QkNorm};

pub(super) fn spec(c: &ConfigReader) -> Result<DecoderSpec, LoadError> {
    let c = &c.or("head_dim", 128).or("max_position_embeddings", 32_768);
    let spec = llama::spec(c)?;
    let layer_windows = qwen2::windows(c, spec.layers)?;
    Ok(DecoderSpec { architecture: "qwen3", qk_norm: QkNorm::Head, mlp_bias: false, layer_windows, ..spec })
}
