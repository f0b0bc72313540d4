//! Writes the step's keys and values into their slots of a layer's cache.
//!
//! K and V rows `[capacity, kv_heads · head_dim]` in f32 → the cache tensor
//! `[blocks, 2, kv_heads, BLOCK_SIZE, head_dim]`, rounded to its type. Knows slots, not sequences.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, InplaceOp3, Layout, Result, bail};

use super::cpu::Element;
use super::paged_attention::{BLOCK_SIZE, cache_blocks};

/// Row i of K and V goes to `slots[i]` = block · [`BLOCK_SIZE`] + offset in the block.
#[derive(Clone, Copy)]
pub struct KvWrite<'a> {
    pub slots: &'a [u32],
    pub kv_heads: usize,
    pub head_dim: usize,
}

impl InplaceOp3 for KvWrite<'_> {
    fn name(&self) -> &'static str {
        "kv_write"
    }

    fn cpu_fwd(
        &self,
        cache: &mut CpuStorage,
        cache_l: &Layout,
        k: &CpuStorage,
        k_l: &Layout,
        v: &CpuStorage,
        v_l: &Layout,
    ) -> Result<()> {
        let (blocks, start) = cache_blocks(cache_l, self.kv_heads, self.head_dim)?;
        if let Some(slot) = self.slots.iter().find(|s| **s as usize >= blocks * BLOCK_SIZE) {
            bail!("kv_write: slot {slot} of a cache of {blocks} blocks of {BLOCK_SIZE}")
        }
        let k = &k.as_slice::<f32>()?[self.rows("keys", k_l)?..];
        let v = &v.as_slice::<f32>()?[self.rows("values", v_l)?..];
        match cache {
            CpuStorage::BF16(cache) => self.write(&mut cache[start..], k, v),
            CpuStorage::F32(cache) => self.write(&mut cache[start..], k, v),
            other => bail!("kv_write: no cache of {:?}", other.dtype()),
        }
        Ok(())
    }
}

impl KvWrite<'_> {
    /// Where the rows start in their storage.
    fn rows(&self, what: &str, layout: &Layout) -> Result<usize> {
        let (capacity, width) = layout.shape().dims2()?;
        match layout.contiguous_offsets() {
            Some((start, _)) if width == self.kv_heads * self.head_dim && capacity >= self.slots.len() => {
                Ok(start)
            }
            _ => bail!(
                "kv_write: the {what} are {layout:?} where [≥ {}, {} × {}] contiguous is needed",
                self.slots.len(),
                self.kv_heads,
                self.head_dim
            ),
        }
    }

    fn write<T: Element>(&self, cache: &mut [T], k: &[f32], v: &[f32]) {
        let (heads, dim) = (self.kv_heads, self.head_dim);
        let half = heads * BLOCK_SIZE * dim; // the keys of a block, or its values
        for (row, slot) in self.slots.iter().enumerate() {
            let (block, offset) = (*slot as usize / BLOCK_SIZE, *slot as usize % BLOCK_SIZE);
            for head in 0..heads {
                let from = (row * heads + head) * dim;
                let to = block * 2 * half + (head * BLOCK_SIZE + offset) * dim;
                round(&k[from..from + dim], &mut cache[to..to + dim]);
                round(&v[from..from + dim], &mut cache[to + half..to + half + dim]);
            }
        }
    }
}

fn round<T: Element>(from: &[f32], to: &mut [T]) {
    for (t, f) in to.iter_mut().zip(from) {
        *t = T::narrow(*f);
    }
}

#[cfg(test)]
mod tests;
