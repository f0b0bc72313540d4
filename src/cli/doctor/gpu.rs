//! What `doctor` finds of NVIDIA boards: libraries, driver, and of each board what keeps it from serving well.
//!
//! The boards' own words (`power::health`) in, findings with their fixes out.

use super::{Finding, Level, finding, xid};
use crate::power::health::BoardHealth;
use crate::power::{PowerError, Throttle};

/// CUDA 13 wants a driver of this release or later (CUDA toolkit release notes, table of drivers).
const LEAST_DRIVER: u32 = 580;
/// The kernels are compiled from Ampere on.
const LEAST_CAPABILITY: (i32, i32) = (8, 0);
/// What a build with CUDA links, and where it comes from.
const LIBRARIES: [(&str, &str); 5] = [
    (
        "libcuda.so.1",
        "NVIDIA's driver (in a container: run it with --gpus all and the NVIDIA container toolkit)",
    ),
    ("libcublas.so.13", "libcublas-13-0 by NVIDIA's package repository, or pip install nvidia-cublas"),
    ("libcublasLt.so.13", "libcublas-13-0 by NVIDIA's package repository, or pip install nvidia-cublas"),
    ("libcurand.so.10", "libcurand-13-0 by NVIDIA's package repository, or pip install nvidia-curand"),
    ("libnvrtc.so.13", "cuda-nvrtc-13-0 by NVIDIA's package repository, or pip install nvidia-cuda-nvrtc"),
];

/// Nothing where there is no board; a finding a subject where there is one.
/// `log` is asked for the kernel's log where there are boards.
pub fn findings(
    boards: Result<Vec<Result<BoardHealth, PowerError>>, PowerError>,
    log: impl FnOnce() -> std::io::Result<String>,
) -> Vec<Finding> {
    let boards = match boards {
        Ok(boards) if !boards.is_empty() => boards,
        // A machine without boards, or without their driver, is none of our business here.
        _ => return Vec::new(),
    };
    let mut all = libraries(|name| {
        // SAFETY: CUDA's own libraries, by the names that a build with CUDA loads them by.
        unsafe { libloading::Library::new(name) }.map(|_| ()).map_err(|e| e.to_string())
    });
    if let Some(Ok(first)) = boards.iter().find(|b| b.is_ok()) {
        all.push(driver(&first.driver));
    }
    for board in boards {
        match board {
            Ok(board) => all.extend(of_board(&board)),
            Err(error) => all.push(finding(
                "gpu",
                Level::Error,
                error.to_string(),
                "look at `nvidia-smi` and `dmesg | grep NVRM`; reset the board or take it out of --device",
            )),
        }
    }
    all.extend(xid::findings(log()));
    all
}

/// A build with CUDA does not start without these; one without says what it would take.
fn libraries(load: impl Fn(&str) -> Result<(), String>) -> Vec<Finding> {
    let missing: Vec<_> = LIBRARIES.iter().filter(|(name, _)| load(name).is_err()).collect();
    if missing.is_empty() {
        let found = LIBRARIES.map(|(name, _)| name).join(", ");
        return vec![finding("cuda", Level::Pass, found, "")];
    }
    let missing = missing.into_iter();
    missing
        .map(|(name, from)| {
            let found = format!("{name} is missing: a build with CUDA does not start");
            finding("cuda", Level::Warn, found, &format!("it comes with {from}"))
        })
        .collect()
}

fn driver(version: &str) -> Finding {
    let release = version.split('.').next().and_then(|n| n.parse::<u32>().ok());
    match release {
        Some(release) if release >= LEAST_DRIVER => finding("driver", Level::Pass, version.into(), ""),
        Some(_) => finding(
            "driver",
            Level::Error,
            format!("{version}: CUDA 13 wants {LEAST_DRIVER} or later"),
            "install nvidia-driver-580-open (or a later one) and reboot",
        ),
        None => finding("driver", Level::Warn, "its version is not readable".into(), "run `nvidia-smi`"),
    }
}

