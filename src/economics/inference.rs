//! What serving earns: joules per token, a request's shape and prices → dollars per megawatt-hour and hour.
//!
//! Measured watts are of some boundary (a board, a package); [`HostOverhead`] and the serving PUE carry
//! them to what the unit draws and what is allocated to it at the site.

use serde::{Deserialize, Serialize};

use super::estimate::{Basis, Estimate};
use super::market::TokenPrice;
use super::{EconomicsError, plausible};
use crate::quantity::{JOULES_PER_MWH, TokensPerJoule, UsdPerMwh};

/// Revenue of a megawatt-hour spent on tokens that all sell at this price.
pub fn revenue(efficiency: TokensPerJoule, usd_per_million_tokens: f64) -> UsdPerMwh {
    UsdPerMwh(efficiency.0 * JOULES_PER_MWH * usd_per_million_tokens / 1e6)
}

/// Dollars per million tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenPrices {
    pub usd_per_million_input_tokens: f64,
    /// Input tokens found in the prefix cache.
    pub usd_per_million_cached_tokens: f64,
    pub usd_per_million_output_tokens: f64,
}

impl TokenPrices {
    /// # Errors
    /// A price that cannot be right.
    pub fn check(&self) -> Result<(), EconomicsError> {
        for (field, price) in [
            ("usd_per_million_input_tokens", self.usd_per_million_input_tokens),
            ("usd_per_million_cached_tokens", self.usd_per_million_cached_tokens),
            ("usd_per_million_output_tokens", self.usd_per_million_output_tokens),
        ] {
            plausible(
                "token prices",
                field,
                price,
                0.0..=10_000.0,
                "0 to 10,000 dollars per million tokens",
            )?;
        }
        Ok(())
    }
}

impl From<&TokenPrice> for TokenPrices {
    fn from(price: &TokenPrice) -> TokenPrices {
        let input = price.usd_per_million_input_tokens;
        TokenPrices {
            usd_per_million_input_tokens: input,
            usd_per_million_cached_tokens: price.usd_per_million_cached_tokens.unwrap_or(input),
            usd_per_million_output_tokens: price.usd_per_million_output_tokens,
        }
    }
}

/// Mean tokens of a request. `input_tokens` are computed; `cached_tokens` come from the prefix cache and
/// cost no joules.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    pub input_tokens: f64,
    pub cached_tokens: f64,
    pub output_tokens: f64,
}

impl Shape {
    /// Output tokens only, as many public comparisons count.
    pub const OUTPUT_ONLY: Shape = Shape { input_tokens: 0.0, cached_tokens: 0.0, output_tokens: 1.0 };

    /// What a request of this shape sells for, dollars.
    pub fn revenue_usd(&self, prices: &TokenPrices) -> f64 {
        (self.input_tokens * prices.usd_per_million_input_tokens
            + self.cached_tokens * prices.usd_per_million_cached_tokens
            + self.output_tokens * prices.usd_per_million_output_tokens)
            / 1e6
    }
}

/// Tokens for energy, gross, at the concurrency that was measured, inside the boundary of the measurement.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Efficiency {
    /// Prefill and decode measured apart.
    ByPhase { joules_per_prefill_token: Estimate, joules_per_decode_token: Estimate },
    /// All energy of the window over its output tokens; the input's share is in it.
    Output { output_tokens_per_joule: Estimate },
}

impl Efficiency {
    /// Joules of a request, at the point or at an end of the confidence interval (`good` is the thrifty end).
    pub fn joules(&self, shape: &Shape, end: End) -> f64 {
        match self {
            Efficiency::ByPhase { joules_per_prefill_token: prefill, joules_per_decode_token: decode } => {
                let end = end.flipped();
                shape.input_tokens * end.of(*prefill) + shape.output_tokens * end.of(*decode)
            }
            Efficiency::Output { output_tokens_per_joule } => {
                shape.output_tokens / end.of(*output_tokens_per_joule)
            }
        }
    }

    fn is_sound(&self) -> bool {
        let above_zero = |e: &Estimate| e.is_sound() && e.low > 0.0;
        match self {
            Efficiency::ByPhase { joules_per_prefill_token: a, joules_per_decode_token: b } => {
                above_zero(a) && above_zero(b)
            }
            Efficiency::Output { output_tokens_per_joule } => above_zero(output_tokens_per_joule),
        }
    }
}

