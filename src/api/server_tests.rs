//! The server over real sockets with raw bytes: what attacks and clumsy clients get.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::access::Access;
use crate::api::test_engine::Pace;
use crate::api::testing::{Unit, eventually, exchange, quick_limits};

use crate::api::{ApiConfig, BodyLimits, ServerConfig, TimeLimits};
use crate::clock::Clock;

const SECOND: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(5);

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0)
}

/// Reads until the server closes; fails when it does not.
async fn until_closed(stream: &mut TcpStream) -> String {
    let mut seen = Vec::new();
    let mut buf = [0; 4096];
    loop {
        match timeout(PATIENCE, stream.read(&mut buf)).await.expect("the server keeps the connection") {
            Ok(0) | Err(_) => return String::from_utf8_lossy(&seen).into_owned(),
            Ok(n) => seen.extend_from_slice(&buf[..n]),
        }
    }
}

/// Sends a request on a connection that stays open and reads its answer (which has a length).
async fn ask(stream: &mut TcpStream, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    let mut buf = [0; 4096];
    loop {
        let n = timeout(PATIENCE, stream.read(&mut buf)).await.unwrap().unwrap();
        assert!(n > 0, "closed after {:?}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buf[..n]);
        let text = String::from_utf8_lossy(&seen).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|l| l.strip_prefix("content-length: "))
                .map_or(0, |n| n.parse::<usize>().unwrap());
            if body.len() >= length {
                return text;
            }
        }
    }
}

fn limited(limits: TimeLimits) -> ServerConfig {
    ServerConfig { limits, ..ServerConfig::default() }
}

