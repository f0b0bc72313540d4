//! Nameplates, so that the chain from tokens to money runs on a machine without a meter. Assumed, never
//! measured: whatever rests on them is headed EXAMPLE.

use std::time::Duration;

use super::declared::{Declared, GAIN_ERROR, PERIOD};
use super::{Boundary, MeterInfo, Method, PowerError, boards};
use crate::clock::{BusyTime, Clock};
use crate::quantity::Watts;

/// A core's share of a server package at full load and at rest: a 64-core part of 360 W, of which about
/// 90 W are drawn when nothing runs. A round figure of its class, not of this machine.
const FULL_WATTS_PER_CORE: f64 = 5.6;
const IDLE_WATTS_PER_CORE: f64 = 1.4;

fn info(name: String, device: Option<usize>, boundary: Boundary) -> MeterInfo {
    MeterInfo {
        name,
        device,
        boundary,
        method: Method::Assumed,
        period: PERIOD,
        lag: Duration::ZERO,
        full: None,
        wraps_at: None,
        gain_error: GAIN_ERROR,
    }
}

/// The processor, shared out by core.
///
/// # Errors
/// None in practice: the table's figures are sound.
pub fn cpu(cores: usize, clock: Clock, busy: Vec<BusyTime>) -> Result<Declared, PowerError> {
    let info = info(format!("assumed:{cores} cores"), None, Boundary::CpuPackage);
    let [idle, full] = [IDLE_WATTS_PER_CORE, FULL_WATTS_PER_CORE].map(|w| Watts(w * cores as f64));
    Declared::new(info, idle, full, clock, busy)
}

/// A board of this name that runs engine `device`; `None` for one that is not in the table.
pub fn board(name: &str, device: usize, clock: Clock, busy: BusyTime) -> Option<Declared> {
    let board = boards::find(name).ok()?;
    let info = info(format!("assumed:{device} {}", board.name), Some(device), Boundary::GpuBoard);
    Declared::new(info, Watts(board.idle()), Watts(board.watts), clock, vec![busy]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::power::{PowerMeter, Reading};
    use crate::quantity::Joules;

    #[test]
    fn nameplates_are_called_assumed_and_grow_with_utilisation() {
        let (clock, busy) = (Clock::fake(), BusyTime::default());
        let mut cpu = cpu(2, clock.clone(), vec![busy.clone()]).unwrap();
        let mut h200 = board("NVIDIA H200", 0, clock.clone(), busy.clone()).unwrap();
        assert_eq!((cpu.info().method, h200.info().method), (Method::Assumed, Method::Assumed));
        clock.advance(Duration::from_secs(1));
        busy.add(Duration::from_secs(1));
        let Ok(Reading::Counter(Joules(joules))) = cpu.read() else { panic!() };
        assert!((joules - 11.2).abs() < 1e-9);
        assert_eq!(h200.read(), Ok(Reading::Counter(Joules(700.0))));
        assert!(board("Voodoo 2", 0, clock, busy).is_none());
    }
}