/// Which of an estimate's three numbers to compute with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Low,
    Value,
    High,
}

impl End {
    pub fn of(self, estimate: Estimate) -> f64 {
        match self {
            End::Low => estimate.low,
            End::Value => estimate.value,
            End::High => estimate.high,
        }
    }

    pub fn flipped(self) -> End {
        match self {
            End::Low => End::High,
            End::Value => End::Value,
            End::High => End::Low,
        }
    }
}

/// What a bench found out about one unit serving one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Served {
    pub model: String,
    /// Sequences at once during the measurement.
    pub concurrency: u32,
    pub efficiency: Efficiency,
    /// Mean watts under that load, of everything inside the boundary.
    pub load_watts: f64,
    /// Watts with the model loaded and nothing to do, same boundary; `None` where not measured.
    pub idle_watts: Option<f64>,
    pub basis: Basis,
    /// Gain error of the instrument as a share; 0.05 where it says nothing.
    pub gain_error: f64,
}

impl Served {
    /// # Errors
    /// A number that cannot be right.
    pub fn check(&self) -> Result<(), EconomicsError> {
        let wrong =
            |problem: &str| EconomicsError::Invalid { entry: self.model.clone(), problem: problem.into() };
        if !self.efficiency.is_sound() {
            return Err(wrong("tokens per joule must be above zero, low <= value <= high"));
        }
        if !(self.load_watts.is_finite() && self.load_watts > 0.0) {
            return Err(wrong("load_watts must be above zero"));
        }
        if self.idle_watts.is_some_and(|w| !(0.0..=self.load_watts).contains(&w)) {
            return Err(wrong("idle_watts must lie between zero and load_watts"));
        }
        if !(0.0..0.5).contains(&self.gain_error) {
            return Err(wrong("gain_error must be a share below 0.5"));
        }
        Ok(())
    }

    /// Revenue of a megawatt-hour inside the boundary of the measurement, at full load.
    pub fn revenue(&self, shape: &Shape, prices: &TokenPrices, end: End) -> UsdPerMwh {
        UsdPerMwh(shape.revenue_usd(prices) / self.efficiency.joules(shape, end) * JOULES_PER_MWH)
    }

    /// The same in dollars for an hour at full load. The gain of the sensor cancels: it scales the watts
    /// and the joules alike.
    pub fn usd_per_hour(&self, shape: &Shape, prices: &TokenPrices, end: End) -> f64 {
        self.revenue(shape, prices, end).0 * self.load_watts / 1e6
    }
}

/// What the measurement leaves out of the unit: processor, fans, power supply.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum HostOverhead {
    /// Nothing is left out: the boundary is the node.
    Included,
    /// Declared watts, under load and idle.
    Watts { load: f64, idle: f64 },
    /// Node watts under load over measured watts under load. The host stays on: idle adds the same watts.
    Factor(f64),
    /// The whole unit is allocated this many watts at the plug, whatever it draws; what it draws beyond
    /// the measurement is taken to be the rest.
    AllocatedWatts(f64),
    /// The same where the meter sees all that the unit draws: nothing is added to that.
    #[serde(skip)]
    AllocatedBeyond(f64),
}

/// Watts of the whole unit at the site.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UnitWatts {
    pub load: f64,
    pub idle: f64,
    /// What no other machine of the site can have.
    pub allocated: f64,
}

impl UnitWatts {
    /// From measured watts: plus the host's, times the serving PUE. `sensor` and `nameplate` are gains, 1 in
    /// the middle.
    pub fn new(
        served: &Served,
        host: HostOverhead,
        serving_pue: f64,
        sensor: f64,
        nameplate: f64,
    ) -> UnitWatts {
        let load = served.load_watts * sensor;
        let idle = served.idle_watts.unwrap_or(served.load_watts) * sensor;
        let (load, idle, allocated) = match host {
            HostOverhead::Included => (load, idle, load),
            HostOverhead::Watts { load: l, idle: i } => {
                let load = load + l * nameplate;
                (load, idle + i * nameplate, load)
            }
            HostOverhead::Factor(factor) => {
                let extra = (factor - 1.0) * nameplate * load;
                (load + extra, idle + extra, load + extra)
            }
            HostOverhead::AllocatedWatts(watts) => {
                let watts = watts.max(load);
                (watts, watts - load + idle, watts)
            }
            HostOverhead::AllocatedBeyond(watts) => (load, idle, watts.max(load)),
        };
        UnitWatts { load: load * serving_pue, idle: idle * serving_pue, allocated: allocated * serving_pue }
    }

