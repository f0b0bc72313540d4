//! Mixtral: Mistral with experts in place of every feed-forward network; the weights of a row's experts add up to 1.

use super::HF_NAMES;
use super::mistral;
use super::reader::ConfigReader;
use crate::model::LoadError;
use crate::model::spec::{DecoderSpec, ExpertNames, ExpertSpec, Parts, TensorNames};
use crate::ops::experts::Gating;

const NAMES: TensorNames = TensorNames {
    experts: Some(ExpertNames {
        router: "model.layers.{}.block_sparse_moe.gate",
        gate_up: Parts::Apart([
            "model.layers.{}.block_sparse_moe.experts.{e}.w1",
            "model.layers.{}.block_sparse_moe.experts.{e}.w3",
        ]),
        down: "model.layers.{}.block_sparse_moe.experts.{e}.w2",
        shared_gate_up: Parts::Together(""),
        shared_down: "",
        shared_gate: "",
    }),
    ..HF_NAMES
};

pub(super) fn spec(c: &ConfigReader) -> Result<DecoderSpec, LoadError> {
    let spec = mistral::spec(&c.or("max_position_embeddings", 131_072))?;
    let gating = Gating {
        experts: c.optional_usize("num_local_experts")?.unwrap_or(8),
        per_token: c.optional_usize("num_experts_per_tok")?.unwrap_or(2),
        normalised: true,
    };
    let experts = Some(ExpertSpec::plain(gating, spec.intermediate));
    Ok(DecoderSpec { architecture: "mixtral", experts, names: &NAMES, ..spec })
}
