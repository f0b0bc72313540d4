//! `hashwatt models fit`: which models fit which card in which type, with what KV cache, and what that could earn.
//!
//! Flags in, a table or JSON out; nothing is downloaded, read or started. Whether a model fits is asked of the same
//! functions that `serve` asks.

mod money;
mod roofline;
mod row;
mod target;
mod text;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use serde::Serialize;

use super::{Exit, given, switch};
use crate::config::Config;
use crate::config::value::parse_bytes;
use crate::model::Checkpoint;
use crate::model::checkpoint::{PRESETS, preset_says};
use crate::model::decoder::Quantize;
use crate::model::encoder::EncoderCheckpoint;
use crate::model::weights::WeightSource;
use crate::ops::pool::Pool;
use money::{Mining, Money};
use row::{Question, Row, TYPES};
use target::Target;

const SYNTHETIC: &str = "synthetic:";

/// The subcommand with its flags. `--model`, `--quantization`, `--kv-cache-dtype` and what else sizes a unit are
/// settings, and mean what they mean to `serve`.
pub fn command() -> Command {
    let option = |name: &'static str, shape: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(shape).help(help)
    };
    let file = |name, shape, help| option(name, shape, help).value_parser(value_parser!(PathBuf));
    Command::new("fit")
        .about("Which models fit which card, in which type, with what KV cache, and what that could earn")
        .arg(
            option(
                "gpu",
                "NAME[xN]",
                "A board, as 4090 or \"H100 SXMx8\", or all; this machine's by default",
            )
            .action(ArgAction::Append),
        )
        .arg(
            option(
                "memory",
                "BYTES",
                "Memory of the device instead, as 24GiB; of a processor with --device cpu",
            )
            .value_parser(parse_bytes),
        )
        .arg(
            option(
                "context",
                "TOKENS",
                "Tokens of each sequence; 4096 by default, less where a model has less",
            )
            .value_parser(value_parser!(u32).range(1..)),
        )
        .arg(file("market", "FILE", "Market snapshot: adds what a kilowatt-hour earns"))
        .arg(given::miners_option())
        .arg(file("reports", "DIR", "Folder with reports of the bench [default: the current one]"))
        .arg(switch("json", "Print JSON"))
}

/// All that is said.
#[derive(Debug, Serialize)]
struct Answer {
    /// Of one kilowatt-hour inside the machine, without cooling.
    mining: Option<Mining>,
    example: bool,
    devices: Vec<Fitted>,
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Fitted {
    #[serde(flatten)]
    target: Target,
    rows: Vec<Row>,
}

/// A model, the name of its repository, and what its card notes.
struct Candidate {
    checkpoint: Checkpoint,
    repo: Option<String>,
    note: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// A board or model that is not known, a cache that boards have no attention for, a file that cannot be read.
pub fn run(config: &Config, matches: &ArgMatches) -> Exit {
    let targets = target::targets(config, matches)?;
    let candidates = candidates(config, matches)?;
    let money = Money::read(matches)?;
    let context = matches.get_one::<u32>("context").map(|n| *n as usize);
    let question = Question { config, context, money: &money };
    let answer = Answer {
        mining: money.mining.clone(),
        example: money.market.as_ref().is_some_and(|m| m.example),
        devices: targets.into_iter().map(|target| fitted(&question, &candidates, target)).collect(),
        notes: money.notes.iter().chain(candidates.iter().filter_map(|c| c.note.as_ref())).cloned().collect(),
    };
    if matches.get_flag("json") {
        println!("{}", serde_json::to_string_pretty(&answer)?);
    } else {
        print!("{}", text::text(&answer));
    }
    Ok(0)
}

fn fitted(question: &Question, candidates: &[Candidate], target: Target) -> Fitted {
    let rows = candidates.iter().flat_map(|candidate| {
        let Candidate { checkpoint, repo, .. } = candidate;
        let of = |quantize| Row::of(question, checkpoint, repo.as_deref(), quantize, &target);
        types(question.config, checkpoint).into_iter().map(of).collect::<Vec<Row>>()
    });
    Fitted { rows: rows.collect(), target }
}

/// The type that is asked for; else all for a preset, and a checkpoint that is here as it is.
fn types(config: &Config, checkpoint: &Checkpoint) -> Vec<Quantize> {
    match (config.quantize, &checkpoint.source) {
        (Quantize::AsStored, WeightSource::Synthetic(_)) => TYPES.to_vec(),
        (asked, _) => vec![asked],
    }
}

/// The models of `--model`, presets also without their prefix; all presets where none are given.
fn candidates(config: &Config, matches: &ArgMatches) -> anyhow::Result<Vec<Candidate>> {
    let pool = Arc::new(Pool::new(1));
    let is_preset = |name: &str| PRESETS.iter().any(|(preset, _)| *preset == name);
    let open = |model: &str| {
        let preset = model.strip_prefix(SYNTHETIC).unwrap_or(model);
        if EncoderCheckpoint::is_one(model) || EncoderCheckpoint::is_one(&format!("{SYNTHETIC}{model}")) {
            bail!("--model {model}: makes vectors or scores, and has no KV cache to fit");
        }
        let id = if is_preset(preset) { format!("{SYNTHETIC}{preset}") } else { model.to_string() };
        let checkpoint = Checkpoint::open(&id, &pool).with_context(|| format!("--model {model}"))?;
        let note = preset_says(preset, "note").map(|note| format!("{preset}: {note}"));
        Ok(Candidate { checkpoint, repo: preset_says(preset, "repo"), note })
    };
    match matches.get_many::<String>("model") {
        None => PRESETS.iter().map(|(preset, _)| open(preset)).collect(),
        Some(_) => config.models.iter().map(|source| open(&source.model)).collect(),
    }
}

#[cfg(test)]
mod tests;
