//! `hashwatt bench` as an operator runs it: the binary, a folder, and what it leaves there.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use hashwatt::clock::Clock;
use hashwatt::economics::verdict::{Missing, Verdict};
use hashwatt::measure::report::{Kind, Report, Target};
use hashwatt::power::Method;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(120);

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hashwatt"));
    command.arg("bench").arg("--out").arg(folder).args(arguments);
    command.args(["--kv-memory", "64MiB", "--log-level", "warn"]);
    command
}

fn bench(folder: &Path, arguments: &[&str]) -> Output {
    command(folder, arguments).output().unwrap()
}

fn succeed(folder: &Path, arguments: &[&str]) -> String {
    let output = bench(folder, arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn report(folder: &Path, stem: &str) -> Report {
    Report::read(&folder.join(format!("{stem}.json"))).unwrap()
}

fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let clock = Clock::system();
    let begun = clock.now();
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(clock.now().since(begun) < PATIENCE, "{what} did not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A running bench that has measured its first point and has many to go.
fn half_way(folder: &Path) -> Child {
    let arguments = ["--quick", "--seconds", "0.2", "--meter", "declared:10,20", "--sustained", "600"];
    let child = command(folder, &arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let path = folder.join("report.json");
    wait_for("a first point", || Report::read(&path).ok().filter(|r| !r.points.is_empty()));
    child
}

#[test]
fn a_killed_bench_leaves_a_readable_report_that_says_it_is_partial() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = half_way(folder.path());
    child.kill().unwrap();
    child.wait().unwrap();
    let report = report(folder.path(), "report");
    assert!(!report.complete && report.partial_because.unwrap().contains("killed"));
    let point = &report.points[0];
    assert!(point.output_tokens > 0 && point.window_tokens.len() == 10);
    assert!(report.economics.is_some());
}

#[test]
fn an_interrupted_bench_ends_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = half_way(folder.path());
    // SAFETY: a signal to a child that has not been waited for.
    assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGINT) }, 0);
    let status = wait_for("the end", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(130));
    assert!(!report(folder.path(), "report").complete);
    let text = std::fs::read_to_string(folder.path().join("report.md")).unwrap();
    assert!(text.contains("PARTIAL: interrupted"), "{text}");
}

