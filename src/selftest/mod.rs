//! L4d. What a device is tried with before it is trusted: each operation against sums in f64, a model against the
//! CPU, a captured step against the step itself.
//!
//! Means of a device in, outcomes out. Knows no command line; `tests/it/selftest.rs` runs the same.

mod attention;
mod experts;
pub mod model;
mod numbers;
mod table;

use crate::ops::exec::Exec;

/// One thing that was tried.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub operation: &'static str,
    /// Sizes and types, as one would say them.
    pub case: String,
    /// Largest error over what is tolerated: up to 1 is passed. Infinite for what is not a number, or was not run.
    pub error: f64,
    /// Where it was largest, got and wanted; or why it was not run.
    pub worst: String,
}

impl Outcome {
    pub fn passed(&self) -> bool {
        self.error <= 1.0
    }

    fn failed(operation: &'static str, case: String, why: &candle_core::Error) -> Outcome {
        Outcome { operation, case, error: f64::INFINITY, worst: why.to_string() }
    }
}

/// How large the cases are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// Where kernels run on the host, a thread at a time.
    Small,
    Full,
}

/// Every operation's cases whose operation `wanted` names.
pub fn operations(on: &Exec, size: Size, wanted: &dyn Fn(&str) -> bool) -> Vec<Outcome> {
    let mut all = Vec::new();
    for (operation, cases) in table::OPERATIONS {
        if wanted(operation) {
            all.extend(cases(on, size));
        }
    }
    all
}
