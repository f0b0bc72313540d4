//! What HTTP costs, and what stands before the service: the same load through the server and straight into the
//! service, alternating.
//!
//! The HTTP clients run in a process of their own, so that this process's CPU time is the server's.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use hashwatt::cli::{assemble, serve_state};
use hashwatt::clock::Clock;
use hashwatt::config::{Config, Resolved};
use hashwatt::service::{Delta, Service};
use hashwatt::store::{Limits, Scopes};
use hashwatt::unit::Unit;
use hashwatt::wire::client::Client;
use hashwatt::wire::fields::UnknownParameters;
use hashwatt::wire::request::CompletionRequest;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::Report;

const CLIENTS: usize = 16;
/// Where the clients' process finds its key.
const KEY: &str = "HASHWATT_BENCH_KEY";

/// What each client does, one request after another.
#[derive(Clone, Copy)]
struct Load {
    requests: usize,
    prompt: usize,
    generate: usize,
}

fn body(load: Load, client: usize, request: usize) -> String {
    let prompt: Vec<usize> =
        (0..load.prompt).map(|i| 3 + (i * 31 + client * 131 + request * 17) % 1000).collect();
    json!({"prompt": prompt, "max_tokens": load.generate, "temperature": 0, "ignore_eos": true, "stream": true})
        .to_string()
}

struct Started {
    /// Of a client whose every limit is watched, and whose use is recorded.
    key: Option<(String, tempfile::TempDir)>,
    runtime: tokio::runtime::Runtime,
    service: Arc<Service>,
    url: String,
    stop: CancellationToken,
}

fn start(model: &str, with_key: bool) -> Started {
    let folder = with_key.then(|| tempfile::tempdir().expect("a folder"));
    let mut flags = vec![
        ("model", model.to_string()),
        ("kv-memory", "1GiB".into()),
        ("enable-prefix-caching", "false".into()),
    ];
    flags.extend(folder.iter().map(|folder| ("state-dir", folder.path().display().to_string())));
    let config: Config = Resolved::merge(&flags, &[]).and_then(|r| r.config()).expect("a configuration");
    let unit = Unit::new(Clock::system());
    let opened = assemble::open(&config, &unit).expect("the model opens");
    assemble::start(&config, &opened, &unit).expect("the model loads");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let stop = CancellationToken::new();
    let state = serve_state(&config, &opened, &unit);
    let key = folder.map(|folder| {
        let limits = Limits {
            requests_per_minute: Some(1 << 40),
            tokens_per_minute: Some(1 << 40),
            concurrent: Some(1 << 20),
            tokens_per_day: Some(1 << 50),
            joules_per_day: Some(1e15),
        };
        let scopes = Scopes { models: vec![model.into()], ..Scopes::default() };
        (state.config.access.create("bench", scopes, limits).expect("a key").secret, folder)
    });
    let server = hashwatt::api::Server::default().run(listener, state, stop.clone());
    runtime.spawn(server);
    Started { key, runtime, service: opened.service, url, stop }
}

/// Seconds of CPU time of this process.
fn cpu_seconds() -> f64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is to a rusage, which the call fills; all zeroes is a valid one too.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    let seconds = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 * 1e-6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

/// (tokens a second, CPU seconds a token) of the load in this process.
fn in_process(started: &Started, load: Load) -> (f64, f64) {
    let (clock, cpu) = (Clock::system(), cpu_seconds());
    let begin = clock.now();
    let tokens = started.runtime.block_on(async {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let service = started.service.clone();
                tokio::spawn(async move {
                    let mut tokens = 0;
                    for request in 0..load.requests {
                        let body = body(load, client, request);
                        let parsed = CompletionRequest::parse(body.as_bytes(), UnknownParameters::Refuse);
                        let mut generation = service.complete(&parsed.expect("a request")).expect("room");
                        while let Some(delta) = generation.next().await {
                            assert!(!matches!(delta, Delta::Failed(_)), "{delta:?}");
                        }
                        tokens += generation.usage().completion_tokens;
                    }
                    tokens
                })
            })
            .collect();
        let mut tokens = 0;
        for client in clients {
            tokens += client.await.expect("a client");
        }
        tokens
    }) as f64;
    (tokens / clock.now().since(begin).as_secs_f64(), (cpu_seconds() - cpu) / tokens)
}

