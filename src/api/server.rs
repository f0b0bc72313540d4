//! The accept loop: sockets in, hyper connections on the router, an orderly end.
//!
//! `axum::serve` sets no timer, so its header timeout never fires; hence our own loop, with limits on
//! heads, time and connections. On shutdown the unit drains (new work is refused, probes are still
//! answered) until no request is in flight; then connections close, and [`Server::run`] returns.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tower::ServiceExt;

use crate::api::connection::{Activity, Phase, TimeLimits, WatchedBody, WatchedIo, watch};
use crate::api::error::ApiError;
use crate::api::tls::Tls;
use crate::api::{ApiState, router};
use crate::metrics::Recorded;

/// Longest request head; more is answered 431.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// Most headers of a request; more is answered 431.
const MAX_HEADERS: usize = 100;
/// Connections over the limit that are told so at the same time; more are closed without a word.
const MAX_REFUSALS: usize = 64;
/// Limits of the socket side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerConfig {
    pub max_connections: usize,
    pub limits: TimeLimits,
    /// For connections to end after the last request was answered.
    pub close_timeout: Duration,
}

impl Default for ServerConfig {
    fn default() -> Self {
        ServerConfig {
            max_connections: 8192,
            limits: TimeLimits::default(),
            close_timeout: Duration::from_secs(5),
        }
    }
}

/// Serves HTTP/1.1 on a listener, in TLS where there is a certificate.
#[derive(Clone, Default)]
pub struct Server {
    pub config: ServerConfig,
    pub tls: Option<Arc<Tls>>,
}

/// What all connections share.
struct Shared {
    router: Router,
    state: Arc<ApiState>,
    limits: TimeLimits,
    tls: Option<Arc<Tls>>,
    /// One token a request in flight.
    requests: TaskTracker,
    /// One task a connection.
    connections: TaskTracker,
    permits: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
    draining: CancellationToken,
    closing: CancellationToken,
}

impl Server {
    pub fn new(config: ServerConfig) -> Server {
        Server { config, tls: None }
    }

    /// Serves until `shutdown` is cancelled and what runs then has ended. The caller limits how long
    /// that may take by `Unit::abort`, which ends every generation with an error event.
    ///
    /// # Errors
    /// None at present: a failing `accept` is tried again.
    pub async fn run(
        self,
        listener: TcpListener,
        state: Arc<ApiState>,
        shutdown: CancellationToken,
    ) -> io::Result<()> {
        self.run_router(listener, router(state.clone()), state, shutdown).await
    }

    /// As [`Server::run`], with routes of the caller's choice.
    pub(super) async fn run_router(
        self,
        listener: TcpListener,
        router: Router,
        state: Arc<ApiState>,
        shutdown: CancellationToken,
    ) -> io::Result<()> {
        let shared = Arc::new(Shared {
            router,
            state,
            limits: self.config.limits,
            tls: self.tls,
            requests: TaskTracker::new(),
            connections: TaskTracker::new(),
            permits: Arc::new(Semaphore::new(self.config.max_connections)),
            refusals: Arc::new(Semaphore::new(MAX_REFUSALS)),
            draining: shutdown.clone(),
            closing: CancellationToken::new(),
        });
        {
            let mut accepting = pin!(accept(&listener, &shared));
            tokio::select! {
                () = accepting.as_mut() => {}
                () = shutdown.cancelled() => {}
            }
            shared.state.service.unit().drain();
            shared.requests.close();
            tokio::select! {
                () = accepting => {}
                () = shared.requests.wait() => {}
            }
        }
        drop(listener);
        shared.closing.cancel();
        shared.connections.close();
        // Those that do not end in time end with the runtime.
        let _ = tokio::time::timeout(self.config.close_timeout, shared.connections.wait()).await;
        Ok(())
    }
}

