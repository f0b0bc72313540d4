//! Grammars: what an answer must match, compiled once and asked before each token which ones may come.
//!
//! A wrapper of the `llguidance` crate: JSON schemas, regular expressions and Lark grammars in, bitmasks over the
//! vocabulary out. A schema or grammar comes from a client, so compiling it is bounded in time, in threads and in what
//! it may cost, and whatever it cannot honour is an error that says so. Knows no engine and no request.

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use llguidance::api::{GrammarInit, GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{
    InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv,
};
use llguidance::{Logger, Matcher, ParserFactory, TokenParser};
use serde_json::{Value, json};

use super::json_schema::{self, SchemaError};
use super::masks::{Masks, Words};
use super::tokenizer::Tokenizer;
use super::turns::{Turn, Turns};

/// Longest that compiling one may take.
const COMPILE_TIME: Duration = Duration::from_secs(1);
/// Schemas and rules nest, and so do the calls that read them, at some kilobytes a level. Only what is used is real.
const COMPILE_STACK: usize = 512 << 20;
/// Bytes of all parts together; of a grammar's or a regular expression's text.
const MAX_SOURCE: usize = 256 << 10;
const MAX_LARK: usize = 32 << 10;
const MAX_REGEX: usize = 16 << 10;
/// Of the parser's bounds for grammars that clients write themselves, which may be ambiguous without end.
const LARK_ITEMS_IN_ROW: usize = 100;
const LARK_STEP_ITEMS: usize = 5_000;
/// Bytes of compiled grammars that are kept, as estimated by [`Grammar::bytes`].
const CACHE_BYTES: usize = 64 << 20;
/// Of the smallest one.
const LEAST_BYTES: usize = 256 << 10;
/// Steps that a grammar is tried for before it is taken: most that are too complex show it at once.
const TRIED_STEPS: usize = 4;

/// Why there is no such grammar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    #[error(transparent)]
    Schema(#[from] SchemaError),
    #[error("{0}")]
    Refused(String),
    #[error("it has {bytes} bytes, at most {most} are taken")]
    TooLong { bytes: usize, most: usize },
    #[error("it took longer than {COMPILE_TIME:?} to compile")]
    TooSlow,
    /// Not this one's fault.
    #[error("other grammars are being compiled")]
    Busy,
}

/// The parts of a grammar: a Lark grammar with the rule `start`, which names the others by `@name`.
#[derive(Debug, Clone, Default)]
pub struct Source {
    pub start: String,
    pub parts: Vec<(String, Part)>,
}

/// What a part of an answer must match.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// JSON after this schema, written as Python's `json.dumps` writes it.
    JsonSchema(Value),
    /// In the syntax of the crate `regex`, matched as a whole.
    Regex(String),
    /// One of these, as it is.
    Choice(Vec<String>),
    /// A whole Lark grammar in llguidance's dialect.
    Lark(String),
}

impl Part {
    /// Any JSON object.
    pub fn json_object() -> Part {
        Part::JsonSchema(json!({"type": "object"}))
    }

    fn grammar(self) -> Result<GrammarWithLexer, GrammarError> {
        Ok(match self {
            Part::JsonSchema(schema) => {
                // One way to write each value: what it forces can be computed together, and nothing ends in a row of
                // spaces without end.
                let mut schema = json_schema::prepared(&schema)?;
                schema.insert(
                    "x-guidance".into(),
                    json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": ",
                           // Without \\u: what a name or a text must not be it must not be by another spelling.
                           "json_allowed_escapes": "nrbtf\\\""}),
                );
                GrammarWithLexer::from_json_schema(schema.into())
            }
            Part::Regex(regex) if regex.len() > MAX_REGEX => {
                return Err(GrammarError::TooLong { bytes: regex.len(), most: MAX_REGEX });
            }
            Part::Regex(regex) => GrammarWithLexer::from_regex(&regex),
            Part::Choice(all) if all.is_empty() => {
                return Err(GrammarError::Refused("there is nothing to choose from".into()));
            }
            Part::Choice(all) => {
                let quoted: Vec<String> = all.iter().map(|text| literal(text)).collect();
                // One terminal: thousands of rules would be thousands of ways to go on.
                GrammarWithLexer::from_lark(format!("start: CHOICE\nCHOICE: {}", quoted.join(" | ")))
            }
            Part::Lark(text) if text.len() > MAX_LARK => {
                return Err(GrammarError::TooLong { bytes: text.len(), most: MAX_LARK });
            }
            Part::Lark(text) if text.contains("allow_invalid_utf8") => {
                return Err(GrammarError::Refused("allow_invalid_utf8: an answer is a text".into()));
            }
            Part::Lark(text) => GrammarWithLexer::from_lark(text),
        })
    }
}

