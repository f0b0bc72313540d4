//! L1. The operations a step is made of, one file each, on candle's tensors.
//!
//! Every operation writes into a tensor it is given (`InplaceOp*`) and allocates nothing. The CPU
//! implementation is the reference; kernels stand beside it. Batch invariance: what an operation
//! writes for one row does not depend on the other rows, on the row count, or on the thread count.

pub mod activation;
pub mod all_reduce;
pub mod blocks;
pub mod cache_type;
pub mod copy;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod exec;
pub mod experts;
pub mod gather;
pub mod gemv;
pub mod kv_write;
pub mod launch;
pub mod linear;
pub mod paged_attention;
pub mod pool;
pub mod rms_norm;
pub mod rope;
pub mod sample;
pub mod storage;
pub mod weight;
