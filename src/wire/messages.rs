//! The `messages` of a conversation: roles, text, text parts; anything else is refused by its path.
//!
//! Images, audio and files are refused as `messages[i].content[j].type`, tool calls and their results by
//! their field, until they are built.

use serde_json::{Value, json};

use super::fields::{Fields, RequestError, UnknownParameters, wrong};
use super::request::MAX_LABEL_BYTES;

/// One message, its text parts joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatMessage {
    pub role: String,
    pub content: String,
    pub name: Option<String>,
    /// Of an assistant's message: its thoughts, as this server told them.
    pub reasoning: Option<String>,
}

pub(super) fn messages(f: &mut Fields, unknown: UnknownParameters) -> Result<Vec<ChatMessage>, RequestError> {
    let required = || RequestError::invalid("messages", "messages is required and must not be empty");
    let all = match f.take("messages") {
        Some(Value::Array(all)) if !all.is_empty() => all,
        None | Some(Value::Array(_)) => return Err(required()),
        Some(other) => return Err(wrong("messages", "an array of messages", &other)),
    };
    all.into_iter().enumerate().map(|(i, value)| message(value, &format!("messages[{i}]"), unknown)).collect()
}

fn message(value: Value, path: &str, unknown: UnknownParameters) -> Result<ChatMessage, RequestError> {
    let mut f = Fields::of_value(value, path)?;
    let role = f.required_string("role")?;
    let role_path = f.path("role");
    match role.as_str() {
        "system" | "developer" | "user" | "assistant" => {}
        "tool" | "function" => return Err(RequestError::unsupported(&role_path, &format!("role {role}"))),
        _ => return Err(wrong(&role_path, "system, developer, user or assistant", &json!(role))),
    }
    let content = content(f.take("content"), &f.path("content"), unknown)?;
    let name = f.label("name", MAX_LABEL_BYTES)?;
    // What clients send back of an answer of ours, as far as it holds nothing.
    f.only("tool_calls", &[json!([])])?;
    f.only("annotations", &[json!([])])?;
    // One text under the two names that servers have for it.
    let (newer, older) = (f.string("reasoning")?, f.string("reasoning_content")?);
    let reasoning = older.or(newer).filter(|_| role == "assistant");
    f.refuse(&["function_call", "audio", "refusal", "tool_call_id"])?;
    f.finish(unknown)?;
    Ok(ChatMessage { role, content, name, reasoning })
}

/// A string, or text parts that are joined.
fn content(value: Option<Value>, path: &str, unknown: UnknownParameters) -> Result<String, RequestError> {
    let parts = match value {
        Some(Value::String(text)) => return Ok(text),
        Some(Value::Array(parts)) if !parts.is_empty() => parts,
        None => return Err(RequestError::invalid(path, format!("{path} is required"))),
        Some(other) => return Err(wrong(path, "a string or an array of content parts", &other)),
    };
    let mut text = String::new();
    for (i, part) in parts.into_iter().enumerate() {
        let mut f = Fields::of_value(part, &format!("{path}[{i}]"))?;
        let kind_path = f.path("type");
        match f.required_string("type")?.as_str() {
            "text" => text.push_str(&f.required_string("text")?),
            kind @ ("image_url" | "input_image" | "input_audio" | "audio_url" | "video_url" | "file"
            | "input_file" | "refusal") => {
                return Err(RequestError::unsupported(&kind_path, &format!("content of type {kind}")));
            }
            kind => return Err(wrong(&kind_path, "text", &json!(kind))),
        }
        f.finish(unknown)?;
    }
    Ok(text)
}
