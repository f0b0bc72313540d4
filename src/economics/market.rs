//! One dated snapshot of what mining pays: difficulty, reward, price. From TOML text.

use serde::Deserialize;

use super::{EconomicsError, plausible};

/// A market at one moment. Nothing is guessed: every field is required.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Market {
    /// True for the file that ships with the project: its numbers are old and only show the arithmetic.
    pub example: bool,
    /// Day of the snapshot, `YYYY-MM-DD`.
    pub date: String,
    pub source: String,
    pub difficulty: f64,
    /// New bitcoin in a block.
    pub subsidy_btc: f64,
    /// Fees of a block as a share of the whole reward, 0 to 1.
    pub fee_share: f64,
    pub btc_usd: f64,
    /// Share of the revenue the pool keeps, 0 to 1.
    pub pool_fee: f64,
}

impl Market {
    /// # Errors
    /// Text that is not this table, or a number that cannot be right.
    pub fn parse(text: &str) -> Result<Market, EconomicsError> {
        let m: Market = toml::from_str(text).map_err(|e| EconomicsError::Toml(e.to_string()))?;
        let check = |field, value, range, expected| plausible("market", field, value, range, expected);
        check("difficulty", m.difficulty, 1e12..=1e17, "1e12 to 1e17")?;
        check("subsidy_btc", m.subsidy_btc, 0.0..=50.0, "0 to 50 BTC")?;
        check("fee_share", m.fee_share, 0.0..=0.99, "a share from 0 to 0.99")?;
        check("btc_usd", m.btc_usd, 1.0..=1e8, "1 to 1e8 dollars")?;
        check("pool_fee", m.pool_fee, 0.0..=0.5, "a share from 0 to 0.5")?;
        Ok(m)
    }

    /// Mean reward of a block, BTC.
    pub fn reward_btc(&self) -> f64 {
        self.subsidy_btc / (1.0 - self.fee_share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../benches/market.example.toml");

    #[test]
    fn the_example_is_one_and_says_so() {
        assert!(Market::parse(EXAMPLE).unwrap().example);
    }

    #[test]
    fn what_cannot_be_right_is_named() {
        for (from, to, name) in [
            ("pool_fee = 0.0", "pool_fee = 2.0", "pool_fee"),
            ("subsidy_btc = 3.125", "subsidy_btc = -1.0", "subsidy_btc"),
            ("subsidy_btc = 3.125", "", "subsidy_btc"),
            ("example = true", "example = true\nhashrate = 1", "hashrate"),
        ] {
            assert!(EXAMPLE.contains(from), "{from}");
            let error = Market::parse(&EXAMPLE.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