fn of_board(b: &BoardHealth) -> Vec<Finding> {
    let name = format!("{} {}", b.index, b.name);
    let say = |level, what: String, fix: &str| finding("gpu", level, format!("{name}: {what}"), fix);
    let mut found = vec![capability(b, &say)];
    let mut warn = |what: String, fix: &str| found.push(say(Level::Warn, what, fix));
    match b.memory {
        Some((free, total)) if free < total / 10 * 9 => warn(
            format!("{:.1} of {:.1} GiB of memory are free", gib(free), gib(total)),
            "end what else runs on it (`nvidia-smi`), or lower --gpu-memory-utilization",
        ),
        Some(_) => {}
        None => warn("its memory is not readable".into(), "run `nvidia-smi -q -d MEMORY`"),
    }
    if let Some(others @ 1..) = b.other_processes {
        warn(
            format!("{others} other processes compute on it"),
            "end them, or give this unit other boards by --device or CUDA_VISIBLE_DEVICES",
        );
    }
    match b.power_limit {
        Some((limit, default)) if limit < default - 0.5 => {
            warn(
                format!("its power is capped at {limit:.0} W of {default:.0}"),
                "`nvidia-smi -pl WATTS` lifts it, if that is not meant",
            );
        }
        Some(_) => {}
        None => warn("its power limit is not readable".into(), "run `nvidia-smi -q -d POWER`"),
    }
    if b.ecc == Some(false) {
        warn(
            "ECC is off".into(),
            "`nvidia-smi -e 1` and a reset turn it on; without it wrong bits pass unseen",
        );
    }
    if let Some((now, ever)) = b.uncorrected.filter(|(now, ever)| now + ever > 0) {
        found.push(say(
            if now > 0 { Level::Error } else { Level::Warn },
            format!("{now} uncorrected memory errors since the driver was loaded, {ever} ever"),
            "reset the board; if they come again (`nvidia-smi -q -d ECC,ROW_REMAPPER`), have it replaced",
        ));
    }
    if b.retirement_pending == Some(true) {
        found.push(say(Level::Error, "pages wait to be retired".into(), "reset the board: `nvidia-smi -r`"));
    }
    for throttle in b.throttles.iter().flatten() {
        let fix = match throttle {
            Throttle::PowerCap => "it runs at its power limit: raise that, or expect fewer tokens a second",
            Throttle::Thermal => "cool it: air flow, dust, the room",
            Throttle::PowerBrake => "the host's power supply holds it back: look at the rack's power",
            Throttle::Other => "`nvidia-smi -q -d PERFORMANCE` says why",
        };
        found.push(say(Level::Warn, format!("its clocks are held back: {throttle:?}"), fix));
    }
    // The generation falls when a board idles; the lanes do not.
    if let Some((now, most)) = b.link.filter(|(now, most)| now.lanes < most.lanes) {
        found.push(say(
            Level::Warn,
            format!("PCIe: {} of {} lanes, generation {} now", now.lanes, most.lanes, now.generation),
            "seat it anew, or look at the slot and the riser",
        ));
    }
    if b.persistence == Some(false) {
        let fix = "`nvidia-smi -pm 1`, or the service nvidia-persistenced";
        found.push(say(
            Level::Warn,
            "persistence mode is off: the first start takes seconds longer".into(),
            fix,
        ));
    }
    if b.mig {
        let fix = "a slice has no energy counter of its own: joules are the whole board's";
        found.push(say(Level::Warn, "it is cut into slices (MIG)".into(), fix));
    }
    found
}

