//! The integration tests, as one binary: it links the library once.

// A test that cannot go on panics; that is its way to fail.
#![allow(clippy::unwrap_used)]

mod ahead;
mod allocation;
mod architectures;
mod bench;
mod checkpoint;
mod demo;
mod embeddings;
mod encoders;
mod energy;
mod engine;
mod failover;
mod failover_http;
mod fit;
mod four_bit;
mod fp8;
mod gguf;
mod host_kernels;
mod hostile;
#[cfg(feature = "hub")]
mod hub;
#[cfg(feature = "hub")]
mod hub_server;
mod kernels;
mod keys;
mod mixed;
mod nvml;
mod parallel;
mod parity;
mod q8_cache;
mod reasoning;
mod refused;
mod scheduler;
mod selftest;
mod serving;
mod speculation;
mod stacks;
mod structured;
mod support;
mod text;
mod tidy;
mod tls;
mod tokenizers;
mod tools;
mod verdict;

#[global_allocator]
static ALLOCATOR: allocation::Counting = allocation::Counting;
