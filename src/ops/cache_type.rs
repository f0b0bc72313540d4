//! The types that a cache of keys and values can have, and the room that each takes.
//!
//! The one place that knows how a head's numbers of one token lie in a cache: type → tensor type, width, bytes.

use candle_core::DType;

use super::cpu::q8::SCALE_BYTES;

/// What keys and values are stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheType {
    F32,
    F16,
    Bf16,
    /// e4m3, by the layer's scales.
    Fp8,
    /// Codes of 8 bits with a scale for each head of each token (`ops::cpu::q8`).
    Q8,
}

impl CacheType {
    /// That of activations.
    pub fn like(activations: DType) -> CacheType {
        match activations {
            DType::BF16 => CacheType::Bf16,
            DType::F16 => CacheType::F16,
            _ => CacheType::F32,
        }
    }

    /// Of the tensor that holds it.
    pub fn dtype(self) -> DType {
        match self {
            CacheType::F32 => DType::F32,
            CacheType::F16 => DType::F16,
            CacheType::Bf16 => DType::BF16,
            CacheType::Fp8 => DType::F8E4M3,
            // Candle has no i8.
            CacheType::Q8 => DType::U8,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            CacheType::F32 => "f32",
            CacheType::F16 => "f16",
            CacheType::Bf16 => "bf16",
            CacheType::Fp8 => "fp8",
            CacheType::Q8 => "q8",
        }
    }

    /// Elements of the tensor for the key, or the value, of one head of one token.
    pub fn width(self, head_dim: usize) -> usize {
        width(self.dtype(), head_dim)
    }

    /// The same in bytes.
    pub fn bytes_per_head(self, head_dim: usize) -> usize {
        self.width(head_dim) * self.dtype().size_in_bytes()
    }
}

/// [`CacheType::width`] by the type of a cache's tensor.
pub fn width(dtype: DType, head_dim: usize) -> usize {
    match dtype {
        DType::U8 => head_dim + SCALE_BYTES,
        _ => head_dim,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_takes_its_numbers_and_what_scales_them() {
        for dim in [64, 80, 128, 256] {
            let bytes = |cache: CacheType| cache.bytes_per_head(dim);
            assert_eq!(
                [CacheType::F32, CacheType::F16, CacheType::Bf16].map(bytes),
                [4 * dim, 2 * dim, 2 * dim]
            );
            assert_eq!([CacheType::Fp8, CacheType::Q8].map(bytes), [dim, dim + 4]);
        }
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            assert_eq!(CacheType::like(dtype).dtype(), dtype);
        }
    }
}
