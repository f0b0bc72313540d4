//! Granite 3, dense: as Llama, with multipliers.

use super::llama;
use super::reader::ConfigReader;
use crate::model::LoadError;
use crate::model::spec::DecoderSpec;

pub(super) fn spec(c: &ConfigReader) -> Result<DecoderSpec, LoadError> {
    let multiplier = |key: &str| Ok::<_, LoadError>(c.optional_f64(key)?.unwrap_or(1.0) as f32);
    let residual = multiplier("residual_multiplier")?;
    let spec = llama::spec(c)?;
    // What a layer adds to the residual is multiplied. A norm does not see how long its input is, but for epsilon: so the
    // residual is divided by the multiplier instead, from the embedding on.
    Ok(DecoderSpec {
        architecture: "granite",
        embedding_scale: multiplier("embedding_multiplier")? / residual,
        norm_eps: spec.norm_eps / (residual * residual),
        attention_scale: multiplier("attention_multiplier")?,
        logit_scale: 1.0 / multiplier("logits_scaling")?,
        ..spec
    })
}
