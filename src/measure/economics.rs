//! What a verdict rests on, out of a report and what the operator gives: (`Report`, [`Given`]) → `Economics`.
//!
//! The bench and `report verdict` share it. What is not given comes from the report's own inputs, so that a
//! saved report can be judged again with one thing changed. Reads no file and judges nothing.

use super::report::{Economics, Energy, Kind, Point, Report};
use crate::economics::EconomicsError;
use crate::economics::contract::{PowerContract, PowerPrice};
use crate::economics::estimate::{Basis, Estimate};
use crate::economics::inference::{Efficiency, Served, Shape, TokenPrices};
use crate::economics::market::Market;
use crate::economics::miners::{self, Miner};
use crate::economics::site::Site;
use crate::economics::verdict::{Inputs, evaluate};
use crate::power::Method;

/// An idle window may lie so far above a load that is nearly none.
const IDLE_NOISE: f64 = 0.05;
/// Taken for instruments that do not say.
const GAIN_ERROR: f64 = 0.05;

/// What the operator gives; `None`: as in the report, or absent.
#[derive(Debug, Clone, Default)]
pub struct Given {
    pub market: Option<Market>,
    pub site: Option<Site>,
    pub miners: Option<Vec<Miner>>,
    pub prices: PricesGiven,
    /// A fixed price instead of the contract's; its demand charge and credit stay.
    pub power_usd_per_mwh: Option<f64>,
    pub utilisation: Option<Estimate>,
    /// Another request than the measured one; needs prefill and decode measured apart.
    pub shape: Option<Shape>,
}

/// Dollars per million tokens.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PricesGiven {
    pub input: Option<f64>,
    pub cached: Option<f64>,
    pub output: Option<f64>,
}

#[derive(Debug, thiserror::Error)]
pub enum GivenError {
    #[error(transparent)]
    Invalid(#[from] EconomicsError),
    #[error(
        "a price of {given} tokens alone is not enough: the market has no row for `{model}`; also give the price of {missing} tokens"
    )]
    HalfAPrice { given: &'static str, missing: &'static str, model: String },
    #[error(
        "the report did not measure prefill and decode apart at {concurrency} at once: requests of another shape cannot be priced"
    )]
    OnePhase { concurrency: u32 },
    #[error("there is no sound point with a meter: requests of another shape cannot be priced")]
    NoPoint,
}

/// Judges a report anew.
///
/// # Errors
/// Something given that cannot be right, or not without something else.
pub fn judge(report: &Report, given: Given, now_unix_seconds: u64) -> Result<Economics, GivenError> {
    let inputs = inputs(report, given, now_unix_seconds)?;
    let mut outcome = evaluate(&inputs);
    if !report.complete {
        let because = report.partial_because.as_deref().unwrap_or("the bench did not end");
        outcome.warnings.push(format!("the report is partial: {because}"));
    }
    if let Some((point, _)) = operating_point(report) {
        let flagged = |flag: &String| format!("the point of the verdict is flagged: {flag}");
        outcome.warnings.extend(point.flags.iter().map(flagged));
    }
    Ok(Economics { inputs, outcome })
}

/// The inputs of the verdict.
///
/// # Errors
/// As [`judge`].
pub fn inputs(report: &Report, given: Given, now_unix_seconds: u64) -> Result<Inputs, GivenError> {
    let saved = report.economics.as_ref().map(|e| &e.inputs);
    let model = &report.model.id;
    // A market given now is what counts where it has a row: prices given then are of then.
    let superseded = given.market.as_ref().is_some_and(|m| m.token_price(model).is_some());
    let saved_prices = saved.filter(|_| !superseded).and_then(|s| s.token_prices);
    let market = given.market.or_else(|| saved?.market.clone());
    // Only a shape that was given needs the phases apart.
    let by_phase =
        |s: &&Inputs| matches!(&s.served, Some(Served { efficiency: Efficiency::ByPhase { .. }, .. }));
    let shape = given.shape.or_else(|| saved.filter(by_phase).map(|s| s.shape));
    let miners = match given.miners.or_else(|| Some(saved?.miners.clone())) {
        Some(miners) => miners,
        None => miners::with_own(None)?,
    };
    Ok(Inputs {
        served: served(report, shape)?,
        shape: shape.unwrap_or_else(|| measured_shape(report)),
        token_prices: given.prices.complete(model, market.as_ref(), saved_prices)?,
        market,
        site: site(given.site.or_else(|| saved?.site.clone()), given.power_usd_per_mwh, given.utilisation)?,
        miners,
        now_unix_seconds,
    })
}

