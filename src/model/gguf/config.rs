//! A GGUF file's metadata in the words of a `config.json`, and its tensors' names by those of HuggingFace.

use serde_json::{Map, Value, json};

use super::header::{HeaderError, Metadata};
use crate::model::LoadError;
use crate::model::spec::{DecoderSpec, RopeScaling};
use crate::ops::weight::WeightType;

/// (`general.architecture`, what `architectures` of a `config.json` calls it, whether its queries and keys are stored with
/// the two numbers of a turned pair side by side).
const ARCHITECTURES: &[(&str, &str, bool)] = &[
    ("gemma2", "Gemma2ForCausalLM", false),
    ("gemma3", "Gemma3ForCausalLM", false),
    ("glm4", "Glm4ForCausalLM", true),
    ("gpt-oss", "GptOssForCausalLM", false),
    ("granite", "GraniteForCausalLM", true),
    ("llama", "LlamaForCausalLM", true),
    ("olmo2", "Olmo2ForCausalLM", false),
    ("phi3", "Phi3ForCausalLM", false),
    ("qwen2", "Qwen2ForCausalLM", false),
    ("qwen2moe", "Qwen2MoeForCausalLM", false),
    ("qwen3", "Qwen3ForCausalLM", false),
    ("qwen3moe", "Qwen3MoeForCausalLM", false),
    ("smollm3", "SmolLM3ForCausalLM", true),
];

/// (a key of a `config.json`, the same in a file behind the architecture's name): whole numbers.
const WHOLES: &[(&str, &str)] = &[
    ("hidden_size", "embedding_length"),
    ("num_hidden_layers", "block_count"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("head_dim", "attention.key_length"),
    ("intermediate_size", "feed_forward_length"),
    ("max_position_embeddings", "context_length"),
    ("sliding_window", "attention.sliding_window"),
    ("num_experts_per_tok", "expert_used_count"),
    ("moe_intermediate_size", "expert_feed_forward_length"),
    ("shared_expert_intermediate_size", "expert_shared_feed_forward_length"),
];
/// The same: any numbers.
const NUMBERS: &[(&str, &str)] = &[
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    ("rope_theta", "rope.freq_base"),
    ("embedding_multiplier", "embedding_scale"),
    ("residual_multiplier", "residual_scale"),
    ("attention_multiplier", "attention.scale"),
    ("logits_scaling", "logit_scale"),
    ("attn_logit_softcapping", "attn_logit_softcapping"),
    ("final_logit_softcapping", "final_logit_softcapping"),
];
/// What is made of more than one key of a file, or of what is no key, by the one that says most.
const MADE: &[(&str, &str)] = &[
    ("num_experts", "expert_count"),
    ("num_local_experts", "expert_count"),
    ("query_pre_attn_scalar", "attention.key_length"),
    ("partial_rotary_factor", "rope.dimension_count"),
    ("rope_scaling", "rope.scaling.type"),
    ("rope_scaling.factor", "rope.scaling.factor"),
    ("original_max_position_embeddings", "rope.scaling.original_context_length"),
];
/// A tensor of LongRoPE's factors beyond the original context.
const LONG_FACTORS: &str = "rope_factors_long.weight";

/// What a file's metadata says of its architecture.
pub struct Described<'a> {
    pub metadata: Metadata<'a>,
    pub architecture: &'a str,
    class: &'static str,
    side_by_side: bool,
}

impl<'a> Described<'a> {
    /// # Errors
    /// An architecture that is not read.
    pub fn of(metadata: Metadata<'a>) -> Result<Described<'a>, HeaderError> {
        const KEY: &str = "general.architecture";
        const TYPE: &str = "general.type";
        if let Some(kind) = metadata.text(TYPE)?.filter(|kind| *kind != "model") {
            let kind: String = kind.chars().take(64).collect();
            let problem = format!("`{kind}` is no model by itself: whole models are served");
            return Err(HeaderError::Unsupported(TYPE.into(), problem));
        }
        let architecture = metadata.text(KEY)?.ok_or(HeaderError::Value(KEY.into(), "is missing"))?;
        let found = ARCHITECTURES.iter().find(|(name, ..)| *name == architecture);
        let Some((_, class, side_by_side)) = found else {
            let known: Vec<&str> = ARCHITECTURES.iter().map(|(name, ..)| *name).collect();
            let name: String = architecture.chars().take(64).collect();
            let problem =
                format!("`{name}` is not an architecture this server reads; it reads {}", known.join(", "));
            return Err(HeaderError::Unsupported(KEY.into(), problem));
        };
        // Mixtral goes as Llama there.
        let experts = metadata.whole(&format!("{architecture}.expert_count"))?.unwrap_or(0);
        let class = if architecture == "llama" && experts > 0 { "MixtralForCausalLM" } else { class };
        Ok(Described { metadata, architecture, class, side_by_side: *side_by_side })
    }

    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn experts_key(&self) -> &'static str {
        match self.class {
            "MixtralForCausalLM" | "GptOssForCausalLM" => "num_local_experts",
            _ => "num_experts",
        }
    }

