//! Rounding matrices to blocks, by candle's quantisers.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};

use super::{Blocks, BlocksError, Format, ggml};
use crate::ops::pool::Pool;

impl Format {
    /// candle's name of it.
    pub const fn ggml(self) -> GgmlDType {
        match self {
            Format::Q4_0 => GgmlDType::Q4_0,
            Format::Q4_1 => GgmlDType::Q4_1,
            Format::Q5_0 => GgmlDType::Q5_0,
            Format::Q5_1 => GgmlDType::Q5_1,
            Format::Q8_0 => GgmlDType::Q8_0,
            Format::Q2K => GgmlDType::Q2K,
            Format::Q3K => GgmlDType::Q3K,
            Format::Q4K => GgmlDType::Q4K,
            Format::Q5K => GgmlDType::Q5K,
            Format::Q6K => GgmlDType::Q6K,
        }
    }
}

impl Blocks {
    /// Rounds a matrix whose rows `widen` writes.
    ///
    /// # Errors
    /// Rows that are not whole blocks, numbers so large that no scale of them is finite.
    pub fn quantised(
        format: Format,
        (rows, cols): (usize, usize),
        pool: &Pool,
        widen: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) -> Result<Blocks, BlocksError> {
        if cols == 0 || !cols.is_multiple_of(format.block()) {
            return Err(BlocksError::Width { format, cols });
        }
        Blocks::filled(format, (rows, cols), pool, &|rows, writer| {
            let first = rows.start * (cols / format.block());
            let mut numbers = vec![0.0; rows.len() * cols];
            for (row, to) in rows.clone().zip(numbers.chunks_exact_mut(cols)) {
                widen(row, to);
            }
            let bytes = Tensor::from_vec(numbers, (rows.len(), cols), &Device::Cpu)
                .and_then(|numbers| QTensor::quantize(&numbers, format.ggml()))
                .and_then(|rounded| rounded.data().map(std::borrow::Cow::into_owned))
                .map_err(|e| BlocksError::Quantiser { format, problem: e.to_string() })?;
            ggml::put_rows(writer, &bytes, first)
        })
    }
}
