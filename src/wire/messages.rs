//! The `messages` of a conversation: roles, text, text parts; anything else is refused by its path.
//!
//! An assistant's message may hold calls of tools, a tool's message is what came of one. Images, audio and files are
//! refused as `messages[i].content[j].type`.

use serde_json::{Value, json};

use super::fields::{Fields, RequestError, UnknownParameters, wrong};
use super::request::MAX_LABEL_CHARS;
use super::strict::Strict;

/// Calls of one message.
const MAX_CALLS: usize = 128;

/// One message, its text parts joined.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ChatMessage {
    pub role: String,
    pub content: String,
    pub name: Option<String>,
    /// Of an assistant's message: its thoughts, as this server told them.
    pub reasoning: Option<String>,
    pub tool_calls: Vec<ToolCall>,
    /// Of a tool's message: which call it answers.
    pub tool_call_id: Option<String>,
}

/// A call that an assistant has made.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolCall {
    pub id: String,
    pub name: String,
    /// An object; where the assistant wrote no JSON, its text.
    pub arguments: Value,
}

impl ChatMessage {
    /// Bytes that a prompt is made of, at least.
    pub fn bytes(&self) -> usize {
        let calls = self.tool_calls.iter().map(|call| call.name.len() + call.id.len());
        self.content.len() + calls.sum::<usize>()
    }
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
        "system" | "developer" | "user" | "assistant" | "tool" => {}
        "function" => return Err(RequestError::unsupported(&role_path, "role function")),
        _ => return Err(wrong(&role_path, "system, developer, user, assistant or tool", &json!(role))),
    }
    // An assistant may have said nothing: it called, or it only thought.
    let silent =
        role == "assistant" && ["tool_calls", "reasoning", "reasoning_content"].iter().any(|key| f.has(key));
    let tool_calls = tool_calls(&mut f, role == "assistant", unknown)?;
    let content = match f.take("content") {
        None if silent => String::new(),
        value => content(value, &f.path("content"), unknown)?,
    };
    let tool_call_id = match role.as_str() {
        "tool" => Some(f.required_string("tool_call_id")?),
        _ => None,
    };
    let name = f.label("name", MAX_LABEL_CHARS)?;
    // What clients send back of an answer of ours, as far as it holds nothing.
    f.only("annotations", &[json!([])])?;
    // One text under the two names that servers have for it.
    let (newer, older) = (f.string("reasoning")?, f.string("reasoning_content")?);
    let reasoning = older.or(newer).filter(|_| role == "assistant");
    f.refuse(&["function_call", "audio", "refusal", "tool_call_id"])?;
    f.finish(unknown)?;
    Ok(ChatMessage { role, content, name, reasoning, tool_calls, tool_call_id })
}

fn tool_calls(
    f: &mut Fields,
    of_assistant: bool,
    unknown: UnknownParameters,
) -> Result<Vec<ToolCall>, RequestError> {
    let path = f.path("tool_calls");
    let all = match f.take("tool_calls") {
        None => return Ok(Vec::new()),
        Some(Value::Array(all)) if all.len() <= MAX_CALLS && (of_assistant || all.is_empty()) => all,
        Some(Value::Array(_)) if !of_assistant => {
            return Err(RequestError::invalid(&path, format!("{path} belongs to an assistant's message")));
        }
        Some(other) => return Err(wrong(&path, &format!("an array of up to {MAX_CALLS} calls"), &other)),
    };
    let call = |(i, value)| {
        let mut f = Fields::of_value(value, &format!("{path}[{i}]"))?;
        let id = f.required_string("id")?;
        let (kind, kind_path) = (f.string("type")?, f.path("type"));
        if let Some(kind) = kind.filter(|kind| kind != "function") {
            return Err(wrong(&kind_path, "function", &json!(kind)));
        }
        // Clients send a chunk's index back with the call.
        f.integer("index", 0, usize::MAX)?;
        let mut function = f.object("function")?;
        f.finish(unknown)?;
        let name = function.required_string("name")?;
        let text = function.required_string("arguments")?;
        function.finish(unknown)?;
        let arguments = match serde_json::from_str(&text) {
            Ok(Strict(arguments @ Value::Object(_))) => arguments,
            _ if text.trim().is_empty() => json!({}),
            _ => Value::String(text),
        };
        Ok(ToolCall { id, name, arguments })
    };
    all.into_iter().enumerate().map(call).collect()
}

/// `prediction`: what the answer is thought to be, as text.
pub(super) fn prediction(f: &mut Fields, unknown: UnknownParameters) -> Result<Option<String>, RequestError> {
    let Some(value) = f.take("prediction") else { return Ok(None) };
    let mut f = Fields::of_value(value, "prediction")?;
    let kind = f.required_string("type")?;
    if kind != "content" {
        return Err(wrong(&f.path("type"), "content", &json!(kind)));
    }
    let text = content(f.take("content"), &f.path("content"), unknown)?;
    f.finish(unknown)?;
    Ok(Some(text))
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
