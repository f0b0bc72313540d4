//! How fast a row decodes and what a kilowatt-hour of it earns: of a report where there is one, else of the roofline.
//!
//! The arithmetic is `economics`' and `measure`'s, as in `bench` and `report verdict`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::ArgMatches;
use serde::Serialize;

use super::roofline::Step;
use super::row::{Row, Speed};
use super::target::Target;
use crate::cli::{given, machine};
use crate::clock::unix_seconds;
use crate::economics::inference::{End, TokenPrices, revenue};
use crate::economics::market::Market;
use crate::economics::miners::{self, Miner};
use crate::economics::mining;
use crate::measure::economics::{Given, inputs, operating_point};
use crate::measure::hardware;
use crate::measure::report::{self, Report};
use crate::power::boards;
use crate::quantity::TokensPerJoule;

const KWH_PER_MWH: f64 = 1000.0;

/// What the operator knows: a market, machines, reports.
pub struct Money {
    pub market: Option<Market>,
    pub mining: Option<Mining>,
    miners: Vec<Miner>,
    reports: Vec<Report>,
    /// Of this machine.
    fingerprint: String,
    now_unix_seconds: u64,
    /// What is to be said of the files.
    pub notes: Vec<String>,
}

/// The alternative: a machine at the market's hashprice, inside the machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Mining {
    pub machine: String,
    pub usd_per_kwh: f64,
    pub as_of: String,
}

impl Money {
    /// # Errors
    /// A file or folder that was named and cannot be read, or is not what it should be.
    pub fn read(matches: &ArgMatches) -> anyhow::Result<Money> {
        let market = given::market(matches)?;
        let miners = given::miners(matches)?.map_or_else(|| miners::with_own(None), Ok)?;
        let now_unix_seconds = unix_seconds();
        let mut notes = Vec::new();
        match &market {
            Some(market) => notes.extend(market.warnings(now_unix_seconds).iter().map(ToString::to_string)),
            None => notes.push(
                "no --market: nothing of what serving or mining earns (hashwatt market fetch writes one)"
                    .into(),
            ),
        }
        let reports = reports(matches, &mut notes)?;
        let fingerprint = hardware::of_this_machine(machine::instructions(), Vec::new()).fingerprint;
        let mining = market.as_ref().and_then(|market| thriftiest(market, &miners));
        Ok(Money { market, mining, miners, reports, fingerprint, now_unix_seconds, notes })
    }

    /// Puts speed and money into a row that fits; `repo` is another name of the model.
    pub fn put(&self, row: &mut Row, step: &Step, repo: Option<&str>, target: &Target) {
        let prices = self.prices(&row.model, repo);
        if let Some((report, speed)) = self.measured(row, repo, target) {
            row.serving_usd_per_kwh = prices.and_then(|prices| self.of_report(report, &prices));
            row.speed = Some(speed);
            return;
        }
        let Some(board) = &target.board else { return };
        let each = step.tokens_per_second(board);
        let per_joule = each / board.watts;
        let of_output = |p: TokenPrices| revenue(TokensPerJoule(per_joule), p.usd_per_million_output_tokens);
        row.serving_usd_per_kwh = prices.map(|p| of_output(p).0 / KWH_PER_MWH);
        row.speed = Some(Speed {
            output_tokens_per_second: each * target.count as f64,
            output_tokens_per_joule: per_joule,
            concurrency: step.sequences * target.count,
            basis: "roofline".into(),
            boundary: "gpu_board".into(),
        });
    }

    /// What its tokens sell for, by whichever of its names the market has.
    fn prices(&self, model: &str, repo: Option<&str>) -> Option<TokenPrices> {
        let market = self.market.as_ref()?;
        names(model, repo).find_map(|name| market.token_price(name)).map(TokenPrices::from)
    }

