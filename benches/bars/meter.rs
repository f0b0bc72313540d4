//! What metering costs: CPU time of the meters' thread, which also attributes, under load at 20 Hz.

use std::sync::Arc;
use std::time::Duration;

use hashwatt::cli::assemble;
use hashwatt::clock::Clock;
use hashwatt::config::Resolved;
use hashwatt::service::Delta;
use hashwatt::unit::Unit;
use hashwatt::wire::fields::UnknownParameters;
use hashwatt::wire::request::CompletionRequest;
use serde_json::json;

use crate::Report;

const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(8);
const CLIENTS: usize = 32;
/// What Linux counts a thread's time in, 1/s; the same on every architecture that Rust knows.
const TICKS_A_SECOND: f64 = 100.0;

/// CPU seconds of this process's threads of a name.
fn thread_seconds(name: &str) -> f64 {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return 0.0 };
    let seconds = tasks.flatten().filter_map(|task| {
        let comm = std::fs::read_to_string(task.path().join("comm")).ok()?;
        let stat = std::fs::read_to_string(task.path().join("stat")).ok()?;
        // Behind the name in brackets: state, …, utime and stime as the 12th and 13th.
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
        (comm.trim() == name).then_some((ticks(11)? + ticks(12)?) / TICKS_A_SECOND)
    });
    seconds.sum()
}

pub fn run(report: &mut Report) {
    let flags = [("meter", "declared:80,300".to_string()), ("model", "demo".into())];
    let config = Resolved::merge(&flags, &[]).and_then(|r| r.config()).expect("a configuration");
    let unit = Unit::new(Clock::system());
    let opened = assemble::open(&config, &unit).expect("the model opens");
    assemble::start(&config, &opened, &unit).expect("the unit starts");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    for client in 0..CLIENTS {
        let service = opened.service.clone();
        runtime.spawn(async move {
            for request in 0.. {
                let prompt: Vec<usize> =
                    (0..16).map(|i| 3 + (i * 31 + client * 131 + request * 17) % 1000).collect();
                let body = json!({"prompt": prompt, "max_tokens": 128, "temperature": 0, "ignore_eos": true});
                let parsed = CompletionRequest::parse(body.to_string().as_bytes(), UnknownParameters::Refuse);
                let mut generation = service.complete(&parsed.expect("a request")).expect("room");
                while let Some(delta) = generation.next().await {
                    assert!(!matches!(delta, Delta::Failed(_)), "{delta:?}");
                }
                // As an answer does at its end.
                assert!(generation.energy().is_some());
            }
        });
    }
    let clock = Clock::system();
    std::thread::sleep(Duration::from_secs(2));
    let steps =
        |unit: &Arc<Unit>| unit.replicas()[0].stats().steps.load(std::sync::atomic::Ordering::Relaxed);
    let (mut shares, mut rates) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (begin, before, steps_before) = (clock.now(), thread_seconds("hashwatt-meter"), steps(&unit));
        std::thread::sleep(ROUND);
        let seconds = clock.now().since(begin).as_secs_f64();
        shares.push((thread_seconds("hashwatt-meter") - before) / seconds * 100.0);
        rates.push((steps(&unit) - steps_before) as f64 / seconds);
    }
    report.row("demo, 32 sequences: steps attributed", "1/s", &rates, None);
    report.row("meter and attribution thread, share of one core", "%", &shares, Some(("≤", 0.5)));
    runtime.shutdown_background();
}
