//! The registry of architectures: which configuration becomes which spec.
//!
//! One file and one line here per architecture. This is the only folder that knows a model's name.

mod gemma2;
mod gemma3;
mod glm4;
mod gpt_oss;
mod granite;
mod llama;
mod mistral;
mod mixtral;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_moe;
pub mod reader;
mod smollm3;

use reader::ConfigReader;

use crate::model::LoadError;
use crate::model::spec::{DecoderSpec, ExpertNames, ExpertSpec, Parts, RopeScaling, TensorNames};
use crate::ops::experts::Gating;

/// Real decoders have up to some hundred.
pub(crate) const MOST_LAYERS: usize = 1 << 10;

type Build = fn(&ConfigReader) -> Result<DecoderSpec, LoadError>;

/// (name in `architectures`, `model_type`, builder).
const REGISTRY: &[(&str, &str, Build)] = &[
    ("Gemma2ForCausalLM", "gemma2", gemma2::spec),
    ("Gemma3ForCausalLM", "gemma3_text", gemma3::spec),
    ("Glm4ForCausalLM", "glm4", glm4::spec),
    ("GptOssForCausalLM", "gpt_oss", gpt_oss::spec),
    ("GraniteForCausalLM", "granite", granite::spec),
    ("LlamaForCausalLM", "llama", llama::spec),
    ("MinistralForCausalLM", "ministral", mistral::spec),
    ("MistralForCausalLM", "mistral", mistral::spec),
    ("MixtralForCausalLM", "mixtral", mixtral::spec),
    ("Olmo2ForCausalLM", "olmo2", olmo2::spec),
    ("Phi3ForCausalLM", "phi3", phi3::spec),
    ("Qwen2ForCausalLM", "qwen2", qwen2::spec),
    ("Qwen2MoeForCausalLM", "qwen2_moe", qwen2_moe::spec),
    ("Qwen3ForCausalLM", "qwen3", qwen3::spec),
    ("Qwen3MoeForCausalLM", "qwen3_moe", qwen3_moe::spec),
    ("SmolLM3ForCausalLM", "smollm3", smollm3::spec),
];

/// What `architectures` of a `config.json` may say.
pub fn known() -> impl Iterator<Item = &'static str> {
    REGISTRY.iter().map(|(name, _, _)| *name)
}

/// Names most decoders use.
pub(crate) const HF_NAMES: TensorNames = TensorNames {
    embedding: "model.embed_tokens.weight",
    final_norm: "model.norm.weight",
    head: "lm_head.weight",
    input_norm: Some("model.layers.{}.input_layernorm.weight"),
    attention_out_norm: None,
    mlp_norm: Some("model.layers.{}.post_attention_layernorm.weight"),
    mlp_out_norm: None,
    qkv: Parts::Apart([
        "model.layers.{}.self_attn.q_proj",
        "model.layers.{}.self_attn.k_proj",
        "model.layers.{}.self_attn.v_proj",
    ]),
    o: "model.layers.{}.self_attn.o_proj",
    q_norm: "model.layers.{}.self_attn.q_norm.weight",
    k_norm: "model.layers.{}.self_attn.k_norm.weight",
    sinks: None,
    gate_up: Parts::Apart(["model.layers.{}.mlp.gate_proj", "model.layers.{}.mlp.up_proj"]),
    down: "model.layers.{}.mlp.down_proj",
    experts: Some(ExpertNames {
        router: "model.layers.{}.mlp.gate",
        gate_up: Parts::Apart([
            "model.layers.{}.mlp.experts.{e}.gate_proj",
            "model.layers.{}.mlp.experts.{e}.up_proj",
        ]),
        down: "model.layers.{}.mlp.experts.{e}.down_proj",
        shared_gate_up: Parts::Apart([
            "model.layers.{}.mlp.shared_expert.gate_proj",
            "model.layers.{}.mlp.shared_expert.up_proj",
        ]),
        shared_down: "model.layers.{}.mlp.shared_expert.down_proj",
        shared_gate: "model.layers.{}.mlp.shared_expert_gate",
    }),
};

