//! Nameplate power of a server processor, shared out by core. Assumed, never measured.

use super::{Boundary, Method, Power};
use crate::quantity::Watts;

/// A core's share of a server package at full load and at rest: a 64-core part of 360 W, of which about
/// 90 W are drawn when nothing runs. A round figure of its class, not of this machine.
const FULL_WATTS_PER_CORE: f64 = 5.6;
const IDLE_WATTS_PER_CORE: f64 = 1.4;

/// Power of `cores` cores that are busy for this share of the time, 0 to 1.
pub fn cpu(cores: usize, busy: f64) -> Power {
    let busy = if busy.is_nan() { 1.0 } else { busy.clamp(0.0, 1.0) };
    let per_core = IDLE_WATTS_PER_CORE + (FULL_WATTS_PER_CORE - IDLE_WATTS_PER_CORE) * busy;
    Power { watts: Watts(per_core * cores as f64), method: Method::Assumed, boundary: Boundary::CpuPackage }
}
