//! MXFP4 (OCP Microscaling Formats 1.0): 32 numbers of four bits under a power of two.
//!
//! A number is 0, ½, 1, 1½, 2, 3, 4 or 6 with a sign. Twice that is whole, and [`FORMAT`] holds it as it is, under half the
//! scale. A scale below what f16 has (2⁻²⁴, of numbers no larger than six times that) becomes 0.

use half::f16;

use super::{Blocks, BlocksError, Format, TILE};
use crate::ops::pool::Pool;

/// The blocks that hold it.
pub const FORMAT: Format = Format::Q5_0;
/// Bytes of a block in a GGUF file: the exponent, then two numbers a byte.
pub const FILE_BYTES: usize = 1 + TILE / 2;
/// Twice the numbers.
const TWICE: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// The code of [`FORMAT`] for four bits.
pub fn code(four: u8) -> u8 {
    (i32::from(TWICE[usize::from(four & 15)]) + FORMAT.offset()) as u8
}

/// Half of the scale that an exponent means (E8M0: 2^(e − 127); 255 is NaN); infinite where f16 has no such number.
pub fn half_scale(exponent: u8) -> f16 {
    match exponent {
        255 => f16::NAN,
        _ => f16::from_f32((f32::from(exponent) - 128.0).exp2()),
    }
}

impl Blocks {
    /// Of the bytes of a GGUF tensor of MXFP4, whose lower halves are a block's first sixteen numbers.
    ///
    /// # Errors
    /// As [`Blocks::from_ggml`].
    pub fn from_ggml_mxfp4(
        bytes: &[u8],
        (rows, cols): (usize, usize),
        pool: &Pool,
    ) -> Result<Blocks, BlocksError> {
        let (format, of_row) = (FORMAT, cols / TILE);
        if cols == 0 || !cols.is_multiple_of(TILE) {
            return Err(BlocksError::Width { format, cols });
        }
        if (rows * of_row).checked_mul(FILE_BYTES) != Some(bytes.len()) {
            let wanted = (rows * of_row).saturating_mul(FILE_BYTES);
            return Err(BlocksError::Size { format, rows, cols, wanted, found: bytes.len() });
        }
        Blocks::of_codes(format, (rows, cols), pool, &|row, block, to| {
            let [exponent, pairs @ ..] = &bytes[(row * of_row + block) * FILE_BYTES..][..FILE_BYTES] else {
                return f16::NAN;
            };
            for (i, byte) in pairs.iter().enumerate() {
                (to[i], to[i + TILE / 2]) = (code(*byte), code(byte >> 4));
            }
            half_scale(*exponent)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_powers_of_two() {
        assert_eq!((half_scale(128).to_f32(), half_scale(127).to_f32()), (1.0, 0.5));
        assert_eq!((half_scale(104).to_f32(), half_scale(90).to_f32()), (2f32.powi(-24), 0.0));
        assert!(half_scale(255).is_nan() && half_scale(144).is_infinite() && half_scale(143).is_finite());
    }

    /// ggml's `kvalues_mxfp4`, and its order within a block.
    #[test]
    fn blocks_of_a_file_are_read() {
        let mut bytes = vec![129];
        bytes.extend((0..16u8).map(|i| i | (15 - i) << 4));
        let blocks = Blocks::from_ggml_mxfp4(&bytes, (1, 32), &Pool::new(1)).unwrap();
        let mut row = [0.0; 32];
        blocks.widen_row(0, &mut row);
        let numbers = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        let all: Vec<f32> = numbers.into_iter().chain(numbers.map(|x| -x)).map(|x| 4.0 * x).collect();
        assert_eq!(row[..16], all);
        assert!(row[16..].iter().eq(all.iter().rev()));
        assert!(matches!(
            Blocks::from_ggml_mxfp4(&bytes, (2, 32), &Pool::new(1)),
            Err(BlocksError::Size { .. })
        ));
        bytes[0] = 255;
        assert!(matches!(
            Blocks::from_ggml_mxfp4(&bytes, (1, 32), &Pool::new(1)),
            Err(BlocksError::Scale { .. })
        ));
    }
}
