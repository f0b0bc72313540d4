//! How much a reasoning model is to think, as clients of several servers say it.
//!
//! `reasoning_effort` is OpenAI's, `enable_thinking` and `chat_template_kwargs` are vLLM's and SGLang's,
//! `thinking_token_budget` and `include_reasoning` vLLM's. Whether the model can is the service's question.

use serde_json::{Map, Value, json};

use super::fields::{Fields, RequestError, wrong};

const EFFORTS: [&str; 7] = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];
const MAX_TEMPLATE_ARGUMENTS: usize = 32;
/// What a template is given anyway.
const RESERVED: [&str; 6] =
    ["messages", "tools", "documents", "add_generation_prompt", "strftime_now", "raise_exception"];
/// How the names of special tokens end, which are given, too.
const TOKEN: &str = "_token";

/// What a request says of the model's thoughts.
#[derive(Debug, Clone, PartialEq)]
pub struct Thinking {
    pub enabled: Option<bool>,
    /// One of OpenAI's words; never "none", which is `enabled: false`.
    pub effort: Option<String>,
    /// Tokens of thoughts at most.
    pub budget: Option<usize>,
    /// Whether the answer shows them.
    pub shown: bool,
    /// Further arguments of the chat template.
    pub template: Map<String, Value>,
}

impl Default for Thinking {
    fn default() -> Self {
        Thinking { enabled: None, effort: None, budget: None, shown: true, template: Map::new() }
    }
}

impl Thinking {
    /// # Errors
    /// A field that is not what it should be; two that contradict each other.
    pub fn read(f: &mut Fields) -> Result<Thinking, RequestError> {
        let mut template = match f.take("chat_template_kwargs") {
            None => Map::new(),
            Some(Value::Object(map)) if map.len() <= MAX_TEMPLATE_ARGUMENTS => map,
            Some(other) => {
                let expected = format!("an object of up to {MAX_TEMPLATE_ARGUMENTS} members");
                return Err(wrong("chat_template_kwargs", &expected, &other));
            }
        };
        let is_given = |name: &&String| RESERVED.contains(&name.as_str()) || name.ends_with(TOKEN);
        if let Some(name) = template.keys().find(is_given) {
            let param = format!("chat_template_kwargs.{name}");
            return Err(RequestError::invalid(&param, format!("{param} is given by the server")));
        }
        let nested = match template.remove("enable_thinking") {
            None | Some(Value::Null) => None,
            Some(Value::Bool(on)) => Some(on),
            Some(other) => {
                return Err(wrong("chat_template_kwargs.enable_thinking", "true or false", &other));
            }
        };
        let enabled = f.bool("enable_thinking")?;
        let effort = f.string("reasoning_effort")?;
        if let Some(word) = effort.as_ref().filter(|word| !EFFORTS.contains(&word.as_str())) {
            return Err(wrong("reasoning_effort", &EFFORTS.join(", "), &json!(word)));
        }
        let by_effort = effort.as_deref().map(|word| word != "none");
        let said = [enabled, nested, by_effort.filter(|on| !on)];
        let first = said.into_iter().flatten().next();
        let contradicts = first == Some(false) && by_effort == Some(true);
        if contradicts || said.into_iter().flatten().any(|on| Some(on) != first) {
            let message =
                "enable_thinking, chat_template_kwargs.enable_thinking and reasoning_effort must agree";
            return Err(RequestError::invalid("enable_thinking", message));
        }
        Ok(Thinking {
            enabled: first,
            effort: effort.filter(|word| word != "none"),
            budget: f.integer("thinking_token_budget", 0, usize::MAX)?,
            shown: f.bool("include_reasoning")?.unwrap_or(true),
            template,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: Value) -> Result<Thinking, RequestError> {
        Thinking::read(&mut Fields::of_body(body.to_string().as_bytes()).unwrap())
    }

    #[test]
    fn each_way_to_say_it() {
        assert_eq!(read(json!({})).unwrap(), Thinking::default());
        for body in [
            json!({"enable_thinking": false}),
            json!({"chat_template_kwargs": {"enable_thinking": false}}),
            json!({"reasoning_effort": "none"}),
        ] {
            assert_eq!(read(body).unwrap(), Thinking { enabled: Some(false), ..Thinking::default() });
        }
        let all =
            read(json!({"reasoning_effort": "low", "thinking_token_budget": 7, "include_reasoning": false,
                              "chat_template_kwargs": {"date": "today"}}))
            .unwrap();
        assert_eq!((all.effort.as_deref(), all.budget, all.shown), (Some("low"), Some(7), false));
        assert_eq!(all.template["date"], json!("today"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (body, param) in [
            (json!({"reasoning_effort": "huge"}), "reasoning_effort"),
            (json!({"enable_thinking": "yes"}), "enable_thinking"),
            (json!({"enable_thinking": true, "reasoning_effort": "none"}), "enable_thinking"),
            (json!({"enable_thinking": false, "reasoning_effort": "high"}), "enable_thinking"),
            (json!({"chat_template_kwargs": []}), "chat_template_kwargs"),
            (json!({"chat_template_kwargs": {"enable_thinking": 1}}), "chat_template_kwargs.enable_thinking"),
            (json!({"chat_template_kwargs": {"messages": []}}), "chat_template_kwargs.messages"),
            (json!({"chat_template_kwargs": {"a": 1, "pad_token": ""}}), "chat_template_kwargs.pad_token"),
            (json!({"thinking_token_budget": -1}), "thinking_token_budget"),
        ] {
            assert_eq!(read(body.clone()).unwrap_err().param.as_deref(), Some(param), "{body}");
        }
    }
}
