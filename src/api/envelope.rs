//! What every answer carries: a request id, the time taken, the API version. And the last net: a
//! handler that panics is answered 500, the process goes on.
//!
//! A client's `x-request-id` is echoed when it is harmless in logs and headers; else a fresh one is
//! made.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::api::ApiState;
use crate::api::error::ApiError;

pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const PROCESSING_MS: HeaderName = HeaderName::from_static("openai-processing-ms");
const VERSION: HeaderName = HeaderName::from_static("openai-version");
const MAX_ID: usize = 128;

/// The id of a request, for handlers and logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId(pub HeaderValue);

fn is_harmless(id: &[u8]) -> bool {
    (1..=MAX_ID).contains(&id.len())
        && id.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

/// Thirty-two random hexadecimal digits.
pub fn random_hex() -> String {
    let mut bytes = [0u8; 16];
    // Without randomness ids repeat, which costs a log line its uniqueness, not a request its answer.
    if getrandom::fill(&mut bytes).is_err() {
        tracing::warn!("the system gives no random bytes");
    }
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

impl RequestId {
    fn of(request: &Request) -> RequestId {
        let sent = request.headers().get(REQUEST_ID).filter(|v| is_harmless(v.as_bytes()));
        let fresh = || HeaderValue::from_str(&random_hex());
        RequestId(sent.cloned().map_or_else(fresh, Ok).unwrap_or(HeaderValue::from_static("none")))
    }
}

/// The outermost layer.
pub async fn wrap(State(state): State<Arc<ApiState>>, mut request: Request, next: Next) -> Response {
    let clock = state.service.unit().clock();
    let began = clock.now();
    let id = RequestId::of(&request);
    request.extensions_mut().insert(id.clone());
    let mut response = match catch_panic(next.run(request)).await {
        Ok(response) => response,
        Err(what) => {
            tracing::error!(request_id = ?id.0, panic = what, "a handler panicked");
            ApiError::internal("The server failed while handling this request").into_response()
        }
    };
    state.metrics.recorded().answered(response.status().as_u16());
    let took = clock.now().since(began).as_millis() as u64;
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, id.0);
    headers.insert(PROCESSING_MS, HeaderValue::from(took));
    headers.insert(VERSION, HeaderValue::from_static("2020-10-01"));
    response
}

/// Polls a future; a panic inside becomes an error with its message, if that is a fixed one.
///
/// Unwind safety: the future is dropped after a panic, never polled again, and what it shared with
/// others are atomics and channels.
pub async fn catch_panic<F: Future>(future: F) -> Result<F::Output, &'static str> {
    let mut future = pin!(future);
    std::future::poll_fn(move |cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Ok),
        Err(payload) => Poll::Ready(Err(panic_message(&*payload))),
    })
    .await
}

/// Formatted messages may hold a client's text, so only literal ones are told.
pub fn panic_message(payload: &(dyn Any + Send)) -> &'static str {
    payload.downcast_ref::<&'static str>().copied().unwrap_or("(formatted message withheld)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        assert!(is_harmless(b"a-B_9"));
        assert!(!is_harmless(b"") && !is_harmless(b"a b") && !is_harmless(b"a\x1b[0m"));
        assert!(is_harmless(&[b'a'; 128]) && !is_harmless(&[b'a'; 129]));
        let id = random_hex();
        assert!(id.len() == 32 && id != random_hex());
    }

    #[tokio::test]
    async fn panics_become_errors() {
        assert_eq!(catch_panic(async { 7 }).await, Ok(7));
        assert_eq!(catch_panic(async { panic!("plain") }).await, Err::<(), _>("plain"));
    }
}
