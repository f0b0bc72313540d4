//! What an operator says of the world: market, site, prices, power, utilisation. The same flags for `bench` and
//! for `report verdict`, and what they come to.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Arg, ArgMatches, value_parser};

use crate::economics::estimate::Estimate;
use crate::economics::inference::Shape;
use crate::economics::market::Market;
use crate::economics::miners::{self, Miner};
use crate::economics::site::Site;
use crate::measure::economics::{Given, PricesGiven};

/// The flags.
pub fn options() -> Vec<Arg> {
    let option = |name: &'static str, shape: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(shape).help(help).allow_hyphen_values(true)
    };
    let number = |name, shape, help| option(name, shape, help).value_parser(finite);
    let file_option = |name, help| option(name, "FILE", help).value_parser(value_parser!(PathBuf));
    vec![
        file_option("market", "Market snapshot (hashwatt market fetch writes one)"),
        file_option("site", "The site: contract, PUEs, host, utilisation, costs, machines"),
        miners_option(),
        number("price-input", "USD_PER_MILLION", "Price of input tokens"),
        number("price-cached", "USD_PER_MILLION", "Price of input tokens found in the prefix cache"),
        number("price-output", "USD_PER_MILLION", "Price of output tokens"),
        number("power-price", "USD_PER_MWH", "A fixed price of power; the rest of the contract stays"),
        option("utilisation", "SHARE[,LOW,HIGH]", "Share of the capacity that is sold, 0 to 1"),
        option("shape", "IN,CACHED,OUT", "Tokens of a request, instead of those measured"),
    ]
}

/// A number, which is neither infinite nor none.
pub fn finite(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().map_err(|e| e.to_string())?;
    number.is_finite().then_some(number).ok_or_else(|| "it is no finite number".to_string())
}

pub fn miners_option() -> Arg {
    let option = Arg::new("miners").long("miners").value_name("FILE").value_parser(value_parser!(PathBuf));
    option.help("Own machines, laid over the built-in table")
}

/// The built-in table with the operator's machines, if there are any.
///
/// # Errors
/// A file that cannot be read or is no such table.
pub fn miners(matches: &ArgMatches) -> anyhow::Result<Option<Vec<Miner>>> {
    read(matches, "miners", |text| Ok(miners::with_own(Some(text))?))
}

/// What the flags say.
///
/// # Errors
/// A file that cannot be read or is not what it should be, a number that is none.
pub fn given(matches: &ArgMatches) -> anyhow::Result<Given> {
    Ok(Given {
        miners: miners(matches)?,
        utilisation: match numbers(matches, "utilisation")?.as_deref() {
            None => None,
            Some([value]) => Some(Estimate::exact(*value)),
            Some([value, low, high]) => Some(Estimate { value: *value, low: *low, high: *high }),
            Some(_) => bail!("--utilisation takes one share, or three: the value, its low and its high end"),
        },
        shape: match numbers(matches, "shape")?.as_deref() {
            None => None,
            Some([input_tokens, cached_tokens, output_tokens]) => Some(Shape {
                input_tokens: *input_tokens,
                cached_tokens: *cached_tokens,
                output_tokens: *output_tokens,
            }),
            Some(_) => bail!("--shape takes three numbers: input, cached and output tokens"),
        },
        ..prices(matches)?
    })
}

/// # Errors
/// A file that cannot be read or is no market.
pub fn market(matches: &ArgMatches) -> anyhow::Result<Option<Market>> {
    read(matches, "market", |text| Ok(Market::parse(text)?))
}

/// What the flags say of prices, of tokens and of power.
///
/// # Errors
/// As [`given`].
pub fn prices(matches: &ArgMatches) -> anyhow::Result<Given> {
    let number = |name: &str| matches.get_one::<f64>(name).copied();
    Ok(Given {
        market: market(matches)?,
        site: read(matches, "site", |text| Ok(Site::parse(text)?))?,
        prices: PricesGiven {
            input: number("price-input"),
            cached: number("price-cached"),
            output: number("price-output"),
        },
        power_usd_per_mwh: number("power-price"),
        ..Given::default()
    })
}

fn read<T>(
    matches: &ArgMatches,
    name: &str,
    parse: impl Fn(&str) -> anyhow::Result<T>,
) -> anyhow::Result<Option<T>> {
    let Some(file) = matches.get_one::<PathBuf>(name) else { return Ok(None) };
    let shown = || format!("--{name} {}", file.display());
    let text = std::fs::read_to_string(file).with_context(shown)?;
    parse(&text).with_context(shown).map(Some)
}

fn numbers(matches: &ArgMatches, name: &str) -> anyhow::Result<Option<Vec<f64>>> {
    let Some(text) = matches.get_one::<String>(name) else { return Ok(None) };
    let one = |part: &str| {
        let number = part.trim().parse::<f64>().ok().filter(|n| n.is_finite());
        number.with_context(|| format!("--{name} {text}: {part:?} is not a number"))
    };
    text.split(',').map(one).collect::<anyhow::Result<Vec<f64>>>().map(Some)
}
