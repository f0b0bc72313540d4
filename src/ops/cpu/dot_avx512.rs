//! The dot-product panel on AVX-512: tiles of 4 weight rows × 1 to 6 activation rows.
//!
//! Each dot product has one vector of partial sums, filled in order of K: bf16 · bf16 by `vdpbf16ps`
//! (32 products an instruction), all other pairs widened to f32 (16). A tail of K is read with a mask,
//! so it takes the same path as the rest.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use half::bf16;

use super::Element;
use super::avx512::{Wide, join_quarters, sum_quarters};
use super::dot::{Panel, Place, Tiles};

/// How a pair of element types is multiplied.
pub trait Product {
    type W: Element;
    type X: Element;
    type V: Copy;
    /// Elements of a vector.
    const STEP: usize;
    /// # Safety
    /// `STEP` elements at `p`; the machine has AVX-512.
    unsafe fn w(p: *const Self::W) -> Self::V;
    /// # Safety
    /// As [`Product::w`].
    unsafe fn x(p: *const Self::X) -> Self::V;
    /// # Safety
    /// `n` < `STEP` elements at `p`; the machine has AVX-512.
    unsafe fn w_part(p: *const Self::W, n: usize) -> Self::V;
    /// # Safety
    /// As [`Product::w_part`].
    unsafe fn x_part(p: *const Self::X, n: usize) -> Self::V;
    /// # Safety
    /// The machine has AVX-512.
    unsafe fn add(sum: __m512, w: Self::V, x: Self::V) -> __m512;
}

/// Both widened to f32.
pub struct Widened<W, X>(PhantomData<(W, X)>);

impl<W: Wide + Element, X: Wide + Element> Product for Widened<W, X> {
    type W = W;
    type X = X;
    type V = __m512;
    const STEP: usize = 16;
    #[inline(always)]
    unsafe fn w(p: *const W) -> __m512 {
        // SAFETY: the caller's promises, here and below.
        unsafe { W::load(p) }
    }
    #[inline(always)]
    unsafe fn x(p: *const X) -> __m512 {
        // SAFETY: as above.
        unsafe { X::load(p) }
    }
    #[inline(always)]
    unsafe fn w_part(p: *const W, n: usize) -> __m512 {
        // SAFETY: as above.
        unsafe { W::load_part(p, n) }
    }
    #[inline(always)]
    unsafe fn x_part(p: *const X, n: usize) -> __m512 {
        // SAFETY: as above.
        unsafe { X::load_part(p, n) }
    }
    #[inline(always)]
    unsafe fn add(sum: __m512, w: __m512, x: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_fmadd_ps(w, x, sum) }
    }
}

/// bf16 pairs, multiplied and added in f32 by the hardware.
pub struct Bf16Pairs;

impl Product for Bf16Pairs {
    type W = bf16;
    type X = bf16;
    type V = __m512i;
    const STEP: usize = 32;
    #[inline(always)]
    unsafe fn w(p: *const bf16) -> __m512i {
        // SAFETY: the caller's promises, here and below.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn x(p: *const bf16) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn w_part(p: *const bf16, n: usize) -> __m512i {
        // SAFETY: as above; the mask lets no element beyond n be read.
        unsafe { _mm512_maskz_loadu_epi16((1u32 << n) - 1, p.cast()) }
    }
    #[inline(always)]
    unsafe fn x_part(p: *const bf16, n: usize) -> __m512i {
        // SAFETY: as above.
        unsafe { Self::w_part(p, n) }
    }
    #[inline(always)]
    unsafe fn add(sum: __m512, w: __m512i, x: __m512i) -> __m512 {
        // SAFETY: as above; both types are 64 bytes of plain bits.
        unsafe {
            _mm512_dpbf16_ps(
                sum,
                std::mem::transmute::<__m512i, __m512bh>(w),
                std::mem::transmute::<__m512i, __m512bh>(x),
            )
        }
    }
}

