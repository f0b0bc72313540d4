//! L1. Arithmetic of mining and of serving, from a dated market and a machine's figures. No IO.
//!
//! `docs/economics.md` has the formulas with their units and sources.

mod balance;
pub mod contract;
pub mod estimate;
mod figures;
mod gaps;
pub mod inference;
pub mod market;
pub mod miners;
pub mod mining;
mod reasons;
pub mod site;
pub mod verdict;

/// A table or snapshot that cannot be used; names the entry and the field.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EconomicsError {
    #[error("{0}")]
    Toml(String),
    #[error("{entry}: {field} = {value} is not plausible: {expected}")]
    Implausible { entry: String, field: &'static str, value: f64, expected: &'static str },
    #[error("{entry}: {problem}")]
    Invalid { entry: String, problem: String },
}

/// The value, if it lies in the range.
pub(crate) fn plausible(
    entry: &str,
    field: &'static str,
    value: f64,
    range: std::ops::RangeInclusive<f64>,
    expected: &'static str,
) -> Result<(), EconomicsError> {
    match range.contains(&value) {
        true => Ok(()),
        false => Err(EconomicsError::Implausible { entry: entry.into(), field, value, expected }),
    }
}
