//! A panel of weight rows against all rows of activations: the inner loop of a linear layer.
//!
//! Every output is one dot product with one chain of additions, in an order that depends on K and on
//! the instruction set alone. Panels and row tiles only choose which dot products run side by side,
//! so they may be cut anywhere. No tensors, no threads in here.

use half::{bf16, f16};

#[cfg(target_arch = "x86_64")]
use super::dot_avx2::Avx2;
#[cfg(target_arch = "x86_64")]
use super::dot_avx512::{Avx512, Bf16Pairs, Widened};
use super::{Element, Isa, SharedMut, dot_scalar};

/// Weight rows of a panel at most.
pub const PANEL_ROWS: usize = 64;

/// What one task computes: `dst[0..rows, column..column + weight rows] (+)= x · wᵀ + bias`.
pub struct Panel<'a, W, X> {
    /// `[weight rows, k]`, 1 to [`PANEL_ROWS`] rows.
    pub w: &'a [W],
    /// The weights that the same thread turns to next, or nothing.
    pub next: &'a [W],
    /// `[rows, k]`
    pub x: &'a [X],
    pub k: usize,
    pub rows: usize,
    /// One for each weight row of the panel; zeros where the layer has none.
    pub bias: &'a [f32; PANEL_ROWS],
    pub accumulate: bool,
    /// `[rows, stride]`; nobody else writes these columns.
    pub dst: SharedMut<f32>,
    pub stride: usize,
    pub column: usize,
}

impl<W, X> Panel<'_, W, X> {
    pub fn weight_rows(&self) -> usize {
        self.w.len() / self.k
    }
}

/// Where a tile lies in its panel.
#[derive(Clone, Copy)]
pub struct Place {
    /// First weight row.
    pub n: usize,
    /// Distance between the tile's weight rows.
    pub spread: usize,
    /// First activation row.
    pub row: usize,
    /// Which of the same four rows of the next panel to fetch meanwhile: from, to.
    pub fetch: (usize, usize),
}

/// The tiles of an instruction set: 4 weight rows or 1 × a few activation rows.
pub trait Tiles {
    type W: Element;
    type X: Element;
    /// Activation rows of a tile at most.
    const ROWS: usize;

    /// Computes a tile of M weight rows (4 or 1) × `count` activation rows.
    ///
    /// # Safety
    /// The tile lies within the panel, which is as [`panel`] asks; the machine has the instruction set.
    unsafe fn tile<const M: usize>(p: &Panel<'_, Self::W, Self::X>, at: Place, count: usize);
}

impl<W, X> Panel<'_, W, X> {
    /// Writes the outputs of one activation row of a tile.
    ///
    /// # Safety
    /// As [`Tiles::tile`]; `row` is within the tile.
    #[inline(always)]
    pub unsafe fn store(&self, at: Place, row: usize, totals: &[f32]) {
        for (m, total) in totals.iter().enumerate() {
            let n = at.n + m * at.spread;
            let value = total + self.bias[n];
            // SAFETY: the output is a row and a column of the panel.
            unsafe {
                let out = self.dst.at((at.row + row) * self.stride + self.column + n);
                *out = if self.accumulate { *out + value } else { value };
            }
        }
    }
}

/// A weight type and an activation type that have kernels.
pub trait Pair<X: Element>: Element {
    #[cfg(target_arch = "x86_64")]
    type Avx512: Tiles<W = Self, X = X>;
    #[cfg(target_arch = "x86_64")]
    type Avx2: Tiles<W = Self, X = X>;
}

/// Declares the pairs, each with its way of multiplying.
macro_rules! pairs {
    ($($w:ty, $x:ty => $avx512:ty;)*) => {$(
        impl Pair<$x> for $w {
            #[cfg(target_arch = "x86_64")]
            type Avx512 = Avx512<$avx512>;
            #[cfg(target_arch = "x86_64")]
            type Avx2 = Avx2<$w, $x>;
        }
    )*};
}

pairs! {
    bf16, bf16 => Bf16Pairs;
    f32, f32 => Widened<f32, f32>;
    f16, f32 => Widened<f16, f32>;
    bf16, f32 => Widened<bf16, f32>;
    f32, bf16 => Widened<f32, bf16>;
}

/// Computes a panel.
///
/// # Safety
/// `panel.dst` holds `[rows, stride]` elements, the panel's columns lie within the stride and no
/// other thread touches them meanwhile; the machine has `isa`.
pub unsafe fn panel<W: Pair<X>, X: Element>(isa: Isa, panel: &Panel<'_, W, X>) {
    // SAFETY: the caller's promises are passed on.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => sweep::<W::Avx512>(panel),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => sweep::<W::Avx2>(panel),
            _ => dot_scalar::panel(panel),
        }
    }
}

/// Passes the activations' row tiles over a panel.
///
/// # Safety
/// As [`panel`]; the machine has the instruction set of `T`.
pub unsafe fn sweep<T: Tiles>(p: &Panel<'_, T::W, T::X>) {
    let weights = p.weight_rows();
    let quarter = weights / 4;
    let sweeps = p.rows.div_ceil(T::ROWS);
    for sweep in 0..sweeps {
        // Row tiles as even as can be.
        let row = sweep * p.rows / sweeps;
        let count = (sweep + 1) * p.rows / sweeps - row;
        // The first sweep fetches the weights from memory: four long streams, one in each quarter of
        // the panel, are read half again as fast as four rows side by side. Later sweeps find them cached.
        let (step, spread) = if sweep == 0 { (1, quarter) } else { (4, 1) };
        let fetch = if p.next.is_empty() { (0, 0) } else { fetched(sweep, sweeps) };
        // SAFETY: each tile's weight rows and activation rows lie within the panel's.
        unsafe {
            for n in 0..quarter {
                T::tile::<4>(p, Place { n: n * step, spread, row, fetch }, count);
            }
            for n in 4 * quarter..weights {
                T::tile::<1>(p, Place { n, spread: 1, row, fetch: (0, 0) }, count);
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
