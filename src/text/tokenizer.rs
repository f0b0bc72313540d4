//! Token ids for text, and the bytes behind a token id.
//!
//! A wrapper of the `tokenizers` crate: from the bytes of a `tokenizer.json`, or a stand-in for
//! synthetic weights that has exactly the model's vocabulary and round-trips any text byte by byte.

use serde_json::{Value, json};
use tokenizers::Tokenizer as Inner;

use super::TextError;
use super::tokenizer_bounds;
use super::tokenizer_file::{at_fault, check, guarded};
use crate::error::printable;

/// Special tokens of the stand-in, at the end of its vocabulary.
pub const STAND_IN_SPECIALS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
/// The chat template that goes with the stand-in.
pub const STAND_IN_TEMPLATE: &str = include_str!("chatml.jinja");

/// Characters of what is wrong with a file: the crate repeats values as long as they are.
const LONGEST_PROBLEM: usize = 500;

/// A loaded tokenizer.
pub struct Tokenizer {
    inner: Inner,
    byte_level: bool,
    /// Characters outside the vocabulary are spelled in tokens of one byte.
    byte_fallback: bool,
    vocab: usize,
    longest_token: usize,
    /// Special tokens, sorted: they have no text.
    specials: Vec<u32>,
}

impl Tokenizer {
    /// From the bytes of a `tokenizer.json`; `file` is named in errors.
    ///
    /// # Errors
    /// When the file is not a tokenizer.
    pub fn from_json(file: &str, bytes: &[u8]) -> Result<Tokenizer, TextError> {
        let fail = |problem: String| TextError::Tokenizer {
            file: file.into(),
            problem: printable(&problem, LONGEST_PROBLEM),
        };
        let json: Value = serde_json::from_slice(bytes).map_err(|e| fail(e.to_string()))?;
        tokenizer_bounds::check(&json).map_err(fail)?;
        let steps = json.get("decoder").map(decoder_steps).unwrap_or_default();
        let (byte_level, byte_fallback) = (is_byte_level(&steps), steps.contains(&"ByteFallback"));
        // The crate has panicked on malformed files before; a bad file must stay an error.
        let mut inner = guarded(|| Inner::from_bytes(bytes)).map_err(|e| fail(at_fault(&json, e)))?;
        // Training settings that some files carry: they would cut or pad prompts without a word, to any length.
        inner.with_padding(None).with_truncation(None).map_err(|e| fail(e.to_string()))?;
        check(&json, &inner).map_err(fail)?;
        let vocab = inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        let longest_token = inner.get_vocab(true).keys().map(String::len).max().unwrap_or(1);
        let mut specials: Vec<u32> =
            inner.get_added_tokens_decoder().iter().filter(|(_, t)| t.special).map(|(id, _)| *id).collect();
        specials.sort_unstable();
        Ok(Tokenizer { inner, byte_level, byte_fallback, vocab, longest_token, specials })
    }

    /// The stand-in of exactly `vocab` entries (at least 259).
    ///
    /// # Errors
    /// When `vocab` is too small for all bytes and the special tokens.
    pub fn stand_in(vocab: usize) -> Result<Tokenizer, TextError> {
        let json = stand_in_json(vocab)?;
        Tokenizer::from_json("stand-in tokenizer", json.to_string().as_bytes())
    }

    /// One more than the largest id.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Bytes of the longest entry: a text of n bytes has at least n / this many tokens.
    pub fn longest_token(&self) -> usize {
        self.longest_token
    }

