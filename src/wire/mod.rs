//! L1. What goes over the wire: the request and answer types of OpenAI's APIs, SSE framing, a client.
//!
//! Knows no HTTP server and no model: bytes ↔ types, with errors that name the field. Used by `api`,
//! and by the benches and `chat --url` from the other side.

pub mod client;
pub mod embeddings;
pub mod error;
pub mod fields;
pub mod format;
pub mod messages;
pub mod request;
pub mod response;
pub mod sse;
mod strict;
pub mod thinking;
pub mod tools;
