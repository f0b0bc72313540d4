//! Opening a model: a HuggingFace-style folder, a GGUF file, `synthetic:PRESET`, or the demo in the binary.
//!
//! Opening is cheap and complete: configuration, tensor table, shapes and file sizes are checked before
//! a number is read. The text files are handed on as they are; reading them is `text`'s work.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::LoadError;
use super::arch;
use super::decoder::{self, Decoder, Precision, Quantize, Reading};
use super::gguf;
use super::spec::DecoderSpec;
use super::weights::safetensors::TensorTable;
use super::weights::synthetic::Generator;
use super::weights::{WeightSource, quantization};
use crate::ops::pool::Pool;

/// Seed of synthetic weights: part of what `synthetic:NAME` means.
pub const SYNTHETIC_SEED: u64 = 7;
/// Bytes of a file that is no weights; the largest tokenizers have 40 million.
const LONGEST_TEXT: u64 = 256 << 20;
const SYNTHETIC: &str = "synthetic:";

/// The cards of `models/` that can be built without a download, by name.
pub const PRESETS: &[(&str, &str)] = &[
    ("gemma-2-27b", include_str!("../../models/gemma-2-27b.toml")),
    ("gemma-2-2b", include_str!("../../models/gemma-2-2b.toml")),
    ("gemma-2-9b", include_str!("../../models/gemma-2-9b.toml")),
    ("gemma-3-12b", include_str!("../../models/gemma-3-12b.toml")),
    ("gemma-3-1b", include_str!("../../models/gemma-3-1b.toml")),
    ("gemma-3-27b", include_str!("../../models/gemma-3-27b.toml")),
    ("gemma-3-4b", include_str!("../../models/gemma-3-4b.toml")),
    ("glm-4-32b", include_str!("../../models/glm-4-32b.toml")),
    ("glm-4-9b", include_str!("../../models/glm-4-9b.toml")),
    ("gpt-oss-120b", include_str!("../../models/gpt-oss-120b.toml")),
    ("gpt-oss-20b", include_str!("../../models/gpt-oss-20b.toml")),
    ("granite-3.3-2b", include_str!("../../models/granite-3.3-2b.toml")),
    ("granite-3.3-8b", include_str!("../../models/granite-3.3-8b.toml")),
    ("llama-2-13b", include_str!("../../models/llama-2-13b.toml")),
    ("llama-2-70b", include_str!("../../models/llama-2-70b.toml")),
    ("llama-2-7b", include_str!("../../models/llama-2-7b.toml")),
    ("llama-3.1-8b", include_str!("../../models/llama-3.1-8b.toml")),
    ("llama-3.2-1b", include_str!("../../models/llama-3.2-1b.toml")),
    ("llama-3.2-3b", include_str!("../../models/llama-3.2-3b.toml")),
    ("llama-3.3-70b", include_str!("../../models/llama-3.3-70b.toml")),
    ("ministral-8b", include_str!("../../models/ministral-8b.toml")),
    ("mistral-7b", include_str!("../../models/mistral-7b.toml")),
    ("mistral-nemo-12b", include_str!("../../models/mistral-nemo-12b.toml")),
    ("mistral-small-24b", include_str!("../../models/mistral-small-24b.toml")),
    ("mixtral-8x7b", include_str!("../../models/mixtral-8x7b.toml")),
    ("olmo-2-13b", include_str!("../../models/olmo-2-13b.toml")),
    ("olmo-2-1b", include_str!("../../models/olmo-2-1b.toml")),
    ("olmo-2-32b", include_str!("../../models/olmo-2-32b.toml")),
    ("olmo-2-7b", include_str!("../../models/olmo-2-7b.toml")),
    ("phi-3-mini", include_str!("../../models/phi-3-mini.toml")),
    ("phi-3.5-mini", include_str!("../../models/phi-3.5-mini.toml")),
    ("phi-4", include_str!("../../models/phi-4.toml")),
    ("phi-4-mini", include_str!("../../models/phi-4-mini.toml")),
    ("qwen1.5-moe-a2.7b", include_str!("../../models/qwen1.5-moe-a2.7b.toml")),
    ("qwen2.5-0.5b", include_str!("../../models/qwen2.5-0.5b.toml")),
    ("qwen2.5-1.5b", include_str!("../../models/qwen2.5-1.5b.toml")),
    ("qwen2.5-14b", include_str!("../../models/qwen2.5-14b.toml")),
    ("qwen2.5-32b", include_str!("../../models/qwen2.5-32b.toml")),
    ("qwen2.5-3b", include_str!("../../models/qwen2.5-3b.toml")),
    ("qwen2.5-72b", include_str!("../../models/qwen2.5-72b.toml")),
    ("qwen2.5-7b", include_str!("../../models/qwen2.5-7b.toml")),
    ("qwen3-0.6b", include_str!("../../models/qwen3-0.6b.toml")),
    ("qwen3-1.7b", include_str!("../../models/qwen3-1.7b.toml")),
    ("qwen3-14b", include_str!("../../models/qwen3-14b.toml")),
    ("qwen3-30b-a3b", include_str!("../../models/qwen3-30b-a3b.toml")),
    ("qwen3-32b", include_str!("../../models/qwen3-32b.toml")),
    ("qwen3-4b", include_str!("../../models/qwen3-4b.toml")),
    ("qwen3-8b", include_str!("../../models/qwen3-8b.toml")),
    ("smollm2-1.7b", include_str!("../../models/smollm2-1.7b.toml")),
    ("smollm2-135m", include_str!("../../models/smollm2-135m.toml")),
    ("smollm2-360m", include_str!("../../models/smollm2-360m.toml")),
    ("smollm3-3b", include_str!("../../models/smollm3-3b.toml")),
];

