//! Vectors of texts and scores of pairs: validation, tokens, the engine's encoders, and what is made of their answers.
//!
//! A cross-encoder reads both texts of a pair together and scores them; a model that makes vectors scores a pair by the
//! cosine of their two.

use std::sync::Arc;

use crate::access::Size;
use crate::energy::{AccountHandle, RequestEnergy};
use crate::engine::encode::{EncodeRequest, EncoderText, Purpose};
use crate::engine::step_log;
use crate::service::validate::{invalid, tier};
use crate::service::{Service, ServiceError};
use crate::text::tokenizer::Tokenizer;
use crate::unit::{EncodeAnswer, Unit};
use crate::wire::embeddings::{EmbeddingRequest, RerankRequest, ScoreRequest};
use crate::wire::request::{Prompt, ServiceTier};

/// Tokens of all texts of a request: they are kept until they are computed.
const MAX_REQUEST_TOKENS: usize = 1 << 19;

/// A text of so many bytes is tokenised whatever its vocabulary.
const TRIED_BYTES: usize = 64 << 10;

/// Asked once it is known which encoder reads how many tokens, before any of them is submitted.
pub type AdmitTexts<'a> = &'a dyn Fn(&ServedEncoder, Size) -> Result<(), ServiceError>;

/// An encoder as clients see it, and the unit that runs it.
pub struct ServedEncoder {
    pub id: String,
    /// Other names it answers to.
    pub aliases: Vec<String>,
    /// When it was loaded, Unix seconds.
    pub created: u64,
    /// Tokens of a text, or of a pair, at most.
    pub max_model_len: usize,
    pub vocab: usize,
    /// Kinds of segments it knows.
    pub types: usize,
    /// Numbers of its vectors.
    pub dimensions: usize,
    pub purpose: Purpose,
    pub tokenizer: Arc<Tokenizer>,
    /// Its number in each engine.
    pub number: usize,
    pub unit: Arc<Unit>,
}

/// Texts that are being computed. Dropping it cancels them.
pub struct Embedding {
    /// Id of the model that answers.
    pub model: String,
    /// When it began, Unix seconds.
    pub created: u64,
    pub prompt_tokens: usize,
    answer: EncodeAnswer,
    /// `None` without a meter.
    account: Option<Arc<AccountHandle>>,
    pub tier: ServiceTier,
    /// Numbers a vector is cut to.
    dimensions: Option<usize>,
    /// Vectors whose cosine is a pair's score; `None` where the model scores by itself.
    pairs: Option<Vec<(usize, usize)>>,
}

/// What came of the texts, and its joules.
pub struct Embedded<T> {
    pub of_texts: Vec<T>,
    pub energy: Option<RequestEnergy>,
}

impl Service {
    /// The same with encoders beside its models.
    #[must_use]
    pub fn with_encoders(mut self, encoders: Vec<ServedEncoder>) -> Service {
        self.encoders = encoders;
        self
    }

    pub fn encoders(&self) -> &[ServedEncoder] {
        &self.encoders
    }

    pub(super) fn encoder_named(&self, name: &str) -> Option<&ServedEncoder> {
        self.encoders.iter().find(|e| e.id == name || e.aliases.iter().any(|a| a == name))
    }

    /// The encoder a request names; without a name, the first that `suits`, best first.
    fn encoder(
        &self,
        name: Option<&str>,
        suits: impl Fn(&ServedEncoder) -> usize,
    ) -> Result<&ServedEncoder, ServiceError> {
        let Some(name) = name else {
            let best = self.encoders.iter().min_by_key(|e| suits(e));
            let message = "No model that embeds texts is served here (--model names one)";
            return best.ok_or_else(|| wrong_model(message.into()));
        };
        match (self.encoder_named(name), self.model(Some(name))) {
            (Some(encoder), _) => Ok(encoder),
            (None, Ok(chat)) => Err(wrong_model(format!(
                "The model `{}` generates text and embeds none: use /v1/chat/completions or /v1/completions",
                chat.id
            ))),
            (None, Err(error)) => Err(error),
        }
    }

    /// Starts the vectors of some texts.
    ///
    /// # Errors
    /// What the model cannot honour, and what the unit answers (full, loading, draining).
    pub fn embed(
        &self,
        request: &EmbeddingRequest,
        admit: AdmitTexts<'_>,
    ) -> Result<Embedding, ServiceError> {
        let encoder = self.encoder(request.model.as_deref(), |e| usize::from(e.is_reranker()))?;
        let Purpose::Embed { shorter, .. } = &encoder.purpose else {
            let message =
                format!("The model `{}` scores pairs of texts: use /v1/rerank or /v1/score", encoder.id);
            return Err(wrong_model(message));
        };
        if let Some(asked) = request.dimensions.filter(|d| *d != encoder.dimensions)
            && (asked > encoder.dimensions || !shorter.allows(asked))
        {
            let (model, most) = (&encoder.id, encoder.dimensions);
            let why = match asked > most {
                true => "it cannot make longer ones".to_string(),
                false => format!(
                    "it was not trained to be cut to {asked} (its config.json says neither is_matryoshka nor \
                     that size in matryoshka_dimensions)"
                ),
            };
            let message = format!("The model `{model}` makes vectors of {most} numbers; {why}");
            return Err(invalid("dimensions", message, Some("unsupported_parameter")));
        }
        let path = |i: usize| if request.single { "input".to_string() } else { format!("input[{i}]") };
        let texts = request.inputs.iter().enumerate();
        let texts = texts.map(|(i, input)| encoder.text(input, &path(i))).collect::<Result<Vec<_>, _>>()?;
        let running = encoder.start(texts, request.tier, "input", admit)?;
        Ok(Embedding { dimensions: request.dimensions, ..running })
    }

