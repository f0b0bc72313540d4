//! L0. The class of an error: whose fault it is and whether trying again can help.
//!
//! Each layer has its own error enum; all of them say their [`Class`], and `api` maps the class to
//! an HTTP status. Nothing here knows about HTTP.

/// Whose fault an error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The caller sent something that cannot be honoured; sending it again will fail again.
    InvalidRequest,
    /// The named model, route or object does not exist.
    NotFound,
    /// The request is larger than the unit accepts.
    TooLarge,
    /// The unit is at its limit; the same request may succeed a little later.
    Overloaded,
    /// The unit is loading, draining or out of service; the request was not started.
    Unavailable,
    /// A fault of ours while serving this request.
    Internal,
    /// The operator's configuration or checkpoint is wrong; the process should not start with it.
    Configuration,
}

impl Class {
    /// True when the same request may succeed later without being changed.
    pub fn retryable(self) -> bool {
        matches!(self, Class::Overloaded | Class::Unavailable)
    }
}

/// Implemented by every layer's error enum.
pub trait Classified: std::error::Error {
    fn class(&self) -> Class;
}
