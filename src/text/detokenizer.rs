//! Text from tokens as they come: never half a character, and in the end the whole decoding.
//!
//! Byte-level vocabularies concatenate bytes, and so do runs of byte-fallback tokens (of which each byte is U+FFFD from
//! where they are no text on, as a whole decoding has it but for what was told before). What any other token adds is found by decoding it behind its predecessor: decoders (sentencepiece, WordPiece) join
//! tokens with the context of their neighbour only. So each token costs the same however long the text.

use std::sync::Arc;

use super::tokenizer::Tokenizer;

/// Tokens at the end of a prompt that are read: more than a character has, with some special ones behind.
const PROMPT_TAIL: usize = 16;

/// The state of one sequence.
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    /// Special tokens that are spelled out: somebody reads them.
    shown: Arc<[u32]>,
    /// Bytes that do not make a character yet.
    bytes: Vec<u8>,
    /// The run of byte-fallback tokens is no text any more.
    is_broken: bool,
    /// Not byte-level: the last token that was not special, and its text at the beginning of a line.
    last: Option<(u32, String)>,
}

impl Detokenizer {
    pub fn new(tokenizer: Arc<Tokenizer>, shown: Arc<[u32]>) -> Detokenizer {
        Detokenizer { tokenizer, shown, bytes: Vec::new(), is_broken: false, last: None }
    }

    /// The same behind a prompt whose text it goes on with: what its first token adds there, not at the beginning of a
    /// line, where decoders strip a space.
    pub fn behind(tokenizer: Arc<Tokenizer>, shown: Arc<[u32]>, prompt: &[u32]) -> Detokenizer {
        let mut detokenizer = Detokenizer::new(tokenizer, shown);
        let tail = &prompt[prompt.len().saturating_sub(PROMPT_TAIL)..];
        // It may begin inside a character, which would break the run of bytes.
        let is_inside = |id: &&u32| {
            detokenizer.tokenizer.fallback_byte(**id).is_some_and(|byte| (0x80..0xC0).contains(&byte))
        };
        let inside = if tail.len() < prompt.len() { tail.iter().take_while(is_inside).count() } else { 0 };
        for id in &tail[inside..] {
            detokenizer.push(*id);
        }
        detokenizer
    }

    /// The text this token completes; empty while a character is open.
    pub fn push(&mut self, id: u32) -> String {
        // Special tokens have no text; nor have ids that only the model has (padding of its vocabulary).
        if self.shown.contains(&id) {
            let before = self.finish();
            return before + &String::from_utf8_lossy(&self.tokenizer.token_bytes(id));
        }
        if self.tokenizer.is_special(id) || id as usize >= self.tokenizer.vocab() {
            return String::new();
        }
        if self.tokenizer.is_byte_level() {
            self.bytes.extend(self.tokenizer.token_bytes(id));
            return self.take_complete();
        }
        let byte = self.tokenizer.fallback_byte(id);
        let (alone, added) = self.added(id);
        let first = self.last.replace((id, alone)).is_none();
        match byte {
            // A leading space that the decoder strips is stripped as a byte, too.
            Some(_) if first && added.is_empty() => String::new(),
            Some(byte) => self.fall_back(byte),
            None => self.finish() + &added,
        }
    }

    /// What is still held back: a character that was begun is U+FFFD, as in a whole decoding.
    pub fn finish(&mut self) -> String {
        self.is_broken = false;
        let rest = std::mem::take(&mut self.bytes);
        match self.tokenizer.is_byte_level() {
            true => String::from_utf8_lossy(&rest).into_owned(),
            false => "\u{FFFD}".repeat(rest.len()),
        }
    }