/// Takes connections for ever.
async fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => match shared.permits.clone().try_acquire_owned() {
                Ok(permit) => {
                    shared.connections.spawn(serve(stream, shared.clone(), permit));
                }
                // In TLS an answer would cost more than the connection.
                Err(_) if shared.tls.is_some() => {}
                Err(_) => {
                    if let Ok(permit) = shared.refusals.clone().try_acquire_owned() {
                        shared.connections.spawn(refuse(stream, shared.limits.linger, permit));
                    }
                }
            },
            // The peer left before we came to it: nothing is wrong here.
            Err(e)
                if matches!(e.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) => {}
            Err(e) => {
                // Most likely out of file descriptors; some come back as connections end.
                tracing::warn!(error = %e, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Says that there are too many connections, to those who listen.
async fn refuse(mut stream: TcpStream, linger: Duration, _permit: OwnedSemaphorePermit) {
    let body = ApiError::overloaded("Too many open connections").json();
    let mut answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n\
         retry-after-ms: 1000\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    answer.extend(body);
    let mut scratch = [0u8; 1024];
    let talk = async {
        stream.write_all(&answer).await?;
        stream.shutdown().await?;
        while stream.read(&mut scratch).await? > 0 {}
        io::Result::Ok(())
    };
    // Best effort: whatever goes wrong, the socket closes.
    let _ = tokio::time::timeout(linger, talk).await;
}

/// One connection from its first byte to its last.
async fn serve(stream: TcpStream, shared: Arc<Shared>, _permit: OwnedSemaphorePermit) {
    // Each event is its own small write; without this, Nagle holds it back for the last one's ACK.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let Some(tls) = shared.tls.clone() else { return talk(stream, shared).await };
    // As long as a head may take.
    match tokio::time::timeout(shared.limits.header, tls.acceptor().accept(stream)).await {
        Ok(Ok(stream)) => talk(stream, shared).await,
        Ok(Err(e)) => tracing::debug!(error = %e, "no TLS came of a connection"),
        Err(_) => tracing::debug!("a TLS handshake took too long"),
    }
}

/// HTTP on a connection that stands.
async fn talk<S: AsyncRead + AsyncWrite + Unpin>(stream: S, shared: Arc<Shared>) {
    let recorded = shared.state.metrics.recorded().clone();
    let _counted = Counted::new(recorded, |r| &r.connections);
    let activity = Activity::new(shared.state.service.unit().clock().clone());
    let service = ConnectionService { shared: shared.clone(), activity: activity.clone() };
    let io = TokioIo::new(WatchedIo { inner: stream, activity: activity.clone() });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        // The watchdog knows head and idle apart; this is the net beneath it.
        .header_read_timeout(shared.limits.header + shared.limits.idle)
        .max_headers(MAX_HEADERS)
        .max_header_size(MAX_HEAD_BYTES)
        .max_buf_size(MAX_HEAD_BYTES);
    let mut connection = pin!(builder.serve_connection(io, service));
    let mut watching = pin!(watch(activity, shared.limits));
    // A child token has a lock of its own: all connections poll theirs at every token.
    let closing = shared.closing.child_token();
    let mut closing = pin!(closing.cancelled());
    let mut asked = false;
    loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => {
                if let Err(e) = ended {
                    tracing::debug!(error = %e, "a connection ended early");
                }
                return;
            }
            why = watching.as_mut() => {
                tracing::debug!(why, "closing a connection");
                return;
            }
            () = closing.as_mut(), if !asked => {
                asked = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Adds one to a counter of the metrics while it lives.
pub(super) struct Counted {
    recorded: Arc<Recorded>,
    counter: fn(&Recorded) -> &std::sync::atomic::AtomicUsize,
}

impl Counted {
    fn new(recorded: Arc<Recorded>, counter: fn(&Recorded) -> &std::sync::atomic::AtomicUsize) -> Counted {
        counter(&recorded).fetch_add(1, Ordering::Relaxed);
        Counted { recorded, counter }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.counter)(&self.recorded).fetch_sub(1, Ordering::Relaxed);
    }
}

type InFlight = (TaskTrackerToken, Counted);

/// The router as hyper sees it, reporting phases.
struct ConnectionService {
    shared: Arc<Shared>,
    activity: Arc<Activity>,
}

impl hyper::service::Service<Request<Incoming>> for ConnectionService {
    type Response = Response<WatchedBody<Body, InFlight>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let shared = self.shared.clone();
        let activity = self.activity.clone();
        activity.enter(Phase::Serving);
        let counted = Counted::new(shared.state.metrics.recorded().clone(), |r| &r.in_flight);
        let in_flight = (shared.requests.token(), counted);
        Box::pin(async move {
            let answer = shared.router.clone().oneshot(request.map(Body::new)).await;
            let mut response = answer.unwrap_or_else(|never| match never {});
            // These may have left a body unread; closing on it would reset the connection under the answer.
            if matches!(
                response.status(),
                StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT | StatusCode::SERVICE_UNAVAILABLE
            ) {
                activity.linger();
            }
            if shared.draining.is_cancelled() {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(response.map(|inner| WatchedBody { inner, activity, _in_flight: in_flight }))
        })
    }
}
