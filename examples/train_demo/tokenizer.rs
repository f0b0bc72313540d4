//! The demo's tokenizer: byte-level BPE trained on the corpus, and ChatML around it.
//!
//! The chat format is written twice, here for training and as a template for the server; `template`
//! is checked against `segments` before training, so that the two cannot drift apart.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow, ensure};
use hashwatt::text::tokenizer::STAND_IN_TEMPLATE;
use minijinja::context;
use serde_json::{Value, json};
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::{AddedToken, Model, Tokenizer};

use crate::corpus::Dialogue;

pub const END_OF_TEXT: &str = "<|endoftext|>";
pub const START: &str = "<|im_start|>";
pub const END: &str = "<|im_end|>";
pub const END_OF_TEXT_ID: u32 = 0;
pub const END_ID: u32 = 2;
const MAX_VOCAB: usize = 1536;

/// Token ids and, for each, whether the model is taught to predict it.
pub struct Example {
    pub ids: Vec<u32>,
    pub taught: Vec<bool>,
}

pub fn train(texts: &[String]) -> Result<Tokenizer> {
    // No prefix space: the server must see exactly the bytes of the rendered template.
    let byte_level = ByteLevel::new(false, false, true);
    let specials = [END_OF_TEXT, START, END].map(|s| AddedToken::from(s, true));
    let mut trainer: TrainerWrapper = BpeTrainerBuilder::new()
        .show_progress(false)
        .vocab_size(MAX_VOCAB)
        .min_frequency(2)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(specials.to_vec())
        .build()
        .into();
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(byte_level));
    tokenizer.with_decoder(Some(byte_level));
    tokenizer.train(&mut trainer, texts.iter()).map_err(|e| anyhow!("training the tokenizer: {e}"))?;
    for (text, id) in [(END_OF_TEXT, END_OF_TEXT_ID), (START, 1), (END, END_ID)] {
        ensure!(tokenizer.token_to_id(text) == Some(id), "{text} is not token {id}");
    }
    ensure!(tokenizer.get_model().get_vocab_size() <= MAX_VOCAB, "the vocabulary is too large");
    Ok(tokenizer)
}

pub fn config() -> Value {
    json!({
        "add_prefix_space": false,
        "bos_token": END_OF_TEXT,
        "chat_template": STAND_IN_TEMPLATE,
        "clean_up_tokenization_spaces": false,
        "eos_token": END,
        "model_max_length": 4096,
        "pad_token": END_OF_TEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
    })
}

/// The rendered dialogue in pieces; `true` marks what the assistant says, its end mark included.
fn segments(dialogue: &Dialogue) -> Vec<(String, bool)> {
    let mut out = Vec::new();
    if let Some(system) = dialogue.system {
        out.push((format!("{START}system\n{system}{END}\n"), false));
    }
    for (question, answer) in &dialogue.turns {
        out.push((prompt(question), false));
        out.push((format!("{answer}{END}"), true));
        out.push(("\n".to_string(), false));
    }
    out
}

/// One question, and the header after which the assistant answers.
pub fn prompt(question: &str) -> String {
    format!("{START}user\n{question}{END}\n{START}assistant\n")
}

pub fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let encoding = tokenizer.encode(text, false).map_err(|e| anyhow!("tokenizing {text:?}: {e}"))?;
    Ok(encoding.get_ids().to_vec())
}

pub fn decode(tokenizer: &Tokenizer, ids: &[u32]) -> Result<String> {
    tokenizer.decode(ids, true).map_err(|e| anyhow!("decoding: {e}"))
}

pub fn example(tokenizer: &Tokenizer, dialogue: &Dialogue) -> Result<Example> {
    let mut example = Example { ids: Vec::new(), taught: Vec::new() };
    for (text, taught) in segments(dialogue) {
        example.ids.extend(encode(tokenizer, &text)?);
        example.taught.resize(example.ids.len(), taught);
    }
    Ok(example)
}

fn owned((key, value): (&str, &str)) -> (String, String) {
    (key.to_string(), value.to_string())
}

/// Fails unless the template and `segments` agree, and tokenizing in pieces equals tokenizing at once.
pub fn check(tokenizer: &Tokenizer, dialogue: &Dialogue) -> Result<()> {
    let message =
        |role: &str, content: &str| BTreeMap::from([("role", role), ("content", content)].map(owned));
    let mut messages = Vec::new();
    if let Some(system) = dialogue.system {
        messages.push(message("system", system));
    }
    for (question, answer) in &dialogue.turns {
        messages.push(message("user", question));
        messages.push(message("assistant", answer));
    }
    let env = minijinja::Environment::new();
    let render = |messages: &[BTreeMap<String, String>], add_generation_prompt: bool| {
        let context = context! { messages => messages.to_vec(), add_generation_prompt };
        env.render_str(STAND_IN_TEMPLATE, context).context("rendering the chat template")
    };
    let whole: String = segments(dialogue).into_iter().map(|(text, _)| text).collect();
    ensure!(render(&messages, false)? == whole, "the chat template does not render {whole:?}");
    let asked = &messages[..messages.len() - 1];
    let rendered = render(asked, true)?;
    ensure!(whole.starts_with(&rendered), "the generation prompt does not begin {whole:?}");
    let pieces = example(tokenizer, dialogue)?.ids;
    ensure!(encode(tokenizer, &whole)? == pieces, "tokens depend on where {whole:?} is cut");
    Ok(())
}