    /// An error about the configuration that was made of the metadata, by the key that the file has.
    pub fn in_own_words(&self, error: LoadError) -> LoadError {
        let LoadError::Config { file, key, problem } = error else { return error };
        let known = WHOLES.iter().chain(NUMBERS).chain(MADE).find(|(to, _)| *to == key);
        let key = match (key.as_str(), known) {
            ("vocab_size", _) => "token_embd.weight, its rows".into(),
            ("rope_scaling.short_factor", _) => "rope_freqs.weight or rope_factors_short.weight".into(),
            ("rope_scaling.long_factor", _) => LONG_FACTORS.into(),
            ("architectures", _) => "general.architecture".into(),
            (_, Some((_, from))) => self.key(from),
            (_, None) => key,
        };
        LoadError::Config { file, key, problem }
    }

    fn has(&self, tensor: &str) -> bool {
        self.metadata.has_tensor(tensor)
    }

    /// The configuration that `arch` reads.
    ///
    /// # Errors
    /// Values of the wrong kind, models that are not what they are called.
    pub fn config(&self) -> Result<Value, HeaderError> {
        let mut config = Map::new();
        config.insert("architectures".into(), json!([self.class]));
        // What blocks are computed with, and else as the head is stored.
        let head =
            ["output.weight", "token_embd.weight"].into_iter().find_map(|name| self.metadata.tensor(name));
        let float_type = match head.map(|entry| entry.kind) {
            Some(WeightType::F32) => "float32",
            Some(WeightType::F16) => "float16",
            _ => "bfloat16",
        };
        config.insert("torch_dtype".into(), float_type.into());
        config.insert("tie_word_embeddings".into(), json!(!self.has("output.weight")));
        let blocks = self.key("block_count");
        if self.metadata.whole(&blocks)?.is_some_and(|n| n > self.metadata.header.tensors() as u64) {
            return Err(HeaderError::Value(blocks, "is more than there are tensors"));
        }
        self.refuse_variants()?;
        let embedding = self.metadata.tensor("token_embd.weight");
        if let Some(vocab) = embedding.as_ref().and_then(|entry| entry.shape().first()) {
            config.insert("vocab_size".into(), json!(vocab));
        }
        for (to, from) in WHOLES.iter().copied().chain([(self.experts_key(), "expert_count")]) {
            // A window of 0 is none, and gpt-oss has its own then.
            let value = self.metadata.whole(&self.key(from))?;
            if let Some(value) = value.filter(|value| *value > 0 || from != "attention.sliding_window") {
                config.insert(to.into(), json!(value));
            }
        }
        for (to, from) in NUMBERS {
            // A scale of 0 is the one that follows from the shape.
            if let Some(value) = self.metadata.number(&self.key(from))?.filter(|value| *value != 0.0) {
                config.insert((*to).into(), json!(value));
            }
        }
        if self.architecture.starts_with("gemma") {
            self.gemma(&mut config);
        }
        if self.architecture == "gpt-oss" {
            // Its layers' networks are experts, all of this width.
            if let Some(width) = config.get("moe_intermediate_size").cloned() {
                config.insert("intermediate_size".into(), width);
            }
        }
        // Which none of the files says.
        config.insert("norm_topk_prob".into(), json!(self.architecture == "qwen3moe"));
        self.rope(&mut config)?;
        Ok(Value::Object(config))
    }

    /// Models that go under the name of another.
    fn refuse_variants(&self) -> Result<(), HeaderError> {
        let whole = |key: &str| Ok::<_, HeaderError>(self.metadata.whole(&self.key(key))?.unwrap_or(0));
        let refuse = |key: &str, problem| Err(HeaderError::Value(self.key(key), problem));
        let with_experts = ["gpt-oss", "llama", "qwen2moe", "qwen3moe"].contains(&self.architecture);
        match self.architecture {
            _ if !with_experts && whole("expert_count")? > 0 => {
                refuse("expert_count", "this architecture is not read with experts")
            }
            "olmo2" if whole("attention.sliding_window")? > 0 => {
                refuse("attention.sliding_window", "is OLMo 3's, which is not read")
            }
            "glm4" if whole("nextn_predict_layers")? > 0 => {
                refuse("nextn_predict_layers", "layers that predict further tokens are not read")
            }
            "glm4" if self.metadata.has(&self.key("rope.dimension_sections")) => {
                refuse("rope.dimension_sections", "positions of several dimensions are not read")
            }
            "granite" if self.metadata.bool(&self.key("rope.scaling.finetuned"))? == Some(false) => {
                refuse("rope.scaling.finetuned", "false means no positions, which is not read")
            }
            _ => Ok(()),
        }
    }

