//! What hashing earns: from difficulty and price to dollars per megawatt-hour.

use super::market::Market;
use crate::quantity::{Hashprice, JoulesPerTerahash, UsdPerMwh};

const SECONDS_PER_DAY: f64 = 86_400.0;
const HASHES_PER_PETAHASH: f64 = 1e15;

const BLOCKS_PER_HALVING: u64 = 210_000;
/// The subsidy is counted in whole satoshis, of which the first had so many; it ends with the last halving.
const FIRST_SUBSIDY_SATS: u64 = 5_000_000_000;
const LAST_HALVING: u64 = 33;

/// New bitcoin in the block of a height, by the rule of the chain.
pub fn subsidy_btc(height: u64) -> f64 {
    let halvings = height / BLOCKS_PER_HALVING;
    if halvings >= LAST_HALVING { 0.0 } else { (FIRST_SUBSIDY_SATS >> halvings) as f64 / 1e8 }
}

/// Height of the block whose subsidy is the next half.
pub fn next_halving_height(height: u64) -> u64 {
    (height / BLOCKS_PER_HALVING + 1) * BLOCKS_PER_HALVING
}

/// The subsidy of any height that is nearest to this.
pub fn nearest_subsidy_btc(subsidy: f64) -> f64 {
    let all = (0..=LAST_HALVING).map(|halvings| subsidy_btc(halvings * BLOCKS_PER_HALVING));
    all.min_by(|a, b| (a - subsidy).abs().total_cmp(&(b - subsidy).abs())).unwrap_or(0.0)
}

/// Blocks a petahash per second finds in a day, in expectation: a block takes difficulty × 2³² hashes.
pub fn blocks_per_petahash_day(difficulty: f64) -> f64 {
    HASHES_PER_PETAHASH * SECONDS_PER_DAY / (difficulty * 2f64.powi(32))
}

/// Bitcoin a petahash per second earns in a day, before the pool's fee.
pub fn btc_per_petahash_day(market: &Market) -> f64 {
    blocks_per_petahash_day(market.difficulty) * market.reward_btc()
}

/// The same in dollars, after the pool's fee.
pub fn hashprice(market: &Market) -> Hashprice {
    Hashprice(btc_per_petahash_day(market) * market.btc_usd * (1.0 - market.pool_fee))
}

/// The hashprice on the first day after the next halving, everything else as it is.
pub fn hashprice_after_halving(market: &Market) -> Hashprice {
    Hashprice(hashprice(market).0 * ratio_after_halving(market))
}

/// The hashprice after the next halving as a share of today's: the subsidy halves, the fees do not.
pub fn ratio_after_halving(market: &Market) -> f64 {
    let reward = market.reward_btc();
    if reward > 0.0 { market.reward_after_halving_btc() / reward } else { 1.0 }
}

/// Mining revenue of a megawatt-hour at the machine. A petahash per second at e J/TH draws e kW, which
/// is 0.024 × e MWh a day.
pub fn revenue(hashprice: Hashprice, efficiency: JoulesPerTerahash) -> UsdPerMwh {
    UsdPerMwh(hashprice.0 / (0.024 * efficiency.0))
}

/// The same for a megawatt-hour at the site's meter.
pub fn revenue_at_meter(at_machine: UsdPerMwh, pue: f64, uptime: f64) -> UsdPerMwh {
    UsdPerMwh(at_machine.0 / pue * uptime)
}

/// Dollars that a watt earns in a day: 24 Wh.
pub fn usd_per_watt_day(revenue: UsdPerMwh) -> f64 {
    revenue.0 * 24e-6
}

#[cfg(test)]
mod tests {
    use super::*;

    fn market(difficulty: f64, btc_usd: f64, fee_share: f64) -> Market {
        Market {
            example: true,
            as_of: "2026-06-26".into(),
            source: "fixture".into(),
            difficulty,
            subsidy_btc: 3.125,
            fees_btc_per_block: None,
            fees_share_of_reward: Some(fee_share),
            btc_usd,
            pool_fee: 0.0,
            height: None,
            hashprice_low_usd_per_ph_day: None,
            hashprice_high_usd_per_ph_day: None,
            hashprice_range: None,
            published_hashprice_usd_per_ph_day: None,
            published_hashprice_source: None,
            token_price: Vec::new(),
        }
    }

    fn near(got: f64, want: f64) {
        assert!((got / want - 1.0).abs() < 1e-3, "{got} is not {want}");
    }

    #[test]
    fn published_figures_are_reproduced() {
        near(btc_per_petahash_day(&market(133.87e12, 1.0, 0.006)), 4.724e-4);
        near(hashprice(&market(152e12, 91_000.0, 0.006)).0, 37.86);
        near(hashprice(&market(155e12, 106_900.0, 0.006)).0, 43.6);
    }

    #[test]
    fn the_published_table_of_a_megawatt_hour_is_reproduced() {
        // Rounded there to whole dollars; the last row is a published cross-check.
        const EFFICIENCIES: [f64; 8] = [9.5, 11.0, 12.0, 13.5, 15.0, 17.5, 21.5, 29.5];
        for (price, row) in [
            (24.0, [105.0, 91.0, 83.0, 74.0, 67.0, 57.0, 47.0, 34.0]),
            (28.7, [126.0, 109.0, 100.0, 89.0, 80.0, 68.0, 56.0, 41.0]),
            (35.0, [154.0, 133.0, 122.0, 108.0, 97.0, 83.0, 68.0, 49.0]),
            (40.0, [175.0, 152.0, 139.0, 123.0, 111.0, 95.0, 78.0, 56.0]),
            (45.0, [197.0, 170.0, 156.0, 139.0, 125.0, 107.0, 87.0, 64.0]),
            (55.0, [241.0, 208.0, 191.0, 170.0, 153.0, 131.0, 107.0, 78.0]),
        ] {
            for (efficiency, want) in EFFICIENCIES.into_iter().zip(row) {
                let got = revenue(Hashprice(price), JoulesPerTerahash(efficiency)).0;
                assert!((got - want).abs() <= 0.51, "{price} at {efficiency}: {got} is not {want}");
            }
        }
        assert!((revenue(Hashprice(39.0), JoulesPerTerahash(17.5)).0 - 92.9).abs() < 0.05);
    }

    #[test]
    fn what_the_meter_and_a_day_make_of_it() {
        let machine = UsdPerMwh(100.0);
        near(revenue_at_meter(machine, 1.25, 0.9).0, 72.0);
        near(usd_per_watt_day(machine), 0.0024);
        // A petahash at e J/TH draws 1000·e watts: the two ways to its dollars of a day agree.
        let (price, e) = (Hashprice(28.68), JoulesPerTerahash(17.5));
        near(usd_per_watt_day(revenue(price, e)) * 1000.0 * e.0, 28.68);
    }

    #[test]
    fn the_halving_halves_the_subsidy_and_not_the_fees() {
        let no_fees = market(150e12, 90_000.0, 0.0);
        near(hashprice_after_halving(&no_fees).0, hashprice(&no_fees).0 / 2.0);
        let mut half_fees = market(150e12, 90_000.0, 0.5);
        near(hashprice_after_halving(&half_fees).0, hashprice(&half_fees).0 * 0.75);
        half_fees.fees_share_of_reward = None;
        half_fees.fees_btc_per_block = Some(3.125);
        near(hashprice_after_halving(&half_fees).0, hashprice(&half_fees).0 * 0.75);
    }
}