    /// Starts the scores of documents for a query, in their order.
    ///
    /// # Errors
    /// As [`Service::embed`].
    pub fn rerank(&self, request: &RerankRequest, admit: AdmitTexts<'_>) -> Result<Embedding, ServiceError> {
        let query = [request.query.as_str()];
        let documents: Vec<&str> = request.documents.iter().map(String::as_str).collect();
        let path = |i: usize| format!("documents[{i}]");
        let sides = Sides {
            first: &query,
            second: &documents,
            first_path: &|_| "query".into(),
            second_name: "documents",
            second_path: &path,
        };
        self.pairs(request.model.as_deref(), sides, request.tier, admit)
    }

    /// Starts the scores of pairs.
    ///
    /// # Errors
    /// As [`Service::embed`].
    pub fn score(&self, request: &ScoreRequest, admit: AdmitTexts<'_>) -> Result<Embedding, ServiceError> {
        let first: Vec<&str> = request.first.iter().map(String::as_str).collect();
        let second: Vec<&str> = request.second.iter().map(String::as_str).collect();
        let path = |key: &str, of: usize, i: usize| if of == 1 { key.into() } else { format!("{key}[{i}]") };
        let sides = Sides {
            first_path: &|i| path("text_1", first.len(), i),
            second_name: "text_2",
            second_path: &|i| path("text_2", second.len(), i),
            first: &first,
            second: &second,
        };
        self.pairs(request.model.as_deref(), sides, request.tier, admit)
    }

    fn pairs(
        &self,
        model: Option<&str>,
        sides: Sides,
        tier: ServiceTier,
        admit: AdmitTexts<'_>,
    ) -> Result<Embedding, ServiceError> {
        let encoder = self.encoder(model, |e| usize::from(!e.is_reranker()))?;
        let Sides { first, second, first_path, second_name, second_path } = sides;
        // One for all, or one for each.
        let partner = |i: usize| if first.len() == 1 { 0 } else { i };
        if encoder.is_reranker() {
            let pair = |(i, text): (usize, &&str)| {
                encoder.pair(first[partner(i)], text, &first_path(partner(i)), &second_path(i))
            };
            let texts = second.iter().enumerate().map(pair).collect::<Result<Vec<_>, _>>()?;
            return encoder.start(texts, tier, second_name, admit);
        }
        let mut texts = Vec::with_capacity(first.len() + second.len());
        for (side, path) in [(first, first_path), (second, second_path)] {
            for (i, text) in side.iter().enumerate() {
                texts.push(encoder.encoded(text, &path(i))?);
            }
        }
        let pairs = (0..second.len()).map(|i| (partner(i), first.len() + i)).collect();
        Ok(Embedding { pairs: Some(pairs), ..encoder.start(texts, tier, second_name, admit)? })
    }
}

/// Texts to be paired, and where each came from.
struct Sides<'a> {
    first: &'a [&'a str],
    second: &'a [&'a str],
    first_path: &'a dyn Fn(usize) -> String,
    /// The field of all the second ones.
    second_name: &'static str,
    second_path: &'a dyn Fn(usize) -> String,
}

fn wrong_model(message: String) -> ServiceError {
    invalid("model", message, Some("model_not_supported"))
}

impl ServedEncoder {
    /// What it is for, for who asked it for something else.
    pub(super) fn refusal(&self) -> ServiceError {
        wrong_model(match self.purpose {
            Purpose::Embed { .. } => {
                format!("The model `{}` embeds texts and generates none: use /v1/embeddings", self.id)
            }
            Purpose::Score => {
                format!("The model `{}` scores pairs of texts: use /v1/rerank or /v1/score", self.id)
            }
        })
    }

    /// It scores pairs of texts.
    pub fn is_reranker(&self) -> bool {
        self.purpose == Purpose::Score
    }

    fn text(&self, input: &Prompt, path: &str) -> Result<EncoderText, ServiceError> {
        match input {
            Prompt::Text(text) => self.encoded(text, path),
            Prompt::Tokens(ids) => {
                if let Some(id) = ids.iter().find(|id| **id as usize >= self.vocab) {
                    let message =
                        format!("token id {id} is outside the model's vocabulary of {}", self.vocab);
                    return Err(invalid(path, message, None));
                }
                self.checked(ids.clone(), Vec::new(), path)
            }
        }
    }

