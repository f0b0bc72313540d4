//! Market fetch against a small local server: fixtures in the documented shapes, and everything else.

use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::file::Target;
use super::*;
use crate::http_client::testing::{Answer as Reply, Asked, Server};

macro_rules! fixture {
    ($name:literal) => {
        include_str!(concat!("../../tests/it/cases/market/", $name))
    };
}

const HASHRATE: &str = fixture!("hashrate-3d.json");
const HASHRATE_OTHER: &str = fixture!("hashrate-3d.timestamp.json");
const REWARDS: &str = fixture!("reward-stats-144.json");
const REWARDS_OTHER: &str = fixture!("reward-stats-144.numbers.json");
const RETARGET: &str = fixture!("difficulty-adjustment.json");
const PRICES: &str = fixture!("prices.json");
const NO_FEED: &str = fixture!("prices.no-feed.json");
const CHAIN_INFO: &str = fixture!("getblockchaininfo.json");
const MINING_INFO: &str = fixture!("getmininginfo.json");

/// Ten minutes after the fixtures' price and newest block.
const NOW: u64 = 1_782_467_600;

/// A mempool-compatible server of these texts.
fn mempool(hashrate: &str, rewards: &str, retarget: &str, prices: &str) -> Server {
    let texts = [
        ("/api/v1/mining/hashrate/3d", hashrate.to_string()),
        ("/api/v1/mining/reward-stats/144", rewards.to_string()),
        ("/api/v1/difficulty-adjustment", retarget.to_string()),
        ("/api/v1/prices", prices.to_string()),
    ];
    Server::start(move |asked| match texts.iter().find(|(path, _)| *path == asked.path) {
        Some((_, text)) => Reply::ok(text.as_str()),
        None => Reply::code(404, "", "no such endpoint"),
    })
}

fn usual() -> Server {
    mempool(HASHRATE, REWARDS, RETARGET, PRICES)
}

fn from(server: &Server) -> Request {
    Request {
        source: Source::Mempool { url: format!("{}/", server.url) },
        btc_usd: None,
        pool_fee: 0.02,
        cross_check: None,
        hashprice: None,
    }
}

fn ask(request: &Request) -> Result<Fetched, MarketError> {
    fetch(&HttpClient::default(), request, NOW)
}

fn near(got: f64, want: f64) {
    assert!((got / want - 1.0).abs() < 1e-9, "{got} is not {want}");
}

#[test]
fn a_mempool_server_gives_a_market() {
    let server = usual();
    let fetched = ask(&from(&server)).unwrap();
    let market = &fetched.market;
    near(market.difficulty, 133_869_853_540_305.3);
    near(market.subsidy_btc, 3.125);
    near(market.fees_btc(), 2.716 / 144.0);
    near(market.btc_usd, 60_250.0);
    assert_eq!((market.pool_fee, market.height, market.example), (0.02, Some(956_200), false));
    // As old as the price, its oldest part.
    assert_eq!(market.as_of, "2026-06-26T09:43:20Z");
    assert!(market.source.contains(&server.url) && market.source.contains("144 blocks"), "{}", market.source);
    assert!(fetched.warnings.is_empty(), "{:?}", fetched.warnings);
    // 93,800 blocks of 595 s.
    assert_eq!(fetched.chain.next_halving(NOW), (1_050_000, 93_800, Some(NOW + 93_800 * 595)));
    assert_eq!(Market::parse(&market.to_toml()).unwrap(), *market);
}

#[test]
fn both_spellings_and_both_types_mean_the_same() {
    let one = ask(&from(&usual())).unwrap();
    let other = ask(&from(&mempool(HASHRATE_OTHER, REWARDS_OTHER, RETARGET, PRICES))).unwrap();
    assert_eq!(one.chain, other.chain);
    assert_eq!(one.market.btc_usd, other.market.btc_usd);
}

