//! The loops of attention without intrinsics, for any machine.
//!
//! Queries stay f32, keys and values are widened as they are read. Also holds the plain exponential
//! that the vector ones follow term by term.

use std::marker::PhantomData;
use std::ops::Range;

use super::Element;
use super::attention::{BLOCK, Kernels, Mix, Scores, Softmax, TILE};
use super::dot_scalar::dot;

/// Plain loops over a cache of `T`.
pub struct Plain<T>(PhantomData<T>);

impl<T: Element> Kernels for Plain<T> {
    type Kv = T;
    type Query = f32;

    unsafe fn scores(q: *const f32, n: usize, k: *const T, dim: usize, scores: *mut f32, _ahead: *const T) {
        for i in 0..n {
            for j in 0..BLOCK {
                // SAFETY: the caller's promise: q is [n, dim], k is [BLOCK, dim], scores are [n, TILE].
                unsafe {
                    let q = std::slice::from_raw_parts(q.add(i * dim), dim);
                    let k = std::slice::from_raw_parts(k.add(j * dim), dim);
                    *scores.add(i * TILE + j) = dot(k, q);
                }
            }
        }
    }

    unsafe fn weigh(scores: *mut f32, keys: Range<usize>, of: Scores, softmax: &mut Softmax) -> f32 {
        // SAFETY: these scores are written.
        let scores = unsafe { std::slice::from_raw_parts_mut(scores.add(keys.start), keys.len()) };
        let mut max = softmax.max;
        for s in scores.iter_mut() {
            *s *= of.scale;
            if let Some(cap) = of.cap {
                *s = soft_cap(*s, cap);
            }
            max = if *s > max { *s } else { max };
        }
        let factor = exp(softmax.max - max);
        let mut sum = 0.0;
        for s in scores.iter_mut() {
            *s = exp(*s - max);
            sum += *s;
        }
        *softmax = Softmax { max, sum: softmax.sum * factor + sum };
        factor
    }

    unsafe fn mix(job: &Mix<'_, T>) {
        let dim = job.dim;
        for (i, factor) in job.factors.iter().enumerate() {
            // SAFETY: the caller's promise: acc is [n, dim], weights are [n, TILE], v covers the keys.
            unsafe {
                let acc = std::slice::from_raw_parts_mut(job.acc.add(i * dim), dim);
                acc.iter_mut().for_each(|a| *a *= factor);
                for j in job.keys.clone() {
                    let weight = *job.weights.add(i * TILE + j);
                    let v = std::slice::from_raw_parts(job.v[j / BLOCK].add(j % BLOCK * dim), dim);
                    for (a, v) in acc.iter_mut().zip(v) {
                        *a += weight * v.widen();
                    }
                }
            }
        }
    }
}

/// Below this, e^x is taken to be zero (the smallest normal number is e^−87.34).
pub const EXP_LOW: f32 = -87.0;
/// ln 2 in two parts: n · `LN2_HIGH` is exact for the n that occur.
pub const LN2_HIGH: f32 = 0.693_359_4;
pub const LN2_LOW: f32 = -2.121_944_4e-4;
/// Coefficients of x⁷ … x² of e^x − 1 − x on ±ln 2 / 2 (Cephes `expf`).
pub const EXP_TERMS: [f32; 6] =
    [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1];

/// cap · tanh(x / cap), by the exponential of what is no more than 0.
pub fn soft_cap(x: f32, cap: f32) -> f32 {
    let small = exp((x / cap).abs() * -2.0);
    (cap * (1.0 - small) / (1.0 + small)).copysign(x)
}

/// e^x for x ≤ 0 to about one part in 10⁷; NaN stays NaN.
pub fn exp(x: f32) -> f32 {
    if x < EXP_LOW {
        return 0.0;
    }
    let n = (x * std::f32::consts::LOG2_E).round_ties_even();
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let poly = EXP_TERMS.iter().fold(0.0, |acc, c| acc * r + c);
    // n is a whole number between −126 and 0, or NaN (whose product is NaN in any case).
    let power = f32::from_bits(((n as i32 + 127) as u32) << 23);
    (poly * r * r + r + 1.0) * power
}
