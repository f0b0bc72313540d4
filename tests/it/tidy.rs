//! The rules of the house that a compiler does not check: who imports whom, and how large files grow.
//!
//! Test code (`#[cfg(test)] mod …`, `*_tests.rs`, `testing.rs`) is exempt from the import table.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Which modules of this crate a module may name. `docs/architecture.md` shows the same table.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("quantity", &[]),
    ("clock", &[]),
    ("tls", &[]),
    ("wire", &["error", "quantity", "clock", "tls"]),
    ("ops", &["error", "quantity", "clock"]),
    ("http_client", &["error", "quantity", "clock", "tls"]),
    ("power", &["error", "quantity", "clock", "http_client"]),
    ("economics", &["error", "quantity", "clock"]),
    ("metrics", &["error", "quantity", "clock"]),
    ("model", &["error", "quantity", "clock", "ops"]),
    ("text", &["error", "quantity", "clock"]),
    ("engine", &["error", "quantity", "clock", "model"]),
    ("energy", &["error", "quantity", "clock", "power", "engine", "metrics"]),
    ("market", &["error", "quantity", "clock", "economics", "http_client"]),
    ("hub", &["error", "quantity", "clock", "http_client"]),
    ("store", &["error", "quantity", "clock"]),
    ("access", &["error", "quantity", "clock", "store"]),
    ("unit", &["error", "quantity", "clock", "engine", "power", "economics", "metrics", "energy"]),
    (
        "service",
        &["error", "quantity", "clock", "unit", "text", "engine", "wire", "metrics", "energy", "access"],
    ),
    (
        "measure",
        &[
            "error",
            "quantity",
            "clock",
            "service",
            "unit",
            "economics",
            "power",
            "wire",
            "metrics",
            "energy",
            "market",
            "http_client",
        ],
    ),
    ("selftest", &["error", "quantity", "clock", "ops", "model"]),
    ("measure/baseline", &["error", "quantity", "clock", "ops", "model", "engine"]),
    ("measure/ceilings", &["error", "quantity", "clock", "ops"]),
    (
        "api",
        &["error", "quantity", "clock", "wire", "unit", "service", "metrics", "energy", "access", "store"],
    ),
    ("config", &["quantity", "model", "power"]),
    ("cli", &["*"]),
    ("lib", &["*"]),
    ("main", &["*"]),
];

/// Files that may use `ops` although their layer may not.
const OPS_TOO: &[&str] = &[
    "engine/worker.rs",
    "engine/resident.rs",
    "engine/encode.rs",
    "engine/sampler.rs",
    "engine/live.rs",
    "engine/draft.rs",
    "engine/flight.rs",
];

/// Lines a source file may have without its tests. Tables of data are exempt.
const MAX_LINES: usize = 500;
const MAX_FUNCTION_LINES: usize = 100;
const FORBIDDEN_NAMES: &[&str] = &["utils", "util", "helpers", "helper", "common", "misc"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs" || e == "cu") {
            found.push(path);
        }
    }
}

/// All files of `src`, by their path below it, with their text.
fn files() -> BTreeMap<String, String> {
    let src = root().join("src");
    let mut found = Vec::new();
    sources(&src, &mut found);
    let name = |p: &PathBuf| p.strip_prefix(&src).unwrap().to_string_lossy().into_owned();
    found.iter().map(|p| (name(p), std::fs::read_to_string(p).unwrap())).collect()
}

fn is_test_file(name: &str) -> bool {
    name.ends_with("tests.rs") || name.ends_with("testing.rs") || name.ends_with("test_engine.rs")
}

/// The text without comments' content and without an inline test module at its end.
fn without_tests(text: &str) -> &str {
    text.find("\n#[cfg(test)]\nmod tests {").map_or(text, |at| &text[..at])
}

fn code_lines(text: &str) -> impl Iterator<Item = &str> {
    without_tests(text).lines().filter(|l| !l.trim_start().starts_with("//"))
}

/// The modules of this crate that a line names: `crate::name`, also inside `crate::{a, b}`.
fn named(line: &str) -> Vec<String> {
    let ident = |s: &str| s.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut names = Vec::new();
    for (at, _) in line.match_indices("crate::") {
        if at > 0 && line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &line[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => names.extend(group.split(',').map(|s| ident(s.trim()))),
            None => names.push(ident(rest)),
        }
    }
    names.retain(|n| !n.is_empty());
    names
}

