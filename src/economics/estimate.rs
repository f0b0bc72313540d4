//! A value with the interval it is known in, and a figure: an estimate with unit, method and boundary.
//!
//! Nothing of the project's report leaves `economics` as a bare number.

use serde::{Deserialize, Serialize};

/// A value and the interval it lies in: `low ≤ value ≤ high`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

impl Estimate {
    /// Known exactly, or with an interval nobody gave.
    pub fn exact(value: f64) -> Estimate {
        Estimate { value, low: value, high: value }
    }

    /// The ends in either order; widened to hold the value.
    pub fn new(value: f64, one_end: f64, other_end: f64) -> Estimate {
        Estimate { value, low: value.min(one_end).min(other_end), high: value.max(one_end).max(other_end) }
    }

    /// `value ± share·value`.
    pub fn within(value: f64, share: f64) -> Estimate {
        Estimate::new(value, value * (1.0 - share), value * (1.0 + share))
    }

    pub fn scaled(self, factor: f64) -> Estimate {
        Estimate::new(self.value * factor, self.low * factor, self.high * factor)
    }

    /// The low end, or the high one.
    pub fn end(self, high: bool) -> f64 {
        if high { self.high } else { self.low }
    }

    pub fn is_sound(self) -> bool {
        self.low <= self.value && self.value <= self.high && self.low.is_finite() && self.high.is_finite()
    }
}

/// How a figure of the bench was come by; the names are those of the meters (`counter`, `gpu_board`, …).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Basis {
    pub method: String,
    /// `gpu_board`, `cpu_package`, `dram`, `node` or `site`; sums are joined with ` + `.
    pub boundary: String,
    /// An instrument said it, during the run.
    pub measured: bool,
    /// Read from a table of nameplates, so that the chain runs: no verdict rests on it.
    pub assumed: bool,
}

/// A number of the report with all that must be known to read it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    pub value: f64,
    pub low: f64,
    pub high: f64,
    /// `$/MWh`, `$/h`, `share`, `$/M token`, `$/PH/day`, `W`.
    pub unit: String,
    pub method: String,
    pub boundary: String,
}

impl Figure {
    pub fn new(estimate: Estimate, unit: &str, method: &str, boundary: &str) -> Figure {
        let Estimate { value, low, high } = estimate;
        Figure { value, low, high, unit: unit.into(), method: method.into(), boundary: boundary.into() }
    }
}
