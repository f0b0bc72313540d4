//! OpenAI's error object, with all four members always present.
//!
//! `{"error":{"message":…,"type":…,"param":…|null,"code":…|null}}`; `code` is a string, as the SDKs
//! read it. Which error has which words is `api::error`'s matter.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// The body of every answer that is not a success, and of the last SSE event of a failed stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    pub error: ErrorObject,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorObject {
    pub message: String,
    /// `invalid_request_error`, `authentication_error`, `server_error`…
    #[serde(rename = "type")]
    pub kind: Cow<'static, str>,
    /// The path of the field at fault, as the client wrote it (`messages[2].role`).
    pub param: Option<String>,
    pub code: Option<Cow<'static, str>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_four_members_are_always_there() {
        let body = ErrorBody {
            error: ErrorObject {
                message: "no \"x\"\n".into(),
                kind: "server_error".into(),
                param: None,
                code: None,
            },
        };
        let text = serde_json::to_string(&body).unwrap();
        assert_eq!(
            text,
            r#"{"error":{"message":"no \"x\"\n","type":"server_error","param":null,"code":null}}"#
        );
        assert_eq!(serde_json::from_str::<ErrorBody>(&text).unwrap(), body);
    }
}