/// AVX-512 tiles of a product.
pub struct Avx512<P>(PhantomData<P>);

impl<P: Product> Tiles for Avx512<P> {
    type W = P::W;
    type X = P::X;
    /// 4 × 6 accumulators, 6 activations and a weight fill 31 registers.
    const ROWS: usize = 6;

    #[inline]
    unsafe fn tile<const M: usize>(p: &Panel<'_, P::W, P::X>, at: Place, count: usize) {
        // SAFETY: the caller's promises.
        unsafe {
            match count {
                1 => tile::<P, M, 1>(p, at),
                2 => tile::<P, M, 2>(p, at),
                3 => tile::<P, M, 3>(p, at),
                4 => tile::<P, M, 4>(p, at),
                5 => tile::<P, M, 5>(p, at),
                _ => tile::<P, M, 6>(p, at),
            }
        }
    }
}

/// M (4 or 1) weight rows × R activation rows.
///
/// # Safety
/// As `Tiles::tile`; the machine has AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn tile<P: Product, const M: usize, const R: usize>(p: &Panel<'_, P::W, P::X>, at: Place) {
    let k = p.k;
    let mut sums = [[_mm512_setzero_ps(); 4]; R];
    // SAFETY: the rows of w and x have k elements each; a prefetch may point anywhere.
    unsafe {
        let w: [*const P::W; M] = std::array::from_fn(|m| p.w.as_ptr().add((at.n + m * at.spread) * k));
        let x: [*const P::X; R] = std::array::from_fn(|r| p.x.as_ptr().add((at.row + r) * k));
        let next = p.next.as_ptr().wrapping_add(at.n * k);
        let mut i = 0;
        while i + P::STEP <= k {
            for m in at.fetch.0..at.fetch.1 {
                _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(m * k + i).cast());
            }
            let xs: [P::V; R] = std::array::from_fn(|r| P::x(x[r].add(i)));
            for m in 0..M {
                let w = P::w(w[m].add(i));
                for r in 0..R {
                    sums[r][m] = P::add(sums[r][m], w, xs[r]);
                }
            }
            i += P::STEP;
        }
        if i < k {
            let xs: [P::V; R] = std::array::from_fn(|r| P::x_part(x[r].add(i), k - i));
            for m in 0..M {
                let w = P::w_part(w[m].add(i), k - i);
                for r in 0..R {
                    sums[r][m] = P::add(sums[r][m], w, xs[r]);
                }
            }
        }
        store::<P, M, R>(p, at, &sums);
    }
}

/// Adds up the lanes and writes the tile's outputs.
///
/// # Safety
/// As [`tile`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn store<P: Product, const M: usize, const R: usize>(
    p: &Panel<'_, P::W, P::X>,
    at: Place,
    sums: &[[__m512; 4]; R],
) {
    // Whole loops over constants only: the accumulators must stay in registers.
    let mut quarters = [_mm512_setzero_ps(); 8];
    for r in 0..R {
        quarters[r] = sum_quarters(sums[r]);
    }
    let [a, b, c, d, e, f, g, h] = quarters;
    let totals = [join_quarters([a, b, c, d]), join_quarters([e, f, g, h])];
    let totals = totals.as_ptr().cast::<f32>(); // [8, 4]
    // SAFETY: bias covers the panel, and the outputs are rows and columns of it.
    unsafe {
        for r in 0..R {
            let totals = totals.add(4 * r);
            if M == 4 && at.spread == 1 {
                let out = p.dst.at((at.row + r) * p.stride + p.column + at.n);
                let bias = _mm_loadu_ps(p.bias.as_ptr().add(at.n));
                let mut value = _mm_add_ps(_mm_loadu_ps(totals), bias);
                if p.accumulate {
                    value = _mm_add_ps(_mm_loadu_ps(out), value);
                }
                _mm_storeu_ps(out, value);
            } else {
                p.store(at, r, std::slice::from_raw_parts(totals, M));
            }
        }
    }
}
