//! The loops of attention on AVX2: everything in f32, keys and values widened as they are read.
//!
//! How many queries run side by side changes no query's arithmetic.

use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::ops::Range;

use super::attention::{BLOCK, Kernels, Mix, Scores, Softmax, TILE};
use super::avx2::{Eight, LANES, exp, sum_each};

/// AVX2 loops over a cache of `T`.
pub struct Avx2<T>(PhantomData<T>);

impl<T: Eight> Kernels for Avx2<T> {
    type Kv = T;
    type Query = f32;

    unsafe fn scores(q: *const f32, n: usize, k: *const T, dim: usize, scores: *mut f32, ahead: *const T) {
        let mut i = 0;
        while i < n {
            // SAFETY: the queries from i to n and their scores are the caller's.
            unsafe {
                let (q, scores) = (q.add(i * dim), scores.add(i * TILE));
                let ahead = if i == 0 { ahead } else { std::ptr::null() };
                i += match n - i {
                    2.. => score::<T, 2>(q, k, dim, scores, ahead),
                    _ => score::<T, 1>(q, k, dim, scores, ahead),
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

/// Q queries × a block's keys, four keys at a time; returns Q.
///
/// # Safety
/// q: `[Q, dim]`, k: `[BLOCK, dim]`, scores: `[Q, TILE]`; the machine has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn score<T: Eight, const Q: usize>(
    q: *const f32,
    k: *const T,
    dim: usize,
    scores: *mut f32,
    ahead: *const T,
) -> usize {
    for first in (0..BLOCK).step_by(4) {
        let mut sums = [[_mm256_setzero_ps(); 4]; Q];
        // SAFETY: Q queries and the block's keys `first`.. `first + 4`; dim is a multiple of 8.
        unsafe {
            for d in (0..dim).step_by(LANES) {
                let qs: [__m256; Q] = std::array::from_fn(|i| _mm256_loadu_ps(q.add(i * dim + d)));
                for j in 0..4 {
                    let at = (first + j) * dim + d;
                    if !ahead.is_null() {
                        _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(at).cast());
                    }
                    let k = T::load(k.add(at));
                    for i in 0..Q {
                        sums[i][j] = _mm256_fmadd_ps(k, qs[i], sums[i][j]);
                    }
                }
            }
            for i in 0..Q {
                _mm_storeu_ps(scores.add(i * TILE + first), sum_each(sums[i]));
            }
        }
    }
    Q
}

/// cap · tanh(x / cap).
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn soft_cap(x: __m256, cap: f32) -> __m256 {
    let (one, sign) = (_mm256_set1_ps(1.0), _mm256_set1_ps(-0.0));
    let size = _mm256_div_ps(_mm256_andnot_ps(sign, x), _mm256_set1_ps(cap));
    let small = exp(_mm256_mul_ps(size, _mm256_set1_ps(-2.0)));
    let tanh = _mm256_div_ps(_mm256_sub_ps(one, small), _mm256_add_ps(one, small));
    _mm256_or_ps(_mm256_mul_ps(tanh, _mm256_set1_ps(cap)), _mm256_and_ps(x, sign))
}

/// # Safety
/// As `Kernels::weigh`; the machine has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn weigh(scores: *mut f32, keys: Range<usize>, of: Scores, softmax: &mut Softmax) -> f32 {
    // SAFETY: a tile of scores of which `keys` are read.
    let tile = unsafe {
        for i in (0..keys.start).chain(keys.end..TILE) {
            // Capped, it would be a number.
            scores.add(i).write(f32::NEG_INFINITY);
        }
        std::slice::from_raw_parts_mut(scores, TILE)
    };
    if let Some(cap) = of.cap {
        for eight in tile.as_chunks_mut::<LANES>().0 {
            // SAFETY: eight floats.
            unsafe {
                let read = _mm256_loadu_ps(eight.as_ptr());
                let capped = soft_cap(_mm256_mul_ps(read, _mm256_set1_ps(of.scale)), cap);
                let lowest = _mm256_set1_ps(f32::NEG_INFINITY);
                let unseen = _mm256_cmp_ps::<_CMP_EQ_OQ>(read, lowest);
                _mm256_storeu_ps(eight.as_mut_ptr(), _mm256_blendv_ps(capped, lowest, unseen));
            }
        }
    }
    let scale = if of.cap.is_some() { 1.0 } else { of.scale };
    let mut largest = _mm256_set1_ps(f32::NEG_INFINITY);
    for eight in tile.as_chunks_mut::<LANES>().0 {
        // SAFETY: eight floats, here and below.
        unsafe {
            let s = _mm256_mul_ps(_mm256_loadu_ps(eight.as_ptr()), _mm256_set1_ps(scale));
            largest = _mm256_max_ps(largest, s);
            _mm256_storeu_ps(eight.as_mut_ptr(), s);
        }
    }
    let mut lanes = [0.0f32; LANES];
    // SAFETY: as above.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), largest) };
    let max = lanes.into_iter().fold(softmax.max, f32::max);
    let mut sums = [_mm256_setzero_ps(); 4];
    for (i, eight) in tile.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        // SAFETY: as above.
        unsafe {
            let weights = exp(_mm256_sub_ps(_mm256_loadu_ps(eight.as_ptr()), _mm256_set1_ps(max)));
            sums[i % 4] = _mm256_add_ps(sums[i % 4], weights);
            _mm256_storeu_ps(eight.as_mut_ptr(), weights);
        }
    }
    let mut four = [0.0f32; 4];
    // SAFETY: four floats.
    unsafe { _mm_storeu_ps(four.as_mut_ptr(), sum_each(sums)) };
    let sum = (four[0] + four[1]) + (four[2] + four[3]);
    let factor = _mm256_cvtss_f32(exp(_mm256_set1_ps(softmax.max - max)));
    *softmax = Softmax { max, sum: softmax.sum * factor + sum };
    factor
}

/// All of dim for Q queries.
///
/// # Safety
/// As `Kernels::mix` with Q factors; the machine has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn mix<T: Eight, const Q: usize>(job: &Mix<'_, T>) {
    let mut d = 0;
    while d < job.dim {
        // SAFETY: columns d.. of dim, as many as each call's width.
        unsafe {
            match job.dim - d {
                16.. => d += mix_columns::<T, Q, 2>(job, d),
                _ => d += mix_columns::<T, Q, 1>(job, d),
            }
        }
    }
}

