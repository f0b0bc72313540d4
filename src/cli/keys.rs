//! `hashwatt keys`: who may ask, and how much. By the running unit, or in its store while none runs.

use anyhow::Context;
use clap::{Arg, ArgMatches, Command, value_parser};
use serde_json::{Value, json};

use super::accounts::Admin;
use super::{Exit, switch};
use crate::config::Config;
use crate::config::value::parse_duration;

pub fn command() -> Command {
    let name = || Arg::new("key").required(true).value_name("KEY").help("Its id or its name");
    let json = || switch("json", "Print JSON");
    let list = |name: &'static str, shape: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(shape).value_delimiter(',').help(help)
    };
    let limit = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name("N").value_parser(value_parser!(u64)).help(help)
    };
    Command::new("keys")
        .about("Make, list, replace and revoke API keys")
        .subcommand_required(true)
        .subcommand(
            Command::new("create")
                .about("Make a key; it is shown once")
                .arg(Arg::new("name").required(true).value_name("NAME").help("What it is called in usage"))
                .arg(list("models", "MODEL,…", "Only these models"))
                .arg(list("endpoints", "PATH,…", "Only these routes, as /v1/chat/completions"))
                .arg(list("tiers", "TIER,…", "Only these service tiers: default, priority, flex"))
                .arg(limit("requests-per-minute", "Requests in any minute"))
                .arg(limit("tokens-per-minute", "Tokens in any minute, of prompts and answers"))
                .arg(limit("concurrent", "Requests at a time"))
                .arg(limit("tokens-per-day", "Tokens in a day of UTC"))
                .arg(
                    Arg::new("joules-per-day")
                        .long("joules-per-day")
                        .value_name("J")
                        .value_parser(super::given::finite)
                        .help("Joules in a day of UTC"),
                )
                .arg(json()),
        )
        .subcommand(Command::new("list").about("All keys, without what is secret").arg(json()))
        .subcommand(Command::new("revoke").about("Refuse a key from now on").arg(name()).arg(json()))
        .subcommand(
            Command::new("rotate")
                .about("Put a new key in a key's place; scopes, limits and usage stay")
                .arg(name())
                .arg(
                    Arg::new("grace")
                        .long("grace")
                        .value_name("TIME")
                        .default_value("0s")
                        .help("The old one holds for so long"),
                )
                .arg(json()),
        )
        .subcommand(
            Command::new("backup")
                .about("Copy keys and usage, as of now, into a new file")
                .arg(Arg::new("file").required(true).value_name("FILE")),
        )
}

pub fn run(config: &Config, matches: &ArgMatches) -> Exit {
    let Some((name, m)) = matches.subcommand() else { return Ok(2) };
    let admin = Admin::find(config)?;
    let named = || m.get_one::<String>("key").cloned().unwrap_or_default();
    let answer = match name {
        "create" => admin.ask("/admin/keys", Some(wanted(m)))?,
        "list" => admin.ask("/admin/keys", None)?,
        "revoke" => admin.ask("/admin/keys/revoke", Some(json!({"key": named()})))?,
        "rotate" => {
            let text = m.get_one::<String>("grace").map_or("", String::as_str);
            let grace = parse_duration(text).map_err(|e| anyhow::anyhow!("--grace {text:?} {e}"))?;
            let body = json!({"key": named(), "grace_seconds": grace.as_secs_f64().ceil() as u64});
            admin.ask("/admin/keys/rotate", Some(body))?
        }
        _ => {
            let file = m.get_one::<String>("file").map_or("", String::as_str);
            let path = std::path::absolute(file).with_context(|| format!("{file:?}"))?;
            admin.ask("/admin/backup", Some(json!({"path": path})))?;
            println!("written: {}", path.display());
            return Ok(0);
        }
    };
    if m.get_flag("json") {
        println!("{}", serde_json::to_string_pretty(&answer)?);
        return Ok(0);
    }
    match name {
        "list" => {
            println!("{:<21} {:<20} {:<11} {:<20} {:<8} restrictions", "id", "name", "key", "made", "state");
            answer["data"].as_array().into_iter().flatten().for_each(|key| println!("{}", line(key)));
        }
        "revoke" => println!("revoked: {} ({})", text(&answer["name"]), text(&answer["id"])),
        _ => {
            println!("{}", text(&answer["secret"]));
            eprintln!("{} ({}): keep it, it is not shown again", text(&answer["name"]), text(&answer["id"]));
        }
    }
    Ok(0)
}

fn wanted(m: &ArgMatches) -> Value {
    let list = |name: &str| m.get_many::<String>(name).unwrap_or_default().cloned().collect::<Vec<_>>();
    let limit = |name: &str| m.get_one::<u64>(name);
    // A list that is there and empty is refused: nobody means that.
    let scopes = ["models", "endpoints", "tiers"].into_iter().filter(|name| m.contains_id(name));
    let scopes: serde_json::Map<_, _> = scopes.map(|name| (name.to_string(), json!(list(name)))).collect();
    json!({
        "name": m.get_one::<String>("name"),
        "scopes": scopes,
        "limits": {
            "requests_per_minute": limit("requests-per-minute"), "tokens_per_minute": limit("tokens-per-minute"),
            "concurrent": limit("concurrent"), "tokens_per_day": limit("tokens-per-day"),
            "joules_per_day": m.get_one::<f64>("joules-per-day"),
        },
    })
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn line(key: &Value) -> String {
    let made = jiff::Timestamp::from_second(key["created"].as_i64().unwrap_or_default()).unwrap_or_default();
    let state = if key["revoked"].is_null() { "in force" } else { "revoked" };
    let scopes = key["scopes"].as_object().into_iter().flatten().filter_map(|(name, list)| {
        let list: Vec<_> = list.as_array()?.iter().map(text).collect();
        (!list.is_empty()).then(|| format!("{name}={}", list.join(",")))
    });
    let limits = key["limits"].as_object().into_iter().flatten();
    let limits = limits.filter(|(_, n)| !n.is_null()).map(|(name, n)| format!("{name}={n}"));
    let all: Vec<String> = scopes.chain(limits).collect();
    let made = made.strftime("%Y-%m-%d %H:%M").to_string();
    format!(
        "{:<21} {:<20} {:<11} {made:<20} {state:<8} {}",
        text(&key["id"]),
        text(&key["name"]),
        text(&key["shown"]),
        all.join(" ")
    )
}
