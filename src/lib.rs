//! hashwatt: the inference server of one modular compute unit.
//!
//! Requests flow down to the device and text flows back up; joules flow up from the meters.
//! `docs/architecture.md` draws both rivers and holds the table of who may import whom;
//! `tests/it/tidy.rs` enforces it.
//!
//! | layer | modules |
//! |---|---|
//! | L0 | [`error`] [`quantity`] [`clock`] |
//! | L1 | [`wire`] [`ops`] [`http_client`] [`power`] [`economics`] [`metrics`] |
//! | L2 | [`model`] [`text`] |
//! | L3 | [`engine`] |
//! | L4 | [`energy`] [`market`] [`hub`] [`store`] [`access`] [`mod@unit`] [`service`] [`measure`] |
//! | L5 | [`api`] |
//! | top | [`config`] [`cli`] |

pub mod access;
pub mod api;
pub mod cli;
pub mod clock;
pub mod config;
pub mod economics;
pub mod energy;
pub mod engine;
pub mod error;
pub mod http_client;
pub mod hub;
pub mod market;
pub mod measure;
pub mod metrics;
pub mod model;
pub mod ops;
pub mod power;
pub mod quantity;
pub mod selftest;
pub mod service;
pub mod store;
pub mod text;
pub mod tls;
pub mod unit;
pub mod wire;
