//! Qwen2 and 2.5: as Llama, with biases on queries, keys and values.

use super::llama;
use super::reader::ConfigReader;
use crate::model::LoadError;
use crate::model::spec::DecoderSpec;

pub(super) fn spec(c: &ConfigReader) -> Result<DecoderSpec, LoadError> {
    let c = &c.or("max_position_embeddings", 32_768);
    let spec = llama::spec(c)?;
    let layer_windows = windows(c, spec.layers)?;
    Ok(DecoderSpec { architecture: "qwen2", qkv_bias: true, o_bias: false, layer_windows, ..spec })
}

/// Of layers from `max_window_layers` on, where they are asked for.
pub(super) fn windows(c: &ConfigReader, layers: usize) -> Result<Vec<Option<usize>>, LoadError> {
    if !c.bool_or("use_sliding_window", false)? {
        return Ok(Vec::new());
    }
    let first = c.optional_usize("max_window_layers")?.unwrap_or(28);
    c.or("sliding_window", 4096).windows(layers, |layer| layer >= first)
}
