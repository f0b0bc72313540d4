//! From an error's class to an HTTP status and OpenAI's error object. The one place with this table.
//!
//! Retryable errors carry `Retry-After` (whole seconds) and `retry-after-ms` (what openai-python
//! reads first). The same object ends a stream that fails after its 200.

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::access::Refusal;
use crate::error::{Class, Classified};
use crate::service::{EngineError, ServiceError};
use crate::wire::error::{ErrorBody, ErrorObject};

const INVALID: &str = "invalid_request_error";
const SERVER: &str = "server_error";
pub const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// An answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    pub status: StatusCode,
    pub kind: &'static str,
    pub code: Option<&'static str>,
    pub param: Option<String>,
    pub message: String,
    pub retry_after: Option<Duration>,
}

impl ApiError {
    fn new(
        status: StatusCode,
        kind: &'static str,
        code: &'static str,
        message: impl Into<String>,
    ) -> ApiError {
        ApiError { status, kind, code: Some(code), param: None, message: message.into(), retry_after: None }
    }

    fn later(code: &'static str, message: impl Into<String>, retry_after: Duration) -> ApiError {
        let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, code, message);
        ApiError { retry_after: Some(retry_after), ..error }
    }

    pub fn invalid(message: impl Into<String>, param: Option<&str>) -> ApiError {
        ApiError {
            status: StatusCode::BAD_REQUEST,
            kind: INVALID,
            code: None,
            param: param.map(str::to_owned),
            message: message.into(),
            retry_after: None,
        }
    }

    pub fn unauthorized(message: &str) -> ApiError {
        ApiError::new(StatusCode::UNAUTHORIZED, INVALID, "invalid_api_key", message)
    }

    pub fn forbidden(code: &'static str, message: &str) -> ApiError {
        ApiError::new(StatusCode::FORBIDDEN, "permission_error", code, message)
    }

    pub fn not_found(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, INVALID, "not_found", message)
    }

    /// The caller's own limit.
    fn limited(code: &'static str, message: String, retry_after: Option<Duration>) -> ApiError {
        let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", code, message);
        ApiError { retry_after, ..error }
    }

    pub fn unknown_model(model: &str) -> ApiError {
        let message = format!("The model `{model}` does not exist");
        let error = ApiError::new(StatusCode::NOT_FOUND, INVALID, "model_not_found", message);
        ApiError { param: Some("model".into()), ..error }
    }

    pub fn unknown_route(method: &str, path: &str) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, INVALID, "not_found", format!("Unknown route: {method} {path}"))
    }

    pub fn wrong_method(method: &str, path: &str) -> ApiError {
        let message = format!("{path} does not answer {method}");
        ApiError::new(StatusCode::METHOD_NOT_ALLOWED, INVALID, "method_not_allowed", message)
    }

    pub fn too_large(limit: usize) -> ApiError {
        let message = format!("The request body is larger than {limit} bytes");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID, "payload_too_large", message)
    }

    pub fn too_slow(limit: Duration) -> ApiError {
        let message = format!("The request body was not complete within {} s", limit.as_secs_f32());
        ApiError::new(StatusCode::REQUEST_TIMEOUT, INVALID, "request_timeout", message)
    }

    pub fn overloaded(message: impl Into<String>) -> ApiError {
        ApiError::later("server_overloaded", message, Duration::from_secs(1))
    }

    pub fn loading() -> ApiError {
        ApiError::later("model_loading", "The model is still loading", Duration::from_secs(5))
    }

    pub fn draining() -> ApiError {
        ApiError::later("draining", "The unit is shutting down", Duration::from_secs(5))
    }

    pub fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, SERVER, "internal_error", message)
    }

    /// The unit is open but no engine gives a sign of life.
    pub fn engine_down(message: impl Into<String>) -> ApiError {
        ApiError::later("internal_error", message, Duration::from_secs(10))
    }

    pub fn body(&self) -> ErrorBody {
        ErrorBody {
            error: ErrorObject {
                message: self.message.clone(),
                kind: self.kind.into(),
                param: self.param.clone(),
                code: self.code.map(Into::into),
            },
        }
    }

    /// The error object as JSON.
    pub fn json(&self) -> Vec<u8> {
        // Strings only: serialising them cannot fail.
        serde_json::to_vec(&self.body()).unwrap_or_default()
    }
}

