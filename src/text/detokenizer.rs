//! Text from tokens as they come: never half a character, and in the end exactly the whole decoding.
//!
//! Byte-level vocabularies concatenate bytes. Others (sentencepiece) may join tokens with context, so
//! there a short window is decoded twice and the difference is the new text.

use std::sync::Arc;

use super::tokenizer::Tokenizer;

/// Tokens a window may hold back before it is taken as it is.
const LONGEST_WINDOW: usize = 16;

/// The state of one sequence.
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    /// Byte-level: bytes that do not make a character yet.
    bytes: Vec<u8>,
    /// Otherwise: recent tokens; those before `read` have been turned into text.
    window: Vec<u32>,
    read: usize,
}

impl Detokenizer {
    pub fn new(tokenizer: Arc<Tokenizer>) -> Detokenizer {
        Detokenizer { tokenizer, bytes: Vec::new(), window: Vec::new(), read: 0 }
    }

    /// The text this token completes; empty while a character is open.
    pub fn push(&mut self, id: u32) -> String {
        if self.tokenizer.is_special(id) {
            return String::new();
        }
        if self.tokenizer.is_byte_level() {
            self.bytes.extend(self.tokenizer.token_bytes(id));
            return self.take_complete();
        }
        self.window.push(id);
        let new = self.window_text();
        let open = new.ends_with('\u{FFFD}') && self.window.len() - self.read < LONGEST_WINDOW;
        if open || new.is_empty() { String::new() } else { self.slide(new) }
    }

    /// What is still held back, when the sequence has ended.
    pub fn finish(&mut self) -> String {
        if self.tokenizer.is_byte_level() {
            let rest = std::mem::take(&mut self.bytes);
            return String::from_utf8_lossy(&rest).into_owned();
        }
        let new = self.window_text();
        self.slide(new)
    }

    /// Decodes the complete characters; a broken byte becomes U+FFFD as in a whole decoding.
    fn take_complete(&mut self) -> String {
        let mut text = String::new();
        loop {
            match std::str::from_utf8(&self.bytes) {
                Ok(valid) => {
                    text.push_str(valid);
                    self.bytes.clear();
                    return text;
                }
                Err(e) => {
                    text.push_str(&String::from_utf8_lossy(&self.bytes[..e.valid_up_to()]));
                    // No length means that the bytes end inside a character.
                    let Some(broken) = e.error_len() else {
                        self.bytes.drain(..e.valid_up_to());
                        return text;
                    };
                    text.push('\u{FFFD}');
                    self.bytes.drain(..e.valid_up_to() + broken);
                }
            }
        }
    }

    /// What the tokens from `read` on add to the text of the window.
    fn window_text(&self) -> String {
        // Ids come from the model and lie in the vocabulary; a decoder's refusal adds no text.
        let decode = |ids: &[u32]| self.tokenizer.decode(ids).unwrap_or_default();
        let before = decode(&self.window[..self.read]);
        let all = decode(&self.window);
        all.get(before.len()..).unwrap_or_default().to_string()
    }

    fn slide(&mut self, text: String) -> String {
        self.window.drain(..self.read);
        self.read = self.window.len();
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn byte_level() -> Arc<Tokenizer> {
        Arc::new(Tokenizer::stand_in(400).unwrap())
    }

    /// Sentencepiece-like: words with ▁, byte fallback, the first space stripped.
    fn fallback() -> Arc<Tokenizer> {
        let mut vocab = serde_json::Map::new();
        for (i, word) in ["<unk>", "▁hello", "▁world", "▁", "a", "é", "."].iter().enumerate() {
            vocab.insert(word.to_string(), i.into());
        }
        for byte in 0..=255u8 {
            vocab.insert(format!("<0x{byte:02X}>"), (7 + u32::from(byte)).into());
        }
        let json = serde_json::json!({
            "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null,
            "post_processor": null, "truncation": null, "padding": null,
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
                      "vocab": vocab, "merges": []}
        });
        Arc::new(Tokenizer::from_json("test", json.to_string().as_bytes()).unwrap())
    }

    fn pieces(tokenizer: &Arc<Tokenizer>, ids: &[u32]) -> (Vec<String>, String) {
        let mut d = Detokenizer::new(tokenizer.clone());
        let mut pieces: Vec<String> = ids.iter().map(|id| d.push(*id)).collect();
        pieces.push(d.finish());
        let text = pieces.concat();
        (pieces, text)
    }

    #[test]
    fn a_character_is_never_split() {
        for tokenizer in [byte_level(), fallback()] {
            let first = if tokenizer.is_byte_level() { 0 } else { 7 };
            let ids: Vec<u32> = "🙂é".bytes().map(|b| first + u32::from(b)).collect();
            let (pieces, text) = pieces(&tokenizer, &ids);
            assert_eq!(text, "🙂é");
            assert_eq!(pieces, ["", "", "", "🙂", "", "é", ""]);
        }
    }

    #[test]
    fn spaces_between_words_survive_the_window() {
        let (pieces, text) = pieces(&fallback(), &[1, 2, 6, 1]);
        assert_eq!((pieces.len(), text.as_str()), (5, "hello world. hello"));
    }

    proptest! {
        #[test]
        fn pieces_make_the_whole_decoding(ids in prop::collection::vec(0u32..400, 0..40)) {
            let tokenizer = byte_level();
            let whole = tokenizer.decode(&ids).unwrap();
            prop_assert_eq!(pieces(&tokenizer, &ids).1, whole);
        }

        #[test]
        fn pieces_make_the_text_of_a_fallback_vocabulary(text in "[a-z é🙂]{1,20}") {
            let tokenizer = fallback();
            let ids: Vec<u32> = text.bytes().map(|b| 7 + u32::from(b)).collect();
            prop_assert_eq!(pieces(&tokenizer, &ids).1, tokenizer.decode(&ids).unwrap());
        }
    }
}
