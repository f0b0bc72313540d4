//! NVIDIA boards through NVML, loaded at run time: a machine without the driver builds and runs.
//!
//! The counter of total energy where there is one (Volta and later; it moves about every 100 ms), else the
//! instantaneous power of field 186. `nvmlDeviceGetPowerUsage` is the last resort: from Ampere on it is an
//! average over a second. Boards are numbered as NVML does, in the order of their PCI addresses.

use std::path::Path;
use std::time::Duration;

use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::enums::device::SampleValue;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper::sys_exports::field_id::NVML_FI_DEV_POWER_INSTANT;
use nvml_wrapper::{Device, EventSet, Nvml};
use serde::{Deserialize, Serialize};

use super::{
    BoardState, Boundary, CRITICAL_XIDS, MeterInfo, Method, PowerError, PowerMeter, Reading, Throttle,
};
use crate::quantity::{Joules, Watts};

/// ±5 %, as NVIDIA states for its sensors.
const GAIN_ERROR: f64 = 0.05;
const COUNTER_TICK: Duration = Duration::from_millis(100);
const AVERAGE_OVER: Duration = Duration::from_secs(1);

/// The library, for the rest of the process: handles borrow from it, and a unit opens it once.
pub(super) fn library(path: Option<&Path>) -> Result<&'static Nvml, PowerError> {
    let nvml = match path {
        Some(path) => Nvml::builder().lib_path(path.as_os_str()).init(),
        None => Nvml::init(),
    };
    nvml.map(|nvml| &*Box::leak(Box::new(nvml))).map_err(|e| PowerError::Absent {
        meter: "nvml".into(),
        problem: format!("{e} (without NVIDIA's driver there is no NVML)"),
    })
}

/// The kind of error a call's failure is; names the call.
pub(super) fn failed(meter: &str, call: &str, error: &NvmlError) -> PowerError {
    let (meter, problem) = (meter.to_string(), format!("{call}: {error}"));
    match error {
        NvmlError::NoPermission => PowerError::Permission { meter, problem },
        NvmlError::GpuLost | NvmlError::NotFound | NvmlError::ResetRequired => {
            PowerError::Lost { meter, problem }
        }
        _ => PowerError::Unreadable { meter, problem },
    }
}

/// How a board tells its energy.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Source {
    TotalEnergy,
    InstantPower,
    AveragePower,
}

impl Source {
    /// The best that the board has; only what it does not support is passed over.
    fn of(device: &Device<'_>, meter: &str) -> Result<Source, PowerError> {
        let unsupported =
            |e: &NvmlError| matches!(e, NvmlError::NotSupported | NvmlError::FailedToLoadSymbol(_));
        match device.total_energy_consumption() {
            Ok(_) => return Ok(Source::TotalEnergy),
            Err(e) if unsupported(&e) => {}
            Err(e) => return Err(failed(meter, "nvmlDeviceGetTotalEnergyConsumption", &e)),
        }
        match instant_power(device) {
            Ok(_) => return Ok(Source::InstantPower),
            Err(e) if unsupported(&e) => {}
            Err(e) => return Err(failed(meter, "nvmlDeviceGetFieldValues(186)", &e)),
        }
        let average = device.power_usage().map(|_| Source::AveragePower);
        average.map_err(|e| failed(meter, "nvmlDeviceGetPowerUsage", &e))
    }
}

struct Board {
    info: MeterInfo,
    device: Device<'static>,
    source: Source,
    events: Option<EventSet<'static>>,
    xid: Option<u64>,
}

/// One meter for each board. `engines`: the UUIDs of the boards that this process computes on, in the order of its
/// engines, which need not be NVML's (`CUDA_VISIBLE_DEVICES`), an empty one for an engine of the CPU; boards of others
/// are left out. No UUIDs where they are not known: then boards are taken as they are numbered.
///
/// # Errors
/// `Absent` without a driver or without boards, and what a board answers that cannot be read.
pub fn open(path: Option<&Path>, engines: &[String]) -> Result<Vec<Box<dyn PowerMeter>>, PowerError> {
    let nvml = library(path)?;
    let count = nvml.device_count().map_err(|e| failed("nvml", "nvmlDeviceGetCount", &e))?;
    if count == 0 {
        return Err(PowerError::Absent { meter: "nvml".into(), problem: "the driver sees no board".into() });
    }
    let mut meters: Vec<Box<dyn PowerMeter>> = Vec::new();
    let mut first_error = None;
    for index in 0..count {
        match Board::open(nvml, index, engines) {
            Ok(Some(board)) => meters.push(Box::new(board)),
            Ok(None) => {
                tracing::info!(index, "a board that no engine of this process runs on is not metered")
            }
            // One dead board must not leave the others unmetered.
            Err(error) => {
                tracing::warn!(%error, "a board is not metered");
                first_error.get_or_insert(error);
            }
        }
    }
    match first_error {
        Some(error) if meters.is_empty() => Err(error),
        None if meters.is_empty() => {
            let problem = format!("none of the {count} boards is one of {}", engines.join(", "));
            Err(PowerError::Absent { meter: "nvml".into(), problem })
        }
        _ => Ok(meters),
    }
}

