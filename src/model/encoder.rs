//! Encoders: models that make a vector of a text, or a score of a pair of texts, in one forward pass.
//!
//! A HuggingFace folder or `synthetic:PRESET` → [`EncoderCheckpoint`] (checked, unread) → [`Encoder`] → a vector a text.
//! The networks are candle-transformers'; what is here is around them: which one, its weights, padding, pooling, the
//! heads. Who asks, and which texts share a batch, is the engine's.

mod causal;
mod network;
mod spec;
mod weights;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use serde_json::Value;

pub use self::causal::CausalEncoder;
use self::network::{Arrays, Head, Network};
pub use self::spec::{Architecture, EncoderSpec, Purpose, Shorter};
use self::weights::{TensorShape, Weights};
use super::LoadError;
use super::arch;
use super::checkpoint::{SYNTHETIC_SEED, TokenizerSource, card_config, check_kind, name_of};
use super::decoder::{self, Decoder, Precision, Quantize, Reading};
use super::pooling::{self, Pool, Pooling};
use super::spec::FloatType;
use super::weights::WeightSource;
use super::weights::safetensors::TensorTable;
use super::weights::synthetic::Generator;
use crate::ops::exec::Exec;
use crate::ops::pool::Pool as Threads;

/// The cards of `models/` that are encoders, by name.
pub const ENCODER_PRESETS: &[(&str, &str)] = &[
    ("minilm-l6", include_str!("../../models/minilm-l6.toml")),
    ("minilm-tiny", include_str!("../../models/minilm-tiny.toml")),
    ("qwen3-embedding-0.6b", include_str!("../../models/qwen3-embedding-0.6b.toml")),
    ("reranker-tiny", include_str!("../../models/reranker-tiny.toml")),
];

/// A text as an encoder reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncoderText {
    /// Never empty, below the vocabulary.
    pub ids: Vec<u32>,
    /// The segment of each token: the second text of a pair is 1. Empty where all are 0.
    pub types: Vec<u32>,
}

/// An encoder that has been opened and checked, its weights not yet read.
pub struct EncoderCheckpoint {
    /// The id it is served under unless another is given.
    pub name: String,
    pub spec: EncoderSpec,
    pub config: Value,
    pub tokenizer: TokenizerSource,
    pub source: WeightSource,
    /// What the checkpoint has before the names of the network's tensors.
    prefix: String,
    /// Every tensor that is read.
    pub tensors: Vec<TensorShape>,
}

impl EncoderCheckpoint {
    /// Whether `model` (a folder, a preset) is an encoder. What cannot be read is for the one that opens it.
    pub fn is_one(model: &str) -> bool {
        match model.strip_prefix("synthetic:") {
            Some(preset) => ENCODER_PRESETS.iter().any(|(name, _)| *name == preset),
            None => {
                let folder = Path::new(model);
                let config = pooling::read(&folder.join("config.json"));
                match config.ok().and_then(|config| Architecture::of(&config)) {
                    // A decoder makes vectors where it was saved to.
                    Some(Architecture::Qwen3) => folder.join("modules.json").is_file(),
                    found => found.is_some(),
                }
            }
        }
    }

    /// Opens a folder or `synthetic:PRESET`. `threads` make synthetic weights.
    ///
    /// # Errors
    /// Everything that can be known without reading weights; each names file and tensor or key.
    pub fn open(model: &str, threads: &Arc<Threads>) -> std::result::Result<EncoderCheckpoint, LoadError> {
        let Some(preset) = model.strip_prefix("synthetic:") else { return open_folder(model) };
        let card = ENCODER_PRESETS.iter().find(|(name, _)| *name == preset);
        let (_, card) = card.ok_or_else(|| LoadError::Unknown(model.into()))?;
        let config = card_config(preset, card)?;
        EncoderCheckpoint::synthetic(model, &format!("models/{preset}.toml"), config, threads)
    }