#[test]
fn the_first_blocks_of_a_difficulty_have_no_pace() {
    let mut retarget: Value = serde_json::from_str(RETARGET).unwrap();
    // The pace is made up, and so would be when the server knew it.
    retarget["previousTime"] = Value::Null;
    for (blocks, pace) in [(1u64, None), (71, None), (72, Some(595.0))] {
        retarget["remainingBlocks"] = json!(2016 - blocks);
        retarget["nextRetargetHeight"] = json!(956_200 + 2016 - blocks);
        retarget["timeAvg"] = json!(if blocks == 1 { 4_000 } else { 595_000 });
        let fetched = ask(&from(&mempool(HASHRATE, REWARDS, &retarget.to_string(), PRICES))).unwrap();
        assert_eq!(fetched.chain.block_seconds, pace, "{blocks}");
    }
}

#[test]
fn a_server_that_stands_still_is_named() {
    let mut retarget: Value = serde_json::from_str(RETARGET).unwrap();
    let since = |hours: u64| json!(NOW - (616.0 * 595.0) as u64 - hours * 3600);
    for (hours, fine) in [(5, true), (7, false), (24 * 30, false)] {
        retarget["previousTime"] = since(hours);
        let asked = ask(&from(&mempool(HASHRATE, REWARDS, &retarget.to_string(), PRICES)));
        match asked {
            Ok(_) => assert!(fine, "{hours} h"),
            Err(error) => assert!(!fine && error.to_string().contains(&format!("{hours} h old")), "{error}"),
        }
    }
}

#[test]
fn what_is_missing_or_cannot_be_is_named() {
    let cases: &[(usize, &str, Value, &str)] = &[
        (0, "currentDifficulty", Value::Null, "hashrate/3d: currentDifficulty: missing"),
        (0, "currentDifficulty", json!(1.0), "hashrate/3d: currentDifficulty: 1 is not plausible"),
        (0, "currentDifficulty", json!("x"), "hashrate/3d: currentDifficulty: \"x\" is not a number"),
        (0, "currentDifficulty", json!(9e15), "does not follow"),
        (0, "difficulty", json!(3), "hashrate/3d: difficulty: not a list"),
        (0, "difficulty", json!([{"difficulty": 1e14}]), "hashrate/3d: time: missing"),
        (1, "totalFee", Value::Null, "reward-stats/144: totalFee: missing"),
        (1, "totalFee", json!("-5"), "reward-stats/144: totalFee: -5 is not plausible"),
        (1, "totalReward", json!("90543200000"), "reward-stats/144: totalReward: 6.2"),
        (1, "totalReward", json!("NaN"), "totalReward: NaN is not plausible"),
        (1, "endBlock", json!(956_150), "mining index is behind"),
        (1, "startBlock", json!(956_300), "does not follow startBlock"),
        (1, "endBlock", json!(956_200.5), "not a whole number"),
        (2, "remainingBlocks", json!(-1), "difficulty-adjustment: remainingBlocks"),
        (2, "timeAvg", json!(595), "difficulty-adjustment: timeAvg: 595 is not plausible"),
        (3, "USD", Value::Null, "prices: USD: missing"),
        (3, "USD", json!(1e12), "prices: USD: 1000000000000 is not plausible"),
        (3, "time", Value::Null, "prices: time: missing"),
        (3, "time", json!(NOW + 7200), "still to come"),
    ];
    for (endpoint, field, value, want) in cases {
        let mut answers =
            [HASHRATE, REWARDS, RETARGET, PRICES].map(|t| serde_json::from_str::<Value>(t).unwrap());
        answers[*endpoint][field] = value.clone();
        let [a, b, c, d] = answers.map(|a| a.to_string());
        let error = ask(&from(&mempool(&a, &b, &c, &d))).unwrap_err().to_string();
        assert!(error.contains(want), "{field} = {value}: {error}");
    }
}

#[test]
fn a_server_without_a_price_feed_wants_a_price() {
    let server = mempool(HASHRATE, REWARDS, RETARGET, NO_FEED);
    let error = ask(&from(&server)).unwrap_err().to_string();
    assert!(error.contains("/api/v1/prices: USD: -1 is not plausible"), "{error}");
    let fetched = ask(&Request { btc_usd: Some(61_000.0), ..from(&server) }).unwrap();
    near(fetched.market.btc_usd, 61_000.0);
    assert!(fetched.warnings[0].contains("not compared"), "{:?}", fetched.warnings);
    assert_eq!(fetched.market.as_of, moment(NOW));
}

