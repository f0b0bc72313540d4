//! Serve, mine or neither: one set of [`Inputs`] → one [`Outcome`] with every figure, its interval and why.
//!
//! Figures are dollars per megawatt-hour of the power allocated to the unit at the site, unless they say
//! otherwise. A missing input makes the verdict UNKNOWN and is named; the arithmetic that can be done is
//! done. `docs/economics.md` has the formulas, `docs/verdict.md` how to read the result.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::estimate::Figure;
use super::figures::Figures;
use super::gaps::Complete;
use super::inference::{Served, Shape, TokenPrices};
use super::market::Market;
use super::miners::Miner;
use super::reasons;
use super::site::Site;

/// Gain error of a nameplate or of a declared figure, as a share.
pub const NAMEPLATE_ERROR: f64 = 0.05;
/// A break-even utilisation above this is printed as `never`.
pub const NEVER_ABOVE: f64 = 10.0;

/// All that a verdict rests on; saved in a report, so that it can be computed again under another market.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Inputs {
    /// `None`: there was no meter.
    pub served: Option<Served>,
    pub shape: Shape,
    pub market: Option<Market>,
    /// Instead of the market's row for the model.
    pub token_prices: Option<TokenPrices>,
    pub site: Option<Site>,
    /// The table of machines; those the site owns are named in the site.
    pub miners: Vec<Miner>,
    pub now_unix_seconds: u64,
}

impl Inputs {
    /// What a model's tokens sell for: as given, else the market's row.
    pub fn token_prices_of(&self, model: &str) -> Option<TokenPrices> {
        let of_market = || self.market.as_ref()?.token_price(model).map(TokenPrices::from);
        self.token_prices.or_else(of_market)
    }
}

/// What the verdict misses. An UNKNOWN names each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "missing", rename_all = "snake_case")]
pub enum Missing {
    #[error("a measurement: there is no meter")]
    Measurement,
    #[error("a sound measurement: {problem}")]
    UnsoundMeasurement { problem: String },
    #[error("measured watts: these are assumed from a nameplate")]
    AssumedWatts,
    #[error("idle watts of the unit")]
    IdleWatts,
    #[error("the host's share of the power: the meter sees the {boundary} only")]
    HostOverhead { boundary: String },
    #[error("a description of the site")]
    Site,
    #[error("a real site: this one is the EXAMPLE")]
    ExampleSite,
    #[error("the power contract")]
    PowerContract,
    #[error("the PUE of serving")]
    ServingPue,
    #[error("the PUE of mining")]
    MiningPue,
    #[error("the utilisation to expect")]
    Utilisation,
    #[error("what the unit costs besides power (or that it is sunk)")]
    UnitCost,
    #[error("a price of the model's tokens")]
    TokenPrice,
    #[error("a market")]
    Market,
    #[error("a real market: this one is the EXAMPLE")]
    ExampleMarket,
    #[error("a market of today: this one is {age_hours} h old")]
    StaleMarket { age_hours: u64 },
    #[error("a market of today: this one is dated {as_of}, which is still to come")]
    FutureMarket { as_of: String },
    #[error("the height of the chain, for the halving within the horizon")]
    BlockHeight,
    #[error("a mining machine of the site")]
    Machine,
    #[error("a nameplate of the machine `{name}`")]
    UnknownMachine { name: String },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// Serving earns more than mining and than nothing, over the whole interval.
    Serve,
    /// Mining earns more than serving and than nothing, over the whole interval.
    Mine,
    /// Nothing (or the credit for curtailment) earns at least as much as either.
    Neither,
    /// The interval holds more than one answer.
    TooClose,
    Unknown {
        reasons: Vec<Missing>,
    },
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Verdict::Serve => "SERVE",
            Verdict::Mine => "MINE",
            Verdict::Neither => "NEITHER",
            Verdict::TooClose => "TOO CLOSE",
            Verdict::Unknown { .. } => "UNKNOWN",
        })
    }
}

/// Which hours a row is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hours {
    /// As the site's firm share mixes them: the row of the headline.
    All,
    /// Serving may stop in any hour, and takes the credit when called and able to drain in time.
    Interruptible,
    /// Serving has promised to run: it pays every hour's price and gives up the credit.
    Firm,
}

impl Hours {
    pub const EVERY: [Hours; 3] = [Hours::All, Hours::Interruptible, Hours::Firm];