/// A text as a literal of a Lark grammar.
pub fn literal(text: &str) -> String {
    Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

impl Source {
    /// A grammar that is this part alone.
    pub fn of(part: Part) -> Source {
        Source { start: "start: @answer".into(), parts: vec![("answer".into(), part)] }
    }

    fn grammar(self) -> Result<TopLevelGrammar, GrammarError> {
        let mut grammars = vec![GrammarWithLexer { name: None, ..GrammarWithLexer::from_lark(self.start) }];
        for (name, part) in self.parts {
            grammars.push(GrammarWithLexer { name: Some(name), ..part.grammar()? });
        }
        Ok(TopLevelGrammar { grammars, max_tokens: None })
    }
}

/// A compiled grammar.
pub struct Grammar {
    /// At its beginning, and never moved from there. (Answers that share a lexer, and so what it has met, were measured:
    /// no faster.)
    fresh: TokenParser,
    words: Arc<Words>,
    source_bytes: usize,
}

impl Grammar {
    /// What it takes, measured on enumerations: some forty times their text.
    fn bytes(&self) -> usize {
        LEAST_BYTES + 40 * self.source_bytes
    }
}

/// The grammars of one vocabulary.
pub struct Grammars {
    factory: Arc<ParserFactory>,
    words: Arc<Words>,
    cache: Mutex<Cache>,
    compiling: Turns,
}

impl Grammars {
    /// `end_tokens` end an answer where its grammar allows the end.
    ///
    /// # Errors
    /// A vocabulary without tokens.
    pub fn new(tokenizer: &Arc<Tokenizer>, end_tokens: &[u32]) -> Result<Grammars, GrammarError> {
        let refused = |e: anyhow::Error| GrammarError::Refused(e.to_string());
        let environment: TokEnv = Arc::new(Vocabulary::new(tokenizer.clone(), end_tokens)?);
        let forced = InferenceCapabilities {
            ff_tokens: environment.tokenize_is_canonical(),
            ..InferenceCapabilities::default()
        };
        // Masks are made by [`Masks`], without slices.
        let mut factory = ParserFactory::new(&environment, forced, &[]).map_err(refused)?;
        factory.quiet();
        // A client's text is in none of our messages.
        *factory.limits_mut() = ParserLimits { verbose_errors: false, ..ParserLimits::default() };
        let words = Arc::new(Words::new(&environment));
        Ok(Grammars { factory: Arc::new(factory), words, cache: Mutex::default(), compiling: Arc::default() })
    }

    /// The grammar of this source, compiled now or, for the same tenant, before: what one has asked for is not told by
    /// how soon another is answered. Takes little more than a second at most.
    ///
    /// # Errors
    /// What cannot be honoured, by keyword where a schema says it; what is too large or too slow.
    pub fn compile(&self, source: Source, tenant: u64) -> Result<Arc<Grammar>, GrammarError> {
        let free = source.parts.iter().any(|(_, part)| matches!(part, Part::Lark(_)));
        let source = source.grammar()?;
        let text = serde_json::to_string(&source).map_err(|e| GrammarError::Refused(e.to_string()))?;
        let source_bytes = text.len();
        if source_bytes > MAX_SOURCE {
            return Err(GrammarError::TooLong { bytes: source_bytes, most: MAX_SOURCE });
        }
        let key = (tenant, text);
        let cache = || self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = cache().get(&key) {
            return Ok(known);
        }
        let fresh = self.within_limits(source, free)?;
        let grammar = Arc::new(Grammar { fresh, words: self.words.clone(), source_bytes });
        cache().put(key, grammar.clone());
        Ok(grammar)
    }

    /// `free`: a client's own grammar is in it.
    fn within_limits(&self, source: TopLevelGrammar, free: bool) -> Result<TokenParser, GrammarError> {
        let turn = Turn::wait(&self.compiling).ok_or(GrammarError::Busy)?;
        let (factory, words, abandoned) = (self.factory.clone(), self.words.clone(), turn.abandoned());
        let (sender, compiled) = mpsc::channel();
        let work = move || {
            let result = compile(&factory, words, source, free);
            drop(turn);
            // Nobody waits for what took too long.
            let _ = sender.send(result);
        };
        let thread = std::thread::Builder::new().name("grammar".into()).stack_size(COMPILE_STACK);
        thread.spawn(work).map_err(|e| GrammarError::Refused(format!("no thread to compile it: {e}")))?;
        match compiled.recv_timeout(COMPILE_TIME) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => {
                abandoned.abandon();
                Err(GrammarError::TooSlow)
            }
            Err(RecvTimeoutError::Disconnected) => {
                Err(GrammarError::Refused("it could not be compiled".into()))
            }
        }
    }
}

