//! One dated snapshot of what both sides are paid: the Bitcoin network and its price, and prices of tokens.
//!
//! TOML text → [`Market`] → TOML text. Prices age in days, so none is a constant of this crate. What is
//! missing or cannot be is an error that names the field; what is old, to come or disagrees is a warning.
//! Fetching one is not done here.

use std::time::Duration;

use jiff::civil::Date;
use jiff::{Timestamp, tz::TimeZone};
use serde::{Deserialize, Serialize};

use super::estimate::Estimate;
use super::{EconomicsError, mining, plausible};

/// Older than this, a market is stale.
pub const STALE_AFTER: Duration = Duration::from_secs(24 * 3600);
/// Clocks of two machines may differ by this much before a market counts as of the future.
const SKEW: Duration = Duration::from_secs(600);
/// Two sources that differ by more than this share are said to disagree.
pub const DISAGREEMENT: f64 = 0.03;
/// Heights that a chain of these years can have.
const HEIGHTS: std::ops::RangeInclusive<f64> = 800_000.0..=5_000_000.0;
/// Prices of tokens older than this are worth a word.
const TOKEN_PRICE_OLD_DAYS: u64 = 90;
const BLOCKS_PER_YEAR: f64 = 144.0 * 365.0;

/// A market at one moment. Nothing is guessed: what is not optional must be there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Market {
    /// True for the file that ships with the project: its numbers are old and only show the arithmetic.
    pub example: bool,
    /// `2026-06-26T10:00:00Z`, or a day (meaning its first second, UTC).
    pub as_of: String,
    pub source: String,
    pub difficulty: f64,
    /// New bitcoin in a block.
    pub subsidy_btc: f64,
    /// Fees of a mean block, BTC. Either this …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fees_btc_per_block: Option<f64>,
    /// … or fees as a share of the whole reward, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fees_share_of_reward: Option<f64>,
    pub btc_usd: f64,
    /// Share of the revenue the pool keeps, 0 to 1.
    pub pool_fee: f64,
    /// Height of the chain: says when the subsidy halves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub height: Option<u64>,
    /// The hashprice moved between these (for instance over 30 days); carried through to the verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hashprice_low_usd_per_ph_day: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hashprice_high_usd_per_ph_day: Option<f64>,
    /// What that range is: `30 days`, `stated by the operator`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hashprice_range: Option<String>,
    /// What an index publishes: a cross-check only, never used as the price.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published_hashprice_usd_per_ph_day: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published_hashprice_source: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub token_price: Vec<TokenPrice>,
}

/// What a model's tokens sell for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenPrice {
    pub model: String,
    pub usd_per_million_input_tokens: f64,
    /// Input tokens found in the prefix cache; absent, they sell as input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usd_per_million_cached_tokens: Option<f64>,
    pub usd_per_million_output_tokens: f64,
    pub source: String,
    /// `YYYY-MM-DD`.
    pub date: String,
}

/// What a reader of the market must be told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "warning", rename_all = "snake_case")]
pub enum MarketWarning {
    #[error("EXAMPLE market: its numbers are of the past and only show the arithmetic")]
    Example,
    #[error("the market is {age_hours:.1} h old; after 24 h it is stale")]
    Stale { age_hours: f64 },
    #[error("the market is dated {as_of}, which is still to come")]
    Future { as_of: String },
    #[error("{what}: {first_source} says {first}, {second_source} says {second}: {percent:.1} % apart")]
    Disagree {
        what: String,
        first_source: String,
        first: f64,
        second_source: String,
        second: f64,
        percent: f64,
    },
    #[error("the market has no range of the hashprice: the verdict holds for today's only")]
    NoHashpriceRange,
    #[error("the hashprice of {hashprice:.2} $/PH/day lies outside its own range, {low:.2} to {high:.2}")]
    OutsideRange { hashprice: f64, low: f64, high: f64 },
    #[error("the price of {model} is {days} days old")]
    OldTokenPrice { model: String, days: u64 },
    #[error("the price of {model} is dated {date}, which is still to come")]
    FutureTokenPrice { model: String, date: String },
}

/// The two values, if they differ by more than [`DISAGREEMENT`] of the smaller.
pub fn disagreement(what: &str, first: (&str, f64), second: (&str, f64)) -> Option<MarketWarning> {
    let apart = (first.1 - second.1).abs() / first.1.abs().min(second.1.abs());
    // Not a number (both zero): they agree.
    (apart > DISAGREEMENT).then(|| MarketWarning::Disagree {
        what: what.into(),
        first_source: first.0.into(),
        first: first.1,
        second_source: second.0.into(),
        second: second.1,
        percent: apart * 100.0,
    })
}

