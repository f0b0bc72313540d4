//! FP8 weights: numbers of a byte, and factors for blocks of them.
//!
//! A weight is its number times its block's scale. Scales per tensor, per output channel and per block of both
//! sides are one thing: a grid whose blocks are as large as the matrix, a row, or what the checkpoint says.

use std::sync::Arc;

use super::{Store, Weight, WeightSlice, WeightType};
use crate::ops::cpu::Element;
use crate::ops::cpu::fp8::{F8E4M3, MAX};

/// f32 `[⌈matrix rows / rows⌉, ⌈matrix columns / cols⌉]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Scales {
    data: Arc<Vec<f32>>,
    /// Of a block.
    rows: usize,
    cols: usize,
}

/// Why scales do not belong to a matrix.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ScaleError {
    #[error("{found} scales for a matrix [{rows}, {cols}] in blocks of {block_rows} × {block_cols}")]
    Count { found: usize, rows: usize, cols: usize, block_rows: usize, block_cols: usize },
    #[error("scale {index} is {value}, not a finite number above 0")]
    Value { index: usize, value: f32 },
}

impl Scales {
    /// Row after row of the grid.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// Rows and columns of a block.
    pub fn block(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Those of a matrix's row, for its blocks of `block().1` columns each.
    pub fn of_row(&self, row: usize, matrix_cols: usize) -> &[f32] {
        let across = matrix_cols.div_ceil(self.cols);
        &self.data[row / self.rows * across..][..across]
    }
}

impl Weight {
    /// FP8 numbers with the scales that belong to them.
    ///
    /// # Errors
    /// A grid of another size, a scale that is NaN, infinite, 0 or less.
    ///
    /// # Panics
    /// Of a weight that is not FP8.
    pub fn with_scales(mut self, data: Vec<f32>, (rows, cols): (usize, usize)) -> Result<Weight, ScaleError> {
        assert_eq!(self.kind, WeightType::Fp8, "only FP8 has scales");
        let (rows, cols) = (rows.clamp(1, self.rows.max(1)), cols.clamp(1, self.cols.max(1)));
        if data.len() != self.rows.div_ceil(rows) * self.cols.div_ceil(cols) {
            return Err(ScaleError::Count {
                found: data.len(),
                rows: self.rows,
                cols: self.cols,
                block_rows: rows,
                block_cols: cols,
            });
        }
        if let Some(index) = data.iter().position(|s| !s.is_finite() || *s <= 0.0) {
            return Err(ScaleError::Value { index, value: data[index] });
        }
        self.scales = Some(Scales { data: Arc::new(data), rows, cols });
        Ok(self)
    }

    /// Of an FP8 weight.
    pub fn scales(&self) -> Option<&Scales> {
        self.scales.as_ref()
    }

    /// The same numbers, rounded to FP8 with a scale for each row that lets its largest be the largest there
    /// is. Shares the storage when they are FP8 already.
    ///
    /// # Panics
    /// When a number is NaN or infinite; [`Weight::first_non_finite`] tells.
    #[must_use]
    pub fn to_fp8(&self) -> Weight {
        match self.slice() {
            WeightSlice::Fp8(_) => self.clone(),
            WeightSlice::F32(s) => self.quantised(s),
            WeightSlice::F16(s) => self.quantised(s),
            WeightSlice::Bf16(s) => self.quantised(s),
            WeightSlice::Blocks(blocks) => self.quantised(&blocks.to_f32()),
        }
    }

    fn quantised<T: Element>(&self, all: &[T]) -> Weight {
        let mut numbers = Vec::with_capacity(all.len());
        let mut scales = Vec::with_capacity(self.rows);
        for row in all.chunks_exact(self.cols.max(1)) {
            let largest = row.iter().fold(0f32, |m, x| m.max(x.widen().abs()));
            // Rows of zeros, and of numbers so small that the scale itself would be none.
            let scale = if largest / MAX >= f32::MIN_POSITIVE { largest / MAX } else { 1.0 };
            numbers.extend(row.iter().map(|x| F8E4M3::narrow(x.widen() / scale)));
            scales.push(scale);
        }
        let store = Store::Fp8(Arc::new(numbers));
        Weight { rows: self.rows, cols: self.cols, kind: WeightType::Fp8, store, scales: None }
            .with_scales(scales, (1, self.cols))
            .expect("a scale for each row, finite as the numbers are")
    }

    /// Calls `each` with every number times its scale, row after row.
    pub(super) fn for_each_scaled(&self, numbers: &[F8E4M3], mut each: impl FnMut(f32)) {
        for (r, row) in numbers.chunks_exact(self.cols.max(1)).enumerate() {
            for (c, x) in row.iter().enumerate() {
                each(x.widen() * self.scale_at(r, c));
            }
        }
    }

