//! The dot-product panel on AVX2: tiles of 4 weight rows × 1 to 3 activation rows, all widened to f32.
//!
//! Each dot product has one vector of partial sums, filled in order of K; a tail of K is padded with
//! zeros, so it takes the same path as the rest.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::avx2::{Eight, LANES, sum_each};
use super::dot::{Panel, Place, Tiles};

/// AVX2 tiles of weights `W` and activations `X`.
pub struct Avx2<W, X>(PhantomData<(W, X)>);

impl<W: Eight, X: Eight> Tiles for Avx2<W, X> {
    type W = W;
    type X = X;
    /// 4 × 3 accumulators, 3 activations and a weight fill the 16 registers.
    const ROWS: usize = 3;

    #[inline]
    unsafe fn tile<const M: usize>(p: &Panel<'_, W, X>, at: Place, count: usize) {
        // SAFETY: the caller's promises.
        unsafe {
            match count {
                1 => tile::<W, X, M, 1>(p, at),
                2 => tile::<W, X, M, 2>(p, at),
                _ => tile::<W, X, M, 3>(p, at),
            }
        }
    }
}

/// M (4 or 1) weight rows × R activation rows.
///
/// # Safety
/// As `Tiles::tile`; the machine has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<W: Eight, X: Eight, const M: usize, const R: usize>(p: &Panel<'_, W, X>, at: Place) {
    let k = p.k;
    let mut sums = [[_mm256_setzero_ps(); 4]; R];
    // SAFETY: the rows of w and x have k elements each; a prefetch may point anywhere.
    unsafe {
        let w: [*const W; M] = std::array::from_fn(|m| p.w.as_ptr().add((at.n + m * at.spread) * k));
        let x: [*const X; R] = std::array::from_fn(|r| p.x.as_ptr().add((at.row + r) * k));
        let next = p.next.as_ptr().wrapping_add(at.n * k);
        let mut i = 0;
        while i + LANES <= k {
            for m in at.fetch.0..at.fetch.1 {
                _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(m * k + i).cast());
            }
            let xs: [__m256; R] = std::array::from_fn(|r| X::load(x[r].add(i)));
            for m in 0..M {
                let w = W::load(w[m].add(i));
                for r in 0..R {
                    sums[r][m] = _mm256_fmadd_ps(w, xs[r], sums[r][m]);
                }
            }
            i += LANES;
        }
        if i < k {
            let xs: [__m256; R] = std::array::from_fn(|r| X::load_part(x[r].add(i), k - i));
            for m in 0..M {
                let w = W::load_part(w[m].add(i), k - i);
                for r in 0..R {
                    sums[r][m] = _mm256_fmadd_ps(w, xs[r], sums[r][m]);
                }
            }
        }
        for r in 0..R {
            let mut totals = [0.0f32; 4];
            _mm_storeu_ps(totals.as_mut_ptr(), sum_each(sums[r]));
            p.store(at, r, &totals[..M]);
        }
    }
}