/// The demo model's files, compiled in.
mod demo {
    pub const CONFIG: &str = include_str!("../../models/demo/config.json");
    pub const GENERATION: &str = include_str!("../../models/demo/generation_config.json");
    pub const TOKENIZER: &[u8] = include_bytes!("../../models/demo/tokenizer.json");
    pub const TOKENIZER_CONFIG: &str = include_str!("../../models/demo/tokenizer_config.json");
    pub const WEIGHTS: &[u8] = include_bytes!("../../models/demo/model.safetensors");
}

/// Where a checkpoint's tokenizer comes from.
pub enum TokenizerSource {
    /// The bytes of a `tokenizer.json`, and the file's name for messages.
    Json { file: String, bytes: Vec<u8> },
    /// A stand-in of exactly this vocabulary (synthetic weights).
    Synthetic { vocab: usize },
}

/// The files of a checkpoint that are about text, unread.
pub struct TextFiles {
    pub tokenizer: TokenizerSource,
    /// `tokenizer_config.json`, with its file name; null when there is none.
    pub tokenizer_config: Value,
    /// `chat_template.jinja`.
    pub chat_template: Option<String>,
    /// `generation_config.json`; null when there is none.
    pub generation_config: Value,
}

/// A model that has been opened and checked, its weights not yet read.
pub struct Checkpoint {
    /// The id it is served under unless another is given.
    pub name: String,
    pub spec: DecoderSpec,
    /// The raw configuration (end-of-sequence ids are read from it too).
    pub config: Value,
    pub text: TextFiles,
    pub source: WeightSource,
    /// The folder, when there is one.
    pub folder: Option<PathBuf>,
}

impl Checkpoint {
    /// Opens `demo`, `synthetic:PRESET`, a GGUF file or a folder. `pool` makes synthetic weights, and lays out blocks.
    ///
    /// # Errors
    /// Everything that can be known without reading weights; each names file and tensor or key.
    pub fn open(model: &str, pool: &Arc<Pool>) -> Result<Checkpoint, LoadError> {
        let checkpoint = if model == "demo" {
            open_demo()?
        } else if let Some(preset) = model.strip_prefix(SYNTHETIC) {
            open_synthetic(preset, pool)?
        } else if Path::new(model).is_file() {
            open_file(Path::new(model), pool)?
        } else {
            open_folder(Path::new(model), model, pool)?
        };
        for (name, shape) in decoder::tensors(&checkpoint.spec) {
            checkpoint.source.check(&name, &shape)?;
        }
        Ok(checkpoint)
    }

    /// Any architecture with weights from the fixed seed. `file` is named in errors about `config`.
    pub fn synthetic(
        name: &str,
        file: &str,
        config: Value,
        pool: &Arc<Pool>,
    ) -> Result<Checkpoint, LoadError> {
        let spec = arch::spec_of(file, &config)?;
        let source = WeightSource::Synthetic(Generator::new(SYNTHETIC_SEED, &spec, pool.clone()));
        Ok(Checkpoint {
            name: name.into(),
            text: TextFiles {
                tokenizer: TokenizerSource::Synthetic { vocab: spec.vocab },
                tokenizer_config: Value::Null,
                chat_template: None,
                generation_config: Value::Null,
            },
            spec,
            config,
            source,
            folder: None,
        })
    }

    /// Reads the weights.
    pub fn load(
        &self,
        precision: Precision,
        scan_all: bool,
        progress: &dyn Fn(f32),
    ) -> Result<Decoder, LoadError> {
        self.load_as(Quantize::AsStored, precision, scan_all, progress)
    }

    /// Reads the weights, those of products rounded.
    pub fn load_as(
        &self,
        quantize: Quantize,
        precision: Precision,
        scan_all: bool,
        progress: &dyn Fn(f32),
    ) -> Result<Decoder, LoadError> {
        self.check_rounding(quantize)?;
        Decoder::load(&self.spec, &self.source, Reading { precision, quantize, scan_all }, progress)
    }

