//! What a weight's numbers are stored in.

use candle_core::DType;

use crate::ops::blocks::Format;

/// Element type a weight is stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightType {
    F32,
    F16,
    Bf16,
    /// e4m3, with scales beside it.
    Fp8,
    /// A quantised type of GGUF.
    Blocks(Format),
}

impl WeightType {
    /// Of plain numbers, FP8 aside.
    pub fn of(dtype: DType) -> Option<WeightType> {
        match dtype {
            DType::F32 => Some(WeightType::F32),
            DType::F16 => Some(WeightType::F16),
            DType::BF16 => Some(WeightType::Bf16),
            _ => None,
        }
    }

    /// Of blocks that of their bytes.
    pub fn dtype(self) -> DType {
        match self {
            WeightType::Blocks(_) => DType::U8,
            WeightType::F32 => DType::F32,
            WeightType::F16 => DType::F16,
            WeightType::Bf16 => DType::BF16,
            WeightType::Fp8 => DType::F8E4M3,
        }
    }

    /// Bytes of so many numbers, of blocks in our layout.
    pub fn size(self, numbers: usize) -> usize {
        match self {
            WeightType::Blocks(format) => format.size(numbers),
            plain => numbers * plain.bytes(),
        }
    }

    /// As reports name it.
    pub fn name(self) -> &'static str {
        match self {
            WeightType::F32 => "f32",
            WeightType::F16 => "f16",
            WeightType::Bf16 => "bf16",
            WeightType::Fp8 => "fp8",
            WeightType::Blocks(format) => format.name(),
        }
    }

    /// Of a number.
    ///
    /// # Panics
    /// Of blocks, whose numbers have no whole bytes.
    pub fn bytes(self) -> usize {
        match self {
            WeightType::Blocks(format) => panic!("a number of {} has no whole bytes", format.name()),
            WeightType::F32 => 4,
            WeightType::F16 | WeightType::Bf16 => 2,
            WeightType::Fp8 => 1,
        }
    }
}
