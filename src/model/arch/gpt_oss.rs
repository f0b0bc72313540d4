//! gpt-oss: Llama with experts in place of every feed-forward network, biases everywhere, an attention sink for each head
//! and a window in every other layer. Its activation: [`GateActivation::ClampedSwiglu`].

use super::reader::ConfigReader;
use super::{HF_NAMES, llama};
use crate::model::LoadError;
use crate::model::spec::{DecoderSpec, ExpertNames, ExpertSpec, GateActivation, Parts, TensorNames};
use crate::ops::activation::{SWIGLU_ALPHA, SWIGLU_LIMIT};
use crate::ops::experts::Gating;

/// A checkpoint has the experts of a layer in one tensor; `weights::stacks` gives each its own.
const NAMES: TensorNames = TensorNames {
    sinks: Some("model.layers.{}.self_attn.sinks"),
    experts: Some(ExpertNames {
        router: "model.layers.{}.mlp.router",
        gate_up: Parts::Apart([
            "model.layers.{}.mlp.experts.{e}.gate_proj",
            "model.layers.{}.mlp.experts.{e}.up_proj",
        ]),
        down: "model.layers.{}.mlp.experts.{e}.down_proj",
        shared_gate_up: Parts::Together(""),
        shared_down: "",
        shared_gate: "",
    }),
    ..HF_NAMES
};

pub(super) fn spec(c: &ConfigReader) -> Result<DecoderSpec, LoadError> {
    let c = &c.or("rms_norm_eps", 1e-5).or("sliding_window", 128).or("max_position_embeddings", 131_072);
    c.require("hidden_act", &"silu".into())?;
    c.require("swiglu_limit", &f64::from(SWIGLU_LIMIT).into())?;
    // To the digits that files have.
    c.require("swiglu_alpha", &((f64::from(SWIGLU_ALPHA) * 1e6).round() / 1e6).into())?;
    let spec = llama::shape(c)?;
    let bias = c.bool_or("attention_bias", true)?;
    let per_token = match c.optional_usize("num_experts_per_tok")? {
        None => c.optional_usize("experts_per_token")?.unwrap_or(4),
        Some(count) => count,
    };
    let gating = Gating {
        experts: c.optional_usize("num_local_experts")?.unwrap_or(128),
        per_token,
        normalised: true,
    };
    let experts = ExpertSpec { biases: true, ..ExpertSpec::plain(gating, spec.intermediate) };
    Ok(DecoderSpec {
        architecture: "gpt_oss",
        qkv_bias: bias,
        o_bias: bias,
        layer_windows: c.windows(spec.layers, |layer| layer % 2 == 0)?,
        activation: GateActivation::ClampedSwiglu,
        experts: Some(experts),
        names: &NAMES,
        ..spec
    })
}
