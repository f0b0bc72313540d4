//! Rotary positions (arXiv 2104.09864), in the half-split layout of HuggingFace checkpoints.
//!
//! `RopeAngles` writes a step's cosines and sines once; `Rope` turns query or key heads with them,
//! after an RMS norm of each head where the model has one.

use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout, Result};

use super::pool::Pool;
use super::rms_norm::inverse_rms;
use super::storage::{self, RowsMut};

/// `dst[r] = [cos(p·f₀) …, sin(p·f₀) …]` for the position p of row r; `[capacity, 2 × frequencies]`.
pub struct RopeAngles<'a> {
    pub positions: &'a [u32],
    pub inverse_frequencies: &'a [f32],
}

impl InplaceOp1 for RopeAngles<'_> {
    fn name(&self) -> &'static str {
        "rope_angles"
    }

    fn cpu_fwd(&self, dst: &mut CpuStorage, dl: &Layout) -> Result<()> {
        let half = self.inverse_frequencies.len();
        let dst = storage::write_f32(dst, dl, self.name())?;
        if dst.len() < self.positions.len() * 2 * half {
            candle_core::bail!("rope_angles: no room for {} rows", self.positions.len());
        }
        for (&position, row) in self.positions.iter().zip(dst.chunks_exact_mut(2 * half)) {
            let (cos, sin) = row.split_at_mut(half);
            for ((c, s), f) in cos.iter_mut().zip(sin).zip(self.inverse_frequencies) {
                (*s, *c) = (position as f32 * f).sin_cos();
            }
        }
        Ok(())
    }
}

/// Turns `dst` `[capacity, heads × head_dim]` in place by the angles in `src`.
pub struct Rope<'a> {
    pub rows: usize,
    pub heads: usize,
    pub head_dim: usize,
    /// Weight `[head_dim]` and epsilon of the norm each head gets first.
    pub norm: Option<(&'a [f32], f32)>,
    pub pool: &'a Pool,
}

impl Rope<'_> {
    fn head(&self, head: &mut [f32], cos: &[f32], sin: &[f32]) {
        if let Some((weight, eps)) = self.norm {
            let scale = inverse_rms(head, eps);
            for (x, w) in head.iter_mut().zip(weight) {
                *x = *x * scale * w;
            }
        }
        let (low, high) = head.split_at_mut(self.head_dim / 2);
        for (((l, h), c), s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
            let (a, b) = (*l, *h);
            *l = a * c - b * s;
            *h = b * c + a * s;
        }
    }
}

impl InplaceOp2 for Rope<'_> {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, dst: &mut CpuStorage, dl: &Layout, src: &CpuStorage, sl: &Layout) -> Result<()> {
        let width = self.heads * self.head_dim;
        let half = self.head_dim / 2;
        let angles = storage::read_f32(src, sl, self.name())?;
        let dst = storage::write_f32(dst, dl, self.name())?;
        if dst.len() < self.rows * width || angles.len() < self.rows * 2 * half {
            candle_core::bail!("rope: {} rows do not fit the given tensors", self.rows);
        }
        let out = RowsMut::new(dst, width);
        storage::for_rows(self.pool, self.rows, width, &|r| {
            let (cos, sin) = angles[r * 2 * half..(r + 1) * 2 * half].split_at(half);
            // SAFETY: each task is given its own row.
            for head in unsafe { out.row(r) }.chunks_exact_mut(self.head_dim) {
                self.head(head, cos, sin);
            }
        });
        Ok(())
    }
}
