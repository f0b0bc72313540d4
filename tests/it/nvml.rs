//! The real NVML path against a library built from `fake_nvml.c`: ticks, fallbacks, faults, caps.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use hashwatt::clock::Clock;
use hashwatt::energy::Ledger;
use hashwatt::engine::fault::Faults;
use hashwatt::engine::step_log::Observed;
use hashwatt::power::monitor::{Monitor, MonitorConfig, Status};
use hashwatt::power::spec::{self, MeterContext, MeterSpec};
use hashwatt::power::{Boundary, Method, PowerError, PowerMeter, Reading, Throttle, caps, nvml};
use hashwatt::quantity::Watts;

use crate::failover;

/// A built library and the file that steers it. Each test has its own, so that they do not meet.
struct Fake {
    folder: tempfile::TempDir,
}

/// `None`, with a printed reason, where there is no C compiler.
fn fake(control: &str) -> Option<Fake> {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake { folder };
    fake.set(control);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/fake_nvml.c");
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o"])
        .arg(fake.library())
        .arg(format!("-DCONTROL=\"{}\"", fake.control().display()))
        .arg(source)
        .output();
    match built {
        Ok(output) if output.status.success() => Some(fake),
        Ok(output) => panic!("{}", String::from_utf8_lossy(&output.stderr)),
        Err(e) => {
            println!("skipped: no C compiler to build the fake NVML ({e})");
            None
        }
    }
}

impl Fake {
    fn control(&self) -> PathBuf {
        self.folder.path().join("control")
    }
    fn library(&self) -> PathBuf {
        self.folder.path().join("libnvidia-ml.so.1")
    }
    fn set(&self, control: &str) {
        // In one go, so that no call reads half of it.
        let written = self.folder.path().join("written");
        std::fs::write(&written, control).unwrap();
        std::fs::rename(written, self.control()).unwrap();
    }
    fn open(&self) -> Box<dyn PowerMeter> {
        nvml::open(Some(&self.library()), &[]).unwrap().remove(0)
    }
}

#[test]
fn a_machine_without_the_driver_says_so() {
    let error = nvml::open(Some(Path::new("/nowhere/libnvidia-ml.so.1")), &[]).err().unwrap();
    assert!(matches!(&error, PowerError::Absent { .. }), "{error}");
}

#[test]
fn the_counter_of_total_energy_ticks_and_is_recovered() {
    let Some(fake) = fake("ms 0") else { return };
    let mut context = MeterContext::new(Clock::fake(), vec![], 1);
    context.gpus = true;
    context.nvml_library = Some(fake.library());
    context.powercap = "/nowhere".into();
    let opened = spec::open(&MeterSpec::Auto, &context).unwrap();
    let info = opened.meters[0].info().clone();
    assert_eq!((info.method, info.boundary, info.device), (Method::Counter, Boundary::GpuBoard, Some(0)));
    assert_eq!(info.name, "nvml:0 NVIDIA Fake H200");
    let monitor = Monitor::new(opened.meters, context.clock.clone(), MonitorConfig::default());
    monitor.poll();
    for n in 1..=200 {
        context.clock.advance(Duration::from_millis(50));
        fake.set(&format!("ms {}", n * 50));
        monitor.poll();
    }
    let state = monitor.meters().remove(0);
    assert!((state.joules.0 - 3000.0).abs() < 1e-6, "{}", state.joules);
    assert_eq!(state.edges, 100, "a tick each 100 ms");
    let board = state.board.unwrap();
    assert_eq!(board.temperature_celsius, Some(61.0));
    assert_eq!((board.clock_megahertz, board.memory_clock_megahertz), (Some(1755.0), Some(3201.0)));
    assert_eq!((board.power_limit_watts, board.throttles.len()), (Some(700.0), 0), "idle is no throttling");
    assert_eq!(board.instantaneous_watts, Some(300.0), "field 186 checks the counter");
    assert_eq!(state.instantaneous, (Watts(3300.0), 11), "at once and once a second");
    // The device vanishes: named, and its total stays.
    fake.set("ms 10000\nlost 1");
    context.clock.advance(Duration::from_millis(50));
    monitor.poll();
    let state = monitor.meters().remove(0);
    assert!(
        matches!(&state.status, Status::Lost(why) if why.contains("fell off the bus")),
        "{:?}",
        state.status
    );
    assert!((state.joules.0 - 3000.0).abs() < 1e-6);
}

