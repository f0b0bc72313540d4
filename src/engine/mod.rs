//! L3. Continuous batching: requests in, one plan a step, tokens out.
//!
//! `worker` is the thread of a device; it asks each `resident` for steps. A step is planned by the
//! `scheduler` over `sequence`s and their blocks, laid out by `batch`, run by `model`, sampled by
//! `sampler`, and told to the clients as `event`s. `speculation` guesses tokens that a step then
//! computes together, itself or by a `draft` model. Texts for an encoder are grouped by `buckets` and run by `encode`.

pub mod batch;
pub mod block_pool;
pub mod buckets;
pub mod constraint;
mod draft;
pub mod encode;
pub mod event;
pub mod fault;
mod flight;
mod live;
mod resident;
pub mod sampler;
pub mod scheduler;
pub mod sequence;
mod speculation;
pub mod stats;
pub mod step_log;
pub mod worker;
