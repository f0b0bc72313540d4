//! What criterion left under `target/criterion`, read back and distrusted.
//!
//! When a sample is zero, criterion prints an error, leaves the JSON of an earlier run in place and exits 0. So
//! every bench that ran is looked up here by its name: missing, older than the run, or zero is a [`Problem`]
//! that names it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::Deserialize;

/// The result of one bench: units per iteration, where the unit is that of its measurement.
#[derive(Debug, Clone, PartialEq)]
pub struct CriterionResult {
    pub id: String,
    /// Of the value of an iteration: median with its confidence interval.
    pub median: f64,
    pub low: f64,
    pub high: f64,
    /// Elements (tokens) an iteration.
    pub elements: f64,
    pub samples: usize,
}

impl CriterionResult {
    /// Elements per unit of the measurement, (median, low, high).
    pub fn throughput(&self) -> (f64, f64, f64) {
        (self.elements / self.median, self.elements / self.high, self.elements / self.low)
    }
}

/// Why a bench's result may not be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Problem {
    #[error("{id}: no result: criterion dropped it (a sample of zero?) or it did not end")]
    Missing { id: String },
    #[error("{id}: the result is {seconds} s older than this run: criterion kept an old one")]
    Stale { id: String, seconds: u64 },
    #[error("{id}: a sample of {value} in {iterations} iterations is no measurement")]
    Zero { id: String, value: f64, iterations: f64 },
    #[error("{id}: {file} cannot be read: {problem}")]
    Unreadable { id: String, file: String, problem: String },
}

#[derive(Deserialize)]
struct Benchmark {
    full_id: String,
    throughput: Option<Throughput>,
}

#[derive(Deserialize)]
enum Throughput {
    Elements(u64),
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Estimates {
    median: Estimate,
}

#[derive(Deserialize)]
struct Estimate {
    point_estimate: f64,
    confidence_interval: Interval,
}

#[derive(Deserialize)]
struct Interval {
    lower_bound: f64,
    upper_bound: f64,
}

#[derive(Deserialize)]
struct Samples {
    iters: Vec<f64>,
    times: Vec<f64>,
}

/// Reads the results of the benches `ids` below `root`, all written since `started` (Unix seconds).
///
/// # Errors
/// Every problem found, each naming its bench.
pub fn read(root: &Path, ids: &[String], started: u64) -> Result<Vec<CriterionResult>, Vec<Problem>> {
    let mut folders = BTreeMap::new();
    find(root, &mut folders);
    let (mut results, mut problems) = (Vec::new(), Vec::new());
    for id in ids {
        let result = match folders.get(id) {
            None => Err(Problem::Missing { id: id.clone() }),
            Some(folder) => read_one(id, folder, started),
        };
        match result {
            Ok(result) => results.push(result),
            Err(problem) => problems.push(problem),
        }
    }
    if problems.is_empty() { Ok(results) } else { Err(problems) }
}

/// Every `new` folder below, by the full id its `benchmark.json` says (folder names are shortened ids).
fn find(folder: &Path, found: &mut BTreeMap<String, PathBuf>) {
    // A folder that cannot be listed holds no results; what is missed is then missing by name.
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|e| e.path()).filter(|p| p.is_dir()) {
        if path.file_name().is_some_and(|name| name == "new") {
            if let Ok(benchmark) = parse::<Benchmark>("", &path.join("benchmark.json")) {
                found.insert(benchmark.full_id, path);
            }
        } else {
            find(&path, found);
        }
    }
}

