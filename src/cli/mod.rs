//! The command line: one file a command. This is where everything is put together.
//!
//! The flags of `serve` come from the table of settings, so they are the same for every command that
//! opens a model.

mod accounts;
pub mod assemble;
mod bench;
mod chat;
mod devices;
mod doctor;
mod draft;
mod encoders;
mod fit;
mod given;
pub mod held;
pub mod hub;
mod keys;
pub mod machine;
mod market;
mod models;
mod report;
pub mod room;
mod selftest;
mod serve;
mod served;
mod usage;

pub use accounts::{Listening, listen as serve_admin, open as open_access};
pub use serve::{api_state as serve_state, state_for as serve_state_with};

use clap::{Arg, ArgAction, ArgMatches, Command};

use self::devices::Chosen;
use crate::config::settings::{SETTINGS, Setting};
use crate::config::{Config, DeviceKind, LogFormat, Resolved, process_environment};

/// What the process ends with.
pub type Exit = anyhow::Result<u8>;

fn setting_arg(setting: &'static Setting) -> Arg {
    let arg = Arg::new(setting.name).long(setting.name).global(true).action(ArgAction::Set);
    let help = match setting.default {
        "" => setting.help.to_string(),
        default => format!("{} [default: {default}]", setting.help),
    };
    let arg = arg.help(help);
    if setting.shape.ends_with(",…") {
        // Several times is the same as a list.
        return arg.action(ArgAction::Append).num_args(1).value_name(setting.shape).allow_hyphen_values(true);
    }
    if setting.shape.is_empty() {
        // `--insecure` is `--insecure=true`.
        return arg.num_args(0..=1).require_equals(true).default_missing_value("true").value_name("BOOL");
    }
    let arg = if setting.many { arg.action(ArgAction::Append) } else { arg };
    arg.num_args(1).value_name(setting.shape).allow_hyphen_values(true)
}

fn switch(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

/// The whole command line.
pub fn command() -> Command {
    let check = || switch("check", "Validate everything, weights included, and exit");
    let print = || switch("print-config", "Print each setting with its origin, and exit");
    let json = || switch("json", "Print JSON");
    Command::new("hashwatt")
        .version(env!("CARGO_PKG_VERSION"))
        .about("OpenAI-compatible inference for one unit; meters its joules and weighs them against mining")
        .after_help("Every setting is also HASHWATT_NAME in the environment and `name` in unit.toml.")
        .args(SETTINGS.iter().map(setting_arg))
        .args([check(), print()])
        .subcommand(
            Command::new("serve").about("Serve a model over HTTP (the default)").args([check(), print()]),
        )
        .subcommand(
            Command::new("chat")
                .about("A conversation in the terminal")
                .arg(Arg::new("url").long("url").value_name("URL").help("Talk to a running unit instead"))
                .arg(
                    Arg::new("system")
                        .long("system")
                        .value_name("TEXT")
                        .help("A system message to begin with"),
                ),
        )
        .subcommand(
            Command::new("models")
                .about("List presets, local checkpoints and the hub's cache")
                .arg(json())
                .subcommand(
                    Command::new("write")
                        .about("Write a model as a HuggingFace-style folder")
                        .arg(Arg::new("source").required(true).value_name("synthetic:PRESET|demo"))
                        .arg(Arg::new("folder").required(true).value_name("DIR")),
                )
                .subcommand(hub::pull_command())
                .subcommand(fit::command()),
        )
        .subcommand(bench::command())
        .subcommand(market::command())
        .subcommand(report::command())
        .subcommand(keys::command())
        .subcommand(usage::command())
        .subcommand(selftest::command())
        .subcommand(Command::new("doctor").about("Check this machine and this configuration").arg(json()))
}

/// The settings given as flags, wherever on the line.
fn given(matches: &ArgMatches) -> Vec<(&'static str, String)> {
    let deepest = deepest(matches);
    let value =
        |name: &str| deepest.get_many::<String>(name).map(|all| all.cloned().collect::<Vec<_>>().join(","));
    SETTINGS.iter().filter_map(|s| Some((s.name, value(s.name)?))).collect()
}

fn deepest(matches: &ArgMatches) -> &ArgMatches {
    matches.subcommand().map_or(matches, |(_, inner)| deepest(inner))
}

/// Runs the command; its exit code.
///
/// # Errors
/// What went wrong, to be printed as it is.
pub fn run(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> Exit {
    let matches = match command().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(e) => {
            // Help and version come this way too, to stdout and with code 0.
            // A reader that stops, as `head` does, is no error.
            let _ = e.print();
            return Ok(u8::try_from(e.exit_code()).unwrap_or(2));
        }
    };
    let resolved = Resolved::merge(&given(&matches), &process_environment())?;
    let (name, inner) = matches.subcommand().unwrap_or(("serve", &matches));
    if name == "serve" && inner.get_flag("print-config") {
        resolved.lines().iter().for_each(|line| println!("{line}"));
        resolved.config()?;
        return Ok(0);
    }
    let mut config = resolved.config()?;
    start_logging(&config)?;
    quiet_panics();
    if ["models", "market", "report", "doctor", "selftest", "keys", "usage"].contains(&name) {
        end_with_the_reader();
    }
    match name {
        "serve" | "bench" | "selftest" => hub::resolve(&mut config)?,
        "chat" if inner.get_one::<String>("url").is_none() => hub::resolve(&mut config)?,
        "doctor" => hub::resolve_cached(&mut config),
        _ => {}
    }
    // The others open no device.
    let mut chosen = Chosen::default();
    if ["serve", "chat", "bench", "doctor", "selftest"].contains(&name) {
        chosen = match devices::choose(&config.devices) {
            // It is there to say why.
            Err(problem) if name == "doctor" => {
                let problem = Some(format!("{problem:#}"));
                Chosen { devices: vec![DeviceKind::Cpu], problem, ..Chosen::default() }
            }
            chosen => chosen?,
        };
        tracing::info!("devices: {chosen}");
        config.devices = chosen.devices.clone();
    }
    match (name, inner.subcommand()) {
        ("chat", _) => chat::run(&config, inner),
        ("models", Some(("write", m))) => models::write(m),
        ("models", Some(("pull", m))) => hub::pull(&config, m),
        ("models", Some(("fit", m))) => fit::run(&config, m),
        ("models", _) => models::list(&config, inner.get_flag("json")),
        ("bench", _) => bench::run(&config, inner),
        ("market", _) => market::run(inner),
        ("report", _) => report::run(inner),
        ("keys", _) => keys::run(&config, inner),
        ("usage", _) => usage::run(&config, inner),
        ("selftest", _) => selftest::run(&config, inner),
        ("doctor", _) => doctor::run(&config, &chosen, inner.get_flag("json")),
        _ if inner.get_flag("check") => serve::check(&config),
        _ => serve::run(config, &chosen),
    }
}

/// What only prints ends quietly when nobody reads on, as in `hashwatt report … | head`.
fn end_with_the_reader() {
    // SAFETY: no thread has been started, and the default is to end.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// A panic's message may hold what a client sent; the log gets only where it happened.
fn quiet_panics() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(%place, "a thread panicked");
    }));
}

fn start_logging(config: &Config) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&config.log_level)
        .map_err(|e| anyhow::anyhow!("log-level = {:?}: {e}", config.log_level))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match config.log_format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    started.map_err(|e| anyhow::anyhow!("logging could not be started: {e}"))
}
