//! L4c. From a parsed request to a stream of text: validation, templates, tokens, stop strings.
//!
//! Knows no HTTP, so the command line and the benches use it too.

mod choice;
pub mod collected;
mod constraint;
mod embed;
pub mod generate;
pub mod stop;
#[cfg(test)]
mod tests;
mod tools;
mod validate;

use std::sync::Arc;

use crate::access::{Refusal, Size};
pub use crate::engine::constraint::ConstraintError;
pub use crate::engine::event::EngineError;
use crate::error::{Class, Classified};
use crate::text::chat_template::ChatTemplate;
use crate::text::reasoning::Marks;
use crate::text::tokenizer::Tokenizer;
use crate::text::tool_calls::Dialect;
use crate::unit::Unit;
use crate::wire::fields::RequestError;
use crate::wire::request::{
    ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeInput, TokenizeRequest,
};
use crate::wire::thinking::Thinking;

pub use constraint::LazyGrammars;
pub use embed::{AdmitTexts, Embedded, Embedding, ServedEncoder};
pub use generate::Generation;

/// What the checkpoint's `generation_config.json` says where a request says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SamplingDefaults {
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<usize>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
}

impl SamplingDefaults {
    /// From the file's JSON. Keys that are absent or null say nothing; nor do values that no request
    /// could ask for.
    pub fn of(config: &serde_json::Value) -> SamplingDefaults {
        let number = |key: &str, least: f64, most: f64| {
            let value = config.get(key).and_then(serde_json::Value::as_f64);
            value.filter(|x| (least..=most).contains(x)).map(|x| x as f32)
        };
        let top_k = config.get("top_k").and_then(serde_json::Value::as_u64);
        SamplingDefaults {
            temperature: number("temperature", 0.0, 2.0),
            top_p: number("top_p", 0.0, 1.0),
            top_k: top_k.and_then(|k| usize::try_from(k).ok()),
            min_p: number("min_p", 0.0, 1.0),
            repetition_penalty: number("repetition_penalty", 0.01, 10.0),
        }
    }
}

/// A model as clients see it, and the unit that runs it.
pub struct ServedModel {
    pub id: String,
    /// Other names it answers to.
    pub aliases: Vec<String>,
    /// When it was loaded, Unix seconds.
    pub created: u64,
    pub max_model_len: usize,
    /// Rows of the model's embedding: ids below are valid.
    pub vocab: usize,
    pub end_tokens: Vec<u32>,
    pub tokenizer: Arc<Tokenizer>,
    pub template: Option<ChatTemplate>,
    pub defaults: SamplingDefaults,
    /// How it marks its thoughts, if it thinks.
    pub thoughts: Option<Marks>,
    /// How it writes calls of tools, if it does.
    pub dialect: Option<Dialect>,
    pub grammars: LazyGrammars,
    pub unit: Arc<Unit>,
}

/// Asked once the size of a request is known, before anything of it is submitted.
pub type Admit<'a> = &'a dyn Fn(Size) -> Result<(), Refusal>;

/// Everything that can be asked of this process, without HTTP.
pub struct Service {
    models: Vec<ServedModel>,
    encoders: Vec<ServedEncoder>,
    unit: Arc<Unit>,
}

impl Service {
    pub fn new(models: Vec<ServedModel>, unit: Arc<Unit>) -> Service {
        Service { models, encoders: Vec::new(), unit }
    }

    pub fn unit(&self) -> &Arc<Unit> {
        &self.unit
    }

    pub fn models(&self) -> &[ServedModel] {
        &self.models
    }

    /// Whether a model, or an encoder, answers to this name.
    pub fn serves(&self, name: &str) -> bool {
        let is_model = |m: &ServedModel| m.id == name || m.aliases.iter().any(|a| a == name);
        self.models.iter().any(is_model) || self.encoder_named(name).is_some()
    }

    /// The model that generates a request names; without a name, the first.
    ///
    /// # Errors
    /// `UnknownModel`, and an encoder, which says what it is for.
    pub fn model(&self, name: Option<&str>) -> Result<&ServedModel, ServiceError> {
        let found = match name {
            None => match (self.models.first(), self.encoders.first()) {
                (None, Some(encoder)) => return Err(encoder.refusal()),
                (first, _) => first,
            },
            Some(name) => self.models.iter().find(|m| m.id == name || m.aliases.iter().any(|a| a == name)),
        };
        if let (None, Some(encoder)) = (found, name.and_then(|name| self.encoder_named(name))) {
            return Err(encoder.refusal());
        }
        found.ok_or_else(|| ServiceError::unknown(name.unwrap_or_default()))
    }

    /// Starts the answer to a conversation.
    ///
    /// # Errors
    /// As [`ServedModel::chat`], and an unknown model.
    pub fn chat(&self, request: &ChatRequest) -> Result<Generation, ServiceError> {
        self.chat_if(request, &|_| Ok(()))
    }

    /// The same, if it is admitted.
    ///
    /// # Errors
    /// As [`Service::chat`], and a refusal.
    pub fn chat_if(&self, request: &ChatRequest, admit: Admit<'_>) -> Result<Generation, ServiceError> {
        self.model(request.parameters.model.as_deref())?.chat(request, admit)
    }

    /// Starts a completion.
    ///
    /// # Errors
    /// As [`ServedModel::complete`], and an unknown model.
    pub fn complete(&self, request: &CompletionRequest) -> Result<Generation, ServiceError> {
        self.complete_if(request, &|_| Ok(()))
    }

    /// The same, if it is admitted.
    ///
    /// # Errors
    /// As [`Service::complete`], and a refusal.
    pub fn complete_if(
        &self,
        request: &CompletionRequest,
        admit: Admit<'_>,
    ) -> Result<Generation, ServiceError> {
        self.model(request.parameters.model.as_deref())?.complete(request, admit)
    }