    pub fn as_str(self) -> &'static str {
        match self {
            Hours::All => "all hours",
            Hours::Interruptible => "interruptible",
            Hours::Firm => "firm",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Of all hours, marginal or fully loaded as the site says; equal to one of the first row's.
    pub verdict: Verdict,
    /// The capital is counted in `verdict`.
    pub fully_loaded: bool,
    /// One paragraph for the operator.
    pub reasons: String,
    pub warnings: Vec<String>,
    /// What was taken where an input is missing, so that the arithmetic could be shown.
    pub taken: Vec<String>,
    /// Something in here is an example or assumed: whatever shows this must be headed EXAMPLE.
    pub example: bool,
    pub serving: Option<ServingFigures>,
    pub mining: Option<MiningFigures>,
    /// All, interruptible, firm; empty without both sides.
    pub rows: Vec<Row>,
    pub miners: Vec<MinerRow>,
    /// Utilisation 5 % … 100 %, all hours.
    pub curve: Vec<CurvePoint>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServingFigures {
    pub model: String,
    pub concurrency: u32,
    /// Revenue at full load, per MWh inside the boundary of the measurement.
    pub measured_usd_per_mwh: Figure,
    /// Revenue at full load, per MWh that the unit draws at the site.
    pub drawn_usd_per_mwh: Figure,
    /// Revenue at full load, per MWh allocated.
    pub allocated_usd_per_mwh: Figure,
    /// Revenue of an hour at full load.
    pub usd_per_hour: Figure,
    pub load_watts: Figure,
    pub idle_watts: Figure,
    pub allocated_watts: Figure,
    /// Price of the power of an hour without a request.
    pub idle_usd_per_hour: Option<Figure>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MiningFigures {
    pub btc_per_ph_day: Figure,
    /// Today's, with the market's range.
    pub hashprice: Figure,
    pub hashprice_after_halving: Figure,
    /// Mean over the horizon: what the comparison uses.
    pub hashprice_of_horizon: Figure,
    /// Share of the horizon that lies after the halving.
    pub share_after_halving: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub hours: Hours,
    /// Share of the year.
    pub share: f64,
    pub marginal: Comparison,
    /// With the cost of unit and machines; `None` where the unit's is not known.
    pub loaded: Option<Comparison>,
}

/// Net of power, $ per MWh allocated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    pub verdict: Verdict,
    pub serve: Figure,
    /// The best machine of the site, hashing where that pays: the alternative to serving.
    pub mine: Figure,
    pub off: Figure,
    /// Serving less its best alternative.
    pub advantage: Figure,
    pub break_even: BreakEven,
}

/// Where serving and its best alternative earn the same, each input moved alone; `None`: nowhere.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BreakEven {
    /// May exceed 1: then it cannot be reached.
    pub utilisation: Option<Figure>,
    /// All prices of tokens as a multiple of what they are.
    #[serde(default)]
    pub price_factor: Option<Figure>,
    /// The same as the price of output tokens, where they have one.
    pub output_price: Option<Figure>,
    /// Today's hashprice, $/PH/day.
    pub hashprice: Option<Figure>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MinerRow {
    pub name: String,
    pub owned: bool,
    pub joules_per_terahash: Figure,
    pub machine_usd_per_mwh: Figure,
    /// ÷ PUE, × uptime.
    pub meter_usd_per_mwh: Figure,
    pub usd_per_watt_day: Figure,
    /// After power, curtailment and demand charge; not below standing still.
    pub net_usd_per_mwh: Option<Figure>,
    /// Were this machine the site's, all hours; with capital as in the headline.
    pub verdict: Verdict,
    pub break_even_utilisation: Option<Figure>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    pub utilisation: f64,
    pub drawn_watts: Figure,
    /// Net of power, $ per MWh allocated.
    pub marginal: Figure,
    pub loaded: Option<Figure>,
}

/// Judges. Never fails: what is missing is in the verdict.
pub fn evaluate(inputs: &Inputs) -> Outcome {
    let complete = Complete::from(inputs);
    let balance = complete.balance(inputs);
    let table = Figures { complete: &complete, balance: balance.as_ref() };
    let rows = table.rows();
    let fully_loaded = !complete.site.serving.capex_is_sunk && complete.usd_per_hour().is_some();
    let verdict = match rows.first() {
        Some(Row { loaded: Some(loaded), .. }) if fully_loaded => loaded.verdict.clone(),
        Some(row) => row.marginal.verdict.clone(),
        None => Verdict::Unknown { reasons: complete.missing.clone() },
    };
    let mut outcome = Outcome {
        verdict,
        fully_loaded,
        reasons: String::new(),
        warnings: complete.warnings.clone(),
        taken: complete.taken.clone(),
        example: complete.missing.iter().any(Missing::is_example),
        serving: table.serving(),
        mining: table.mining(),
        miners: table.miners(&inputs.miners, fully_loaded),
        curve: table.curve(),
        rows,
    };
    outcome.reasons = reasons::paragraph(&outcome, &complete);
    outcome
}

impl Missing {
    /// Nothing real: whatever rests on it is headed EXAMPLE.
    pub fn is_example(&self) -> bool {
        matches!(self, Missing::AssumedWatts | Missing::ExampleSite | Missing::ExampleMarket)
    }
}
