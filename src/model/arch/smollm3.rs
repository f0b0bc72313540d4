//! SmolLM3: as Llama, with layers in between that know no positions.

use super::llama;
use super::reader::ConfigReader;
use crate::model::LoadError;
use crate::model::spec::{DecoderSpec, RopeSpec};

pub(super) fn spec(c: &ConfigReader) -> Result<DecoderSpec, LoadError> {
    c.require("use_sliding_window", &false.into())?;
    let spec = llama::spec(c)?;
    // 1 where a layer has positions, whatever the key's name says.
    let turned = match c.numbers("no_rope_layers")? {
        Some(layers) if layers.len() == spec.layers => layers,
        Some(layers) => {
            let problem = format!("has {} entries for {} layers", layers.len(), spec.layers);
            return Err(c.error("no_rope_layers", problem));
        }
        None => {
            let interval = c.optional_usize("no_rope_layer_interval")?.unwrap_or(4).max(1);
            (1..=spec.layers).map(|layer| if layer % interval == 0 { 0.0 } else { 1.0 }).collect()
        }
    };
    let layer_ropes = turned.iter().map(|turned| usize::from(*turned == 0.0)).collect();
    let ropes = vec![spec.ropes[0].clone(), RopeSpec::none()];
    Ok(DecoderSpec { architecture: "smollm3", layer_ropes, ropes, ..spec })
}
