//! `hashwatt market`: fetches a dated snapshot of what mining pays, and shows one beside the miners.
//!
//! Flags and files in, a TOML file and lines of text out. How servers are asked is `crate::market`'s business,
//! the arithmetic is `crate::economics`'.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::{Arg, ArgGroup, ArgMatches, Command, value_parser};

use super::{Exit, given, switch};
use crate::clock::unix_seconds;
use crate::economics::market::Market;
use crate::economics::miners::{self, Miner};
use crate::economics::mining;
use crate::http_client::{BasicAuth, HttpClient, Timeouts};
use crate::market::file::Target;
use crate::market::{self, Fetched, MarketError, Request, Source};

const DEFAULT_SERVER: &str = "https://mempool.space";
const DEFAULT_FILE: &str = "market.toml";
/// A node's batch of block statistics may take a slow disk a while.
const TIMEOUTS: Timeouts = Timeouts { connect: Duration::from_secs(5), total: Duration::from_secs(60) };

/// The subcommand with its flags.
pub fn command() -> Command {
    Command::new("market")
        .about("Fetch or show a dated snapshot of what mining pays")
        .subcommand_required(true)
        .subcommand(fetch_command())
        .subcommand(write_command())
        .subcommand(
            Command::new("show")
                .about("Print a snapshot, its age and what each miner earns at it")
                .arg(Arg::new("file").required(true).value_name("FILE").value_parser(value_parser!(PathBuf)))
                .arg(given::miners_option()),
        )
}

fn fetch_command() -> Command {
    let text = |name: &'static str, shape: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(shape).help(help)
    };
    let number = |name, shape, help| text(name, shape, help).value_parser(value_parser!(f64));
    let file = |name, help| text(name, "FILE", help).value_parser(value_parser!(PathBuf));
    Command::new("fetch")
        .about("Write a snapshot; an error leaves the last one as it is")
        .arg(text("from", "URL", "A mempool-compatible server [default: https://mempool.space]"))
        .arg(
            text("core", "URL", "Bitcoin Core's RPC instead, http://127.0.0.1:8332; wants --price")
                .conflicts_with("from"),
        )
        .arg(file("core-cookie", "Its cookie file").requires("core").conflicts_with("core-user"))
        .arg(text("core-user", "USER", "Its RPC user").requires("core").requires("core-password-file"))
        .arg(file("core-password-file", "A file with the password of that user").requires("core-user"))
        .group(ArgGroup::new("core-auth").args(["core-cookie", "core-user"]))
        .mut_arg("core", |core| core.requires("core-auth").requires("price"))
        .arg(number(
            "price",
            "USD",
            "Dollars for a bitcoin; wins over a fetched price and is compared with it",
        ))
        .arg(number("pool-fee", "SHARE", "Share of the revenue the pool keeps, 0 to 0.5"))
        .arg(number("hashprice", "USD", "An index's $/PH/day before fees, to compare with"))
        .arg(text("cross-check", "URL", "A second mempool-compatible server to compare with"))
        .arg(file("out", "Where to write [default: market.toml]"))
        .arg(switch("force", "Also overwrite a file that was not fetched"))
}

fn write_command() -> Command {
    let option = |name: &'static str, shape: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(shape).help(help)
    };
    let number = |name, shape, help| option(name, shape, help).value_parser(value_parser!(f64));
    Command::new("write")
        .about("Write a snapshot from figures of your own")
        .arg(number("difficulty", "N", "Difficulty of the network").required(true))
        .arg(number("price", "USD", "Dollars for a bitcoin").required(true))
        .arg(number("fees", "BTC", "Fees of a mean block").required(true))
        .arg(
            option("height", "BLOCK", "Height of the chain: gives the subsidy and the next halving")
                .value_parser(value_parser!(u64))
                .required_unless_present("subsidy"),
        )
        .arg(
            number("subsidy", "BTC", "New bitcoin in a block, where no height is given")
                .conflicts_with("height"),
        )
        .arg(number("pool-fee", "SHARE", "Share of the revenue the pool keeps, 0 to 0.5").required(true))
        .arg(
            number("hashprice-low", "USD", "The hashprice moved between this, $/PH/day …")
                .requires("hashprice-high"),
        )
        .arg(number("hashprice-high", "USD", "… and this").requires("hashprice-low"))
        .arg(option("as-of", "TIME", "Of these figures: a day, or RFC 3339 [default: now]"))
        .arg(option("source", "TEXT", "Where they are from [default: given by flags]"))
        .arg(
            option("out", "FILE", "Where to write; nothing is overwritten [default: market.toml]")
                .value_parser(value_parser!(PathBuf)),
        )
}