#[test]
fn sources_more_than_three_percent_apart_are_both_named() {
    let server = usual();
    let by_hand = |price| ask(&Request { btc_usd: Some(price), ..from(&server) }).unwrap().warnings;
    assert!(by_hand(60_250.0 * 1.029).is_empty());
    let apart = by_hand(60_250.0 * 1.031);
    assert!(apart[0].contains("the price given") && apart[0].contains(&server.url), "{apart:?}");

    // Before the fee of the pool, by the formula: a petahash a second for a day at this difficulty.
    let gross = 8.64e19 / (133_869_853_540_305.3 * 4_294_967_296.0) * (3.125 + 2.716 / 144.0) * 60_250.0;
    let index = |hashprice| ask(&Request { hashprice: Some(hashprice), ..from(&server) }).unwrap().warnings;
    assert!(index(gross * 1.02).is_empty());
    let apart = index(gross * 1.04);
    assert!(apart[0].contains("hashprice") && apart[0].contains("index"), "{apart:?}");

    let mut prices: Value = serde_json::from_str(PRICES).unwrap();
    let mut second = |price: f64| {
        prices["USD"] = json!(price);
        let second = mempool(HASHRATE, REWARDS, RETARGET, &prices.to_string());
        let request = Request { cross_check: Some(second.url.clone()), ..from(&server) };
        (ask(&request).unwrap().warnings, second.url.clone())
    };
    assert!(second(60_250.0 * 1.02).0.is_empty());
    let (apart, url) = second(60_250.0 * 1.05);
    assert!(apart.len() == 1 && apart[0].contains(&url) && apart[0].contains(&server.url), "{apart:?}");
    let gone = Request { cross_check: Some("http://127.0.0.1:9/".into()), ..from(&server) };
    assert!(ask(&gone).unwrap().warnings[0].contains("could not be compared"));
}

/// One block of the last day: 3.125 BTC new, a fee that differs from block to block, 595 s apart.
fn block(height: u64) -> Value {
    json!({"height": height, "subsidy": 312_500_000, "totalfee": 1_000_000 + height % 2 * 500_000,
           "time": 1_782_467_000 - (956_200 - height) * 595})
}

fn rpc(asked: &Asked) -> Value {
    let calls: Vec<Value> = serde_json::from_str(&asked.body).unwrap();
    // Any order is allowed: the last first here.
    let answers = calls.iter().rev().map(|call| {
        let result = match call["method"].as_str().unwrap() {
            "getblockchaininfo" => serde_json::from_str(CHAIN_INFO).unwrap(),
            "getmininginfo" => serde_json::from_str(MINING_INFO).unwrap(),
            "getblockstats" => block(call["params"][0].as_u64().unwrap()),
            other => panic!("{other}"),
        };
        json!({"result": result, "error": null, "id": call["id"]})
    });
    answers.collect()
}

fn core(answer: impl Fn(&Asked) -> Value + Send + 'static) -> (Server, Request) {
    let server = Server::start(move |asked| Reply::ok(answer(asked).to_string()));
    let auth = BasicAuth::parse("__cookie__:00ff").unwrap();
    let request = Request {
        source: Source::Core { url: server.url.clone(), auth },
        btc_usd: Some(60_250.0),
        ..from(&server)
    };
    (server, request)
}

#[test]
fn bitcoin_core_and_a_price_give_a_market() {
    let (server, request) = core(rpc);
    let fetched = ask(&request).unwrap();
    near(fetched.market.difficulty, 133_869_853_540_305.3);
    near(fetched.market.fees_btc(), 0.0125);
    near(fetched.chain.block_seconds.unwrap(), 595.0);
    assert_eq!((fetched.chain.height, fetched.chain.blocks), (956_200, 144));
    assert!(
        fetched.market.source.contains("Bitcoin Core") && fetched.market.source.contains("the price given")
    );
    let asked = server.asked();
    // One for the tip, six for the day: batches.
    assert_eq!(asked.len(), 7);
    assert!(asked.iter().all(|a| a.authorization.as_deref() == Some("Basic X19jb29raWVfXzowMGZm")));

    let error = ask(&Request { btc_usd: None, ..request }).unwrap_err();
    assert!(matches!(error, MarketError::Missing { field: "price", .. }), "{error}");
}

