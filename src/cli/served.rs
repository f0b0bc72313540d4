//! Models as clients see them: by which names, with which tokenizer and template.

use std::sync::Arc;

use anyhow::{Context, bail};

use crate::config::{Config, ModelSource};
use crate::model::Checkpoint;
use crate::model::checkpoint::TokenizerSource;
use crate::service::{SamplingDefaults, ServedModel};
use crate::text::chat_template::ChatTemplate;
use crate::text::reasoning::Marks;
use crate::text::tokenizer::{STAND_IN_SPECIALS, STAND_IN_TEMPLATE, Tokenizer};
use crate::text::tool_calls::Dialect;
use crate::unit::Unit;

/// The model that generates text.
///
/// # Errors
/// A tokenizer that is none or not the model's, a template that is none.
pub fn served_model(
    config: &Config,
    checkpoint: &Checkpoint,
    mut names: Vec<String>,
    unit: &Arc<Unit>,
) -> anyhow::Result<ServedModel> {
    let text = &checkpoint.text;
    let (tokenizer, template, end_tokens) = match &text.tokenizer {
        TokenizerSource::Synthetic { vocab } => {
            let tokenizer = Tokenizer::stand_in(*vocab)?;
            let end = tokenizer.id(STAND_IN_SPECIALS[2]).into_iter().collect();
            (tokenizer, Some(ChatTemplate::new(STAND_IN_TEMPLATE, "", STAND_IN_SPECIALS[2])?), end)
        }
        TokenizerSource::Json { file, bytes } => {
            let tokenizer = Tokenizer::from_json(file, bytes)?;
            if tokenizer.vocab() > checkpoint.spec.vocab {
                bail!(
                    "{file}: has ids up to {}, the model's vocabulary is {}",
                    tokenizer.vocab() - 1,
                    checkpoint.spec.vocab
                );
            }
            let template = ChatTemplate::of_checkpoint(text.chat_template.as_deref(), &text.tokenizer_config)
                .with_context(|| match (&checkpoint.folder, &text.chat_template) {
                    (Some(folder), Some(_)) => folder.join("chat_template.jinja").display().to_string(),
                    (Some(folder), None) => folder.join("tokenizer_config.json").display().to_string(),
                    (None, _) => file.clone(),
                })?;
            (tokenizer, template, checkpoint.end_tokens()?)
        }
    };
    if names.is_empty() {
        names.push(checkpoint.name.clone());
    }
    Ok(ServedModel {
        id: names.remove(0),
        aliases: names,
        created: crate::clock::unix_seconds(),
        // As long as there is room for no less.
        max_model_len: checkpoint.spec.max_positions,
        vocab: checkpoint.spec.vocab,
        end_tokens,
        tokenizer: Arc::new(tokenizer),
        thoughts: template
            .as_ref()
            .and_then(|t| Marks::of_template(t.source()))
            .filter(|_| config.tells_thoughts),
        dialect: template.as_ref().and_then(|t| dialect(config.tool_parser, t.for_tools().source())),
        template,
        grammars: Default::default(),
        defaults: SamplingDefaults::of(&text.generation_config),
        unit: unit.clone(),
    })
}

/// How a model writes its calls, by the setting and its chat template.
fn dialect(parser: &str, template: &str) -> Option<Dialect> {
    match parser {
        "auto" => Dialect::of_template(template),
        name => Dialect::named(name, template),
    }
}

/// The names of each of `--model`: those of `--served-model-name` for the first, else what stands before its `=`. None
/// is the model's own.
pub fn names(config: &Config) -> Vec<Vec<String>> {
    let of = |(i, source): (usize, &ModelSource)| match (i, config.served_model_names.as_slice()) {
        (0, served @ [_, ..]) => served.to_vec(),
        _ => source.name.iter().cloned().collect(),
    };
    config.models.iter().enumerate().map(of).collect()
}

/// # Errors
/// Two models of one name.
pub fn check_names<'a>(names: impl Iterator<Item = &'a String>) -> anyhow::Result<()> {
    let mut seen = std::collections::BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            bail!("two models would answer to `{name}`: name them, as --model NAME=DIR");
        }
    }
    Ok(())
}