impl Board {
    /// `None` for a board of others.
    fn open(nvml: &'static Nvml, index: u32, engines: &[String]) -> Result<Option<Board>, PowerError> {
        let meter = format!("nvml:{index}");
        let device =
            nvml.device_by_index(index).map_err(|e| failed(&meter, "nvmlDeviceGetHandleByIndex", &e))?;
        let uuid = device.uuid().unwrap_or_default();
        let engine = match engines {
            [] => usize::try_from(index).ok(),
            known => match known.iter().position(|engine| !uuid.is_empty() && *engine == uuid) {
                None => return Ok(None),
                found => found,
            },
        };
        let model = device.name().unwrap_or_else(|_| "board without a name".into());
        // Slices of a board have no energy of their own: this is the whole board's.
        let mig = device.mig_mode().is_ok_and(|mode| mode.current == 1);
        let source = Source::of(&device, &meter)?;
        let (method, period, lag) = match source {
            Source::TotalEnergy => (Method::Counter, COUNTER_TICK, COUNTER_TICK),
            Source::InstantPower => (Method::Integrated, COUNTER_TICK, COUNTER_TICK),
            // The mean over the last second is that of half a second ago.
            Source::AveragePower => (Method::Integrated, AVERAGE_OVER, AVERAGE_OVER / 2),
        };
        let note = match (mig, source) {
            (true, _) => ", MIG: the energy of all its slices",
            (_, Source::AveragePower) => ", averaged over a second",
            _ => "",
        };
        let events = nvml
            .create_event_set()
            .ok()
            .and_then(|set| device.register_events(EventTypes::CRITICAL_XID_ERROR, set).ok());
        let limits = device.power_management_limit_constraints().map(|l| l.max_limit);
        let full =
            limits.or_else(|_| device.enforced_power_limit()).ok().map(|mw| Watts(f64::from(mw) * 1e-3));
        let info = MeterInfo {
            name: format!("{meter} {model}{note}"),
            device: engine,
            boundary: Boundary::GpuBoard,
            method,
            period,
            lag,
            full,
            wraps_at: None,
            gain_error: GAIN_ERROR,
        };
        Ok(Some(Board { info, device, source, events, xid: None }))
    }

    /// Notes fault codes that have come since it was last asked.
    fn take_events(&mut self) {
        while let Some(Ok(event)) = self.events.as_ref().map(|set| set.wait(0)) {
            let xid = match event.event_data {
                Some(XidError::Value(code)) => code,
                Some(XidError::Unknown) | None => 0,
            };
            tracing::error!(board = %self.info.name, xid, "the board reports a fault");
            // What comes after a critical one must not hide it.
            if !self.xid.is_some_and(|known| CRITICAL_XIDS.contains(&known)) {
                self.xid = Some(xid);
            }
        }
    }
}

/// Field 186, milliwatts.
fn instant_power(device: &Device<'_>) -> Result<f64, NvmlError> {
    let values = device.field_values_for(&[FieldId(NVML_FI_DEV_POWER_INSTANT)])?;
    let sample = values.into_iter().next().ok_or(NvmlError::NoData)??;
    Ok(match sample.value? {
        SampleValue::U32(n) => f64::from(n),
        SampleValue::U64(n) => n as f64,
        SampleValue::I64(n) => n as f64,
        SampleValue::F64(n) => n,
    })
}

impl PowerMeter for Board {
    fn info(&self) -> &MeterInfo {
        &self.info
    }

    fn read(&mut self) -> Result<Reading, PowerError> {
        let (call, read) = match self.source {
            Source::TotalEnergy => (
                "nvmlDeviceGetTotalEnergyConsumption",
                self.device.total_energy_consumption().map(|mj| Reading::Counter(Joules(mj as f64 * 1e-3))),
            ),
            Source::InstantPower => (
                "nvmlDeviceGetFieldValues(186)",
                instant_power(&self.device).map(|mw| Reading::Power(Watts(mw * 1e-3))),
            ),
            Source::AveragePower => (
                "nvmlDeviceGetPowerUsage",
                self.device.power_usage().map(|mw| Reading::Power(Watts(f64::from(mw) * 1e-3))),
            ),
        };
        read.map_err(|e| failed(&self.info.name, call, &e))
    }