#[test]
fn a_whole_bench_writes_every_file_and_overwrites_none() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("report.md"), "mine").unwrap();
    let root = env!("CARGO_MANIFEST_DIR");
    let (market, site) =
        (format!("{root}/benches/market.example.toml"), format!("{root}/benches/site.example.toml"));
    let trace = folder.path().join("arrivals.csv");
    std::fs::write(&trace, "time,input,output\n0,20,4\n1.5,10,8\n3,5000,6\n").unwrap();
    let text = succeed(
        folder.path(),
        &[
            "--concurrency",
            "2",
            "--prefill",
            "32",
            "--duty",
            "0.5",
            "--rate",
            "4",
            "--trace",
            trace.to_str().unwrap(),
            "--trace-speed",
            "10",
            "--sustained",
            "0.5",
            "--seconds",
            "0.2",
            "--windows",
            "3",
            "--input",
            "uniform:4,12",
            "--output",
            "lognormal:10,4",
            "--meter",
            "declared:10,20",
            "--market",
            &market,
            "--site",
            &site,
            "--max-model-len",
            "64",
        ],
    );
    for want in ["EXAMPLE", "token/kWh", "node, declared", "verdict: UNKNOWN", "report-2.json"] {
        assert!(text.contains(want), "{want}:\n{text}");
    }
    let report = report(folder.path(), "report-2");
    assert!(report.complete && report.example && report.partial_because.is_none());
    let kinds: Vec<Kind> = report.points.iter().map(|p| p.kind).collect();
    let sweep = [Kind::Concurrency, Kind::Prefill, Kind::Duty, Kind::OpenLoop, Kind::Trace, Kind::Sustained];
    assert_eq!(kinds, sweep);
    assert_eq!((report.points[4].requests, report.points[4].failed), (3, 0));
    assert!(report.points[4].flags.iter().any(|f| f.contains("cut to the context")));
    // The demo model: 4.5 MB of weights, of which a step reads all.
    let ceilings = report.ceilings.as_ref().unwrap();
    assert!((4_000_000..5_000_000).contains(&ceilings.step_weight_bytes), "{ceilings:?}");
    assert_eq!(ceilings.devices.len(), 1);
    let shares: Vec<_> = report.points.iter().map(|p| (p.copy_bandwidth_share, p.gemm_share)).collect();
    for (point, (copy, gemm)) in report.points.iter().zip(&shares) {
        let decode = matches!(point.kind, Kind::Concurrency | Kind::Sustained);
        assert_eq!(copy.is_some_and(|s| s > 0.0), decode, "{shares:?}");
        assert_eq!(gemm.is_some_and(|s| s > 0.0), point.kind == Kind::Prefill, "{shares:?}");
    }
    assert!(text.contains("of copy") && text.contains("of GEMM"), "{text}");
    let energy = report.primary_energy(&report.points[0]).unwrap();
    assert!((9.0..=40.0).contains(&energy.watts.value), "{:?}", energy.watts);
    assert!(energy.joules_per_decode_token.is_some() || energy.joules_per_prefill_token.is_some());
    assert!((9.9..14.0).contains(&report.idle[0].watts().unwrap()), "{:?}", report.idle);
    let hash = report.model.sha256.unwrap();
    assert!(hash.len() == 64 && report.model.sha256_of.unwrap() == "demo");
    assert!(!report.power[0].seconds_watts.is_empty());
    let lines = std::fs::read_to_string(folder.path().join("report-2.csv")).unwrap().lines().count();
    assert_eq!(lines, 1 + sweep.len());
    assert_eq!(std::fs::read_to_string(folder.path().join("report.md")).unwrap(), "mine");
    let page = std::fs::read_to_string(folder.path().join("report-2.html")).unwrap();
    assert!(page.contains("EXAMPLE") && page.contains("<svg"));
    let json = std::fs::read_to_string(folder.path().join("report-2.json")).unwrap();
    let mut bare = Vec::new();
    bare_figures("", &serde_json::from_str(&json).unwrap(), &mut bare);
    assert!(bare.is_empty(), "without method and boundary: {bare:?}");
}

/// Made before a report had ceilings.
#[test]
fn an_older_report_is_read() {
    let results = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/results");
    let report = report(&results, "2026-11-23-bench-quick-demo");
    assert!(report.ceilings.is_none() && !report.points.is_empty());
}

