//! The dot-product panel on AVX-512: tiles of 4 weight rows × 1 to 6 activation rows.
//!
//! Each dot product has one vector of partial sums, filled in order of K: bf16 · bf16 by `vdpbf16ps`
//! (32 products an instruction), all other pairs widened to f32 (16). A tail of K is read with a mask,
//! so it takes the same path as the rest.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use half::bf16;

use super::avx512::{Wide, join_quarters, sum_quarters};
use super::dot::{Panel, row_tiles};

/// Activation rows of a tile at most: 4 × 6 accumulators, 6 activations and a weight fill 31 registers.
const TILE_ROWS: usize = 6;

/// How a pair of element types is multiplied.
pub trait Product {
    type W: Copy;
    type X: Copy;
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

impl<W: Wide, X: Wide> Product for Widened<W, X> {
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

/// Where a tile lies in its panel.
#[derive(Clone, Copy)]
struct Place {
    /// First weight row.
    n: usize,
    /// Distance between the tile's weight rows.
    spread: usize,
    /// First activation row.
    row: usize,
    /// Which of the same four rows of the next panel to fetch meanwhile: from, to.
    fetch: (usize, usize),
}

/// Computes a panel.
///
/// # Safety
/// As `dot::panel` asks; the machine has AVX-512.
pub unsafe fn panel<P: Product>(p: &Panel<'_, P::W, P::X>) {
    let weights = p.weight_rows();
    let quarter = weights / 4;
    let sweeps = p.rows.div_ceil(TILE_ROWS);
    for (sweep, (row, count)) in row_tiles(p.rows, TILE_ROWS).enumerate() {
        // The first sweep fetches the weights from memory: four long streams, one in each quarter of
        // the panel, are read half again as fast as four rows side by side. Later sweeps find them cached.
        let (step, spread) = if sweep == 0 { (1, quarter) } else { (4, 1) };
        let fetch = if p.next.is_empty() { (0, 0) } else { fetched(sweep, sweeps) };
        // SAFETY: each tile's weight rows and activation rows lie within the panel's.
        unsafe {
            for n in 0..quarter {
                tile_of::<P, 4>(p, Place { n: n * step, spread, row, fetch }, count);
            }
            for n in 4 * quarter..weights {
                tile_of::<P, 1>(p, Place { n, spread: 1, row, fetch: (0, 0) }, count);
            }
        }
    }
}

/// The share of the next panel that a sweep fetches: all is spread over sweeps 1 to 4 at most, since
/// sweep 0 waits for memory itself.
fn fetched(sweep: usize, sweeps: usize) -> (usize, usize) {
    let shares = (sweeps - 1).min(4);
    if sweep == 0 || sweep > shares {
        return (0, 0);
    }
    ((sweep - 1) * 4 / shares, sweep * 4 / shares)
}

/// # Safety
/// As [`tile`], of `count` activation rows.
#[inline]
unsafe fn tile_of<P: Product, const M: usize>(p: &Panel<'_, P::W, P::X>, at: Place, count: usize) {
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

/// M (4 or 1) weight rows × R activation rows.
///
/// # Safety
/// These rows lie within the panel, which is as `dot::panel` asks; the machine has AVX-512.
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
            let out = p.dst.at((at.row + r) * p.stride + p.column + at.n);
            if M == 4 && at.spread == 1 {
                let bias = _mm_loadu_ps(p.bias.as_ptr().add(at.n));
                let mut value = _mm_add_ps(_mm_loadu_ps(totals.add(4 * r)), bias);
                if p.accumulate {
                    value = _mm_add_ps(_mm_loadu_ps(out), value);
                }
                _mm_storeu_ps(out, value);
            } else {
                for m in 0..M {
                    let out = out.add(m * at.spread);
                    let value = *totals.add(4 * r + m) + p.bias[at.n + m * at.spread];
                    *out = if p.accumulate { *out + value } else { value };
                }
            }
        }
    }
}