fn write(m: &ArgMatches) -> Exit {
    let number = |name: &str| m.get_one::<f64>(name).copied();
    let text = |name: &str, otherwise: String| m.get_one::<String>(name).cloned().unwrap_or(otherwise);
    let height = m.get_one::<u64>("height").copied();
    let given = |name: &'static str| number(name).with_context(|| format!("--{name} is missing"));
    let market = Market {
        example: false,
        as_of: text("as-of", market::moment(unix_seconds())),
        source: text("source", "given by flags".into()),
        difficulty: given("difficulty")?,
        subsidy_btc: match height {
            Some(height) => mining::subsidy_btc(height),
            None => given("subsidy")?,
        },
        fees_btc_per_block: Some(given("fees")?),
        fees_share_of_reward: None,
        btc_usd: given("price")?,
        pool_fee: given("pool-fee")?,
        height,
        hashprice_low_usd_per_ph_day: number("hashprice-low"),
        hashprice_high_usd_per_ph_day: number("hashprice-high"),
        hashprice_range: number("hashprice-low").map(|_| "stated by the operator".into()),
        published_hashprice_usd_per_ph_day: None,
        published_hashprice_source: None,
        token_price: Vec::new(),
    };
    market.check()?;
    let out = m.get_one::<PathBuf>("out").cloned().unwrap_or_else(|| DEFAULT_FILE.into());
    let mut file = std::fs::File::create_new(&out).with_context(|| out.display().to_string())?;
    file.write_all(market.to_toml().as_bytes()).with_context(|| out.display().to_string())?;
    warn(&market, unix_seconds());
    println!("{}", summary(&market));
    println!("written to {}; prices of tokens are added there as [[token_price]]", out.display());
    Ok(0)
}

/// Runs `market fetch`, `market write` or `market show`.
///
/// # Errors
/// What went wrong, to be printed as it is.
pub fn run(matches: &ArgMatches) -> Exit {
    match matches.subcommand() {
        Some(("fetch", m)) => fetch(m),
        Some(("write", m)) => write(m),
        Some(("show", m)) => show(m.get_one::<PathBuf>("file").context("no file")?, given::miners(m)?),
        _ => bail!("market fetch, market write, or market show FILE"),
    }
}

fn fetch(m: &ArgMatches) -> Exit {
    let out = m.get_one::<PathBuf>("out").cloned().unwrap_or_else(|| DEFAULT_FILE.into());
    let target = Target::open(&out, m.get_flag("force"))?;
    let request = request(m, target.before())?;
    let now = unix_seconds();
    let fetched = match market::fetch(&HttpClient::new(TIMEOUTS), &request, now) {
        Ok(fetched) => fetched,
        Err(error) => return Err(kept(error, &out, target.before(), now)),
    };
    for warning in &fetched.warnings {
        eprintln!("WARNING: {warning}");
    }
    if request.pool_fee == 0.0 && !m.contains_id("pool-fee") {
        eprintln!("WARNING: no --pool-fee: taken as 0, so mining looks a little better than it pays");
    }
    let written = target.write(&fetched.market)?;
    warn(&written, now);
    println!("{}", summary(&written));
    println!("{}", halving(&fetched, now));
    println!("written to {}", out.display());
    Ok(0)
}

/// What whoever uses the snapshot will be told too.
fn warn(market: &Market, now: u64) {
    for warning in market.warnings(now) {
        eprintln!("WARNING: {warning}");
    }
}

/// The error, and what the last good snapshot is worth.
fn kept(error: MarketError, out: &Path, before: Option<&Market>, now: u64) -> anyhow::Error {
    match before.map(|b| b.age(now)) {
        Some(Ok(age)) => {
            anyhow!("{error}\n{} is left as it is, {} old", out.display(), hours(age))
        }
        _ => anyhow!("{error}\nnothing was written"),
    }
}

