//! Where a report is kept: `report.json` from the first moment on, `.csv`, `.md` and `.html` at the end.
//!
//! Nothing that is there is overwritten: a second report is `report-2`. The JSON is replaced whole by
//! renaming, so a bench that is killed leaves a readable one that says it is partial.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use super::report::Report;

const EXTENSIONS: [&str; 4] = ["json", "csv", "md", "html"];
const MOST_REPORTS: usize = 100_000;

#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error("{file}: {problem}")]
    Io { file: String, problem: io::Error },
    #[error("{0}: holds too many reports")]
    Full(String),
    #[error("the report cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// A report's names in a folder, taken for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportFiles {
    folder: PathBuf,
    stem: String,
}

fn fail(path: &Path, problem: io::Error) -> FilesError {
    FilesError::Io { file: path.display().to_string(), problem }
}

impl ReportFiles {
    /// Makes the folder, and sees that it takes files.
    ///
    /// # Errors
    /// As [`ReportFiles::take`].
    pub fn check(folder: &Path) -> Result<(), FilesError> {
        fs::create_dir_all(folder).map_err(|e| fail(folder, e))?;
        let tried = folder.join(format!(".report.{}", std::process::id()));
        fs::write(&tried, "").and_then(|()| fs::remove_file(&tried)).map_err(|e| fail(&tried, e))
    }

    /// Takes the first free name and makes an empty `.json` of it; the folder too where it is missing.
    ///
    /// # Errors
    /// A folder that cannot be written to.
    pub fn take(folder: &Path) -> Result<ReportFiles, FilesError> {
        fs::create_dir_all(folder).map_err(|e| fail(folder, e))?;
        for number in 1..MOST_REPORTS {
            let stem = if number == 1 { "report".to_string() } else { format!("report-{number}") };
            let files = ReportFiles { folder: folder.into(), stem };
            if EXTENSIONS.iter().any(|e| files.path(e).exists()) {
                continue;
            }
            match OpenOptions::new().write(true).create_new(true).open(files.path("json")) {
                Ok(_) => return Ok(files),
                // Another bench was faster.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(fail(&files.path("json"), e)),
            }
        }
        Err(FilesError::Full(folder.display().to_string()))
    }

    pub fn path(&self, extension: &str) -> PathBuf {
        self.folder.join(format!("{}.{extension}", self.stem))
    }

    /// Replaces the JSON by the report as it stands.
    ///
    /// # Errors
    /// A disk that does not take it.
    pub fn save(&self, report: &Report) -> Result<(), FilesError> {
        self.write("json", &serde_json::to_string_pretty(report)?)
    }

    /// Writes one of the files whole, or not at all.
    ///
    /// # Errors
    /// A disk that does not take it.
    pub fn write(&self, extension: &str, text: &str) -> Result<(), FilesError> {
        let path = self.path(extension);
        let draft = self.folder.join(format!(".{}.{extension}.{}", self.stem, std::process::id()));
        fs::write(&draft, text).map_err(|e| fail(&path, e))?;
        fs::rename(&draft, &path).map_err(|e| fail(&path, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::report::Kind;
    use crate::measure::testing;

    #[test]
    fn nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("report.html"), "mine").unwrap();
        fs::write(dir.path().join("report-2.json"), "mine too").unwrap();
        let taken: Vec<ReportFiles> = (0..2).map(|_| ReportFiles::take(dir.path()).unwrap()).collect();
        assert_eq!(taken[0].path("json"), dir.path().join("report-3.json"));
        assert_eq!(taken[1].path("md"), dir.path().join("report-4.md"));
        taken[0].write("html", "x").unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("report.html")).unwrap(), "mine");
        let below = dir.path().join("a/b");
        ReportFiles::check(&below).unwrap();
        assert_eq!(fs::read_dir(&below).unwrap().count(), 0);
        let error = ReportFiles::check("/proc/none".as_ref()).unwrap_err().to_string();
        assert!(error.starts_with("/proc/none: "), "{error}");
        assert!(ReportFiles::take(&below).unwrap().path("json").starts_with(below));
    }

    #[test]
    fn a_report_comes_back_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let files = ReportFiles::take(dir.path()).unwrap();
        let mut report = testing::report();
        report.points.push(testing::point(Kind::Concurrency, 8, 1000.0, 90.0));
        files.save(&report).unwrap();
        // The last digit of a number may be lost on the way through text.
        let same = |a: &Report, b: &Report| {
            let values = [a, b].map(|r| serde_json::to_value(r).unwrap());
            testing::same(&values[0], &values[1])
        };
        let read = Report::read(&files.path("json")).unwrap();
        assert!(same(&read, &report));
        report.points[0].seconds += 1e-6;
        assert!(!same(&read, &report));
        // No draft is left behind.
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_report_is_named() {
        for (text, want) in [
            ("", "not a report"),
            ("{\"schema\": 2}", "schema 2"),
            ("{\"schema\": 1}", "missing field"),
            ("[]", "r.json"),
        ] {
            let error = Report::parse("r.json", text).unwrap_err().to_string();
            assert!(error.contains(want) && error.contains("r.json"), "{text}: {error}");
        }
        assert!(Report::read(Path::new("/no/such")).unwrap_err().to_string().contains("/no/such"));
    }
}
