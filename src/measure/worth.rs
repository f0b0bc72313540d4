//! What a report is worth: its best point with a market and a site → the verdict's inputs and its outcome.
//!
//! Also the money of single points for the table. No arithmetic of mining here: that is `economics`.

use super::report::{Economics, Energy, Kind, Point, Report};
use crate::economics::estimate::{Basis, Estimate};
use crate::economics::inference::{Efficiency, Served, Shape, TokenPrices};
use crate::economics::market::Market;
use crate::economics::miners::Miner;
use crate::economics::site::Site;
use crate::economics::verdict::{Inputs, evaluate};
use crate::power::Method;
use crate::quantity::JOULES_PER_MWH;

/// Taken for instruments that do not say.
const GAIN_ERROR: f64 = 0.05;
const JOULES_PER_KWH: f64 = 3.6e6;

/// What the bench was told of the world.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct World {
    pub market: Option<Market>,
    pub site: Option<Site>,
    pub miners: Vec<Miner>,
    /// Instead of the market's price for the model.
    pub token_prices: Option<TokenPrices>,
}

/// Full load: neither slowed down nor at a given rate.
fn is_full_load(point: &Point) -> bool {
    matches!(point.kind, Kind::Sustained | Kind::Concurrency)
}

/// The point to judge by: the sustained one, else the thriftiest of the concurrency sweep.
pub fn best(report: &Report) -> Option<&Point> {
    let efficiency = |p: &Point| {
        let energy = report.primary_energy(p).and_then(|e| e.tokens_per_joule);
        energy.map_or(p.output_tokens_per_second.value, |e| e.value)
    };
    let full = || report.points.iter().filter(|p| is_full_load(p));
    let sustained = full().find(|p| p.kind == Kind::Sustained);
    sustained.or_else(|| full().max_by(|a, b| efficiency(a).total_cmp(&efficiency(b))))
}

/// What the report found out about serving; `None` without a meter or without tokens.
pub fn served(report: &Report) -> Option<(Served, Shape)> {
    let point = best(report)?;
    let energy = report.primary_energy(point)?;
    let output_tokens_per_joule = energy.tokens_per_joule?;
    let shape = Shape {
        input_tokens: point.input_tokens as f64 / point.output_tokens as f64,
        cached_tokens: 0.0,
        output_tokens: 1.0,
    };
    // Per request, where whole requests were seen.
    let requests = if point.mean_output_tokens > 0.0 { point.mean_output_tokens } else { 1.0 };
    let shape = Shape { input_tokens: shape.input_tokens * requests, output_tokens: requests, ..shape };
    let efficiency = match (energy.joules_per_prefill_token, energy.joules_per_decode_token) {
        (Some(joules_per_prefill_token), Some(joules_per_decode_token)) => {
            Efficiency::ByPhase { joules_per_prefill_token, joules_per_decode_token }
        }
        _ => Efficiency::Output { output_tokens_per_joule },
    };
    let served = Served {
        model: report.model.id.clone(),
        concurrency: point.concurrency,
        efficiency,
        load_watts: energy.watts.value,
        // Noise may put an idle window above a load that is nearly none.
        idle_watts: report.idle_watts(energy.scope()).map(|w| w.min(energy.watts.value)),
        basis: Basis {
            method: energy.method.to_string(),
            boundary: energy.boundary.as_str().into(),
            measured: energy.measured,
            assumed: energy.method == Method::Assumed,
        },
        gain_error: if energy.gain_error > 0.0 { energy.gain_error } else { GAIN_ERROR },
    };
    Some((served, shape))
}

/// Judges the report.
pub fn judge(report: &Report, world: &World, now_unix_seconds: u64) -> Economics {
    let (served, shape) = served(report).unzip();
    let inputs = Inputs {
        served,
        shape: shape.unwrap_or(Shape::OUTPUT_ONLY),
        market: world.market.clone(),
        token_prices: world.token_prices,
        site: world.site.clone(),
        miners: world.miners.clone(),
        now_unix_seconds,
    };
    let outcome = evaluate(&inputs);
    Economics { inputs, outcome }
}

/// Prices of the model's tokens, as the verdict takes them.
pub fn token_prices(inputs: &Inputs, model: &str) -> Option<TokenPrices> {
    let of_market = || inputs.market.as_ref()?.token_price(model).map(TokenPrices::from);
    inputs.token_prices.or_else(of_market)
}

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
    use crate::economics::verdict::{Missing, Verdict};
    use crate::measure::testing;

    fn report() -> Report {
        let mut report = testing::report();
        report.points = vec![
            testing::point(Kind::Concurrency, 1, 100.0, 50.0),
            testing::point(Kind::Concurrency, 32, 1000.0, 100.0),
            testing::point(Kind::Duty, 32, 2000.0, 100.0),
        ];
        report
    }

    #[test]
    fn the_best_point_is_judged() {
        let mut report = report();
        assert_eq!(best(&report).unwrap().concurrency, 32);
        let (served, shape) = served(&report).unwrap();
        assert_eq!((served.concurrency, served.load_watts), (32, 100.0));
        assert_eq!((shape.input_tokens, shape.output_tokens), (128.0, 128.0));
        assert!(served.check().is_ok());
        report.points.push(testing::point(Kind::Sustained, 1, 90.0, 50.0));
        assert_eq!(best(&report).unwrap().kind, Kind::Sustained);
    }

    #[test]
    fn without_a_meter_or_on_assumed_watts_it_is_unknown() {
        let mut report = report();
        let reasons = |report: &Report| match judge(report, &World::default(), 0).outcome.verdict {
            Verdict::Unknown { reasons } => reasons,
            other => panic!("{other}"),
        };
        assert!(!reasons(&report).contains(&Missing::Measurement));
        report.points.iter_mut().for_each(|p| p.energy[0].method = Method::Assumed);
        report.primary.as_mut().unwrap().method = Method::Assumed;
        assert!(reasons(&report).contains(&Missing::AssumedWatts));
        report.primary = None;
        assert!(reasons(&report).contains(&Missing::Measurement));
    }

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
