//! The integration tests, as one binary: it links the library once.

mod engine;
mod parity;
mod scheduler;
mod support;
mod tidy;