fn request(m: &ArgMatches, before: Option<&Market>) -> anyhow::Result<Request> {
    let text = |name| m.get_one::<String>(name).cloned();
    let number = |name| m.get_one::<f64>(name).copied();
    let source = match text("core") {
        Some(url) => Source::Core { url, auth: core_auth(m)? },
        None => Source::Mempool { url: text("from").unwrap_or_else(|| DEFAULT_SERVER.into()) },
    };
    let pool_fee = number("pool-fee").or(before.map(|b| b.pool_fee)).unwrap_or(0.0);
    let index = number("hashprice");
    if index.is_some_and(|h| !(0.1..=1e4).contains(&h)) {
        bail!("--hashprice is in $/PH/day, 0.1 to 10000");
    }
    Ok(Request {
        source,
        btc_usd: number("price"),
        pool_fee,
        cross_check: text("cross-check"),
        hashprice: index,
    })
}

fn core_auth(m: &ArgMatches) -> anyhow::Result<BasicAuth> {
    let read = |path: &PathBuf| std::fs::read_to_string(path).with_context(|| path.display().to_string());
    if let Some(path) = m.get_one::<PathBuf>("core-cookie") {
        let cookie = BasicAuth::parse(&read(path)?);
        return cookie.with_context(|| format!("{}: not a cookie file (user:password)", path.display()));
    }
    let user = m.get_one::<String>("core-user").context("--core wants --core-cookie or --core-user")?;
    let file =
        m.get_one::<PathBuf>("core-password-file").context("--core-user wants --core-password-file")?;
    Ok(BasicAuth::new(user, read(file)?.trim_end_matches(['\r', '\n'])))
}

fn halving(fetched: &Fetched, now: u64) -> String {
    let (height, left, at) = fetched.chain.next_halving(now);
    let line = format!("halving       block {height}, {left} blocks left");
    match (at.map(market::moment), fetched.chain.block_seconds) {
        (Some(at), Some(pace)) => {
            format!("{line}, about {} at {pace:.0} s a block", at.split('T').next().unwrap_or(&at))
        }
        _ => format!("{line}; too few blocks since the last retarget for a date"),
    }
}

/// `market show FILE`.
fn show(path: &Path, own: Option<Vec<Miner>>) -> Exit {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let market = Market::parse(&text).with_context(|| path.display().to_string())?;
    let machines = own.map_or_else(|| miners::with_own(None), Ok)?;
    print!("{}", shown(&market, machines, unix_seconds()));
    Ok(0)
}

fn shown(market: &Market, mut rows: Vec<Miner>, now: u64) -> String {
    let mut out = String::new();
    for warning in market.warnings(now) {
        out += &format!("WARNING: {warning}\n");
    }
    let age = market.age(now).map_or_else(|_| "unknown".into(), hours);
    out += &format!("{}\nage           {age}\n", summary(market));
    if let (Some(height), Some(years)) = (market.next_halving_height(), market.years_to_halving()) {
        out += &format!("halving       block {height}, in about {years:.1} years of ten-minute blocks\n");
    }
    for p in &market.token_price {
        out += &format!(
            "tokens        {}: {} in, {} out, $ a million ({}, {})\n",
            p.model, p.usd_per_million_input_tokens, p.usd_per_million_output_tokens, p.source, p.date
        );
    }
    let hashprice = mining::hashprice(market);
    rows.sort_by(|a, b| a.efficiency().0.total_cmp(&b.efficiency().0));
    out +=
        "\nRevenue at the miner's own meter, by nameplate (not measured), before electricity and cooling:\n";
    out += &format!("{:<28} {:>8} {:>9} {:>9}\n", "miner", "J/TH", "$/MWh", "$/W·day");
    for miner in rows {
        let (efficiency, revenue) = (miner.efficiency().0, mining::revenue(hashprice, miner.efficiency()));
        let per_watt_day = mining::usd_per_watt_day(revenue);
        out += &format!("{:<28} {efficiency:>8.1} {:>9.2} {per_watt_day:>9.5}\n", miner.name, revenue.0);
    }
    out
}

