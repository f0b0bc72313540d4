//! L1. Where watts and joules come from. Every figure carries its method and its boundary.
//!
//! A meter is one file that only reads ([`PowerMeter`]); `monitor` polls all meters of a process, integrates,
//! and handles wrap, resets and losses. Whatever rests on assumed watts is headed EXAMPLE.

pub mod assumed;
pub mod boards;
pub mod caps;
pub mod declared;
pub mod health;
pub mod http;
pub mod monitor;
pub mod nvml;
pub mod rapl;
pub mod replay;
pub mod spec;
#[doc(hidden)]
pub mod testing;

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::quantity::{Joules, Watts};

/// How a figure was come by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Differences of a counter of energy in the hardware.
    Counter,
    /// Readings of power, integrated over time here.
    Integrated,
    /// Read back from a recording; not of this run.
    Replayed,
    /// Watts the operator stated, idle and full, interpolated by utilisation.
    Declared,
    /// Read from a table of nameplates; not measured on this machine.
    Assumed,
}

impl Method {
    /// True for what an instrument said during this run.
    pub fn is_measured(self) -> bool {
        matches!(self, Method::Counter | Method::Integrated)
    }
}

/// What a figure includes. Unlike ones never add up silently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Boundary {
    /// The accelerator's board: chip, memory, regulators.
    GpuBoard,
    /// The processor packages, without memory, disks, fans and losses.
    CpuPackage,
    /// The memory modules of the host.
    Dram,
    /// The whole machine at its plug.
    Node,
    /// The site's own meter: machines, cooling and losses (node × PUE).
    Site,
}

/// Power with what must be known to read it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Power {
    pub watts: Watts,
    pub method: Method,
    pub boundary: Boundary,
}

/// What a meter says at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reading {
    /// Energy since some moment of the past.
    Counter(Joules),
    /// Power now.
    Power(Watts),
}

/// What a meter is; does not change while it runs.
#[derive(Debug, Clone, PartialEq)]
pub struct MeterInfo {
    /// For people and labels: `nvml:0 NVIDIA H200`, `rapl:package-0`.
    pub name: String,
    /// The engine whose device it measures; `None` where all engines share what it measures.
    pub device: Option<usize>,
    pub boundary: Boundary,
    pub method: Method,
    /// How often the instrument itself has something new to say. A window shorter than
    /// [`SHORT_WINDOW_PERIODS`] of these is flagged.
    pub period: Duration,
    /// Mean time from a change of the power to its appearance in the readings.
    pub lag: Duration,
    /// What it shows at most, over a second or longer, where something states it: a board's greatest limit, the
    /// operator, a nameplate. Steps are billed no more than this.
    pub full: Option<Watts>,
    /// Where a counter begins anew.
    pub wraps_at: Option<Joules>,
    /// Uncertainty of the instrument's gain, as a share (0.05 is ±5 %). Cancels in ratios on one meter.
    pub gain_error: f64,
}

/// A window should have this many periods of its meter at least.
pub const SHORT_WINDOW_PERIODS: u32 = 20;

/// Why a board runs slower than it could.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Throttle {
    PowerCap,
    Thermal,
    PowerBrake,
    Other,
}

impl Throttle {
    pub const ALL: [Throttle; 4] =
        [Throttle::PowerCap, Throttle::Thermal, Throttle::PowerBrake, Throttle::Other];
    pub fn as_str(self) -> &'static str {
        match self {
            Throttle::PowerCap => "power_cap",
            Throttle::Thermal => "thermal",
            Throttle::PowerBrake => "power_brake",
            Throttle::Other => "other",
        }
    }
}

/// Fault codes after which a board is not to be used, by NVIDIA's "Xid Errors" (deployment guide, 2025): memory
/// errors that are not contained, failed row remapping, a board off the bus, a GSP that does not answer. Not those
/// that an application causes (13, 31, 43, 45): if they matter, a step fails. Nor those that say that an error was
/// contained or a row remapped as it should be (63, 94).
pub const CRITICAL_XIDS: [u64; 10] = [46, 48, 62, 64, 74, 79, 95, 119, 120, 140];

/// What else a board says of itself; what it does not say is absent, never guessed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct BoardState {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature_celsius: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock_megahertz: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_clock_megahertz: Option<f64>,
    /// Enforced now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power_limit_watts: Option<f64>,
    /// Power now, by another path than the readings: a check on them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instantaneous_watts: Option<f64>,
    /// Reasons in force now.
    #[serde(default)]
    pub throttles: Vec<Throttle>,
    /// Compute processes of others on the same board: their watts are in the readings too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub other_processes: Option<usize>,
    /// The last Xid (fault code of NVIDIA's driver), if any came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xid: Option<u64>,
}

/// An instrument. Implementations only read; they integrate and remember nothing they need not.
pub trait PowerMeter: Send {
    fn info(&self) -> &MeterInfo;

    /// # Errors
    /// Why there is no reading; the meter may recover unless it is [`PowerError::Lost`].
    fn read(&mut self) -> Result<Reading, PowerError>;

    /// Asked about once a second; `None` for instruments that know nothing but energy.
    fn board(&mut self) -> Option<BoardState> {
        None
    }
}

/// Why there is no meter, or no reading.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PowerError {
    /// There is no such instrument here.
    #[error("{meter}: {problem}")]
    Absent { meter: String, problem: String },
    /// It is there and may not be read; names the file or call and the permission.
    #[error("{meter}: not permitted: {problem}")]
    Permission { meter: String, problem: String },
    /// A single reading failed.
    #[error("{meter}: {problem}")]
    Unreadable { meter: String, problem: String },
    /// The device is gone.
    #[error("{meter}: lost: {problem}")]
    Lost { meter: String, problem: String },
    /// `--meter` says something else than a meter.
    #[error("{value:?} is not a meter: {problem}")]
    Spec { value: String, problem: String },
}

impl PowerError {
    /// What is wrong, without the meter's name.
    pub fn problem(&self) -> String {
        match self {
            PowerError::Absent { problem, .. }
            | PowerError::Permission { problem, .. }
            | PowerError::Unreadable { problem, .. }
            | PowerError::Lost { problem, .. }
            | PowerError::Spec { problem, .. } => problem.clone(),
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Method::Counter => "counter",
            Method::Integrated => "integrated",
            Method::Replayed => "replayed",
            Method::Declared => "declared",
            Method::Assumed => "assumed",
        })
    }
}

impl Boundary {
    /// The word for JSON, labels and CSV.
    pub fn as_str(self) -> &'static str {
        match self {
            Boundary::GpuBoard => "gpu_board",
            Boundary::CpuPackage => "cpu_package",
            Boundary::Dram => "dram",
            Boundary::Node => "node",
            Boundary::Site => "site",
        }
    }
}

impl fmt::Display for Boundary {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Boundary::GpuBoard => "GPU board",
            Boundary::CpuPackage => "CPU package",
            Boundary::Dram => "DRAM",
            Boundary::Node => "node",
            Boundary::Site => "site",
        })
    }
}
