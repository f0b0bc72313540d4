//! Qwen2 and 2.5: as Llama, with biases on queries, keys and values.

use super::llama;
use super::reader::ConfigReader;
use crate::model::LoadError;
use crate::model::spec::DecoderSpec;

pub(super) fn spec(c: &ConfigReader) -> Result<DecoderSpec, LoadError> {
    c.require("use_sliding_window", &false.into())?;
    let c = &c.or("max_position_embeddings", 32_768);
    Ok(DecoderSpec { architecture: "qwen2", qkv_bias: true, o_bias: false, ..llama::spec(c)? })
}
