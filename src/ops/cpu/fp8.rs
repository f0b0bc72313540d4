//! FP8: the e4m3 numbers of the Open Compute Project (OFP8, revision 1.0), as weights and caches store them.
//!
//! A sign, four bits of exponent, three of mantissa: up to ±448, no infinity, NaN at 0x7f and 0xff. Knows
//! single numbers and slices; scales are the business of whoever holds them.

use super::{Element, Isa};

/// One number. As candle's own type it is its byte.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct F8E4M3(u8);

/// The largest number.
pub const MAX: f32 = 448.0;

/// Value of each byte, for machines without vectors of them.
static VALUES: [f32; 256] = {
    let mut all = [0.0; 256];
    let mut byte = 0;
    while byte < 256 {
        all[byte] = value(byte as u8);
        byte += 1;
    }
    all
};

const fn value(byte: u8) -> f32 {
    let (exponent, mantissa) = ((byte >> 3 & 15) as u32, (byte & 7) as u32);
    let magnitude = match (exponent, mantissa) {
        (15, 7) => f32::NAN,
        (0, m) => m as f32 / 512.0,
        (e, m) => f32::from_bits((e + 120) << 23 | m << 20),
    };
    if byte < 128 { magnitude } else { -magnitude }
}

impl F8E4M3 {
    pub const fn from_bits(bits: u8) -> F8E4M3 {
        F8E4M3(bits)
    }

    pub const fn to_bits(self) -> u8 {
        self.0
    }

    pub const fn is_nan(self) -> bool {
        self.0 & 0x7f == 0x7f
    }

    /// Numbers as bytes.
    pub fn bytes(all: &[F8E4M3]) -> &[u8] {
        // SAFETY: each is its byte.
        unsafe { std::slice::from_raw_parts(all.as_ptr().cast(), all.len()) }
    }

    /// Bytes as numbers: each byte is one.
    pub fn from_bytes(bytes: &[u8]) -> &[F8E4M3] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len()) }
    }
}

/// `to[i] = from[i] · scale`, rounded once to f32: the same numbers on every instruction set.
///
/// # Safety
/// The machine has `isa`.
///
/// # Panics
/// When the slices are of unlike length.
pub unsafe fn scaled(isa: Isa, from: &[F8E4M3], scale: f32, to: &mut [f32]) {
    assert_eq!(from.len(), to.len(), "a place for each number");
    let mut whole = 0;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the slices are as long, and the caller has the instruction set.
    unsafe {
        match isa {
            Isa::Avx512 => whole = super::avx512::scaled_fp8(from, scale, to),
            Isa::Avx2 => whole = super::avx2::scaled_fp8(from, scale, to),
            Isa::Scalar => {}
        }
    }
    let _ = isa;
    for (x, to) in from[whole..].iter().zip(&mut to[whole..]) {
        *to = x.widen() * scale;
    }
}

impl Element for F8E4M3 {
    const ZERO: F8E4M3 = F8E4M3(0);

    #[inline(always)]
    fn widen(self) -> f32 {
        VALUES[usize::from(self.0)]
    }

