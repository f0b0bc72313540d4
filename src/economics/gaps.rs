//! What a verdict misses: [`Inputs`] → the complete inputs of the arithmetic, where there can be any, with
//! every gap named and everything said that was taken in its place.

use super::balance::Balance;
use super::contract::PowerContract;
use super::estimate::Estimate;
use super::inference::{HostOverhead, Served, TokenPrices};
use super::market::{Market, MarketWarning};
use super::miners::Miner;
use super::mining;
use super::site::{Site, UnitCost};
use super::verdict::{Inputs, Missing};
use crate::quantity::JoulesPerTerahash;

/// The inputs with their gaps closed.
pub(super) struct Complete<'a> {
    pub missing: Vec<Missing>,
    pub taken: Vec<String>,
    pub warnings: Vec<String>,
    pub site: Site,
    pub contract: PowerContract,
    pub served: Option<&'a Served>,
    pub prices: Option<TokenPrices>,
    pub host: HostOverhead,
    pub serving_pue: f64,
    pub mining_pue: f64,
    pub utilisation: Estimate,
    pub market: Option<&'a Market>,
    pub share_after_halving: f64,
    pub own: Vec<&'a Miner>,
}

impl<'a> Complete<'a> {
    pub fn from(inputs: &'a Inputs) -> Complete<'a> {
        let (mut missing, mut warnings) = (Vec::new(), Vec::new());
        // A saved report is input from outside: its site is checked as the file was.
        let given = inputs.site.as_ref().filter(|site| match site.check() {
            Ok(()) => true,
            Err(error) => {
                warnings.push(error.to_string());
                false
            }
        });
        let site = given.cloned().unwrap_or_else(|| {
            missing.push(Missing::Site);
            Site::default()
        });
        let mut c = Complete {
            missing,
            taken: Vec::new(),
            warnings,
            contract: site.power.clone().unwrap_or_else(|| PowerContract::fixed(0.0)),
            served: None,
            prices: None,
            host: HostOverhead::Included,
            serving_pue: site.serving.pue.unwrap_or(1.0),
            mining_pue: site.mining.pue.unwrap_or(1.0),
            utilisation: site.serving.utilisation.unwrap_or(Estimate::exact(1.0)),
            market: inputs.market.as_ref(),
            share_after_halving: 0.0,
            own: Vec::new(),
            site,
        };
        c.measurement(inputs);
        if given.is_some() {
            c.of_site();
        } else {
            c.take("no price of power, PUE 1, full load: there is no site");
        }
        c.host();
        c.token_price(inputs);
        c.of_market(inputs.now_unix_seconds);
        c.machines(&inputs.miners);
        c
    }

    fn take(&mut self, what: &str) {
        self.taken.push(what.into());
    }

    fn measurement(&mut self, inputs: &'a Inputs) {
        let Some(served) = &inputs.served else { return self.missing.push(Missing::Measurement) };
        let shape = &inputs.shape;
        let tokens = [shape.input_tokens, shape.cached_tokens, shape.output_tokens];
        let joules = served.efficiency.joules(shape, super::inference::End::Value);
        let problem = match served.check() {
            Err(error) => Some(error.to_string()),
            Ok(()) if tokens.iter().any(|t| !t.is_finite() || *t < 0.0) || joules <= 0.0 => {
                Some("a request computes no token".into())
            }
            Ok(()) => None,
        };
        if let Some(problem) = problem {
            return self.missing.push(Missing::UnsoundMeasurement { problem });
        }
        self.served = Some(served);
        if served.basis.assumed {
            self.missing.push(Missing::AssumedWatts);
        } else if !served.basis.measured {
            self.warnings.push(format!("the watts are {}, not measured in this run", served.basis.method));
        }
        if served.idle_watts.is_none() {
            self.missing.push(Missing::IdleWatts);
            self.take("idle watts as high as those under load");
        }
    }

    fn of_site(&mut self) {
        if self.site.example {
            self.missing.push(Missing::ExampleSite);
        }
        if self.site.power.is_none() {
            self.missing.push(Missing::PowerContract);
            self.take("no price of power on either side");
        }
        if self.site.serving.pue.is_none() && !self.boundary_is("site") {
            self.missing.push(Missing::ServingPue);
            self.take("a PUE of 1 for serving");
        }
        if self.site.mining.pue.is_none() {
            self.missing.push(Missing::MiningPue);
            self.take("a PUE of 1 for mining");
        }
        match self.site.serving.utilisation {
            None => {
                self.missing.push(Missing::Utilisation);
                self.take("a utilisation of 100 %");
            }
            Some(u) if u.low == u.high => {
                self.warnings
                    .push("the utilisation has no range: the verdict holds for this one only".into());
            }
            Some(_) => {}
        }
        if self.site.serving.cost.is_none() && !self.site.serving.capex_is_sunk {
            self.missing.push(Missing::UnitCost);
            self.take("a unit that costs nothing besides power");
        }
    }

    fn boundary_is(&self, name: &str) -> bool {
        self.served.is_some_and(|s| s.basis.boundary == name)
    }

    /// The host's share counts once: where the meter sees it, what the site says of it does not apply.
    fn host(&mut self) {
        let seen = self.boundary_is("node") || self.boundary_is("site");
        if self.boundary_is("site") {
            self.serving_pue = 1.0;
        }
        self.host = match (self.site.serving.host, seen) {
            (Some(HostOverhead::AllocatedWatts(w)), true) => HostOverhead::AllocatedBeyond(w),
            (Some(HostOverhead::AllocatedWatts(w)), false) => HostOverhead::AllocatedWatts(w),
            (None | Some(HostOverhead::Included), true) => HostOverhead::Included,
            (Some(_), true) => {
                self.warnings
                    .push("the meter sees the whole node: the site's host watts are not added".into());
                HostOverhead::Included
            }
            (Some(HostOverhead::Included) | None, false) => {
                if let Some(served) = self.served {
                    let boundary = served.basis.boundary.clone();
                    self.missing.push(Missing::HostOverhead { boundary });
                    self.take("a host that draws nothing");
                }
                HostOverhead::Included
            }
            (Some(host), false) => host,
        };
        if let (
            HostOverhead::AllocatedWatts(allocated) | HostOverhead::AllocatedBeyond(allocated),
            Some(served),
        ) = (self.host, self.served)
            && served.load_watts > allocated
        {
            self.warnings.push(format!(
                "the unit draws {:.0} W, more than the {allocated:.0} W allocated to it: what it draws is used",
                served.load_watts
            ));
        }
    }

    fn token_price(&mut self, inputs: &Inputs) {
        let model = inputs.served.as_ref().map_or("", |s| &s.model);
        // Without a model or a market, that is what is missing.
        let named = inputs.served.is_some() && inputs.market.is_some();
        let checked = |prices: TokenPrices| match prices.check() {
            Ok(()) => Some(prices),
            Err(error) => {
                self.warnings.push(error.to_string());
                None
            }
        };
        self.prices = inputs.token_prices_of(model).and_then(checked);
        if self.prices.is_none() && named {
            self.missing.push(Missing::TokenPrice);
        }
    }

    fn of_market(&mut self, now: u64) {
        let Some(market) = self.market else { return self.missing.push(Missing::Market) };
        if let Err(error) = market.check() {
            self.warnings.push(error.to_string());
            self.market = None;
            return self.missing.push(Missing::Market);
        }
        let warnings = market.warnings(now);
        for warning in &warnings {
            match warning {
                MarketWarning::Example => self.missing.push(Missing::ExampleMarket),
                // An example is always old.
                MarketWarning::Stale { age_hours } if !market.example => {
                    self.missing.push(Missing::StaleMarket { age_hours: *age_hours as u64 });
                }
                MarketWarning::Future { as_of } if !market.example => {
                    self.missing.push(Missing::FutureMarket { as_of: as_of.clone() });
                }
                // Only the price of what is served matters here; an example is always old.
                MarketWarning::OldTokenPrice { model, .. }
                | MarketWarning::FutureTokenPrice { model, .. }
                    if self.served.is_none_or(|s| !s.model.eq_ignore_ascii_case(model)) => {}
                MarketWarning::Stale { .. } | MarketWarning::Future { .. } => {}
                _ => self.warnings.push(warning.to_string()),
            }
        }
        match market.years_to_halving() {
            Some(years) => {
                self.share_after_halving = (1.0 - years / self.site.horizon_years).clamp(0.0, 1.0);
            }
            None if self.site.horizon_years > 1.0 => {
                self.missing.push(Missing::BlockHeight);
                self.take("no halving of the subsidy");
            }
            None => {}
        }
    }

    fn machines(&mut self, table: &'a [Miner]) {
        for name in &self.site.mining.machines {
            match table.iter().find(|m| m.name.eq_ignore_ascii_case(name) && m.check().is_ok()) {
                Some(miner) => self.own.push(miner),
                None => self.missing.push(Missing::UnknownMachine { name: name.clone() }),
            }
        }
        if self.site.mining.machines.is_empty() {
            self.missing.push(Missing::Machine);
        }
        if self.own.is_empty() {
            let sound = table.iter().filter(|m| m.check().is_ok());
            let thriftiest = sound.min_by(|a, b| a.efficiency().0.total_cmp(&b.efficiency().0));
            if let Some(miner) = thriftiest {
                self.take(&format!("{}, the thriftiest machine of the table", miner.name));
                self.own.push(miner);
            }
        }
    }

    /// Rent, or capital over its life.
    pub fn usd_per_hour(&self) -> Option<f64> {
        self.site.serving.cost.map(|cost| match cost {
            UnitCost::UsdPerHour(usd) => usd,
            UnitCost::Capex { usd, life_years } => usd / (life_years * super::contract::HOURS_PER_YEAR),
        })
    }

    /// The arithmetic, if serving has its figures. Without a market the hashprice is nothing, and only the
    /// side of serving may be read.
    pub fn balance<'b>(&'b self, inputs: &Inputs) -> Option<Balance<'b>> {
        let serving = &self.site.serving;
        let notice = self.contract.curtailment.map_or(0.0, |c| c.notice_minutes);
        Some(Balance {
            served: self.served?,
            shape: inputs.shape,
            prices: self.prices?,
            host: self.host,
            serving_pue: self.serving_pue,
            utilisation: self.utilisation,
            firm_share: serving.firm_share,
            drains_in_time: serving.drain_minutes <= notice,
            usd_per_hour: self.usd_per_hour(),
            contract: &self.contract,
            hashprice: self.market.map_or(Estimate::exact(0.0), Market::hashprice),
            halving: (self.share_after_halving, self.market.map_or(1.0, mining::ratio_after_halving)),
            mining_pue: self.mining_pue,
            uptime: self.site.mining.uptime,
            miner_capex: self.site.mining.capex,
        })
    }

    pub fn machines_of_site(&self) -> Vec<JoulesPerTerahash> {
        self.own.iter().map(|m| m.efficiency()).collect()
    }
}
