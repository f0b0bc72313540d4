//! The power contract: what a megawatt-hour costs in each hour, and what is paid for not taking it.
//!
//! Times of day are the contract's own hours; nothing here knows a clock.

use serde::{Deserialize, Serialize};

use super::{EconomicsError, plausible};

pub const HOURS_PER_YEAR: f64 = 8760.0;

/// As in the site's TOML, table `[power]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PowerContract {
    pub price: PowerPrice,
    /// For the highest draw of a month.
    #[serde(default)]
    pub demand_usd_per_kw_month: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub curtailment: Option<Curtailment>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum PowerPrice {
    UsdPerMwh(f64),
    /// 24 prices of a day, or 168 of a week that begins on Monday.
    HourlyUsdPerMwh(Vec<f64>),
}

/// The grid pays for load that goes away when called.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Curtailment {
    /// For each megawatt-hour not taken; its price is saved besides.
    pub credit_usd_per_mwh: f64,
    pub notice_minutes: f64,
    pub hours_per_year: f64,
}

impl PowerContract {
    pub fn fixed(usd_per_mwh: f64) -> PowerContract {
        PowerContract {
            price: PowerPrice::UsdPerMwh(usd_per_mwh),
            demand_usd_per_kw_month: 0.0,
            curtailment: None,
        }
    }

    /// # Errors
    /// A number that cannot be right.
    pub fn check(&self) -> Result<(), EconomicsError> {
        let check = |field, value, range, expected| plausible("power", field, value, range, expected);
        if let PowerPrice::HourlyUsdPerMwh(hours) = &self.price
            && ![24, 168].contains(&hours.len())
        {
            let problem = format!("{} hourly prices: give 24 of a day or 168 of a week", hours.len());
            return Err(EconomicsError::Invalid { entry: "power".into(), problem });
        }
        for price in self.prices() {
            check("price", *price, -5_000.0..=10_000.0, "-5,000 to 10,000 $/MWh")?;
        }
        check("demand_usd_per_kw_month", self.demand_usd_per_kw_month, 0.0..=1_000.0, "0 to 1,000")?;
        if let Some(c) = self.curtailment {
            check("credit_usd_per_mwh", c.credit_usd_per_mwh, 0.0..=10_000.0, "0 to 10,000 $/MWh")?;
            check("notice_minutes", c.notice_minutes, 0.0..=10_080.0, "0 to a week")?;
            check("hours_per_year", c.hours_per_year, 0.0..=HOURS_PER_YEAR, "0 to 8760 h")?;
        }
        Ok(())
    }

    /// The price of each hour; one, where it is the same always.
    pub fn prices(&self) -> &[f64] {
        match &self.price {
            PowerPrice::UsdPerMwh(price) => std::slice::from_ref(price),
            PowerPrice::HourlyUsdPerMwh(hours) => hours,
        }
    }

    pub fn mean_usd_per_mwh(&self) -> f64 {
        self.prices().iter().sum::<f64>() / self.prices().len() as f64
    }

    /// The demand charge spread over all hours of allocated power.
    pub fn demand_usd_per_mwh(&self) -> f64 {
        self.demand_usd_per_kw_month * 12.0 * 1000.0 / HOURS_PER_YEAR
    }

    /// Share of the hours in which curtailment is called, and what it pays then.
    pub fn called(&self) -> (f64, f64) {
        self.curtailment.map_or((0.0, 0.0), |c| (c.hours_per_year / HOURS_PER_YEAR, c.credit_usd_per_mwh))
    }

    /// Mean over the hours of what a user earns by choosing well in each: `running` gives the net of an
    /// hour from its price; `may_stop` lets the user stand still, and take the credit when called.
    pub fn mean_net(&self, may_stop: bool, may_curtail: bool, running: impl Fn(f64) -> f64) -> f64 {
        let (called, credit) = self.called();
        let of = |price: &f64| {
            let net = running(*price);
            let otherwise = if may_stop { net.max(0.0) } else { net };
            let when_called = if may_curtail { otherwise.max(credit) } else { otherwise };
            (1.0 - called) * otherwise + called * when_called
        };
        self.prices().iter().map(of).sum::<f64>() / self.prices().len() as f64
    }

    /// What standing still all year earns.
    pub fn off_usd_per_mwh(&self) -> f64 {
        let (called, credit) = self.called();
        called * credit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hourly() -> PowerContract {
        let mut hours = vec![20.0; 18];
        hours.extend([200.0; 6]);
        PowerContract {
            price: PowerPrice::HourlyUsdPerMwh(hours),
            demand_usd_per_kw_month: 10.0,
            curtailment: Some(Curtailment {
                credit_usd_per_mwh: 100.0,
                notice_minutes: 10.0,
                hours_per_year: 876.0,
            }),
        }
    }

    #[test]
    fn who_may_stop_stops_where_running_loses() {
        let contract = hourly();
        let running = |price: f64| 80.0 - price;
        // 18 h at +60, 6 h at −120.
        assert!((contract.mean_net(false, false, running) - 15.0).abs() < 1e-9);
        assert!((contract.mean_net(true, false, running) - 45.0).abs() < 1e-9);
        // Called in a tenth of the hours: 100 instead of 60, and of nothing.
        assert!(
            (contract.mean_net(true, true, running) - (45.0 + 0.1 * (0.75 * 40.0 + 0.25 * 100.0))).abs()
                < 1e-9
        );
        assert!((contract.off_usd_per_mwh() - 10.0).abs() < 1e-9);
        assert!((contract.mean_usd_per_mwh() - 65.0).abs() < 1e-9);
    }

    #[test]
    fn a_demand_charge_is_spread_over_the_year() {
        // A kilowatt takes 8.76 MWh a year and pays twelve times.
        assert!((hourly().demand_usd_per_mwh() * 8.76 - 120.0).abs() < 1e-9);
        assert_eq!(PowerContract::fixed(50.0).demand_usd_per_mwh(), 0.0);
    }
}