    /// Mean watts drawn at a utilisation.
    pub fn drawn(&self, utilisation: f64) -> f64 {
        utilisation * self.load + (1.0 - utilisation) * self.idle
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(efficiency: Efficiency) -> Served {
        Served {
            model: "M".into(),
            concurrency: 1,
            efficiency,
            load_watts: 700.0,
            idle_watts: Some(80.0),
            basis: Basis {
                method: "counter".into(),
                boundary: "gpu_board".into(),
                measured: true,
                assumed: false,
            },
            gain_error: 0.05,
        }
    }

    #[test]
    fn a_published_row_is_reproduced() {
        // 22.5 and 19.7 token/J at $0.138 per million tokens: $11,178 and $9,787 per MWh of the GPU.
        assert!((revenue(TokensPerJoule(22.5), 0.138).0 - 11_178.0).abs() < 1.0);
        assert!((revenue(TokensPerJoule(19.7), 0.138).0 - 9_787.0).abs() < 1.0);
    }

    #[test]
    fn a_shape_sells_its_tokens_and_costs_the_joules_it_computes() {
        let shape = Shape { input_tokens: 100.0, cached_tokens: 1000.0, output_tokens: 10.0 };
        let prices = TokenPrices {
            usd_per_million_input_tokens: 1.0,
            usd_per_million_cached_tokens: 0.1,
            usd_per_million_output_tokens: 10.0,
        };
        let by_phase = served(Efficiency::ByPhase {
            joules_per_prefill_token: Estimate::new(0.1, 0.09, 0.11),
            joules_per_decode_token: Estimate::new(1.0, 0.9, 1.1),
        });
        // (100 + 100 + 100) microdollars for 10 + 10 joules.
        let want = 300e-6 / 20.0 * 3.6e9;
        assert!((by_phase.revenue(&shape, &prices, End::Value).0 / want - 1.0).abs() < 1e-12);
        assert!((by_phase.revenue(&shape, &prices, End::High).0 / (want / 0.9) - 1.0).abs() < 1e-12);
        assert!((by_phase.revenue(&shape, &prices, End::Low).0 / (want / 1.1) - 1.0).abs() < 1e-12);
        assert!((by_phase.usd_per_hour(&shape, &prices, End::Value) / (want * 700e-6) - 1.0).abs() < 1e-12);
        // Output tokens only, all energy on them: as the plain formula.
        let output = served(Efficiency::Output { output_tokens_per_joule: Estimate::exact(22.5) });
        let plain = revenue(TokensPerJoule(22.5), 10.0).0;
        assert!((output.revenue(&Shape::OUTPUT_ONLY, &prices, End::Value).0 / plain - 1.0).abs() < 1e-12);
    }

    #[test]
    fn watts_of_the_unit_by_each_way_to_say_the_host() {
        let served = served(Efficiency::Output { output_tokens_per_joule: Estimate::exact(1.0) });
        for (host, load, idle, allocated) in [
            (HostOverhead::Included, 700.0, 80.0, 700.0),
            (HostOverhead::Watts { load: 400.0, idle: 250.0 }, 1100.0, 330.0, 1100.0),
            // The host stays on.
            (HostOverhead::Factor(2.0), 1400.0, 780.0, 1400.0),
            (HostOverhead::AllocatedWatts(1730.0), 1730.0, 1110.0, 1730.0),
            (HostOverhead::AllocatedWatts(500.0), 700.0, 80.0, 700.0),
        ] {
            let watts = UnitWatts::new(&served, host, 1.5, 1.0, 1.0);
            assert_eq!(
                watts,
                UnitWatts { load: load * 1.5, idle: idle * 1.5, allocated: allocated * 1.5 },
                "{host:?}"
            );
            assert_eq!(watts.drawn(0.0), watts.idle);
            assert_eq!(watts.drawn(1.0), watts.load);
        }
    }
}
