//! Writes the step's keys and values into their slots of a layer's cache.
//!
//! K and V rows, side by side in f32 → the cache tensor
//! `[blocks, 2, kv_heads, BLOCK_SIZE, width]`, rounded to its type; `width` is `head_dim`, and a scale more where it is Q8
//! (`CacheType::width`). Knows slots, not sequences.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, InplaceOp2, Layout, Result, WithDType, bail};

use super::cache_type;
use super::cpu::fp8::F8E4M3;
use super::cpu::{Element, q8};
use super::paged_attention::{BLOCK_SIZE, cache_blocks};

/// What a layer's stored keys and values are to be multiplied by: stored = x / scale. Ones but for FP8.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CacheScales {
    pub k: f32,
    pub v: f32,
}

impl CacheScales {
    pub const ONE: CacheScales = CacheScales { k: 1.0, v: 1.0 };
}

/// Row i of K and V goes to `slots[i]` = block · [`BLOCK_SIZE`] + offset in the block. src: f32 `[capacity,
/// ≥ column + 2 · kv_heads · head_dim]`, the keys from `column` on, the values after them.
#[derive(Clone, Copy)]
pub struct KvWrite<'a> {
    pub slots: &'a [u32],
    pub column: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub scales: CacheScales,
}

impl InplaceOp2 for KvWrite<'_> {
    fn name(&self) -> &'static str {
        "kv_write"
    }

    fn cpu_fwd(
        &self,
        cache: &mut CpuStorage,
        cache_l: &Layout,
        src: &CpuStorage,
        src_l: &Layout,
    ) -> Result<()> {
        let (blocks, start) = cache_blocks(cache_l, cache.dtype(), self.kv_heads, self.head_dim)?;
        if let Some(slot) = self.slots.iter().find(|s| **s as usize >= blocks * BLOCK_SIZE) {
            bail!("kv_write: slot {slot} of a cache of {blocks} blocks of {BLOCK_SIZE}")
        }
        let (from, stride) = self.rows(src_l)?;
        let rows = Rows {
            numbers: &src.as_slice::<f32>()?[from..],
            stride,
            width: cache_type::width(cache.dtype(), self.head_dim),
        };
        match cache {
            CpuStorage::BF16(cache) => self.write(&mut cache[start..], rows, round),
            CpuStorage::F32(cache) => self.write(&mut cache[start..], rows, round),
            CpuStorage::F8E4M3(cache) => self.write(fp8_mut(&mut cache[start..]), rows, round),
            CpuStorage::U8(cache) => {
                // A row finds its own scale.
                self.write(&mut cache[start..], rows, |from, _, to| q8::round(from, to));
            }
            other => bail!("kv_write: no cache of {:?}", other.dtype()),
        }
        Ok(())
    }
}

/// The step's rows, from their keys on, and the elements of the cache that a head of theirs becomes.
#[derive(Clone, Copy)]
struct Rows<'a> {
    numbers: &'a [f32],
    stride: usize,
    width: usize,
}

impl KvWrite<'_> {
    /// Where the keys of the first row start in their storage, and the width of a row.
    fn rows(&self, layout: &Layout) -> Result<(usize, usize)> {
        let (capacity, width) = layout.shape().dims2()?;
        let needed = self.column + 2 * self.kv_heads * self.head_dim;
        match layout.contiguous_offsets() {
            Some((start, _)) if width >= needed && capacity >= self.slots.len() => {
                Ok((start + self.column, width))
            }
            _ => bail!(
                "kv_write: the rows are {layout:?} where [≥ {}, ≥ {needed}] contiguous is needed",
                self.slots.len()
            ),
        }
    }

    /// `round` stores a head's numbers, to be divided by the scale.
    fn write<T>(&self, cache: &mut [T], from: Rows<'_>, round: impl Fn(&[f32], f32, &mut [T])) {
        let (heads, dim) = (self.kv_heads, self.head_dim);
        let Rows { numbers: rows, stride, width } = from;
        let half = heads * BLOCK_SIZE * width; // the keys of a block, or its values
        for (row, slot) in self.slots.iter().enumerate() {
            let (block, offset) = (*slot as usize / BLOCK_SIZE, *slot as usize % BLOCK_SIZE);
            for head in 0..heads {
                let k = &rows[row * stride + head * dim..][..dim];
                let v = &rows[row * stride + (heads + head) * dim..][..dim];
                let to = block * 2 * half + (head * BLOCK_SIZE + offset) * width;
                round(k, self.scales.k, &mut cache[to..to + width]);
                round(v, self.scales.v, &mut cache[to + half..to + half + width]);
            }
        }
    }
}

/// Candle's FP8 numbers as ours.
pub(super) fn fp8<T: WithDType>(all: &[T]) -> &[F8E4M3] {
    assert_eq!(T::DTYPE, DType::F8E4M3, "called with candle's FP8 alone");
    // SAFETY: both types are a byte that holds an e4m3 number.
    unsafe { std::slice::from_raw_parts(all.as_ptr().cast(), all.len()) }
}

fn fp8_mut<T: WithDType>(all: &mut [T]) -> &mut [F8E4M3] {
    assert_eq!(T::DTYPE, DType::F8E4M3, "called with candle's FP8 alone");
    // SAFETY: as above; every byte is a number to both.
    unsafe { std::slice::from_raw_parts_mut(all.as_mut_ptr().cast(), all.len()) }
}

fn round<T: Element>(from: &[f32], scale: f32, to: &mut [T]) {
    for (t, f) in to.iter_mut().zip(from) {
        *t = T::narrow(*f / scale);
    }
}

#[cfg(test)]
mod tests;