    /// The id of a token by its exact content.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Token ids of a text. Added tokens inside it are recognised; `add_special_tokens` adds what the
    /// tokenizer puts around a text by itself.
    ///
    /// # Errors
    /// When the tokenizer refuses the text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TextError> {
        let encoding = guarded(|| self.inner.encode_fast(text, add_special_tokens));
        Ok(encoding.map_err(TextError::Encode)?.get_ids().to_vec())
    }

    /// Token ids of two texts that a model reads together, with what the tokenizer puts around them, and of each token
    /// the segment it belongs to.
    ///
    /// # Errors
    /// When the tokenizer refuses a text.
    pub fn encode_pair(&self, first: &str, second: &str) -> Result<(Vec<u32>, Vec<u32>), TextError> {
        let encoding =
            guarded(|| self.inner.encode_fast((first, second), true)).map_err(TextError::Encode)?;
        Ok((encoding.get_ids().to_vec(), encoding.get_type_ids().to_vec()))
    }

    /// The text of ids, special tokens left out.
    ///
    /// # Errors
    /// An id outside the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TextError> {
        self.decode_with(ids, true)
    }

    /// The text of ids with the special tokens spelled out, as a rendered template has them.
    ///
    /// # Errors
    /// An id outside the vocabulary.
    pub fn decode_all(&self, ids: &[u32]) -> Result<String, TextError> {
        self.decode_with(ids, false)
    }

    fn decode_with(&self, ids: &[u32], skip_specials: bool) -> Result<String, TextError> {
        if let Some(&id) = ids.iter().find(|id| **id as usize >= self.vocab) {
            return Err(TextError::UnknownToken { id, vocab: self.vocab });
        }
        guarded(|| self.inner.decode(ids, skip_specials)).map_err(TextError::Encode)
    }

    pub fn is_special(&self, id: u32) -> bool {
        self.specials.binary_search(&id).is_ok()
    }

    /// True when the text of a sequence is its tokens' bytes, one after another.
    pub(super) fn is_byte_level(&self) -> bool {
        self.byte_level
    }

    /// The byte of a byte-fallback token (`<0xE4>`) of a vocabulary that is not byte-level.
    pub(super) fn fallback_byte(&self, id: u32) -> Option<u8> {
        let token = self.inner.id_to_token(id).filter(|_| self.byte_fallback)?;
        let hex = token.strip_prefix("<0x")?.strip_suffix('>').filter(|h| h.len() == 2)?;
        u8::from_str_radix(hex, 16).ok()
    }

    /// The bytes a token stands for; none for an id the vocabulary does not have.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let Some(token) = self.inner.id_to_token(id) else { return Vec::new() };
        if self.byte_level {
            // As the decoder does it: a token with any other character stands for itself.
            return token.chars().map(byte_of).collect::<Option<Vec<u8>>>().unwrap_or(token.into_bytes());
        }
        match self.fallback_byte(id) {
            Some(byte) => vec![byte],
            None => token.replace('▁', " ").into_bytes(),
        }
    }
}

/// The steps of a decoder, by name.
fn decoder_steps(decoder: &Value) -> Vec<&str> {
    match decoder.get("decoders").and_then(Value::as_array) {
        Some(all) => all.iter().flat_map(decoder_steps).collect(),
        None => decoder.get("type").and_then(Value::as_str).into_iter().collect(),
    }
}

/// True when text is the tokens' bytes joined and nothing else is done to them.
fn is_byte_level(steps: &[&str]) -> bool {
    steps.contains(&"ByteLevel") && steps.iter().all(|s| ["ByteLevel", "Fuse"].contains(s))
}

/// GPT-2's printable stand-in for a byte (`bytes_to_unicode`).
fn char_of(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if printable(byte) {
        return char::from(byte);
    }
    let shift = (0..byte).filter(|b| !printable(*b)).count() as u32;
    char::from_u32(256 + shift).unwrap_or('\u{FFFD}')
}

fn byte_of(c: char) -> Option<u8> {
    let code = c as u32;
    match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => u8::try_from(code).ok(),
        // The 68 bytes that are not printable, in order.
        0x100..=0x143 => {
            [(0u8..=0x20), (0x7F..=0xA0), (0xAD..=0xAD)].into_iter().flatten().nth(code as usize - 0x100)
        }
        _ => None,
    }
}

