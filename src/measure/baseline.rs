//! The same checkpoint through candle-transformers: the oracle of the parity tests, the rival in benches.
//!
//! Weights come from the checkpoint's own source, so both sides compute with the same numbers; those of a GGUF file with
//! quantised blocks are read by candle itself and stay quantised. One sequence at a time, as that library does it.

use std::collections::HashMap;
use std::io::Cursor;

use candle_core::quantized::gguf_file;
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::smol::smollm3;
use candle_transformers::models::{
    gemma2, glm4_new, llama, mistral, mixtral, olmo2, phi3, quantized_llama, quantized_qwen2,
    quantized_qwen3, qwen2, qwen2_moe, qwen3, qwen3_moe,
};
use serde_json::Value;

use crate::model::Checkpoint;
use crate::model::decoder;
use crate::model::gguf::GgufTable;
use crate::model::weights::WeightSource;
use crate::ops::weight::Weight;

#[allow(clippy::large_enum_variant)] // one exists at a time
enum Model {
    Llama {
        model: llama::Llama,
        cache: llama::Cache,
        config: llama::Config,
    },
    /// Those that have their cache in them.
    Other(Box<dyn Sequence>),
}

/// A model with one sequence.
trait Sequence: Send {
    fn forward(&mut self, ids: &Tensor, position: usize) -> Result<Tensor>;
    fn clear(&mut self) -> Result<()>;
}

macro_rules! sequences {
    ($($model:ty),*) => {$(
        impl Sequence for $model {
            fn forward(&mut self, ids: &Tensor, position: usize) -> Result<Tensor> {
                <$model>::forward(self, ids, position)
            }
            fn clear(&mut self) -> Result<()> {
                self.clear_kv_cache();
                Ok(())
            }
        }
    )*};
}
sequences!(
    gemma2::Model,
    glm4_new::ModelForCausalLM,
    mistral::Model,
    olmo2::Model,
    phi3::Model,
    quantized_llama::ModelWeights,
    quantized_qwen2::ModelWeights,
    quantized_qwen3::ModelWeights,
    qwen2::ModelForCausalLM,
    qwen2_moe::Model,
    qwen3::ModelForCausalLM,
    qwen3_moe::ModelForCausalLM,
    smollm3::ModelForCausalLM
);

/// Mixtral forgets nothing: it is made anew.
struct Mixtral {
    model: mixtral::Model,
    config: Value,
    vb: VarBuilder<'static>,
}

impl Mixtral {
    fn made(config: Value, vb: VarBuilder<'static>) -> Result<Mixtral> {
        Ok(Mixtral { model: mixtral::Model::new(&read(config.clone())?, vb.clone())?, config, vb })
    }
}

impl Sequence for Mixtral {
    fn forward(&mut self, ids: &Tensor, position: usize) -> Result<Tensor> {
        self.model.forward(ids, position)
    }
    fn clear(&mut self) -> Result<()> {
        *self = Mixtral::made(self.config.clone(), self.vb.clone())?;
        Ok(())
    }
}

/// A candle-transformers model with its own cache.
pub struct Baseline {
    model: Model,
    dtype: DType,
    device: Device,
    position: usize,
    max_positions: usize,
}

fn tensor(weight: &Weight, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
    let data: Vec<f32> = (0..weight.rows() * weight.cols()).map(|i| weight.get(i)).collect();
    Tensor::from_vec(data, shape, &Device::Cpu)?.to_dtype(dtype)?.to_device(device)
}

/// Keys that candle's configuration wants and a checkpoint may leave out.
fn with_defaults(config: &Value, defaults: &[(&str, Value)]) -> Value {
    let mut config = config.clone();
    for (key, value) in defaults {
        if config.get(key).is_none_or(Value::is_null) {
            config[*key] = value.clone();
        }
    }
    config
}

fn read<T: serde::de::DeserializeOwned>(config: Value) -> Result<T> {
    serde_json::from_value(config).map_err(candle_core::Error::wrap)
}

/// Granite is none of them, since candle's knows no multipliers, nor is Gemma 3, whose cache of windows refuses what the
/// model hands it (candle-transformers 0.11.1).
fn other_model(architecture: &str, config: Value, vb: VarBuilder<'static>) -> Result<Box<dyn Sequence>> {
    Ok(match architecture {
        "gemma2" => Box::new(gemma2::Model::new(false, &read(config)?, vb)?),
        "glm4" => Box::new(glm4_new::ModelForCausalLM::new(&read(config)?, vb)?),
        "mistral" => Box::new(mistral::Model::new(&read(config)?, vb)?),
        "mixtral" => Box::new(Mixtral::made(config, vb)?),
        "olmo2" => Box::new(olmo2::Model::new(&read(config)?, vb)?),
        "phi3" => Box::new(phi3::Model::new(&read(config)?, vb)?),
        "qwen2" => Box::new(qwen2::ModelForCausalLM::new(&read(config)?, vb)?),
        "qwen2_moe" => Box::new(qwen2_moe::Model::new(&read(config)?, vb)?),
        "qwen3" => Box::new(qwen3::ModelForCausalLM::new(&read(config)?, vb)?),
        "qwen3_moe" => Box::new(qwen3_moe::ModelForCausalLM::new(&read(config)?, vb)?),
        "smollm3" => Box::new(smollm3::ModelForCausalLM::new(&read(config)?, vb)?),
        other => candle_core::bail!("no candle-transformers baseline for `{other}`"),
    })
}

