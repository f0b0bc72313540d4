//! Gemma 3, its text model: as Gemma 2 without caps, with norms of queries and keys, and other positions where a layer
//! has a window.

use super::gemma2;
use super::reader::ConfigReader;
use crate::model::LoadError;
use crate::model::spec::{DecoderSpec, QkNorm, RopeSpec};

pub(super) fn spec(c: &ConfigReader) -> Result<DecoderSpec, LoadError> {
    c.require("use_bidirectional_attention", &false.into())?;
    let c = &c.or("rope_theta", 1_000_000).or("max_position_embeddings", 131_072).or("sliding_window", 4096);
    let spec = gemma2::gemma(c)?;
    let pattern = c.optional_usize("sliding_window_pattern")?.unwrap_or(6).max(1);
    let layer_windows = c.windows(spec.layers, |layer| (layer + 1) % pattern != 0)?;
    let whole = c.rope_of_kind("full_attention", spec.head_dim)?.unwrap_or_else(|| spec.ropes[0].clone());
    let local = match c.rope_of_kind("sliding_attention", spec.head_dim)? {
        Some(rope) => rope,
        None => {
            let theta = c.optional_f64("rope_local_base_freq")?.unwrap_or(10_000.0);
            RopeSpec::plain(theta, spec.head_dim)
        }
    };
    let layer_ropes = layer_windows.iter().map(|window| usize::from(window.is_some())).collect();
    let ropes = vec![whole, local];
    Ok(DecoderSpec {
        architecture: "gemma3",
        qk_norm: QkNorm::Head,
        layer_windows,
        layer_ropes,
        ropes,
        ..spec
    })
}
