//! A GGUF file's tokenizer as a `tokenizer.json`.
//!
//! `gpt2` is a byte-level BPE whose pre-tokenizer has a name; `llama` is SentencePiece's BPE, whose merges follow from the
//! scores of its pieces.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::header::{HeaderError, Metadata};

/// What is about text in a file.
pub struct Text {
    /// The bytes of a `tokenizer.json`.
    pub tokenizer: Vec<u8>,
    /// As `tokenizer_config.json` has it.
    pub config: Value,
    pub chat_template: Option<String>,
    /// As `generation_config.json` has it.
    pub generation: Value,
}

/// `tokenizer.ggml.token_type`: what a token is.
mod kind {
    pub const UNKNOWN: u64 = 2;
    pub const CONTROL: u64 = 3;
    pub const USER_DEFINED: u64 = 4;
}

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
/// Merges of a byte-level vocabulary at most, for each token: real ones have up to three.
const MERGES_OF_A_TOKEN: usize = 8;
/// Bytes of a piece of SentencePiece's at most: real ones have some dozens.
const LONGEST_PIECE: usize = 1 << 10;
/// Bytes of the merges that follow from SentencePiece's pieces, for each byte of these: real ones have two or three. A
/// vocabulary made for it (`a`, `aa`, `aaa`, …) has the square.
const MERGED_BYTES: usize = 16;
/// Tokens that end an answer wherever they are part of a vocabulary, as llama.cpp has it, whatever the file names.
const ENDS: [&str; 10] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|endoftext|>",
    "<end_of_turn>",
    "<EOT>",
    "<｜end▁of▁sentence｜>",
];

/// Words of the pre-tokenizers of Llama 3 and of those that differ from it in numbers alone.
const WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBERS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Of Mistral's Tekken and of GPT-4o.
const CASED_WORDS: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+ENDING|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*ENDING|NUMBERS| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How text is cut before its bytes are merged, by llama.cpp's names.
fn pre_tokenizer(pre: &str) -> Option<Value> {
    let split = |pattern: String| {
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        ]})
    };
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    Some(match pre {
        "llama-bpe" | "llama3" | "llama-v3" | "smaug-bpe" | "dbrx" | "glm4" | "chatglm-bpe" => {
            split(WORDS.replace("NUMBERS", r"\p{N}{1,3}"))
        }
        "qwen2" | "deepseek-r1-qwen" => split(WORDS.replace("NUMBERS", r"\p{N}")),
        "tekken" => split(CASED_WORDS.replace("NUMBERS", r"\p{N}").replace("ENDING", "")),
        "gpt-4o" | "llama4" => split(
            CASED_WORDS.replace("NUMBERS", r"\p{N}{1,3}").replace("ENDING", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"),
        ),
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" => {
            json!({"type": "Sequence", "pretokenizers": [
                {"type": "Digits", "individual_digits": true},
                bytes,
            ]})
        }
        "gpt-2" | "olmo" | "phi-2" | "mpt" => bytes,
        _ => return None,
    })
}

struct Vocabulary<'a> {
    metadata: Metadata<'a>,
    tokens: Vec<&'a str>,
    kinds: Vec<u64>,
}

impl<'a> Vocabulary<'a> {
    fn kind(&self, id: usize) -> u64 {
        self.kinds.get(id).copied().unwrap_or(1)
    }

    fn token(&self, key: &str) -> Result<Option<(u64, &'a str)>, HeaderError> {
        let Some(id) = self.metadata.whole(key)? else { return Ok(None) };
        let token = usize::try_from(id).ok().and_then(|id| self.tokens.get(id));
        let token = token.ok_or_else(|| HeaderError::Value(key.into(), "is no token of the vocabulary"))?;
        Ok(Some((id, token)))
    }

    /// No text has two ids.
    fn check(&self) -> Result<(), HeaderError> {
        let mut seen = HashMap::with_capacity(self.tokens.len());
        for (id, token) in self.tokens.iter().enumerate() {
            if let Some(first) = seen.insert(token, id) {
                let problem = format!("tokens {first} and {id} are the same");
                return Err(HeaderError::Unsupported(TOKENS.into(), problem));
            }
        }
        Ok(())
    }

