//! `hashwatt models`: what can be served here, and writing a model as a HuggingFace-style folder.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::ArgMatches;
use serde_json::{Map, Value, json};

use super::{Exit, hub, machine};
use crate::config::Config;
use crate::model::Checkpoint;
use crate::model::arch;
use crate::model::checkpoint::{PRESETS, TokenizerSource, preset_config};
use crate::model::decoder;
use crate::model::encoder::{ENCODER_PRESETS, EncoderCheckpoint, Purpose};
use crate::model::weights::WeightSource;
use crate::ops::cpu::fp8::F8E4M3;
use crate::ops::pool::Pool;
use crate::ops::weight::{Weight, WeightSlice, WeightType};
use crate::text::tokenizer::{STAND_IN_SPECIALS, STAND_IN_TEMPLATE, stand_in_json};

/// Lists the demo, the presets, the checkpoints under `models-dir`, and what the hub's cache holds.
pub fn list(config: &Config, json: bool) -> Exit {
    let mut rows = vec![("demo".to_string(), describe("demo"))];
    rows.extend(PRESETS.iter().map(|(name, _)| {
        let id = format!("synthetic:{name}");
        let about = preset_config(name).and_then(|c| arch::spec_of(name, &c)).map_or_else(
            |e| format!("unusable: {e}"),
            |s| size(s.architecture, s.parameters(), s.max_positions),
        );
        (id, about)
    }));
    rows.extend(ENCODER_PRESETS.iter().map(|(name, _)| {
        let id = format!("synthetic:{name}");
        let about = describe(&id);
        (id, about)
    }));
    if let Some(dir) = &config.models_dir {
        let entries = std::fs::read_dir(dir).with_context(|| format!("models-dir {}", dir.display()))?;
        let mut folders: Vec<_> = entries
            .filter_map(|e| Some(e.ok()?.path()))
            .filter(|p| p.join("config.json").is_file())
            .collect();
        folders.sort();
        rows.extend(folders.into_iter().map(|p| (p.display().to_string(), describe(&p.to_string_lossy()))));
    }
    let mut all: Vec<Value> = rows.iter().map(|(m, about)| json!({"model": m, "about": about})).collect();
    for (name, folder) in hub::cached(config) {
        let about = describe_cached(&folder);
        all.push(json!({"model": name, "about": about, "path": folder}));
        rows.push((name, about));
    }
    match json {
        true => println!("{}", Value::from(all)),
        false => rows.iter().for_each(|(model, about)| println!("{model:<24} {about}")),
    }
    Ok(0)
}

fn size(architecture: &str, parameters: usize, context: usize) -> String {
    let parameters = match parameters {
        n if n < 1_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
        n => format!("{:.2} B", n as f64 / 1e9),
    };
    format!("{architecture}, {parameters} parameters, context {context}")
}

/// Of a snapshot, which may hold GGUF files alone.
fn describe_cached(folder: &Path) -> String {
    let ggufs = || {
        let entries = std::fs::read_dir(folder).into_iter().flatten().filter_map(|e| Some(e.ok()?.path()));
        let mut all: Vec<_> = entries.filter(|p| p.extension().is_some_and(|e| e == "gguf")).collect();
        all.sort();
        all.iter().filter_map(|p| Some(p.file_name()?.to_string_lossy().into_owned())).collect::<Vec<_>>()
    };
    match folder.join("config.json").is_file() {
        true => describe(&folder.to_string_lossy()),
        false => match ggufs() {
            none if none.is_empty() => "incomplete: no config.json".into(),
            all => format!("GGUF: {}", all.join(", ")),
        },
    }
}

fn describe(model: &str) -> String {
    let pool = Arc::new(Pool::new(1));
    if EncoderCheckpoint::is_one(model) {
        return EncoderCheckpoint::open(model, &pool).map_or_else(
            |e| format!("unusable: {e}"),
            |e| {
                let does = if e.spec.purpose == Purpose::Score { "scores pairs" } else { "embeds" };
                let about = size(e.spec.architecture.as_str(), e.parameters(), e.spec.max_tokens);
                format!("{about}, {does}")
            },
        );
    }
    match Checkpoint::open(model, &pool) {
        Ok(c) => {
            let about = size(c.spec.architecture, c.spec.parameters(), c.spec.max_positions);
            match c.source.four_bit() {
                None => about,
                Some(packed) => format!("{about}, 4-bit {}", packed.how().name()),
            }
        }
        Err(e) => format!("unusable: {e}"),
    }
}