    fn fall_back(&mut self, byte: u8) -> String {
        self.bytes.push(byte);
        let text = match std::str::from_utf8(&self.bytes) {
            Ok(text) if !self.is_broken => text.to_string(),
            // The bytes end inside a character.
            Err(e) if !self.is_broken && e.error_len().is_none() => return String::new(),
            _ => {
                self.is_broken = true;
                "\u{FFFD}".repeat(self.bytes.len())
            }
        };
        self.bytes.clear();
        text
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

    /// The token's text alone, and what it adds behind its predecessor.
    fn added(&self, id: u32) -> (String, String) {
        // The ids are in the vocabulary; a decoder that refuses them all the same adds no text.
        let decode = |ids: &[u32]| self.tokenizer.decode(ids).unwrap_or_default();
        let alone = decode(&[id]);
        let Some((before, text)) = &self.last else { return (alone.clone(), alone) };
        let pair = decode(&[*before, id]);
        // A decoder that changes the predecessor's text leaves the longest common beginning.
        let same: usize =
            pair.chars().zip(text.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
        let added = pair[same..].to_string();
        (alone, added)
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
        let mut d = Detokenizer::new(tokenizer.clone(), Arc::new([]));
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

    #[test]
    fn bytes_that_make_no_character_do_not_spoil_what_follows() {
        // 你 whole, a stray byte, a word; an id that only the model has; a special token's place.
        let tokenizer = fallback();
        let byte = |b: u8| 7 + u32::from(b);
        let ids = [byte(0xE4), byte(0xBD), byte(0xA0), byte(0xFF), 4, 5000, 2, byte(0xF0), byte(0x9F), 1, 6];
        let (pieces, text) = pieces(&tokenizer, &ids);
        assert_eq!(text, "你\u{FFFD}a world\u{FFFD}\u{FFFD} hello.");
        assert_eq!(pieces[2..5], ["你", "\u{FFFD}", "a"]);
        assert_eq!(pieces[7..10], ["", "", "\u{FFFD}\u{FFFD} hello"]);
    }

    /// BERT-like: pieces that continue a word are marked, the others get a space before.
    fn word_piece() -> Arc<Tokenizer> {
        let words = ["[UNK]", "play", "##ing", "##ed", "the", ".", "##s"];
        let vocab: serde_json::Map<_, _> =
            words.iter().enumerate().map(|(i, w)| (w.to_string(), i.into())).collect();
        let json = serde_json::json!({
            "version": "1.0", "added_tokens": [], "normalizer": null,
            "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "truncation": null, "padding": null,
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                      "max_input_chars_per_word": 100, "vocab": vocab}
        });
        Arc::new(Tokenizer::from_json("test", json.to_string().as_bytes()).unwrap())
    }

    #[test]
    fn a_long_text_costs_as_much_a_token_as_a_short_one() {
        let clock = crate::clock::Clock::system();
        for tokenizer in [byte_level(), fallback()] {
            let begun = clock.now();
            let ids: Vec<u32> = (0..200_000).map(|i| [1, 2, 3, 6, 200, 255][i % 6]).collect();
            assert!(pieces(&tokenizer, &ids).1.len() > 100_000);
            // Linear work takes a fraction of a second; quadratic work takes hours.
            assert!(clock.now().since(begun).as_secs() < 20);
        }
    }

    proptest! {
        #[test]
        fn pieces_make_the_whole_decoding(ids in prop::collection::vec(0u32..400, 0..40)) {
            let tokenizer = byte_level();
            let whole = tokenizer.decode(&ids).unwrap();
            prop_assert_eq!(pieces(&tokenizer, &ids).1, whole);
        }

        #[test]
        fn pieces_make_the_whole_decoding_of_words_and_bytes(
            parts in prop::collection::vec(prop_oneof![(0u32..7).prop_map(Ok), any::<char>().prop_map(Err)], 0..20)
        ) {
            let tokenizer = fallback();
            let mut ids = Vec::new();
            for part in parts {
                match part {
                    Ok(id) => ids.push(id),
                    Err(c) => ids.extend(c.to_string().bytes().map(|b| 7 + u32::from(b))),
                }
            }
            let whole = tokenizer.decode(&ids).unwrap();
            let (pieces, text) = pieces(&tokenizer, &ids);
            prop_assert_eq!(&text, &whole);
            let broken = |p: &String| p.contains('\u{FFFD}');
            prop_assert_eq!(pieces.iter().any(broken), broken(&whole));
        }

        #[test]
        fn pieces_make_the_whole_decoding_of_word_pieces(ids in prop::collection::vec(0u32..7, 0..20)) {
            let tokenizer = word_piece();
            let whole = tokenizer.decode(&ids).unwrap();
            prop_assert_eq!(pieces(&tokenizer, &ids).1, whole);
        }

        #[test]
        fn no_bytes_split_a_character_or_panic(ids in prop::collection::vec(0u32..300, 0..60)) {
            let tokenizer = fallback();
            let (pieces, _) = pieces(&tokenizer, &ids);
            prop_assert_eq!(pieces.len(), ids.len() + 1);
        }

        #[test]
        fn pieces_make_the_text_of_a_fallback_vocabulary(text in "[a-z é🙂]{1,20}") {
            let tokenizer = fallback();
            let ids: Vec<u32> = text.bytes().map(|b| 7 + u32::from(b)).collect();
            prop_assert_eq!(pieces(&tokenizer, &ids).1, tokenizer.decode(&ids).unwrap());
        }
    }
}
