//! L4a. Fetches what mining pays now into one dated snapshot: `hashwatt market fetch`. Nothing else asks the network.
//!
//! A mempool-compatible server, or Bitcoin Core and a price → [`Market`] with warnings where sources disagree.
//! What is missing or implausible is an error that names the endpoint and the field, never a guess.
//! Knows nothing of flags, benches and verdicts.

mod answer;
mod core;
pub mod file;
mod mempool;
#[cfg(test)]
mod tests;

use jiff::Timestamp;

use self::answer::Answer;
use crate::economics::EconomicsError;
use crate::economics::market::{Market, disagreement};
use crate::economics::mining::{self, subsidy_btc};
use crate::http_client::{BasicAuth, HttpClient, HttpError, shown};

/// A source that has not followed the chain for longer has lost it.
const NEWEST_BLOCK_SECONDS: u64 = 6 * 3600;
/// Clocks of two machines may differ by so much.
const SKEW_SECONDS: u64 = 600;

/// Who is asked for the chain.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// A mempool-compatible REST server, by its root: `https://mempool.space`.
    Mempool { url: String },
    /// Bitcoin Core's RPC, which knows no price.
    Core { url: String, auth: BasicAuth },
}

#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    pub source: Source,
    /// Dollars for a bitcoin, by the operator; wins over a fetched one, and is compared with it.
    pub btc_usd: Option<f64>,
    /// Share the pool keeps.
    pub pool_fee: f64,
    /// A second mempool-compatible server to compare with.
    pub cross_check: Option<String>,
    /// An index's figure to compare with, $/PH/day before the pool's fee.
    pub hashprice: Option<f64>,
}

/// What a source says of the chain.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Chain {
    /// Of the newest block.
    pub height: u64,
    pub difficulty: f64,
    /// Fees of a mean block of the last `blocks`.
    pub fees_btc: f64,
    pub blocks: u64,
    /// Observed time from block to block, over half a day at least.
    pub block_seconds: Option<f64>,
    /// When the source last followed the chain, where it can be told.
    pub newest: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Price {
    btc_usd: f64,
    at: u64,
}

/// A snapshot with what must be told about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Fetched {
    pub market: Market,
    pub chain: Chain,
    pub warnings: Vec<String>,
}

/// Why there is no snapshot.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum MarketError {
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The answer lacks what its endpoint should say.
    #[error("{endpoint}: {field}: {problem}")]
    Field { endpoint: String, field: String, problem: String },
    #[error("Bitcoin Core: {method}: {message} (code {code})")]
    Rpc { method: String, code: i64, message: String },
    #[error("no {field}: {hint}")]
    Missing { field: &'static str, hint: &'static str },
    #[error(transparent)]
    Implausible(#[from] EconomicsError),
    #[error("{path} was not written by `hashwatt market fetch`; --force overwrites it")]
    Kept { path: String },
    #[error("{path}: {problem}")]
    File { path: String, problem: String },
}

impl MarketError {
    /// Of two servers that are asked the same: which it was.
    fn of(self, url: &str) -> MarketError {
        match self {
            MarketError::Field { endpoint, field, problem } => {
                let endpoint = format!("{}{endpoint}", shown(url.trim_end_matches('/')));
                MarketError::Field { endpoint, field, problem }
            }
            other => other,
        }
    }
}

impl Chain {
    /// The next block whose subsidy is half, how many blocks until then, and when at the observed pace.
    pub fn next_halving(&self, now: u64) -> (u64, u64, Option<u64>) {
        let height = mining::next_halving_height(self.height);
        let left = height - self.height;
        (height, left, self.block_seconds.map(|pace| now + (left as f64 * pace) as u64))
    }
}

/// The mean subsidy of these blocks is what the chain's rule allows; some miners claim a little less.
fn check_subsidy(answer: &Answer, field: &str, mean: f64, first: u64, last: u64) -> Result<(), MarketError> {
    let (low, high) = (subsidy_btc(last) * 0.98, subsidy_btc(first) * 1.001);
    match (low..=high).contains(&mean) {
        true => Ok(()),
        false => Err(answer.error(
            field,
            format!("{mean:.4} BTC of subsidy a block; the rule gives {:.4} at {last}", subsidy_btc(last)),
        )),
    }
}

