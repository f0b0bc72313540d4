//! A whole unit for tests: the real router and server on a loopback port, over an engine that counts.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::get;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::api::chunk::{ChunkWriter, Identity, Shape};
use crate::api::stream::{self, StreamParts};
use crate::api::tally::{Source, Tally};
use crate::api::test_engine::{self, Pace};
use crate::api::{ApiConfig, ApiState, Server, ServerConfig, TimeLimits, engine_source, layered, routes};
use crate::clock::Clock;
use crate::metrics::{Metrics, MetricsConfig};
use crate::service::{Delta, Finish, SamplingDefaults, ServedModel, Service, Timings, Usage};
use crate::text::chat_template::ChatTemplate;
use crate::text::tokenizer::{STAND_IN_TEMPLATE, Tokenizer};
use crate::unit;
use crate::wire::client::Client;

/// Limits that a test can wait for.
pub fn quick_limits() -> TimeLimits {
    TimeLimits {
        header: Duration::from_millis(200),
        idle: Duration::from_millis(400),
        write_stall: Duration::from_millis(300),
        linger: Duration::from_millis(200),
    }
}

pub struct Unit {
    pub address: SocketAddr,
    pub state: Arc<ApiState>,
    pub shutdown: CancellationToken,
    pub server: JoinHandle<std::io::Result<()>>,
}

/// What the engine says, over and over.
pub const REPLY: &str = "Grüße, world. ";

fn served(unit: &Arc<unit::Unit>, tokenizer: Arc<Tokenizer>) -> ServedModel {
    ServedModel {
        id: "demo/tiny".into(),
        aliases: vec!["tiny".into()],
        created: 1_700_000_000,
        max_model_len: 4096,
        vocab: tokenizer.vocab(),
        end_tokens: Vec::new(),
        tokenizer,
        template: Some(ChatTemplate::new(STAND_IN_TEMPLATE, "", "").unwrap()),
        thoughts: None,
        dialect: None,
        grammars: Default::default(),
        defaults: SamplingDefaults::default(),
        unit: unit.clone(),
    }
}

impl Unit {
    pub async fn start(config: ApiConfig, server: ServerConfig) -> Unit {
        Unit::start_with(config, server, test_routes()).await
    }

    /// With further routes beside the real ones.
    pub async fn start_with(config: ApiConfig, server: ServerConfig, more: Router<Arc<ApiState>>) -> Unit {
        let unit = Unit::loading(config, server, more).await;
        unit.load(Pace::default());
        unit
    }

    /// Without an engine yet.
    pub async fn loading(config: ApiConfig, server: ServerConfig, more: Router<Arc<ApiState>>) -> Unit {
        let unit = unit::Unit::new(Clock::system());
        let tokenizer = Arc::new(Tokenizer::stand_in(300).unwrap());
        let service = Arc::new(Service::new(vec![served(&unit, tokenizer)], unit.clone()));
        let named = MetricsConfig { model_name: "test".into(), vllm_names: true };
        let metrics = Arc::new(Metrics::new(named, engine_source(unit)));
        let state = ApiState::new(service, metrics, config);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let router = layered(routes().merge(more), state.clone());
        let running = Server::new(server).run_router(listener, router, state.clone(), shutdown.clone());
        Unit { address, state, shutdown, server: tokio::spawn(running) }
    }

