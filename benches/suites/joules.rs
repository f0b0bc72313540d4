//! A criterion measurement in joules: throughput per watt instead of throughput per second.
//!
//! The reading is a counter of millijoules. Sampling must be flat: linear sampling would make its first
//! samples shorter than a meter's tick.

use criterion::Throughput;
use criterion::measurement::{Measurement, ValueFormatter};

/// Measures with a counter that only grows.
pub struct Joules<F: Fn() -> u64>(pub F);

impl<F: Fn() -> u64> Measurement for Joules<F> {
    type Intermediate = u64;
    type Value = f64;

    fn start(&self) -> u64 {
        (self.0)()
    }
    fn end(&self, start: u64) -> f64 {
        (self.0)().saturating_sub(start) as f64 / 1e3
    }
    fn add(&self, a: &f64, b: &f64) -> f64 {
        a + b
    }
    fn zero(&self) -> f64 {
        0.0
    }
    fn to_f64(&self, value: &f64) -> f64 {
        *value
    }
    fn formatter(&self) -> &dyn ValueFormatter {
        &Format
    }
}

struct Format;

impl ValueFormatter for Format {
    fn scale_values(&self, _: f64, _: &mut [f64]) -> &'static str {
        "J"
    }
    fn scale_throughputs(&self, _: f64, throughput: &Throughput, values: &mut [f64]) -> &'static str {
        if let Throughput::Elements(n) = throughput {
            for joules in values {
                *joules = *n as f64 / *joules;
            }
        }
        "token/J"
    }
    fn scale_for_machines(&self, _: &mut [f64]) -> &'static str {
        "J"
    }
}
