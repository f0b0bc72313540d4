//! L3. Continuous batching: sequences in, a plan a step, tokens out.

pub mod constraint;
pub mod event;
pub mod sampler;
pub mod stats;
pub mod worker;