    /// Whether weights may be rounded so.
    ///
    /// # Errors
    /// Matrices of four bits are rounded already, and would be worse and no smaller.
    pub fn check_rounding(&self, quantize: Quantize) -> Result<(), LoadError> {
        let Some(packed) = self.source.four_bit().filter(|_| quantize != Quantize::AsStored) else {
            return Ok(());
        };
        let folder = self.folder.as_deref().unwrap_or(Path::new(""));
        Err(LoadError::Config {
            file: folder.join("config.json").display().to_string(),
            key: quantization::KEY.into(),
            problem: format!(
                "has {} weights of 4 bits, which are not rounded again: leave out --quantization",
                packed.how().name()
            ),
        })
    }

    /// Ids that end a sequence: `eos_token_id` of the generation config, else of the model's. A stand-in
    /// tokenizer names its own; the configured ids mean nothing to it.
    pub fn end_tokens(&self) -> Result<Vec<u32>, LoadError> {
        if matches!(self.text.tokenizer, TokenizerSource::Synthetic { .. }) {
            return Ok(Vec::new());
        }
        for (file, json) in
            [("generation_config.json", &self.text.generation_config), ("config.json", &self.config)]
        {
            let ids = match json.get("eos_token_id") {
                None | Some(Value::Null) => continue,
                Some(Value::Array(ids)) => ids.clone(),
                Some(id) => vec![id.clone()],
            };
            let parse = |id: &Value| {
                id.as_u64().and_then(|i| u32::try_from(i).ok()).filter(|i| (*i as usize) < self.spec.vocab)
            };
            return ids.iter().map(parse).collect::<Option<Vec<u32>>>().ok_or_else(|| LoadError::Config {
                file: self.folder.as_ref().map_or(file.into(), |f| f.join(file).display().to_string()),
                key: "eos_token_id".into(),
                problem: format!("is not one or more token ids below {}", self.spec.vocab),
            });
        }
        Ok(Vec::new())
    }
}

fn json(file: &str, text: &str) -> Result<Value, LoadError> {
    serde_json::from_str(text).map_err(|e| LoadError::file(file, e))
}

fn open_demo() -> Result<Checkpoint, LoadError> {
    let file = |name: &str| format!("models/demo/{name} (in the binary)");
    let config = json(&file("config.json"), demo::CONFIG)?;
    Ok(Checkpoint {
        name: "demo".into(),
        spec: arch::spec_of(&file("config.json"), &config)?,
        config,
        text: TextFiles {
            tokenizer: TokenizerSource::Json {
                file: file("tokenizer.json"),
                bytes: demo::TOKENIZER.to_vec(),
            },
            tokenizer_config: json(&file("tokenizer_config.json"), demo::TOKENIZER_CONFIG)?,
            chat_template: None,
            generation_config: json(&file("generation_config.json"), demo::GENERATION)?,
        },
        source: WeightSource::Safetensors(TensorTable::embedded(&file("model.safetensors"), demo::WEIGHTS)?),
        folder: None,
    })
}

/// The `[config]` of a preset, in the words of a `config.json`.
pub fn preset_config(preset: &str) -> Result<Value, LoadError> {
    let (_, card) = PRESETS
        .iter()
        .find(|(name, _)| *name == preset)
        .ok_or_else(|| LoadError::Unknown(format!("{SYNTHETIC}{preset}")))?;
    card_config(preset, card)
}

/// What the card of a preset says under a key: `repo`, the repository that it has its shape of; `note`, what sizes of the
/// shape do not say.
pub fn preset_says(preset: &str, key: &str) -> Option<String> {
    let (_, card) = PRESETS.iter().find(|(name, _)| *name == preset)?;
    let card: Value = toml::from_str(card).ok()?;
    card.get(key)?.as_str().map(str::to_string)
}

/// The `[config]` of the card of a preset.
pub(super) fn card_config(preset: &str, card: &str) -> Result<Value, LoadError> {
    let file = format!("models/{preset}.toml");
    let card: Value = toml::from_str(card).map_err(|e| LoadError::file(&file, e))?;
    card.get("config").cloned().ok_or_else(|| LoadError::file(&file, "has no [config]"))
}

fn open_synthetic(preset: &str, pool: &Arc<Pool>) -> Result<Checkpoint, LoadError> {
    let file = format!("models/{preset}.toml");
    Checkpoint::synthetic(&format!("{SYNTHETIC}{preset}"), &file, preset_config(preset)?, pool)
}