impl Market {
    /// # Errors
    /// Text that is not this table, or a number that cannot be right.
    pub fn parse(text: &str) -> Result<Market, EconomicsError> {
        let m: Market = toml::from_str(text).map_err(|e| EconomicsError::Toml(e.to_string()))?;
        m.check()?;
        Ok(m)
    }

    /// The file that [`Market::parse`] reads back to the same market.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a market is a table of numbers and strings")
    }

    /// # Errors
    /// The first field that cannot be right.
    pub fn check(&self) -> Result<(), EconomicsError> {
        let check = |field, value, range, expected| plausible("market", field, value, range, expected);
        check("difficulty", self.difficulty, 1e12..=1e17, "1e12 to 1e17")?;
        check("subsidy_btc", self.subsidy_btc, 0.0..=50.0, "0 to 50 BTC")?;
        check("btc_usd", self.btc_usd, 1.0..=1e8, "1 to 1e8 dollars")?;
        check("pool_fee", self.pool_fee, 0.0..=0.5, "a share from 0 to 0.5")?;
        match (self.fees_btc_per_block, self.fees_share_of_reward) {
            (Some(fees), None) => check("fees_btc_per_block", fees, 0.0..=100.0, "0 to 100 BTC")?,
            (None, Some(share)) => {
                check("fees_share_of_reward", share, 0.0..=0.99, "a share from 0 to 0.99")?;
            }
            _ => return Err(self.wrong("give either fees_btc_per_block or fees_share_of_reward")),
        }
        match (self.hashprice_low_usd_per_ph_day, self.hashprice_high_usd_per_ph_day) {
            (None, None) => {}
            (Some(low), Some(high)) => {
                check("hashprice_low_usd_per_ph_day", low, 0.1..=1e4, "0.1 to 1e4 $/PH/day")?;
                check("hashprice_high_usd_per_ph_day", high, low..=1e4, "not below the low end")?;
            }
            _ => return Err(self.wrong("hashprice_low_usd_per_ph_day and hashprice_high_… go together")),
        }
        if let Some(published) = self.published_hashprice_usd_per_ph_day {
            check("published_hashprice_usd_per_ph_day", published, 0.1..=1e4, "0.1 to 1e4 $/PH/day")?;
        }
        let (due, expected) = match self.height {
            Some(height) => {
                check("height", height as f64, HEIGHTS, "800,000 to 5,000,000")?;
                (mining::subsidy_btc(height), "that of its height")
            }
            // Some halving's, the nearest one.
            None => (mining::nearest_subsidy_btc(self.subsidy_btc), "50 BTC halved a whole number of times"),
        };
        check("subsidy_btc", self.subsidy_btc, due * 0.999..=due * 1.001, expected)?;
        self.moment()?;
        if self.source.trim().is_empty() {
            return Err(self.wrong("source is empty"));
        }
        for (i, price) in self.token_price.iter().enumerate() {
            price.check()?;
            if self.token_price[..i].iter().any(|p| p.model.eq_ignore_ascii_case(&price.model)) {
                return Err(self.wrong(&format!("two token prices of {}", price.model)));
            }
        }
        Ok(())
    }

    fn wrong(&self, problem: &str) -> EconomicsError {
        EconomicsError::Invalid { entry: "market".into(), problem: problem.into() }
    }

    /// Mean reward of a block, BTC.
    pub fn reward_btc(&self) -> f64 {
        self.subsidy_btc + self.fees_btc()
    }

    /// Mean reward after the next halving of the subsidy, with the same fees.
    pub fn reward_after_halving_btc(&self) -> f64 {
        self.subsidy_btc / 2.0 + self.fees_btc()
    }

    /// Fees of a mean block.
    pub fn fees_btc(&self) -> f64 {
        self.fees_btc_per_block.unwrap_or_else(|| {
            let share = self.fees_share_of_reward.unwrap_or(0.0);
            self.subsidy_btc * share / (1.0 - share)
        })
    }

    /// Today's hashprice with the range the market gives for it.
    pub fn hashprice(&self) -> Estimate {
        let today = mining::hashprice(self).0;
        let (low, high) = (self.hashprice_low_usd_per_ph_day, self.hashprice_high_usd_per_ph_day);
        Estimate::new(today, low.unwrap_or(today), high.unwrap_or(today))
    }

    /// Height of the block whose subsidy is the first half one.
    pub fn next_halving_height(&self) -> Option<u64> {
        self.height.map(mining::next_halving_height)
    }

    /// Years of ten-minute blocks to the next halving; `None` without a height.
    pub fn years_to_halving(&self) -> Option<f64> {
        Some((self.next_halving_height()? - self.height?) as f64 / BLOCKS_PER_YEAR)
    }

    /// The price of a model's tokens, if there is one.
    pub fn token_price(&self, model: &str) -> Option<&TokenPrice> {
        self.token_price.iter().find(|p| p.model.eq_ignore_ascii_case(model))
    }

    fn moment(&self) -> Result<Timestamp, EconomicsError> {
        let moment = self.as_of.parse().ok().or_else(|| first_second(&self.as_of));
        moment.ok_or_else(|| {
            self.wrong(&format!(
                "as_of `{}` is neither a day (YYYY-MM-DD) nor a moment with its offset (…Z)",
                self.as_of
            ))
        })
    }

    /// Age at a moment, seconds since 1970-01-01 UTC.
    ///
    /// # Errors
    /// A market of the future.
    pub fn age(&self, now_unix_seconds: u64) -> Result<Duration, MarketWarning> {
        let future = || MarketWarning::Future { as_of: self.as_of.clone() };
        let at = self.moment().map_err(|_| future())?.as_second();
        let now = i64::try_from(now_unix_seconds).unwrap_or(i64::MAX);
        if at > now.saturating_add(SKEW.as_secs() as i64) {
            return Err(future());
        }
        Ok(Duration::from_secs(now.saturating_sub(at).max(0) as u64))
    }

    /// All that a reader must be told before using it.
    pub fn warnings(&self, now_unix_seconds: u64) -> Vec<MarketWarning> {
        let mut all = Vec::new();
        if self.example {
            all.push(MarketWarning::Example);
        }
        match self.age(now_unix_seconds) {
            Err(future) => all.push(future),
            Ok(age) if age > STALE_AFTER => {
                all.push(MarketWarning::Stale { age_hours: age.as_secs_f64() / 3600.0 });
            }
            Ok(_) => {}
        }
        let computed = mining::hashprice(self).0;
        if let Some(published) = self.published_hashprice_usd_per_ph_day {
            let source = self.published_hashprice_source.as_deref().unwrap_or("an index");
            all.extend(disagreement("hashprice", ("arithmetic", computed), (source, published)));
        }
        match (self.hashprice_low_usd_per_ph_day, self.hashprice_high_usd_per_ph_day) {
            (Some(low), Some(high)) if !(low..=high).contains(&computed) => {
                all.push(MarketWarning::OutsideRange { hashprice: computed, low, high });
            }
            (Some(_), Some(_)) => {}
            _ => all.push(MarketWarning::NoHashpriceRange),
        }
        for price in &self.token_price {
            let Some(at) = first_second(&price.date) else { continue };
            let days = now_unix_seconds.saturating_sub(at.as_second().max(0) as u64) / 86_400;
            if days > TOKEN_PRICE_OLD_DAYS {
                all.push(MarketWarning::OldTokenPrice { model: price.model.clone(), days });
            }
            // A day begins earlier in the east.
            if at.as_second() > i64::try_from(now_unix_seconds).unwrap_or(i64::MAX).saturating_add(86_400) {
                let (model, date) = (price.model.clone(), price.date.clone());
                all.push(MarketWarning::FutureTokenPrice { model, date });
            }
        }
        all
    }
}

