//! L1. What goes over the wire: request and response types of the APIs, SSE framing, a small client.

pub mod fields;
pub mod request;