/// The first finding of a board says what it is.
fn capability(b: &BoardHealth, say: &dyn Fn(Level, String, &str) -> Finding) -> Finding {
    let text = |(major, minor): (i32, i32)| format!("compute capability {major}.{minor}");
    match b.compute_capability {
        Some(capability) if capability >= LEAST_CAPABILITY => {
            let memory = b.memory.map_or_else(String::new, |(_, total)| format!(", {:.0} GiB", gib(total)));
            let watts = b.power_limit.map_or_else(String::new, |(limit, _)| format!(", {limit:.0} W"));
            let link = b.link.map_or_else(String::new, |(_, most)| {
                format!(", PCIe {} × {} lanes", most.generation, most.lanes)
            });
            say(Level::Pass, format!("{}{memory}{watts}{link}", text(capability)), "")
        }
        Some(capability) => {
            let found = format!("{}: the kernels want 8.0 (Ampere) or later", text(capability));
            say(Level::Error, found, "take it out of --device")
        }
        None => say(Level::Warn, "its compute capability is not readable".into(), "run `nvidia-smi -q`"),
    }
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::power::health::Link;

    fn well() -> BoardHealth {
        let link = Link { generation: 5, lanes: 16 };
        BoardHealth {
            index: 0,
            name: "NVIDIA H200".into(),
            uuid: "GPU-0".into(),
            driver: "580.95.05".into(),
            compute_capability: Some((9, 0)),
            memory: Some((140 << 30, 141 << 30)),
            other_processes: Some(0),
            power_limit: Some((700.0, 700.0)),
            ecc: Some(true),
            uncorrected: Some((0, 0)),
            retirement_pending: Some(false),
            throttles: Some(vec![]),
            // Idle: a lower generation is no finding.
            link: Some((Link { generation: 1, ..link }, link)),
            persistence: Some(true),
            mig: false,
        }
    }

    #[test]
    fn a_board_that_is_well_has_one_finding_and_each_fault_one_more_with_its_fix() {
        let found = of_board(&well());
        assert_eq!(found.len(), 1);
        assert!(found[0].level == Level::Pass && found[0].found.contains("9.0, 141 GiB, 700 W, PCIe 5"));
        type Fault = fn(&mut BoardHealth);
        let faults: [(Fault, Level, &str); 12] = [
            (|b| b.memory = Some((9 << 30, 80 << 30)), Level::Warn, "9.0 of 80.0 GiB"),
            (|b| b.other_processes = Some(2), Level::Warn, "2 other processes"),
            (|b| b.power_limit = Some((400.0, 700.0)), Level::Warn, "400 W of 700"),
            (|b| b.ecc = Some(false), Level::Warn, "ECC is off"),
            (|b| b.uncorrected = Some((0, 3)), Level::Warn, "3 ever"),
            (|b| b.uncorrected = Some((1, 3)), Level::Error, "1 uncorrected"),
            (|b| b.retirement_pending = Some(true), Level::Error, "retired"),
            (|b| b.throttles = Some(vec![Throttle::Thermal]), Level::Warn, "Thermal"),
            (|b| b.link.as_mut().unwrap().0.lanes = 8, Level::Warn, "8 of 16 lanes"),
            (|b| b.persistence = Some(false), Level::Warn, "persistence"),
            (|b| b.mig = true, Level::Warn, "MIG"),
            (|b| b.power_limit = None, Level::Warn, "not readable"),
        ];
        for (fault, level, word) in faults {
            let mut board = well();
            fault(&mut board);
            let found = of_board(&board);
            let more = found.iter().find(|f| f.found.contains(word)).unwrap_or_else(|| panic!("no {word}"));
            assert!(found.len() == 2 && more.level == level && !more.fix.is_empty(), "{word}");
        }
        let mut old = well();
        old.compute_capability = Some((7, 5));
        assert!(of_board(&old)[0].level == Level::Error);
    }

    #[test]
    fn drivers_and_libraries_are_held_against_cuda_13() {
        assert!(driver("580.95.05").level == Level::Pass && driver("590.1").level == Level::Pass);
        assert!(driver("570.124.06").level == Level::Error && driver("").level == Level::Warn);
        assert!(libraries(|_| Ok(()))[0].level == Level::Pass);
        let one = libraries(|name| if name.starts_with("libcublas.") { Err("no".into()) } else { Ok(()) });
        assert!(
            one.len() == 1
                && one[0].found.contains("libcublas.so.13")
                && one[0].fix.contains("nvidia-cublas")
        );
        assert!(findings(Ok(vec![]), || panic!("nobody asks")).is_empty());
        let found = findings(Ok(vec![Ok(well())]), || Ok("NVRM: Xid (PCI:0000:01:00): 79, gone".into()));
        assert!(found.iter().any(|f| f.check == "xid" && f.level == Level::Error));
    }
}
