//! Mistral: as Llama; its window, where it has one, is the longest context here.

use super::llama;
use super::reader::ConfigReader;
use crate::model::LoadError;
use crate::model::spec::DecoderSpec;

pub(super) fn spec(c: &ConfigReader) -> Result<DecoderSpec, LoadError> {
    let spec = llama::spec(&c.or("max_position_embeddings", 32_768))?;
    let max_positions = c.within_window(spec.max_positions)?;
    Ok(DecoderSpec { architecture: "mistral", max_positions, ..spec })
}
