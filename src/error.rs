//! L0. The class of an error: whose fault it is and whether trying again can help.
//!
//! Each layer has its own error enum; all of them say their [`Class`], and `api` maps the class to
//! an HTTP status. Nothing here knows about HTTP. Also [`printable`], for what others say in an error.

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

/// The beginning of a foreign text on one line, without what could disturb a terminal or a log: control
/// characters, and those that turn the direction of writing.
pub fn printable(text: &str, most: usize) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let turns =
        |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    line.chars().filter(|c| !c.is_control() && !turns(*c)).take(most).collect()
}

/// Implemented by every layer's error enum.
pub trait Classified: std::error::Error {
    fn class(&self) -> Class;
}