/// Asks the sources and puts the snapshot together. `now` is in seconds since 1970.
///
/// # Errors
/// [`MarketError`]. A second source that fails is a warning only.
pub fn fetch(client: &HttpClient, request: &Request, now: u64) -> Result<Fetched, MarketError> {
    let (chain, fetched_price, name) = match &request.source {
        Source::Mempool { url } => {
            let chain = mempool::chain(&mempool::ask_chain(client, url)?).map_err(|e| e.of(url))?;
            // With a price by hand, a server without a feed is good enough.
            let price = match (mempool::ask_price(client, url), request.btc_usd) {
                (Ok(price), _) => Ok(price),
                (Err(error), Some(_)) => Err(Some(error)),
                (Err(error), None) => return Err(error),
            };
            (chain, price, shown(url))
        }
        Source::Core { url, auth } => {
            (core::chain(client, url, auth)?, Err(None), format!("Bitcoin Core at {}", shown(url)))
        }
    };
    let mut warnings = Vec::new();
    if let Err(Some(error)) = &fetched_price {
        warnings.push(format!("the price by hand is not compared with another: {error}"));
    }
    let mut fetched = assemble(request, chain, fetched_price.ok(), &name, now)?;
    if let Some(url) = &request.cross_check {
        match second_opinion(client, url, &fetched, &name, request.btc_usd.is_some()) {
            Ok(apart) => fetched.warnings.extend(apart),
            Err(error) => fetched.warnings.push(format!("the second source could not be compared: {error}")),
        }
    }
    fetched.warnings.splice(0..0, warnings);
    Ok(fetched)
}

const BY_HAND: &str = "the price given";

fn assemble(
    request: &Request,
    chain: Chain,
    fetched: Option<Price>,
    name: &str,
    now: u64,
) -> Result<Fetched, MarketError> {
    let field = |field: &str, problem: String| {
        Err(MarketError::Field { endpoint: name.into(), field: field.into(), problem })
    };
    if let Some(newest) = chain.newest
        && now.saturating_sub(newest) > NEWEST_BLOCK_SECONDS
    {
        let hours = (now - newest) / 3600;
        return field(
            "time",
            format!("what it knows of the chain is {hours} h old: it lost touch with the network"),
        );
    }
    if let Some(price) = fetched
        && price.at > now + SKEW_SECONDS
    {
        return field("time", format!("the price is of {}, which is still to come", moment(price.at)));
    }
    let mut warnings = Vec::new();
    let (price, price_source) = match (request.btc_usd, fetched) {
        (Some(given), fetched) => {
            let apart = fetched.and_then(|f| disagreement("btc_usd", (BY_HAND, given), (name, f.btc_usd)));
            warnings.extend(apart.map(|a| a.to_string()));
            (Price { btc_usd: given, at: now }, BY_HAND)
        }
        (None, Some(fetched)) => (fetched, name),
        (None, None) => {
            let hint = "Bitcoin Core knows none; give one with --price, or ask a mempool-compatible server";
            return Err(MarketError::Missing { field: "price", hint });
        }
    };
    // A snapshot is as old as its oldest part.
    let at = price.at.min(now);
    let market = Market {
        example: false,
        as_of: moment(at),
        source: format!("{name}: chain, fees of {} blocks; btc_usd: {price_source}", chain.blocks),
        difficulty: chain.difficulty,
        subsidy_btc: subsidy_btc(chain.height),
        fees_btc_per_block: Some(chain.fees_btc),
        fees_share_of_reward: None,
        btc_usd: price.btc_usd,
        pool_fee: request.pool_fee,
        height: Some(chain.height),
        hashprice_low_usd_per_ph_day: None,
        hashprice_high_usd_per_ph_day: None,
        hashprice_range: None,
        published_hashprice_usd_per_ph_day: None,
        published_hashprice_source: None,
        token_price: Vec::new(),
    };
    market.check()?;
    if let Some(index) = request.hashprice {
        let gross = mining::hashprice(&Market { pool_fee: 0.0, ..market.clone() }).0;
        let apart =
            disagreement("hashprice before the pool's fee", (name, gross), ("the index given", index));
        warnings.extend(apart.map(|a| a.to_string()));
    }
    Ok(Fetched { market, chain, warnings })
}

/// What another server says otherwise.
fn second_opinion(
    client: &HttpClient,
    url: &str,
    fetched: &Fetched,
    name: &str,
    price_by_hand: bool,
) -> Result<Vec<String>, MarketError> {
    let second = mempool::chain(&mempool::ask_chain(client, url)?).map_err(|e| e.of(url))?;
    let price = mempool::ask_price(client, url)?;
    let (market, other) = (&fetched.market, shown(url));
    let priced_by = if price_by_hand { BY_HAND } else { name };
    let reward = subsidy_btc(second.height) + second.fees_btc;
    let pairs = [
        ("difficulty", name, market.difficulty, second.difficulty),
        ("reward of a block, BTC", name, market.reward_btc(), reward),
        ("btc_usd", priced_by, market.btc_usd, price.btc_usd),
    ];
    let apart = |(what, name, mine, theirs)| disagreement(what, (name, mine), (&other, theirs));
    Ok(pairs.into_iter().filter_map(apart).map(|a| a.to_string()).collect())
}

/// `2026-06-26T10:00:00Z`.
pub fn moment(unix_seconds: u64) -> String {
    let seconds = i64::try_from(unix_seconds).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).map_or_else(|_| unix_seconds.to_string(), |t| t.to_string())
}