    /// Gives it its engine.
    pub fn load(&self, pace: Pace) {
        let unit = self.state.service.unit();
        let reply = self.state.service.models()[0].tokenizer.encode(REPLY, false).unwrap();
        unit.open(vec![test_engine::start(unit.clock().clone(), pace, reply)]);
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    pub fn client(&self) -> Client {
        Client::new(&format!("http://{}", self.address)).unwrap()
    }

    /// Status and JSON of a POST.
    pub async fn post(&self, path: &str, body: &str) -> (u16, Value) {
        let mut response = self.client().post_json(path, body.as_bytes()).await.unwrap();
        let body = response.bytes().await.unwrap();
        (response.status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        let mut response = self.client().get(path).await.unwrap();
        let body = response.bytes().await.unwrap();
        (response.status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    /// The data of all events of a streamed POST.
    pub async fn stream(&self, path: &str, body: &str) -> Vec<String> {
        let mut response = self.client().post_json(path, body.as_bytes()).await.unwrap();
        assert_eq!(response.header("content-type"), Some("text/event-stream"), "{}", response.status);
        assert_eq!(response.header("cache-control"), Some("no-cache"));
        let mut events = Vec::new();
        while let Some(event) = response.next_event().await.unwrap() {
            events.push(event.data);
        }
        events
    }

    /// Whether a line of the metrics begins so.
    pub fn metric(&self, line: &str) -> bool {
        self.state.metrics.render(true).unwrap().lines().any(|l| l.starts_with(line))
    }
}

/// Waits for a condition, not for ever.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(5), waiting).await.is_ok(), "{what}");
}

fn test_routes() -> Router<Arc<ApiState>> {
    Router::new()
        .route("/test/panic", get(|| async { [0u8; 0][std::hint::black_box(1)].to_string() }))
        .route(
            "/test/hang",
            get(|State(state): State<Arc<ApiState>>| async move {
                // Counted as aborted when this future is dropped.
                let _tally = Tally::new(state.metrics.recorded().clone(), 1);
                std::future::pending::<()>().await;
            }),
        )
        .route("/test/stream/{tokens}", get(endless))
}

/// A stream of as many pieces of text, each ready at once.
async fn endless(State(state): State<Arc<ApiState>>, Path(tokens): Path<usize>) -> Response {
    let (tx, rx) = tokio::sync::mpsc::channel(64);
    tokio::spawn(async move {
        for _ in 0..tokens {
            let text = Delta::Text { choice: 0, text: " token".into(), logprobs: vec![] };
            if tx.send(text).await.is_err() {
                return;
            }
        }
        let _ = tx.send(Delta::Finish { choice: 0, reason: Finish::Length }).await;
    });
    respond_with(&state, Received(rx))
}

fn respond_with(state: &ApiState, generation: impl Source) -> Response {
    let identity = Identity {
        id: "chatcmpl-00000000000000000000000000000000".into(),
        created: 1_800_000_000,
        model: "test".into(),
        service_tier: None,
        system_fingerprint: None,
    };
    stream::respond(StreamParts {
        generation,
        writer: ChunkWriter::new(Shape::Chat, &identity, 1, false, false),
        tally: Tally::new(state.metrics.recorded().clone(), 1),
        clock: state.service.unit().clock().clone(),
        keep_alive: state.config.keep_alive,
        include_usage: false,
    })
}

/// Deltas from a channel.
struct Received(tokio::sync::mpsc::Receiver<Delta>);

impl futures_core::Stream for Received {
    type Item = Delta;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Delta>> {
        self.0.poll_recv(cx)
    }
}

impl Source for Received {
    fn usage(&self) -> Usage {
        Usage::default()
    }
    fn energy(&self) -> Option<crate::energy::RequestEnergy> {
        None
    }
    fn timings(&self) -> Timings {
        Timings::default()
    }
}

/// Sends bytes on a fresh connection and reads until the server closes it, however it does.
pub async fn exchange(unit: &Unit, request: &str) -> String {
    let stream = unit.connect().await;
    let (mut reading, mut writing) = stream.into_split();
    let request = request.to_owned();
    let sender = tokio::spawn(async move {
        // A server that has seen enough may close while this is being sent.
        let _ = writing.write_all(request.as_bytes()).await;
        writing
    });
    let mut seen = Vec::new();
    let mut buf = [0; 4096];
    let read = async {
        loop {
            match reading.read(&mut buf).await {
                Ok(0) | Err(_) => break,
                Ok(n) => seen.extend_from_slice(&buf[..n]),
            }
        }
    };
    let read = tokio::time::timeout(Duration::from_secs(5), read).await;
    assert!(read.is_ok(), "the server keeps the connection after {:?}", String::from_utf8_lossy(&seen));
    drop(sender.await);
    String::from_utf8_lossy(&seen).into_owned()
}