#[test]
fn without_a_counter_instantaneous_power_is_read_and_the_average_last() {
    let Some(fake) = fake("counter 0") else { return };
    let mut meter = fake.open();
    assert_eq!((meter.info().method, meter.read()), (Method::Integrated, Ok(Reading::Power(Watts(300.0)))));
    fake.set("counter 0\ninstant 0");
    let mut meter = fake.open();
    assert_eq!(meter.read(), Ok(Reading::Power(Watts(250.0))));
    assert!(meter.info().name.contains("averaged over a second"), "{}", meter.info().name);
    assert_eq!(meter.info().period, Duration::from_secs(1));
}

#[test]
fn faults_others_slices_and_reasons_are_told() {
    let Some(fake) = fake("mig 1") else { return };
    let mut meter = fake.open();
    assert!(meter.info().name.contains("MIG"), "{}", meter.info().name);
    assert_eq!(meter.board().unwrap().xid, None);
    // SW power cap, HW thermal with the hardware's general flag.
    fake.set("xid 79\nothers 2\nreasons 76");
    let board = meter.board().unwrap();
    assert_eq!((board.xid, board.other_processes), (Some(79), Some(2)));
    assert_eq!(board.throttles, [Throttle::PowerCap, Throttle::Thermal]);
    fake.set("xid 79\nreasons 136");
    let board = meter.board().unwrap();
    assert_eq!((board.xid, board.throttles.as_slice()), (Some(79), [Throttle::PowerBrake].as_slice()));
}

#[test]
fn identities_carry_the_limits() {
    let Some(fake) = fake("") else { return };
    let board = nvml::boards(Some(&fake.library())).unwrap().remove(0);
    assert_eq!((board.uuid.as_str(), board.driver.as_str()), ("GPU-fake", "580.95.05"));
    assert_eq!(board.cuda_driver.as_deref(), Some("13.0"));
    assert_eq!((board.least_power_limit_watts, board.greatest_power_limit_watts), (Some(200.0), Some(700.0)));
    assert_eq!(board.memory_bytes, Some(150_754_820_096));
}

#[test]
fn a_cap_is_read_back_and_put_back() {
    let Some(fake) = fake("") else { return };
    let library = fake.library();
    let limit = || nvml::boards(Some(&library)).unwrap()[0].power_limit_watts.unwrap();
    let cap = caps::set(Some(&library), 0, Watts(400.0)).unwrap();
    assert_eq!((cap.enforced, limit()), (Watts(400.0), 400.0));
    drop(cap);
    assert_eq!(limit(), 700.0);

    let refused = |watts, want: &str| {
        let error = caps::set(Some(&library), 0, Watts(watts)).err().unwrap();
        assert!(error.to_string().contains(want), "{error}");
        error
    };
    refused(150.0, "200 to 700 W");
    refused(f64::NAN, "200 to 700 W");
    fake.set("cap_ignored 1");
    refused(400.0, "asked for a limit of 400.0 W, 700.0 W is enforced");
    fake.set("denied 1");
    assert!(matches!(refused(400.0, "root"), PowerError::Permission { .. }));
    assert_eq!(limit(), 700.0);
}