/// The point a verdict is about, with its energy in the primary scope: the sustained run if there is one,
/// else the concurrency with the most tokens for a joule.
pub fn operating_point(report: &Report) -> Option<(&Point, &Energy)> {
    let sound = |kind| {
        let of_kind = report.points.iter().filter(move |p| p.kind == kind && p.output_tokens > 0);
        of_kind.filter_map(|p| Some((p, report.primary_energy(p).filter(|e| e.problem.is_none())?)))
    };
    let efficiency = |e: &Energy| e.tokens_per_joule.map_or(0.0, |e| e.value);
    sound(Kind::Sustained)
        .next_back()
        .or_else(|| sound(Kind::Concurrency).max_by(|a, b| efficiency(a.1).total_cmp(&efficiency(b.1))))
}

/// The mean request, with as many input tokens for an output token as the windows had.
fn measured_shape(report: &Report) -> Shape {
    operating_point(report).map_or(Shape::OUTPUT_ONLY, |(point, _)| {
        // Where no whole request was seen the shape is of one output token.
        let output_tokens = if point.mean_output_tokens > 0.0 { point.mean_output_tokens } else { 1.0 };
        let inputs_per_output = point.input_tokens as f64 / point.output_tokens as f64;
        Shape { input_tokens: inputs_per_output * output_tokens, cached_tokens: 0.0, output_tokens }
    })
}

fn served(report: &Report, other_shape: Option<Shape>) -> Result<Option<Served>, GivenError> {
    let Some((point, energy)) = operating_point(report) else {
        return if other_shape.is_some() { Err(GivenError::NoPoint) } else { Ok(None) };
    };
    let efficiency = match (energy.joules_per_prefill_token, energy.joules_per_decode_token) {
        // At the shape that was measured all joules over all output tokens is exact, with the tighter interval.
        _ if other_shape.is_none() => {
            let Some(output_tokens_per_joule) = energy.tokens_per_joule else { return Ok(None) };
            Efficiency::Output { output_tokens_per_joule }
        }
        (Some(joules_per_prefill_token), Some(joules_per_decode_token)) => {
            Efficiency::ByPhase { joules_per_prefill_token, joules_per_decode_token }
        }
        _ => return Err(GivenError::OnePhase { concurrency: point.concurrency }),
    };
    Ok(Some(Served {
        model: report.model.id.clone(),
        concurrency: point.concurrency,
        efficiency,
        load_watts: energy.watts.value,
        idle_watts: report.idle_watts(energy.scope()).map(|w| {
            match w <= energy.watts.value * (1.0 + IDLE_NOISE) {
                true => w.min(energy.watts.value),
                // No noise: it is for the verdict to refuse.
                false => w,
            }
        }),
        basis: Basis {
            method: energy.method.to_string(),
            boundary: energy.boundary.as_str().into(),
            measured: energy.measured,
            assumed: energy.method == Method::Assumed,
        },
        gain_error: if energy.gain_error > 0.0 { energy.gain_error } else { GAIN_ERROR },
    }))
}

fn site(
    site: Option<Site>,
    power_usd_per_mwh: Option<f64>,
    utilisation: Option<Estimate>,
) -> Result<Option<Site>, GivenError> {
    let mut site = site;
    if let Some(usd) = power_usd_per_mwh {
        match &mut site.get_or_insert_default().power {
            Some(contract) => contract.price = PowerPrice::UsdPerMwh(usd),
            power => *power = Some(PowerContract::fixed(usd)),
        }
    }
    if utilisation.is_some() {
        site.get_or_insert_default().serving.utilisation = utilisation;
    }
    site.iter().try_for_each(Site::check)?;
    Ok(site)
}

impl Given {
    /// What a model's tokens sell for: as given, else by the market's row.
    ///
    /// # Errors
    /// Half a price.
    pub fn token_prices(&self, model: &str) -> Result<Option<TokenPrices>, GivenError> {
        let row = self.market.as_ref().and_then(|market| market.token_price(model)).map(TokenPrices::from);
        self.prices.complete(model, self.market.as_ref(), row)
    }

    /// Dollars of a megawatt-hour: as given, else the mean of the site's contract.
    pub fn power_price(&self) -> Option<f64> {
        let of_site = || Some(self.site.as_ref()?.power.as_ref()?.mean_usd_per_mwh());
        self.power_usd_per_mwh.or_else(of_site)
    }
}

