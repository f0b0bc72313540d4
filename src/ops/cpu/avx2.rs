//! AVX2 pieces that the kernels share: loads that widen, sums across lanes, the exponential.
//!
//! As in the AVX-512 file, every vector's lanes are added up in one tree.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use half::{bf16, f16};

use super::Element;
use super::attention_scalar::{EXP_LOW, EXP_TERMS, LN2_HIGH, LN2_LOW};
use super::fp8::F8E4M3;

pub const LANES: usize = 8;

/// An element type that loads as eight f32.
pub trait Eight: Element {
    /// # Safety
    /// 8 elements at `p`; the machine has AVX2, FMA and F16C.
    unsafe fn load(p: *const Self) -> __m256;

    /// The first `n` < 8 elements, zeros beyond.
    ///
    /// # Safety
    /// `n` elements at `p`; the machine has AVX2, FMA and F16C.
    #[inline(always)]
    unsafe fn load_part(p: *const Self, n: usize) -> __m256 {
        let mut padded = [Self::ZERO; LANES];
        // SAFETY: the caller's promises.
        unsafe {
            for (i, to) in padded[..n].iter_mut().enumerate() {
                *to = *p.add(i);
            }
            Self::load(padded.as_ptr())
        }
    }
}

impl Eight for f32 {
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m256 {
        // SAFETY: the caller's promises.
        unsafe { _mm256_loadu_ps(p) }
    }
}

impl Eight for bf16 {
    #[inline(always)]
    unsafe fn load(p: *const bf16) -> __m256 {
        // SAFETY: the caller's promises.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
}

impl Eight for f16 {
    #[inline(always)]
    unsafe fn load(p: *const f16) -> __m256 {
        // SAFETY: the caller's promises.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }
}

impl Eight for F8E4M3 {
    #[inline(always)]
    unsafe fn load(p: *const F8E4M3) -> __m256 {
        // SAFETY: the caller's promises.
        unsafe { widen_fp8(_mm_loadl_epi64(p.cast())) }
    }
}

/// By way of f16, whose exponents are 8 higher: its subnormals cost nothing to convert.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn widen_fp8(x: __m128i) -> __m256 {
    let x = _mm_cvtepu8_epi16(x);
    let magnitude = _mm_and_si128(x, _mm_set1_epi16(0x7f));
    let sign = _mm_slli_epi16::<8>(_mm_and_si128(x, _mm_set1_epi16(0x80)));
    let nan = _mm_cmpeq_epi16(magnitude, _mm_set1_epi16(0x7f));
    let nan = _mm_and_si128(nan, _mm_set1_epi16(0x7e00));
    let half = _mm_or_si128(_mm_or_si128(_mm_slli_epi16::<7>(magnitude), sign), nan);
    _mm256_mul_ps(_mm256_cvtph_ps(half), _mm256_set1_ps(256.0))
}

/// Eight at a time; returns how many that were.
///
/// # Safety
/// `to` is as long as `from`; the machine has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn scaled_fp8(from: &[F8E4M3], scale: f32, to: &mut [f32]) -> usize {
    let scale = _mm256_set1_ps(scale);
    let whole = from.len() - from.len() % LANES;
    for i in (0..whole).step_by(LANES) {
        // SAFETY: elements i.. i + 8 of both.
        unsafe {
            let x = widen_fp8(_mm_loadl_epi64(from.as_ptr().add(i).cast()));
            _mm256_storeu_ps(to.as_mut_ptr().add(i), _mm256_mul_ps(x, scale));
        }
    }
    whole
}

/// Whole numbers of 8 bits times a scale, eight at a time; returns how many that were.
///
/// # Safety
/// `to` is as long as `from`; the machine has AVX2.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn scaled_i8(from: &[u8], scale: f32, to: &mut [MaybeUninit<f32>]) -> usize {
    let scale = _mm256_set1_ps(scale);
    let whole = from.len() - from.len() % LANES;
    for i in (0..whole).step_by(LANES) {
        // SAFETY: elements i.. i + 8 of both.
        unsafe {
            let x = _mm256_cvtepi8_epi32(_mm_loadl_epi64(from.as_ptr().add(i).cast()));
            _mm256_storeu_ps(to.as_mut_ptr().add(i).cast(), _mm256_mul_ps(_mm256_cvtepi32_ps(x), scale));
        }
    }
    whole
}

/// The sums of four vectors.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub fn sum_each(v: [__m256; 4]) -> __m128 {
    let ab = _mm256_add_ps(_mm256_unpacklo_ps(v[0], v[1]), _mm256_unpackhi_ps(v[0], v[1]));
    let cd = _mm256_add_ps(_mm256_unpacklo_ps(v[2], v[3]), _mm256_unpackhi_ps(v[2], v[3]));
    let (ab, cd) = (_mm256_castps_pd(ab), _mm256_castps_pd(cd));
    let low = _mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd));
    let high = _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd));
    let halves = _mm256_add_ps(low, high);
    _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves))
}

/// e^x for x ≤ 0 to about one part in 10⁷; NaN stays NaN.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub fn exp(x: __m256) -> __m256 {
    let zero = _mm256_cmp_ps::<_CMP_LT_OQ>(x, _mm256_set1_ps(EXP_LOW));
    let n = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(_mm256_mul_ps(
        x,
        _mm256_set1_ps(std::f32::consts::LOG2_E),
    ));
    let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(LN2_HIGH), x);
    let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(LN2_LOW), r);
    let mut poly = _mm256_set1_ps(EXP_TERMS[0]);
    for term in &EXP_TERMS[1..] {
        poly = _mm256_fmadd_ps(poly, r, _mm256_set1_ps(*term));
    }
    let e = _mm256_fmadd_ps(poly, _mm256_mul_ps(r, r), _mm256_add_ps(r, _mm256_set1_ps(1.0)));
    let power = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)));
    _mm256_andnot_ps(zero, _mm256_mul_ps(e, _mm256_castsi256_ps(power)))
}