#[test]
fn a_reader_that_stops_ends_a_report_quietly() {
    let report =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/results/2026-11-23-bench-quick-demo.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_hashwatt"));
    command.args(["report", "compare", "--force", "--json"]).args([&report, &report]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

/// Numbers of energy or power that do not stand beside their method and boundary. What the operator gave
/// (`inputs`) and limits that were set are no figures.
fn bare_figures(path: &str, value: &Value, found: &mut Vec<String>) {
    let is_number = |v: &Value| {
        v.is_number()
            || v.get("low").is_some() && v.get("method").is_none()
            || v.get(0).is_some_and(|v| !v.is_object())
    };
    match value {
        Value::Array(all) => all.iter().for_each(|v| bare_figures(path, v, found)),
        Value::Object(object) => {
            let told = object.contains_key("method") && object.contains_key("boundary");
            for (key, value) in object {
                let path = format!("{path}.{key}");
                let of_energy = ["joule", "watt", "usd", "kwh"].iter().any(|w| key.contains(w));
                let set = ["limit", "cap"].iter().any(|w| key.contains(w));
                if of_energy && !set && !told && is_number(value) {
                    found.push(path.clone());
                }
                if key != "inputs" {
                    bare_figures(&path, value, found);
                }
            }
        }
        _ => {}
    }
}

#[test]
fn a_figure_without_its_method_is_found() {
    let mut bare = Vec::new();
    let value = serde_json::json!({
        "points": [{"watts": 5.0, "method": "counter", "boundary": "node"}, {"joules": {"low": 1.0}}],
        "power_cap_watts": 3.0, "seconds_watts": [[1.0, 2.0]], "watts": {"value": 1.0, "low": 1.0, "method": "x"},
    });
    bare_figures("", &value, &mut bare);
    assert_eq!(bare, [".points.joules", ".seconds_watts"]);
}

#[test]
fn without_meter_or_market_the_verdict_is_unknown_and_all_is_well() {
    let folder = tempfile::tempdir().unwrap();
    let text = succeed(
        folder.path(),
        &[
            "--points",
            "1",
            "--seconds",
            "0.2",
            "--windows",
            "12",
            "--meter",
            "assumed",
            "--input",
            "8",
            "--output",
            "16",
        ],
    );
    assert!(text.starts_with("EXAMPLE"), "{text}");
    let report = report(folder.path(), "report");
    assert!(report.example && report.complete);
    let Verdict::Unknown { reasons } = report.economics.unwrap().outcome.verdict else { panic!("a verdict") };
    // On a busy machine windows this short may be too noisy to be a measurement at all.
    let no_measurement =
        |m: &Missing| matches!(m, Missing::AssumedWatts | Missing::UnsoundMeasurement { .. });
    assert!(reasons.iter().any(no_measurement) && reasons.contains(&Missing::Market), "{reasons:?}");
    assert!(report.points.iter().flat_map(|p| &p.energy).all(|e| e.method == Method::Assumed && !e.measured));
}

#[test]
fn only_measured_figures_pass_where_they_are_required() {
    for meter in ["assumed", "declared:10,20"] {
        let folder = tempfile::tempdir().unwrap();
        let output = bench(folder.path(), &["--points", "1", "--require-measured", "--meter", meter]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_ne!(output.status.code(), Some(0));
        let method = meter.split(':').next().unwrap();
        assert!(error.contains("--require-measured") && error.contains(method), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
    }
}

#[test]
fn a_rival_and_a_server_are_measured_the_same_way() {
    let folder = tempfile::tempdir().unwrap();
    let short =
        ["--concurrency", "2", "--duty", "", "--sustained", "0", "--seconds", "0.3", "--windows", "12"];
    let tokens = ["--input", "8", "--output", "8", "--prefill", "16", "--meter", "declared:10,20"];
    let with = |more: &[&'static str]| [&short[..], &tokens[..], more].concat();
    succeed(folder.path(), &with(&["--baseline", "candle-transformers"]));
    let rival = report(folder.path(), "report");
    assert!(matches!(rival.target, Target::CandleTransformers { .. }));
    assert!(rival.points[0].output_tokens > 0 && rival.points[0].failed == 0);

    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut serve = Command::new(env!("CARGO_BIN_EXE_hashwatt"));
    serve.args(["serve", "--port", &port.to_string(), "--kv-memory", "64MiB", "--log-level", "error"]);
    serve.args(["--admin-listen", "none", "--state-dir"]).arg(folder.path().join("state"));
    let mut server = serve.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for("the server", || {
        let mut arguments = with(&[]);
        let url = format!("http://127.0.0.1:{port}/v1");
        arguments.extend(["--url", &url]);
        bench(folder.path(), &arguments).status.success().then_some(())
    });
    server.kill().unwrap();
    server.wait().unwrap();
    let served = report(folder.path(), "report-2");
    assert!(matches!(served.target, Target::Url { .. }));
    assert_eq!(served.model.id, "demo");
    let point = &served.points[0];
    assert!(point.output_tokens > 0 && point.failed == 0 && point.ttft_seconds.is_some(), "{point:?}");
    assert_eq!((point.mean_input_tokens, point.mean_output_tokens), (8.0, 8.0));
}