    pub(super) fn scale_at(&self, row: usize, col: usize) -> f32 {
        self.scales.as_ref().map_or(1.0, |s| s.of_row(row, self.cols)[col / s.cols])
    }
}

/// One grid for matrices of the same width, one below the other.
pub(super) fn stacked(parts: &[&Weight]) -> Scales {
    let all: Vec<Scales> = parts.iter().map(|p| p.scales.clone().unwrap_or_else(|| ones(p))).collect();
    let (cols, width) = (all[0].cols, parts[0].cols);
    let rows = all[0].rows;
    let alike = all.iter().all(|s| (s.rows, s.cols) == (rows, cols));
    // A block must not reach into the next part.
    let whole = parts[..parts.len() - 1].iter().all(|p| p.rows.is_multiple_of(rows));
    if alike && whole {
        let data = all.iter().flat_map(|s| s.data.iter().copied()).collect();
        return Scales { data: Arc::new(data), rows, cols };
    }
    let cols = all.iter().fold(width, |g, s| greatest_common_divisor(g, s.cols));
    let each_row = |(part, scales): (&&Weight, &Scales)| {
        let row = |r: usize| {
            let of_row = scales.of_row(r, width);
            (0..width.div_ceil(cols)).map(|b| of_row[b * cols / scales.cols]).collect::<Vec<f32>>()
        };
        (0..part.rows).flat_map(row).collect::<Vec<f32>>()
    };
    let data = parts.iter().zip(&all).flat_map(each_row).collect();
    Scales { data: Arc::new(data), rows: 1, cols }
}

fn ones(weight: &Weight) -> Scales {
    Scales { data: Arc::new(vec![1.0]), rows: weight.rows.max(1), cols: weight.cols.max(1) }
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn numbers(seed: u64, n: usize) -> Vec<f32> {
        (0..n as u64)
            .map(|i| {
                ((i + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / (1u32 << 23) as f32 - 1.0
            })
            .collect()
    }

    fn fp8(rows: usize, cols: usize, scales: Vec<f32>, block: (usize, usize)) -> Weight {
        let bytes: Vec<u8> = numbers(3, rows * cols).iter().map(|x| F8E4M3::narrow(*x).to_bits()).collect();
        Weight::from_bytes(&bytes, rows, cols, WeightType::Fp8).with_scales(scales, block).unwrap()
    }

    #[test]
    fn rounding_to_fp8_costs_a_sixteenth_at_most() {
        let data: Vec<f32> =
            numbers(1, 15 * 33).iter().enumerate().map(|(i, x)| x * (1 + i / 33) as f32).collect();
        let whole = Weight::from_f32(data.clone(), 15, 33);
        let rounded = whole.to_fp8();
        assert_eq!((rounded.kind(), rounded.bytes()), (WeightType::Fp8, 15 * 33 + 15 * 4));
        for (i, want) in data.iter().enumerate() {
            let largest = data[i / 33 * 33..][..33].iter().fold(0f32, |m, x| m.max(x.abs()));
            let error = (rounded.get(i) - want).abs();
            // Half of the last of four bits; below 2⁻⁶ of the scale, half the smallest step.
            assert!(error <= (want.abs() / 16.0).max(largest / MAX / 1024.0) * 1.0001, "{want}: {error}");
            if want.abs() == largest {
                assert!(
                    error <= largest * 1e-6,
                    "the largest keeps its value: {want} became {}",
                    rounded.get(i)
                );
            }
        }
        let zeros = Weight::from_f32(vec![0.0; 8], 2, 4).to_fp8();
        assert!((0..8).all(|i| zeros.get(i) == 0.0));
        assert_eq!(rounded.to_f32().f32s(), (0..15 * 33).map(|i| rounded.get(i)).collect::<Vec<_>>());
    }

    #[test]
    fn scales_that_do_not_belong_are_refused() {
        let bare = || Weight::from_bytes(&[0x38; 12], 3, 4, WeightType::Fp8);
        assert!(matches!(bare().with_scales(vec![1.0; 3], (2, 4)), Err(ScaleError::Count { found: 3, .. })));
        for bad in [f32::NAN, f32::INFINITY, 0.0, -1.0] {
            let error = bare().with_scales(vec![1.0, bad], (2, 4)).err().unwrap();
            assert!(matches!(error, ScaleError::Value { index: 1, .. }), "{error}");
        }
        let w = bare().with_scales(vec![1.0, 2.0, 3.0, 4.0], (2, 3)).unwrap();
        assert_eq!(
            (0..12).map(|i| w.get(i)).collect::<Vec<_>>(),
            [1., 1., 1., 2., 1., 1., 1., 2., 3., 3., 3., 4.]
        );
    }

    #[test]
    fn parts_of_one_matrix_keep_their_scales() {
        let grid = |n: usize| (1..=n).map(|i| i as f32 * 0.5).collect::<Vec<f32>>();
        let tensor = fp8(6, 10, vec![3.0], (6, 10));
        let channel = fp8(5, 10, grid(5), (1, 10));
        let block = fp8(8, 10, grid(6), (4, 4));
        let short = fp8(3, 10, grid(3), (4, 4));
        for parts in [
            vec![&tensor],
            vec![&tensor, &tensor],
            vec![&tensor, &channel],
            vec![&channel, &channel],
            vec![&block, &short],
            vec![&short, &block],
            vec![&block, &tensor, &channel],
        ] {
            let scales = stacked(&parts);
            let mut row = 0;
            for part in &parts {
                for r in 0..part.rows() {
                    for c in 0..10 {
                        let got = scales.of_row(row + r, 10)[c / scales.cols];
                        assert_eq!(got, part.scale_at(r, c), "{:?}", scales.block());
                    }
                }
                row += part.rows();
            }
            assert_eq!(scales.data.len(), row.div_ceil(scales.rows) * 10usize.div_ceil(scales.cols));
            // On a device of the tests the bytes lie one after the other.
            let there = Weight::on_device(&parts, &Device::Cpu).unwrap();
            assert_eq!((there.rows(), there.kind()), (row, WeightType::Fp8));
            assert_eq!(there.scales(), Some(&scales));
            assert_ne!(there.place_of_scales().unwrap().address, 0);
        }
    }
}