fn compile(
    factory: &ParserFactory,
    words: Arc<Words>,
    source: TopLevelGrammar,
    free: bool,
) -> Result<TokenParser, GrammarError> {
    let refused = |e: anyhow::Error| GrammarError::Refused(plain(&e.to_string()));
    let mut limits = factory.limits().clone();
    if free {
        (limits.max_items_in_row, limits.step_max_items) = (LARK_ITEMS_IN_ROW, LARK_STEP_ITEMS);
    }
    let logger = Logger::new(0, 0);
    let forced = InferenceCapabilities {
        ff_tokens: factory.tok_env().tokenize_is_canonical(),
        ..InferenceCapabilities::default()
    };
    let init = GrammarInit::Serialized(source);
    let fresh = factory.create_parser_from_init_ext(init, logger, forced, limits).map_err(refused)?;
    // Some way into it, along the first tokens that may come.
    let mut tried = begun(&fresh, words);
    for _ in 0..TRIED_STEPS {
        if tried.is_stopped() {
            break;
        }
        let mask = tried.compute_mask().map_err(|e| match e.to_string().contains("NoExtension") {
            true => GrammarError::Refused("nothing matches it".into()),
            false => refused(e),
        })?;
        let Some(token) = mask.first_bit_set() else { break };
        tried.consume_token(token as TokenId).map_err(refused)?;
    }
    Ok(fresh)
}

/// A parser at the beginning, which makes its masks by these words.
fn begun(fresh: &TokenParser, words: Arc<Words>) -> Matcher {
    let mut parser = fresh.deep_clone();
    parser.bias_computer = Arc::new(Masks::new(words));
    Matcher::new(Ok(parser))
}

/// A message without the crate's excerpts and notes.
fn plain(message: &str) -> String {
    let text = message.split("\n<").next().unwrap_or_default();
    let text = text.lines().filter(|line| !is_excerpt(line)).collect::<Vec<_>>().join(" ");
    let text = match text.split_once("): ").filter(|(place, _)| place.starts_with("at ")) {
        Some((_, rest)) => rest,
        None => text.as_str(),
    };
    if text.contains("panic:") {
        return "it is beyond what can be kept to".into();
    }
    let text = text.trim().trim_start_matches("failed to compile JSON schema: ");
    let text = text.replace("Unimplemented keys", "unsupported keywords").replace(
        "Enable 'coerce_one_of' option to approximate oneOf with anyOf",
        "options must exclude each other, or use anyOf",
    );
    text.chars().take(400).collect()
}

fn is_excerpt(line: &str) -> bool {
    let rest = line.trim_start().trim_start_matches(|c: char| c.is_ascii_digit());
    rest.starts_with(" | ") || rest.trim_matches(['^', ' ']).is_empty()
}

/// A tenant, and a source.
type Key = (u64, String);

/// Compiled grammars, the least recently used of which go when they take more than [`CACHE_BYTES`].
#[derive(Default)]
struct Cache {
    all: HashMap<Key, (Arc<Grammar>, u64)>,
    bytes: usize,
    uses: u64,
}

impl Cache {
    fn get(&mut self, key: &Key) -> Option<Arc<Grammar>> {
        self.uses += 1;
        let (grammar, last) = self.all.get_mut(key)?;
        *last = self.uses;
        Some(grammar.clone())
    }

    fn put(&mut self, key: Key, grammar: Arc<Grammar>) {
        self.uses += 1;
        self.bytes += grammar.bytes();
        if let Some((before, _)) = self.all.insert(key, (grammar, self.uses)) {
            self.bytes -= before.bytes();
        }
        while self.bytes > CACHE_BYTES && self.all.len() > 1 {
            let oldest = self.all.iter().min_by_key(|(_, (_, last))| *last).map(|(key, _)| key.clone());
            let Some((gone, _)) = oldest.and_then(|key| self.all.remove(&key)) else { return };
            self.bytes -= gone.bytes();
        }
    }
}