    fn board(&mut self) -> Option<BoardState> {
        self.take_events();
        let device = &self.device;
        let own = std::process::id();
        Some(BoardState {
            temperature_celsius: device.temperature(TemperatureSensor::Gpu).ok().map(f64::from),
            clock_megahertz: device.clock_info(Clock::SM).ok().map(f64::from),
            memory_clock_megahertz: device.clock_info(Clock::Memory).ok().map(f64::from),
            power_limit_watts: device.enforced_power_limit().ok().map(|mw| f64::from(mw) * 1e-3),
            instantaneous_watts: match self.source {
                Source::TotalEnergy => instant_power(device).ok().map(|mw| mw * 1e-3),
                _ => None,
            },
            throttles: device.current_throttle_reasons().map(throttles).unwrap_or_default(),
            other_processes: device
                .running_compute_processes()
                .ok()
                .map(|all| others(&all.iter().map(|p| p.pid).collect::<Vec<_>>(), own, own_pid_namespace())),
            xid: self.xid,
        })
    }
}

/// Processes on the board beside this one. In a container the driver may tell the host's numbers: then one
/// of them is ours, whichever it is.
pub(super) fn others(pids: &[u32], own: u32, own_namespace: bool) -> usize {
    let others = pids.iter().filter(|pid| **pid != own).count();
    let renumbered = own_namespace && others == pids.len();
    others.saturating_sub(usize::from(renumbered))
}

/// Whether processes are numbered apart from the host's. The host's namespace has a fixed inode.
pub(super) fn own_pid_namespace() -> bool {
    const HOST: &str = "pid:[4026531836]";
    std::fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link.as_os_str() != HOST)
}

/// NVML's reasons in our words. Idleness and clocks that someone set are no throttling.
pub(super) fn throttles(reasons: ThrottleReasons) -> Vec<Throttle> {
    let any = |set: ThrottleReasons| reasons.intersects(set);
    let thermal = ThrottleReasons::SW_THERMAL_SLOWDOWN | ThrottleReasons::HW_THERMAL_SLOWDOWN;
    let brake = ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN;
    let mut found = Vec::new();
    for (throttle, met) in [
        (Throttle::PowerCap, any(ThrottleReasons::SW_POWER_CAP)),
        (Throttle::Thermal, any(thermal)),
        (Throttle::PowerBrake, any(brake)),
        // The hardware's general flag, where none of its own reasons is given.
        (
            Throttle::Other,
            any(ThrottleReasons::SYNC_BOOST) || any(ThrottleReasons::HW_SLOWDOWN) && !any(thermal | brake),
        ),
    ] {
        if met {
            found.push(throttle);
        }
    }
    found
}

/// A board as a report names it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BoardIdentity {
    pub index: u32,
    pub name: String,
    pub uuid: String,
    pub driver: String,
    pub cuda_driver: Option<String>,
    pub memory_bytes: Option<u64>,
    pub power_limit_watts: Option<f64>,
    pub default_power_limit_watts: Option<f64>,
    pub least_power_limit_watts: Option<f64>,
    pub greatest_power_limit_watts: Option<f64>,
    pub mig: bool,
}

/// All boards.
///
/// # Errors
/// As [`open`].
pub fn boards(path: Option<&Path>) -> Result<Vec<BoardIdentity>, PowerError> {
    let nvml = library(path)?;
    let count = nvml.device_count().map_err(|e| failed("nvml", "nvmlDeviceGetCount", &e))?;
    let driver = nvml.sys_driver_version().unwrap_or_default();
    let cuda = nvml.sys_cuda_driver_version().ok();
    let cuda_driver = cuda.map(|v| format!("{}.{}", v / 1000, v % 1000 / 10));
    let watts = |mw: u32| f64::from(mw) * 1e-3;
    (0..count)
        .map(|index| {
            let device = nvml
                .device_by_index(index)
                .map_err(|e| failed(&format!("nvml:{index}"), "nvmlDeviceGetHandleByIndex", &e))?;
            let limits = device.power_management_limit_constraints().ok();
            Ok(BoardIdentity {
                index,
                name: device.name().unwrap_or_default(),
                uuid: device.uuid().unwrap_or_default(),
                driver: driver.clone(),
                cuda_driver: cuda_driver.clone(),
                memory_bytes: device.memory_info().ok().map(|m| m.total),
                power_limit_watts: device.enforced_power_limit().ok().map(watts),
                default_power_limit_watts: device.power_management_limit_default().ok().map(watts),
                least_power_limit_watts: limits.as_ref().map(|l| watts(l.min_limit)),
                greatest_power_limit_watts: limits.as_ref().map(|l| watts(l.max_limit)),
                mig: device.mig_mode().is_ok_and(|mode| mode.current == 1),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::others;

    #[test]
    fn this_process_is_no_other_not_even_under_the_hosts_number() {
        assert_eq!(others(&[], 7, false), 0);
        assert_eq!(others(&[7, 9], 7, false), 1);
        assert_eq!(others(&[9], 7, false), 1);
        assert_eq!(others(&[7, 9], 7, true), 1);
        assert_eq!(others(&[1234], 7, true), 0);
        assert_eq!(others(&[1234, 9], 7, true), 1);
    }
}