#[test]
fn every_module_imports_only_what_it_may() {
    let table: BTreeMap<_, _> = MAY_IMPORT.iter().copied().collect();
    let mut wrong = Vec::new();
    for (file, text) in files() {
        if is_test_file(&file) {
            continue;
        }
        let stem = file.trim_end_matches(".rs");
        let top = stem.split('/').next().unwrap();
        let allowed = table
            .get(stem)
            .or_else(|| table.get(top))
            .unwrap_or_else(|| panic!("{file}: module `{top}` is not in the table: add it, in its layer"));
        for line in code_lines(&text) {
            for name in named(line) {
                let fine = name == top
                    || allowed.contains(&"*")
                    || allowed.contains(&name.as_str())
                    || (name == "ops" && OPS_TOO.contains(&file.as_str()))
                    || !table.contains_key(name.as_str());
                if !fine {
                    wrong.push(format!("{file}: `crate::{name}`: {}", line.trim()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "imports against the table:\n{}", wrong.join("\n"));
}

#[test]
fn no_state_hangs_on_a_thread() {
    let of_threads = concat!("thread_", "local!");
    let found: Vec<String> = files()
        .into_iter()
        .filter(|(file, text)| !is_test_file(file) && code_lines(text).any(|l| l.contains(of_threads)))
        .map(|(file, _)| file)
        .collect();
    assert!(found.is_empty(), "{of_threads} in {found:?}: a device's memory belongs to its pool");
}

#[test]
fn the_table_is_a_hierarchy() {
    let layers: BTreeMap<&str, BTreeSet<&str>> = MAY_IMPORT
        .iter()
        .filter(|(_, may)| !may.contains(&"*"))
        .map(|(name, may)| (*name, may.iter().copied().collect()))
        .collect();
    fn reaches<'a>(
        from: &'a str,
        to: &str,
        layers: &BTreeMap<&'a str, BTreeSet<&'a str>>,
        depth: usize,
    ) -> bool {
        assert!(depth < 50, "a cycle through `{from}`");
        layers.get(from).is_some_and(|may| may.iter().any(|m| *m == to || reaches(m, to, layers, depth + 1)))
    }
    for name in layers.keys() {
        assert!(!reaches(name, name, &layers, 0), "`{name}` may reach itself");
    }
}

#[test]
fn files_and_functions_stay_readable() {
    let mut wrong = Vec::new();
    for (file, text) in files() {
        let body = if is_test_file(&file) { text.as_str() } else { without_tests(&text) };
        let lines = body.lines().count();
        if lines > MAX_LINES {
            wrong.push(format!("{file}: {lines} lines"));
        }
        if file.ends_with(".rs") && !text.starts_with("//!") {
            wrong.push(format!("{file}: does not begin with what it is for (`//!`)"));
        }
        let header = text.lines().take_while(|l| l.starts_with("//!")).count();
        if header > 12 && file != "lib.rs" {
            wrong.push(format!("{file}: a header of {header} lines"));
        }
        if file.split(['/', '.']).any(|part| FORBIDDEN_NAMES.contains(&part)) {
            wrong.push(format!("{file}: a name that says nothing"));
        }
        let mut start = None;
        for (number, line) in body.lines().enumerate() {
            let trimmed = line.trim_start();
            let indent = line.len() - trimmed.len();
            let opens = [
                "fn ",
                "pub fn ",
                "pub(crate) fn ",
                "pub(super) fn ",
                "async fn ",
                "pub async fn ",
                "unsafe fn ",
                "pub unsafe fn ",
            ];
            if start.is_none() && opens.iter().any(|o| trimmed.starts_with(o)) && !line.ends_with(';') {
                start = Some((number, indent, trimmed.to_string()));
            }
            if let Some((first, depth, name)) = &start
                && (trimmed == "}" || trimmed.ends_with('}') && number == *first)
                && indent == *depth
            {
                if number - first > MAX_FUNCTION_LINES {
                    wrong.push(format!("{file}:{}: {} lines: {name}", first + 1, number - first));
                }
                start = None;
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_dependency_has_its_reason() {
    let manifest: toml::Table = std::fs::read_to_string(root().join("Cargo.toml")).unwrap().parse().unwrap();
    let reasons = std::fs::read_to_string(root().join("docs/dependencies.md")).unwrap();
    for section in ["dependencies", "dev-dependencies"] {
        for name in manifest[section].as_table().unwrap().keys() {
            assert!(
                reasons.contains(&format!("| `{name}` |")),
                "docs/dependencies.md has no line for `{name}`"
            );
        }
    }
}

/// The help is made from the table of settings, and the table in the documentation is that one.
#[test]
fn every_setting_is_documented() {
    let text = std::fs::read_to_string(root().join("docs/operations.md")).unwrap();
    let rows: Vec<&str> = text.lines().filter(|l| l.starts_with("| `--")).collect();
    let plain = |text: &str| text.replace(['`', '\\'], "");
    for setting in hashwatt::config::settings::SETTINGS {
        assert!(!setting.help.is_empty() && setting.name.chars().all(|c| c.is_ascii_lowercase() || c == '-'));
        let name = format!("--{} {}", setting.name, setting.shape);
        let row = format!("| {} | {} | {} |", name.trim_end(), setting.default, plain(setting.help));
        assert!(rows.iter().any(|r| plain(r) == row), "docs/operations.md lacks the row\n{row}");
    }
}