impl From<ServiceError> for ApiError {
    fn from(error: ServiceError) -> ApiError {
        match error {
            ServiceError::UnknownModel(model) => ApiError::unknown_model(&model),
            ServiceError::Invalid { message, param, code } => {
                ApiError { code, param, ..ApiError::invalid(message, None) }
            }
            ServiceError::Engine(EngineError::Loading) => ApiError::loading(),
            // A grammar that grew too complex on the way: its writer can simplify it.
            ServiceError::Engine(error @ EngineError::Constraint(_)) => {
                ApiError::invalid(error.to_string(), None)
            }
            ServiceError::Engine(EngineError::Stopping | EngineError::Aborted) => ApiError::draining(),
            ServiceError::Refused(refusal) => refusal.into(),
            error => of_class(error.class(), error.to_string()),
        }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> ApiError {
        let message = refusal.to_string();
        match refusal {
            Refusal::Rate { retry_after, .. } => {
                ApiError::limited("rate_limit_exceeded", message, Some(retry_after))
            }
            Refusal::Quota { retry_after, .. } => {
                ApiError::limited("insufficient_quota", message, Some(retry_after))
            }
            Refusal::TooLarge { answers, .. } => {
                let error = ApiError::limited("rate_limit_exceeded", message, None);
                ApiError { param: answers.then(|| "max_tokens".into()), ..error }
            }
            Refusal::Forbidden { what, .. } => {
                let (code, param) = match what {
                    "the model" => ("model_not_allowed", Some("model")),
                    "the service tier" => ("tier_not_allowed", Some("service_tier")),
                    _ => ("endpoint_not_allowed", None),
                };
                ApiError { param: param.map(Into::into), ..ApiError::forbidden(code, &message) }
            }
            Refusal::NoMeter => ApiError::later("meter_unavailable", message, Duration::from_secs(10)),
        }
    }
}

fn of_class(class: Class, message: String) -> ApiError {
    match class {
        Class::InvalidRequest => {
            // Only the engine's own bounds come this way: the prompt does not fit the device's cache.
            ApiError { code: Some("context_length_exceeded"), ..ApiError::invalid(message, None) }
        }
        Class::NotFound => ApiError::new(StatusCode::NOT_FOUND, INVALID, "not_found", message),
        Class::TooLarge => {
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID, "payload_too_large", message)
        }
        Class::Overloaded => ApiError::overloaded(message),
        Class::Unavailable => ApiError::engine_down(message),
        Class::Internal | Class::Configuration => ApiError::internal(message),
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, self.json()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(after) = self.retry_after {
            // Rounded up: who comes then is let in.
            let ms = after.as_nanos().div_ceil(1_000_000) as u64;
            headers.insert(header::RETRY_AFTER, HeaderValue::from(ms.div_ceil(1000).max(1)));
            headers.insert(RETRY_AFTER_MS, HeaderValue::from(ms));
        }
        match self.status {
            // It would be refused again.
            StatusCode::TOO_MANY_REQUESTS if self.retry_after.is_none() => {
                headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
            }
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            // The rest of the body is not read, so the connection cannot be used again.
            StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::ConstraintError;

    fn code(error: ServiceError) -> (u16, Option<&'static str>, bool) {
        let error = ApiError::from(error);
        (error.status.as_u16(), error.code, error.retry_after.is_some())
    }

    #[test]
    fn the_table() {
        let invalid = |code| ServiceError::Invalid { message: "m".into(), param: Some("n".into()), code };
        assert_eq!(code(invalid(None)), (400, None, false));
        assert_eq!(code(invalid(Some("unsupported_parameter"))), (400, Some("unsupported_parameter"), false));
        assert_eq!(code(ServiceError::UnknownModel("x".into())), (404, Some("model_not_found"), false));
        assert_eq!(code(ServiceError::Internal("x".into())), (500, Some("internal_error"), false));
        for (error, expected) in [
            (EngineError::QueueFull { waiting: 1, limit: 1 }, (503, Some("server_overloaded"), true)),
            (EngineError::Loading, (503, Some("model_loading"), true)),
            (EngineError::Stopping, (503, Some("draining"), true)),
            (EngineError::Aborted, (503, Some("draining"), true)),
            (EngineError::Dead("x".into()), (503, Some("internal_error"), true)),
            (EngineError::NonFiniteLogits, (500, Some("internal_error"), false)),
            (ConstraintError("x".into()).into(), (400, None, false)),
            (
                EngineError::TooLargeForCache { needed: 2, total: 1 },
                (400, Some("context_length_exceeded"), false),
            ),
        ] {
            assert_eq!(code(error.into()), expected);
        }
    }

    #[test]
    fn a_503_says_when_to_come_back() {
        let response = ApiError::overloaded("full").into_response();
        assert_eq!(response.headers()["retry-after"], "1");
        assert_eq!(response.headers()["retry-after-ms"], "1000");
        assert_eq!(response.headers()["content-type"], "application/json");
    }
}