    /// Those of [`ENDS`] that it has. What gpt-oss ends a message with does not end its answer.
    fn ends(&self) -> Vec<u64> {
        let of = |text: &str| {
            let id = self.tokens.iter().position(|token| *token == text)?;
            matches!(self.kind(id), kind::CONTROL | kind::USER_DEFINED).then_some(id as u64)
        };
        let has_channels = of("<|return|>").is_some() && of("<|call|>").is_some();
        ENDS.into_iter().filter(|text| !(has_channels && *text == "<|end|>")).filter_map(of).collect()
    }

    /// Tokens that are found in any text before it is cut.
    fn added(&self) -> Vec<Value> {
        let added = |(id, token): (usize, &&str)| {
            let special = match self.kind(id) {
                kind::CONTROL | kind::UNKNOWN => true,
                kind::USER_DEFINED => false,
                _ => return None,
            };
            Some(json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": special,
            }))
        };
        self.tokens.iter().enumerate().filter_map(added).collect()
    }

    fn ids(&self) -> serde_json::Map<String, Value> {
        self.tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), json!(id))).collect()
    }

    fn scores(&self) -> Result<Vec<f64>, HeaderError> {
        const KEY: &str = "tokenizer.ggml.scores";
        let scores = self.metadata.numbers(KEY, self.tokens.len())?;
        let scores = scores.ok_or(HeaderError::Value(KEY.into(), "is missing"))?;
        match scores.iter().all(|score| score.is_finite()) {
            true => Ok(scores),
            false => Err(HeaderError::Value(KEY.into(), "has a number that is not finite")),
        }
    }

    fn byte_level(&self) -> Result<Value, HeaderError> {
        const MERGES: &str = "tokenizer.ggml.merges";
        let pre = self.metadata.text(PRE)?.ok_or(HeaderError::Value(PRE.into(), "is missing"))?;
        let Some(cut) = pre_tokenizer(pre) else {
            let pre: String = pre.chars().take(64).collect();
            return Err(HeaderError::Unsupported(
                PRE.into(),
                format!("`{pre}` is not a pre-tokenizer this server has"),
            ));
        };
        let merges = self
            .metadata
            .texts(MERGES, MERGES_OF_A_TOKEN * self.tokens.len())?
            .ok_or(HeaderError::Value(MERGES.into(), "is missing"))?;
        let whole_words =
            matches!(pre, "llama-bpe" | "llama3" | "llama-v3" | "smaug-bpe" | "tekken" | "llama4");
        let normalizer = if pre == "qwen2" { json!({"type": "NFC"}) } else { Value::Null };
        Ok(json!({
            "normalizer": normalizer,
            "pre_tokenizer": cut,
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": whole_words,
                "vocab": self.ids(), "merges": merges,
            },
        }))
    }

    fn unknown(&self) -> Option<usize> {
        (0..self.kinds.len().min(self.tokens.len())).find(|id| self.kind(*id) == kind::UNKNOWN)
    }

    /// Of SentencePiece: spaces are `▁`, and what no piece has is spelled in bytes.
    fn sentence_piece(&self, model: Value) -> Result<Value, HeaderError> {
        let prefix = self.metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
        let mut normalizers = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})];
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if prefix {
            normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        Ok(json!({
            "normalizer": {"type": "Sequence", "normalizers": normalizers},
            "pre_tokenizer": null,
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": model,
        }))
    }

    /// SentencePiece merges what makes the piece of the highest score; so its merges are all ways to cut a piece in
    /// two, the best piece first.
    fn pieces(&self) -> Result<Value, HeaderError> {
        let scores = self.scores()?;
        if let Some(id) = self.tokens.iter().position(|token| token.len() > LONGEST_PIECE) {
            let problem = format!("token {id} has {} bytes; {LONGEST_PIECE} are read", self.tokens[id].len());
            return Err(HeaderError::Unsupported(TOKENS.into(), problem));
        }
        let ids: HashMap<&str, usize> =
            self.tokens.iter().enumerate().map(|(id, token)| (*token, id)).collect();
        let most = MERGED_BYTES * self.tokens.iter().map(|token| token.len()).sum::<usize>();
        let (mut merges, mut bytes) = (Vec::new(), 0);
        for (id, token) in self.tokens.iter().enumerate() {
            let cuts = token.char_indices().skip(1);
            let halves = cuts.map(|(at, _)| token.split_at(at));
            let halves = halves.filter_map(|(left, right)| Some((*ids.get(left)?, *ids.get(right)?)));
            let before = merges.len();
            merges.extend(halves.map(|(left, right)| (id, left, right)));
            bytes += token.len() * (merges.len() - before);
            if bytes > most {
                let problem =
                    format!("its pieces are made of one another in more than {} ways", merges.len());
                return Err(HeaderError::Unsupported(TOKENS.into(), problem));
            }
        }
        merges.sort_by(|a, b| scores[b.0].total_cmp(&scores[a.0]).then((a.1, a.2).cmp(&(b.1, b.2))));
        let merges: Vec<Value> =
            merges.iter().map(|(_, left, right)| json!([self.tokens[*left], self.tokens[*right]])).collect();
        self.sentence_piece(json!({
            "type": "BPE", "dropout": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "unk_token": self.unknown().map(|id| self.tokens[id]), "fuse_unk": true, "byte_fallback": true,
            "ignore_merges": false, "vocab": self.ids(), "merges": merges,
        }))
    }
}