    /// What is beyond the largest number becomes it, as devices convert; NaN stays NaN.
    #[inline(always)]
    fn narrow(x: f32) -> F8E4M3 {
        /// Adding it leaves whole numbers, rounded to even, in the low bits.
        const WHOLE: f32 = (1 << 23) as f32;
        const SMALLEST_NORMAL: u32 = 0x3c80_0000; // 2⁻⁶
        let bits = x.to_bits();
        let (sign, magnitude) = ((bits >> 24 & 0x80) as u8, bits & 0x7fff_ffff);
        let rounded = magnitude.wrapping_add(0x7_ffff + (magnitude >> 20 & 1)) >> 20;
        let normal = rounded.saturating_sub(120 << 3).min(0x7e);
        let subnormal = (f32::from_bits(magnitude) * 512.0 + WHOLE).to_bits() & 15;
        let finite = if magnitude < SMALLEST_NORMAL { subnormal } else { normal };
        F8E4M3(if magnitude > 0x7f80_0000 { 0x7f } else { sign | finite as u8 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the format's definition, in f64.
    fn oracle(byte: u8) -> f64 {
        let (sign, e, m) =
            (if byte & 0x80 == 0 { 1.0 } else { -1.0 }, i32::from(byte >> 3 & 15), f64::from(byte & 7));
        match (e, byte & 7) {
            (15, 7) => f64::NAN,
            (0, _) => sign * m / 8.0 * 2f64.powi(-6),
            _ => sign * (1.0 + m / 8.0) * 2f64.powi(e - 7),
        }
    }

    #[test]
    fn every_byte_is_its_number_and_comes_back() {
        for byte in 0..=255u8 {
            let (got, want) = (F8E4M3(byte).widen(), oracle(byte));
            assert!(f64::from(got) == want || got.is_nan() && want.is_nan(), "{byte:#x}: {got}, not {want}");
            let back = F8E4M3::narrow(got).to_bits();
            assert_eq!(back, if got.is_nan() { 0x7f } else { byte }, "{got}");
        }
        assert_eq!(F8E4M3(0x7e).widen(), MAX);
    }

    #[test]
    fn rounding_is_to_the_nearest_even_and_stops_at_the_largest() {
        // The nearest of all numbers; of two as near the one whose last bit is 0.
        let nearest = |x: f32| {
            let wanted = f64::from(x.abs()).min(f64::from(MAX));
            let all = (0..0x7fu8).map(|b| ((oracle(b) - wanted).abs(), b & 1, b));
            let best = all.min_by(|a, b| a.partial_cmp(b).unwrap()).unwrap().2;
            best | if x.is_sign_negative() { 0x80 } else { 0 }
        };
        let any = (0..=u32::MAX).step_by(99_991).map(f32::from_bits).filter(|x| !x.is_nan());
        let near = (0..200_000u32).map(|i| (i as f32 - 100_000.0) * 0.004_7);
        let small = (0..20_000u32).map(|i| (i as f32 - 10_000.0) * 3.1e-6);
        let halves = (0..0x7eu8).map(|b| ((oracle(b) + oracle(b + 1)) / 2.0) as f32);
        let edges = [0.0, -0.0, f32::INFINITY, -f32::INFINITY, f32::MAX, 448.0, 464.0, 465.0, 1e-45];
        for x in any.chain(near).chain(small).chain(halves).chain(edges) {
            assert_eq!(F8E4M3::narrow(x).to_bits(), nearest(x), "{x}");
        }
        assert!(F8E4M3::narrow(f32::NAN).widen().is_nan());
    }

    #[test]
    fn vectors_read_what_the_table_has() {
        let all: Vec<F8E4M3> = (0..=255).map(F8E4M3).collect();
        let same = |got: &[f32], first: usize| {
            for (i, got) in got.iter().enumerate() {
                let want = all[first + i].widen();
                assert!(*got == want || got.is_nan() && want.is_nan(), "byte {}: {got}", first + i);
            }
        };
        #[cfg(target_arch = "x86_64")]
        // SAFETY: each is called where the machine has it, on as many numbers as it reads.
        unsafe {
            use super::super::{avx2::Eight, avx512::Wide};
            use std::arch::x86_64::*;
            if Isa::Avx2.is_available() {
                for first in (0..256).step_by(8) {
                    let mut lanes = [0.0f32; 8];
                    _mm256_storeu_ps(lanes.as_mut_ptr(), <F8E4M3 as Eight>::load(&raw const all[first]));
                    same(&lanes, first);
                }
            }
            if Isa::Avx512.is_available() {
                for first in (0..256).step_by(16) {
                    let mut lanes = [0.0f32; 16];
                    _mm512_storeu_ps(lanes.as_mut_ptr(), <F8E4M3 as Wide>::load(&raw const all[first]));
                    same(&lanes, first);
                    _mm512_storeu_ps(
                        lanes.as_mut_ptr(),
                        <F8E4M3 as Wide>::load_part(&raw const all[first], 5),
                    );
                    same(&lanes[..5], first);
                    assert_eq!(lanes[5..], [0.0; 11]);
                }
            }
        }
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            for length in [0, 1, 15, 17, 250] {
                let mut got = vec![0.0; length];
                // SAFETY: the machine has it.
                unsafe { scaled(isa, &all[..length], 0.3, &mut got) };
                for (x, got) in all.iter().zip(&got) {
                    let want = x.widen() * 0.3;
                    assert!(*got == want || got.is_nan() && want.is_nan(), "{isa:?}: {got}, not {want}");
                }
            }
        }
        same(&all.iter().map(|x| x.widen()).collect::<Vec<_>>(), 0);
    }
}