#[test]
fn a_node_that_cannot_say_is_an_error() {
    let cases: Vec<(&str, Value, &str)> = vec![
        ("chain", json!("test"), "getblockchaininfo: chain: not `main`"),
        ("initialblockdownload", json!(true), "still syncs"),
        ("blocks", json!(5), "getblockchaininfo: blocks: 5 is not plausible"),
        ("totalfee", Value::Null, "getblockstats: totalfee: missing"),
        ("subsidy", json!(625_000_000), "getblockstats: subsidy: 6.25"),
        ("height", json!(956_000), "not the 956200 asked for"),
        ("time", json!(1_782_467_000), "0 s between blocks is not plausible"),
        ("id", json!("other"), "the batch lacks it"),
        ("error", json!({"code": -1, "message": "Undo data\nexpected"}), "Undo data expected (code -1)"),
    ];
    for (field, value, want) in cases {
        let (_server, request) = core(move |asked| {
            let mut answers = rpc(asked);
            for answer in answers.as_array_mut().unwrap() {
                let place = if answer.get(field).is_some() { answer } else { &mut answer["result"] };
                if place.get(field).is_some() {
                    place[field] = value.clone();
                }
            }
            answers
        });
        let error = ask(&request).unwrap_err().to_string();
        assert!(error.contains(want), "{want}: {error}");
    }
    let (_server, request) = core(|_| json!({"result": null}));
    assert!(ask(&request).unwrap_err().to_string().contains("not a list"));
    let (_server, request) = core(rpc);
    let late = fetch(&HttpClient::default(), &request, NOW + 9 * 3600).unwrap_err().to_string();
    assert!(late.contains("9 h old"), "{late}");
}

/// Runs the arithmetic on answers that were parsed, without a network.
fn from_texts(texts: [&str; 4]) -> Result<Fetched, MarketError> {
    let parse = |text: &str| {
        serde_json::from_str::<Value>(text)
            .map_err(|e| MarketError::Http(HttpError::NotJson { url: "x".into(), at: e.to_string() }))
    };
    let answers = mempool::Answers {
        hashrate: parse(texts[0])?,
        rewards: parse(texts[1])?,
        retarget: parse(texts[2])?,
    };
    let request = Request {
        source: Source::Mempool { url: "x".into() },
        btc_usd: None,
        pool_fee: 0.0,
        cross_check: None,
        hashprice: None,
    };
    let price = mempool::price(&parse(texts[3])?)?;
    assemble(&request, mempool::chain(&answers)?, Some(price), "x", NOW)
}

fn from_node(texts: [&str; 3]) -> Result<Chain, MarketError> {
    let parse = |text: &str| serde_json::from_str::<Value>(text).unwrap_or(Value::Null);
    let tip = core::tip(&parse(texts[0]), &parse(texts[1]))?;
    let Value::Array(blocks) = parse(texts[2]) else { return core::day(tip, &[]) };
    core::day(tip, &blocks)
}