    /// What Gemma's files leave to who reads them: the scale of scores, which is another in the models of 27 billion.
    fn gemma(&self, config: &mut Map<String, Value>) {
        let number = |key: &str| config.get(key).and_then(Value::as_f64);
        let large = matches!(
            (self.architecture, number("num_hidden_layers")),
            ("gemma2", Some(46.0)) | ("gemma3", Some(62.0))
        );
        let width = match (number("hidden_size"), number("num_attention_heads")) {
            (Some(hidden), Some(heads)) if large && heads > 0.0 => Some(hidden / heads),
            _ => number("head_dim"),
        };
        if let Some(width) = width {
            config.insert("query_pre_attn_scalar".into(), json!(width));
        }
        // No file is untied.
        config.insert("tie_word_embeddings".into(), true.into());
    }

    fn rope(&self, config: &mut Map<String, Value>) -> Result<(), HeaderError> {
        let whole = |key: &str| config.get(key).and_then(Value::as_u64);
        let head_dim = match (whole("head_dim"), whole("hidden_size"), whole("num_attention_heads")) {
            (None, Some(hidden), Some(heads)) => hidden.checked_div(heads),
            (head_dim, ..) => head_dim,
        };
        if let Some(head_dim) = head_dim {
            config.insert("head_dim".into(), json!(head_dim));
        }
        if let (Some(turned), Some(head_dim)) =
            (self.metadata.whole(&self.key("rope.dimension_count"))?, head_dim)
            && head_dim > 0
        {
            config.insert("partial_rotary_factor".into(), json!(turned as f64 / head_dim as f64));
        }
        let number = |key: &str| self.metadata.number(&self.key(key));
        let factor = match number("rope.scaling.factor")? {
            Some(factor) => Some(factor),
            None => number("rope.scale_linear")?,
        };
        // As llama.cpp: a factor alone is linear.
        let kind = self.metadata.text(&self.key("rope.scaling.type"))?.or(factor.map(|_| "linear"));
        let Some(kind) = kind else { return Ok(()) };
        // Factors of each frequency are a tensor, not a value.
        if !["none", "longrope"].contains(&kind) {
            let mut scaling = Map::new();
            scaling.insert("rope_type".into(), kind.into());
            if let Some(factor) = factor {
                scaling.insert("factor".into(), json!(factor));
            }
            if let Some(original) = number("rope.scaling.original_context_length")? {
                scaling.insert("original_max_position_embeddings".into(), json!(original));
            }
            for (to, from) in [("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")] {
                if let Some(turns) = number(&format!("rope.scaling.{from}"))? {
                    scaling.insert(to.into(), json!(turns));
                }
            }
            if self.architecture == "gpt-oss" {
                // As it was trained, which no file says; llama.cpp rounds the band's edges to whole pairs.
                scaling.insert("truncate".into(), false.into());
            }
            // llama.cpp multiplies YaRN's own by it.
            if let (Some(more), Some(factor), "yarn") = (number("rope.scaling.attn_factor")?, factor, kind) {
                let own = if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 };
                scaling.insert("attention_factor".into(), json!(own * more));
            }
            config.insert("rope_scaling".into(), Value::Object(scaling));
        }
        Ok(())
    }

    /// What a `config.json` would not say: how turned pairs are stored, and the factors of frequencies.
    ///
    /// # Errors
    /// A value of the wrong kind, factors of a type that is not read.
    pub fn adjust(
        &self,
        spec: &mut DecoderSpec,
        fail: impl Fn(HeaderError) -> LoadError,
        numbers: impl Fn(&str) -> Result<Option<Vec<f32>>, LoadError>,
    ) -> Result<(), LoadError> {
        const ORIGINAL: &str = "rope.scaling.original_context_length";
        let length =
            self.metadata.number(&self.key("rope.scaling.attn_factor")).map_err(&fail)?.unwrap_or(1.0);
        let missing = |key: String| fail(HeaderError::Value(key, "is missing"));
        let scaling = match numbers("rope_factors_short.weight")? {
            Some(short) => {
                let original = self.metadata.whole(&self.key(ORIGINAL)).map_err(&fail)?;
                let original = original.and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
                Some(RopeScaling::Long {
                    short,
                    long: numbers(LONG_FACTORS)?.ok_or_else(|| missing(LONG_FACTORS.into()))?,
                    original_max_positions: original.ok_or_else(|| missing(self.key(ORIGINAL)))?,
                    length,
                })
            }
            None => numbers("rope_freqs.weight")?.map(|factors| RopeScaling::Each { factors, length }),
        };
        // A file has the biases that it has, and no flag that says so.
        spec.qkv_bias = self.has("blk.0.attn_q.bias") || self.has("blk.0.attn_qkv.bias");
        spec.o_bias = self.has("blk.0.attn_output.bias");
        spec.mlp_bias = self.has("blk.0.ffn_down.bias");
        if self.architecture.starts_with("gemma") {
            // Norms are stored as they multiply.
            spec.norm_offset = 0.0;
        }
        for rope in spec.ropes.iter_mut().filter(|rope| rope.turned > 0) {
            rope.interleaved |= self.side_by_side;
        }
        // Of layers with a window, where those have positions of their own, they are not.
        if let (Some(scaling), Some(rope)) = (scaling, spec.ropes.first_mut()) {
            rope.scaling = scaling;
        }
        Ok(())
    }

    /// The name in this file of what HuggingFace names so, and the expert whose part of it is meant.
    pub fn name(&self, name: &str) -> Option<(String, Option<usize>)> {
        let Some((layer, rest)) = name.split_once("experts.").filter(|_| name.starts_with("model.layers."))
        else {
            return Some((self.whole_name(name)?, None));
        };
        let (expert, part) = rest.split_once('.')?;
        let layer = layer.strip_prefix("model.layers.")?.split_once('.')?.0;
        let (part, kind) = part.split_once('.')?;
        let part = match part {
            "gate_proj" | "w1" => "ffn_gate_exps",
            "up_proj" | "w3" => "ffn_up_exps",
            "down_proj" | "w2" => "ffn_down_exps",
            _ => return None,
        };
        Some((format!("blk.{layer}.{part}.{kind}"), Some(expert.parse().ok()?)))
    }

    fn whole_name(&self, name: &str) -> Option<String> {
        let whole = match name {
            "model.embed_tokens.weight" => "token_embd.weight",
            "model.norm.weight" => "output_norm.weight",
            "lm_head.weight" => "output.weight",
            _ => {
                let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
                if rest == "self_attn.sinks" {
                    return Some(format!("blk.{layer}.attn_sinks.weight"));
                }
                let (part, kind) = rest.rsplit_once('.')?;
                let part = match (part, self.architecture) {
                    ("input_layernorm", _) => "attn_norm",
                    ("self_attn.q_proj", _) => "attn_q",
                    ("self_attn.k_proj", _) => "attn_k",
                    ("self_attn.v_proj", _) => "attn_v",
                    ("self_attn.qkv_proj", _) => "attn_qkv",
                    ("self_attn.o_proj", _) => "attn_output",
                    ("self_attn.q_norm", _) => "attn_q_norm",
                    ("self_attn.k_norm", _) => "attn_k_norm",
                    ("post_attention_layernorm", "olmo2" | "gemma2" | "gemma3" | "gpt-oss") => {
                        "post_attention_norm"
                    }
                    ("post_attention_layernorm", _) => "ffn_norm",
                    ("pre_feedforward_layernorm", _) => "ffn_norm",
                    ("post_self_attn_layernorm", _) => "post_attention_norm",
                    ("post_feedforward_layernorm" | "post_mlp_layernorm", _) => "post_ffw_norm",
                    ("mlp.gate_proj", _) => "ffn_gate",
                    // Gate and up in one are called up.
                    ("mlp.up_proj" | "mlp.gate_up_proj", _) => "ffn_up",
                    ("mlp.down_proj", _) => "ffn_down",
                    ("mlp.gate" | "mlp.router" | "block_sparse_moe.gate", _) => "ffn_gate_inp",
                    ("mlp.shared_expert.gate_proj", _) => "ffn_gate_shexp",
                    ("mlp.shared_expert.up_proj", _) => "ffn_up_shexp",
                    ("mlp.shared_expert.down_proj", _) => "ffn_down_shexp",
                    ("mlp.shared_expert_gate", _) => "ffn_gate_inp_shexp",
                    _ => return None,
                };
                return Some(format!("blk.{layer}.{part}.{kind}"));
            }
        };
        Some(whole.into())
    }
}
