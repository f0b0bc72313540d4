//! RAPL: the processor's own energy counters, through Linux' powercap tree. Intel and AMD alike.
//!
//! Zones `intel-rapl:N` are packages, `intel-rapl:N:M` named `dram` their memory; both are counters of
//! microjoules that wrap at `max_energy_range_uj`. Cores, uncore and `psys` are parts or sums of these and are
//! left out, as are the `-mmio` doubles. <https://docs.kernel.org/power/powercap/powercap.html>

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Boundary, MeterInfo, Method, PowerError, PowerMeter, Reading};
use crate::quantity::Joules;

pub const POWERCAP: &str = "/sys/class/powercap";
/// The counter moves every millisecond; read more seldom than this it has always moved.
const PERIOD: Duration = Duration::from_millis(10);
const GAIN_ERROR: f64 = 0.05;
const OFTEN_NONE: &str = "virtual machines and containers often have no RAPL";

struct Zone {
    info: MeterInfo,
    file: PathBuf,
}

/// All packages and memories below a powercap tree.
///
/// # Errors
/// `Absent` where there is no such tree (many virtual machines), `Permission` naming the file.
pub fn open(root: &Path) -> Result<Vec<Box<dyn PowerMeter>>, PowerError> {
    let absent = |problem: String| PowerError::Absent { meter: "rapl".into(), problem };
    let entries = std::fs::read_dir(root).map_err(|e| match e.kind() {
        std::io::ErrorKind::PermissionDenied => unread("rapl", root, &e),
        _ => absent(format!("{}: {e}; {OFTEN_NONE}", root.display())),
    })?;
    let mut zones: Vec<(String, PathBuf)> = entries
        .flatten()
        .filter_map(|e| Some((e.file_name().into_string().ok()?, e.path())))
        .filter(|(name, _)| name.starts_with("intel-rapl:"))
        .collect();
    zones.sort();
    let mut meters: Vec<Box<dyn PowerMeter>> = Vec::new();
    for (zone, path) in &zones {
        if let Some(mut meter) = Zone::open(zone, path)? {
            // A counter that cannot be read is told now, not at the first window.
            meter.read()?;
            meters.push(Box::new(meter));
        }
    }
    match meters.is_empty() {
        true => Err(absent(format!("{} has no package zone; {OFTEN_NONE}", root.display()))),
        false => Ok(meters),
    }
}

impl Zone {
    fn open(zone: &str, path: &Path) -> Result<Option<Zone>, PowerError> {
        let name = std::fs::read_to_string(path.join("name")).unwrap_or_default();
        let name = name.trim();
        let package = zone.trim_start_matches("intel-rapl:").split(':').next().unwrap_or_default();
        let (boundary, name) = match name {
            "dram" => (Boundary::Dram, format!("rapl:dram-{package}")),
            _ if name.starts_with("package") => (Boundary::CpuPackage, format!("rapl:{name}")),
            _ => return Ok(None),
        };
        let range = read_number(&name, &path.join("max_energy_range_uj"))?;
        let info = MeterInfo {
            name,
            device: None,
            boundary,
            method: Method::Counter,
            period: PERIOD,
            lag: Duration::ZERO,
            // A package's limit is for all its cores, of which the engine may have few.
            full: None,
            wraps_at: Some(microjoules(range)),
            gain_error: GAIN_ERROR,
        };
        Ok(Some(Zone { info, file: path.join("energy_uj") }))
    }
}

fn microjoules(n: u64) -> Joules {
    Joules(n as f64 * 1e-6)
}

fn read_number(meter: &str, file: &Path) -> Result<u64, PowerError> {
    let text = std::fs::read_to_string(file).map_err(|e| unread(meter, file, &e))?;
    text.trim().parse().map_err(|_| PowerError::Unreadable {
        meter: meter.into(),
        problem: format!("{} is not a number", file.display()),
    })
}

/// Why a counter's file could not be read, with the remedy where there is one.
fn unread(meter: &str, file: &Path, error: &std::io::Error) -> PowerError {
    let (meter, problem) = (meter.to_string(), format!("{}: {error}", file.display()));
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => PowerError::Permission {
            meter,
            problem: format!(
                "{problem}; since Linux 5.10 only root may read it: give this user the right (chmod a+r by a udev \
                 rule), or the process CAP_DAC_READ_SEARCH"
            ),
        },
        std::io::ErrorKind::NotFound => PowerError::Lost { meter, problem },
        _ => PowerError::Unreadable { meter, problem },
    }
}

impl PowerMeter for Zone {
    fn info(&self) -> &MeterInfo {
        &self.info
    }

