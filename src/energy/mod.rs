//! L4a. Whose joules they are: closed windows of the meters × the engines' step log → joules of each request.
//!
//! For every meter, settled shares + idle + overhead = what it counted. Requests are told the joules of one
//! boundary, the innermost that is metered; others are attributed for metrics only. The rule and its reasons:
//! `docs/decisions/004-energy-attribution.md`.

mod book;
mod intervals;
mod ledger;
#[cfg(test)]
mod tests;

pub use book::MeterTotals;
pub use ledger::{AccountHandle, Ledger};

use crate::power::{Boundary, Method};
use crate::quantity::Joules;

/// Energy of one request, inside one boundary.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RequestEnergy {
    pub prefill: Joules,
    pub decode: Joules,
    pub method: Method,
    pub boundary: Boundary,
    /// Every window it had a part in is closed; before that, its last part is an estimate.
    pub settled: bool,
}

impl RequestEnergy {
    pub fn total(&self) -> Joules {
        self.prefill + self.decode
    }
}

/// Power of a step of so many tokens, relative to a full one. A board that decodes a single stream draws
/// well over half of what it draws with 256 of them (429 of 690 W on an H100), and about evenly more with
/// each doubling in between. Only ratios matter: the meter says how many watts it was.
pub fn relative_power(rows: usize) -> f64 {
    const ONE_ROW: f64 = 429.0 / 690.0;
    ONE_ROW + (1.0 - ONE_ROW) * ((rows.max(1) as f64).log2() / 8.0).min(1.0)
}
