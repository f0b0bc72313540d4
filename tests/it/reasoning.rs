//! Thoughts over HTTP: told apart, counted, kept to their budget, and followed by what was asked for.
//!
//! The demo model with a chat template that opens thoughts, or lets the model open them, as Qwen3's does.

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::serving::{Running, demo_with_template, serve};
use hashwatt::wire::client::Client;

const PATH: &str = "/v1/chat/completions";

struct Unit {
    running: Running,
    client: Client,
    _folder: TempDir,
}

fn unit(opens: &str) -> Unit {
    let folder = demo_with_template(|template| template.to_string() + opens);
    let running = serve(&[("threads", "1"), ("model", folder.path().to_str().unwrap())]);
    let client = Client::new(&running.url).unwrap();
    Unit { running, client, _folder: folder }
}

impl Unit {
    fn body(extra: &Value) -> Value {
        let mut body = json!({"messages": [{"role": "user", "content": "What is hashprice?"}], "temperature": 0,
                              "max_tokens": 120});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    }

    fn post(&self, extra: Value) -> (u16, Value) {
        self.running.runtime.block_on(async {
            let body = Unit::body(&extra).to_string();
            let mut response = self.client.post_json(PATH, body.as_bytes()).await.unwrap();
            (response.status, serde_json::from_slice(&response.bytes().await.unwrap()).unwrap())
        })
    }

    /// Thoughts and text of the one choice, and the answer.
    fn ask(&self, extra: Value) -> (String, String, Value) {
        let (status, answer) = self.post(extra);
        assert_eq!(status, 200, "{answer}");
        let message = &answer["choices"][0]["message"];
        assert_eq!(message.get("reasoning"), message.get("reasoning_content"));
        let text = |key: &str| message.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
        (text("reasoning_content"), text("content"), answer.clone())
    }

    /// The same of a stream.
    fn stream(&self, mut extra: Value) -> (String, String) {
        extra["stream"] = true.into();
        self.running.runtime.block_on(async {
            let body = Unit::body(&extra).to_string();
            let mut response = self.client.post_json(PATH, body.as_bytes()).await.unwrap();
            let (mut thoughts, mut text) = (String::new(), String::new());
            while let Some(event) = response.next_event().await.unwrap().filter(|e| !e.is_done()) {
                let chunk: Value = serde_json::from_str(&event.data).unwrap();
                let delta = &chunk["choices"][0]["delta"];
                thoughts += delta["reasoning_content"].as_str().unwrap_or_default();
                assert_eq!(delta.get("reasoning"), delta.get("reasoning_content"));
                text += delta["content"].as_str().unwrap_or_default();
                assert!(text.is_empty() || delta.get("reasoning").is_none(), "a thought behind the answer");
            }
            (thoughts, text)
        })
    }
}

fn reasoning_tokens(answer: &Value) -> u64 {
    answer["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64().unwrap()
}

#[test]
fn thoughts_that_the_prompt_opens_end_with_their_budget() {
    let unit = unit("{{ '<think>\\n' }}");
    // Without a budget this model never closes them.
    let (thoughts, text, answer) = unit.ask(json!({}));
    assert!(!thoughts.is_empty() && text.is_empty(), "{answer}");
    let (cut, text, answer) = unit.ask(json!({"thinking_token_budget": 4}));
    assert!(thoughts.starts_with(&cut) && cut.len() < thoughts.len(), "{cut:?} of {thoughts:?}");
    assert!(!text.is_empty() && !text.contains("think>"), "{answer}");
    let completion = answer["usage"]["completion_tokens"].as_u64().unwrap();
    assert!(reasoning_tokens(&answer) >= 4 && reasoning_tokens(&answer) < completion, "{answer}");
    assert_eq!(unit.stream(json!({"thinking_token_budget": 4})), (cut.clone(), text.clone()));
    // With log-probabilities nothing is forced, and the budget holds all the same.
    let (same, _, answer) = unit.ask(json!({"thinking_token_budget": 4, "logprobs": true}));
    assert_eq!(same, cut);
    let entries = answer["choices"][0]["logprobs"]["content"].as_array().unwrap().len() as u64;
    assert!(entries + 1 >= answer["usage"]["completion_tokens"].as_u64().unwrap(), "{answer}");
    // None at all; not shown; not to be had.
    assert_eq!(unit.ask(json!({"thinking_token_budget": 0})).0, "");
    let (hidden, shown, answer) = unit.ask(json!({"thinking_token_budget": 4, "include_reasoning": false}));
    assert!(hidden.is_empty() && shown == text && reasoning_tokens(&answer) >= 4, "{answer}");
    let (status, answer) = unit.post(json!({"enable_thinking": false}));
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("enable_thinking")));
}

#[test]
fn structured_output_begins_behind_the_thoughts() {
    let unit = unit("{{ '<think>\\n' }}");
    let schema = json!({"type": "object", "properties": {"sure": {"type": "boolean"}, "watts": {"type": "integer", "maximum": 99, "minimum": 0}},
                        "required": ["sure", "watts"], "additionalProperties": false});
    for temperature in [0.0, 1.5] {
        let (thoughts, text, answer) = unit.ask(
            json!({"guided_json": schema, "thinking_token_budget": 5, "temperature": temperature, "seed": 2}),
        );
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{text:?}: {e}"));
        assert!(value["sure"].is_boolean() && !thoughts.is_empty(), "{answer}");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    }
}

#[test]
fn a_model_that_may_think_is_told_whether_to() {
    let opens = "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}";
    let unit = unit(opens);
    // The demo does not open thoughts by itself: all is answer.
    let (thoughts, text, answer) = unit.ask(json!({}));
    assert!(thoughts.is_empty() && text.starts_with("Hashprice"), "{answer}");
    let prompt = |extra: Value| unit.ask(extra).2["usage"]["prompt_tokens"].as_u64().unwrap();
    for off in [
        json!({"enable_thinking": false}),
        json!({"reasoning_effort": "none"}),
        json!({"chat_template_kwargs": {"enable_thinking": false}}),
    ] {
        assert!(prompt(off) > prompt(json!({})), "the template was not told");
    }
    // Thoughts of earlier answers come back and are taken.
    let earlier = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": "c"},
                         {"role": "user", "content": "What is PUE?"}]);
    unit.ask(json!({"messages": earlier}));
    // A grammar does not wait for thoughts that never come.
    assert_eq!(unit.ask(json!({"guided_choice": ["yes"]})).1, "yes");
}

#[test]
fn a_model_that_does_not_think_says_so() {
    let unit = unit("");
    for (extra, param) in [
        (json!({"reasoning_effort": "high"}), "reasoning_effort"),
        (json!({"enable_thinking": true}), "enable_thinking"),
    ] {
        let (status, answer) = unit.post(extra);
        assert_eq!((status, &answer["error"]["param"]), (400, &json!(param)), "{answer}");
    }
    for extra in
        [json!({"reasoning_effort": "none"}), json!({"enable_thinking": false, "thinking_token_budget": 3})]
    {
        assert!(unit.ask(extra).1.starts_with("Hashprice"));
    }
}
