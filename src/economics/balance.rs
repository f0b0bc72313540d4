//! The arithmetic of a comparison at one point of its inputs, and over all corners of their intervals.
//!
//! Every net is in dollars per megawatt-hour allocated at the site. The extremes over the box of intervals are
//! looked for at its corners. One price of power makes every net monotone in each input, so they lie there;
//! with hourly prices a net may dip between two utilisations, by little.

use super::contract::{HOURS_PER_YEAR, PowerContract};
use super::estimate::Estimate;
use super::inference::{End, HostOverhead, Served, Shape, TokenPrices, UnitWatts};
use super::mining;
use super::site::MinerCapex;
use super::verdict::{Hours, NAMEPLATE_ERROR, NEVER_ABOVE, Verdict};
use crate::quantity::{Hashprice, JoulesPerTerahash};

/// Below this two nets are the same, $/MWh.
const SAME: f64 = 1e-9;
/// The break-even of a price is looked for up to this multiple of it.
const PRICE_CEILING: f64 = 1000.0;
const HALVINGS_OF_THE_SEARCH: u32 = 50;

/// All inputs of the arithmetic, complete: what was missing has been taken and said.
pub(super) struct Balance<'a> {
    pub served: &'a Served,
    pub shape: Shape,
    pub prices: TokenPrices,
    pub host: HostOverhead,
    pub serving_pue: f64,
    pub utilisation: Estimate,
    pub firm_share: f64,
    /// Running requests end within the notice.
    pub drains_in_time: bool,
    pub usd_per_hour: Option<f64>,
    pub contract: &'a PowerContract,
    /// Today's.
    pub hashprice: Estimate,
    /// Share of the horizon after the next halving, and the hashprice of then as a share of today's.
    pub halving: (f64, f64),
    pub mining_pue: f64,
    pub uptime: f64,
    pub miner_capex: Option<MinerCapex>,
}

/// One choice for each uncertain input, and multiples for the search of break-evens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Point {
    pub efficiency: End,
    /// True watts over what the sensor says, and so for the two kinds of nameplate.
    pub sensor: f64,
    pub host: f64,
    pub machine: f64,
    pub hashprice: f64,
    pub utilisation: f64,
    pub price_factor: f64,
}

/// What each way earns.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Nets {
    pub serve: f64,
    pub mine: f64,
    pub off: f64,
}

impl Nets {
    /// Serving less its best alternative.
    pub fn advantage(self) -> f64 {
        self.serve - self.mine.max(self.off)
    }
}

