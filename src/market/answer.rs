//! Reads fields of an answer of JSON that may be anything: missing, of another type, out of range.
//!
//! Each getter names the endpoint and the field when it fails. Knows no endpoint by itself.

use std::ops::RangeInclusive;

use serde_json::Value;

use super::MarketError;
use crate::error::printable;

pub(super) const SATS_PER_BTC: f64 = 1e8;
/// 2009 to 2100: what a time may be.
pub(super) const TIMES: RangeInclusive<f64> = 1.2e9..=4.1e9;
pub(super) const DIFFICULTIES: RangeInclusive<f64> = 1e12..=1e17;
pub(super) const HEIGHTS: RangeInclusive<f64> = 800_000.0..=5_000_000.0;
pub(super) const PRICES: RangeInclusive<f64> = 1.0..=1e8;
/// Mean seconds between blocks over days; the aim is 600.
pub(super) const BLOCK_SECONDS: RangeInclusive<f64> = 60.0..=6_000.0;

/// An answer, or a part of one, with its place.
#[derive(Clone, Copy)]
pub(super) struct Answer<'a> {
    pub endpoint: &'a str,
    pub value: &'a Value,
}

impl<'a> Answer<'a> {
    pub fn new(endpoint: &'a str, value: &'a Value) -> Answer<'a> {
        Answer { endpoint, value }
    }

    pub fn error(&self, field: &str, problem: impl Into<String>) -> MarketError {
        MarketError::Field { endpoint: self.endpoint.into(), field: field.into(), problem: problem.into() }
    }

    pub fn field(&self, field: &str) -> Result<&'a Value, MarketError> {
        match self.value.get(field) {
            Some(Value::Null) | None => Err(self.error(field, "missing")),
            Some(value) => Ok(value),
        }
    }

    /// A number, also as a string, within what it can be.
    pub fn number(&self, field: &str, range: RangeInclusive<f64>) -> Result<f64, MarketError> {
        let value = self.field(field)?;
        let number = match value {
            Value::Number(n) => n.as_f64(),
            Value::String(s) => s.trim().parse().ok(),
            _ => None,
        };
        let number = number.ok_or_else(|| self.error(field, format!("{} is not a number", short(value))))?;
        if !range.contains(&number) {
            let (low, high) = range.into_inner();
            return Err(self.error(field, format!("{number} is not plausible: {low} to {high} is")));
        }
        Ok(number)
    }

    /// A whole number.
    pub fn count(&self, field: &str, range: RangeInclusive<f64>) -> Result<u64, MarketError> {
        let number = self.number(field, range)?;
        if number.fract() != 0.0 {
            return Err(self.error(field, format!("{number} is not a whole number")));
        }
        Ok(number as u64)
    }

    /// A number that need not be there; what is there must be right.
    pub fn optional(&self, field: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, MarketError> {
        match self.value.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(_) => self.number(field, range).map(Some),
        }
    }
}

/// The beginning of a foreign value.
fn short(value: &Value) -> String {
    printable(&value.to_string(), 40)
}
