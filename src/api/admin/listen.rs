//! The admin listeners: a socket of this user's, which asks the kernel who is there, and ports, which ask for a token.
//!
//! Few connections at a time and short requests: no stream is ever answered here.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::header;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use subtle::ConstantTimeEq;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::access::{bearer, digest};
use crate::api::error::ApiError;

const MAX_CONNECTIONS: usize = 64;
/// For a request and its answer; a backup of a large file takes the most.
const LONGEST: Duration = Duration::from_secs(600);
const HEADER: Duration = Duration::from_secs(10);

/// What a port wants to be shown. Only its digest is kept.
#[derive(Clone)]
pub struct Token([u8; 32]);

impl Token {
    pub fn new(text: &str) -> Token {
        Token(digest(text.as_bytes()))
    }

    fn admits(&self, request: &Request) -> bool {
        let value = request.headers().get(header::AUTHORIZATION);
        let key = value.and_then(|value| bearer(value.as_bytes()));
        key.is_some_and(|key| bool::from(digest(key).ct_eq(&self.0)))
    }
}

/// A place where the operator is listened to.
pub enum AdminListener {
    Socket(UnixListener),
    Port { listener: TcpListener, token: Token },
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("a living unit listens on {}", .0.display())]
    Held(PathBuf),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// Listens on a socket that only its owner may use; one that a dead process left is replaced.
///
/// # Errors
/// One that somebody listens on, a file that is no socket, a folder that cannot be written.
pub async fn bind_socket(path: &Path) -> Result<AdminListener, BindError> {
    let io = |source| BindError::Io { path: path.to_owned(), source };
    if UnixStream::connect(path).await.is_ok() {
        return Err(BindError::Held(path.to_owned()));
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io(io::Error::new(io::ErrorKind::AlreadyExists, "is there and is no socket")));
        }
        _ => {}
    }
    // Made under another name, so that it is never open to others and never half there.
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".{}", std::process::id()));
    let fresh = PathBuf::from(fresh);
    let _ = std::fs::remove_file(&fresh);
    let listener = UnixListener::bind(&fresh).map_err(io)?;
    let placed = std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))
        .and_then(|()| std::fs::rename(&fresh, path));
    placed.inspect_err(|_| drop(std::fs::remove_file(&fresh))).map_err(io)?;
    Ok(AdminListener::Socket(listener))
}

/// Whether the kernel says that a peer is this user, or root.
fn is_own(stream: &UnixStream) -> bool {
    // SAFETY: takes nothing, always succeeds.
    let own = unsafe { libc::geteuid() };
    stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}

impl AdminListener {
    /// Answers until `shutdown`.
    pub async fn serve(self, router: Router, shutdown: CancellationToken) {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        match self {
            AdminListener::Socket(listener) => {
                let accept = || async {
                    let (stream, _) = listener.accept().await?;
                    Ok(is_own(&stream).then_some(stream))
                };
                take(accept, router, &permits, &shutdown).await;
            }
            AdminListener::Port { listener, token } => {
                let ask = move |request: Request, next: Next| {
                    let admitted = token.admits(&request);
                    async move { if admitted { next.run(request).await } else { refused() } }
                };
                let accept = || async { listener.accept().await.map(|(stream, _)| Some(stream)) };
                take(accept, router.layer(from_fn(ask)), &permits, &shutdown).await;
            }
        }
    }
}

fn refused() -> Response {
    ApiError::unauthorized("The admin token is wrong or missing: `Authorization: Bearer <token>`")
        .into_response()
}

async fn take<S, F>(
    accept: impl Fn() -> F,
    router: Router,
    permits: &Arc<Semaphore>,
    shutdown: &CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = io::Result<Option<S>>>,
{
    loop {
        let accepted = tokio::select! {
            accepted = accept() => accepted,
            () = shutdown.cancelled() => return,
        };
        match accepted {
            Ok(Some(stream)) => {
                let Ok(permit) = permits.clone().try_acquire_owned() else { continue };
                let service = TowerToHyperService::new(router.clone());
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER)
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(async move {
                    // A client that goes is no news.
                    let _ = tokio::time::timeout(LONGEST, connection).await;
                    drop(permit);
                });
            }
            Ok(None) => tracing::warn!("another user tried the admin socket"),
            Err(error) => {
                tracing::warn!(%error, "cannot accept an admin connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}