/// What candle's quantised models make of a file; their activations are f32.
///
/// Gemma 3 is none of them, since its gate is SiLU there, nor are those whose caches hold 512 positions (GLM-4) or take
/// their longest context at once (Phi-3), or whose experts are for GPUs only (candle-transformers 0.11.1).
fn quantised_model(architecture: &str, file: &[u8], device: &Device) -> Result<Box<dyn Sequence>> {
    let mut reader = Cursor::new(file);
    let content = gguf_file::Content::read(&mut reader)?;
    Ok(match architecture {
        // It turns by no `rope_freqs.weight`: from Llama 3.1 on, far positions differ.
        "llama" => Box::new(quantized_llama::ModelWeights::from_gguf(content, &mut reader, device)?),
        "qwen2" => Box::new(quantized_qwen2::ModelWeights::from_gguf(content, &mut reader, device)?),
        "qwen3" => Box::new(quantized_qwen3::ModelWeights::from_gguf(content, &mut reader, device)?),
        other => candle_core::bail!("no quantised candle-transformers baseline for `{other}`"),
    })
}

/// The file whose blocks candle's quantised models are to read.
pub fn quantised_file(checkpoint: &Checkpoint) -> Option<&GgufTable> {
    match &checkpoint.source {
        WeightSource::Gguf(table) if table.has_blocks() => Some(table),
        _ => None,
    }
}

/// Those whose configuration wants a window.
const WINDOWED: [&str; 3] = ["qwen2", "qwen2_moe", "mixtral"];

impl Baseline {
    /// Builds the model on a device, with all weights converted to `dtype`; of a file with blocks, candle's quantised model,
    /// whose activations are f32 whatever `dtype` says.
    ///
    /// # Errors
    /// An architecture that candle-transformers is not asked for here, or what candle answers.
    pub fn new(checkpoint: &Checkpoint, dtype: DType, device: &Device) -> Result<Baseline> {
        let max_positions = checkpoint.spec.usual_context();
        if let Some(file) = quantised_file(checkpoint) {
            let architecture = checkpoint.spec.architecture;
            let model = Model::Other(quantised_model(architecture, file.bytes(), device)?);
            let max_positions = match architecture {
                "llama" => max_positions.min(quantized_llama::MAX_SEQ_LEN),
                _ => max_positions,
            };
            return Ok(Baseline {
                model,
                dtype: DType::F32,
                device: device.clone(),
                position: 0,
                max_positions,
            });
        }
        let mut tensors = HashMap::new();
        for (name, shape) in decoder::tensors(&checkpoint.spec) {
            let weight = checkpoint.source.weight(&name, &shape).map_err(candle_core::Error::wrap)?;
            tensors.insert(name, tensor(&weight, &shape, dtype, device)?);
        }
        let vb = VarBuilder::from_tensors(tensors, dtype, device);
        let model = match checkpoint.spec.architecture {
            "llama" => {
                let config: llama::LlamaConfig =
                    serde_json::from_value(checkpoint.config.clone()).map_err(candle_core::Error::wrap)?;
                let config = config.into_config(false);
                let cache = llama::Cache::new(true, dtype, &config, device)?;
                Model::Llama { model: llama::Llama::load(vb, &config)?, cache, config }
            }
            other => {
                let defaults = [
                    ("attention_bias", false.into()),
                    ("head_dim", checkpoint.spec.head_dim.into()),
                    ("max_window_layers", checkpoint.spec.layers.into()),
                    ("use_sliding_window", false.into()),
                    ("partial_rotary_factor", if other == "glm4" { 0.5.into() } else { Value::Null }),
                    // Of use only where the window is.
                    ("sliding_window", if WINDOWED.contains(&other) { 4096.into() } else { Value::Null }),
                    ("decoder_sparse_step", 1.into()),
                    ("use_flash_attn", false.into()),
                ];
                let json = with_defaults(&checkpoint.config, &defaults);
                Model::Other(other_model(other, json, vb)?)
            }
        };
        Ok(Baseline { model, dtype, device: device.clone(), position: 0, max_positions })
    }

    /// Prompt and answer together.
    pub fn max_positions(&self) -> usize {
        self.max_positions
    }

    /// Forgets the sequence.
    pub fn reset(&mut self) -> Result<()> {
        self.position = 0;
        match &mut self.model {
            Model::Llama { cache, config, .. } => {
                *cache = llama::Cache::new(true, self.dtype, config, &self.device)?;
            }
            Model::Other(model) => model.clear()?,
        }
        Ok(())
    }

    /// Appends tokens; the logits of the last one, `[vocab]`, f32.
    pub fn forward(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let ids = Tensor::new(tokens, &self.device)?.unsqueeze(0)?;
        let logits = match &mut self.model {
            Model::Llama { model, cache, .. } => model.forward(&ids, self.position, cache)?,
            Model::Other(model) => model.forward(&ids, self.position)?,
        };
        self.position += tokens.len();
        logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
    }
}
