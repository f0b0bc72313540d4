//! Models by their name on the hub: `--model org/name` becomes the folder of its snapshot, `models pull` fetches one.
//!
//! Only commands lead here, before a port opens: what is served is chosen by who starts the process.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Arg, ArgMatches, Command};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use serde_json::json;

use super::Exit;
use crate::clock::{Clock, Tick};
use crate::config::Config;
use crate::hub::{self, HubName, Progress, Settings, Snapshot, Token};
use crate::model::arch;
use crate::model::encoder::EncoderCheckpoint;

/// Before the second try of a request.
const PAUSE: Duration = Duration::from_millis(500);
/// How often a long download is told of where there is no terminal.
const TELL_EVERY: Duration = Duration::from_secs(30);
const BAR: &str = "{msg} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta}";

/// The hub's name of a model, where it is one: what exists as a path is that.
///
/// # Errors
/// A repository with a revision or a file that is none.
pub fn named(model: &str) -> anyhow::Result<Option<HubName>> {
    match Path::new(model).exists() {
        true => Ok(None),
        false => Ok(HubName::parse(model)?),
    }
}

fn settings(config: &Config) -> anyhow::Result<Settings> {
    let places = &config.hub;
    let cache = places.cache.clone().context("no folder for models of the hub: set HF_HOME or HOME")?;
    let kept = || std::fs::read_to_string(places.token_file.as_ref()?).ok();
    let token = places.token.clone().or_else(kept).and_then(|text| Token::new(&text));
    Ok(Settings { endpoint: places.endpoint.clone(), cache, token, offline: places.offline, pause: PAUSE })
}

/// Where the settings name a model.
fn models(config: &mut Config) -> impl Iterator<Item = &mut String> {
    let draft = config.speculation.iter_mut().filter_map(|s| s.draft.as_mut());
    config.models.iter_mut().map(|source| &mut source.model).chain(draft)
}

/// Puts the path of its snapshot in the place of every model that is the hub's, fetched where need be.
///
/// # Errors
/// A model that cannot be had.
pub fn resolve(config: &mut Config) -> anyhow::Result<()> {
    let asked = config.clone();
    for model in models(config) {
        if let Some(name) = named(model)? {
            *model = path(&fetch(&asked, &name)?)?;
        }
    }
    config.model = config.models[0].model.clone();
    Ok(())
}

/// The same with what is in the cache, for a command that only looks. The names that are not there stay as they are.
pub fn resolve_cached(config: &mut Config) {
    let mut offline = config.clone();
    offline.hub.offline = true;
    for model in models(config) {
        if let Ok(Some(name)) = named(model)
            && let Ok(found) = fetch(&offline, &name).and_then(|snapshot| path(&snapshot))
        {
            *model = found;
        }
    }
    config.model = config.models[0].model.clone();
}

fn path(snapshot: &Snapshot) -> anyhow::Result<String> {
    let path = snapshot.path.to_str();
    Ok(path.with_context(|| format!("{}: is not UTF-8", snapshot.path.display()))?.to_string())
}

fn fetch(config: &Config, name: &HubName) -> anyhow::Result<Snapshot> {
    let watched = Watched { clock: Clock::system(), now: Mutex::new(None) };
    let snapshot = hub::fetch(&settings(config)?, name, &check, &watched)?;
    if snapshot.bytes > 0 {
        tracing::info!("{name}: {} fetched, commit {}", HumanBytes(snapshot.bytes), snapshot.commit);
    }
    Ok(snapshot)
}

/// That the architecture is one that is served: known before the weights come.
fn check(folder: &Path) -> Result<(), String> {
    if EncoderCheckpoint::is_one(&folder.to_string_lossy()) {
        return Ok(());
    }
    let text = std::fs::read(folder.join("config.json")).map_err(|e| e.to_string())?;
    let config = serde_json::from_slice(&text).map_err(|e| format!("config.json: {e}"))?;
    arch::spec_of("config.json", &config).map(drop).map_err(|e| e.to_string())
}

pub fn pull_command() -> Command {
    let name = Arg::new("name").required(true).value_name("ORG/NAME[@REVISION][:FILE.gguf]");
    Command::new("pull").about("Fetch a model from the hub into its cache; prints the folder").args([
        name.help("A repository, perhaps at a branch, tag or commit, perhaps one GGUF file of it"),
        Arg::new("json").long("json").action(clap::ArgAction::SetTrue).help("Print JSON"),
    ])
}

/// `models pull`.
pub fn pull(config: &Config, matches: &ArgMatches) -> Exit {
    let text = matches.get_one::<String>("name").cloned().unwrap_or_default();
    let Some(name) = HubName::parse(&text)? else {
        bail!(
            "{text:?} is not the hub's name of a model, as org/name, org/name@revision or org/name:file.gguf"
        )
    };
    let Snapshot { path, commit, bytes } = fetch(config, &name)?;
    match matches.get_flag("json") {
        false => println!("{}", path.display()),
        true => println!(
            "{}",
            json!({"model": name.to_string(), "path": path, "commit": commit, "fetched_bytes": bytes})
        ),
    }
    Ok(0)
}

/// What the cache holds: name, folder.
pub fn cached(config: &Config) -> Vec<(String, std::path::PathBuf)> {
    let all = config.hub.cache.as_deref().map(hub::cached).unwrap_or_default();
    all.into_iter().map(|c| (c.name, c.folder)).collect()
}

/// A bar a file where there is a terminal, else a line at its begin and its end, and now and then between.
struct Watched {
    clock: Clock,
    now: Mutex<Option<Current>>,
}

struct Current {
    file: String,
    size: u64,
    bar: Option<ProgressBar>,
    reached: u64,
    told: Tick,
}

impl Watched {
    fn with(&self, work: impl FnOnce(&mut Option<Current>)) {
        work(&mut self.now.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }
}

impl Progress for Watched {
    fn begin(&self, file: &str, size: u64, there: u64) {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template(BAR).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(size).with_style(style).with_message(file.to_string());
            bar.set_position(there);
            bar.reset_eta();
            bar
        });
        if bar.is_none() {
            let there = if there > 0 { format!(", {} are there", HumanBytes(there)) } else { String::new() };
            tracing::info!("fetching {file} ({}{there})", HumanBytes(size));
        }
        let told = self.clock.now();
        self.with(|now| *now = Some(Current { file: file.into(), size, bar, reached: there, told }));
    }

    fn reached(&self, bytes: u64) {
        self.with(|now| {
            let Some(now) = now else { return };
            now.reached = bytes;
            match &now.bar {
                Some(bar) => bar.set_position(bytes),
                None if self.clock.now().since(now.told) >= TELL_EVERY => {
                    now.told = self.clock.now();
                    tracing::info!("{}: {} of {}", now.file, HumanBytes(bytes), HumanBytes(now.size));
                }
                None => {}
            }
        });
    }

    fn end(&self) {
        self.with(|now| {
            let Some(Current { bar: Some(bar), size, reached, .. }) = now.take() else { return };
            // What is whole stays on the screen.
            if reached == size { bar.finish() } else { bar.abandon() }
        });
    }

    fn note(&self, text: &str) {
        self.with(|now| match now.as_ref().and_then(|n| n.bar.as_ref()) {
            Some(bar) => bar.println(text),
            None => tracing::warn!("{text}"),
        });
    }
}
