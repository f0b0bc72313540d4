//! `hashwatt bench`: measures, prints the table and writes the report, also when it is cut short.
//!
//! The first Ctrl-C ends the bench after the window under way and keeps what there is.

mod arguments;
mod screen;
mod subject;

use anyhow::Context;
use clap::ArgMatches;
use tokio_util::sync::CancellationToken;

pub use arguments::command;
use screen::Screen;

use super::{Exit, given, machine};
use crate::clock::{Clock, unix_seconds};
use crate::config::Config;
use crate::config::value::without_credentials;
use crate::measure::files::ReportFiles;
use crate::measure::hardware;
use crate::measure::html;
use crate::measure::report::{Meter, Report, SCHEMA};
use crate::measure::sweep::Bench;
use crate::measure::table;
use crate::measure::window::Instruments;
use subject::Subject;

/// What the process ends with when the bench was interrupted: as shells have it.
const INTERRUPTED: u8 = 130;

/// Runs the bench; 0 when it came to its end, whatever the verdict.
///
/// # Errors
/// What cannot be opened, a target that fails, with `--require-measured` a figure that is not measured.
pub fn run(config: &Config, matches: &ArgMatches) -> Exit {
    let clock = Clock::system();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(machine::cores().clamp(1, 4))
        .enable_all()
        .build()
        .context("the runtime could not start")?;
    let given = given::given(matches)?;
    let folder = matches.get_one::<String>("out").map_or(".", String::as_str);
    // Before a model is loaded for nothing.
    ReportFiles::check(folder.as_ref())?;
    let subject = subject::open(config, matches, runtime.handle(), &clock)?;
    let plan = arguments::plan(matches, subject.takes)?;
    let files = ReportFiles::take(folder.as_ref())?;
    let stop = CancellationToken::new();
    runtime.spawn(signals(stop.clone()));
    let instruments =
        Instruments { begun: clock.now(), clock, monitor: Some(subject.monitor.clone()), stop: stop.clone() };
    let report = begin(&subject);
    files.save(&report)?;
    let mut screen = Screen::new(files);
    let bench = Bench {
        plan,
        instruments,
        runtime: runtime.handle().clone(),
        target: subject.target,
        busy: subject.busy,
        controls: subject.controls,
        given,
        report,
        listener: &mut screen,
    };
    let report = bench.run().context("the power recorder could not start")?;
    let files = screen.end()?;
    let text = table::text(&report);
    println!("{text}");
    files.write("csv", &table::csv(&report))?;
    files.write("md", &table::markdown(&report))?;
    files.write("html", &html::render(&report))?;
    println!("{} and, beside it, .csv, .md and .html", files.path("json").display());
    runtime.shutdown_background();
    end(config, &report, stop.is_cancelled())
}

/// What the process ends with, for a report that is written.
fn end(config: &Config, report: &Report, interrupted: bool) -> Exit {
    if config.require_measured {
        let unsound = report.points.iter().find_map(|p| {
            let problem = match report.primary_energy(p) {
                None => Some("there are no joules"),
                Some(energy) => energy.problem.as_deref(),
            };
            Some(format!("{}: {}", table::label(p), problem?))
        });
        if let Some(problem) = unsound {
            anyhow::bail!("--require-measured: {problem}");
        }
    }
    match &report.partial_because {
        None => Ok(0),
        Some(_) if interrupted => Ok(INTERRUPTED),
        Some(problem) => anyhow::bail!("the bench ended early: {problem}"),
    }
}

/// A report that holds nothing measured yet.
fn begin(subject: &Subject) -> Report {
    let created_unix_seconds = unix_seconds();
    let created = jiff::Timestamp::from_second(created_unix_seconds as i64).unwrap_or_default();
    let meters = subject.monitor.infos().into_iter().map(|info| Meter {
        name: info.name,
        boundary: info.boundary,
        method: info.method,
        period_seconds: info.period.as_secs_f64(),
        lag_seconds: info.lag.as_secs_f64(),
        gain_error: info.gain_error,
        problem: None,
    });
    Report {
        schema: SCHEMA,
        complete: false,
        partial_because: Some("the bench has not ended, or was killed".into()),
        example: false,
        created_unix_seconds,
        created: created.to_string(),
        version: env!("CARGO_PKG_VERSION").into(),
        commit: option_env!("BUILT_FROM_COMMIT").unwrap_or("unknown").into(),
        // Where the program lies is nobody's business.
        command: without_secrets(std::iter::once("hashwatt".into()).chain(std::env::args().skip(1))),
        elapsed_seconds: 0.0,
        hardware: hardware::of_this_machine(machine::instructions(), subject::boards()),
        model: subject.model.clone(),
        target: subject.described.clone(),
        ceilings: subject.ceilings.clone(),
        meters: meters.collect(),
        primary: None,
        idle: Vec::new(),
        points: Vec::new(),
        power: Vec::new(),
        economics: None,
        warnings: subject.notes.clone(),
    }
}

/// The command line, to be run again by whoever has the secrets.
fn without_secrets(arguments: impl Iterator<Item = String>) -> Vec<String> {
    let mut next_is_secret = false;
    let shown = |argument: String| {
        if std::mem::replace(&mut next_is_secret, argument == "--api-key") {
            return "***".into();
        }
        if argument.starts_with("--api-key=") {
            return "--api-key=***".into();
        }
        without_query(&without_credentials(&argument))
    };
    arguments.map(shown).collect()
}

/// A URL's query may hold a token: `http:http://pdu/x?…#path`.
fn without_query(text: &str) -> String {
    let Some(begin) = text.find("://").and_then(|at| Some(at + text[at..].find('?')?)) else {
        return text.into();
    };
    let end = text[begin..].find('#').map_or(text.len(), |at| begin + at);
    format!("{}?…{}", &text[..begin], &text[end..])
}

async fn signals(stop: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
    stop.cancel();
}

#[cfg(test)]
mod tests {
    #[test]
    fn secrets_stay_out_of_the_report() {
        let line = "hashwatt bench --api-key abc --api-key=abc --url http://h:1/?k=v --meter http:http://me:pw@pdu/x?t=1#w";
        let shown = super::without_secrets(line.split(' ').map(String::from)).join(" ");
        assert_eq!(
            shown,
            "hashwatt bench --api-key *** --api-key=*** --url http://h:1/?… --meter http:http://***@pdu/x?…#w"
        );
    }
}
