//! What an encoder is, by its `config.json`: network, widths, longest text, what it makes of a text.

use serde_json::Value;

use crate::model::LoadError;
use crate::model::arch;
use crate::model::arch::reader::ConfigReader;
use crate::model::input::BLOCK_SIZE;
use crate::model::kv_cache::{CacheType, KvCache};
use crate::model::pooling::{Pool, Pooling};
use crate::model::spec::DecoderSpec;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    Bert,
    Roberta,
    XlmRoberta,
    NomicBert,
    ModernBert,
    /// A decoder whose last token stands for the text.
    Qwen3,
}

/// `model_type`, the network, and what its checkpoints put before the names of its tensors.
const REGISTRY: [(&str, Architecture, &[&str]); 6] = [
    ("bert", Architecture::Bert, &["", "bert."]),
    ("roberta", Architecture::Roberta, &["", "roberta."]),
    ("xlm-roberta", Architecture::XlmRoberta, &["", "roberta."]),
    ("nomic_bert", Architecture::NomicBert, &["", "bert.", "nomic_bert."]),
    ("modernbert", Architecture::ModernBert, &["", "model."]),
    ("qwen3", Architecture::Qwen3, &["", "model."]),
];

impl Architecture {
    /// The network of a configuration; `None` when it is not an encoder's.
    pub fn of(config: &Value) -> Option<Architecture> {
        let kind = config.get("model_type").and_then(Value::as_str)?;
        REGISTRY.iter().find(|(name, ..)| *name == kind).map(|row| row.1)
    }

    pub fn as_str(self) -> &'static str {
        REGISTRY.iter().find(|row| row.1 == self).map_or("", |row| row.0)
    }

    pub(super) fn prefixes(self) -> &'static [&'static str] {
        REGISTRY.iter().find(|row| row.1 == self).map_or(&[], |row| row.2)
    }

    /// The tensor that tells the prefix.
    pub(super) fn first_tensor(self) -> &'static str {
        match self {
            Architecture::ModernBert => "embeddings.tok_embeddings.weight",
            Architecture::Qwen3 => "embed_tokens.weight",
            _ => "embeddings.word_embeddings.weight",
        }
    }
}

/// What comes out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// A vector of `hidden` numbers a text.
    Embed { pooling: Pooling, shorter: Shorter },
    /// A number from 0 to 1 for a pair of texts.
    Score,
}

/// Whether the first numbers of a vector are a vector that means the same (Matryoshka representation learning,
/// <https://arxiv.org/abs/2205.13147>).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shorter {
    Never,
    ToAny,
    To(Vec<usize>),
}