    /// Any encoder with weights from the fixed seed. `file` is named in errors about `config`.
    ///
    /// # Errors
    /// A configuration that cannot be honoured.
    pub fn synthetic(
        name: &str,
        file: &str,
        config: Value,
        threads: &Arc<Threads>,
    ) -> std::result::Result<EncoderCheckpoint, LoadError> {
        let spec = EncoderSpec::of(file, &config)?;
        let generator = match &spec.causal {
            Some(decoder) => Generator::new(SYNTHETIC_SEED, decoder, threads.clone()),
            None => Generator::of_layers(SYNTHETIC_SEED, FloatType::F32, spec.layers, threads.clone()),
        };
        let tokenizer = TokenizerSource::Synthetic { vocab: spec.vocab };
        // As HuggingFace saves them: with a head, the network has a prefix.
        let prefix = spec.architecture.prefixes()[usize::from(spec.purpose == Purpose::Score)];
        let source = WeightSource::Synthetic(generator);
        checked(name.into(), spec, config, tokenizer, source, prefix)
    }

    /// Reads the weights to a device.
    ///
    /// # Errors
    /// A tensor that holds numbers that are not finite, a device without room.
    pub fn load(&self, device: &Device) -> std::result::Result<Encoder, LoadError> {
        if let Some(spec) = &self.spec.causal {
            let reading =
                Reading { precision: Precision::AsStored, quantize: Quantize::AsStored, scan_all: false };
            let decoder = Decoder::load(spec, &self.source, reading, &|_| {})?.headless();
            let decoder = match device {
                Device::Cpu => Ok(decoder),
                _ => decoder.on_device(device),
            };
            let decoder = decoder.map_err(|e| LoadError::Device(e.to_string()))?;
            let body = Body::Causal(Arc::new(decoder));
            return Ok(Encoder { spec: self.spec.clone(), body, device: device.clone() });
        }
        let weights = Weights::new(&self.source, &self.prefix, optional(&self.spec), true);
        let loaded = Encoder::of(&self.spec, &self.config, &weights, device);
        weights.finish()?;
        loaded.map_err(|e| LoadError::Device(e.to_string()))
    }

    pub fn parameters(&self) -> usize {
        self.tensors.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }
}

/// The one tensor that may be absent: ModernBERT's first layer has no norm before its attention.
fn optional(spec: &EncoderSpec) -> Option<&'static str> {
    (spec.architecture == Architecture::ModernBert).then_some("layers.0.attn_norm.weight")
}

fn checked(
    name: String,
    spec: EncoderSpec,
    config: Value,
    tokenizer: TokenizerSource,
    source: WeightSource,
    prefix: &str,
) -> std::result::Result<EncoderCheckpoint, LoadError> {
    if let Some(decoder) = &spec.causal {
        let checked = decoder::tensors(decoder).map(|(name, shape)| {
            source.check(&name, &shape)?;
            Ok((name, shape))
        });
        let tensors = checked.collect::<std::result::Result<_, LoadError>>()?;
        return Ok(EncoderCheckpoint {
            name,
            spec,
            config,
            tokenizer,
            source,
            prefix: prefix.into(),
            tensors,
        });
    }
    let weights = Weights::new(&source, prefix, optional(&spec), false);
    let loaded = Encoder::of(&spec, &config, &weights, &Device::Cpu);
    let tensors = weights.finish()?;
    // What is left to go wrong is a key of the configuration.
    loaded.map_err(|e| LoadError::file(&name, e))?;
    Ok(EncoderCheckpoint { name, spec, config, tokenizer, source, prefix: prefix.into(), tensors })
}

fn open_folder(name: &str) -> std::result::Result<EncoderCheckpoint, LoadError> {
    let folder = PathBuf::from(name);
    if !folder.is_dir() {
        return Err(LoadError::Unknown(name.into()));
    }
    check_kind(&folder)?;
    let file = folder.join("config.json");
    let config = pooling::read(&file)?;
    let mut spec = EncoderSpec::of(&file.display().to_string(), &config)?;
    if let Purpose::Embed { pooling, .. } = &mut spec.purpose {
        *pooling = Pooling::of_folder(&folder, pooling.pool)?;
        if spec.causal.is_some() && pooling.pool != Pool::Last {
            let problem = "of a decoder the last token stands for a text (pooling_mode_lasttoken)";
            return Err(LoadError::file(folder.join("1_Pooling/config.json"), problem));
        }
    }
    let sentences = folder.join("sentence_bert_config.json");
    if sentences.is_file() {
        let longest = pooling::read(&sentences)?.get("max_seq_length").and_then(Value::as_u64);
        let longest = longest.and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
        spec.max_tokens = spec.max_tokens.min(longest.unwrap_or(usize::MAX));
    }
    let tokenizer = folder.join("tokenizer.json");
    let bytes = std::fs::read(&tokenizer).map_err(|e| LoadError::io(&tokenizer, e))?;
    let tokenizer = TokenizerSource::Json { file: tokenizer.display().to_string(), bytes };
    let source = WeightSource::Safetensors(TensorTable::open(&folder)?);
    let first = spec.architecture.first_tensor();
    let has = |prefix: &&&str| source.has(&format!("{prefix}{first}"));
    let prefix = spec.architecture.prefixes().iter().find(has).copied().unwrap_or_default();
    if let Some(decoder) = spec.causal.as_mut().filter(|_| prefix.is_empty()) {
        decoder.names = &arch::BARE_NAMES;
        // Without a head there is none to read.
        decoder.tied_head = true;
    }
    checked(name_of(&folder), spec, config, tokenizer, source, prefix)
}

