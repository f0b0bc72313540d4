//! RMS normalisation (arXiv 1910.07467): f32 rows in, f32 or bf16 rows out.

use candle_core::{CpuStorage, InplaceOp2, Layout, Result};

use super::pool::Pool;
use super::storage::{self, ActivationsMut, Element, RowsMut};

/// `dst[r] = src[r] / rms(src[r]) × weight` for the first `rows` rows; `[capacity, weight.len()]`.
pub struct RmsNorm<'a> {
    pub weight: &'a [f32],
    pub eps: f32,
    pub rows: usize,
    pub pool: &'a Pool,
}

/// 1 / rms of a row: eight partial sums, always in the same order.
pub(super) fn inverse_rms(row: &[f32], eps: f32) -> f32 {
    let mut sums = [0f32; 16];
    let chunks = row.chunks_exact(16);
    let tail = chunks.remainder();
    for chunk in chunks {
        for (s, x) in sums.iter_mut().zip(chunk) {
            *s += x * x;
        }
    }
    for (s, x) in sums.iter_mut().zip(tail) {
        *s += x * x;
    }
    let total: f32 = sums.iter().sum();
    1.0 / (total / row.len() as f32 + eps).sqrt()
}

impl InplaceOp2 for RmsNorm<'_> {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cpu_fwd(&self, dst: &mut CpuStorage, dl: &Layout, src: &CpuStorage, sl: &Layout) -> Result<()> {
        let width = self.weight.len();
        let src = storage::read_f32(src, sl, self.name())?;
        if src.len() < self.rows * width {
            candle_core::bail!("rms_norm: {} rows of {width} asked, {} elements given", self.rows, src.len());
        }
        match storage::write(dst, dl, self.name())? {
            ActivationsMut::F32(d) => self.normalise(d, src),
            ActivationsMut::Bf16(d) => self.normalise(d, src),
        }
        Ok(())
    }
}

impl RmsNorm<'_> {
    fn normalise<T: Element>(&self, dst: &mut [T], src: &[f32]) {
        let width = self.weight.len();
        let out = RowsMut::new(dst, width);
        storage::for_rows(self.pool, self.rows, width, &|r| {
            let row = &src[r * width..(r + 1) * width];
            let scale = inverse_rms(row, self.eps);
            // SAFETY: each task is given its own row.
            for ((o, x), w) in unsafe { out.row(r) }.iter_mut().zip(row).zip(self.weight) {
                *o = T::from_f32(x * scale * w);
            }
        });
    }
}
