//! Encoders of a unit: opened beside the chat model, given their longest text, loaded to each device.

use std::sync::Arc;

use super::assemble::Opened;
use crate::config::{Config, ModelSource};
use crate::engine::encode::HostedEncoder;
use crate::model::checkpoint::TokenizerSource;
use crate::model::encoder::EncoderCheckpoint;
use crate::ops::exec::Exec;
use crate::ops::pool::Pool;
use crate::service::ServedEncoder;
use crate::text::tokenizer::Tokenizer;
use crate::unit::Unit;
use anyhow::{anyhow, bail};

/// What the attention of the longest text may take where nobody says how long texts may be: it is held whole.
const ATTENTION_BYTES: u64 = 1 << 30;

/// An encoder that has been opened and checked.
pub struct OpenedEncoder {
    pub checkpoint: EncoderCheckpoint,
    pub max_model_len: usize,
    /// Names clients use for it; the first is the one answered with.
    pub names: Vec<String>,
}

impl OpenedEncoder {
    pub fn open(
        config: &Config,
        source: &ModelSource,
        names: Vec<String>,
        pool: &Arc<Pool>,
    ) -> anyhow::Result<OpenedEncoder> {
        let checkpoint = EncoderCheckpoint::open(&source.model, pool)?;
        let spec = &checkpoint.spec;
        let longest = spec.longest_within(ATTENTION_BYTES);
        let max_model_len = config.max_model_len.unwrap_or(longest).min(spec.max_tokens);
        if max_model_len < spec.max_tokens && config.max_model_len.is_none() {
            tracing::info!(
                "{}: texts of up to {max_model_len} tokens of its {}, whose attention takes 1 GiB; \
                 --max-model-len allows longer ones",
                checkpoint.name,
                spec.max_tokens
            );
        }
        let names = if names.is_empty() { vec![checkpoint.name.clone()] } else { names };
        Ok(OpenedEncoder { checkpoint, max_model_len, names })
    }

    /// Bytes on a device: weights, and what the longest text takes beside them.
    pub fn bytes(&self) -> u64 {
        let spec = &self.checkpoint.spec;
        let states = 64 * spec.hidden as u64 * self.max_model_len as u64;
        4 * self.checkpoint.parameters() as u64 + spec.attention_bytes(self.max_model_len) + states
    }

    fn served(&self, number: usize, unit: &Arc<Unit>) -> anyhow::Result<ServedEncoder> {
        let (checkpoint, spec) = (&self.checkpoint, &self.checkpoint.spec);
        let tokenizer = match &checkpoint.tokenizer {
            TokenizerSource::Synthetic { vocab } => Tokenizer::stand_in(*vocab)?,
            TokenizerSource::Json { file, bytes } => {
                let tokenizer = Tokenizer::from_json(file, bytes)?;
                if tokenizer.vocab() > spec.vocab {
                    let last = tokenizer.vocab() - 1;
                    bail!("{file}: has ids up to {last}, the model's vocabulary is {}", spec.vocab);
                }
                tokenizer
            }
        };
        let mut names = self.names.clone();
        Ok(ServedEncoder {
            id: names.remove(0),
            aliases: names,
            created: crate::clock::unix_seconds(),
            max_model_len: self.max_model_len,
            vocab: spec.vocab,
            types: spec.types,
            dimensions: spec.hidden,
            purpose: spec.purpose.clone(),
            tokenizer: Arc::new(tokenizer),
            number,
            unit: unit.clone(),
        })
    }
}

/// As clients see them.
///
/// # Errors
/// A tokenizer that is none, or not the model's.
pub fn served(encoders: &[OpenedEncoder], unit: &Arc<Unit>) -> anyhow::Result<Vec<ServedEncoder>> {
    encoders.iter().enumerate().map(|(number, encoder)| encoder.served(number, unit)).collect()
}

/// Reads all encoders' weights to a device.
///
/// # Errors
/// Weights that are not finite, a device without room.
pub fn load(opened: &Opened, on: &Exec) -> anyhow::Result<Vec<HostedEncoder>> {
    let load = |e: &OpenedEncoder| {
        let loaded = e.checkpoint.load(&on.device);
        let encoder = loaded.map_err(|error| anyhow!("{}: {error}", e.checkpoint.name))?;
        let threads = opened.sizes.threads_per_device;
        Ok(HostedEncoder { encoder: Arc::new(encoder), threads, on: on.clone(), longest: e.max_model_len })
    };
    opened.encoders.iter().map(load).collect()
}
