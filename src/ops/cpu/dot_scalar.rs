//! The dot-product panel in plain loops, for any machine.
//!
//! Sixteen partial sums a dot product, so that the compiler may use whatever vectors the target has;
//! they are added up in the same tree as the intrinsic kernels add their lanes.

use super::Element;
use super::dot::Panel;

const LANES: usize = 16;

/// Computes a panel.
///
/// # Safety
/// As `dot::panel` asks.
pub unsafe fn panel<W: Element, X: Element>(p: &Panel<'_, W, X>) {
    for r in 0..p.rows {
        let x = &p.x[r * p.k..(r + 1) * p.k];
        for n in 0..p.weight_rows() {
            let w = &p.w[n * p.k..(n + 1) * p.k];
            let value = dot(w, x) + p.bias[n];
            // SAFETY: row r and column `column + n` lie within dst, and the column is ours alone.
            unsafe {
                let out = p.dst.at(r * p.stride + p.column + n);
                *out = if p.accumulate { *out + value } else { value };
            }
        }
    }
}

/// The dot product of two slices of equal length.
pub fn dot<W: Element, X: Element>(w: &[W], x: &[X]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (w_whole, w_tail) = w.as_chunks::<LANES>();
    let (x_whole, x_tail) = x.as_chunks::<LANES>();
    for (w, x) in w_whole.iter().zip(x_whole) {
        for i in 0..LANES {
            sums[i] += w[i].widen() * x[i].widen();
        }
    }
    for (i, (w, x)) in w_tail.iter().zip(x_tail).enumerate() {
        sums[i] += w.widen() * x.widen();
    }
    sum_lanes(sums)
}

/// The sum of sixteen lanes: quarters of four first, then the quarters.
pub fn sum_lanes(s: [f32; LANES]) -> f32 {
    let quarter = |q: usize| (s[q] + s[q + 2]) + (s[q + 1] + s[q + 3]);
    (quarter(0) + quarter(4)) + (quarter(8) + quarter(12))
}