fn parse<T: for<'de> Deserialize<'de>>(id: &str, file: &Path) -> Result<T, Problem> {
    let problem =
        |problem: String| Problem::Unreadable { id: id.into(), file: file.display().to_string(), problem };
    let bytes = std::fs::read(file).map_err(|e| problem(e.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|e| problem(e.to_string()))
}

fn read_one(id: &str, folder: &Path, started: u64) -> Result<CriterionResult, Problem> {
    for name in ["estimates.json", "sample.json"] {
        let written = std::fs::metadata(folder.join(name)).and_then(|m| m.modified()).ok();
        let written = written.and_then(|t| t.duration_since(UNIX_EPOCH).ok()).map(|d| d.as_secs());
        match written {
            None => return Err(Problem::Missing { id: id.into() }),
            Some(at) if at < started => {
                return Err(Problem::Stale { id: id.into(), seconds: started - at });
            }
            Some(_) => {}
        }
    }
    let benchmark: Benchmark = parse(id, &folder.join("benchmark.json"))?;
    let samples: Samples = parse(id, &folder.join("sample.json"))?;
    let estimates: Estimates = parse(id, &folder.join("estimates.json"))?;
    for (value, iterations) in samples.times.iter().zip(&samples.iters) {
        if !(*value > 0.0 && value.is_finite() && *iterations > 0.0) {
            return Err(Problem::Zero { id: id.into(), value: *value, iterations: *iterations });
        }
    }
    let Estimate { point_estimate: median, confidence_interval } = estimates.median;
    let elements = match benchmark.throughput {
        Some(Throughput::Elements(n)) => n as f64,
        _ => 0.0,
    };
    if samples.times.is_empty() || median <= 0.0 || elements <= 0.0 {
        return Err(Problem::Zero { id: id.into(), value: median, iterations: 0.0 });
    }
    Ok(CriterionResult {
        id: id.into(),
        median,
        low: confidence_interval.lower_bound,
        high: confidence_interval.upper_bound,
        elements,
        samples: samples.times.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What criterion 0.8.2 writes, with the members that are read here and some that are not.
    fn write(root: &Path, id: &str, folder: &str, times: &[f64]) {
        let new = root.join(folder).join("new");
        std::fs::create_dir_all(&new).unwrap();
        let benchmark = serde_json::json!({"group_id": "g", "function_id": null, "value_str": "8",
            "throughput": {"Elements": 512}, "full_id": id, "directory_name": folder, "title": id});
        let iters = vec![2.0; times.len()];
        let sample = serde_json::json!({"sampling_mode": "Flat", "iters": iters, "times": times});
        let estimate = |x: f64| {
            serde_json::json!({"confidence_interval": {"confidence_level": 0.95, "lower_bound": x * 0.9,
                "upper_bound": x * 1.1}, "point_estimate": x, "standard_error": 0.1})
        };
        let estimates = serde_json::json!({"mean": estimate(4.0), "median": estimate(4.0), "slope": null});
        for (name, value) in [("benchmark", benchmark), ("sample", sample), ("estimates", estimates)] {
            std::fs::write(new.join(format!("{name}.json")), value.to_string()).unwrap();
        }
    }

    fn read_now(root: &Path, id: &str, started: u64) -> Result<Vec<CriterionResult>, Vec<Problem>> {
        read(root, &[id.to_string()], started)
    }

    #[test]
    fn a_sound_result_is_tokens_per_joule_with_its_interval() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "joules/decode/8", "joules_decode/8", &[8.0, 8.2]);
        let results = read_now(root.path(), "joules/decode/8", 1).unwrap();
        let (median, low, high) = results[0].throughput();
        assert_eq!((median, results[0].samples), (128.0, 2));
        assert!((low - 512.0 / 4.4).abs() < 1e-9 && (high - 512.0 / 3.6).abs() < 1e-9);
    }

    #[test]
    fn missing_stale_zero_and_broken_results_fail_by_name() {
        let root = tempfile::tempdir().unwrap();
        let id = "joules/decode/8";
        assert_eq!(read_now(root.path(), id, 1), Err(vec![Problem::Missing { id: id.into() }]));
        write(root.path(), id, "joules_decode/8", &[8.0]);
        let later = crate::clock::unix_seconds() + 100;
        let stale = read_now(root.path(), id, later).unwrap_err();
        assert!(matches!(&stale[..], [Problem::Stale { id: named, seconds: 99..=101 }] if named == id));
        for zero in [0.0, -1.0] {
            write(root.path(), id, "joules_decode/8", &[8.0, zero]);
            let found = read_now(root.path(), id, 1).unwrap_err();
            assert_eq!(found, [Problem::Zero { id: id.into(), value: zero, iterations: 2.0 }]);
        }
        let sample = root.path().join("joules_decode/8/new/sample.json");
        std::fs::write(&sample, "{\"iters\": [1").unwrap();
        assert!(read_now(root.path(), id, 1).unwrap_err()[0].to_string().contains("sample.json"));
        std::fs::remove_file(sample).unwrap();
        assert_eq!(read_now(root.path(), id, 1), Err(vec![Problem::Missing { id: id.into() }]));
    }

    #[test]
    fn every_problem_is_told_not_only_the_first() {
        let root = tempfile::tempdir().unwrap();
        let ids = ["a/1", "b/1"].map(String::from);
        assert_eq!(read(root.path(), &ids, 1).unwrap_err().len(), 2);
    }
}
