//! Intervals of what a comparison divides: medians of latencies, and quotients of independent estimates.

use crate::economics::estimate::Estimate;
use crate::measure::report::Quantiles;

/// Two-sided 95 % of the normal distribution.
const Z_95: f64 = 1.96;

/// The 95 % interval of a median of so many requests: half of it is 1.96 ÷ (2·f·√n), f the density at the
/// median (David and Nagaraja, *Order Statistics*, 3rd ed., section 2.5). Taken for f is the mean density
/// from there to the 90th percentile, rarely the higher of the two, so the interval is rather too wide. Tokens
/// of one request are not independent, so requests are counted.
pub(super) fn of_median(q: Quantiles, requests: u64) -> Estimate {
    let density = 0.4 / (q.p90 - q.p50);
    let half = Z_95 / (2.0 * density * (requests as f64).sqrt());
    if !half.is_finite() {
        return Estimate::exact(q.p50);
    }
    Estimate::new(q.p50, (q.p50 - half).max(0.0), q.p50 + half)
}

/// Independent errors, added as squares of their logarithms; `gain` widens both ends on top. `None` where the
/// ratio is not a number; an end that reaches zero widens the interval to ten times.
pub(super) fn quotient(top: Estimate, bottom: Estimate, gain: f64) -> Option<Estimate> {
    let value = top.value / bottom.value;
    if !(value.is_finite() && value > 0.0) {
        return None;
    }
    let distance = |from: f64, to: f64| {
        let d = (to / from).ln().abs();
        if d.is_finite() { d.min(10f64.ln()) } else { 10f64.ln() }
    };
    let up = distance(top.value, top.high).hypot(distance(bottom.value, bottom.low));
    let down = distance(top.value, top.low).hypot(distance(bottom.value, bottom.high));
    let ratio = Estimate::new(value, value * (-down).exp() / (1.0 + gain), value * up.exp() * (1.0 + gain));
    ratio.is_sound().then_some(ratio)
}
