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
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::api::chunk::{ChunkWriter, Identity, Shape};
use crate::api::stream::{self, StreamParts};
use crate::api::tally::{Source, Tally};
use crate::api::{ApiConfig, ApiState, Server, ServerConfig, TimeLimits, engine_source, layered, routes};
use crate::clock::Clock;
use crate::metrics::{Metrics, MetricsConfig};
use crate::service::{Delta, Finish, Service, Timings, Usage};
use crate::unit;

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

impl Unit {
    pub async fn start(config: ApiConfig, server: ServerConfig) -> Unit {
        Unit::start_with(config, server, test_routes()).await
    }

    /// With further routes beside the real ones.
    pub async fn start_with(config: ApiConfig, server: ServerConfig, more: Router<Arc<ApiState>>) -> Unit {
        let unit = unit::Unit::new(Clock::system());
        let service = Arc::new(Service::stub(unit.clone()));
        let named = MetricsConfig { model_name: "test".into(), vllm_names: true };
        let metrics = Arc::new(Metrics::new(named, engine_source(unit)));
        let state = Arc::new(ApiState { service, metrics, config });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let router = layered(routes().merge(more), state.clone());
        let running = Server::new(server).run_router(listener, router, state.clone(), shutdown.clone());
        Unit { address, state, shutdown, server: tokio::spawn(running) }
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }
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

pub fn respond_with(state: &ApiState, generation: impl Source) -> Response {
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
pub struct Received(pub tokio::sync::mpsc::Receiver<Delta>);

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
