//! A site as its operator describes it, from TOML: contract, PUEs, host, utilisation, costs, own machines.
//!
//! Everything may be left out; the verdict then names what it misses. Nothing is filled in silently.

use serde::{Deserialize, Serialize};

use super::contract::PowerContract;
use super::estimate::Estimate;
use super::inference::HostOverhead;
use super::{EconomicsError, plausible};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Site {
    /// True for the file that ships with the project.
    pub example: bool,
    /// Years the decision is for. Over one, the halving of the subsidy must be known.
    #[serde(default = "one_year")]
    pub horizon_years: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power: Option<PowerContract>,
    #[serde(default)]
    pub serving: ServingSite,
    #[serde(default)]
    pub mining: MiningSite,
}

fn one_year() -> f64 {
    1.0
}

/// Table `[serving]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServingSite {
    /// Site watts over node watts for the GPU container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pue: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostOverhead>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub utilisation: Option<Estimate>,
    /// Share of the hours in which the service has promised to run.
    #[serde(default)]
    pub firm_share: f64,
    /// How long running requests need to end.
    #[serde(default)]
    pub drain_minutes: f64,
    /// What the unit costs an hour besides power. Absent: nothing is known of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<UnitCost>,
    /// The unit is there and paid for: the verdict is the marginal one.
    #[serde(default)]
    pub capex_is_sunk: bool,
}

/// Cost of the serving unit besides power.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum UnitCost {
    /// Rent of all its accelerators.
    UsdPerHour(f64),
    Capex {
        usd: f64,
        life_years: f64,
    },
}

/// Table `[mining]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MiningSite {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pue: Option<f64>,
    /// Share of the hours in which the machines hash.
    #[serde(default = "always")]
    pub uptime: f64,
    /// Machines the operator owns, by their names in the table. The verdict is against the best of them.
    #[serde(default)]
    pub machines: Vec<String>,
    /// Price of machines that are still to be bought; absent, they are there and paid for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capex: Option<MinerCapex>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MinerCapex {
    pub usd_per_kw: f64,
    pub life_years: f64,
}

fn always() -> f64 {
    1.0
}

impl Default for MiningSite {
    fn default() -> MiningSite {
        MiningSite { pue: None, uptime: 1.0, machines: Vec::new(), capex: None }
    }
}

impl Default for Site {
    fn default() -> Site {
        Site {
            example: false,
            horizon_years: 1.0,
            power: None,
            serving: ServingSite::default(),
            mining: MiningSite::default(),
        }
    }
}

impl Site {
    /// # Errors
    /// Text that is not such a table, or a number that cannot be right.
    pub fn parse(text: &str) -> Result<Site, EconomicsError> {
        let site: Site = toml::from_str(text).map_err(|e| EconomicsError::Toml(e.to_string()))?;
        site.check()?;
        Ok(site)
    }

