//! Who may ask: a layer over the whole router that lets nothing pass without a key but the probes.
//!
//! Only SHA-256 digests of keys are kept, and all of them are compared in constant time. Denial is
//! the default: a route that is added tomorrow is guarded, and so is one that does not exist.

use std::fmt;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::api::ApiState;
use crate::api::error::ApiError;

/// Paths that answer without a key, byte for byte.
pub const OPEN_PATHS: [&str; 3] = ["/livez", "/readyz", "/health"];

/// The keys of a unit; none means that everybody may ask.
#[derive(Clone, Default)]
pub struct ApiKeys {
    digests: Vec<[u8; 32]>,
}

impl ApiKeys {
    /// Empty strings are no keys.
    pub fn new<K: AsRef<str>>(keys: &[K]) -> ApiKeys {
        let digests = keys.iter().map(AsRef::as_ref).filter(|k| !k.is_empty());
        ApiKeys { digests: digests.map(|k| Sha256::digest(k.as_bytes()).into()).collect() }
    }

    pub fn is_open(&self) -> bool {
        self.digests.is_empty()
    }

    /// Whether the value of an `Authorization` header carries one of the keys.
    fn admits(&self, authorization: &[u8]) -> bool {
        let Some((scheme, key)) = authorization.split_at_checked(7) else { return false };
        if !scheme.eq_ignore_ascii_case(b"bearer ") {
            return false;
        }
        let digest: [u8; 32] = Sha256::digest(key.trim_ascii()).into();
        // No early exit: the time taken says neither which key nor how much of it fits.
        let found = self.digests.iter().fold(Choice::from(0), |found, d| found | d.ct_eq(&digest));
        found.into()
    }
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKeys({})", self.digests.len())
    }
}

pub async fn require_key(State(state): State<Arc<ApiState>>, request: Request, next: Next) -> Response {
    let keys = &state.config.keys;
    if keys.is_open() || OPEN_PATHS.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    match request.headers().get(header::AUTHORIZATION) {
        Some(value) if keys.admits(value.as_bytes()) => next.run(request).await,
        Some(_) => ApiError::unauthorized("Incorrect API key provided").into_response(),
        None => {
            ApiError::unauthorized("No API key: send it as `Authorization: Bearer <key>`").into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admission() {
        let keys = ApiKeys::new(&["one", "", "two"]);
        assert_eq!(format!("{keys:?}"), "ApiKeys(2)");
        for good in ["Bearer one", "bearer two", "Bearer  one "] {
            assert!(keys.admits(good.as_bytes()), "{good}");
        }
        for bad in ["", "Bearer", "Bearer ", "Bearer on", "Bearer onee", "Basic one", "one", "Bearer one two"]
        {
            assert!(!keys.admits(bad.as_bytes()), "{bad}");
        }
        assert!(ApiKeys::new::<&str>(&[]).is_open() && ApiKeys::new(&[""]).is_open());
    }
}
