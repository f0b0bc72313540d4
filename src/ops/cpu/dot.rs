//! A panel of weight rows against all rows of activations: the inner loop of a linear layer.
//!
//! Every output is one dot product with one chain of additions, in an order that depends on K and on
//! the instruction set alone. Panels and row tiles only choose which dot products run side by side,
//! so they may be cut anywhere. No tensors, no threads in here.

use super::{Element, Isa, SharedMut, dot_scalar};

/// Weight rows of a panel at most.
pub const PANEL_ROWS: usize = 64;

/// What one task computes: `dst[0..rows, column..column + weight rows] (+)= x · wᵀ + bias`.
pub struct Panel<'a, W, X> {
    /// `[weight rows, k]`, 1 to [`PANEL_ROWS`] rows.
    pub w: &'a [W],
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

/// The pairs of stored types that have a kernel.
pub trait Pair: Element {
    type X: Element;
}

/// Computes a panel.
///
/// # Safety
/// `panel.dst` holds `[rows, stride]` elements, the panel's columns lie within the stride and no
/// other thread touches them meanwhile; the machine has `isa`.
pub unsafe fn panel<W: Element, X: Element>(isa: Isa, panel: &Panel<'_, W, X>) {
    match isa {
        // SAFETY: the caller's promises are passed on.
        _ => unsafe { dot_scalar::panel(panel) },
    }
}
