//! L1. What goes over the wire: serde types of OpenAI's APIs, SSE framing, a small client.
//!
//! `request` is what clients send, `response` and `error` what they get, `sse` how a stream is
//! framed. Used by `api`, and by the benches and `chat --url` from the other side.

pub mod client;
pub mod error;
pub mod response;
pub mod sse;
