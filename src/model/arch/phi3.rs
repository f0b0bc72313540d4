//! Phi-3 and Phi-4: as Llama, with matrices in one tensor, and heads of which only a part is turned.

use super::llama;
use super::reader::ConfigReader;
use super::{FUSED_GATE_UP, HF_NAMES};
use crate::model::LoadError;
use crate::model::spec::{DecoderSpec, Parts, TensorNames};

const NAMES: TensorNames = TensorNames {
    qkv: Parts::Together("model.layers.{}.self_attn.qkv_proj"),
    gate_up: FUSED_GATE_UP,
    ..HF_NAMES
};

pub(super) fn spec(c: &ConfigReader) -> Result<DecoderSpec, LoadError> {
    let c = &c.or("rms_norm_eps", 1e-5).or("max_position_embeddings", 4096);
    let spec = llama::spec(c)?;
    let layer_windows = c.windows(spec.layers, |_| true)?;
    Ok(DecoderSpec { architecture: "phi3", layer_windows, names: &NAMES, ..spec })
}
