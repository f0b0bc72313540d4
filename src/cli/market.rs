//! `hashwatt market`: fetches a dated snapshot of what mining pays, and shows one beside the miners.
//!
//! Flags and files in, a TOML file and lines of text out. How servers are asked is `crate::market`'s business,
//! the arithmetic is `crate::economics`'.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::{Arg, ArgGroup, ArgMatches, Command, value_parser};

use super::{Exit, switch};
use crate::clock::unix_seconds;
use crate::economics::market::Market;
use crate::economics::{miners, mining};
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
        .subcommand(
            Command::new("show")
                .about("Print a snapshot, its age and what each miner earns at it")
                .arg(Arg::new("file").required(true).value_name("FILE").value_parser(value_parser!(PathBuf))),
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

/// Runs `market fetch` or `market show`.
///
/// # Errors
/// What went wrong, to be printed as it is.
pub fn run(matches: &ArgMatches) -> Exit {
    match matches.subcommand() {
        Some(("fetch", m)) => fetch(m),
        Some(("show", m)) => show(m.get_one::<PathBuf>("file").context("no file")?),
        _ => bail!("market fetch, or market show FILE"),
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
    println!("{}", summary(&written));
    println!("{}", halving(&fetched, now));
    println!("written to {}", out.display());
    Ok(0)
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
    let day = market::moment(at);
    format!(
        "halving       block {height}, {left} blocks left, about {} at {:.0} s a block",
        day.split('T').next().unwrap_or(&day),
        fetched.chain.block_seconds
    )
}

/// `market show FILE`.
fn show(path: &Path) -> Exit {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let market = Market::parse(&text).with_context(|| path.display().to_string())?;
    print!("{}", shown(&market, unix_seconds())?);
    Ok(0)
}

fn shown(market: &Market, now: u64) -> anyhow::Result<String> {
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
    let mut rows = miners::parse(miners::BUILT_IN)?;
    rows.sort_by(|a, b| a.efficiency().0.total_cmp(&b.efficiency().0));
    out +=
        "\nRevenue at the miner's own meter, by nameplate (not measured), before electricity and cooling:\n";
    out += &format!("{:<28} {:>8} {:>9} {:>9}\n", "miner", "J/TH", "$/MWh", "$/W·day");
    for miner in rows {
        let revenue = mining::revenue(hashprice, miner.efficiency()).0;
        // A watt over a day is 24 millionths of a megawatt-hour.
        let per_watt_day = revenue * 24e-6;
        out +=
            &format!("{:<28} {:>8.1} {revenue:>9.2} {per_watt_day:>9.5}\n", miner.name, miner.efficiency().0);
    }
    Ok(out)
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