    /// Token ids of a text or a conversation, with the model they are of.
    ///
    /// # Errors
    /// An unknown model, a text that no context could hold.
    pub fn tokenize(&self, request: &TokenizeRequest) -> Result<(&ServedModel, Vec<u32>), ServiceError> {
        let model = self.model(request.model.as_deref())?;
        let ids = match &request.input {
            TokenizeInput::Prompt { text, add_special_tokens } => {
                model.encode_text(text, *add_special_tokens, "prompt")?
            }
            TokenizeInput::Messages { messages, add_generation_prompt, tools } => {
                let thinking = Thinking::default();
                model.encode_chat(messages, *add_generation_prompt, &thinking, tools.as_ref())?.0
            }
        };
        Ok((model, ids))
    }

    /// The text of token ids, special tokens spelled out (as vLLM's endpoint does).
    ///
    /// # Errors
    /// An unknown model, an id outside its vocabulary.
    pub fn detokenize(&self, request: &DetokenizeRequest) -> Result<String, ServiceError> {
        let model = self.model(request.model.as_deref())?;
        model.check_ids(&request.tokens, "tokens")?;
        model.tokenizer.decode_all(&request.tokens).map_err(|e| ServiceError::Invalid {
            message: e.to_string(),
            param: Some("tokens".into()),
            code: None,
        })
    }
}

impl From<RequestError> for ServiceError {
    fn from(e: RequestError) -> ServiceError {
        ServiceError::Invalid { message: e.message, param: e.param, code: e.code }
    }
}

/// Why a request was not (or not fully) served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServiceError {
    /// A field that cannot be honoured. `param` is its path on the wire (`messages[2].role`), `code`
    /// the word of OpenAI's error object.
    #[error("{message}")]
    Invalid { message: String, param: Option<String>, code: Option<&'static str> },
    #[error("The model `{0}` does not exist")]
    UnknownModel(String),
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// For now; the same request may be taken in a moment.
    #[error("{0}")]
    Busy(String),
    /// By the key's scopes or limits.
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("{0}")]
    Internal(String),
}

impl ServiceError {
    /// No model of this name is served.
    pub fn unknown(name: &str) -> ServiceError {
        ServiceError::UnknownModel(name.chars().take(128).collect())
    }
}

impl Classified for ServiceError {
    fn class(&self) -> Class {
        match self {
            ServiceError::Invalid { .. } => Class::InvalidRequest,
            ServiceError::UnknownModel(_) => Class::NotFound,
            ServiceError::Engine(e) => e.class(),
            ServiceError::Busy(_) | ServiceError::Refused(_) => Class::Overloaded,
            ServiceError::Internal(_) => Class::Internal,
        }
    }
}

/// Why a choice ended, in OpenAI's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    Stop,
    Length,
    /// It ended with calls that the model chose to make.
    ToolCalls,
}

impl Finish {
    pub fn as_str(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::ToolCalls => "tool_calls",
        }
    }
}

/// A token as the wire shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct TextLogprob {
    pub token: String,
    pub bytes: Vec<u8>,
    /// `None` for the first token of an echoed prompt, which nothing predicts.
    pub logprob: Option<f32>,
    pub top: Vec<TopLogprob>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct TopLogprob {
    pub token: String,
    pub bytes: Vec<u8>,
    pub logprob: f32,
}

/// What a running generation yields, in the order it happens; choices interleave.
#[derive(Debug, Clone, PartialEq)]
pub enum Delta {
    /// New text of a choice; never a split character, never part of a stop string. With logprobs on,
    /// the entries of the tokens this text closes.
    Text { choice: usize, text: String, logprobs: Vec<TextLogprob> },
    /// New thoughts of a choice, before its text.
    Reasoning { choice: usize, text: String, logprobs: Vec<TextLogprob> },
    /// A call of a tool begins: the choice's call number `index`.
    Call { choice: usize, index: usize, id: String, name: String, logprobs: Vec<TextLogprob> },
    /// More of that call's arguments.
    Arguments { choice: usize, index: usize, text: String, logprobs: Vec<TextLogprob> },
    /// The last delta of a choice.
    Finish { choice: usize, reason: Finish },
    /// A choice begins anew: its text so far is void. A stream hears it only before any text.
    Anew { choice: usize },
    /// A choice failed after it began; the generation yields nothing more.
    Failed(ServiceError),
}

impl Delta {
    /// The choice that it is of.
    pub fn choice(&self) -> Option<usize> {
        match self {
            Delta::Text { choice, .. }
            | Delta::Reasoning { choice, .. }
            | Delta::Call { choice, .. }
            | Delta::Arguments { choice, .. }
            | Delta::Finish { choice, .. }
            | Delta::Anew { choice } => Some(*choice),
            Delta::Failed(_) => None,
        }
    }
}

/// Token counts of a generation; complete after the last `Finish`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Of the prompt, counted once whatever `n` is.
    pub prompt_tokens: usize,
    /// Over all choices, without tokens that were cut with a stop string.
    pub completion_tokens: usize,
    /// Of these, thoughts.
    pub reasoning_tokens: usize,
    /// Tokens that were guessed: those of the completion, and those computed in vain, as those behind a stop string.
    pub right_guesses: usize,
    pub wrong_guesses: usize,
    pub cached_tokens: usize,
}

/// Times of a generation that metrics record, in seconds; filled as they become known.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Timings {
    pub queue: Option<f64>,
    pub time_to_first_token: Option<f64>,
    pub prefill: Option<f64>,
    pub decode: Option<f64>,
    pub end_to_end: Option<f64>,
}
