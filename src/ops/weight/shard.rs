//! A rank's part of a matrix: some of its rows (outputs), or of its columns (inputs).

use std::ops::Range;
use std::sync::Arc;

use super::{Store, Weight, WeightSlice};

impl Weight {
    /// Those rows. A mapped weight stays mapped.
    ///
    /// # Panics
    /// Of rows that are not there, and of a weight on a device.
    #[must_use]
    pub fn shard_rows(&self, rows: Range<usize>) -> Weight {
        assert!(rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        if let Store::Blocks(_) = self.store {
            return self.picked_rows(&rows.collect::<Vec<_>>());
        }
        let elements = rows.start * self.cols..rows.end * self.cols;
        let store = match &self.store {
            Store::Mapped { map, offset } => {
                Store::Mapped { map: map.clone(), offset: offset + elements.start * self.kind.bytes() }
            }
            _ => self.picked(elements),
        };
        let weight = Weight { rows: rows.len(), cols: self.cols, kind: self.kind, store, scales: None };
        weight.with_scales_of(self, rows, 0..self.cols)
    }

    /// Those rows in that order, copied.
    ///
    /// # Panics
    /// Of rows that are not there, of a weight on a device.
    #[must_use]
    pub fn picked_rows(&self, rows: &[usize]) -> Weight {
        if let Store::Blocks(blocks) = &self.store {
            let picked = blocks.picked(rows, 0..self.cols);
            return Weight::from_blocks(picked.expect("whole rows are whole blocks"));
        }
        let store = self.picked(rows.iter().flat_map(|r| r * self.cols..(r + 1) * self.cols));
        let weight = Weight { rows: rows.len(), cols: self.cols, kind: self.kind, store, scales: None };
        let Some(scales) = self.scales() else { return weight };
        let each = scales.block().1;
        let of_row = |row: &usize| {
            let all = scales.of_row(*row, self.cols);
            (0..self.cols).step_by(each).map(move |col| all[col / each])
        };
        let data = rows.iter().flat_map(of_row).collect();
        weight.with_scales(data, (1, each)).expect("scales of rows of a matrix that has them")
    }

    /// Those columns, copied. Of blocks that they cut the numbers are made f32.
    ///
    /// # Panics
    /// Of columns that are not there, and of a weight on a device.
    #[must_use]
    pub fn shard_cols(&self, cols: Range<usize>) -> Weight {
        assert!(cols.end <= self.cols, "columns {cols:?} of {}", self.cols);
        if let Store::Blocks(blocks) = &self.store {
            return match blocks.picked(&(0..self.rows).collect::<Vec<_>>(), cols.clone()) {
                Ok(picked) => Weight::from_blocks(picked),
                Err(_) => self.to_f32().shard_cols(cols),
            };
        }
        let row = |r: usize| r * self.cols + cols.start..r * self.cols + cols.end;
        let store = self.picked((0..self.rows).flat_map(row));
        let weight = Weight { rows: self.rows, cols: cols.len(), kind: self.kind, store, scales: None };
        weight.with_scales_of(self, 0..self.rows, cols)
    }

    /// An owned copy of some elements.
    fn picked(&self, indices: impl Iterator<Item = usize>) -> Store {
        match self.slice() {
            WeightSlice::F32(s) => Store::F32(Arc::new(indices.map(|i| s[i]).collect())),
            WeightSlice::F16(s) => Store::F16(Arc::new(indices.map(|i| s[i]).collect())),
            WeightSlice::Bf16(s) => Store::Bf16(Arc::new(indices.map(|i| s[i]).collect())),
            WeightSlice::Fp8(s) => Store::Fp8(Arc::new(indices.map(|i| s[i]).collect())),
            WeightSlice::Blocks(_) => unreachable!("blocks are picked by rows and columns"),
        }
    }

    /// The scales of a part of `whole`: a row of them for each row, and a column of them for each column where the
    /// part begins inside a block.
    fn with_scales_of(self, whole: &Weight, rows: Range<usize>, cols: Range<usize>) -> Weight {
        let Some(scales) = whole.scales() else { return self };
        let block = scales.block().1;
        let each = if cols.start.is_multiple_of(block) { block } else { 1 };
        let of_row = |row: usize| {
            let all = scales.of_row(row, whole.cols);
            cols.clone().step_by(each).map(move |col| all[col / block])
        };
        let data = rows.flat_map(of_row).collect();
        self.with_scales(data, (1, each)).expect("scales of a part of a matrix that has them")
    }
}

#[cfg(test)]
mod tests {
    use super::Weight;

    #[test]
    fn parts_hold_the_elements_of_the_whole() {
        let numbers: Vec<f32> = (0..6 * 10).map(|i| (i as f32 - 20.0) / 4.0).collect();
        let whole = Weight::from_f32(numbers, 6, 10);
        for whole in [whole.clone(), whole.to_bf16(), whole.to_f16(), whole.to_fp8()] {
            let (rows, cols) = (whole.shard_rows(2..5), whole.shard_cols(3..9));
            assert_eq!((rows.rows(), rows.cols(), cols.rows(), cols.cols()), (3, 10, 6, 6));
            let (whole, rows, cols) = (whole.to_f32(), rows.to_f32(), cols.to_f32());
            for r in 0..6 {
                for c in 0..10 {
                    let x = whole.get(r * 10 + c);
                    if (2..5).contains(&r) {
                        assert_eq!(rows.get((r - 2) * 10 + c), x);
                    }
                    if (3..9).contains(&c) {
                        assert_eq!(cols.get(r * 6 + c - 3), x);
                    }
                }
            }
        }
    }

    #[test]
    fn blocks_of_scales_are_cut_with_the_matrix() {
        // Blocks of 2 × 4 over 4 × 10.
        let bytes: Vec<u8> = (0..40).map(|i| 0x30 + i % 8).collect();
        let whole = Weight::from_bytes(&bytes, 4, 10, super::super::WeightType::Fp8);
        let whole = whole.with_scales(vec![1.0, 2.0, 4.0, 8.0, 16.0, 32.0], (2, 4)).unwrap();
        for (rows, cols) in [(1..3, 0..10), (0..4, 4..10), (0..4, 3..7)] {
            let part = match cols.len() {
                10 => whole.shard_rows(rows.clone()),
                _ => whole.shard_cols(cols.clone()),
            };
            let (all, part) = (whole.to_f32(), part.to_f32());
            for (i, r) in rows.clone().enumerate() {
                for (j, c) in cols.clone().enumerate() {
                    assert_eq!(part.get(i * cols.len() + j), all.get(r * 10 + c), "{rows:?} {cols:?}");
                }
            }
        }
    }
}
