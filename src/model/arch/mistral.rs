//! Mistral and Ministral: as Llama, with a sliding window in all or some layers.

use super::llama;
use super::reader::ConfigReader;
use crate::model::LoadError;
use crate::model::spec::DecoderSpec;

pub(super) fn spec(c: &ConfigReader) -> Result<DecoderSpec, LoadError> {
    let spec = llama::spec(&c.or("max_position_embeddings", 32_768))?;
    let layer_windows = c.windows(spec.layers, |_| true)?;
    Ok(DecoderSpec { architecture: "mistral", layer_windows, ..spec })
}
