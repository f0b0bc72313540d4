//! The loops of attention on AVX-512.
//!
//! Scores are dot products (queries rounded to bf16 where the cache is, by `vdpbf16ps`), 16 side by
//! side and summed across lanes together; weights and values are f32, the values widened as they are
//! read. How many queries run side by side changes no query's arithmetic.

use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::ops::Range;

use half::bf16;

use super::Element;
use super::attention::{BLOCK, Kernels, Mix, Scores, Softmax, TILE, TILE_BLOCKS};
use super::avx512::{Wide, exp, first, join_quarters, sum_quarters};
use super::dot_avx512::{Bf16Pairs, Product, Widened};
use super::fp8::F8E4M3;

const LANES: usize = 16;

/// AVX-512 loops over a cache of `T`.
pub struct Avx512<T>(PhantomData<T>);

/// A cache element and how it meets a query.
pub trait Stored: Element + Wide {
    type Query: Element;
    type Score: Product<W = Self, X = Self::Query>;
}

impl Stored for bf16 {
    type Query = bf16;
    type Score = Bf16Pairs;
}

impl Stored for f32 {
    type Query = f32;
    type Score = Widened<f32, f32>;
}

impl Stored for F8E4M3 {
    type Query = f32;
    type Score = Widened<F8E4M3, f32>;
}

impl<T: Stored> Kernels for Avx512<T> {
    type Kv = T;
    type Query = T::Query;

    unsafe fn scores(
        q: *const T::Query,
        n: usize,
        k: *const T,
        dim: usize,
        scores: *mut f32,
        ahead: *const T,
    ) {
        let mut i = 0;
        while i < n {
            // SAFETY: the queries from i to n and their scores are the caller's.
            unsafe {
                let (q, scores) = (q.add(i * dim), scores.add(i * TILE));
                let ahead = if i == 0 { ahead } else { std::ptr::null() };
                i += match n - i {
                    4.. => score::<T::Score, 4, 1>(q, k, dim, scores, ahead),
                    2.. => score::<T::Score, 2, 2>(q, k, dim, scores, ahead),
                    _ => score::<T::Score, 1, 4>(q, k, dim, scores, ahead),
                };
            }
        }
    }

    unsafe fn weigh(scores: *mut f32, keys: Range<usize>, of: Scores, softmax: &mut Softmax) -> f32 {
        // SAFETY: the caller's promises.
        unsafe { weigh(scores, keys, of, softmax) }
    }

    unsafe fn mix(job: &Mix<'_, T>) {
        // SAFETY: the caller's promises.
        unsafe {
            match job.factors.len() {
                1 => mix::<T, 1>(job),
                2 => mix::<T, 2>(job),
                3 => mix::<T, 3>(job),
                _ => mix::<T, 4>(job),
            }
        }
    }
}

/// Q queries × a block's keys, G groups of four keys at a time (Q · G = 4); returns Q.
///
/// # Safety
/// q: `[Q, dim]`, k: `[BLOCK, dim]`, scores: `[Q, TILE]`; the machine has AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn score<P: Product, const Q: usize, const G: usize>(
    q: *const P::X,
    k: *const P::W,
    dim: usize,
    scores: *mut f32,
    ahead: *const P::W,
) -> usize {
    for first in (0..BLOCK).step_by(4 * G) {
        let mut sums = [[[_mm512_setzero_ps(); 4]; G]; Q];
        let mut d = 0;
        // SAFETY: elements d.. of Q queries and of the block's keys `first`.. `first + 4 · G`.
        unsafe {
            while d + P::STEP <= dim {
                let qs: [P::V; Q] = std::array::from_fn(|i| P::x(q.add(i * dim + d)));
                for g in 0..G {
                    for j in 0..4 {
                        let at = (first + 4 * g + j) * dim + d;
                        if !ahead.is_null() {
                            _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(at).cast());
                        }
                        let k = P::w(k.add(at));
                        for i in 0..Q {
                            sums[i][g][j] = P::add(sums[i][g][j], k, qs[i]);
                        }
                    }
                }
                d += P::STEP;
            }
            if d < dim {
                let qs: [P::V; Q] = std::array::from_fn(|i| P::x_part(q.add(i * dim + d), dim - d));
                for g in 0..G {
                    for j in 0..4 {
                        let k = P::w_part(k.add((first + 4 * g + j) * dim + d), dim - d);
                        for i in 0..Q {
                            sums[i][g][j] = P::add(sums[i][g][j], k, qs[i]);
                        }
                    }
                }
            }
        }
        let mut quarters = [_mm512_setzero_ps(); 4];
        for i in 0..Q {
            for g in 0..G {
                quarters[i * G + g] = sum_quarters(sums[i][g]);
            }
        }
        let all = join_quarters(quarters); // [Q, 4 · G]
        // SAFETY: 4 · G scores of each query, from column `first`.
        unsafe {
            let out = scores.add(first);
            if G == 4 {
                _mm512_storeu_ps(out, all);
            } else if G == 2 {
                _mm256_storeu_ps(out, _mm512_castps512_ps256(all));
                _mm256_storeu_ps(out.add(TILE), _mm512_extractf32x8_ps::<1>(all));
            } else {
                _mm_storeu_ps(out, _mm512_castps512_ps128(all));
                _mm_storeu_ps(out.add(TILE), _mm512_extractf32x4_ps::<1>(all));
                _mm_storeu_ps(out.add(2 * TILE), _mm512_extractf32x4_ps::<2>(all));
                _mm_storeu_ps(out.add(3 * TILE), _mm512_extractf32x4_ps::<3>(all));
            }
        }
    }
    Q
}

