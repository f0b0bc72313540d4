//! The networks of candle-transformers behind one call, and the heads that score a pair of texts.
//!
//! Token ids, types and mask `[texts, tokens]` → hidden states `[texts, tokens, hidden]` → a number a text. Padding is
//! masked out; what lies in its rows means nothing.

use candle_core::{DType, IndexOp, Result, Tensor};
use candle_nn::{LayerNorm, Linear, Module, VarBuilder};
use candle_transformers::models::{bert, modernbert, nomic_bert, xlm_roberta};
use serde_json::{Value, json};

use super::weights::BASE;
use super::{Architecture, EncoderSpec};

#[allow(clippy::large_enum_variant)] // one exists a model
pub enum Network {
    Bert(bert::BertModel),
    /// RoBERTa is the same network.
    XlmRoberta(xlm_roberta::XLMRobertaModel),
    NomicBert(nomic_bert::NomicBertModel),
    ModernBert(modernbert::ModernBert),
}

/// A batch's arrays, `[texts, tokens]` each.
pub struct Arrays {
    pub ids: Tensor,
    pub types: Tensor,
    /// 1 where there is a token, 0 where there is padding.
    pub mask: Tensor,
}

/// Keys that candle's configuration wants and a checkpoint may leave out.
fn with_defaults(config: &Value, defaults: Value) -> Value {
    let mut config = config.clone();
    for (key, value) in defaults.as_object().into_iter().flatten() {
        if config.get(key).is_none_or(Value::is_null) {
            config[key] = value.clone();
        }
    }
    config
}

fn parsed<T: serde::de::DeserializeOwned>(config: Value) -> Result<T> {
    serde_json::from_value(config).map_err(|e| candle_core::Error::Msg(format!("config.json: {e}")))
}

/// HuggingFace's names of activations that candle's BERT has under others.
fn bert_activation(config: &Value) -> Value {
    match config["hidden_act"].as_str() {
        Some("gelu_new" | "gelu_pytorch_tanh") => json!("geluapproximate"),
        None => json!("gelu"),
        Some(other) => json!(other),
    }
}

impl Network {
    /// # Errors
    /// A key of the configuration, or what `vb` answers.
    pub fn load(architecture: Architecture, config: &Value, vb: &VarBuilder) -> Result<Network> {
        let dropouts = json!({
            "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.02,
            "position_embedding_type": "absolute", "hidden_act": "gelu",
        });
        match architecture {
            Architecture::Qwen3 => candle_core::bail!("a decoder is none of candle's encoders"),
            Architecture::Bert => {
                let mut config = with_defaults(config, dropouts);
                config["hidden_act"] = bert_activation(&config);
                config = with_defaults(&config, json!({"pad_token_id": 0, "layer_norm_eps": 1e-12}));
                let mut config: bert::Config = parsed(config)?;
                // By this name it would look in other places.
                config.model_type = None;
                Ok(Network::Bert(bert::BertModel::load(vb.pp(BASE), &config)?))
            }
            Architecture::Roberta | Architecture::XlmRoberta => {
                let config = with_defaults(config, dropouts);
                let config = with_defaults(&config, json!({"pad_token_id": 1, "layer_norm_eps": 1e-5}));
                let network = xlm_roberta::XLMRobertaModel::new(&parsed(config)?, vb.pp(BASE))?;
                Ok(Network::XlmRoberta(network))
            }
            Architecture::NomicBert => {
                let mut config: nomic_bert::Config = parsed(config.clone())?;
                config.model_type = None;
                Ok(Network::NomicBert(nomic_bert::NomicBertModel::load(vb.pp(BASE), &config)?))
            }
            Architecture::ModernBert => {
                let defaults = json!({
                    "layer_norm_eps": config.get("norm_eps").cloned().unwrap_or(json!(1e-5)),
                    "global_attn_every_n_layers": 3, "global_rope_theta": 160_000.0, "local_attention": 128,
                    "local_rope_theta": 10_000.0, "pad_token_id": 50283,
                });
                let config = with_defaults(config, defaults);
                Ok(Network::ModernBert(modernbert::ModernBert::load(vb.clone(), &parsed(config)?)?))
            }
        }
    }

    /// Hidden states of the last layer, `[texts, tokens, hidden]`.
    ///
    /// # Errors
    /// What candle answers.
    pub fn forward(&self, Arrays { ids, types, mask }: &Arrays) -> Result<Tensor> {
        match self {
            Network::Bert(network) => network.forward(ids, types, Some(mask)),
            Network::XlmRoberta(network) => network.forward(ids, mask, types, None, None, None),
            Network::NomicBert(network) => network.forward(ids, Some(types), Some(mask)),
            Network::ModernBert(network) => network.forward(ids, mask),
        }
    }
}

/// One number for a pair of texts, from the hidden states of both together.
pub struct Head {
    dense: Linear,
    norm: Option<LayerNorm>,
    out: Linear,
    architecture: Architecture,
    /// Of all tokens, not of the first.
    of_mean: bool,
}

impl Head {
    /// # Errors
    /// What `vb` answers.
    pub fn load(spec: &EncoderSpec, config: &Value, vb: &VarBuilder) -> Result<Head> {
        let hidden = spec.hidden;
        let (dense, norm, out) = match spec.architecture {
            Architecture::ModernBert => {
                let bias = |key: &str| config.get(key).and_then(Value::as_bool).unwrap_or(false);
                let head = vb.pp("head");
                let dense = candle_nn::linear_b(hidden, hidden, bias("classifier_bias"), head.pp("dense"))?;
                let epsilon = config.get("norm_eps").and_then(Value::as_f64).unwrap_or(1e-5);
                let norm = candle_nn::layer_norm_no_bias(hidden, epsilon, head.pp("norm"))?;
                (dense, Some(norm), candle_nn::linear(hidden, 1, vb.pp("classifier"))?)
            }
            Architecture::Roberta | Architecture::XlmRoberta => {
                let head = vb.pp("classifier");
                let dense = candle_nn::linear(hidden, hidden, head.pp("dense"))?;
                (dense, None, candle_nn::linear(hidden, 1, head.pp("out_proj"))?)
            }
            Architecture::Bert | Architecture::NomicBert | Architecture::Qwen3 => {
                let dense = candle_nn::linear(hidden, hidden, vb.pp(BASE).pp("pooler").pp("dense"))?;
                (dense, None, candle_nn::linear(hidden, 1, vb.pp("classifier"))?)
            }
        };
        let of_mean = config["classifier_pooling"] == "mean";
        Ok(Head { dense, norm, out, architecture: spec.architecture, of_mean })
    }

    /// `[texts, 1]`, before any squashing.
    ///
    /// # Errors
    /// What candle answers.
    pub fn forward(&self, hidden: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let of_text = if self.of_mean {
            let mask = mask.to_dtype(DType::F32)?;
            let sum = hidden.broadcast_mul(&mask.unsqueeze(2)?)?.sum(1)?;
            sum.broadcast_div(&mask.sum_keepdim(1)?)?
        } else {
            hidden.i((.., 0))?.contiguous()?
        };
        let dense = self.dense.forward(&of_text)?;
        let dense = match self.architecture {
            Architecture::ModernBert => dense.gelu_erf()?,
            _ => dense.tanh()?,
        };
        let dense = self.norm.as_ref().map_or(Ok(dense.clone()), |norm| norm.forward(&dense))?;
        self.out.forward(&dense)
    }
}