    /// # Errors
    /// The first field that cannot be right.
    pub fn check(&self) -> Result<(), EconomicsError> {
        let check = |field, value, range, expected| plausible("site", field, value, range, expected);
        check("horizon_years", self.horizon_years, 0.01..=20.0, "0.01 to 20 years")?;
        if let Some(power) = &self.power {
            power.check()?;
        }
        for pue in [self.serving.pue, self.mining.pue].into_iter().flatten() {
            check("pue", pue, 1.0..=3.0, "1 to 3")?;
        }
        if let Some(u) = self.serving.utilisation {
            check("utilisation.low", u.low, 0.0..=u.value, "0 to its value")?;
            check("utilisation.value", u.value, 0.0..=1.0, "0 to 1")?;
            check("utilisation.high", u.high, u.value..=1.0, "its value to 1")?;
        }
        match self.serving.host {
            None | Some(HostOverhead::Included) => {}
            Some(HostOverhead::Watts { load, idle }) => {
                check("host.watts.load", load, 0.0..=1e6, "0 to 1e6 W")?;
                check("host.watts.idle", idle, 0.0..=1e6, "0 to 1e6 W")?;
            }
            Some(HostOverhead::Factor(factor)) => check("host.factor", factor, 1.0..=10.0, "1 to 10")?,
            Some(HostOverhead::AllocatedWatts(w) | HostOverhead::AllocatedBeyond(w)) => {
                check("host.allocated_watts", w, 1.0..=1e6, "1 to 1e6 W")?;
            }
        }
        match self.serving.cost {
            None => {}
            Some(UnitCost::UsdPerHour(usd)) => check("cost.usd_per_hour", usd, 0.0..=1e5, "0 to 1e5 $/h")?,
            Some(UnitCost::Capex { usd, life_years }) => {
                check("cost.capex.usd", usd, 0.0..=1e9, "0 to 1e9 dollars")?;
                check("cost.capex.life_years", life_years, 0.1..=30.0, "0.1 to 30 years")?;
            }
        }
        if let Some(capex) = self.mining.capex {
            check("mining.capex.usd_per_kw", capex.usd_per_kw, 0.0..=1e5, "0 to 1e5 $/kW")?;
            check("mining.capex.life_years", capex.life_years, 0.1..=30.0, "0.1 to 30 years")?;
        }
        check("firm_share", self.serving.firm_share, 0.0..=1.0, "0 to 1")?;
        check("drain_minutes", self.serving.drain_minutes, 0.0..=10_080.0, "0 to a week")?;
        check("uptime", self.mining.uptime, 0.0..=1.0, "0 to 1")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::economics::contract::PowerPrice;

    const EXAMPLE: &str = include_str!("../../benches/site.example.toml");

    #[test]
    fn the_example_is_one_and_reads() {
        let site = Site::parse(EXAMPLE).unwrap();
        assert!(site.example);
        assert_eq!(site.power.unwrap().price, PowerPrice::UsdPerMwh(50.0));
        assert_eq!(site.serving.host, Some(HostOverhead::Factor(2.47)));
        assert_eq!(Site::parse("example = false").unwrap(), Site::default());
    }

    #[test]
    fn every_way_to_say_the_host_and_the_costs_reads() {
        for (from, to) in [
            ("host = { factor = 2.47 }", "host = \"included\""),
            ("host = { factor = 2.47 }", "host = { watts = { load = 400.0, idle = 250.0 } }"),
            ("host = { factor = 2.47 }", "host = { allocated_watts = 1730.0 }"),
            ("cost = { usd_per_hour = 1.30 }", "cost = { capex = { usd = 30000.0, life_years = 4.0 } }"),
            (
                "price = { usd_per_mwh = 50.0 }",
                "price = { hourly_usd_per_mwh = [ 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0] }",
            ),
            ("machines = [\"Antminer S21\"]", "capex = { usd_per_kw = 1900.0, life_years = 4.0 }"),
        ] {
            assert!(EXAMPLE.contains(from), "{from}");
            Site::parse(&EXAMPLE.replace(from, to)).unwrap_or_else(|e| panic!("{to}: {e}"));
        }
    }

    #[test]
    fn what_cannot_be_right_is_named() {
        for (from, to, name) in [
            ("pue = 1.2", "pue = 0.9", "pue"),
            ("value = 0.30, low = 0.10", "value = 0.30, low = 0.40", "utilisation.low"),
            ("high = 0.60", "high = 60.0", "utilisation.high"),
            (
                "price = { usd_per_mwh = 50.0 }",
                "price = { hourly_usd_per_mwh = [1.0, 2.0] }",
                "2 hourly prices",
            ),
            ("price = { usd_per_mwh = 50.0 }", "", "price"),
            ("hours_per_year = 200.0", "hours_per_year = 9000.0", "hours_per_year"),
            ("factor = 2.47", "factor = 0.5", "host.factor"),
            ("usd_per_hour = 1.30", "usd_per_hour = -1.0", "usd_per_hour"),
            ("uptime = 0.95", "uptime = 95.0", "uptime"),
            ("firm_share = 0.5", "firm_shore = 0.5", "firm_shore"),
        ] {
            assert!(EXAMPLE.contains(from), "{from}");
            let error = Site::parse(&EXAMPLE.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(name), "{to}: {error}");
        }
    }
}
