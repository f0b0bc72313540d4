//! The command line of `hashwatt bench`: arguments → the plan of the sweep and what the operator gives.
//!
//! Flags of the engine and `--meter` are settings; here is what only a bench knows.

use std::time::Duration;

use anyhow::bail;
use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::cli::given;
use crate::measure::lengths::Lengths;
use crate::measure::sweep::Plan;
use crate::measure::trace;

/// Requests at once, as far as the target takes them.
const CONCURRENCIES: [u32; 9] = [1, 2, 4, 8, 16, 32, 64, 128, 256];
const QUICK_CONCURRENCIES: [u32; 3] = [1, 4, 16];

fn option(name: &'static str, shape: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(shape).action(ArgAction::Set).help(help)
}

/// `hashwatt bench`.
pub fn command() -> Command {
    let switch = |name, help| Arg::new(name).long(name).action(ArgAction::SetTrue).help(help);
    Command::new("bench")
        .about("Measure tokens per joule of the engine, of a rival, or of any OpenAI-style server")
        .args([
            option("url", "URL", "Measure the server behind this URL (vLLM, llama.cpp, hashwatt)"),
            option("url-model", "NAME", "Its model; the first it lists by default"),
            option("baseline", "NAME", "Measure a rival in this process: candle-transformers")
                .conflicts_with("url"),
            switch("quick", "Less than two minutes: fewer points and shorter windows"),
            option("concurrency", "N,…", "Requests at once, one point each"),
            option(
                "input",
                "LENGTH",
                "Prompt tokens: fixed:N, uniform:A,B or lognormal:MEAN,SD [default: fixed:128]",
            ),
            option("output", "LENGTH", "Answer tokens, in the same words [default: fixed:128]"),
            option(
                "prefill",
                "TOKENS",
                "Length of the prompts of the prefill point; 0 leaves it out [default: 1024]",
            ),
            option("duty", "SHARE,…", "Shares of time the engine may be busy [default: 0.25,0.5,0.75]"),
            option("power-caps", "WATTS,…", "Limits of the boards to measure under; takes root on the host"),
            option("rate", "PER_SECOND,…", "Open loop: requests arrive by chance at this rate"),
            option("trace", "FILE", "Replay arrivals: CSV of timestamp, input tokens, output tokens"),
            option("trace-speed", "FACTOR", "How much faster than recorded [default: 1]"),
            option(
                "sustained",
                "SECONDS",
                "Length of the sustained run, if its windows take no longer; 0 leaves it out [default: 120]",
            ),
            option("windows", "N", "Windows for each point [default: 10]"),
            option("seconds", "SECONDS", "Length of a window; longer on meters that need it").hide(true),
            option("points", "N", "End after so many points").hide(true),
            option("seed", "N", "What prompts and lengths are drawn with [default: 1]"),
            option("out", "DIR", "Folder for the report; nothing in it is overwritten [default: .]"),
        ])
        .args(given::options())
}

fn parsed<T: std::str::FromStr>(matches: &ArgMatches, name: &str) -> anyhow::Result<Option<T>>
where
    T::Err: std::fmt::Display,
{
    let Some(text) = matches.get_one::<String>(name) else { return Ok(None) };
    text.parse().map(Some).map_err(|e| anyhow::anyhow!("--{name} {text}: {e}"))
}

/// Numbers between commas, each within the range.
fn list(matches: &ArgMatches, name: &str, least: f64, most: f64) -> anyhow::Result<Option<Vec<f64>>> {
    let Some(text) = matches.get_one::<String>(name) else { return Ok(None) };
    let mut numbers = Vec::new();
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        match part.parse::<f64>() {
            Ok(number) if (least..=most).contains(&number) => numbers.push(number),
            _ => bail!("--{name} {text}: {part:?} is not a number from {least} to {most}"),
        }
    }
    Ok(Some(numbers))
}

fn number(matches: &ArgMatches, name: &str, least: f64, most: f64) -> anyhow::Result<Option<f64>> {
    match list(matches, name, least, most)?.as_deref() {
        None => Ok(None),
        Some([one]) => Ok(Some(*one)),
        Some(_) => bail!("--{name} takes one number"),
    }
}

/// What the target can take, for the plan's defaults.
#[derive(Debug, Clone, Copy)]
pub struct Takes {
    pub most_at_once: u32,
    pub context: Option<usize>,
    /// Its duty can be set from here.
    pub duty: bool,
}