    /// The newest whole report of this model, type and hardware that is no example, with its point of most tokens for
    /// a joule.
    fn measured(&self, row: &Row, repo: Option<&str>, target: &Target) -> Option<(&Report, Speed)> {
        let fits = |r: &&Report| {
            let id = r.model.id.trim_start_matches("synthetic:");
            r.complete
                && !r.example
                && names(&row.model, repo).any(|name| name.eq_ignore_ascii_case(id))
                && r.model.dtype.as_deref() == Some(row.weights)
                && self.is_of(r, target)
        };
        let report = self.reports.iter().filter(fits).max_by_key(|r| r.created_unix_seconds)?;
        let (point, energy) = operating_point(report)?;
        let speed = Speed {
            output_tokens_per_second: point.output_tokens_per_second.value,
            output_tokens_per_joule: energy.tokens_per_joule?.value,
            concurrency: point.concurrency as usize,
            basis: if energy.measured { "measured".into() } else { energy.method.to_string() },
            boundary: energy.boundary.as_str().into(),
        };
        Some((report, speed))
    }

    /// Whether this program made the report on so many devices of this kind.
    fn is_of(&self, report: &Report, target: &Target) -> bool {
        let report::Target::InProcess { settings } = &report.target else { return false };
        let Some(devices) = settings.iter().find(|s| s.name == "device") else { return false };
        let all: Vec<&str> = devices.value.split(',').collect();
        let kind = if target.gpu { "cuda" } else { "cpu" };
        if all.len() != target.count || !all.iter().all(|device| device.starts_with(kind)) {
            return false;
        }
        if !target.gpu {
            let without_gpus = report::Hardware { gpus: Vec::new(), ..report.hardware.clone() };
            return hardware::fingerprint(&without_gpus) == self.fingerprint;
        }
        let is_same = |gpu: &report::Gpu| match (boards::find(&gpu.name), &target.board) {
            (Ok(found), Some(board)) => found.name == board.name,
            _ => gpu.name == target.name,
        };
        report.hardware.gpus.iter().any(is_same)
    }

    /// Dollars of a kilowatt-hour inside the boundary of the measurement, of requests as they were measured.
    fn of_report(&self, report: &Report, prices: &TokenPrices) -> Option<f64> {
        let given =
            Given { market: self.market.clone(), miners: Some(self.miners.clone()), ..Given::default() };
        let inputs = inputs(report, given, self.now_unix_seconds).ok()?;
        Some(inputs.served?.revenue(&inputs.shape, prices, End::Value).0 / KWH_PER_MWH)
    }
}

/// What a model may be called: by its card, by its repository, by the repository without its owner.
fn names<'a>(model: &'a str, repo: Option<&'a str>) -> impl Iterator<Item = &'a str> {
    let alone = repo.and_then(|repo| Some(repo.rsplit_once('/')?.1));
    std::iter::once(model).chain(repo).chain(alone)
}

/// The machine that earns most for its energy.
fn thriftiest(market: &Market, miners: &[Miner]) -> Option<Mining> {
    let best = miners.iter().min_by(|a, b| a.efficiency().0.total_cmp(&b.efficiency().0))?;
    let earned = mining::revenue(mining::hashprice(market), best.efficiency());
    Some(Mining {
        machine: best.name.clone(),
        usd_per_kwh: earned.0 / KWH_PER_MWH,
        as_of: market.as_of.clone(),
    })
}

/// `report.json`, `report-2.json`, … of the folder, by name. A folder that nobody named may hold none.
fn reports(matches: &ArgMatches, notes: &mut Vec<String>) -> anyhow::Result<Vec<Report>> {
    let asked = matches.get_one::<PathBuf>("reports");
    let folder = asked.map_or(Path::new("."), PathBuf::as_path);
    let entries = match std::fs::read_dir(folder) {
        Err(problem) if asked.is_some() => {
            return Err(problem).with_context(|| format!("--reports {}", folder.display()));
        }
        Err(_) => return Ok(Vec::new()),
        Ok(entries) => entries,
    };
    let is_report = |path: &PathBuf| {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        name.starts_with("report") && name.ends_with(".json")
    };
    let mut files: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).filter(is_report).collect();
    files.sort();
    let mut found = Vec::new();
    for file in files {
        match Report::read(&file) {
            Ok(report) => found.push(report),
            Err(problem) => notes.push(format!("not used: {problem}")),
        }
    }
    Ok(found)
}