impl Balance<'_> {
    pub fn middle(&self) -> Point {
        Point {
            efficiency: End::Value,
            sensor: 1.0,
            host: 1.0,
            machine: 1.0,
            hashprice: self.hashprice.value,
            utilisation: self.utilisation.value,
            price_factor: 1.0,
        }
    }

    /// Each input at either end of its interval: 2⁶ points.
    pub fn corners(&self) -> impl Iterator<Item = Point> + '_ {
        (0..64u32).map(|bits| {
            let high = |axis: u32| bits >> axis & 1 == 1;
            let gain = |axis: u32, share: f64| if high(axis) { 1.0 + share } else { 1.0 - share };
            Point {
                efficiency: if high(0) { End::High } else { End::Low },
                sensor: gain(1, self.served.gain_error),
                host: gain(2, NAMEPLATE_ERROR),
                machine: gain(3, NAMEPLATE_ERROR),
                hashprice: self.hashprice.end(high(4)),
                utilisation: self.utilisation.end(high(5)),
                price_factor: 1.0,
            }
        })
    }

    /// The value in the middle with the extremes over the corners.
    pub fn over_corners(&self, of: impl Fn(&Point) -> f64) -> Estimate {
        self.corners().map(|p| of(&p)).fold(Estimate::exact(of(&self.middle())), |e, v| {
            Estimate::new(e.value, e.low.min(v), e.high.max(v))
        })
    }

    pub fn watts(&self, p: &Point) -> UnitWatts {
        UnitWatts::new(self.served, self.host, self.serving_pue, p.sensor, p.host)
    }

    /// Revenue of an hour at full load.
    pub fn usd_per_hour(&self, p: &Point) -> f64 {
        self.served.usd_per_hour(&self.shape, &self.prices, p.efficiency) * p.price_factor
    }

    /// Serving, net of power.
    pub fn serve(&self, p: &Point, hours: Hours, loaded: bool) -> f64 {
        let watts = self.watts(p);
        let allocated_mw = watts.allocated / 1e6;
        let revenue = p.utilisation * self.usd_per_hour(p) / allocated_mw;
        let drawn_share = watts.drawn(p.utilisation) / watts.allocated;
        let running = |price: f64| revenue - price * drawn_share;
        let demand = self.contract.demand_usd_per_mwh();
        let firm = self.contract.mean_net(false, false, running) - demand;
        let off = if self.drains_in_time { self.contract.off_usd_per_mwh() } else { 0.0 };
        let interruptible = (self.contract.mean_net(true, self.drains_in_time, running) - demand).max(off);
        let net = match hours {
            Hours::Firm => firm,
            Hours::Interruptible => interruptible,
            Hours::All => self.firm_share * firm + (1.0 - self.firm_share) * interruptible,
        };
        match loaded {
            true => net - self.usd_per_hour.unwrap_or(0.0) / allocated_mw,
            false => net,
        }
    }

    /// A machine that hashes in the hours where that pays, net of power; at least what standing still earns.
    pub fn mine(&self, p: &Point, machine: JoulesPerTerahash, loaded: bool) -> f64 {
        // Before and after the halving it chooses anew: a machine that no longer pays stands still.
        let net_at = |hashprice: f64| {
            let gross = mining::revenue(Hashprice(hashprice), JoulesPerTerahash(machine.0 * p.machine));
            let at_meter = mining::revenue_at_meter(gross, self.mining_pue, 1.0).0;
            let running = |price: f64| self.uptime * (at_meter - price);
            let net = self.contract.mean_net(true, true, running) - self.contract.demand_usd_per_mwh();
            net.max(self.contract.off_usd_per_mwh())
        };
        let (share, ratio) = self.halving;
        let net = (1.0 - share) * net_at(p.hashprice) + share * net_at(p.hashprice * ratio);
        match (loaded, self.miner_capex) {
            // A kilowatt of machines takes PUE kilowatts of the site.
            (true, Some(c)) => {
                net - c.usd_per_kw * 1000.0 / (c.life_years * HOURS_PER_YEAR) / self.mining_pue
            }
            _ => net,
        }
    }

    /// All three, against the best of these machines.
    pub fn nets(&self, p: &Point, machines: &[JoulesPerTerahash], hours: Hours, loaded: bool) -> Nets {
        let mine = machines.iter().map(|m| self.mine(p, *m, loaded)).fold(f64::NEG_INFINITY, f64::max);
        Nets { serve: self.serve(p, hours, loaded), mine, off: self.contract.off_usd_per_mwh() }
    }

    /// What holds at every corner, or TOO CLOSE.
    pub fn judge(&self, machines: &[JoulesPerTerahash], hours: Hours, loaded: bool) -> Verdict {
        let all: Vec<Nets> = self.corners().map(|p| self.nets(&p, machines, hours, loaded)).collect();
        let always = |holds: fn(&Nets) -> bool| all.iter().all(holds);
        if always(|n| n.serve > n.mine.max(n.off) + SAME) {
            Verdict::Serve
        } else if always(|n| n.mine > n.serve.max(n.off) + SAME) {
            Verdict::Mine
        } else if always(|n| n.serve <= n.off + SAME && n.mine <= n.off + SAME) {
            Verdict::Neither
        } else {
            Verdict::TooClose
        }
    }

    /// The corners best and worst for serving.
    fn extremes(&self, side: &Side) -> (Point, Point) {
        let middle = (self.advantage(&self.middle(), side), self.middle());
        let (mut best, mut worst) = (middle, middle);
        for p in self.corners() {
            let advantage = self.advantage(&p, side);
            if advantage > best.0 {
                best = (advantage, p);
            }
            if advantage < worst.0 {
                worst = (advantage, p);
            }
        }
        (best.1, worst.1)
    }

    fn advantage(&self, p: &Point, side: &Side) -> f64 {
        self.nets(p, side.machines, side.hours, side.loaded).advantage()
    }

    /// Where serving and the best alternative meet when one input moves alone, with the meeting points of
    /// the best and the worst corner as interval; an end that does not meet is put at the end of the search.
    pub fn break_evens<const N: usize>(&self, side: &Side, inputs: [Moved; N]) -> [Option<Estimate>; N] {
        let (best, worst) = self.extremes(side);
        inputs.map(|input| {
            let (ceiling, rises) = match input {
                Moved::Utilisation => (NEVER_ABOVE, true),
                Moved::TokenPrice => (PRICE_CEILING, true),
                Moved::Hashprice => (PRICE_CEILING * self.hashprice.value, false),
            };
            let solve = |p: Point| {
                let moved = |value: f64| match input {
                    Moved::Utilisation => Point { utilisation: value, ..p },
                    Moved::TokenPrice => Point { price_factor: value, ..p },
                    Moved::Hashprice => Point { hashprice: value, ..p },
                };
                first(|value| (self.advantage(&moved(value), side) > SAME) == rises, ceiling)
            };
            let value = solve(self.middle())?;
            let beyond = |is_best: bool| if is_best == rises { 0.0 } else { ceiling };
            let end = |p: Point, is_best: bool| solve(p).unwrap_or(beyond(is_best));
            Some(Estimate::new(value, end(best, true), end(worst, false)))
        })
    }
}

/// Which comparison a break-even belongs to.
pub(super) struct Side<'a> {
    pub machines: &'a [JoulesPerTerahash],
    pub hours: Hours,
    pub loaded: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moved {
    Utilisation,
    TokenPrice,
    Hashprice,
}

/// The least value up to the ceiling from which `past` holds; `None` where it never does, or always did.
fn first(past: impl Fn(f64) -> bool, ceiling: f64) -> Option<f64> {
    if past(0.0) || !past(ceiling) {
        return None;
    }
    let (mut low, mut high) = (0.0, ceiling);
    for _ in 0..HALVINGS_OF_THE_SEARCH {
        let middle = (low + high) / 2.0;
        if past(middle) { high = middle } else { low = middle }
    }
    Some(high)
}