impl TokenPrice {
    fn check(&self) -> Result<(), EconomicsError> {
        let check = |field, value| {
            plausible(&self.model, field, value, 0.0..=10_000.0, "0 to 10,000 dollars per million tokens")
        };
        check("usd_per_million_input_tokens", self.usd_per_million_input_tokens)?;
        check("usd_per_million_output_tokens", self.usd_per_million_output_tokens)?;
        if let Some(cached) = self.usd_per_million_cached_tokens {
            check("usd_per_million_cached_tokens", cached)?;
        }
        let invalid = |problem: String| EconomicsError::Invalid { entry: self.model.clone(), problem };
        if self.source.trim().is_empty() {
            return Err(invalid("a price without a source".into()));
        }
        match first_second(&self.date) {
            Some(_) => Ok(()),
            None => Err(invalid(format!("date `{}` is not a day (YYYY-MM-DD)", self.date))),
        }
    }
}

/// Of a day in UTC. A day only: a time without its offset could be any of a day's, and is none here.
fn first_second(day: &str) -> Option<Timestamp> {
    let date: Date = day.parse().ok().filter(|_| day.len() == "2026-06-26".len())?;
    Some(date.to_zoned(TimeZone::UTC).ok()?.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../benches/market.example.toml");
    /// `date -u -d 2026-06-26 +%s`
    const MIDNIGHT: u64 = 1_782_432_000;

    #[test]
    fn the_example_is_one_and_gives_the_published_hashprice() {
        let market = Market::parse(EXAMPLE).unwrap();
        assert!(market.example);
        assert!((market.hashprice().value / 28.68 - 1.0).abs() < 1e-3);
        assert_eq!(market.token_price("llama-3.2-1b").unwrap().usd_per_million_output_tokens, 0.01);
        assert_eq!(market.token_price("no such model"), None);
        assert_eq!(market.next_halving_height(), Some(1_050_000));
        let day = |days: u64| market.warnings(MIDNIGHT + days * 86_400 + 3600);
        let future = |w: &MarketWarning| matches!(w, MarketWarning::FutureTokenPrice { .. });
        // The prices of tokens are of the first of August.
        let (to_come, others): (Vec<_>, Vec<_>) = day(0).into_iter().partition(future);
        assert_eq!((to_come.len(), others), (market.token_price.len(), vec![MarketWarning::Example]));
        assert!(!day(40).iter().any(future));
    }

    #[test]
    fn it_goes_to_toml_and_back() {
        let market = Market::parse(EXAMPLE).unwrap();
        assert_eq!(Market::parse(&market.to_toml()).unwrap(), market);
    }

    #[test]
    fn what_cannot_be_right_is_named() {
        for (from, to, name) in [
            ("pool_fee = 0.0", "pool_fee = 2.0", "pool_fee"),
            ("pool_fee = 0.0", "", "pool_fee"),
            ("subsidy_btc = 3.125", "subsidy_btc = -1.0", "subsidy_btc"),
            ("subsidy_btc = 3.125", "", "subsidy_btc"),
            ("subsidy_btc = 3.125", "subsidy_btc = 6.25", "that of its height"),
            ("difficulty = 133.87e12", "difficulty = nan", "difficulty"),
            ("difficulty = 133.87e12", "difficulty = 133.87", "difficulty"),
            ("btc_usd = 60708.0", "btc_usd = inf", "btc_usd"),
            ("fees_share_of_reward = 0.006", "fees_share_of_reward = 1.0", "fees_share_of_reward"),
            ("fees_share_of_reward = 0.006", "", "fees_btc_per_block or"),
            (
                "fees_share_of_reward = 0.006",
                "fees_share_of_reward = 0.006\nfees_btc_per_block = 1",
                "either",
            ),
            ("hashprice_low_usd_per_ph_day = 24.0", "", "go together"),
            ("hashprice_low_usd_per_ph_day = 24.0", "hashprice_low_usd_per_ph_day = 50.0", "hashprice_high"),
            ("as_of = \"2026-06-26\"", "as_of = \"yesterday\"", "as_of"),
            ("as_of = \"2026-06-26\"", "as_of = \"2026-06-26T10:00:00\"", "offset"),
            ("source = \"diff", "source = \"\" #", "source is empty"),
            ("example = true", "example = true\nhashrate = 1", "hashrate"),
            ("usd_per_million_output_tokens = 0.138", "usd_per_million_output_tokens = -1.0", "Qwen3-8B"),
            ("date = \"2026-08-01\"", "date = \"August\"", "August"),
        ] {
            assert!(EXAMPLE.contains(from), "{from}");
            let error = Market::parse(&EXAMPLE.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(error.contains(name), "{to}: {error}");
        }
    }

    #[test]
    fn age_is_counted_from_the_moment_it_says() {
        let mut market = Market::parse(EXAMPLE).unwrap();
        let hours = |h: u64| Duration::from_secs(h * 3600);
        assert_eq!(market.age(MIDNIGHT + 3600), Ok(hours(1)));
        assert_eq!(market.age(MIDNIGHT - 60), Ok(hours(0)));
        let future = MarketWarning::Future { as_of: "2026-06-26".into() };
        assert_eq!(market.age(MIDNIGHT - 601), Err(future.clone()));
        assert!(market.warnings(MIDNIGHT - 601).contains(&future));
        market.as_of = "2026-06-26T02:00:00+01:00".into();
        assert_eq!(market.age(MIDNIGHT + 2 * 3600), Ok(hours(1)));
        market.as_of = "2026-06-26T10:00:00Z".into();
        assert_eq!(market.age(MIDNIGHT + 34 * 3600), Ok(hours(24)));
        let stale = |now| market.warnings(now).iter().any(|w| matches!(w, MarketWarning::Stale { .. }));
        assert!(!stale(MIDNIGHT + 34 * 3600) && stale(MIDNIGHT + 34 * 3600 + 1));
        assert!(market.age(u64::MAX).is_ok());
    }

    #[test]
    fn sources_that_disagree_are_named() {
        let apart = |a, b| disagreement("price", ("first", a), ("second", b));
        assert_eq!(apart(100.0, 103.0), None);
        assert_eq!(apart(0.0, 0.0), None);
        let text = apart(103.1, 100.0).unwrap().to_string();
        assert_eq!(text, "price: first says 103.1, second says 100: 3.1 % apart");
        assert!(apart(0.0, 1.0).is_some());
    }
}