impl Text {
    /// # Errors
    /// A tokenizer that is missing, or of a kind that is not read.
    pub fn of(metadata: Metadata<'_>) -> Result<Text, HeaderError> {
        let missing = |key: &str| HeaderError::Value(key.into(), "is missing");
        let model = metadata.text(MODEL)?.ok_or_else(|| missing(MODEL))?;
        let embedding = metadata.tensor("token_embd.weight");
        let embedded = embedding.as_ref().and_then(|entry| entry.shape().first()).copied();
        let tokens = metadata.texts(TOKENS, embedded.unwrap_or(0))?.ok_or_else(|| missing(TOKENS))?;
        let kinds = metadata.numbers("tokenizer.ggml.token_type", tokens.len())?.unwrap_or_default();
        let kinds = kinds.into_iter().map(|kind| kind as u64).collect();
        let vocabulary = Vocabulary { metadata, tokens, kinds };
        vocabulary.check()?;
        let mut tokenizer = match model {
            "gpt2" => vocabulary.byte_level()?,
            "llama" => vocabulary.pieces()?,
            other => {
                let other: String = other.chars().take(64).collect();
                return Err(HeaderError::Unsupported(
                    MODEL.into(),
                    format!("`{other}` is not gpt2 or llama"),
                ));
            }
        };
        let bos = vocabulary.token("tokenizer.ggml.bos_token_id")?;
        let eos = vocabulary.token("tokenizer.ggml.eos_token_id")?;
        // As llama.cpp: SentencePiece's begin every text unless the file says otherwise, and Llama 3's and Mistral's.
        let by_itself = model == "llama"
            || matches!(metadata.text(PRE)?, Some("llama-bpe" | "llama3" | "llama-v3" | "tekken"));
        let begins = metadata.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(by_itself);
        if let (Some((id, token)), true) = (bos, begins) {
            let special = |kind: u8| json!({"SpecialToken": {"id": token, "type_id": kind}});
            let text = |name: &str, kind: u8| json!({"Sequence": {"id": name, "type_id": kind}});
            tokenizer["post_processor"] = json!({
                "type": "TemplateProcessing",
                "single": [special(0), text("A", 0)],
                "pair": [special(0), text("A", 0), special(1), text("B", 1)],
                "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
            });
        }
        tokenizer["version"] = "1.0".into();
        tokenizer["added_tokens"] = vocabulary.added().into();
        let mut ends: Vec<u64> = eos.iter().map(|(id, _)| *id).collect();
        for key in ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
            ends.extend(vocabulary.token(key)?.map(|(id, _)| id));
        }
        ends.extend(vocabulary.ends());
        ends.sort_unstable();
        ends.dedup();
        Ok(Text {
            tokenizer: tokenizer.to_string().into_bytes(),
            config: json!({
                "bos_token": bos.map(|(_, token)| token),
                "eos_token": eos.map(|(_, token)| token),
            }),
            chat_template: metadata.text("tokenizer.chat_template")?.map(str::to_owned),
            generation: if ends.is_empty() { Value::Null } else { json!({"eos_token_id": ends}) },
        })
    }
}
