//! Picking rows: token embeddings out of a weight, and the rows that need logits out of a step.

use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout, Result};

use super::storage;
use super::weight::{Weight, WeightSlice};

/// `dst[r] = table[ids[r]]`, widened to f32; dst `[capacity, table.cols()]`.
pub struct Gather<'a> {
    pub table: &'a Weight,
    pub ids: &'a [u32],
}

impl InplaceOp1 for Gather<'_> {
    fn name(&self) -> &'static str {
        "gather"
    }

    fn cpu_fwd(&self, dst: &mut CpuStorage, dl: &Layout) -> Result<()> {
        let width = self.table.cols();
        let dst = storage::write_f32(dst, dl, self.name())?;
        if dst.len() < self.ids.len() * width {
            candle_core::bail!("gather: no room for {} rows", self.ids.len());
        }
        for (&id, out) in self.ids.iter().zip(dst.chunks_exact_mut(width)) {
            let row = id as usize;
            if row >= self.table.rows() {
                candle_core::bail!("gather: token {id} is outside the vocabulary of {}", self.table.rows());
            }
            let range = row * width..(row + 1) * width;
            match self.table.slice() {
                WeightSlice::F32(t) => out.copy_from_slice(&t[range]),
                WeightSlice::F16(t) => {
                    for (o, x) in out.iter_mut().zip(&t[range]) {
                        *o = x.to_f32();
                    }
                }
                WeightSlice::Bf16(t) => {
                    for (o, x) in out.iter_mut().zip(&t[range]) {
                        *o = x.to_f32();
                    }
                }
            }
        }
        Ok(())
    }
}

/// `dst[i] = src[rows[i]]`; both f32, `[_, width]`.
pub struct SelectRows<'a> {
    pub rows: &'a [u32],
    pub width: usize,
}

impl InplaceOp2 for SelectRows<'_> {
    fn name(&self) -> &'static str {
        "select_rows"
    }

    fn cpu_fwd(&self, dst: &mut CpuStorage, dl: &Layout, src: &CpuStorage, sl: &Layout) -> Result<()> {
        let src = storage::read_f32(src, sl, self.name())?;
        let dst = storage::write_f32(dst, dl, self.name())?;
        if dst.len() < self.rows.len() * self.width {
            candle_core::bail!("select_rows: no room for {} rows", self.rows.len());
        }
        for (&row, out) in self.rows.iter().zip(dst.chunks_exact_mut(self.width)) {
            let start = row as usize * self.width;
            match src.get(start..start + self.width) {
                Some(row) => out.copy_from_slice(row),
                None => candle_core::bail!("select_rows: row {row} is outside the step"),
            }
        }
        Ok(())
    }
}
