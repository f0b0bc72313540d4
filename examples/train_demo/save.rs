//! The files of the demo model: weights, configuration, tokenizer and the card.
//!
//! Weights are written in bf16 with sorted names, so that the same weights are the same bytes. The card
//! says how they came to be and holds golden answers for the server's tests.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use candle_core::{DType, Device, Tensor};
use serde::Serialize;
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use crate::model::TrainConfig;
use crate::tokenizer;

const SECONDS_PER_DAY: u64 = 86_400;

#[derive(Serialize)]
pub struct Card {
    pub name: &'static str,
    pub licence: &'static str,
    pub parameters: usize,
    pub vocab: usize,
    pub command: String,
    pub seed: u64,
    pub steps: usize,
    pub final_loss: f64,
    pub minutes: f64,
    pub date: String,
    pub questions: usize,
    pub held_out_score: f64,
    pub control_score: f64,
    pub golden: Vec<Golden>,
}

#[derive(Serialize)]
pub struct Golden {
    pub prompt: String,
    pub answer: String,
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = folder.join(name);
    std::fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))
}

fn pretty(value: &Value) -> Result<Vec<u8>> {
    Ok([serde_json::to_vec_pretty(value)?, b"\n".to_vec()].concat())
}

fn config_json(config: &TrainConfig) -> Result<Value> {
    let mut json = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "hidden_act": "silu",
        "tie_word_embeddings": true,
        "attention_bias": false,
        "mlp_bias": false,
        "bos_token_id": tokenizer::END_OF_TEXT_ID,
        "eos_token_id": tokenizer::END_ID,
    });
    if let (Value::Object(json), Value::Object(shape)) = (&mut json, serde_json::to_value(config)?) {
        json.extend(shape);
    }
    Ok(json)
}

/// Everything but the card.
pub fn model(
    folder: &Path,
    config: &TrainConfig,
    tokenizer: &Tokenizer,
    weights: &HashMap<String, Tensor>,
) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let mut sorted = BTreeMap::new();
    for (name, tensor) in weights {
        sorted.insert(name.as_str(), tensor.detach().to_dtype(DType::BF16)?);
    }
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    write(folder, "model.safetensors", &safetensors::serialize(sorted, Some(metadata))?)?;
    write(folder, "config.json", &pretty(&config_json(config)?)?)?;
    let generation = json!({"bos_token_id": tokenizer::END_OF_TEXT_ID, "eos_token_id": [tokenizer::END_ID]});
    write(folder, "generation_config.json", &pretty(&generation)?)?;
    write(folder, "tokenizer_config.json", &pretty(&tokenizer::config())?)?;
    let json = tokenizer.to_string(true).map_err(|e| anyhow!("writing the tokenizer: {e}"))?;
    write(folder, "tokenizer.json", json.as_bytes())
}

pub fn card(folder: &Path, card: &Card) -> Result<()> {
    let text = format!("# Written by examples/train_demo.\n{}", toml::to_string(card)?);
    write(folder, "card.toml", text.as_bytes())
}

/// Reads back what `model` wrote.
pub fn load(folder: &Path) -> Result<(TrainConfig, Tokenizer, HashMap<String, Tensor>)> {
    let config = serde_json::from_slice(&std::fs::read(folder.join("config.json"))?)?;
    let tokenizer = Tokenizer::from_file(folder.join("tokenizer.json"))
        .map_err(|e| anyhow!("reading the tokenizer: {e}"))?;
    let weights = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu)?;
    Ok((config, tokenizer, weights))
}

/// Today, UTC. From the count of days, by the usual shift of the year's start to March.
pub fn date() -> String {
    let days = hashwatt::clock::unix_seconds() / SECONDS_PER_DAY + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    format!("{}-{month:02}-{day:02}", era * 400 + year + u64::from(month <= 2))
}
