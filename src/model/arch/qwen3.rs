//! Qwen3, dense: as Llama, with an RMS norm on every query and key head.

use super::llama;
use super::reader::ConfigReader;
use crate::model::LoadError;
use crate::model::spec::{DecoderSpec, QkNorm};

pub(super) fn spec(c: &ConfigReader) -> Result<DecoderSpec, LoadError> {
    c.require("use_sliding_window", &false.into())?;
    let c = &c.or("head_dim", 128).or("max_position_embeddings", 32_768);
    Ok(DecoderSpec { architecture: "qwen3", qk_norm: QkNorm::Head, mlp_bias: false, ..llama::spec(c)? })
}