    fn read(&mut self) -> Result<Reading, PowerError> {
        read_number(&self.info.name, &self.file).map(|n| Reading::Counter(microjoules(n)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::power::monitor::{Monitor, MonitorConfig};

    fn zone(root: &Path, zone: &str, name: &str, energy: u64, range: u64) -> PathBuf {
        let path = root.join(zone);
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join("name"), format!("{name}\n")).unwrap();
        std::fs::write(path.join("energy_uj"), format!("{energy}\n")).unwrap();
        std::fs::write(path.join("max_energy_range_uj"), format!("{range}\n")).unwrap();
        path.join("energy_uj")
    }

    #[test]
    fn packages_and_memories_are_found_and_nothing_twice() {
        let root = tempfile::tempdir().unwrap();
        for (id, name) in [
            ("intel-rapl:0", "package-0"),
            ("intel-rapl:0:0", "core"),
            ("intel-rapl:0:1", "dram"),
            ("intel-rapl:1", "package-1"),
            ("intel-rapl:2", "psys"),
            ("intel-rapl-mmio:0", "package-0"),
        ] {
            zone(root.path(), id, name, 1_000_000, 262_143_328_850);
        }
        let meters = open(root.path()).unwrap();
        let found: Vec<_> = meters.iter().map(|m| (m.info().name.as_str(), m.info().boundary)).collect();
        let expected = [
            ("rapl:package-0", Boundary::CpuPackage),
            ("rapl:dram-0", Boundary::Dram),
            ("rapl:package-1", Boundary::CpuPackage),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_counter_that_wraps_goes_on_counting() {
        let root = tempfile::tempdir().unwrap();
        // As an AMD server shows it: one package, no memory, a 32-bit range.
        let range = 65_532_610_987;
        let energy = zone(root.path(), "intel-rapl:0", "package-0", range - 3_000_000, range);
        let clock = Clock::fake();
        let monitor = Monitor::new(open(root.path()).unwrap(), clock.clone(), MonitorConfig::default());
        monitor.poll();
        for value in [range - 1_000_000, 4_000_000] {
            clock.advance(Duration::from_millis(100));
            std::fs::write(&energy, format!("{value}\n")).unwrap();
            monitor.poll();
        }
        let state = &monitor.meters()[0];
        assert!((state.joules.0 - 7.0).abs() < 1e-6, "{:?}", state.joules);
        assert_eq!(state.resets, 0);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let root = tempfile::tempdir().unwrap();
        let error = |root: &Path| open(root).err().unwrap();
        assert!(matches!(error(&root.path().join("none")), PowerError::Absent { .. }));
        // What a virtual machine shows: the folder, and nothing in it.
        let empty = error(root.path());
        assert!(
            matches!(empty, PowerError::Absent { .. }) && empty.to_string().contains("virtual"),
            "{empty}"
        );
        let energy = zone(root.path(), "intel-rapl:0", "package-0", 1, 10);
        std::fs::write(&energy, "many\n").unwrap();
        assert!(matches!(error(root.path()), PowerError::Unreadable { .. }));
        std::fs::remove_file(&energy).unwrap();
        assert!(matches!(error(root.path()), PowerError::Lost { .. }));
    }

    /// Runs `work` on a thread of its own that reads files as nobody, also where the tests run as root.
    fn as_nobody<T: Send>(work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                // SAFETY: a plain system call; Linux keeps this identity per thread, and the thread ends here.
                // Without the right to change it nothing happens, and then no file of ours is for root only.
                unsafe { libc::setfsuid(65_534) };
                work()
            });
            thread.join().unwrap()
        })
    }

    #[test]
    fn a_counter_for_root_only_names_the_file_and_the_remedy() {
        use std::fs::{Permissions, set_permissions};
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        let energy = zone(root.path(), "intel-rapl:0", "package-0", 1, 10);
        // The tree is for all, as in sysfs; only the counter is not.
        set_permissions(root.path(), Permissions::from_mode(0o755)).unwrap();
        assert!(as_nobody(|| open(root.path()).is_ok()));
        set_permissions(&energy, Permissions::from_mode(0o000)).unwrap();
        let error = as_nobody(|| open(root.path()).err().unwrap());
        assert!(matches!(error, PowerError::Permission { .. }), "{error}");
        let text = error.to_string();
        for part in ["package-0", "energy_uj", "root", "CAP_DAC_READ_SEARCH", "udev"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        set_permissions(root.path(), Permissions::from_mode(0o000)).unwrap();
        let closed = as_nobody(|| open(root.path()).err().unwrap());
        set_permissions(root.path(), Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(closed, PowerError::Permission { .. }), "{closed}");
    }
}