    fn encoded(&self, text: &str, path: &str) -> Result<EncoderText, ServiceError> {
        self.check_bytes(text, path)?;
        let ids = self.tokenizer.encode(text, true).map_err(|e| invalid(path, e.to_string(), None))?;
        self.checked(ids, Vec::new(), path)
    }

    fn pair(
        &self,
        first: &str,
        second: &str,
        first_path: &str,
        path: &str,
    ) -> Result<EncoderText, ServiceError> {
        self.check_bytes(first, first_path)?;
        self.check_bytes(second, path)?;
        let pair = self.tokenizer.encode_pair(first, second);
        let (ids, mut types) = pair.map_err(|e| invalid(path, e.to_string(), None))?;
        // Not every model tells its segments apart.
        types.iter_mut().filter(|t| **t as usize >= self.types).for_each(|t| *t = 0);
        if ids.len() > self.max_model_len {
            // The one that does not fit alone is to blame, if there is one.
            self.encoded(first, first_path)?;
        }
        self.checked(ids, types, path)
    }

    /// Refuses a text that says nothing, and one that cannot fit before it is tokenised.
    fn check_bytes(&self, text: &str, path: &str) -> Result<(), ServiceError> {
        if text.is_empty() {
            return Err(invalid(path, format!("{path} must not be an empty string"), None));
        }
        // A normaliser may drop blanks, and a word of any length may be one unknown token: what is short is tried.
        if text.len() <= TRIED_BYTES {
            return Ok(());
        }
        let at_least = text.len() / self.tokenizer.longest_token().max(1);
        match at_least > self.max_model_len {
            true => Err(self.too_long(path, format!("more than {at_least}"))),
            false => Ok(()),
        }
    }

    fn too_long(&self, path: &str, tokens: String) -> ServiceError {
        let longest = self.max_model_len;
        let message =
            format!("This model's maximum context length is {longest} tokens; {path} has {tokens} tokens.");
        invalid(path, message, Some("context_length_exceeded"))
    }

    fn checked(&self, ids: Vec<u32>, types: Vec<u32>, path: &str) -> Result<EncoderText, ServiceError> {
        match ids.len() {
            0 => Err(invalid(path, format!("{path} must have at least one token"), None)),
            n if n > self.max_model_len => Err(self.too_long(path, n.to_string())),
            _ => Ok(EncoderText { ids, types }),
        }
    }

    fn start(
        &self,
        texts: Vec<EncoderText>,
        of: ServiceTier,
        path: &str,
        admit: AdmitTexts<'_>,
    ) -> Result<Embedding, ServiceError> {
        let prompt_tokens: usize = texts.iter().map(|t| t.ids.len()).sum();
        if prompt_tokens > MAX_REQUEST_TOKENS {
            let message = format!(
                "The request has {prompt_tokens} tokens over all texts; at most {MAX_REQUEST_TOKENS} are taken"
            );
            return Err(invalid(path, message, None));
        }
        let size = Size { prompt_tokens: prompt_tokens as u64, most_tokens: 0, said: true };
        admit(self, size)?;
        let account = self.unit.ledger().map(|ledger| Arc::new(ledger.open()));
        let request = EncodeRequest {
            encoder: self.number,
            texts: texts.into(),
            tier: tier(of),
            account: account.as_ref().map_or(step_log::OVERHEAD, |a| a.id),
        };
        Ok(Embedding {
            model: self.id.clone(),
            created: crate::clock::unix_seconds(),
            prompt_tokens,
            answer: self.unit.encode(request)?,
            account,
            tier: of,
            dimensions: None,
            pairs: None,
        })
    }
}

impl Embedding {
    /// Its account at the meters.
    pub fn meters(&self) -> Option<Arc<AccountHandle>> {
        self.account.clone()
    }

    /// The vectors, in the order of their texts.
    ///
    /// # Errors
    /// What the engine answers.
    pub async fn vectors(self) -> Result<Embedded<Vec<f32>>, ServiceError> {
        let mut vectors = self.answer.wait().await?;
        if let Some(dimensions) = self.dimensions {
            for vector in vectors.iter_mut().filter(|v| v.len() > dimensions) {
                vector.truncate(dimensions);
                let length = dot(vector, vector).sqrt().max(f32::MIN_POSITIVE);
                vector.iter_mut().for_each(|x| *x /= length);
            }
        }
        Ok(Embedded { of_texts: vectors, energy: self.account.as_ref().and_then(|account| account.energy()) })
    }

    /// The scores, in the order of their pairs.
    ///
    /// # Errors
    /// What the engine answers.
    pub async fn scores(self) -> Result<Embedded<f32>, ServiceError> {
        let outputs = self.answer.wait().await?;
        let of_texts = match self.pairs {
            Some(pairs) => pairs.into_iter().map(|(a, b)| cosine(&outputs[a], &outputs[b])).collect(),
            None => outputs.iter().map(|one| one.first().copied().unwrap_or_default()).collect(),
        };
        Ok(Embedded { of_texts, energy: self.account.as_ref().and_then(|account| account.energy()) })
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let lengths = (dot(a, a) * dot(b, b)).sqrt().max(f32::MIN_POSITIVE);
    (dot(a, b) / lengths).clamp(-1.0, 1.0)
}
