//! Money of single points, for the table: what their megawatt-hours earn and what their tokens' energy costs.
//!
//! Inside the boundary of the point's energy. The verdict is made elsewhere (`economics`).

use super::report::{Energy, Point};
use crate::economics::estimate::Estimate;
use crate::economics::inference::{Shape, TokenPrices};
use crate::quantity::JOULES_PER_MWH;

const JOULES_PER_KWH: f64 = 3.6e6;

/// Revenue of a megawatt-hour spent as in this point, inside the boundary of its energy.
pub fn usd_per_mwh(point: &Point, energy: &Energy, prices: &TokenPrices) -> Option<Estimate> {
    let shape = Shape {
        input_tokens: point.input_tokens as f64,
        cached_tokens: 0.0,
        output_tokens: point.output_tokens as f64,
    };
    let value = shape.revenue_usd(prices) / energy.joules * JOULES_PER_MWH;
    let efficiency = energy.tokens_per_joule?;
    value.is_finite().then(|| {
        let end = |end: f64| value * end / efficiency.value;
        Estimate::new(value, end(efficiency.low), end(efficiency.high))
    })
}

/// What the energy of a million tokens costs at a price of power, inside the boundary of the energy.
pub fn usd_per_million_tokens(energy: &Energy, usd_per_mwh: f64) -> Option<f64> {
    Some(energy.joules_per_token?.value * 1e6 / JOULES_PER_MWH * usd_per_mwh)
}

pub fn tokens_per_kwh(energy: &Energy) -> Option<f64> {
    Some(energy.tokens_per_joule?.value * JOULES_PER_KWH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::report::Kind;
    use crate::measure::testing;

    /// One row of the worked table in `docs/economics.md`: 19.7 token/J at $0.138 a million is $9,787 for
    /// a megawatt-hour of the board.
    #[test]
    fn money_of_a_point() {
        let point = testing::point(Kind::Concurrency, 256, 1970.0, 100.0);
        let prices = TokenPrices {
            usd_per_million_input_tokens: 0.0,
            usd_per_million_cached_tokens: 0.0,
            usd_per_million_output_tokens: 0.138,
        };
        let earned = usd_per_mwh(&point, &point.energy[0], &prices).unwrap();
        assert!((earned.value / 9787.0 - 1.0).abs() < 1e-3, "{earned:?}");
        assert!((tokens_per_kwh(&point.energy[0]).unwrap() / 70.92e6 - 1.0).abs() < 1e-3);
        let cost = usd_per_million_tokens(&point.energy[0], 50.0).unwrap();
        assert!((cost - 1e6 / 19.7 / 3.6e9 * 50.0).abs() < 1e-9);
    }
}