/// The same without the part of the model that they are in: of checkpoints that have nothing else.
pub(crate) const BARE_NAMES: TensorNames = TensorNames {
    embedding: "embed_tokens.weight",
    final_norm: "norm.weight",
    head: "lm_head.weight",
    input_norm: Some("layers.{}.input_layernorm.weight"),
    attention_out_norm: None,
    mlp_norm: Some("layers.{}.post_attention_layernorm.weight"),
    mlp_out_norm: None,
    qkv: Parts::Apart([
        "layers.{}.self_attn.q_proj",
        "layers.{}.self_attn.k_proj",
        "layers.{}.self_attn.v_proj",
    ]),
    o: "layers.{}.self_attn.o_proj",
    q_norm: "layers.{}.self_attn.q_norm.weight",
    k_norm: "layers.{}.self_attn.k_norm.weight",
    sinks: None,
    gate_up: Parts::Apart(["layers.{}.mlp.gate_proj", "layers.{}.mlp.up_proj"]),
    down: "layers.{}.mlp.down_proj",
    experts: None,
};

/// Gate and up in one tensor.
const FUSED_GATE_UP: Parts<2> = Parts::Together("model.layers.{}.mlp.gate_up_proj");

/// The spec of a `config.json`.
///
/// # Errors
/// An unknown architecture, a missing key, or an option that this server cannot honour; each names
/// file and key.
pub fn spec_of(file: &str, config: &serde_json::Value) -> Result<DecoderSpec, LoadError> {
    let reader = ConfigReader::new(file, config)?;
    let declared = reader.first_string("architectures");
    let model_type = reader.optional_str("model_type")?;
    let found = REGISTRY.iter().find(|(name, kind, _)| match declared {
        Some(d) => d == *name,
        None => model_type == Some(*kind),
    });
    let Some((_, _, build)) = found else {
        let known: Vec<&str> = known().collect();
        let name = declared.or(model_type).unwrap_or("none");
        return Err(reader.error(
            "architectures",
            format!("`{name}` is not an architecture this server has; it has {}", known.join(", ")),
        ));
    };
    let spec = build(&reader)?;
    check_with(&reader, &spec)?;
    Ok(spec)
}

/// Of a spec that was changed after it was read: as [`spec_of`].
///
/// # Errors
/// A spec that no decoder can have.
pub(super) fn check(file: &str, config: &serde_json::Value, spec: &DecoderSpec) -> Result<(), LoadError> {
    check_with(&ConfigReader::new(file, config)?, spec)
}

/// Relations every decoder must satisfy, so that no later code divides by zero or overflows.
fn check_with(reader: &ConfigReader, s: &DecoderSpec) -> Result<(), LoadError> {
    const MAX: usize = 1 << 24;
    let sizes = [
        ("hidden_size", s.hidden),
        ("num_hidden_layers", s.layers),
        ("num_attention_heads", s.heads),
        ("num_key_value_heads", s.kv_heads),
        ("head_dim", s.head_dim),
        ("intermediate_size", s.intermediate),
        ("vocab_size", s.vocab),
        ("max_position_embeddings", s.max_positions),
    ];
    for (key, value) in sizes {
        if value == 0 || value > MAX {
            return Err(reader.error(key, format!("{value} is not between 1 and {MAX}")));
        }
    }
    if !s.heads.is_multiple_of(s.kv_heads) {
        return Err(reader.error(
            "num_key_value_heads",
            format!("{} query heads do not share {} key heads evenly", s.heads, s.kv_heads),
        ));
    }
    if !s.head_dim.is_multiple_of(8) || s.head_dim > 256 {
        return Err(reader.error("head_dim", format!("{} is not a multiple of 8 up to 256", s.head_dim)));
    }
    for rope in &s.ropes {
        if !rope.turned.is_multiple_of(2) || rope.turned > s.head_dim {
            let problem = format!("turns {} numbers of heads of {}", rope.turned, s.head_dim);
            return Err(reader.error("partial_rotary_factor", problem));
        }
        let (short, long) = match &rope.scaling {
            RopeScaling::Each { factors, .. } => (Some(factors), None),
            RopeScaling::Long { short, long, .. } => (Some(short), Some(long)),
            _ => (None, None),
        };
        for (key, factors) in [("rope_scaling.short_factor", short), ("rope_scaling.long_factor", long)] {
            let Some(factors) = factors else { continue };
            if factors.len() != rope.turned / 2 || factors.iter().any(|f| !f.is_finite() || *f <= 0.0) {
                let problem =
                    format!("{} factors for {} pairs, each above 0", factors.len(), rope.turned / 2);
                return Err(reader.error(key, problem));
            }
        }
    }
    if !s.norm_eps.is_finite() || s.norm_eps < 0.0 {
        let problem = format!("comes to {}, which is no finite number from 0 on", s.norm_eps);
        return Err(reader.error("rms_norm_eps", problem));
    }
    if let Some(experts) = &s.experts {
        check_experts(reader, s, experts)?;
    }
    for (key, scale) in [
        ("embedding_multiplier", s.embedding_scale),
        ("attention_multiplier", s.attention_scale),
        ("logits_scaling", s.logit_scale),
    ] {
        if !scale.is_finite() || scale <= 0.0 {
            return Err(reader.error(key, format!("comes to {scale}, which is no finite number above 0")));
        }
    }
    Ok(())
}

