//! A running bench on the terminal and on the disk: a bar with the time left, and the report after each point.
//!
//! Without a terminal, one line a step on stderr instead of the bar.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::measure::files::{FilesError, ReportFiles};
use crate::measure::report::Report;
use crate::measure::sweep::{Listener, Progress};

const TEMPLATE: &str = "{spinner} {msg:28} [{bar:30}] {percent:>3} %, {prefix} left";

pub struct Screen {
    files: ReportFiles,
    bar: Option<ProgressBar>,
    label: String,
    failed: Option<FilesError>,
}

impl Screen {
    pub fn new(files: ReportFiles) -> Screen {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(1000);
            if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Screen { files, bar, label: String::new(), failed: None }
    }

    /// Takes the bar away.
    ///
    /// # Errors
    /// Why the report could not be kept along the way.
    pub fn end(self) -> Result<ReportFiles, FilesError> {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
        self.failed.map_or(Ok(self.files), Err)
    }
}

impl Listener for Screen {
    fn progress(&mut self, progress: Progress) {
        let Progress { label, done_seconds, total_seconds } = progress;
        let left = (total_seconds - done_seconds).max(0.0);
        if let Some(bar) = &self.bar {
            bar.set_position((done_seconds / total_seconds.max(1e-9) * 1000.0) as u64);
            bar.set_prefix(format!("{:.0} min {:02.0} s", (left / 60.0).floor(), (left % 60.0).floor()));
            bar.set_message(label);
        } else if label != self.label {
            eprintln!("{label}; {left:.0} s left");
            self.label = label;
        }
    }

    fn report(&mut self, report: &Report) {
        if let Err(error) = self.files.save(report) {
            tracing::warn!(%error, "the report could not be kept");
            self.failed = Some(error);
        } else {
            self.failed = None;
        }
    }
}