#[tokio::test]
async fn a_slow_head_is_closed() {
    let unit = Unit::start(ApiConfig::default(), limited(quick_limits())).await;
    for start in ["", "GET /livez HTTP/1.1\r\nhost:"] {
        let mut stream = unit.connect().await;
        stream.write_all(start.as_bytes()).await.unwrap();
        assert_eq!(until_closed(&mut stream).await, "", "{start:?}");
    }
    // One byte now and then does not help.
    let mut stream = unit.connect().await;
    let drip = async {
        for byte in "GET /livez HTTP/1.1\r\nx-padding: aaaaaaaaaaaaaaaaaaaaaa".bytes() {
            if stream.write_all(&[byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        panic!("the connection outlived the limit");
    };
    timeout(PATIENCE, drip).await.unwrap();
}

#[tokio::test]
async fn an_idle_connection_has_longer_than_a_head() {
    let limits = TimeLimits { idle: SECOND, ..quick_limits() };
    let unit = Unit::start(ApiConfig::default(), limited(limits)).await;
    let mut stream = unit.connect().await;
    let request = "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n";
    assert_eq!(status(&ask(&mut stream, request).await), 200);
    tokio::time::sleep(limits.header * 2).await;
    assert_eq!(status(&ask(&mut stream, request).await), 200);
    assert_eq!(until_closed(&mut stream).await, "");
}

#[tokio::test]
async fn heads_are_bounded() {
    let unit = Unit::start(ApiConfig::default(), ServerConfig::default()).await;
    let long = format!("GET /livez HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "a".repeat(80 << 10));
    assert_eq!(status(&exchange(&unit, &long).await), 431);
    let many = format!("GET /livez HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(10_000));
    assert_eq!(status(&exchange(&unit, &many).await), 431);
    assert_eq!(status(&exchange(&unit, "GET /livez HTTP/9\r\n\r\n").await), 400);
    assert_eq!(status(&exchange(&unit, "GET /livez HTTP/1.1\r\nconnection: close\r\n\r\n").await), 200);
}

#[tokio::test]
async fn bodies_are_bounded_in_size_and_time() {
    let body = BodyLimits::new(1000, Duration::from_millis(150), 0);
    let unit = Unit::start(ApiConfig { body, ..ApiConfig::default() }, limited(quick_limits())).await;
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n";
    // Refused by its length, before a byte of it is sent.
    let answer = exchange(&unit, &format!("{head}content-length: 1001\r\n\r\n")).await;
    assert_eq!(status(&answer), 413);
    assert!(answer.contains("\"code\":\"payload_too_large\"") && answer.contains("connection: close"));
    let huge = format!("{head}content-length: 99999999999999999999\r\n\r\n");
    assert!(matches!(status(&exchange(&unit, &huge).await), 400 | 413));
    // Without a length as soon as it is over, and the client that goes on sending sees the answer.
    let chunk = format!("400\r\n{}\r\n", "x".repeat(1024));
    let endless = format!("{head}transfer-encoding: chunked\r\n\r\n{}", chunk.repeat(200));
    assert_eq!(status(&exchange(&unit, &endless).await), 413);
    // Too slow.
    let answer = exchange(&unit, &format!("{head}content-length: 10\r\n\r\n{{")).await;
    assert_eq!(status(&answer), 408);
    assert!(answer.contains("\"code\":\"request_timeout\""));
}

#[tokio::test]
async fn unknown_routes_and_wrong_methods() {
    let unit = Unit::start(ApiConfig::default(), ServerConfig::default()).await;
    let answer = exchange(&unit, "GET /v2/x HTTP/1.1\r\nconnection: close\r\n\r\n").await;
    assert_eq!(status(&answer), 404);
    assert!(answer.contains("\"code\":\"not_found\"") && answer.contains("application/json"));
    let answer = exchange(&unit, "DELETE /v1/models HTTP/1.1\r\nconnection: close\r\n\r\n").await;
    assert_eq!(status(&answer), 405);
    assert!(answer.contains("\"code\":\"method_not_allowed\""), "{answer}");
    assert!(answer.contains("allow: GET,HEAD"), "{answer}");
}

#[tokio::test]
async fn ids_and_versions_are_on_every_answer() {
    let unit = Unit::start(ApiConfig::default(), ServerConfig::default()).await;
    for path in ["/livez", "/nowhere"] {
        let ask = format!("GET {path} HTTP/1.1\r\nconnection: close\r\nx-request-id: a-B_1\r\n\r\n");
        let answer = exchange(&unit, &ask).await;
        assert!(answer.contains("\r\nx-request-id: a-B_1\r\n"), "{answer}");
        assert!(answer.contains("\r\nopenai-version: 2020-10-01\r\n"));
        assert!(answer.contains("\r\nopenai-processing-ms: "));
    }
    let ask = "GET /livez HTTP/1.1\r\nconnection: close\r\nx-request-id: a\x1b[0m\r\n\r\n";
    let answer = exchange(&unit, ask).await;
    assert!(!answer.contains('\x1b'));
}

#[tokio::test]
async fn a_key_opens_everything_but_the_probes() {
    let config = ApiConfig { access: Access::fixed(Some("secret"), Clock::system()), ..ApiConfig::default() };
    let unit = Unit::start(config, ServerConfig::default()).await;
    let get = |path: &str, key: &str| format!("GET {path} HTTP/1.1\r\nconnection: close\r\n{key}\r\n");
    for path in ["/livez", "/readyz", "/health"] {
        assert_ne!(status(&exchange(&unit, &get(path, "")).await), 401, "{path}");
    }
    for path in ["/v1/models", "/metrics", "/openapi.json", "/nowhere", "/livez/", "//livez", "/livez?x"] {
        let expected = if path == "/livez?x" { 200 } else { 401 };
        assert_eq!(status(&exchange(&unit, &get(path, "")).await), expected, "{path}");
    }
    let answer = exchange(&unit, &get("/metrics", "authorization: Bearer wrong\r\n")).await;
    assert_eq!(status(&answer), 401);
    assert!(answer.contains("www-authenticate: Bearer") && answer.contains("\"code\":\"invalid_api_key\""));
    assert_eq!(status(&exchange(&unit, &get("/metrics", "authorization: Bearer secret\r\n")).await), 200);
}

#[tokio::test]
async fn connections_are_limited() {
    let config = ServerConfig { max_connections: 2, ..ServerConfig::default() };
    let unit = Unit::start(ApiConfig::default(), config).await;
    let mut first = unit.connect().await;
    let _second = unit.connect().await;
    assert_eq!(status(&ask(&mut first, "GET /livez HTTP/1.1\r\n\r\n").await), 200);
    let refused = until_closed(&mut unit.connect().await).await;
    assert_eq!(status(&refused), 503);
    let (head, body) = refused.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("retry-after: 1") && head.contains(&format!("content-length: {}", body.len())));
    assert!(serde_json::from_str::<crate::wire::error::ErrorBody>(body).is_ok(), "{body:?}");
    drop(first);
    let again = async {
        while status(&exchange(&unit, "GET /livez HTTP/1.1\r\nconnection: close\r\n\r\n").await) != 200 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, again).await.unwrap();
}

#[tokio::test]
async fn a_panic_is_a_500_and_the_connection_lives() {
    let unit = Unit::start(ApiConfig::default(), ServerConfig::default()).await;
    let mut stream = unit.connect().await;
    let answer = ask(&mut stream, "GET /test/panic HTTP/1.1\r\n\r\n").await;
    assert_eq!(status(&answer), 500);
    assert!(answer.contains("\"code\":\"internal_error\"") && answer.contains("x-request-id"), "{answer}");
    assert_eq!(status(&ask(&mut stream, "GET /livez HTTP/1.1\r\n\r\n").await), 200);
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_request_streamed_or_not() {
    let unit = Unit::start(ApiConfig::default(), ServerConfig::default()).await;
    for path in ["/test/hang", "/test/stream/100000000"] {
        let mut stream = unit.connect().await;
        stream.write_all(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes()).await.unwrap();
        eventually("it runs", || unit.metric("hashwatt_http_requests_in_flight 1")).await;
        drop(stream);
        eventually("it ends", || unit.metric("hashwatt_http_requests_in_flight 0")).await;
    }
    eventually("both count as aborted", || {
        unit.metric("hashwatt_requests_finished_total{model_name=\"test\",finished_reason=\"abort\"} 2")
    })
    .await;
}

#[tokio::test]
async fn a_reader_that_stalls_is_dropped() {
    let unit = Unit::start(ApiConfig::default(), limited(quick_limits())).await;
    let mut stream = unit.connect().await;
    stream.write_all(b"GET /test/stream/100000000 HTTP/1.1\r\n\r\n").await.unwrap();
    eventually("it runs", || unit.metric("hashwatt_http_requests_in_flight 1")).await;
    eventually("it is dropped", || unit.metric("hashwatt_http_connections 0")).await;
    eventually("its generation ends", || unit.metric("hashwatt_http_requests_in_flight 0")).await;
}

#[tokio::test]
async fn shutdown_lets_what_runs_end_and_answers_probes_meanwhile() {
    let unit = Unit::start(ApiConfig::default(), ServerConfig::default()).await;
    let mut running = unit.connect().await;
    running.write_all(b"GET /test/stream/100000000 HTTP/1.1\r\n\r\n").await.unwrap();
    let mut idle = unit.connect().await;
    assert_eq!(status(&ask(&mut idle, "GET /livez HTTP/1.1\r\n\r\n").await), 200);
    eventually("it runs", || unit.metric("hashwatt_http_requests_in_flight 1")).await;
    unit.shutdown.cancel();
    // On an open connection and on a new one.
    let answer = ask(&mut idle, "GET /readyz HTTP/1.1\r\n\r\n").await;
    assert_eq!(status(&answer), 503);
    assert!(answer.contains("\"code\":\"draining\"") && answer.contains("retry-after-ms: "), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
    let answer = exchange(&unit, "GET /readyz HTTP/1.1\r\n\r\n").await;
    assert_eq!(status(&answer), 503);
    assert!(!unit.server.is_finished());
    let _idle = unit.connect().await;
    drop(running);
    timeout(PATIENCE, unit.server).await.expect("the server ends").unwrap().unwrap();
}

/// CPU time of the calling thread, in microseconds.
fn thread_cpu_us() -> f64 {
    // SAFETY: all-zero is a valid `rusage`, and the call only writes into it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_THREAD, &mut usage), 0);
        usage
    };
    let us = |t: libc::timeval| t.tv_sec as f64 * 1e6 + t.tv_usec as f64;
    us(usage.ru_utime) + us(usage.ru_stime)
}

/// What a streamed token costs the server's thread, detokenising included, when each is a frame of its
/// own: the dearest case. `cargo test --lib per_token -- --ignored --nocapture`
#[test]
#[ignore = "a measurement, not a check"]
fn per_token_cost() {
    use std::io::{Read, Write};
    const STREAMS: usize = 8;
    const TOKENS: usize = 2000;
    let (ports, port) = std::sync::mpsc::channel();
    let server = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let more = axum::Router::new();
            let unit = Unit::loading(ApiConfig::default(), ServerConfig::default(), more).await;
            unit.load(Pace { step: Duration::from_micros(500), ..Pace::default() });
            ports.send((unit.address, unit.shutdown.clone())).unwrap();
            let before = thread_cpu_us();
            unit.server.await.unwrap().unwrap();
            (thread_cpu_us() - before) / (STREAMS * TOKENS) as f64
        })
    });
    let (address, shutdown) = port.recv().unwrap();
    let body = format!(
        r#"{{"messages":[{{"role":"user","content":"x"}}],"stream":true,"seed":1,"max_tokens":{TOKENS}}}"#
    );
    let head = "POST /v1/chat/completions HTTP/1.1\r\nconnection: close\r\ncontent-length: ";
    let request = format!("{head}{}\r\n\r\n{body}", body.len());
    let read = move |request: String| {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        assert!(all.ends_with(b"data: [DONE]\n\n\r\n0\r\n\r\n"));
        all.windows(6).filter(|w| w == b"data: ").count()
    };
    let readers: Vec<_> = (0..STREAMS).map(|_| request.clone()).collect();
    let readers: Vec<_> = readers.into_iter().map(|r| std::thread::spawn(move || read(r))).collect();
    let events: usize = readers.into_iter().map(|r| r.join().unwrap()).sum();
    shutdown.cancel();
    println!("{:.2} µs a token, {events} events", server.join().unwrap());
}
