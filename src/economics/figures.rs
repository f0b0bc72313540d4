//! The figures of an outcome, each with its interval, method and boundary, out of a [`Balance`].

use super::balance::{Balance, Moved, Side};
use super::estimate::{Estimate, Figure};
use super::gaps::Complete;
use super::inference::{End, HostOverhead};
use super::market::Market;
use super::miners::Miner;
use super::mining;
use super::verdict::{
    BreakEven, Comparison, CurvePoint, Hours, MinerRow, MiningFigures, NAMEPLATE_ERROR, Row, ServingFigures,
    Verdict,
};
use crate::quantity::{Hashprice, JoulesPerTerahash, UsdPerMwh};

pub(super) const PER_MWH: &str = "$/MWh";
const ALLOCATED: &str = "site, per MWh allocated to the unit";
const UTILISATIONS: std::ops::RangeInclusive<u32> = 1..=20;

pub(super) struct Figures<'a> {
    pub complete: &'a Complete<'a>,
    /// `None` where serving has no figures.
    pub balance: Option<&'a Balance<'a>>,
}

impl Figures<'_> {
    /// The arithmetic's verdict, unless something is missing.
    fn gated(&self, verdict: Verdict) -> Verdict {
        match self.complete.missing.is_empty() {
            true => verdict,
            false => Verdict::Unknown { reasons: self.complete.missing.clone() },
        }
    }

    /// How watts of the meter became watts of the site.
    fn site_method(&self, balance: &Balance) -> String {
        let method = &balance.served.basis.method;
        let host = match balance.host {
            HostOverhead::Included => String::new(),
            HostOverhead::Watts { load, .. } => format!(" + declared host {load:.0} W"),
            HostOverhead::Factor(factor) => format!(" × declared host factor {factor}"),
            HostOverhead::AllocatedWatts(watts) | HostOverhead::AllocatedBeyond(watts) => {
                format!(", declared {watts:.0} W allocated")
            }
        };
        format!("{method}{host} × declared PUE {}", balance.serving_pue)
    }

    pub fn serving(&self) -> Option<ServingFigures> {
        let b = self.balance?;
        let (served, basis) = (b.served, &b.served.basis);
        let method = self.site_method(b);
        let site = |estimate, unit: &str, boundary: &str| Figure::new(estimate, unit, &method, boundary);
        // The sensor's gain does not cancel here: a true joule is another joule.
        let measured = b.over_corners(|p| served.revenue(&b.shape, &b.prices, p.efficiency).0 / p.sensor);
        let priced = self.complete.site.power.is_some();
        let idle_cost = b.over_corners(|p| b.watts(p).idle / 1e6 * self.complete.contract.mean_usd_per_mwh());
        Some(ServingFigures {
            model: served.model.clone(),
            concurrency: served.concurrency,
            measured_usd_per_mwh: Figure::new(measured, PER_MWH, &basis.method, &basis.boundary),
            drawn_usd_per_mwh: site(
                b.over_corners(|p| b.usd_per_hour(p) / b.watts(p).load * 1e6),
                PER_MWH,
                "site, per MWh drawn",
            ),
            allocated_usd_per_mwh: site(
                b.over_corners(|p| b.usd_per_hour(p) / b.watts(p).allocated * 1e6),
                PER_MWH,
                ALLOCATED,
            ),
            usd_per_hour: Figure::new(
                b.over_corners(|p| b.usd_per_hour(p)),
                "$/h",
                &basis.method,
                "the unit, full load",
            ),
            load_watts: site(b.over_corners(|p| b.watts(p).load), "W", "site"),
            idle_watts: site(b.over_corners(|p| b.watts(p).idle), "W", "site"),
            allocated_watts: site(b.over_corners(|p| b.watts(p).allocated), "W", "site"),
            idle_usd_per_hour: priced.then(|| site(idle_cost, "$/h", "site")),
        })
    }

    pub fn mining(&self) -> Option<MiningFigures> {
        let market = self.complete.market?;
        let method = format!("formula, market of {}", market.as_of);
        let per_petahash = |estimate, unit: &str| Figure::new(estimate, unit, &method, "1 PH/s");
        let today = market.hashprice();
        let (share, ratio) = (self.complete.share_after_halving, mining::ratio_after_halving(market));
        let mean = format!("{method}, mean of the horizon, {:.0} % after the halving", share * 100.0);
        let of_horizon = today.scaled(1.0 - share * (1.0 - ratio));
        let btc = Estimate::exact(mining::btc_per_petahash_day(market));
        Some(MiningFigures {
            btc_per_ph_day: per_petahash(btc, "BTC/PH/day"),
            hashprice: per_petahash(today, "$/PH/day"),
            hashprice_after_halving: per_petahash(today.scaled(ratio), "$/PH/day"),
            hashprice_of_horizon: Figure::new(of_horizon, "$/PH/day", &mean, "1 PH/s"),
            share_after_halving: share,
        })
    }

    /// All hours, interruptible, firm.
    pub fn rows(&self) -> Vec<Row> {
        let (Some(balance), Some(market)) = (self.balance, self.complete.market) else { return Vec::new() };
        let machines = self.complete.machines_of_site();
        if machines.is_empty() {
            return Vec::new();
        }
        let firm = balance.firm_share;
        let row = |hours: Hours| {
            let side = |loaded| Side { machines: &machines, hours, loaded };
            Row {
                hours,
                share: match hours {
                    Hours::All => 1.0,
                    Hours::Interruptible => 1.0 - firm,
                    Hours::Firm => firm,
                },
                marginal: self.comparison(balance, market, &side(false)),
                loaded: balance.usd_per_hour.map(|_| self.comparison(balance, market, &side(true))),
            }
        };
        Hours::EVERY.map(row).into()
    }

    fn comparison(&self, b: &Balance, market: &Market, side: &Side) -> Comparison {
        let nets = |p: &_| b.nets(p, side.machines, side.hours, side.loaded);
        let serving = self.site_method(b);
        let figure = |estimate, method: &str| Figure::new(estimate, PER_MWH, method, ALLOCATED);
        let both = format!("{serving}; nameplate of the machine; hashprice of {}", market.as_of);
        Comparison {
            verdict: self.gated(b.judge(side.machines, side.hours, side.loaded)),
            serve: figure(b.over_corners(|p| nets(p).serve), &serving),
            mine: figure(b.over_corners(|p| nets(p).mine), &self.mining_method(market)),
            off: figure(b.over_corners(|p| nets(p).off), "contract"),
            advantage: figure(b.over_corners(|p| nets(p).advantage()), &both),
            break_even: self.break_even(b, side, &both),
        }
    }

    /// How a machine's watts became dollars.
    fn mining_method(&self, market: &Market) -> String {
        let halving = match self.complete.share_after_halving {
            share if share > 0.0 => format!(", {:.0} % of the horizon after the halving", share * 100.0),
            _ => String::new(),
        };
        format!("nameplate, market of {}{halving}", market.as_of)
    }

    fn break_even(&self, b: &Balance, side: &Side, method: &str) -> BreakEven {
        let figure = |estimate, unit: &str| Figure::new(estimate, unit, method, ALLOCATED);
        let output = b.prices.usd_per_million_output_tokens;
        let [utilisation, price, hashprice] =
            b.break_evens(side, [Moved::Utilisation, Moved::TokenPrice, Moved::Hashprice]);
        BreakEven {
            utilisation: utilisation.map(|e| figure(e, "share")),
            price_factor: price.map(|e| figure(e, "of today's token prices")),
            output_price: price
                .filter(|_| output > 0.0)
                .map(|e| figure(e.scaled(output), "$/M output token, the others in proportion")),
            hashprice: hashprice.map(|e| figure(e, "$/PH/day, today")),
        }
    }

    /// Every machine of the table: what it earns, and the verdict were it the site's.
    pub fn miners(&self, table: &[Miner], loaded: bool) -> Vec<MinerRow> {
        let Some(market) = self.complete.market else { return Vec::new() };
        table.iter().filter(|m| m.check().is_ok()).map(|m| self.miner(m, market, loaded)).collect()
    }

    fn miner(&self, miner: &Miner, market: &Market, loaded: bool) -> MinerRow {
        let hashprice = market.hashprice();
        let site = &self.complete.site.mining;
        let efficiency = Estimate::within(miner.efficiency().0, NAMEPLATE_ERROR);
        let revenue = |end: End| {
            mining::revenue(Hashprice(end.of(hashprice)), JoulesPerTerahash(end.flipped().of(efficiency))).0
        };
        let gross = Estimate::new(revenue(End::Value), revenue(End::Low), revenue(End::High));
        let method = format!("nameplate, market of {}", market.as_of);
        let of_site = format!(" ÷ PUE {} × uptime {}", self.complete.mining_pue, site.uptime);
        let (at_site, over_time) = (format!("{method}{of_site}"), self.mining_method(market) + &of_site);
        let figure = |estimate, unit: &str, boundary: &str| Figure::new(estimate, unit, &method, boundary);
        let machines = [miner.efficiency()];
        let side = Side { machines: &machines, hours: Hours::All, loaded };
        let verdict = self.balance.map_or(Verdict::TooClose, |b| b.judge(&machines, Hours::All, loaded));
        let at_meter =
            |gross| mining::revenue_at_meter(UsdPerMwh(gross), self.complete.mining_pue, site.uptime).0;
        let meter = Estimate::new(at_meter(gross.value), at_meter(gross.low), at_meter(gross.high));
        let a_day = gross.scaled(mining::usd_per_watt_day(UsdPerMwh(1.0)));
        let net = |b: &Balance| b.over_corners(|p| b.mine(p, machines[0], loaded));
        MinerRow {
            name: miner.name.clone(),
            owned: site.machines.iter().any(|n| n.eq_ignore_ascii_case(&miner.name)),
            joules_per_terahash: Figure::new(efficiency, "J/TH", "nameplate", "machine"),
            machine_usd_per_mwh: figure(gross, PER_MWH, "machine"),
            meter_usd_per_mwh: Figure::new(meter, PER_MWH, &at_site, "site"),
            usd_per_watt_day: figure(a_day, "$/W·day", "machine"),
            net_usd_per_mwh: self.balance.map(|b| Figure::new(net(b), PER_MWH, &over_time, "site")),
            // Without the side of serving something is missing, so this is UNKNOWN.
            verdict: self.gated(verdict),
            break_even_utilisation: self
                .balance
                .and_then(|b| b.break_evens(&side, [Moved::Utilisation])[0])
                .map(|e| Figure::new(e, "share", &over_time, ALLOCATED)),
        }
    }

    /// Serving in all hours, at utilisations of 5 % … 100 %.
    pub fn curve(&self) -> Vec<CurvePoint> {
        let Some(b) = self.balance else { return Vec::new() };
        let method = self.site_method(b);
        let at = |step: u32| {
            let utilisation = f64::from(step) * 0.05;
            let net = |loaded: bool| {
                let estimate = b.over_corners(|p| {
                    b.serve(&super::balance::Point { utilisation, ..*p }, Hours::All, loaded)
                });
                Figure::new(estimate, PER_MWH, &method, ALLOCATED)
            };
            let drawn = b.over_corners(|p| b.watts(p).drawn(utilisation));
            CurvePoint {
                utilisation,
                drawn_watts: Figure::new(drawn, "W", &method, "site"),
                marginal: net(false),
                loaded: b.usd_per_hour.map(|_| net(true)),
            }
        };
        UTILISATIONS.map(at).collect()
    }
}