impl PricesGiven {
    /// With the market's row (or the saved prices) for what is not given; cached tokens sell as input where
    /// nobody says otherwise. `None`: nothing is given or saved, the market's row holds.
    fn complete(
        self,
        model: &str,
        market: Option<&Market>,
        saved: Option<TokenPrices>,
    ) -> Result<Option<TokenPrices>, GivenError> {
        if self == PricesGiven::default() {
            return Ok(saved);
        }
        let row = saved.or_else(|| market?.token_price(model).map(TokenPrices::from));
        let half = |given, missing| GivenError::HalfAPrice { given, missing, model: model.into() };
        let input = self.input.or(row.map(|r| r.usd_per_million_input_tokens));
        let output = self.output.or(row.map(|r| r.usd_per_million_output_tokens));
        let given = if self.output.is_some() { "output" } else { "cached" };
        let input = input.ok_or_else(|| half(given, "input"))?;
        let given = if self.input.is_some() { "input" } else { "cached" };
        let prices = TokenPrices {
            usd_per_million_input_tokens: input,
            usd_per_million_cached_tokens: self
                .cached
                .or(row.filter(|_| self.input.is_none()).map(|r| r.usd_per_million_cached_tokens))
                .unwrap_or(input),
            usd_per_million_output_tokens: output.ok_or_else(|| half(given, "output"))?,
        };
        prices.check()?;
        Ok(Some(prices))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::economics::verdict::{Missing, Verdict};
    use crate::measure::report::Idle;
    use crate::measure::testing;
    use crate::power::Boundary;

    /// Seconds after the example market's day began.
    const NOW: u64 = 1_782_432_000 + 3600;

    fn report() -> Report {
        let mut report = testing::report();
        report.model.id = "Qwen3-8B".into();
        report.idle = vec![Idle {
            meter: "rapl:package-0".into(),
            boundary: Boundary::CpuPackage,
            method: Method::Counter,
            watts_before: Some(80.0),
            watts_after: Some(82.0),
        }];
        report.points = vec![
            testing::point(Kind::Concurrency, 1, 40.0, 300.0),
            testing::point(Kind::Concurrency, 8, 4000.0, 600.0),
            testing::point(Kind::Concurrency, 16, 4100.0, 700.0),
            testing::point(Kind::Prefill, 1, 40_000.0, 600.0),
        ];
        report
    }

    fn real() -> Given {
        let mut market = Market::parse(include_str!("../../benches/market.example.toml")).unwrap();
        let mut site = Site::parse(include_str!("../../benches/site.example.toml")).unwrap();
        (market.example, site.example) = (false, false);
        Given { market: Some(market), site: Some(site), ..Given::default() }
    }

    #[test]
    fn the_point_of_the_verdict_is_the_thriftiest_or_the_sustained() {
        let mut report = report();
        assert_eq!(operating_point(&report).unwrap().0.concurrency, 8);
        report.points[1].energy[0].problem = Some("lost".into());
        assert_eq!(operating_point(&report).unwrap().0.concurrency, 16);
        report.points.push(testing::point(Kind::Sustained, 4, 100.0, 500.0));
        assert_eq!(operating_point(&report).unwrap().0.concurrency, 4);
        report.primary = None;
        assert!(operating_point(&report).is_none());
        assert_eq!(inputs(&report, Given::default(), NOW).unwrap().served, None);
    }

    #[test]
    fn a_verdict_comes_and_changes_with_what_is_given_alone() {
        let report = report();
        let first = judge(&report, real(), NOW).unwrap();
        assert_eq!(first.outcome.verdict, Verdict::Serve, "{}", first.outcome.reasons);
        let served = first.inputs.served.clone().unwrap();
        assert_eq!((served.load_watts, served.idle_watts), (600.0, Some(81.0)));
        let saved = Report { economics: Some(first), ..report };
        for (given, want) in [
            (Given::default(), Verdict::Serve),
            (Given { utilisation: Some(Estimate::exact(0.0)), ..Given::default() }, Verdict::Mine),
            (Given { power_usd_per_mwh: Some(9000.0), ..Given::default() }, Verdict::Neither),
            (
                Given {
                    prices: PricesGiven { input: Some(0.0), output: Some(0.0), cached: None },
                    ..Given::default()
                },
                Verdict::Mine,
            ),
        ] {
            let again = judge(&saved, given.clone(), NOW).unwrap();
            assert_eq!(again.outcome.verdict, want, "{given:?}: {}", again.outcome.reasons);
        }
        let late = judge(&saved, Given::default(), NOW + 30 * 3600).unwrap();
        assert!(
            matches!(&late.outcome.verdict, Verdict::Unknown { reasons } if matches!(reasons[..], [Missing::StaleMarket { .. }]))
        );
    }

    #[test]
    fn the_other_parts_of_a_contract_stay() {
        let kept = inputs(&report(), Given { power_usd_per_mwh: Some(7.0), ..real() }, NOW).unwrap();
        let power = kept.site.unwrap().power.unwrap();
        assert_eq!(power.price, PowerPrice::UsdPerMwh(7.0));
        assert!(power.curtailment.is_some());
        let alone = Given { power_usd_per_mwh: Some(7.0), ..Given::default() };
        let made = inputs(&report(), alone, NOW).unwrap().site.unwrap();
        assert_eq!(made.power, Some(PowerContract::fixed(7.0)));
        assert_eq!(made.serving.pue, None);
        let wrong = Given { utilisation: Some(Estimate::exact(30.0)), ..Given::default() };
        assert!(inputs(&report(), wrong, NOW).unwrap_err().to_string().contains("utilisation"));
    }

    #[test]
    fn a_price_that_is_not_known_is_not_guessed() {
        let only_output = PricesGiven { output: Some(0.1), ..PricesGiven::default() };
        let error = inputs(&report(), Given { prices: only_output, ..Given::default() }, NOW).unwrap_err();
        assert!(error.to_string().contains("price of output tokens alone"), "{error}");
        let with_row = inputs(&report(), Given { prices: only_output, ..real() }, NOW).unwrap().token_prices;
        let prices = with_row.unwrap();
        assert_eq!(prices.usd_per_million_output_tokens, 0.1);
        assert_eq!(prices.usd_per_million_input_tokens, 0.035);
        let only_input = PricesGiven { input: Some(0.5), ..PricesGiven::default() };
        let prices = inputs(&report(), Given { prices: only_input, ..real() }, NOW).unwrap().token_prices;
        assert_eq!(prices.unwrap().usd_per_million_cached_tokens, 0.5);
        assert_eq!(inputs(&report(), real(), NOW).unwrap().token_prices, None);
    }

    #[test]
    fn another_shape_needs_both_phases() {
        let shape = Shape { input_tokens: 900.0, cached_tokens: 100.0, output_tokens: 50.0 };
        let mut report = report();
        let given = || Given { shape: Some(shape), ..real() };
        assert!(matches!(inputs(&report, given(), NOW), Err(GivenError::OnePhase { concurrency: 8 })));
        let energy = &mut report.points[1].energy[0];
        energy.joules_per_prefill_token = Some(Estimate::exact(0.01));
        energy.joules_per_decode_token = Some(Estimate::exact(0.14));
        let inputs = inputs(&report, given(), NOW).unwrap();
        assert_eq!(inputs.shape, shape);
        let joules =
            inputs.served.unwrap().efficiency.joules(&inputs.shape, crate::economics::inference::End::Value);
        assert!((joules - 16.0).abs() < 1e-9);
    }

    #[test]
    fn a_shape_and_prices_of_a_report_hold_until_others_are_given() {
        let shape = Shape { input_tokens: 900.0, cached_tokens: 100.0, output_tokens: 50.0 };
        let mut report = report();
        let energy = &mut report.points[1].energy[0];
        energy.joules_per_prefill_token = Some(Estimate::exact(0.01));
        energy.joules_per_decode_token = Some(Estimate::exact(0.14));
        let prices = PricesGiven { input: Some(0.5), cached: None, output: Some(1.5) };
        let first = judge(&report, Given { shape: Some(shape), prices, ..real() }, NOW).unwrap();
        let saved = Report { economics: Some(first), ..report };
        let again = inputs(&saved, Given::default(), NOW).unwrap();
        assert_eq!(again.shape, shape);
        let output =
            |inputs: &Inputs| inputs.token_prices_of("Qwen3-8B").map(|p| p.usd_per_million_output_tokens);
        assert_eq!(output(&again), Some(1.5));
        // A market given now has a row: its price is today's.
        let mut market = real().market.unwrap();
        let row = market.token_price.iter_mut().find(|p| p.model == "Qwen3-8B").unwrap();
        row.usd_per_million_output_tokens = 0.0001;
        let with_row = Given { market: Some(market.clone()), ..Given::default() };
        assert_eq!(output(&inputs(&saved, with_row, NOW).unwrap()), Some(0.0001));
        market.token_price.clear();
        let without = Given { market: Some(market), ..Given::default() };
        assert_eq!(output(&inputs(&saved, without, NOW).unwrap()), Some(1.5));
    }

    #[test]
    fn an_idle_draw_far_above_the_load_is_no_noise() {
        let idle = |watts: f64| {
            let mut report = report();
            report.idle[0] =
                Idle { watts_before: Some(watts), watts_after: Some(watts), ..report.idle[0].clone() };
            inputs(&report, real(), NOW).unwrap().served.unwrap()
        };
        assert_eq!(idle(610.0).idle_watts, Some(600.0));
        assert!(idle(610.0).check().is_ok() && idle(5000.0).check().is_err());
    }

    #[test]
    fn a_partial_report_and_a_flagged_point_are_said() {
        let mut report = report();
        report.complete = false;
        report.partial_because = Some("interrupted".into());
        report.points[1].flags = vec!["short window".into()];
        let said = judge(&report, real(), NOW).unwrap().outcome.warnings.join("; ");
        assert!(said.contains("partial: interrupted") && said.contains("short window"), "{said}");
    }
}
