//! A mempool-compatible REST server (mempool.space, one's own, brk): four endpoints → chain and price.
//!
//! Both spellings of times and satoshis as strings are taken, as servers differ. Each answer is checked against
//! the others: an index that lags behind the chain is an error, not an old figure.

use serde_json::Value;

use super::answer::{Answer, BLOCK_SECONDS, DIFFICULTIES, HEIGHTS, PRICES, SATS_PER_BTC, TIMES};
use super::{Chain, MarketError, Price};
use crate::http_client::HttpClient;

const HASHRATE: &str = "/api/v1/mining/hashrate/3d";
const REWARDS: &str = "/api/v1/mining/reward-stats/144";
const RETARGET: &str = "/api/v1/difficulty-adjustment";
const PRICE: &str = "/api/v1/prices";

/// The mining index may be so many blocks behind the chain.
const MOST_LAG: u64 = 12;
const RETARGET_BLOCKS: u64 = 2016;
/// The pace since the last retarget says nothing before so many blocks.
const FEWEST_FOR_PACE: u64 = 72;

/// The answers of the three chain endpoints.
pub(super) struct Answers {
    pub hashrate: Value,
    pub rewards: Value,
    pub retarget: Value,
}

pub(super) fn ask_chain(client: &HttpClient, root: &str) -> Result<Answers, MarketError> {
    let get = |endpoint: &str| client.get_json(&format!("{}{endpoint}", root.trim_end_matches('/')));
    Ok(Answers { hashrate: get(HASHRATE)?, rewards: get(REWARDS)?, retarget: get(RETARGET)? })
}

pub(super) fn ask_price(client: &HttpClient, root: &str) -> Result<Price, MarketError> {
    price(&client.get_json(&format!("{}{PRICE}", root.trim_end_matches('/')))?).map_err(|e| e.of(root))
}

pub(super) fn chain(answers: &Answers) -> Result<Chain, MarketError> {
    let hashrate = Answer::new(HASHRATE, &answers.hashrate);
    let rewards = Answer::new(REWARDS, &answers.rewards);
    let retarget = Answer::new(RETARGET, &answers.retarget);

    let next_retarget = retarget.count("nextRetargetHeight", HEIGHTS)?;
    let remaining = retarget.count("remainingBlocks", 0.0..=RETARGET_BLOCKS as f64)?;
    let height = next_retarget - remaining;
    let first = rewards.count("startBlock", HEIGHTS)?;
    let last = rewards.count("endBlock", HEIGHTS)?;
    if first > last || last - first > RETARGET_BLOCKS {
        return Err(rewards.error("endBlock", format!("{last} does not follow startBlock {first} closely")));
    }
    if height.abs_diff(last) > MOST_LAG {
        let problem = format!("{last}, but the chain is at {height}: the server's mining index is behind");
        return Err(rewards.error("endBlock", problem));
    }
    let blocks = (last - first + 1) as f64;
    let most = 1_000.0 * blocks * SATS_PER_BTC;
    let reward = rewards.number("totalReward", 0.0..=most)? / blocks / SATS_PER_BTC;
    let fees = rewards.number("totalFee", 0.0..=most)? / blocks / SATS_PER_BTC;
    super::check_subsidy(&rewards, "totalReward", reward - fees, first, last)?;

    Ok(Chain {
        height,
        difficulty: difficulty(&hashrate, &retarget)?,
        fees_btc: fees,
        block_seconds: pace(&retarget, RETARGET_BLOCKS - remaining)?,
        blocks: last - first + 1,
        newest: answered(&retarget, RETARGET_BLOCKS - remaining)?,
    })
}

/// Seconds from block to block since the last retarget, if there were enough of them.
fn pace(retarget: &Answer, blocks: u64) -> Result<Option<f64>, MarketError> {
    if blocks < FEWEST_FOR_PACE {
        return Ok(None);
    }
    let (low, high) = BLOCK_SECONDS.into_inner();
    Ok(Some(retarget.number("timeAvg", 1e3 * low..=1e3 * high)? / 1e3))
}

/// When the server knew this: its mean pace is the time from the last retarget to its own clock. A server (or a
/// cache before it) that stands still goes on giving the same.
fn answered(retarget: &Answer, blocks: u64) -> Result<Option<u64>, MarketError> {
    let (Some(since), Some(pace)) = (retarget.optional("previousTime", TIMES)?, pace(retarget, blocks)?)
    else {
        return Ok(None);
    };
    Ok(Some((since + blocks as f64 * pace) as u64))
}

/// The difficulty now, held against the last of the server's list: its adjustments are 4-fold at most.
fn difficulty(hashrate: &Answer, retarget: &Answer) -> Result<f64, MarketError> {
    let now = hashrate.number("currentDifficulty", DIFFICULTIES)?;
    retarget.optional("difficultyChange", -80.0..=400.0)?;
    let list = match hashrate.value.get("difficulty") {
        None | Some(Value::Null) => return Ok(now),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(hashrate.error("difficulty", "not a list")),
    };
    let mut newest: Option<(f64, f64)> = None;
    for entry in list {
        let entry = Answer::new(hashrate.endpoint, entry);
        let time = match entry.value.get("timestamp") {
            Some(_) => entry.number("timestamp", TIMES)?,
            None => entry.number("time", TIMES)?,
        };
        let value = entry.number("difficulty", DIFFICULTIES)?;
        if newest.is_none_or(|(t, _)| time >= t) {
            newest = Some((time, value));
        }
    }
    match newest {
        Some((_, last)) if !(0.25..=4.0).contains(&(now / last)) => Err(hashrate
            .error("currentDifficulty", format!("{now} does not follow {last} of the list `difficulty`"))),
        _ => Ok(now),
    }
}

pub(super) fn price(answer: &Value) -> Result<Price, MarketError> {
    let answer = Answer::new(PRICE, answer);
    // A server without a price feed says -1 or 0, with a time of 0.
    let btc_usd = answer.number("USD", PRICES)?;
    let time = match answer.value.get("time") {
        Some(_) => answer.number("time", TIMES)?,
        None => answer.number("timestamp", TIMES)?,
    };
    Ok(Price { btc_usd, at: time as u64 })
}