fn summary(market: &Market) -> String {
    let example = if market.example { "EXAMPLE\n" } else { "" };
    format!(
        "{example}as of         {}\nsource        {}\ndifficulty    {:.4e}\nreward        {:.4} BTC a block ({} new, \
         {:.4} fees)\nprice         {:.2} $/BTC\npool fee      {:.2} %\nhashprice     {} after the pool's fee",
        market.as_of,
        market.source,
        market.difficulty,
        market.reward_btc(),
        market.subsidy_btc,
        market.fees_btc(),
        market.btc_usd,
        market.pool_fee * 100.0,
        mining::hashprice(market),
    )
}

fn hours(age: Duration) -> String {
    format!("{:.1} h", age.as_secs_f64() / 3600.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http_client::testing::{Answer, Server};

    fn matches(arguments: &[&str]) -> Result<ArgMatches, clap::Error> {
        super::super::command().try_get_matches_from([&["hashwatt", "market"], arguments].concat())
    }

    /// Runs `hashwatt market …`; what would be printed on failure.
    fn hashwatt(arguments: &[&str]) -> Result<u8, String> {
        let matches = matches(arguments).map_err(|e| e.to_string())?;
        run(matches.subcommand_matches("market").unwrap()).map_err(|e| format!("{e:#}"))
    }

    fn server() -> Server {
        // As if it knew the chain up to now.
        let retarget = include_str!("../../tests/it/cases/market/difficulty-adjustment.json");
        let mut retarget: serde_json::Value = serde_json::from_str(retarget).unwrap();
        retarget["previousTime"] = (unix_seconds() - 616 * 595).into();
        let retarget = retarget.to_string();
        Server::start(move |asked| {
            Answer::ok(match asked.path.as_str() {
                "/api/v1/mining/hashrate/3d" => include_str!("../../tests/it/cases/market/hashrate-3d.json"),
                "/api/v1/mining/reward-stats/144" => {
                    include_str!("../../tests/it/cases/market/reward-stats-144.json")
                }
                "/api/v1/difficulty-adjustment" => retarget.as_str(),
                "/api/v1/prices" => include_str!("../../tests/it/cases/market/prices.json"),
                other => panic!("{other}"),
            })
        })
    }

    #[test]
    fn a_snapshot_is_fetched_shown_and_survives_a_busy_server() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.toml");
        let out = path.to_str().unwrap();
        let server = server();
        let fetch = |url: &str| hashwatt(&["fetch", "--from", url, "--out", out]);
        let with_fee = hashwatt(&["fetch", "--from", &server.url, "--out", out, "--pool-fee", "0.025"]);
        assert_eq!(with_fee, Ok(0));
        let first = std::fs::read_to_string(&path).unwrap();
        assert_eq!(Market::parse(&first).unwrap().pool_fee, 0.025);
        assert_eq!(hashwatt(&["show", out]), Ok(0));
        // The fee said once stays.
        assert_eq!(fetch(&server.url), Ok(0));
        assert_eq!(Market::parse(&std::fs::read_to_string(&path).unwrap()).unwrap().pool_fee, 0.025);

        // Prices of tokens are added by hand, and kept.
        let price = "\n[[token_price]]\nmodel = \"M\"\nusd_per_million_input_tokens = 1\n\
            usd_per_million_output_tokens = 2\nsource = \"our list\"\ndate = \"2026-11-01\"\n";
        std::fs::write(&path, std::fs::read_to_string(&path).unwrap() + price).unwrap();
        assert_eq!(hashwatt(&["show", out]), Ok(0));
        assert_eq!(fetch(&server.url), Ok(0));
        let kept = Market::parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(kept.token_price("m").unwrap().usd_per_million_output_tokens, 2.0);
        let twice = std::fs::read_to_string(&path).unwrap() + price;
        assert!(Market::parse(&twice).unwrap_err().to_string().contains("two token prices of M"));

        let busy = Server::start(|_| Answer::code(429, "Retry-After: 60", ""));
        let before = std::fs::read_to_string(&path).unwrap();
        let error = fetch(&busy.url).unwrap_err();
        assert!(
            error.contains("HTTP 429") && error.contains("in 60 s") && error.contains("left as it is"),
            "{error}"
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), before);

        std::fs::write(&path, "# mine\n").unwrap();
        let error = fetch(&server.url).unwrap_err();
        assert!(error.contains("--force"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "# mine\n");
        let forced = hashwatt(&["fetch", "--from", &server.url, "--out", out, "--force"]);
        assert_eq!(forced, Ok(0));
    }

    #[test]
    fn a_snapshot_of_own_figures_is_checked_and_overwrites_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("own.toml");
        let out = out.to_str().unwrap();
        let with = |difficulty: &'static str, rest: &[&'static str]| {
            let mut all = vec!["write", "--difficulty", difficulty, "--price", "91000", "--out", out];
            all.extend(rest);
            hashwatt(&all)
        };
        let rest = ["--fees", "0.0189", "--height", "930000", "--pool-fee", "0"];
        assert!(with("12", &rest).unwrap_err().contains("difficulty"));
        assert_eq!(with("152e12", &rest), Ok(0));
        let market = Market::parse(&std::fs::read_to_string(out).unwrap()).unwrap();
        assert_eq!((market.subsidy_btc, market.height), (3.125, Some(930_000)));
        assert!((market.hashprice().value / 37.86 - 1.0).abs() < 1e-3);
        assert!(with("152e12", &rest).unwrap_err().contains("own.toml"), "it is there already");
    }

    #[test]
    fn a_node_wants_credentials_and_a_price() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let secret = path.to_str().unwrap();
        let core = ["fetch", "--core", "http://127.0.0.1:8332"];
        for (more, missing) in [
            (&["--price", "60000"][..], "--core-cookie"),
            (&["--core-cookie", secret], "--price"),
            (&["--core-user", "u", "--price", "1"], "--core-password-file"),
            (&["--core-cookie", secret, "--price", "1", "--from", "http://x"], "cannot be used with"),
            (&["--core-cookie", secret, "--core-user", "u", "--price", "1"], "cannot be used with"),
        ] {
            let error = matches(&[&core[..], more].concat()).unwrap_err().to_string();
            assert!(error.contains(missing), "{more:?}: {error}");
        }
        let auth = |arguments: &[&str]| {
            let all = matches(&[&core[..], &["--price", "60000"], arguments].concat()).unwrap();
            let market = all.subcommand_matches("market").unwrap();
            core_auth(market.subcommand_matches("fetch").unwrap()).map_err(|e| e.to_string())
        };
        std::fs::write(&path, "__cookie__:00ff\n").unwrap();
        assert_eq!(auth(&["--core-cookie", secret]), Ok(BasicAuth::new("__cookie__", "00ff")));
        std::fs::write(&path, "pass word\n").unwrap();
        assert_eq!(
            auth(&["--core-user", "u", "--core-password-file", secret]),
            Ok(BasicAuth::new("u", "pass word"))
        );
        assert!(auth(&["--core-cookie", secret]).unwrap_err().contains("not a cookie file"));
    }

    #[test]
    fn a_snapshot_shows_its_age_and_each_miner() {
        let market = Market::parse(
            "example = false\nas_of = \"2026-06-26T10:00:00Z\"\nsource = \"s\"\ndifficulty = 133.87e12\n\
             subsidy_btc = 3.125\nfees_share_of_reward = 0.006\nbtc_usd = 60000\npool_fee = 0\nheight = 956200\n",
        )
        .unwrap();
        let at = 1_782_468_000;
        let fresh = shown(&market, miners::with_own(None).unwrap(), at + 3600);
        assert!(fresh.contains("age           1.0 h") && !fresh.contains("stale"), "{fresh}");
        let stale = shown(&market, miners::with_own(None).unwrap(), at + 25 * 3600);
        assert!(stale.contains("WARNING: the market is 25.0 h old"), "{stale}");
        assert!(stale.contains("block 1050000"), "{stale}");
        // 4.7243e-4 BTC/PH/day at 60,000 $ is 28.35 $/PH/day; a machine of 17.5 J/TH earns 67.5 $/MWh on it.
        assert!(stale.contains("28.35 $/PH/day"), "{stale}");
        let row = stale.lines().find(|l| l.starts_with("Antminer S21  ")).unwrap();
        let cells: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(cells[2..], ["17.5", "67.49", "0.00162"], "{row}");
    }
}