/// A text that was cut, or whose bytes were overwritten or repeated.
fn damaged(text: &str, kind: u8, at: usize, with: &str) -> String {
    let mut bytes = text.as_bytes().to_vec();
    let at = at % bytes.len();
    match kind % 3 {
        0 => bytes.truncate(at),
        1 => {
            let end = (at + with.len()).min(bytes.len());
            bytes.splice(at..end, with.bytes());
        }
        _ => {
            bytes.splice(at..at, with.bytes());
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn damaged_answers_are_a_typed_error_or_a_plausible_market(
        endpoint in 0..4usize,
        kind in 0..3u8,
        at in 0..2_000usize,
        with in "[-0-9e.\"{}\\[\\],:a]{1,6}",
        other in 0..2usize,
    ) {
        let sets = [[HASHRATE, REWARDS, RETARGET, PRICES], [HASHRATE_OTHER, REWARDS_OTHER, RETARGET, PRICES]];
        let mut texts = sets[other].map(String::from);
        texts[endpoint] = damaged(&texts[endpoint], kind, at, &with);
        if let Ok(fetched) = from_texts([&texts[0], &texts[1], &texts[2], &texts[3]]) {
            // The file it would become is one that can be read back.
            prop_assert!(Market::parse(&fetched.market.to_toml()).is_ok());
            prop_assert!(fetched.chain.next_halving(NOW).1 <= 210_000);
        }
    }

    #[test]
    fn a_damaged_node_never_panics(
        part in 0..3usize,
        kind in 0..3u8,
        at in 0..20_000usize,
        with in "[-0-9e.\"{}\\[\\],:a]{1,6}",
    ) {
        let blocks: Value = (0..144).map(|back| block(956_200 - back)).collect();
        let mut texts = [CHAIN_INFO.to_string(), MINING_INFO.to_string(), blocks.to_string()];
        texts[part] = damaged(&texts[part], kind, at, &with);
        if let Ok(chain) = from_node([&texts[0], &texts[1], &texts[2]]) {
            prop_assert!(chain.difficulty > 0.0 && chain.fees_btc >= 0.0 && chain.block_seconds > Some(0.0));
        }
    }
}

#[test]
fn undamaged_answers_are_a_market() {
    assert!(from_texts([HASHRATE, REWARDS, RETARGET, PRICES]).is_ok());
    let blocks: Value = (0..144).map(|back| block(956_200 - back)).collect();
    assert!(from_node([CHAIN_INFO, MINING_INFO, &blocks.to_string()]).is_ok());
}

#[test]
fn the_subsidy_halves_by_height() {
    for (height, want) in [
        (0, 50.0),
        (209_999, 50.0),
        (840_000, 3.125),
        (1_049_999, 3.125),
        (1_050_000, 1.5625),
        (6_930_000, 0.0),
    ] {
        assert_eq!(subsidy_btc(height), want, "{height}");
    }
}

fn kept(path: &Path, force: bool) -> Option<MarketError> {
    Target::open(path, force).err()
}

#[test]
fn a_file_is_written_whole_and_only_over_a_fetched_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("market.toml");
    let market = ask(&from(&usual())).unwrap().market;
    Target::open(&path, false).unwrap().write(&market).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("# Written by"), "{text}");
    assert_eq!(Market::parse(&text).unwrap(), market);

    // What a person adds to a fetched file stays in the next one.
    let tokens = "[[token_price]]\nmodel = \"m\"\nusd_per_million_input_tokens = 0.1\n\
                  usd_per_million_output_tokens = 0.2\nsource = \"s\"\ndate = \"2026-06-01\"\n";
    let text = text.replace("token_price = []\n", "");
    std::fs::write(&path, format!("{text}{tokens}")).unwrap();
    let newer = Market { btc_usd: 70_000.0, ..market.clone() };
    let written = Target::open(&path, false).unwrap().write(&newer).unwrap();
    let read = Market::parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!((read.btc_usd, read.token_price.len()), (70_000.0, 1));
    assert_eq!(read, written);

    // Nor is it lost to a slip of the pen.
    std::fs::write(&path, format!("{text}[[token_price]\n")).unwrap();
    let slip = kept(&path, false).unwrap().to_string();
    assert!(slip.contains("no longer a market") && slip.contains("--force"), "{slip}");

    // What a person wrote stays, unless forced.
    std::fs::write(&path, market.to_toml()).unwrap();
    assert!(matches!(kept(&path, false), Some(MarketError::Kept { .. })));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), market.to_toml());
    Target::open(&path, true).unwrap().write(&newer).unwrap();
    assert!(std::fs::read_to_string(&path).unwrap().starts_with("# Written by"));

    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["market.toml"]);
    assert!(matches!(kept(folder.path(), true), Some(MarketError::File { .. })));
    let nowhere = folder.path().join("none/market.toml");
    let error = Target::open(&nowhere, false).unwrap().write(&market).unwrap_err();
    assert!(matches!(error, MarketError::File { .. }), "{error}");
}

#[test]
fn a_busy_server_is_said_so() {
    let server = Server::start(|_| Reply::code(429, "Retry-After: 60", "Too Many Requests"));
    let error = ask(&from(&server)).unwrap_err();
    assert!(
        matches!(error, MarketError::Http(HttpError::Busy { retry_after_seconds: Some(60), .. })),
        "{error}"
    );
}
