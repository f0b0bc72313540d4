//! The draft model of `--draft-model`: opened beside the model that it guesses for.

use std::sync::Arc;

use anyhow::{Context, bail};

use super::assemble::on_gpus;
use super::machine;
use super::room::{self, GpuNeeds};
use crate::config::Config;
use crate::model::Checkpoint;
use crate::model::checkpoint::TokenizerSource;
use crate::model::encoder::EncoderCheckpoint;
use crate::ops::pool::Pool;
use crate::text::tokenizer::Tokenizer;

/// Opens it, if one is asked for, for a model with this tokenizer and context.
///
/// # Errors
/// One that is no decoder, has another tokenizer, or does not fit.
pub fn open(
    config: &Config,
    tokenizer: &Tokenizer,
    context: usize,
    pool: &Arc<Pool>,
) -> anyhow::Result<Option<Checkpoint>> {
    let draft = config.speculation.as_ref().and_then(|s| s.draft.as_deref());
    let opened = draft.map(|model| opened(config, model, tokenizer, pool).context("--draft-model"));
    let mut opened = opened.transpose()?;
    if let Some(draft) = &mut opened {
        draft.spec.settle_context(Some(config.max_model_len.unwrap_or(context)));
    }
    Ok(opened)
}

fn opened(
    config: &Config,
    model: &str,
    tokenizer: &Tokenizer,
    pool: &Arc<Pool>,
) -> anyhow::Result<Checkpoint> {
    if EncoderCheckpoint::is_one(model) {
        bail!("{model} is an encoder, which generates no text");
    }
    let checkpoint = Checkpoint::open(model, pool)?;
    room::check_products(config, &checkpoint)?;
    let available = machine::memory().filter(|_| !on_gpus(config)).map(|memory| memory.available);
    if let Some(word) =
        available.map(|bytes| room::check_weights(config, &checkpoint, bytes)).transpose()?.flatten()
    {
        tracing::warn!("{word}");
    }
    let own = match &checkpoint.text.tokenizer {
        TokenizerSource::Synthetic { vocab } => Tokenizer::stand_in(*vocab)?,
        TokenizerSource::Json { file, bytes } => Tokenizer::from_json(file, bytes)?,
    };
    let differs = |id: &u32| tokenizer.token_bytes(*id) != own.token_bytes(*id);
    if tokenizer.vocab() != own.vocab() {
        bail!(
            "{model} has {} tokens, and the model that it is to guess for {}",
            own.vocab(),
            tokenizer.vocab()
        );
    }
    if let Some(id) = (0..own.vocab() as u32).find(differs) {
        bail!("{model} has another token {id} than the model that it is to guess for");
    }
    Ok(checkpoint)
}

/// Bytes on a GPU beside its KV cache: weights, a workspace of its own, and what its launches take.
pub fn bytes(config: &Config, draft: Option<&Checkpoint>) -> u64 {
    draft.map_or(0, |draft| GpuNeeds::of(config, draft, 0).total())
}
