//! The integration tests, as one binary: it links the library once.

mod allocation;
mod engine;
mod parity;
mod scheduler;
mod support;
mod tidy;

#[global_allocator]
static ALLOCATOR: allocation::Counting = allocation::Counting;