/// A model of one file.
fn open_file(file: &Path, pool: &Arc<Pool>) -> Result<Checkpoint, LoadError> {
    match file.extension().and_then(|e| e.to_str()) {
        Some("gguf") => gguf::open(file, pool),
        Some("safetensors") => {
            Err(LoadError::file(file, "is weights alone: name the folder with its config.json"))
        }
        _ if is_pickle(file) => Err(LoadError::file(file, PICKLE)),
        _ => Err(LoadError::file(file, "is a file, and none of GGUF (.gguf); folders are read, too")),
    }
}

/// What a folder's model is called: as the folder, or as the repository whose snapshot in the hub's cache it is.
pub(super) fn name_of(folder: &Path) -> String {
    let last = |path: &Path| path.file_name().map(|n| n.to_string_lossy().into_owned());
    let repository = || {
        let snapshots = folder.parent().filter(|p| last(p).as_deref() == Some("snapshots"))?;
        Some(last(snapshots.parent()?)?.strip_prefix("models--")?.replacen("--", "/", 1))
    };
    repository().or_else(|| last(folder)).unwrap_or_else(|| folder.display().to_string())
}

/// Refuses what is no model, and weights that are programs, by the file that says so.
pub(super) fn check_kind(folder: &Path) -> Result<(), LoadError> {
    if TensorTable::is_in(folder) {
        return Ok(());
    }
    let adapter = folder.join("adapter_config.json");
    if adapter.is_file() {
        return Err(LoadError::file(
            adapter,
            "this is an adapter, which is no model by itself: whole models are served, in safetensors or GGUF",
        ));
    }
    let files = std::fs::read_dir(folder).map_err(|e| LoadError::io(folder, e))?;
    let mut pickles: Vec<_> = files.filter_map(|f| Some(f.ok()?.path())).filter(|f| is_pickle(f)).collect();
    pickles.sort();
    match pickles.first() {
        Some(file) => Err(LoadError::file(file, PICKLE)),
        None => Ok(()),
    }
}

const WHOLE: &str = "is missing; a model is a folder with config.json, tokenizer.json and weights in safetensors, or a GGUF file";
const PICKLE: &str = "is a pickle, which is a program, and never loaded; safetensors and GGUF are read";

fn is_pickle(file: &Path) -> bool {
    let ending = file.extension().and_then(|e| e.to_str());
    matches!(ending, Some("bin" | "pt" | "pth" | "ckpt" | "pkl" | "pickle"))
}

fn open_folder(folder: &Path, name: &str, pool: &Arc<Pool>) -> Result<Checkpoint, LoadError> {
    if !folder.is_dir() {
        return Err(LoadError::Unknown(name.into()));
    }
    check_kind(folder)?;
    let required = |file: &str| {
        let path = folder.join(file);
        if !path.exists() {
            return Err(LoadError::file(&path, WHOLE));
        }
        let length = std::fs::metadata(&path).map_err(|e| LoadError::io(&path, e))?.len();
        if length > LONGEST_TEXT {
            return Err(LoadError::file(&path, format!("has {length} bytes; up to {LONGEST_TEXT} are read")));
        }
        std::fs::read(&path).map_err(|e| LoadError::io(&path, e))
    };
    let optional = |file: &str| match folder.join(file).is_file() {
        true => required(file).map(Some),
        false => Ok(None),
    };
    let value = |file: &str, bytes: Option<Vec<u8>>| match bytes {
        None => Ok(Value::Null),
        Some(b) => serde_json::from_slice(&b).map_err(|e| LoadError::file(folder.join(file), e)),
    };
    let config_file = folder.join("config.json").display().to_string();
    let config = value("config.json", Some(required("config.json")?))?;
    let mut spec = arch::spec_of(&config_file, &config)?;
    let quantization = quantization::of_config(&config_file, &config)?;
    let table = TensorTable::open(folder)?.with_quantization(quantization, decoder::tensors(&spec), pool)?;
    // A file may say one type and have another. The head's decides what is computed in.
    let head = if spec.tied_head { spec.names.embedding } else { spec.names.head };
    spec.float_type = table.float_type(head).unwrap_or(spec.float_type);
    let template = optional("chat_template.jinja")?
        .map(|b| String::from_utf8(b).map_err(|e| LoadError::file(folder.join("chat_template.jinja"), e)))
        .transpose()?;
    Ok(Checkpoint {
        name: name_of(folder),
        spec,
        config,
        text: TextFiles {
            tokenizer: TokenizerSource::Json {
                file: folder.join("tokenizer.json").display().to_string(),
                bytes: required("tokenizer.json")?,
            },
            tokenizer_config: value("tokenizer_config.json", optional("tokenizer_config.json")?)?,
            chat_template: template,
            generation_config: value("generation_config.json", optional("generation_config.json")?)?,
        },
        source: WeightSource::Safetensors(table),
        folder: Some(folder.to_path_buf()),
    })
}