impl Shorter {
    pub fn allows(&self, dimensions: usize) -> bool {
        match self {
            Shorter::Never => false,
            Shorter::ToAny => true,
            Shorter::To(all) => all.contains(&dimensions),
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct EncoderSpec {
    pub architecture: Architecture,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub vocab: usize,
    /// Kinds of segments a token may belong to.
    pub types: usize,
    /// Tokens of a text that it was made for.
    pub max_tokens: usize,
    pub pad: u32,
    pub purpose: Purpose,
    /// Of a decoder: all of it. Its texts need no padding.
    pub causal: Option<DecoderSpec>,
}

impl EncoderSpec {
    /// `file` is named in errors. The pooling is the default: a folder's files may say otherwise.
    ///
    /// # Errors
    /// A missing key, or an option that cannot be honoured.
    pub fn of(file: &str, config: &Value) -> Result<EncoderSpec, LoadError> {
        const MAX: usize = 1 << 24;
        let reader = ConfigReader::new(file, config)?;
        let known = || REGISTRY.map(|row| row.0).join(", ");
        let architecture = Architecture::of(config).ok_or_else(|| {
            reader.error("model_type", format!("is not that of an encoder this server has: {}", known()))
        })?;
        if architecture == Architecture::Qwen3 {
            return EncoderSpec::causal(file, config, &reader);
        }
        let nomic = architecture == Architecture::NomicBert;
        let key = |bert, of_nomic| if nomic { of_nomic } else { bert };
        let size = |key: &str| match reader.usize(key)? {
            value if value == 0 || value > MAX => {
                Err(reader.error(key, format!("{value} is not between 1 and {MAX}")))
            }
            value => Ok(value),
        };
        let (hidden, heads) =
            (size(key("hidden_size", "n_embd"))?, size(key("num_attention_heads", "n_head"))?);
        if !hidden.is_multiple_of(2 * heads) {
            let problem = format!("{heads} heads do not share a width of {hidden} evenly, in pairs");
            return Err(reader.error(key("num_attention_heads", "n_head"), problem));
        }
        let default_pad = match architecture {
            Architecture::Roberta | Architecture::XlmRoberta => 1,
            Architecture::ModernBert => 50283,
            _ => 0,
        };
        let pad = reader.optional_usize("pad_token_id")?.unwrap_or(default_pad);
        let positions = size(key("max_position_embeddings", "n_positions"))?;
        let max_tokens = match architecture {
            // Positions count from behind the padding's.
            Architecture::Roberta | Architecture::XlmRoberta => positions.saturating_sub(pad + 1),
            // Beyond what it was trained on, its rotation would have to be rescaled.
            Architecture::NomicBert => {
                positions.min(reader.optional_usize("max_trained_positions")?.unwrap_or(positions))
            }
            _ => positions,
        };
        if nomic {
            reader.require("activation_function", &"swiglu".into())?;
            reader.require("rotary_emb_fraction", &1.0.into())?;
        } else {
            size("intermediate_size")?;
        }
        let vocab = size("vocab_size")?;
        if pad >= vocab || max_tokens == 0 {
            return Err(reader.error("pad_token_id", format!("{pad} is not below the vocabulary of {vocab}")));
        }
        let types = match architecture {
            Architecture::ModernBert => 1,
            _ => reader.optional_usize("type_vocab_size")?.unwrap_or(2),
        };
        Ok(EncoderSpec {
            architecture,
            hidden,
            layers: reader.usize_up_to(key("num_hidden_layers", "n_layer"), arch::MOST_LAYERS)?,
            heads,
            vocab,
            types,
            max_tokens,
            pad: u32::try_from(pad).unwrap_or(0),
            purpose: purpose(&reader, architecture, config)?,
            causal: None,
        })
    }

    fn causal(file: &str, config: &Value, reader: &ConfigReader) -> Result<EncoderSpec, LoadError> {
        let mut config = config.clone();
        // The decoder alone, or as it was saved with a head.
        if config["architectures"][0] == "Qwen3Model" {
            config["architectures"] = serde_json::json!(["Qwen3ForCausalLM"]);
        }
        let spec = arch::spec_of(file, &config)?;
        Ok(EncoderSpec {
            architecture: Architecture::Qwen3,
            hidden: spec.hidden,
            layers: spec.layers,
            heads: spec.heads,
            vocab: spec.vocab,
            types: 1,
            max_tokens: spec.max_positions,
            pad: 0,
            purpose: Purpose::Embed {
                pooling: Pooling { pool: Pool::Last, normalize: true },
                shorter: shorter(reader, &config)?,
            },
            causal: Some(spec),
        })
    }

    /// Bytes that the attention of a text of so many tokens takes at its height: scores, masked, and their softmax; of a
    /// decoder its keys and values.
    pub fn attention_bytes(&self, tokens: usize) -> u64 {
        match &self.causal {
            Some(spec) => {
                KvCache::block_bytes(spec, CacheType::F32) as u64 * tokens.div_ceil(BLOCK_SIZE) as u64
            }
            None => 3 * 4 * self.heads as u64 * (tokens as u64).pow(2),
        }
    }

    /// Tokens of the longest text whose attention takes no more than so many bytes.
    pub fn longest_within(&self, bytes: u64) -> usize {
        let longest = match &self.causal {
            Some(_) => bytes / self.attention_bytes(BLOCK_SIZE) * BLOCK_SIZE as u64,
            None => (bytes / self.attention_bytes(1)).isqrt(),
        };
        usize::try_from(longest).unwrap_or(usize::MAX)
    }
}

fn purpose(reader: &ConfigReader, architecture: Architecture, config: &Value) -> Result<Purpose, LoadError> {
    let name = reader.first_string("architectures").unwrap_or("Model");
    if name.ends_with("ForSequenceClassification") {
        if architecture == Architecture::NomicBert {
            return Err(reader.error("architectures", format!("`{name}` has no head here")));
        }
        let listed = config.get("id2label").and_then(Value::as_object).map(serde_json::Map::len);
        let labels = reader.optional_usize("num_labels")?.or(listed).unwrap_or(2);
        if labels != 1 {
            let problem = format!("{labels} labels: only classifiers of one label score pairs of texts");
            return Err(reader.error("id2label", problem));
        }
        return Ok(Purpose::Score);
    }
    if !["Model", "ForMaskedLM", "ForPreTraining"].iter().any(|end| name.ends_with(end)) {
        return Err(reader.error("architectures", format!("`{name}` makes neither embeddings nor scores")));
    }
    let shorter = shorter(reader, config)?;
    Ok(Purpose::Embed { pooling: Pooling { pool: Pool::Mean, normalize: true }, shorter })
}

fn shorter(reader: &ConfigReader, config: &Value) -> Result<Shorter, LoadError> {
    Ok(match config.get("matryoshka_dimensions") {
        Some(Value::Array(all)) => {
            let all: Option<Vec<usize>> =
                all.iter().map(|d| d.as_u64().and_then(|d| usize::try_from(d).ok())).collect();
            let problem = || reader.error("matryoshka_dimensions", "is not a list of whole numbers");
            Shorter::To(all.ok_or_else(problem)?)
        }
        _ if reader.bool_or("is_matryoshka", false)? => Shorter::ToAny,
        _ => Shorter::Never,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn bert() -> Value {
        json!({
            "architectures": ["BertModel"], "model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6,
            "num_attention_heads": 12, "intermediate_size": 1536, "vocab_size": 30522,
            "max_position_embeddings": 512, "type_vocab_size": 2, "pad_token_id": 0,
        })
    }

    #[test]
    fn a_configuration_becomes_a_spec() {
        let spec = EncoderSpec::of("config.json", &bert()).unwrap();
        assert_eq!((spec.architecture, spec.max_tokens, spec.types), (Architecture::Bert, 512, 2));
        let mut roberta = bert();
        roberta["model_type"] = json!("xlm-roberta");
        roberta["max_position_embeddings"] = json!(514);
        roberta["pad_token_id"] = json!(1);
        assert_eq!(EncoderSpec::of("config.json", &roberta).unwrap().max_tokens, 512);
        let mut shorter = bert();
        shorter["matryoshka_dimensions"] = json!([64, 128]);
        let Purpose::Embed { shorter, .. } = EncoderSpec::of("c", &shorter).unwrap().purpose else {
            panic!()
        };
        assert!(shorter.allows(64) && !shorter.allows(65) && !Shorter::Never.allows(64));
    }

    #[test]
    fn what_cannot_be_honoured_is_named() {
        let classifier = json!(["BertForSequenceClassification"]);
        for (key, value, named) in [
            ("model_type", json!("t5"), "model_type"),
            ("num_attention_heads", json!(7), "num_attention_heads"),
            ("hidden_size", json!(-3), "hidden_size"),
            ("vocab_size", json!(1e300), "vocab_size"),
            ("pad_token_id", json!(40_000), "pad_token_id"),
            ("architectures", json!(["BertForTokenClassification"]), "architectures"),
            ("architectures", classifier, "id2label"),
            ("matryoshka_dimensions", json!(["x"]), "matryoshka_dimensions"),
        ] {
            let mut config = bert();
            config[key] = value;
            let error = EncoderSpec::of("config.json", &config).unwrap_err().to_string();
            assert!(error.contains("config.json") && error.contains(named), "{error}");
        }
    }
}
