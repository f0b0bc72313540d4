//! The paged cache of keys and values: one tensor a layer, cut into blocks of `BLOCK_SIZE` tokens.

use candle_core::{Device, Result, Tensor};

use super::spec::DecoderSpec;
pub use crate::ops::cache_type::CacheType;
use crate::ops::paged_attention::BLOCK_SIZE;
use crate::ops::storage::zeros;

/// `[blocks, 2, kv_heads, BLOCK_SIZE, width]` per layer, of the width that the type has: keys at 0, values at 1.
pub struct KvCache {
    layers: Vec<Tensor>,
    blocks: usize,
}

impl KvCache {
    /// `spare` blocks more than are counted, at the end.
    pub fn new(
        spec: &DecoderSpec,
        blocks: usize,
        spare: usize,
        cache: CacheType,
        device: &Device,
    ) -> Result<KvCache> {
        let shape = (blocks + spare, 2, spec.kv_heads, BLOCK_SIZE, cache.width(spec.head_dim));
        // Zeroed pages cost memory only when first written.
        let layers =
            (0..spec.layers).map(|_| zeros(shape, cache.dtype(), device)).collect::<Result<Vec<_>>>()?;
        Ok(KvCache { layers, blocks })
    }

    pub fn layer(&self, index: usize) -> &Tensor {
        &self.layers[index]
    }

    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Bytes one block takes over all layers.
    pub fn block_bytes(spec: &DecoderSpec, cache: CacheType) -> usize {
        spec.kv_bytes_per_token(cache) * BLOCK_SIZE
    }
}
