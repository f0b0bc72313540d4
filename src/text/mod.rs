//! L2. Text on its way in and out: chat templates, token ids, and text again, piece by piece.
//!
//! Knows nothing of the engine, of requests or of HTTP.

pub mod answer;
pub mod chat_template;
pub mod detokenizer;
pub mod grammar;
mod json_pattern;
mod json_schema;
mod masks;
pub mod reasoning;
mod template;
pub mod tokenizer;
mod tokenizer_bounds;
mod tokenizer_file;
pub mod tool_calls;
mod turns;

/// Why text could not be handled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    #[error("{file}: {problem}")]
    Tokenizer { file: String, problem: String },
    #[error("the chat template: {0}")]
    Template(String),
    #[error("the text could not be tokenised: {0}")]
    Encode(String),
    #[error("token {id} is outside the vocabulary of {vocab}")]
    UnknownToken { id: u32, vocab: usize },
}
