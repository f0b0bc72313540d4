//! Blocks of codes that another format has: its scales and codes as they are, nothing rounded.

use std::ops::Range;

use half::f16;

use super::{Block, Blocks, BlocksError, Format, TILE};
use crate::ops::pool::Pool;

/// Writes the codes of a row's block, and returns its scale.
pub type Codes<'a> = dyn Fn(usize, usize, &mut [u8; TILE]) -> f16 + Sync + 'a;

impl Blocks {
    /// Of what `codes` says of each row and block.
    ///
    /// # Errors
    /// Rows that are not whole blocks, scales that are NaN or infinite.
    ///
    /// # Panics
    /// Of a format whose blocks are more than 32 codes and a scale.
    pub fn of_codes(
        format: Format,
        (rows, cols): (usize, usize),
        pool: &Pool,
        codes: &Codes<'_>,
    ) -> Result<Blocks, BlocksError> {
        assert!(format.block() == TILE && !format.has_floors(), "{} has more than codes", format.name());
        if cols == 0 || !cols.is_multiple_of(TILE) {
            return Err(BlocksError::Width { format, cols });
        }
        let blocks = cols / TILE;
        Blocks::filled(format, (rows, cols), pool, &|rows: Range<usize>, writer| {
            let mut block = Block::EMPTY;
            for (place, row) in rows.enumerate() {
                for index in 0..blocks {
                    let (to, _) = block.codes.split_first_chunk_mut().expect("a block holds a tile");
                    block.scale = codes(row, index, to);
                    if !block.scale.is_finite() {
                        return Err(BlocksError::Scale { block: row * blocks + index });
                    }
                    writer.put(place, index, &block);
                }
            }
            Ok(())
        })
    }
}