/// Why a grammar cannot go on in the midst of an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct MatchError(String);

/// How far an answer is in its grammar.
pub struct Match {
    grammar: Arc<Grammar>,
    matcher: Matcher,
}

impl Match {
    /// At the beginning.
    pub fn begin(grammar: &Arc<Grammar>) -> Match {
        Match { grammar: grammar.clone(), matcher: begun(&grammar.fresh, grammar.words.clone()) }
    }

    /// The same grammar from its beginning.
    pub fn again(&self) -> Match {
        Match::begin(&self.grammar)
    }

    /// Sets the bit of each token that may come next, least significant bit first; all are clear before. Where the
    /// answer is complete that is its end.
    ///
    /// # Errors
    /// When the grammar has become too complex.
    pub fn fill_mask(&mut self, mask: &mut [u32]) -> Result<(), MatchError> {
        let allowed: SimpleVob = self.matcher.compute_mask_or_eos().map_err(|e| self.failed(&e))?;
        mask.iter_mut().zip(allowed.as_slice()).for_each(|(to, from)| *to = *from);
        Ok(())
    }

    /// Takes the next token; false when nothing can follow it.
    ///
    /// # Errors
    /// A token that does not match.
    pub fn accept(&mut self, token: u32) -> Result<bool, MatchError> {
        if self.matcher.is_stopped() && !self.matcher.is_error() {
            return Ok(false);
        }
        self.matcher.consume_token(token).map_err(|e| self.failed(&e))?;
        Ok(!self.matcher.is_stopped())
    }

    /// Appends, and takes, the tokens that alone may come next, `most` at most; false when nothing can follow them.
    ///
    /// # Errors
    /// As [`Match::accept`].
    pub fn force(&mut self, most: usize, tokens: &mut Vec<u32>) -> Result<bool, MatchError> {
        if self.matcher.is_stopped() || most == 0 {
            return Ok(true);
        }
        let mut forced = self.matcher.compute_ff_tokens();
        forced.truncate(most);
        for token in forced {
            tokens.push(token);
            if !self.accept(token)? {
                return Ok(false);
            }
        }
        match self.matcher.get_error() {
            Some(error) => Err(self.failed(&error)),
            None => Ok(true),
        }
    }

    fn failed(&self, error: &dyn Display) -> MatchError {
        MatchError(plain(&error.to_string()))
    }
}

/// A tokenizer as llguidance sees it: the bytes of each token. Special tokens and those that end an answer are no text.
struct Vocabulary {
    trie: TokTrie,
    tokenizer: Arc<Tokenizer>,
}

impl Vocabulary {
    fn new(tokenizer: Arc<Tokenizer>, end_tokens: &[u32]) -> Result<Vocabulary, GrammarError> {
        let vocab = tokenizer.vocab() as u32;
        let ends: Vec<u32> = end_tokens.iter().copied().filter(|id| *id < vocab).collect();
        let word = |id: u32| match tokenizer.is_special(id) || ends.contains(&id) {
            true => [&[TokTrie::SPECIAL_TOKEN_MARKER][..], &tokenizer.token_bytes(id)].concat(),
            false => tokenizer.token_bytes(id),
        };
        let words: Vec<Vec<u8>> = (0..vocab).map(word).collect();
        let Some(&end) = ends.first() else {
            return Err(GrammarError::Refused("the model has no token that ends an answer".into()));
        };
        let trie = TokTrie::from(&TokRxInfo::new(vocab, end), &words).with_eos_tokens(&ends);
        Ok(Vocabulary { trie, tokenizer })
    }
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        let greedy = |text: &str| self.trie.greedy_tokenize(text.as_bytes());
        self.trie.tokenize_with_greedy_fallback(bytes, |text| {
            let ids = self.tokenizer.encode(text, false).unwrap_or_else(|_| greedy(text));
            // A text that spells a special token is still a text.
            match ids.iter().any(|id| self.trie.is_special_token(*id)) {
                true => greedy(text),
                false => ids,
            }
        })
    }

    /// Of other vocabularies the tokens of a text are not the tokens of its parts.
    fn tokenize_is_canonical(&self) -> bool {
        self.tokenizer.is_byte_level()
    }
}

#[cfg(test)]
#[path = "grammar_tests.rs"]
mod tests;
