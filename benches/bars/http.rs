//! What HTTP costs, and what stands before the service: the same load through the server and straight into the
//! service, alternating.
//!
//! The HTTP clients run in a process of their own, so that this process's CPU time is the server's.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use hashwatt::access::Access;
use hashwatt::api::ApiState;
use hashwatt::cli::{assemble, serve_state_with};
use hashwatt::clock::Clock;
use hashwatt::config::{Config, Resolved};
use hashwatt::service::{Delta, Service};
use hashwatt::store::{Limits, Scopes, Store};
use hashwatt::unit::Unit;
use hashwatt::wire::client::Client;
use hashwatt::wire::fields::UnknownParameters;
use hashwatt::wire::request::CompletionRequest;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::Report;

const CLIENTS: usize = 16;

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
    state: Arc<ApiState>,
    service: Arc<Service>,
    url: String,
    stop: CancellationToken,
}

fn start(model: &str, with_key: bool) -> Started {
    let folder = with_key.then(|| tempfile::tempdir().expect("a folder"));
    let flags = [
        ("model", model.to_string()),
        ("kv-memory", "1GiB".into()),
        ("enable-prefix-caching", "false".into()),
    ];
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
    let access = match &folder {
        Some(folder) => {
            let store = Store::open(folder.path()).expect("a store");
            Access::with_store(None, store, true, Clock::system()).expect("no keys yet")
        }
        None => Access::fixed(None, Clock::system()),
    };
    let state = serve_state_with(&config, &opened, &unit, access);
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
    let shown = state.clone();
    let server = hashwatt::api::Server::default().run(listener, state, stop.clone());
    runtime.spawn(server);
    // What a token costs is known from the first answer on: before, one request reserves all joules of its key.
    if let Some((key, _)) = &key {
        let client = Client::new(&url).expect("a URL").with_api_key(Some(key.clone()));
        let body = body(Load { requests: 1, prompt: 4, generate: 1 }, 0, 0);
        let asked = async { client.post_json("/v1/completions", body.as_bytes()).await?.bytes().await };
        runtime.block_on(asked).expect("an answer");
    }
    Started { key, runtime, state: shown, service: opened.service, url, stop }
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
        .args(started.key.as_ref().map(|(key, _)| key))
        .output()
        .expect("the clients run");
    let cpu = cpu_seconds() - cpu;
    let text = String::from_utf8_lossy(&out.stdout);
    let figures: Vec<f64> = text.split_whitespace().filter_map(|w| w.parse().ok()).collect();
    let [tokens, seconds] = figures[..] else {
        panic!("the clients said {text:?}: {}", String::from_utf8_lossy(&out.stderr))
    };
    (tokens / seconds, cpu / tokens)
}

/// The clients' process: prints the tokens that came and the seconds it took.
pub fn client(url: &str, numbers: &[String]) {
    let n = |i: usize| numbers.get(i).and_then(|n| n.parse().ok()).expect("three numbers");
    let load = Load { requests: n(0), prompt: n(1), generate: n(2) };
    let key = numbers.get(3).cloned();
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
                        if answer.status != 200 {
                            let body = answer.bytes().await.expect("a body");
                            panic!("{}: {}", answer.status, String::from_utf8_lossy(&body));
                        }
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
    report.ratio("HTTP streaming ÷ in process", &there, &here, Some(0.97));
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

/// What a request costs before and behind the service: the layers with a key and its limits around a small answer, in
/// one task; and of requests of one token over HTTP, with a key whose every limit is watched and whose use is recorded,
/// what that costs more than without.
pub fn layers(report: &mut Report) {
    let (open, started) = (start("demo", false), start("demo", true));
    let around: Vec<f64> = (0..9).map(|_| in_one_task(&started)).collect();
    let load = Load { requests: 100, prompt: 4, generate: 1 };
    let all: Vec<[f64; 2]> = (0..10)
        .map(|round| {
            let of = |started| over_http(started, load).1 * 1e6;
            let (first, second) = if round % 2 == 0 { (&open, &started) } else { (&started, &open) };
            let (first, second) = (of(first), of(second));
            if round % 2 == 0 { [first, second] } else { [second, first] }
        })
        .skip(1)
        .collect();
    let [without, with] = [0, 1].map(|i| all.iter().map(|r| r[i]).collect::<Vec<f64>>());
    let extra: Vec<f64> = with.iter().zip(&without).map(|(w, o)| w - o).collect();
    let together: Vec<f64> = extra.iter().zip(&around).map(|(e, a)| e + a).collect();
    report.row("all layers around GET /v1/models, in one task", "µs", &around, None);
    report.row("demo, CPU per request of a token over HTTP, open", "µs", &without, None);
    report.row("the same with a key, limits and usage", "µs", &with, None);
    report.row("key, limits and usage of a request", "µs", &extra, None);
    report.row("both: middleware, auth, limits and accounting", "µs", &together, Some(("≤", 150.0)));
    refused(&started, report);
    [open, started].iter().for_each(|started| started.stop.cancel());
}

/// Processor time of a small answer through all layers.
fn in_one_task(started: &Started) -> f64 {
    const TIMES: u32 = 2000;
    let bearer = started.key.as_ref().map(|(key, _)| format!("Bearer {key}")).unwrap_or_default();
    let router = hashwatt::api::router(started.state.clone());
    let before = cpu_seconds();
    started.runtime.block_on(async {
        for _ in 0..TIMES {
            let request = Request::get("/v1/models").header("authorization", &bearer).body(Body::empty());
            let answer = router.clone().oneshot(request.expect("a request")).await;
            assert!(answer.expect("an answer").headers().contains_key("x-ratelimit-limit-tokens"));
        }
    });
    (cpu_seconds() - before) * 1e6 / f64::from(TIMES)
}

/// How soon a request is refused when the queue is full and the engine works at what is before it.
fn refused(started: &Started, report: &mut Report) {
    const TIMES: usize = 20;
    let body = body(Load { requests: 1, prompt: 16, generate: 400 }, 0, 0);
    let parsed = CompletionRequest::parse(body.as_bytes(), UnknownParameters::Refuse).expect("a request");
    let clock = Clock::system();
    let client = Client::new(&started.url).expect("a URL");
    let client = client.with_api_key(started.key.as_ref().map(|(key, _)| key.clone()));
    let mut waiting = Vec::new();
    let times: Vec<f64> = started.runtime.block_on(async {
        let mut times = Vec::new();
        while times.len() < TIMES {
            while let Ok(generation) = started.service.complete(&parsed) {
                waiting.push(generation);
            }
            let begun = clock.now();
            let answer = client.post_json("/v1/completions", body.as_bytes()).await.expect("an answer");
            let took = clock.now().since(begun).as_secs_f64() * 1e3;
            // One may have come to its end between the two.
            if answer.status == 503 || answer.status == 429 {
                times.push(took);
            }
        }
        times
    });
    println!("{} requests run or wait", waiting.len());
    report.row("the next one is refused after", "ms", &times, Some(("≤", 50.0)));
}