/// The stand-in as a `tokenizer.json`: the 256 bytes, words that no text is encoded to, and the
/// special tokens.
///
/// # Errors
/// When `vocab` is below 259.
pub fn stand_in_json(vocab: usize) -> Result<Value, TextError> {
    let specials = STAND_IN_SPECIALS.len();
    if vocab < 256 + specials {
        let problem =
            format!("a vocabulary of {vocab} has no room for 256 bytes and {specials} special tokens");
        return Err(TextError::Tokenizer { file: "stand-in tokenizer".into(), problem });
    }
    let mut entries = serde_json::Map::with_capacity(vocab);
    for byte in 0..=255u8 {
        entries.insert(char_of(byte).to_string(), json!(byte));
    }
    for id in 256..vocab - specials {
        entries.insert(format!("Ġw{id}"), json!(id));
    }
    let added: Vec<Value> = STAND_IN_SPECIALS
        .iter()
        .enumerate()
        .map(|(i, content)| {
            json!({"id": vocab - specials + i, "content": content, "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false, "special": true})
        })
        .collect();
    for token in &added {
        entries.insert(token["content"].as_str().unwrap_or_default().to_string(), token["id"].clone());
    }
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                  "ignore_merges": false, "vocab": entries, "merges": []},
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stand_in_has_exactly_its_vocabulary_and_round_trips_any_text() {
        let t = Tokenizer::stand_in(1000).unwrap();
        assert_eq!(t.vocab(), 1000);
        for text in ["", "hello, world", "naïve — 東京 🙂\n\t\0 end", "w300 Ġw300"] {
            let ids = t.encode(text, false).unwrap();
            assert_eq!(t.decode(&ids).unwrap(), text);
            assert_eq!(ids.len(), text.len(), "one token a byte");
        }
        assert_eq!(t.encode("<|im_end|>", false).unwrap(), [999]);
        assert!(t.is_special(999) && !t.is_special(300));
        assert_eq!(t.decode(&[300, 999]).unwrap(), " w300");
        assert_eq!(t.decode_all(&[300, 999]).unwrap(), " w300<|im_end|>");
        assert!(matches!(t.decode(&[1000]), Err(TextError::UnknownToken { id: 1000, vocab: 1000 })));
        assert!(Tokenizer::stand_in(258).is_err());
    }

    #[test]
    fn training_settings_neither_cut_nor_pad_a_prompt() {
        let mut json = stand_in_json(300).unwrap();
        json["truncation"] =
            json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
        json["padding"] = json!({"strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": null,
                                 "pad_id": 0, "pad_type_id": 0, "pad_token": "!"});
        let t = Tokenizer::from_json("t", json.to_string().as_bytes()).unwrap();
        assert_eq!(t.encode("123456", false).unwrap().len(), 6);
    }

    #[test]
    fn a_million_times_one_character_is_tokenised_in_linear_time() {
        let t = Tokenizer::stand_in(300).unwrap();
        let clock = crate::clock::Clock::system();
        let begun = clock.now();
        assert_eq!(t.encode(&"a".repeat(1 << 20), false).unwrap().len(), 1 << 20);
        assert!(clock.now().since(begun).as_secs() < 10);
    }

    #[test]
    fn bytes_and_their_characters_are_inverse() {
        for byte in 0..=255u8 {
            assert_eq!(byte_of(char_of(byte)), Some(byte));
        }
        assert_eq!(Tokenizer::stand_in(300).unwrap().token_bytes(0xC3), [0xC3]);
    }

    #[test]
    fn a_bad_file_is_an_error_that_names_it() {
        for bytes in [&b"{}"[..], b"not json", b"{\"model\": {\"type\": \"BPE\", \"vocab\": 3}}", b""] {
            let error = Tokenizer::from_json("x/tokenizer.json", bytes).err().unwrap().to_string();
            assert!(error.starts_with("x/tokenizer.json: "), "{error}");
        }
    }
}
