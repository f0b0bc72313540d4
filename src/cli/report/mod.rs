//! `hashwatt report`: compares saved reports, judges one again, draws one again. Runs nothing anew.

mod compare;
mod verdict;

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Arg, ArgMatches, Command, value_parser};

use super::{Exit, switch};
use crate::measure::html;
use crate::measure::report::Report;

/// The subcommand with its flags.
pub fn command() -> Command {
    Command::new("report")
        .about("Compare, judge or draw saved reports of the bench")
        .subcommand_required(true)
        .subcommand(compare::command())
        .subcommand(verdict::command())
        .subcommand(
            Command::new("html")
                .about("Draw a report as one page that loads nothing; never overwrites")
                .arg(file("report", "REPORT.json").required(true))
                .arg(file("out", "FILE").long("out").help("[default: the report's name with .html]")),
        )
}

/// Runs the subcommand.
///
/// # Errors
/// A file that cannot be read, written or understood, or flags that do not go together.
pub fn run(matches: &ArgMatches) -> Exit {
    match matches.subcommand() {
        Some(("compare", m)) => compare::run(m),
        Some(("verdict", m)) => verdict::run(m),
        Some((_, m)) => draw(m),
        None => Ok(2),
    }
}

fn file(name: &'static str, shape: &'static str) -> Arg {
    Arg::new(name).value_name(shape).value_parser(value_parser!(PathBuf))
}

fn json() -> Arg {
    switch("json", "Print JSON")
}

/// A file that clap has made sure of.
fn path<'a>(matches: &'a ArgMatches, name: &str) -> anyhow::Result<&'a Path> {
    let path = matches.get_one::<PathBuf>(name).with_context(|| format!("no {name} is given"))?;
    Ok(path.as_path())
}

fn draw(matches: &ArgMatches) -> Exit {
    let from = path(matches, "report")?;
    let report = Report::read(from)?;
    let beside = || from.with_extension("html");
    let to = matches.get_one::<PathBuf>("out").cloned().unwrap_or_else(beside);
    let file = std::fs::OpenOptions::new().write(true).create_new(true).open(&to);
    let mut file = file.with_context(|| format!("{} is not written", to.display()))?;
    file.write_all(html::render(&report).as_bytes()).with_context(|| to.display().to_string())?;
    println!("wrote {}", to.display());
    Ok(0)
}

/// Columns as wide as their widest cell, the first and the last to the left, the others to the right.
pub(super) fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let cell = |(i, cell): (usize, &String)| match i {
            i if i == 0 || i + 1 == count => format!("{cell:<width$}", width = widths[i]),
            _ => format!("{cell:>width$}", width = widths[i]),
        };
        let line = row.iter().enumerate().map(cell).collect::<Vec<_>>().join("  ");
        out += line.trim_end();
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::report::Kind;
    use crate::measure::testing;

    fn report(factor: f64) -> Report {
        let mut report = testing::report();
        report.points = vec![testing::point(Kind::Concurrency, 8, 600.0 * factor, 80.0)];
        report
    }

    /// A folder with these reports as `0.json`, `1.json`, …
    fn saved(reports: &[Report]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (i, report) in reports.iter().enumerate() {
            let text = serde_json::to_string(report).unwrap();
            std::fs::write(folder.path().join(format!("{i}.json")), text).unwrap();
        }
        folder
    }

    /// `@` at the beginning of a word stands for the folder.
    fn run_in(folder: &tempfile::TempDir, line: &str) -> Exit {
        let place = format!("{}/", folder.path().display());
        let words = line.split_whitespace().map(|w| w.replace('@', &place));
        run(&command().try_get_matches_from(std::iter::once("report".to_owned()).chain(words))?)
    }

    #[test]
    fn comparing_tells_by_its_exit_code() {
        let mut elsewhere = report(1.0);
        elsewhere.hardware.cores = 64;
        let mut newer = report(1.0);
        newer.schema += 1;
        let folder = saved(&[report(1.0), report(0.8), elsewhere, newer]);
        std::fs::write(folder.path().join("none.json"), "{}").unwrap();
        for (line, want) in [
            ("compare @0.json @0.json", 0),
            ("compare @0.json @1.json", 1),
            ("compare @0.json @1.json --json", 1),
            ("compare @1.json @0.json", 0),
            ("compare @0.json @1.json --max-regression 30", 0),
            ("compare @0.json @2.json", 2),
            ("compare @0.json @2.json --force", 0),
            ("compare @0.json @3.json --force", 2),
            ("compare @0.json @none.json", 2),
            ("compare @0.json @absent.json", 2),
            ("compare @0.json @1.json --max-regression 100", 2),
            ("compare @0.json @1.json --max-regression NaN", 2),
        ] {
            assert_eq!(run_in(&folder, line).unwrap(), want, "{line}");
        }
    }

    #[test]
    fn drawing_never_overwrites() {
        let folder = saved(&[report(1.0)]);
        assert_eq!(run_in(&folder, "html @0.json").unwrap(), 0);
        let page = std::fs::read_to_string(folder.path().join("0.html")).unwrap();
        assert!(page.starts_with("<!DOCTYPE html>"));
        std::fs::write(folder.path().join("0.html"), "kept").unwrap();
        let error = run_in(&folder, "html @0.json").unwrap_err();
        assert!(format!("{error:#}").contains("0.html"), "{error:#}");
        assert_eq!(std::fs::read_to_string(folder.path().join("0.html")).unwrap(), "kept");
        assert_eq!(run_in(&folder, "html @0.json --out @other.html").unwrap(), 0);
        assert!(run_in(&folder, "html @0.json --out @0.json").is_err());
    }

    #[test]
    fn judging_again_takes_every_flag_and_names_what_is_wrong() {
        let folder = saved(&[report(1.0)]);
        let put = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        put("market.toml", include_str!("../../../benches/market.example.toml"));
        put("site.toml", include_str!("../../../benches/site.example.toml"));
        put("bad.toml", "example = 3");
        for line in [
            "verdict @0.json",
            "verdict @0.json --market @market.toml --site @site.toml --json",
            "verdict @0.json --market @market.toml --price-output 0.2 --power-price -5 --utilisation 0.3,0.1,0.6",
            "verdict @0.json --price-input 0.1 --price-cached 0.05 --price-output 0.2",
        ] {
            assert_eq!(run_in(&folder, line).unwrap(), 0, "{line}");
        }
        for (line, want) in [
            ("verdict @absent.json", "absent.json"),
            ("verdict @0.json --market @bad.toml", "bad.toml"),
            ("verdict @0.json --site @absent.toml", "absent.toml"),
            ("verdict @0.json --price-output 0.2", "price of output tokens alone"),
            ("verdict @0.json --utilisation 30", "utilisation"),
            ("verdict @0.json --utilisation 0.3,0.1", "one share, or three"),
            ("verdict @0.json --utilisation much", "\"much\" is not a number"),
            ("verdict @0.json --shape 1,2", "three numbers"),
            ("verdict @0.json --shape 100,0,100", "prefill and decode apart"),
        ] {
            let error = format!("{:#}", run_in(&folder, line).unwrap_err());
            assert!(error.contains(want), "{line}: {error}");
        }
    }

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".into(), "1".into()], vec!["bcd".to_owned(), "234".to_owned()]];
        assert_eq!(columns(&rows), "a    1\nbcd  234\n");
    }
}
