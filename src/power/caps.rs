//! Power limits of NVIDIA boards, for benches under a cap: set, read back, put back at the end.
//!
//! A driver may accept a limit and not enforce it, so what is enforced is read back and compared.

use std::path::Path;

use nvml_wrapper::{Device, Nvml};

use super::PowerError;
use super::nvml::{failed, library};
use crate::quantity::Watts;

/// Watts by which the enforced limit may differ from what was asked (it is kept in whole watts by some boards).
const TOLERANCE: f64 = 1.5;

/// A cap in force; dropping it restores the limit that was there before.
pub struct Cap {
    meter: String,
    device: Device<'static>,
    before: u32,
    pub enforced: Watts,
    in_force: bool,
}

/// Sets the limit of one board.
///
/// # Errors
/// `Spec` for watts outside the board's range, `Permission` (it takes root), and `Unreadable` when the limit
/// that is enforced afterwards is another one.
pub fn set(library_path: Option<&Path>, board: u32, watts: Watts) -> Result<Cap, PowerError> {
    set_with(library(library_path)?, board, watts)
}

fn set_with(nvml: &'static Nvml, board: u32, watts: Watts) -> Result<Cap, PowerError> {
    let meter = format!("nvml:{board}");
    let call = |call: &'static str| {
        let meter = meter.clone();
        move |e| failed(&meter, call, &e)
    };
    let mut device = nvml.device_by_index(board).map_err(call("nvmlDeviceGetHandleByIndex"))?;
    let range = device
        .power_management_limit_constraints()
        .map_err(call("nvmlDeviceGetPowerManagementLimitConstraints"))?;
    let [least, most] = [range.min_limit, range.max_limit].map(|mw| f64::from(mw) * 1e-3);
    if !(least..=most).contains(&watts.0) {
        return Err(PowerError::Spec {
            value: format!("{} W", watts.0),
            problem: format!("{meter} can be limited to {least:.0} to {most:.0} W"),
        });
    }
    let before = device.power_management_limit().map_err(call("nvmlDeviceGetPowerManagementLimit"))?;
    device.set_power_management_limit((watts.0 * 1e3).round() as u32).map_err(|e| {
        match failed(&meter, "nvmlDeviceSetPowerManagementLimit", &e) {
            PowerError::Permission { meter, problem } => PowerError::Permission {
                meter,
                problem: format!("{problem}; a power limit is set by root (CAP_SYS_ADMIN) only"),
            },
            other => other,
        }
    })?;
    // From here on dropping it puts the old limit back.
    let mut cap = Cap { meter, device, before, enforced: watts, in_force: true };
    let enforced = cap.device.enforced_power_limit();
    let enforced = enforced.map_err(|e| failed(&cap.meter, "nvmlDeviceGetEnforcedPowerLimit", &e))?;
    cap.enforced = Watts(f64::from(enforced) * 1e-3);
    if (cap.enforced.0 - watts.0).abs() > TOLERANCE {
        return Err(PowerError::Unreadable {
            meter: cap.meter.clone(),
            problem: format!("asked for a limit of {watts}, {} is enforced", cap.enforced),
        });
    }
    Ok(cap)
}

impl Cap {
    /// Puts the old limit back.
    ///
    /// # Errors
    /// A board that does not take it; dropping tries once more.
    pub fn restore(&mut self) -> Result<(), PowerError> {
        let done = self.device.set_power_management_limit(self.before);
        done.map_err(|e| failed(&self.meter, "nvmlDeviceSetPowerManagementLimit", &e))?;
        self.in_force = false;
        Ok(())
    }
}

impl Drop for Cap {
    fn drop(&mut self) {
        if self.in_force
            && let Err(error) = self.restore()
        {
            let watts = f64::from(self.before) * 1e-3;
            tracing::error!(meter = %self.meter, %error, watts, "the power limit could not be put back");
        }
    }
}