#[test]
fn boards_are_matched_to_engines_by_uuid() {
    let Some(fake) = fake("ms 0\nboards 2\n") else { return };
    let devices = |engines: &[&str]| {
        let engines: Vec<String> = engines.iter().map(|e| e.to_string()).collect();
        let meters = nvml::open(Some(&fake.library()), &engines);
        meters.map(|m| m.iter().map(|m| m.info().device).collect::<Vec<_>>())
    };
    assert_eq!(devices(&[]).unwrap(), [Some(0), Some(1)]);
    assert_eq!(devices(&["GPU-second", "GPU-fake"]).unwrap(), [Some(1), Some(0)]);
    assert_eq!(devices(&["", "GPU-fake"]).unwrap(), [Some(1)], "the first engine is the CPU's");
    // A board of somebody else is not ours to bill.
    assert_eq!(devices(&["GPU-second"]).unwrap(), [Some(0)]);
    let error = devices(&["GPU-elsewhere"]).unwrap_err().to_string();
    assert!(error.contains("GPU-elsewhere"), "{error}");
}

/// From the driver's event to the engine that is taken out: NVML's second board is the first engine's.
#[test]
fn a_critical_xid_takes_out_the_engine_on_that_board_alone() {
    let Some(fake) = fake("ms 0\nboards 2\n") else { return };
    let engines = ["GPU-second", "GPU-fake"].map(String::from);
    let meters = nvml::open(Some(&fake.library()), &engines).unwrap();
    let clock = Clock::fake();
    let monitor = std::sync::Arc::new(Monitor::new(meters, clock.clone(), MonitorConfig::default()));
    let unit = failover::unit(&failover::model(), Faults::default());
    let logs = (0..2).map(|_| Observed::default().steps).collect();
    unit.meter(Ledger::start(&monitor, logs).unwrap());
    let tell = |control: &str| {
        fake.set(control);
        clock.advance(Duration::from_secs(2));
        monitor.poll();
        unit.inspect(Duration::from_secs(600));
        failover::is_in(&unit)
    };
    // A fault that an application causes.
    assert_eq!(tell("ms 2000\nboards 2\nxid 13\nxid_board 1"), [true, true]);
    assert_eq!(tell("ms 4000\nboards 2\nxid 79\nxid_board 1"), [false, true]);
    let why = unit.replicas()[0].why_out().unwrap();
    assert_eq!(why, "nvml:1 NVIDIA Fake H200 reports Xid 79");
    assert!(unit.is_ready());
    assert_eq!(tell("ms 6000\nboards 2\nxid 48\nxid_board 0"), [false, false]);
    assert!(!unit.is_ready());
}

#[test]
fn a_boards_health_is_what_the_library_says() {
    use hashwatt::power::health::{self, Link};
    let Some(fake) = fake("ms 0\nboards 2\n") else { return };
    let read = || health::read(Some(&fake.library())).unwrap();
    let boards = read();
    assert_eq!(boards.len(), 2);
    let well = boards[0].as_ref().unwrap();
    assert_eq!(
        (well.compute_capability, well.ecc, well.uncorrected),
        (Some((9, 0)), Some(true), Some((0, 0)))
    );
    assert_eq!((well.persistence, well.retirement_pending, well.mig), (Some(true), Some(false), false));
    let link = |generation, lanes| Link { generation, lanes };
    assert_eq!(well.link, Some((link(1, 16), link(5, 16))));
    assert_eq!((well.power_limit, well.other_processes), (Some((700.0, 700.0)), Some(0)));
    assert_eq!(well.driver, "580.95.05");
    fake.set("ms 0\necc 0\nuncorrected 2\npending 1\nlanes 4\npersistence 0\nfree 10\nothers 3\nmig 1\n");
    let boards = read();
    let ill = boards[0].as_ref().unwrap();
    assert_eq!((ill.ecc, ill.uncorrected, ill.retirement_pending), (Some(false), Some((2, 3)), Some(true)));
    assert_eq!((ill.persistence, ill.other_processes, ill.mig), (Some(false), Some(3), true));
    assert_eq!(ill.link.unwrap().0, link(1, 4));
    assert!(ill.memory.is_some_and(|(free, total)| free * 9 < total));
    fake.set("ms 0\nlost 1\n");
    assert!(read()[0].is_err());
}
