//! Reading a request's body within bounds: its size, its time, and the memory of all bodies together.
//!
//! A `Content-Length` over the limit is refused before a byte is read; a body without one as soon as
//! it is over. Compressed bodies are not decompressed: there is no bomb to send.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, header};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::api::error::ApiError;

/// Memory is handed out in pieces of this size.
const PIECE: usize = 64 << 10;

/// Limits on bodies; clones share the memory.
#[derive(Debug, Clone)]
pub struct BodyLimits {
    pub max_bytes: usize,
    pub timeout: Duration,
    pieces: Arc<Semaphore>,
}

impl BodyLimits {
    /// `total_bytes` bounds all bodies that are being read or parsed at a time.
    pub fn new(max_bytes: usize, timeout: Duration, total_bytes: usize) -> BodyLimits {
        let pieces = (total_bytes.max(max_bytes) / PIECE + 1).min(Semaphore::MAX_PERMITS);
        BodyLimits { max_bytes, timeout, pieces: Arc::new(Semaphore::new(pieces)) }
    }
}

impl Default for BodyLimits {
    fn default() -> Self {
        BodyLimits::new(8 << 20, Duration::from_secs(60), 512 << 20)
    }
}

/// A body that was read, and the memory it is allowed.
#[derive(Debug)]
pub struct ReadBody {
    pub bytes: Vec<u8>,
    _memory: Option<OwnedSemaphorePermit>,
}

impl BodyLimits {
    /// # Errors
    /// 413 over the limit, 408 when it takes too long, 400 when it breaks off, 503 when other bodies
    /// hold the memory.
    pub async fn read(&self, headers: &HeaderMap, body: Body) -> Result<ReadBody, ApiError> {
        let length = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        if length.is_some_and(|n| n > self.max_bytes as u64) {
            return Err(ApiError::too_large(self.max_bytes));
        }
        match tokio::time::timeout(self.timeout, self.collect(body)).await {
            Ok(read) => read,
            Err(_) => Err(ApiError::too_slow(self.timeout)),
        }
    }

    async fn collect(&self, mut body: Body) -> Result<ReadBody, ApiError> {
        let mut bytes = Vec::new();
        let mut memory: Option<OwnedSemaphorePermit> = None;
        while let Some(frame) = body.frame().await {
            let broken = |_| ApiError::invalid("The request body broke off", None);
            let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
            if bytes.len() + data.len() > self.max_bytes {
                return Err(ApiError::too_large(self.max_bytes));
            }
            let held = memory.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
            let needed = (bytes.len() + data.len()).div_ceil(PIECE);
            if needed > held {
                let more = u32::try_from(needed - held).unwrap_or(u32::MAX);
                let more = self.pieces.clone().try_acquire_many_owned(more).map_err(|_| {
                    ApiError::overloaded("Too many large requests are being read at the same time")
                })?;
                match &mut memory {
                    Some(memory) => memory.merge(more),
                    None => memory = Some(more),
                }
            }
            bytes.extend_from_slice(&data);
        }
        Ok(ReadBody { bytes, _memory: memory })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn at_the_limit_and_over_it() {
        let limits = BodyLimits::new(10, Duration::from_secs(1), 0);
        let read = limits.read(&HeaderMap::new(), Body::from("0123456789")).await.unwrap();
        assert_eq!(read.bytes, b"0123456789");
        let over = limits.read(&HeaderMap::new(), Body::from("0123456789x")).await;
        assert_eq!(over.unwrap_err().status, 413);
        let mut headers = HeaderMap::new();
        headers.insert("content-length", "11".parse().unwrap());
        assert_eq!(limits.read(&headers, Body::empty()).await.unwrap_err().status, 413);
    }

    #[tokio::test]
    async fn memory_is_shared_and_given_back() {
        let limits = BodyLimits::new(PIECE * 2, Duration::from_secs(1), 0);
        let headers = HeaderMap::new();
        let full = || limits.read(&headers, Body::from(vec![b'x'; PIECE * 2]));
        let first = full().await.unwrap();
        assert_eq!(full().await.unwrap_err().status, 503);
        drop(first);
        assert!(full().await.is_ok());
    }
}