/// The same over HTTP, the clients in another process.
fn over_http(started: &Started, load: Load) -> (f64, f64) {
    let numbers = [load.requests, load.prompt, load.generate].map(|n| n.to_string());
    let cpu = cpu_seconds();
    let out = Command::new(std::env::current_exe().expect("this program"))
        .arg("http-client")
        .arg(&started.url)
        .args(numbers)
        .envs(started.key.as_ref().map(|(key, _)| (KEY, key)))
        .output()
        .expect("the clients run");
    let cpu = cpu_seconds() - cpu;
    let text = String::from_utf8_lossy(&out.stdout);
    let figures: Vec<f64> = text.split_whitespace().filter_map(|w| w.parse().ok()).collect();
    let [tokens, seconds] = figures[..] else { panic!("the clients said {text:?}") };
    (tokens / seconds, cpu / tokens)
}

/// The clients' process: prints the tokens that came and the seconds it took.
pub fn client(url: &str, numbers: &[String]) {
    let n = |i: usize| numbers.get(i).and_then(|n| n.parse().ok()).expect("three numbers");
    let load = Load { requests: n(0), prompt: n(1), generate: n(2) };
    let key = std::env::var(KEY).ok();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let clock = Clock::system();
    let begin = clock.now();
    let tokens: usize = runtime.block_on(async {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let connection = Client::new(url).expect("a URL").with_api_key(key.clone());
                tokio::spawn(async move {
                    let mut tokens = 0;
                    for request in 0..load.requests {
                        let body = body(load, client, request);
                        let mut answer = connection
                            .post_json("/v1/completions", body.as_bytes())
                            .await
                            .expect("an answer");
                        assert_eq!(answer.status, 200);
                        let mut finished = false;
                        while let Some(event) =
                            answer.next_event().await.expect("a stream").filter(|e| !e.is_done())
                        {
                            let chunk: Value = serde_json::from_str(&event.data).expect("JSON");
                            finished |=
                                chunk.pointer("/choices/0/finish_reason").is_some_and(|r| r == "length");
                        }
                        assert!(finished, "every token was streamed");
                        tokens += load.generate;
                    }
                    tokens
                })
            })
            .collect();
        let mut tokens = 0;
        for client in clients {
            tokens += client.await.expect("a client");
        }
        tokens
    });
    println!("{tokens} {}", clock.now().since(begin).as_secs_f64());
}

/// Rounds of (in process, over HTTP), in alternating order, after one that warms up.
fn rounds(started: &Started, load: Load, count: usize) -> Vec<[(f64, f64); 2]> {
    let mut all = Vec::new();
    for round in 0..=count {
        let pair = if round % 2 == 0 {
            let here = in_process(started, load);
            [here, over_http(started, load)]
        } else {
            let there = over_http(started, load);
            [in_process(started, load), there]
        };
        if round > 0 {
            all.push(pair);
        }
    }
    all
}

pub fn run(report: &mut Report) {
    let started = start("synthetic:qwen3-0.6b", false);
    let load = Load { requests: 1, prompt: 16, generate: 64 };
    let all = rounds(&started, load, 9);
    let [here, there] = [0, 1].map(|i| all.iter().map(|r| r[i].0).collect::<Vec<f64>>());
    report.row("qwen3-0.6b, 16 clients, in process", "token/s", &here, None);
    report.row("qwen3-0.6b, 16 clients, over HTTP", "token/s", &there, None);
    report.ratio("HTTP streaming ÷ in process", &there, &here, 0.97);
    started.stop.cancel();
    started.runtime.shutdown_timeout(Duration::from_secs(5));

    let started = start("demo", false);
    let load = Load { requests: 8, prompt: 16, generate: 128 };
    let all = rounds(&started, load, 7);
    let [here, there] = [0, 1].map(|i| all.iter().map(|r| r[i].1 * 1e6).collect::<Vec<f64>>());
    let extra: Vec<f64> = there.iter().zip(&here).map(|(t, h)| t - h).collect();
    report.row("demo, CPU per token in process", "µs", &here, None);
    report.row("demo, CPU per token over HTTP", "µs", &there, None);
    report.row("demo, CPU per token that HTTP adds", "µs", &extra, Some(("≤", 20.0)));
    started.stop.cancel();
}

/// What a request costs before and behind the service, a key with every limit and a record of its use included:
/// requests of one token, so that a request and a token are one.
pub fn layers(report: &mut Report) {
    let started = start("demo", true);
    let load = Load { requests: 100, prompt: 4, generate: 1 };
    let all = rounds(&started, load, 9);
    let [here, there] = [0, 1].map(|i| all.iter().map(|r| r[i].1 * 1e6).collect::<Vec<f64>>());
    let extra: Vec<f64> = there.iter().zip(&here).map(|(t, h)| t - h).collect();
    report.row("demo, CPU per request of a token in process", "µs", &here, None);
    report.row("the same with a key over HTTP, streamed", "µs", &there, None);
    report.row("HTTP, middleware, auth, limits and accounting", "µs", &extra, Some(("≤", 150.0)));
    started.stop.cancel();
}