/// A loaded encoder. Runs on any thread; has no state.
pub struct Encoder {
    spec: EncoderSpec,
    body: Body,
    device: Device,
}

#[allow(clippy::large_enum_variant)] // one exists a model
enum Body {
    Network {
        network: Network,
        head: Option<Head>,
    },
    /// Run by [`CausalEncoder`], one a device.
    Causal(Arc<Decoder>),
}

impl Encoder {
    fn of(spec: &EncoderSpec, config: &Value, weights: &Weights, device: &Device) -> Result<Encoder> {
        let vb = weights.builder(device);
        let network = Network::load(spec.architecture, config, &vb)?;
        let head = match spec.purpose {
            Purpose::Embed { .. } => None,
            Purpose::Score => Some(Head::load(spec, config, &vb)?),
        };
        Ok(Encoder { spec: spec.clone(), body: Body::Network { network, head }, device: device.clone() })
    }

    pub fn spec(&self) -> &EncoderSpec {
        &self.spec
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What runs it on a device where it is a decoder; `rows` and `longest` as [`CausalEncoder::new`] has them.
    ///
    /// # Errors
    /// A device without room.
    pub fn causal(&self, on: &Exec, rows: usize, longest: usize) -> Result<Option<CausalEncoder>> {
        let (Body::Causal(decoder), Purpose::Embed { pooling, .. }) = (&self.body, &self.spec.purpose) else {
            return Ok(None);
        };
        CausalEncoder::new(decoder.clone(), on, rows, longest, pooling.normalize).map(Some)
    }

    /// One forward pass over texts that are padded to the longest of them: of each its vector, or its one score.
    ///
    /// # Errors
    /// What candle answers.
    pub fn run(&self, texts: &[&EncoderText]) -> Result<Vec<Vec<f32>>> {
        let Body::Network { network, head } = &self.body else {
            candle_core::bail!("a decoder is run by its device's runner")
        };
        let arrays = self.arrays(texts)?;
        let hidden = network.forward(&arrays)?;
        match (&self.spec.purpose, head) {
            (Purpose::Embed { pooling, .. }, _) => {
                let lengths: Vec<usize> = texts.iter().map(|t| t.ids.len()).collect();
                pooling.apply(&hidden, &lengths)?.to_vec2()
            }
            (Purpose::Score, Some(head)) => {
                let scores = head.forward(&hidden, &arrays.mask)?.to_vec2::<f32>()?;
                let squashed = |x: f32| 1.0 / (1.0 + (-x).exp());
                Ok(scores.into_iter().map(|row| row.into_iter().map(squashed).collect()).collect())
            }
            (Purpose::Score, None) => candle_core::bail!("a model that scores has a head"),
        }
    }

    fn arrays(&self, texts: &[&EncoderText]) -> Result<Arrays> {
        let longest = texts.iter().map(|t| t.ids.len()).max().unwrap_or(0);
        let mut ids = Vec::with_capacity(texts.len() * longest);
        let (mut types, mut mask) = (ids.clone(), ids.clone());
        for (row, text) in (1..).zip(texts) {
            let end = row * longest;
            ids.extend_from_slice(&text.ids);
            mask.resize(ids.len(), 1);
            types.extend_from_slice(&text.types);
            ids.resize(end, self.spec.pad);
            mask.resize(end, 0);
            types.resize(end, 0);
        }
        let tensor = |data: Vec<u32>| Tensor::from_vec(data, (texts.len(), longest), &self.device);
        Ok(Arrays { ids: tensor(ids)?, types: tensor(types)?, mask: tensor(mask)? })
    }
}