/// The plan, with the defaults that the target and `--quick` imply.
///
/// # Errors
/// A value that is none, by flag.
pub fn plan(matches: &ArgMatches, takes: Takes) -> anyhow::Result<Plan> {
    let quick = matches.get_flag("quick");
    let pick = |quick_value: f64, value: f64| if quick { quick_value } else { value };
    let seconds = |name, default: f64| -> anyhow::Result<Duration> {
        Ok(Duration::from_secs_f64(number(matches, name, 0.0, 1e6)?.unwrap_or(default)))
    };
    let known: &[u32] = if quick { &QUICK_CONCURRENCIES } else { &CONCURRENCIES };
    let concurrencies = match list(matches, "concurrency", 1.0, 4096.0)? {
        Some(all) if all.is_empty() => bail!("--concurrency names no number"),
        Some(all) if all.iter().any(|n| n.fract() != 0.0) => bail!("--concurrency takes whole numbers"),
        Some(all) => all.into_iter().map(|n| n as u32).collect(),
        None => known.iter().copied().filter(|c| *c <= takes.most_at_once).collect(),
    };
    let room = takes.context.unwrap_or(usize::MAX).saturating_sub(1).max(1);
    let prefill = number(matches, "prefill", 0.0, 1e7)?.unwrap_or(pick(256.0, 1024.0)) as usize;
    let no_duty = if takes.duty { None } else { Some(Vec::new()) };
    let default_duty = if quick { vec![0.5] } else { vec![0.25, 0.5, 0.75] };
    let arrivals = match matches.get_one::<String>("trace") {
        Some(file) => Some(trace::read(file.as_ref())?.into()),
        None => None,
    };
    let speed = number(matches, "trace-speed", 1e-3, 1e6)?.unwrap_or(1.0);
    let length = |name, quick_value, value| -> anyhow::Result<Lengths> {
        Ok(parsed(matches, name)?.unwrap_or(Lengths::Fixed(if quick { quick_value } else { value })))
    };
    let window = number(matches, "seconds", 0.01, 1e4)?;
    Ok(Plan {
        concurrencies,
        prefill_tokens: (prefill > 0).then(|| prefill.min(room)),
        duties: match (list(matches, "duty", 0.01, 1.0)?, no_duty) {
            (Some(given), None) => given,
            (Some(given), Some(_)) if !given.is_empty() => {
                bail!("--duty: only the engine of this process can be paused")
            }
            (_, no_duty) => no_duty.unwrap_or(default_duty),
        },
        power_caps_watts: list(matches, "power-caps", 1.0, 1e5)?.unwrap_or_default(),
        requests_per_second: list(matches, "rate", 1e-3, 1e5)?.unwrap_or_default(),
        trace: arrivals.map(|a| (a, speed)),
        sustained: seconds("sustained", pick(8.0, 120.0))?,
        input: length("input", 32, 128)?,
        output: length("output", 64, 128)?,
        context: takes.context,
        windows: number(matches, "windows", 1.0, 1e6)?.unwrap_or(10.0) as usize,
        window: Duration::from_secs_f64(window.unwrap_or(pick(0.5, 2.0))),
        // A window that was asked for is not stretched.
        thorough: !quick && window.is_none(),
        warm_up: Duration::from_secs_f64(window.unwrap_or(pick(1.0, 3.0))),
        idle: Duration::from_secs_f64(window.unwrap_or(pick(2.0, 5.0))),
        seed: parsed(matches, "seed")?.unwrap_or(1),
        most_points: number(matches, "points", 1.0, 1e6)?.map_or(usize::MAX, |n| n as usize),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENGINE: Takes = Takes { most_at_once: 64, context: Some(512), duty: true };

    fn parse(line: &str, takes: Takes) -> anyhow::Result<Plan> {
        let words = std::iter::once("bench").chain(line.split_whitespace());
        plan(&command().try_get_matches_from(words)?, takes)
    }

    #[test]
    fn defaults_follow_the_target() {
        let engine = parse("", ENGINE).unwrap();
        assert_eq!(engine.concurrencies, [1, 2, 4, 8, 16, 32, 64]);
        assert_eq!((engine.prefill_tokens, engine.thorough), (Some(511), true));
        assert_eq!(engine.duties, [0.25, 0.5, 0.75]);
        let one = Takes { most_at_once: 1, context: None, duty: false };
        let rival = parse("--quick", one).unwrap();
        assert_eq!((rival.concurrencies, rival.duties, rival.prefill_tokens), (vec![1], vec![], Some(256)));
    }

    /// The whole of it stays below two minutes, loading and settling included.
    #[test]
    fn quick_is_quick() {
        let quick = parse("--quick", ENGINE).unwrap();
        let points = quick.concurrencies.len() + 1 + quick.duties.len();
        let windows = quick.window.as_secs_f64() * quick.windows as f64;
        let each = quick.warm_up.as_secs_f64() + windows;
        let all = each * points as f64 + quick.sustained.as_secs_f64() + 2.0 * quick.idle.as_secs_f64();
        assert!(all < 60.0, "{all} s");
    }

    #[test]
    fn what_cannot_be_is_named() {
        let one = Takes { most_at_once: 1, context: None, duty: false };
        for (line, want) in [
            ("--concurrency 0", "--concurrency 0"),
            ("--concurrency 1,x", "\"x\""),
            ("--concurrency ,", "--concurrency names no number"),
            ("--duty 1.5", "--duty 1.5"),
            ("--duty 0.5", "only the engine"),
            ("--input many", "--input many"),
            ("--windows 1,2", "--windows takes one"),
            ("--trace /no/such/file", "/no/such/file"),
            ("--baseline candle-transformers --url http://x", "cannot be used with"),
        ] {
            let error = parse(line, one).unwrap_err().to_string();
            assert!(error.contains(want), "{line}: {error}");
        }
    }
}
