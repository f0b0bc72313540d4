//! A panel of weight rows against all rows of activations: the inner loop of a linear layer.
//!
//! Every output is one dot product with one chain of additions, in an order that depends on K and on
//! the instruction set alone. Panels and row tiles only choose which dot products run side by side,
//! so they may be cut anywhere. No tensors, no threads in here.

use half::{bf16, f16};

#[cfg(target_arch = "x86_64")]
use super::dot_avx512::{self, Bf16Pairs, Product, Widened};
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

/// A weight type and an activation type that have kernels.
pub trait Pair<X: Element>: Element {
    #[cfg(target_arch = "x86_64")]
    type Avx512: Product<W = Self, X = X>;
}

/// Declares the pairs, each with its way of multiplying.
macro_rules! pairs {
    ($($w:ty, $x:ty => $avx512:ty;)*) => {$(
        impl Pair<$x> for $w {
            #[cfg(target_arch = "x86_64")]
            type Avx512 = $avx512;
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
            Isa::Avx512 => dot_avx512::panel::<W::Avx512>(panel),
            _ => dot_scalar::panel(panel),
        }
    }
}

/// Cuts rows into tiles of at most `most`, as even as can be: (first row, rows).
pub fn row_tiles(rows: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    let tiles = rows.div_ceil(most);
    (0..tiles).map(move |t| (t * rows / tiles, (t + 1) * rows / tiles - t * rows / tiles))
}