fn check_experts(reader: &ConfigReader, s: &DecoderSpec, experts: &ExpertSpec) -> Result<(), LoadError> {
    const MOST_EXPERTS: usize = 1024;
    const MOST_OF_A_ROW: usize = 64;
    let Gating { experts: count, per_token, .. } = experts.gating;
    if count == 0 || count > MOST_EXPERTS {
        let key = if reader.has("num_local_experts") { "num_local_experts" } else { "num_experts" };
        return Err(reader.error(key, format!("{count} is not between 1 and {MOST_EXPERTS}")));
    }
    let most = count.min(MOST_OF_A_ROW);
    if per_token == 0 || per_token > most {
        let problem = format!("{per_token} is not between 1 and {most}");
        return Err(reader.error("num_experts_per_tok", problem));
    }
    let shared = experts.shared.map_or(1, |shared| shared.intermediate);
    for (key, width) in
        [("moe_intermediate_size", experts.intermediate), ("shared_expert_intermediate_size", shared)]
    {
        if width == 0 || width > 1 << 24 {
            return Err(reader.error(key, format!("{width} is not between 1 and {}", 1 << 24)));
        }
    }
    if s.names.mlp_out_norm.is_some() || s.mlp_bias {
        return Err(
            reader.error("architectures", "experts have neither Llama's biases nor a norm behind them here")
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::checkpoint::{PRESETS, preset_config};
    use crate::model::encoder::ENCODER_PRESETS;

    fn llama() -> serde_json::Value {
        serde_json::json!({
            "architectures": ["LlamaForCausalLM"], "hidden_size": 2048, "num_hidden_layers": 16,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 8192,
            "vocab_size": 128256, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
            "hidden_act": "silu", "rope_scaling": {"rope_type": "llama3", "factor": 32.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
        })
    }

    #[test]
    fn a_llama_configuration_becomes_a_spec() {
        let spec = spec_of("config.json", &llama()).unwrap();
        assert_eq!((spec.hidden, spec.kv_heads, spec.head_dim), (2048, 8, 64));
        assert!(matches!(spec.ropes[0].scaling, RopeScaling::Llama3 { .. }));
        assert_eq!(spec.parameters(), 1_235_746_816);
    }

    #[test]
    fn what_cannot_be_honoured_is_named() {
        for (key, value) in [
            ("hidden_act", serde_json::json!("gelu_new")),
            ("num_key_value_heads", serde_json::json!(5)),
            ("hidden_size", serde_json::json!(-3)),
            ("vocab_size", serde_json::json!(1e300)),
            ("rope_scaling", serde_json::json!({"rope_type": "dynamic", "factor": 2.0})),
            ("architectures", serde_json::json!(["MambaForCausalLM"])),
        ] {
            let mut config = llama();
            config[key] = value;
            let error = spec_of("config.json", &config).unwrap_err().to_string();
            assert!(error.contains("config.json") && error.contains(key), "{error}");
        }
    }

    /// Of all that is published of a shape, the number that no wrong one of it gives by chance.
    #[test]
    fn presets_have_the_parameters_that_their_models_are_said_to_have() {
        for (name, card) in PRESETS {
            let card: toml::Value = toml::from_str(card).unwrap();
            let text = |key: &str| card.get(key).and_then(toml::Value::as_str).unwrap_or_default();
            assert_eq!(text("name"), *name);
            for key in ["repo", "licence", "parameters_source"] {
                assert!(!text(key).is_empty(), "{name}: no {key}");
            }
            let said = card.get("parameters").and_then(toml::Value::as_float).unwrap();
            let spec = spec_of(name, &preset_config(name).unwrap()).unwrap();
            let ratio = spec.parameters() as f64 / said;
            assert!((0.98..1.02).contains(&ratio), "{name}: {} parameters", spec.parameters());
        }
    }

    #[test]
    fn every_card_is_a_preset() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/models");
        let files = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut cards: Vec<String> =
            files.filter_map(|f| f.strip_suffix(".toml").map(str::to_string)).collect();
        let mut presets: Vec<&str> = PRESETS.iter().chain(ENCODER_PRESETS).map(|(name, _)| *name).collect();
        cards.sort();
        presets.sort_unstable();
        assert_eq!(cards, presets);
    }
}
