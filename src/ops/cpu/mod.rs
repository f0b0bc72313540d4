//! The loops of the operations on a CPU: slices and pointers in, numbers out.
//!
//! One file per instruction set and operation. The instruction set is chosen at run time, once per
//! call of an operation ([`Isa::detect`]); the sets need not agree with each other in the last bits,
//! each agrees with itself whatever the row count, the neighbours and the thread count. Nothing here
//! knows of tensors, layouts or models.

// Kernels index arrays of vectors by constants, so that these stay in registers.
#![allow(clippy::needless_range_loop)]

use half::{bf16, f16};

pub mod attention;
#[cfg(target_arch = "x86_64")]
mod attention_avx2;
#[cfg(target_arch = "x86_64")]
mod attention_avx512;
pub mod attention_cache;
mod attention_scalar;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod blocks;
#[cfg(target_arch = "x86_64")]
mod blocks_avx2;
#[cfg(target_arch = "x86_64")]
mod blocks_avx512;
pub mod dot;
#[cfg(target_arch = "x86_64")]
mod dot_avx2;
#[cfg(target_arch = "x86_64")]
mod dot_avx512;
mod dot_scalar;
pub mod fp8;
pub mod pick;
pub mod q8;

/// An instruction set that the kernels are written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512 F, BW, DQ, VL, VNNI and BF16.
    Avx512,
    /// AVX2, FMA and F16C.
    Avx2,
    /// No intrinsics; what the compiler makes of plain loops on any machine.
    Scalar,
}

impl Isa {
    /// All, the fastest first.
    pub const ALL: [Isa; 3] = [Isa::Avx512, Isa::Avx2, Isa::Scalar];

    /// The fastest one this machine has. Cheap: the standard library keeps what `cpuid` said.
    pub fn detect() -> Isa {
        Isa::ALL.into_iter().find(|isa| isa.is_available()).unwrap_or(Isa::Scalar)
    }

    pub fn is_available(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512bf16")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx512 | Isa::Avx2 => false,
        }
    }
}

/// A number as it is stored.
pub trait Element: Copy + Send + Sync + 'static {
    const ZERO: Self;
    fn widen(self) -> f32;
    /// Rounds to nearest, ties to even.
    fn narrow(x: f32) -> Self;
}

impl Element for f32 {
    const ZERO: f32 = 0.0;
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    #[inline(always)]
    fn narrow(x: f32) -> f32 {
        x
    }
}

impl Element for bf16 {
    const ZERO: bf16 = bf16::ZERO;
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn narrow(x: f32) -> bf16 {
        // bf16::from_f32 without its branches, so that loops over it become vector code.
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
        bf16::from_bits(if x.is_nan() { (bits >> 16 | 0x40) as u16 } else { (rounded >> 16) as u16 })
    }
}

impl Element for f16 {
    const ZERO: f16 = f16::ZERO;
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn narrow(x: f32) -> f16 {
        f16::from_f32(x)
    }
}

/// A pointer that several threads write through, each its own elements.
#[derive(Clone, Copy)]
pub struct SharedMut<T>(*mut T);

// SAFETY: whoever writes through it answers for no two threads touching one element.
unsafe impl<T: Send> Send for SharedMut<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<T> {}

impl<T> SharedMut<T> {
    pub fn new(slice: &mut [T]) -> SharedMut<T> {
        SharedMut(slice.as_mut_ptr())
    }
    /// The pointer to element `i`.
    ///
    /// # Safety
    /// `i` lies within the slice this was made of, which is still borrowed.
    #[inline(always)]
    pub unsafe fn at(self, i: usize) -> *mut T {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(i) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// e^x of every instruction set the machine has, each value in all lanes.
    fn exps(x: f32) -> Vec<f32> {
        let mut all = vec![attention_scalar::exp(x)];
        #[cfg(target_arch = "x86_64")]
        // SAFETY: each is called where the machine has it; the arrays are as long as the vectors.
        unsafe {
            use std::arch::x86_64::*;
            if Isa::Avx2.is_available() {
                let mut lanes = [0.0f32; 8];
                _mm256_storeu_ps(lanes.as_mut_ptr(), avx2::exp(_mm256_set1_ps(x)));
                all.extend(lanes);
            }
            if Isa::Avx512.is_available() {
                let mut lanes = [0.0f32; 16];
                _mm512_storeu_ps(lanes.as_mut_ptr(), avx512::exp(_mm512_set1_ps(x)));
                all.extend(lanes);
            }
        }
        all
    }

    #[test]
    fn the_exponential_is_good_to_a_part_in_ten_million() {
        for i in 0..200_000 {
            let x = i as f32 * -4.3e-4;
            let want = f64::from(x).exp();
            for got in exps(x) {
                let error = (f64::from(got) - want).abs() / want;
                assert!(error < 2e-7, "e^{x} = {got}, not {want}: {error:e}");
            }
        }
    }

    #[test]
    fn the_exponential_ends_well() {
        assert!(exps(0.0).iter().all(|e| *e == 1.0));
        assert!(exps(f32::NEG_INFINITY).iter().all(|e| *e == 0.0));
        assert!(exps(-1000.0).iter().all(|e| *e == 0.0));
        assert!(exps(f32::NAN).iter().all(|e| e.is_nan()));
    }

    #[test]
    fn bf16_rounds_as_half_does() {
        let cases = (0..=u32::MAX).step_by(9973).map(f32::from_bits).filter(|x| !x.is_nan());
        for x in cases.chain([f32::INFINITY, f32::MAX, -f32::MAX, f32::MIN_POSITIVE]) {
            assert_eq!(<bf16 as Element>::narrow(x).to_bits(), bf16::from_f32(x).to_bits(), "{x}");
        }
        assert!(<bf16 as Element>::narrow(f32::from_bits(0x7f80_0001)).is_nan());
    }
}
