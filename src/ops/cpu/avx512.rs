//! AVX-512 pieces that the kernels share: loads that widen, sums across lanes, the exponential.
//!
//! Every vector's lanes are added up in one tree, whichever of the vectors summed together it is, so
//! that a result does not depend on its place in a tile.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use half::{bf16, f16};

use super::attention_scalar::{EXP_LOW, EXP_TERMS, LN2_HIGH, LN2_LOW};
use super::fp8::F8E4M3;

/// An element type that loads as sixteen f32.
pub trait Wide: Copy {
    /// # Safety
    /// 16 elements at `p`; the machine has AVX-512.
    unsafe fn load(p: *const Self) -> __m512;
    /// The first `n` < 16 elements, zeros beyond.
    ///
    /// # Safety
    /// `n` elements at `p`; the machine has AVX-512.
    unsafe fn load_part(p: *const Self, n: usize) -> __m512;
}

impl Wide for f32 {
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        // SAFETY: the caller's promises.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_part(p: *const f32, n: usize) -> __m512 {
        // SAFETY: the mask lets no lane beyond n be read.
        unsafe { _mm512_maskz_loadu_ps(first(n), p) }
    }
}

impl Wide for bf16 {
    #[inline(always)]
    unsafe fn load(p: *const bf16) -> __m512 {
        // SAFETY: the caller's promises.
        unsafe { widen(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_part(p: *const bf16, n: usize) -> __m512 {
        // SAFETY: the mask lets no lane beyond n be read.
        unsafe { widen(_mm256_maskz_loadu_epi16(first(n), p.cast())) }
    }
}

impl Wide for f16 {
    #[inline(always)]
    unsafe fn load(p: *const f16) -> __m512 {
        // SAFETY: the caller's promises.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_part(p: *const f16, n: usize) -> __m512 {
        // SAFETY: the mask lets no lane beyond n be read.
        unsafe { _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p.cast())) }
    }
}

impl Wide for F8E4M3 {
    #[inline(always)]
    unsafe fn load(p: *const F8E4M3) -> __m512 {
        // SAFETY: the caller's promises.
        unsafe { widen_fp8(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_part(p: *const F8E4M3, n: usize) -> __m512 {
        // SAFETY: the mask lets no lane beyond n be read.
        unsafe { widen_fp8(_mm_maskz_loadu_epi8(first(n), p.cast())) }
    }
}

/// The mask of the first `n` < 16 lanes.
#[inline(always)]
pub fn first(n: usize) -> __mmask16 {
    ((1u32 << n) - 1) as __mmask16
}

#[inline]
#[target_feature(enable = "avx512f")]
fn widen(x: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(x)))
}

/// By way of f16, whose exponents are 8 higher: its subnormals cost nothing to convert.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn widen_fp8(x: __m128i) -> __m512 {
    let x = _mm256_cvtepu8_epi16(x);
    let magnitude = _mm256_and_si256(x, _mm256_set1_epi16(0x7f));
    let sign = _mm256_slli_epi16::<8>(_mm256_and_si256(x, _mm256_set1_epi16(0x80)));
    let nan = _mm256_cmpeq_epi16(magnitude, _mm256_set1_epi16(0x7f));
    let nan = _mm256_and_si256(nan, _mm256_set1_epi16(0x7e00));
    let half = _mm256_or_si256(_mm256_or_si256(_mm256_slli_epi16::<7>(magnitude), sign), nan);
    _mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(256.0))
}

/// Sixteen at a time; returns how many that were.
///
/// # Safety
/// `to` is as long as `from`; the machine has AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub unsafe fn scaled_fp8(from: &[F8E4M3], scale: f32, to: &mut [f32]) -> usize {
    let scale = _mm512_set1_ps(scale);
    let whole = from.len() - from.len() % 16;
    for i in (0..whole).step_by(16) {
        // SAFETY: elements i.. i + 16 of both.
        unsafe {
            let x = widen_fp8(_mm_loadu_si128(from.as_ptr().add(i).cast()));
            _mm512_storeu_ps(to.as_mut_ptr().add(i), _mm512_mul_ps(x, scale));
        }
    }
    whole
}

/// Whole numbers of 8 bits times a scale, sixteen at a time; returns how many that were.
///
/// # Safety
/// `to` is as long as `from`; the machine has AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub unsafe fn scaled_i8(from: &[u8], scale: f32, to: &mut [MaybeUninit<f32>]) -> usize {
    let scale = _mm512_set1_ps(scale);
    let whole = from.len() - from.len() % 16;
    for i in (0..whole).step_by(16) {
        // SAFETY: elements i.. i + 16 of both.
        unsafe {
            let x = _mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().add(i).cast()));
            _mm512_storeu_ps(to.as_mut_ptr().add(i).cast(), _mm512_mul_ps(_mm512_cvtepi32_ps(x), scale));
        }
    }
    whole
}

/// Sums of four vectors, one in each lane of every quarter; the quarters are still apart.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn sum_quarters(v: [__m512; 4]) -> __m512 {
    let ab = _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
    let cd = _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
    let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    let low = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
    let high = _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
    _mm512_add_ps(low, high)
}

/// Adds up the quarters of four vectors: quarter i of the result belongs to `v[i]`.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn join_quarters(v: [__m512; 4]) -> __m512 {
    let pair = |a, b| _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
    pair(pair(v[0], v[1]), pair(v[2], v[3]))
}

/// e^x for x ≤ 0 to about one part in 10⁷; NaN stays NaN.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn exp(x: __m512) -> __m512 {
    let zero = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, _mm512_set1_ps(EXP_LOW));
    let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(_mm512_mul_ps(
        x,
        _mm512_set1_ps(std::f32::consts::LOG2_E),
    ));
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN2_HIGH), x);
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN2_LOW), r);
    let mut poly = _mm512_set1_ps(EXP_TERMS[0]);
    for term in &EXP_TERMS[1..] {
        poly = _mm512_fmadd_ps(poly, r, _mm512_set1_ps(*term));
    }
    let e = _mm512_fmadd_ps(poly, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0)));
    _mm512_mask_mov_ps(_mm512_scalef_ps(e, n), zero, _mm512_setzero_ps())
}