/// cap · tanh(x / cap).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn soft_cap(x: __m512, cap: f32) -> __m512 {
    let (one, sign) = (_mm512_set1_ps(1.0), _mm512_set1_ps(-0.0));
    let size = _mm512_div_ps(_mm512_abs_ps(x), _mm512_set1_ps(cap));
    let small = exp(_mm512_mul_ps(size, _mm512_set1_ps(-2.0)));
    let tanh = _mm512_div_ps(_mm512_sub_ps(one, small), _mm512_add_ps(one, small));
    _mm512_or_ps(_mm512_mul_ps(tanh, _mm512_set1_ps(cap)), _mm512_and_ps(x, sign))
}

/// # Safety
/// As `Kernels::weigh`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn weigh(scores: *mut f32, keys: Range<usize>, of: Scores, softmax: &mut Softmax) -> f32 {
    let lowest = _mm512_set1_ps(f32::NEG_INFINITY);
    let mut s = [lowest; TILE_BLOCKS];
    let mut masks = [0; TILE_BLOCKS];
    let up_to = |n: usize| if n < LANES { first(n) } else { u16::MAX };
    for b in 0..TILE_BLOCKS {
        let (before, end) = (keys.start.saturating_sub(b * LANES), keys.end.saturating_sub(b * LANES));
        masks[b] = up_to(end) & !up_to(before);
        // SAFETY: the mask lets only valid scores be read.
        let read = unsafe { _mm512_maskz_loadu_ps(masks[b], scores.add(b * LANES)) };
        let scaled = _mm512_mul_ps(read, _mm512_set1_ps(of.scale));
        let capped = of.cap.map_or(scaled, |cap| soft_cap(scaled, cap));
        s[b] = _mm512_mask_mov_ps(lowest, masks[b], capped);
    }
    let largest = _mm512_max_ps(_mm512_max_ps(s[0], s[1]), _mm512_max_ps(s[2], s[3]));
    let max = softmax.max.max(_mm512_reduce_max_ps(largest));
    for b in 0..TILE_BLOCKS {
        s[b] = _mm512_maskz_mov_ps(masks[b], exp(_mm512_sub_ps(s[b], _mm512_set1_ps(max))));
        // SAFETY: a tile of scores.
        unsafe { _mm512_storeu_ps(scores.add(b * LANES), s[b]) };
    }
    let sum = _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(s[0], s[1]), _mm512_add_ps(s[2], s[3])));
    let factor = _mm512_cvtss_f32(exp(_mm512_set1_ps(softmax.max - max)));
    *softmax = Softmax { max, sum: softmax.sum * factor + sum };
    factor
}

/// All of dim for Q queries.
///
/// # Safety
/// As `Kernels::mix` with Q factors; the machine has AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn mix<T: Wide, const Q: usize>(job: &Mix<'_, T>) {
    let mut d = 0;
    while d < job.dim {
        // SAFETY: columns d.. of dim, as many as each call's width.
        unsafe {
            match job.dim - d {
                64.. => d += mix_columns::<T, Q, 4, false>(job, d),
                32.. => d += mix_columns::<T, Q, 2, false>(job, d),
                16.. => d += mix_columns::<T, Q, 1, false>(job, d),
                _ => d += mix_columns::<T, Q, 1, true>(job, d),
            }
        }
    }
}

/// C vectors of columns from `d`, or the last 8 columns (`HALF`); returns how many columns.
///
/// # Safety
/// As [`mix`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn mix_columns<T: Wide, const Q: usize, const C: usize, const HALF: bool>(
    job: &Mix<'_, T>,
    d: usize,
) -> usize {
    let mask = if HALF { first(8) } else { u16::MAX };
    let mut sums = [[_mm512_setzero_ps(); C]; Q];
    // SAFETY: accumulators, weights and values of the queries, keys and columns the caller names.
    unsafe {
        for i in 0..Q {
            for c in 0..C {
                let before = _mm512_maskz_loadu_ps(mask, job.acc.add(i * job.dim + d + c * LANES));
                sums[i][c] = _mm512_mul_ps(before, _mm512_set1_ps(job.factors[i]));
            }
        }
        let mut j = job.keys.start;
        while j < job.keys.end {
            let end = job.keys.end.min(j - j % BLOCK + BLOCK);
            let from = j % BLOCK * job.dim + d;
            let mut v = job.v[j / BLOCK].add(from);
            let ahead = job.ahead[j / BLOCK];
            let step = if ahead.is_null() { 0 } else { job.dim };
            let mut ahead = if ahead.is_null() { v } else { ahead.wrapping_add(from) };
            while j < end {
                for c in 0..C {
                    _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(c * LANES).cast());
                }
                ahead = ahead.wrapping_add(step);
                let vs: [__m512; C] =
                    std::array::from_fn(
                        |c| if HALF { T::load_part(v, 8) } else { T::load(v.add(c * LANES)) },
                    );
                for i in 0..Q {
                    let weight = _mm512_set1_ps(*job.weights.add(i * TILE + j));
                    for c in 0..C {
                        sums[i][c] = _mm512_fmadd_ps(weight, vs[c], sums[i][c]);
                    }
                }
                v = v.wrapping_add(job.dim);
                j += 1;
            }
        }
        for i in 0..Q {
            for c in 0..C {
                _mm512_mask_storeu_ps(job.acc.add(i * job.dim + d + c * LANES), mask, sums[i][c]);
            }
        }
    }
    if HALF { 8 } else { C * LANES }
}