/// C vectors of columns from `d`; returns how many columns.
///
/// # Safety
/// As [`mix`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn mix_columns<T: Eight, const Q: usize, const C: usize>(job: &Mix<'_, T>, d: usize) -> usize {
    let mut sums = [[_mm256_setzero_ps(); C]; Q];
    // SAFETY: accumulators, weights and values of the queries, keys and columns the caller names.
    unsafe {
        for i in 0..Q {
            for c in 0..C {
                let before = _mm256_loadu_ps(job.acc.add(i * job.dim + d + c * LANES));
                sums[i][c] = _mm256_mul_ps(before, _mm256_set1_ps(job.factors[i]));
            }
        }
        for j in job.keys.clone() {
            let at = j % BLOCK * job.dim + d;
            let v = job.v[j / BLOCK].add(at);
            _mm_prefetch::<_MM_HINT_T1>(job.ahead[j / BLOCK].wrapping_add(at).cast());
            let vs: [__m256; C] = std::array::from_fn(|c| T::load(v.add(c * LANES)));
            for i in 0..Q {
                let weight = _mm256_set1_ps(*job.weights.add(i * TILE + j));
                for c in 0..C {
                    sums[i][c] = _mm256_fmadd_ps(weight, vs[c], sums[i][c]);
                }
            }
        }
        for i in 0..Q {
            for c in 0..C {
                _mm256_storeu_ps(job.acc.add(i * job.dim + d + c * LANES), sums[i][c]);
            }
        }
    }
    C * LANES
}
