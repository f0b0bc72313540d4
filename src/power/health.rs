//! What a board says of its own health, through NVML: read once, for those who ask before they trust it.
//!
//! Each reading is `None` where the board or the driver does not tell it. Knows no verdict.

use std::path::Path;

use nvml_wrapper::Device;
use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError};

use super::nvml::{failed, library, others, own_pid_namespace, throttles};
use super::{PowerError, Throttle};

/// Generation and lanes of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    pub generation: u32,
    pub lanes: u32,
}

#[derive(Debug, Clone, PartialEq)]
pub struct BoardHealth {
    pub index: u32,
    pub name: String,
    pub uuid: String,
    /// As "580.95.05".
    pub driver: String,
    pub compute_capability: Option<(i32, i32)>,
    /// Bytes that are free, and all.
    pub memory: Option<(u64, u64)>,
    /// Processes that compute on it, beside this one.
    pub other_processes: Option<usize>,
    /// Watts: enforced now, and by default.
    pub power_limit: Option<(f64, f64)>,
    pub ecc: Option<bool>,
    /// Memory errors that could not be corrected, since the driver was loaded and ever.
    pub uncorrected: Option<(u64, u64)>,
    /// Pages wait for a reset to be retired.
    pub retirement_pending: Option<bool>,
    pub throttles: Option<Vec<Throttle>>,
    /// The link to the host: now, and at most.
    pub link: Option<(Link, Link)>,
    pub persistence: Option<bool>,
    pub mig: bool,
}

/// All boards, each as far as it tells. `path` names a library instead of the system's.
///
/// # Errors
/// Without a driver. A board that cannot be opened is an error in its place.
pub fn read(path: Option<&Path>) -> Result<Vec<Result<BoardHealth, PowerError>>, PowerError> {
    let nvml = library(path)?;
    let count = nvml.device_count().map_err(|e| failed("nvml", "nvmlDeviceGetCount", &e))?;
    let driver = nvml.sys_driver_version().unwrap_or_default();
    let open = |index| {
        let device = nvml.device_by_index(index);
        let device =
            device.map_err(|e| failed(&format!("nvml:{index}"), "nvmlDeviceGetHandleByIndex", &e))?;
        Ok(of(index, &device, &driver))
    };
    Ok((0..count).map(open).collect())
}

fn of(index: u32, device: &Device<'_>, driver: &str) -> BoardHealth {
    let watts = |mw: u32| f64::from(mw) * 1e-3;
    let both = |a: Option<u32>, b: Option<u32>| Some(Link { generation: a?, lanes: b? });
    let now = both(device.current_pcie_link_gen().ok(), device.current_pcie_link_width().ok());
    let most = both(device.max_pcie_link_gen().ok(), device.max_pcie_link_width().ok());
    let uncorrected = |counter| device.total_ecc_errors(MemoryError::Uncorrected, counter).ok();
    let pids = device.running_compute_processes().ok();
    let pids = pids.map(|all| all.iter().map(|p| p.pid).collect::<Vec<_>>());
    let limit = device.enforced_power_limit().ok().map(watts);
    BoardHealth {
        index,
        name: device.name().unwrap_or_else(|_| "board without a name".into()),
        uuid: device.uuid().unwrap_or_default(),
        driver: driver.to_string(),
        compute_capability: device.cuda_compute_capability().ok().map(|c| (c.major, c.minor)),
        memory: device.memory_info().ok().map(|m| (m.free, m.total)),
        other_processes: pids.map(|pids| others(&pids, std::process::id(), own_pid_namespace())),
        power_limit: limit.zip(device.power_management_limit_default().ok().map(watts)),
        ecc: device.is_ecc_enabled().ok().map(|mode| mode.currently_enabled),
        uncorrected: uncorrected(EccCounter::Volatile).zip(uncorrected(EccCounter::Aggregate)),
        retirement_pending: device.are_pages_pending_retired().ok(),
        throttles: device.current_throttle_reasons().ok().map(throttles),
        link: now.zip(most),
        persistence: device.is_in_persistent_mode().ok(),
        mig: device.mig_mode().is_ok_and(|mode| mode.current == 1),
    }
}
