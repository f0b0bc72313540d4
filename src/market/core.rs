//! Bitcoin Core's RPC: the chain from the operator's own node, without a price.
//!
//! Tip and difficulty in one batch, then the last day's `getblockstats` in a few. A node that still syncs, or
//! of another chain than main, is an error.

use serde_json::{Value, json};

use super::answer::{Answer, BLOCK_SECONDS, DIFFICULTIES, HEIGHTS, SATS_PER_BTC, TIMES};
use super::{Chain, MarketError};
use crate::error::printable;
use crate::http_client::{BasicAuth, HttpClient};

/// Blocks of a day.
const BLOCKS: u64 = 144;
/// Blocks asked for at once: a batch is answered within the client's patience on a slow disk.
const BATCH: usize = 24;

const CHAIN_INFO: &str = "getblockchaininfo";
const MINING_INFO: &str = "getmininginfo";
const BLOCK_STATS: &str = "getblockstats";

pub(super) fn chain(client: &HttpClient, url: &str, auth: &BasicAuth) -> Result<Chain, MarketError> {
    let ask = |calls: &[(&str, Value)]| {
        let answer = client.post_json(url, Some(auth), &batch(calls))?;
        results(calls, answer)
    };
    let state = ask(&[(CHAIN_INFO, json!([])), (MINING_INFO, json!([]))])?;
    let tip = tip(&state[0], &state[1])?;
    let calls: Vec<(&str, Value)> = (0..BLOCKS)
        .map(|back| (BLOCK_STATS, json!([tip.height - back, ["height", "subsidy", "totalfee", "time"]])))
        .collect();
    let mut blocks = Vec::new();
    for calls in calls.chunks(BATCH) {
        blocks.extend(ask(calls)?);
    }
    day(tip, &blocks)
}

fn batch(calls: &[(&str, Value)]) -> Value {
    let call = |(id, (method, params)): (usize, &(&str, Value))| json!({"jsonrpc": "1.0", "id": id, "method": method, "params": params});
    calls.iter().enumerate().map(call).collect()
}

/// The results of a batch in the order of its calls; servers may answer in any.
pub(super) fn results(calls: &[(&str, Value)], answer: Value) -> Result<Vec<Value>, MarketError> {
    let field = |method: &str, problem: &str| {
        Err(MarketError::Field { endpoint: method.into(), field: "result".into(), problem: problem.into() })
    };
    let Value::Array(mut items) = answer else {
        return field(calls[0].0, "the answer to a batch is not a list");
    };
    let mut results = Vec::with_capacity(calls.len());
    for (id, (method, _)) in calls.iter().enumerate() {
        let mine = items.iter_mut().find(|item| item.get("id").and_then(Value::as_u64) == Some(id as u64));
        let Some(item) = mine else {
            return field(method, "the batch lacks it");
        };
        if let Some(error) = item.get("error").filter(|e| !e.is_null()) {
            let message = error.get("message").and_then(Value::as_str).unwrap_or("no message");
            return Err(MarketError::Rpc {
                method: method.to_string(),
                code: error.get("code").and_then(Value::as_i64).unwrap_or(0),
                message: printable(message, 200),
            });
        }
        results.push(item.get_mut("result").map_or(Value::Null, Value::take));
    }
    Ok(results)
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Tip {
    height: u64,
    difficulty: f64,
}

pub(super) fn tip(chain: &Value, mining: &Value) -> Result<Tip, MarketError> {
    let (chain, mining) = (Answer::new(CHAIN_INFO, chain), Answer::new(MINING_INFO, mining));
    match chain.field("chain")?.as_str() {
        Some("main") => {}
        _ => return Err(chain.error("chain", "not `main`: coins of other chains have no price")),
    }
    if chain.value.get("initialblockdownload").is_some_and(|v| *v != Value::Bool(false)) {
        return Err(chain.error("initialblockdownload", "the node still syncs"));
    }
    let height = chain.count("blocks", HEIGHTS)?;
    if mining.count("blocks", HEIGHTS)?.abs_diff(height) > 3 {
        return Err(mining.error("blocks", format!("far from the {height} of {CHAIN_INFO}")));
    }
    Ok(Tip { height, difficulty: mining.number("difficulty", DIFFICULTIES)? })
}

/// The mean of a day's blocks, newest first.
pub(super) fn day(tip: Tip, blocks: &[Value]) -> Result<Chain, MarketError> {
    let (mut fees, mut subsidies, mut times) = (0.0, 0.0, Vec::new());
    for (back, block) in blocks.iter().enumerate() {
        let block = Answer::new(BLOCK_STATS, block);
        let expected = tip.height - back as u64;
        if block.count("height", HEIGHTS)? != expected {
            return Err(block.error("height", format!("not the {expected} asked for")));
        }
        fees += block.number("totalfee", 0.0..=1_000.0 * SATS_PER_BTC)? / SATS_PER_BTC;
        subsidies += block.number("subsidy", 0.0..=50.0 * SATS_PER_BTC)? / SATS_PER_BTC;
        times.push(block.number("time", TIMES)?);
    }
    let [newest, .., oldest] = times.as_slice() else {
        return Err(Answer::new(BLOCK_STATS, &Value::Null).error("time", "fewer than two blocks"));
    };
    let count = blocks.len() as f64;
    let block_seconds = (newest - oldest) / (count - 1.0);
    let place = Answer::new(BLOCK_STATS, &Value::Null);
    if !BLOCK_SECONDS.contains(&block_seconds) {
        return Err(place.error("time", format!("{block_seconds:.0} s between blocks is not plausible")));
    }
    super::check_subsidy(
        &place,
        "subsidy",
        subsidies / count,
        tip.height + 1 - blocks.len() as u64,
        tip.height,
    )?;
    Ok(Chain {
        height: tip.height,
        difficulty: tip.difficulty,
        fees_btc: fees / count,
        block_seconds: Some(block_seconds),
        blocks: blocks.len() as u64,
        newest: Some(*newest as u64),
    })
}
