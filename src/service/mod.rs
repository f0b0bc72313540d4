//! L4c. From a parsed request to a stream of text: validation, templates, tokens, stop strings.
//!
//! Knows no HTTP, so the command line and the benches use it too.

use crate::engine::event::EngineError;
use crate::error::{Class, Classified};

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
    #[error("{0}")]
    Internal(String),
}

impl Classified for ServiceError {
    fn class(&self) -> Class {
        match self {
            ServiceError::Invalid { .. } => Class::InvalidRequest,
            ServiceError::UnknownModel(_) => Class::NotFound,
            ServiceError::Engine(e) => e.class(),
            ServiceError::Internal(_) => Class::Internal,
        }
    }
}

/// Why a choice ended, in OpenAI's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    Stop,
    Length,
}

impl Finish {
    pub fn as_str(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
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
    /// The last delta of a choice.
    Finish { choice: usize, reason: Finish },
    /// A choice failed after it began; the generation yields nothing more.
    Failed(ServiceError),
}

/// Token counts of a generation; complete after the last `Finish`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Of the prompt, counted once whatever `n` is.
    pub prompt_tokens: usize,
    /// Over all choices, without tokens that were cut with a stop string.
    pub completion_tokens: usize,
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
