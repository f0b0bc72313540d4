//! The devices that models are fitted to: boards of the table, those of this machine, or so much memory.

use anyhow::{Context, bail};
use clap::ArgMatches;
use serde::Serialize;

use crate::cli::machine;
use crate::config::{Config, DeviceKind};
use crate::power::boards::{self, Board};
use crate::power::nvml::{self, BoardIdentity};

/// Devices of one kind, each an engine with its own copy of the weights.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Target {
    pub name: String,
    pub count: usize,
    pub gpu: bool,
    /// Of each GPU; of a processor what all its engines share.
    pub memory_bytes: u64,
    pub memory_from: &'static str,
    /// `None` where nobody says how fast it is.
    pub board: Option<Board>,
}

/// Where nothing is asked for and this machine tells nothing.
const USUAL: [&str; 6] = ["RTX 3090", "RTX 4090", "RTX 5090", "L40S", "H100 SXM", "H200"];
/// More boards than a machine has: what follows the `x` is part of a name.
const MOST_BOARDS: usize = 64;

/// Those that the flags ask for, else this machine's.
///
/// # Errors
/// A name of no board.
pub fn targets(config: &Config, matches: &ArgMatches) -> anyhow::Result<Vec<Target>> {
    let memory = matches.get_one::<u64>("memory").copied();
    let mut found = match matches.get_many::<String>("gpu") {
        Some(names) => {
            let each: anyhow::Result<Vec<Vec<Target>>> = names.map(|name| named(name)).collect();
            each?.concat()
        }
        None if on_processors(config) => vec![processor(config, memory)?],
        None if memory.is_some() => vec![gpu("a GPU".into(), 1, 0, "", None)],
        None => of_this_machine(config)?,
    };
    if let Some(bytes) = memory {
        found.iter_mut().for_each(|t| (t.memory_bytes, t.memory_from) = (bytes, "given"));
    }
    Ok(found)
}

fn gpu(
    name: String,
    count: usize,
    memory_bytes: u64,
    memory_from: &'static str,
    board: Option<Board>,
) -> Target {
    Target { name, count, gpu: true, memory_bytes, memory_from, board }
}

fn of_board(board: Board, count: usize) -> Target {
    gpu(board.name.clone(), count, board.memory_bytes(), "table", Some(board))
}

/// `RTX 4090`, `RTX 4090x2`, or `all` of the table.
fn named(name: &str) -> anyhow::Result<Vec<Target>> {
    if name.trim() == "all" {
        return Ok(boards::all()?.into_iter().map(|board| of_board(board, 1)).collect());
    }
    let many = name.rsplit_once('x').and_then(|(board, count)| {
        let count = count.parse::<usize>().ok().filter(|n| (1..=MOST_BOARDS).contains(n))?;
        Some((board, count))
    });
    let (board, count) = many.unwrap_or((name, 1));
    Ok(vec![of_board(boards::find(board.trim()).context("--gpu")?, count)])
}

fn on_processors(config: &Config) -> bool {
    config.devices.iter().all(|device| matches!(device, DeviceKind::Cpu))
}

fn processor(config: &Config, memory: Option<u64>) -> anyhow::Result<Target> {
    let Some(memory_bytes) = memory.or_else(|| machine::memory().map(|m| m.available)) else {
        bail!("this system does not say how much memory is available: give --memory, as 64GiB");
    };
    let count = config.devices.iter().filter(|d| matches!(d, DeviceKind::Cpu)).count().max(1);
    let name = "processor".into();
    Ok(Target { name, count, gpu: false, memory_bytes, memory_from: "available now", board: None })
}

/// Its boards; without any its processor, and where that does not tell its memory, boards that many have.
fn of_this_machine(config: &Config) -> anyhow::Result<Vec<Target>> {
    let here = of_driver(nvml::boards(None).unwrap_or_default());
    if !here.is_empty() {
        return Ok(here);
    }
    match processor(config, None) {
        Ok(processor) => Ok(vec![processor]),
        Err(_) => USUAL.iter().map(|name| Ok(of_board(boards::find(name)?, 1))).collect(),
    }
}

/// Boards of one name and memory are one target.
fn of_driver(found: Vec<BoardIdentity>) -> Vec<Target> {
    let mut targets: Vec<Target> = Vec::new();
    for identity in found {
        let Some(driver_says) = identity.memory_bytes else { continue };
        let target = match boards::find(&identity.name) {
            // A program sees somewhat less than the driver's tool shows.
            Ok(board) if board.memory_bytes() <= driver_says => of_board(board, 1),
            known => gpu(identity.name, 1, driver_says, "driver", known.ok()),
        };
        match targets.iter_mut().find(|t| t.name == target.name && t.memory_bytes == target.memory_bytes) {
            Some(same) => same.count += 1,
            None => targets.push(target),
        }
    }
    targets
}

impl Target {
    /// What `serve` would be told of these devices.
    pub fn devices(&self) -> Vec<DeviceKind> {
        (0..self.count).map(|i| if self.gpu { DeviceKind::Cuda(i) } else { DeviceKind::Cpu }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_say_how_many() {
        let counts = |name: &str| named(name).map(|t| (t[0].name.clone(), t[0].count));
        assert_eq!(counts("4090x2").unwrap(), ("RTX 4090".into(), 2));
        assert_eq!(counts("RTX 4090 x8").unwrap(), ("RTX 4090".into(), 8));
        // The x of RTX is none.
        assert_eq!(counts("rtx4090").unwrap(), ("RTX 4090".into(), 1));
        assert!(named("4090x0").is_err() && named("4090x").is_err() && named("x2").is_err());
        assert!(named("all").unwrap().len() > 20);
    }

    #[test]
    fn boards_of_a_machine_are_counted_and_may_be_strangers() {
        let identity = |name: &str, mebibytes: u64| BoardIdentity {
            index: 0,
            name: name.into(),
            uuid: String::new(),
            driver: String::new(),
            cuda_driver: None,
            memory_bytes: Some(mebibytes << 20),
            power_limit_watts: None,
            default_power_limit_watts: None,
            least_power_limit_watts: None,
            greatest_power_limit_watts: None,
            mig: false,
        };
        let found = of_driver(vec![
            identity("NVIDIA GeForce RTX 4090", 24564),
            identity("NVIDIA GeForce RTX 4090", 24564),
            identity("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 9856),
        ]);
        assert_eq!(
            found.iter().map(|t| (t.count, t.memory_from)).collect::<Vec<_>>(),
            [(2, "table"), (1, "driver")]
        );
        assert_eq!(found[1].board, None);
    }
}
