//! What a `tokenizer.json` must be before it is trusted: the crate that reads it takes files whose ids are not those
//! that they say, and panics later on others. In: the file as JSON and as it was read; out: what is wrong, by its key.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokenizers::{
    DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, Tokenizer,
};

/// Bytes of a name from the file that an error repeats.
const SHOWN: usize = 64;
/// Has a space, a letter of two bytes, one of four, digits and lines.
const PROBE: &str = "Probe é 🙂 12\n";

/// Runs code of the crate; its panic is an error.
pub fn guarded<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    // Nothing is left behind half done: its caches are locked while they change.
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(_) => Err("the tokenizer is malformed".into()),
    }
}

/// Which part of a file that was refused is not as it should be, where one alone is.
pub fn at_fault(json: &Value, problem: String) -> String {
    fn wrong<T: DeserializeOwned>(json: &Value, key: &str) -> bool {
        let part = json.get(key).cloned().unwrap_or(Value::Null);
        let read = guarded(|| serde_json::from_value::<Option<T>>(part).map_err(Into::into));
        read.is_err()
    }
    let known = ["BPE", "Unigram", "WordLevel", "WordPiece"];
    let kind = json.get("model").and_then(|model| model.get("type"));
    if let Some(other) = kind.filter(|kind| !known.iter().any(|name| *kind == name)) {
        let other: String = other.to_string().chars().take(SHOWN).collect();
        return format!("model.type: {other} is none of {}", known.join(", "));
    }
    let parts = [
        ("model", wrong::<ModelWrapper> as fn(&Value, &str) -> bool),
        ("normalizer", wrong::<NormalizerWrapper>),
        ("pre_tokenizer", wrong::<PreTokenizerWrapper>),
        ("post_processor", wrong::<PostProcessorWrapper>),
        ("decoder", wrong::<DecoderWrapper>),
    ];
    match parts.iter().find(|(key, wrong)| wrong(json, key)) {
        Some((key, _)) => format!("{key}: {problem}"),
        None => problem,
    }
}

/// # Errors
/// Ids that are given twice, that are not those of the file, or that no token has; a tokenizer that fails on any text.
pub fn check(json: &Value, tokenizer: &Tokenizer) -> Result<(), String> {
    check_ids(tokenizer)?;
    check_added(json, tokenizer)?;
    let read = |text: &str, key: &str| {
        let single = guarded(|| Ok(tokenizer.encode(text, true)?.get_ids().to_vec()));
        let pair = guarded(|| Ok(tokenizer.encode((text, text), true)?.get_ids().to_vec()));
        let (single, pair) =
            (single.map_err(|e| format!("{key}: {e}"))?, pair.map_err(|e| format!("{key}: {e}"))?);
        Ok::<_, String>([single, pair].concat())
    };
    // Of an empty text the tokens around it are left: those of the post-processor.
    for (text, key) in [("", "post_processor"), (PROBE, "model")] {
        let ids = read(text, key)?;
        if let Some(id) = ids.iter().find(|id| tokenizer.id_to_token(**id).is_none()) {
            return Err(format!("{key}: gives the id {id}, which no token has"));
        }
        for skipped in [true, false] {
            guarded(|| tokenizer.decode(&ids, skipped)).map_err(|e| format!("decoder: {e}"))?;
        }
    }
    // Of all tokens, each by itself until they are joined.
    let all: Vec<u32> = tokenizer.get_vocab(true).into_values().collect();
    guarded(|| tokenizer.decode(&all, false)).map_err(|e| format!("decoder: {e}"))?;
    Ok(())
}

/// No two tokens have one id.
fn check_ids(tokenizer: &Tokenizer) -> Result<(), String> {
    let mut seen = HashMap::new();
    for (token, id) in tokenizer.get_vocab(true) {
        if let Some(other) = seen.insert(id, token.clone()) {
            let mut both = [shown(&token), shown(&other)];
            both.sort();
            return Err(format!(
                "model.vocab, added_tokens: {} and {} have the same id {id}",
                both[0], both[1]
            ));
        }
    }
    Ok(())
}

/// The crate counts added tokens itself, whatever ids the file gives them.
fn check_added(json: &Value, tokenizer: &Tokenizer) -> Result<(), String> {
    let added = json.get("added_tokens").and_then(Value::as_array);
    for (i, token) in added.into_iter().flatten().enumerate() {
        let (Some(content), Some(id)) = (token["content"].as_str(), token["id"].as_u64()) else { continue };
        // An empty one is passed over.
        let Some(given) = tokenizer.token_to_id(content).filter(|_| !content.is_empty()) else { continue };
        if u64::from(given) != id {
            let token = shown(content);
            return Err(format!(
                "added_tokens[{i}]: {token} has the id {id}, but it is number {given} of the vocabulary: \
                 the ids of added tokens must follow those of model.vocab without a hole"
            ));
        }
    }
    Ok(())
}

fn shown(token: &str) -> String {
    format!("{:?}", token.chars().take(SHOWN).collect::<String>())
}
