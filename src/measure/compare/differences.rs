//! What two reports differ in besides their figures: what forbids a ratio, and what is only worth a word.

use super::Difference;
use crate::measure::report::{Gpu, Hardware, Report, Setting, Target};

const GIB: f64 = (1u64 << 30) as f64;

/// The difference, if there is one.
fn differ(field: &str, first: impl ToString, second: impl ToString) -> Option<Difference> {
    let (first, second) = (first.to_string(), second.to_string());
    (first != second).then(|| Difference { field: field.into(), first, second })
}

/// Which parts of unlike machines are unlike; empty for like ones.
pub(super) fn hardware(a: &Hardware, b: &Hardware) -> Vec<Difference> {
    if a.fingerprint == b.fingerprint && !a.fingerprint.is_empty() {
        return Vec::new();
    }
    let gpus = |h: &Hardware| h.gpus.iter().map(|g| g.name.as_str()).collect::<Vec<_>>().join(" + ");
    // To the gibibyte, as in the fingerprint: the last bytes depend on the kernel.
    let gib = |bytes: u64| format!("{:.0} GiB", bytes as f64 / GIB);
    let memory = |h: &Hardware| gib(h.gpus.iter().filter_map(|g| g.memory_bytes).sum());
    let named: Vec<Difference> = [
        differ("processor", &a.cpu, &b.cpu),
        differ("cores", a.cores, b.cores),
        differ("memory", gib(a.memory_bytes), gib(b.memory_bytes)),
        differ("GPUs", gpus(a), gpus(b)),
        differ("GPU memory", memory(a), memory(b)),
    ]
    .into_iter()
    .flatten()
    .collect();
    if named.is_empty() {
        return differ("fingerprint", &a.fingerprint, &b.fingerprint).into_iter().collect();
    }
    named
}

/// Reports of like machines may still be of two: boards have numbers of their own.
pub(super) fn boards(hardware: &Hardware) -> Vec<Option<&str>> {
    hardware.gpus.iter().map(|g| g.uuid.as_deref()).collect()
}

pub(super) fn scope(first: &Report, second: &Report) -> Vec<Difference> {
    let (Some(a), Some(b)) = (first.primary, second.primary) else { return Vec::new() };
    let both = [differ("boundary", a.boundary, b.boundary), differ("method", a.method, b.method)];
    both.into_iter().flatten().collect()
}

/// Worth a word, never a reason to refuse: most comparisons are about one of these.
pub(super) fn others(first: &Report, second: &Report) -> Vec<Difference> {
    let gpus = |r: &Report, of: fn(&Gpu) -> Option<String>| {
        r.hardware.gpus.iter().filter_map(of).collect::<Vec<_>>().join(" + ")
    };
    let drivers = |r: &Report| gpus(r, |g| g.driver.clone());
    let limits = |r: &Report| gpus(r, |g| Some(format!("{:.0} W", g.power_limit_watts?)));
    let sha = |r: &Report| r.model.sha256.clone().unwrap_or_else(|| "unknown".into());
    let fixed = [
        differ("model", &first.model.id, &second.model.id),
        differ("model's hash", sha(first), sha(second)),
        differ("measured", target(&first.target).0, target(&second.target).0),
        differ("version", &first.version, &second.version),
        differ("commit", &first.commit, &second.commit),
        differ("driver", drivers(first), drivers(second)),
        differ("power limit", limits(first), limits(second)),
        differ("instructions", &first.hardware.instructions, &second.hardware.instructions),
        differ("kernel", &first.hardware.kernel, &second.hardware.kernel),
    ];
    let mut all: Vec<Difference> = fixed.into_iter().flatten().collect();
    all.extend(settings(target(&first.target).1, target(&second.target).1));
    all
}

fn target(target: &Target) -> (String, &[Setting]) {
    match target {
        Target::InProcess { settings } => ("this program's engine".into(), settings),
        Target::CandleTransformers { settings } => ("candle-transformers".into(), settings),
        Target::Url { url, server } => {
            (format!("{url} ({})", server.as_deref().unwrap_or("server unknown")), &[])
        }
    }
}

fn settings(first: &[Setting], second: &[Setting]) -> Vec<Difference> {
    let value = |all: &[Setting], name: &str| {
        all.iter().find(|s| s.name == name).map_or("absent".to_owned(), |s| s.value.clone())
    };
    let mut names: Vec<&str> = first.iter().chain(second).map(|s| s.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    names.into_iter().filter_map(|n| differ(n, value(first, n), value(second, n))).collect()
}