/// `models write SOURCE DIR`.
pub fn write(matches: &ArgMatches) -> Exit {
    let argument = |name: &str| matches.get_one::<String>(name).cloned().unwrap_or_default();
    let (source, folder) = (argument("source"), argument("folder"));
    let folder = Path::new(&folder);
    let pool = Arc::new(Pool::new(machine::cores()));
    if folder.join("config.json").exists() {
        bail!("{} already holds a model", folder.display());
    }
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let weights = folder.join("model.safetensors");
    let (name, bytes) = if EncoderCheckpoint::is_one(&source) {
        let encoder = EncoderCheckpoint::open(&source, &pool)?;
        put(folder, "config.json", &serde_json::to_vec_pretty(&encoder.config)?)?;
        match &encoder.tokenizer {
            TokenizerSource::Json { bytes, .. } => put(folder, "tokenizer.json", bytes)?,
            TokenizerSource::Synthetic { vocab } => {
                put(folder, "tokenizer.json", &serde_json::to_vec(&stand_in_json(*vocab)?)?)?;
            }
        }
        if encoder.spec.causal.is_some() {
            // That it makes vectors only these files say.
            let module = |kind: &str, path: &str| json!({"type": format!("sentence_transformers.models.{kind}"), "path": path});
            let modules = json!([
                module("Transformer", ""),
                module("Pooling", "1_Pooling"),
                module("Normalize", "2_Normalize")
            ]);
            put(folder, "modules.json", modules.to_string().as_bytes())?;
            std::fs::create_dir_all(folder.join("1_Pooling"))?;
            put(
                folder,
                "1_Pooling/config.json",
                json!({"pooling_mode_lasttoken": true}).to_string().as_bytes(),
            )?;
        }
        (encoder.name, write_weights(&encoder.source, &encoder.tensors, &weights)?)
    } else {
        let checkpoint = Checkpoint::open(&source, &pool)?;
        write_text(&checkpoint, folder)?;
        let tensors: Vec<_> = decoder::tensors(&checkpoint.spec).collect();
        (checkpoint.name, write_weights(&checkpoint.source, &tensors, &weights)?)
    };
    println!("wrote {name} to {} ({:.1} MB of weights)", folder.display(), bytes as f64 / 1e6);
    Ok(0)
}

fn put(folder: &Path, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let path = folder.join(name);
    std::fs::write(&path, bytes).with_context(|| path.display().to_string())
}

fn write_text(checkpoint: &Checkpoint, folder: &Path) -> anyhow::Result<()> {
    let put = |name: &str, bytes: &[u8]| put(folder, name, bytes);
    let pretty = |v: &Value| serde_json::to_vec_pretty(v);
    let mut config = checkpoint.config.clone();
    match &checkpoint.text.tokenizer {
        TokenizerSource::Json { bytes, .. } => {
            put("tokenizer.json", bytes)?;
            put("tokenizer_config.json", &pretty(&checkpoint.text.tokenizer_config)?)?;
            put("generation_config.json", &pretty(&checkpoint.text.generation_config)?)?;
        }
        TokenizerSource::Synthetic { vocab } => {
            let end = vocab - 1;
            config["eos_token_id"] = json!(end);
            config["bos_token_id"] = json!(vocab - STAND_IN_SPECIALS.len());
            put("tokenizer.json", &serde_json::to_vec(&stand_in_json(*vocab)?)?)?;
            let tokenizer = json!({
                "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": STAND_IN_SPECIALS[0],
                "eos_token": STAND_IN_SPECIALS[2], "chat_template": STAND_IN_TEMPLATE,
            });
            put("tokenizer_config.json", &pretty(&tokenizer)?)?;
            put("generation_config.json", &pretty(&json!({"eos_token_id": end}))?)?;
        }
    }
    put("config.json", &pretty(&config)?)
}

/// Writes all tensors, one at a time: a model larger than memory can be written.
fn write_weights(
    source: &WeightSource,
    tensors: &[(String, Vec<usize>)],
    path: &Path,
) -> anyhow::Result<u64> {
    let kind = source.weight(&tensors[0].0, &tensors[0].1)?.kind();
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut offset = 0u64;
    for (name, shape) in tensors {
        let end = offset + (shape.iter().product::<usize>() * kind.bytes()) as u64;
        let dtype = match kind {
            WeightType::F32 => "F32",
            WeightType::F16 => "F16",
            WeightType::Bf16 => "BF16",
            WeightType::Fp8 => "F8_E4M3",
            WeightType::Blocks(format) => bail!("safetensors has no {}", format.name()),
        };
        header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}));
        offset = end;
    }
    let mut header = serde_json::to_vec(&header)?;
    // The data begins at a multiple of eight, so that mapped weights are aligned.
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut out = BufWriter::new(File::create(path).with_context(|| path.display().to_string())?);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    for (name, shape) in tensors {
        let weight = source.weight(name, shape)?;
        if weight.kind() != kind || weight.scales().is_some() {
            bail!("{name}: weights with scales, or of several types, are not written");
        }
        write_tensor(&weight, &mut out)?;
    }
    out.flush()?;
    Ok(offset)
}

fn write_tensor(weight: &Weight, out: &mut impl Write) -> std::io::Result<()> {
    match weight.slice() {
        WeightSlice::F32(s) => s.iter().try_for_each(|x| out.write_all(&x.to_le_bytes())),
        WeightSlice::F16(s) => s.iter().try_for_each(|x| out.write_all(&x.to_le_bytes())),
        WeightSlice::Bf16(s) => s.iter().try_for_each(|x| out.write_all(&x.to_le_bytes())),
        WeightSlice::Fp8(s) => out.write_all(F8E4M3::bytes(s)),
        WeightSlice::Blocks(_) => Err(std::io::Error::other("safetensors has no blocks")),
    }
}
