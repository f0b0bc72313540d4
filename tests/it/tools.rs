//! Tools over HTTP: calls that must be made are, in every dialect, and a stream tells the same as a whole answer.
//!
//! The demo model has never seen a tool: what it is made to call shows that a grammar holds whatever the weights.

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

/// The demo model with its chat template changed.
fn unit(template: impl Fn(&str) -> String) -> Unit {
    let folder = demo_with_template(template);
    let running = serve(&[("threads", "1"), ("model", folder.path().to_str().unwrap())]);
    let client = Client::new(&running.url).unwrap();
    Unit { running, client, _folder: folder }
}

fn weather() -> Value {
    json!({"type": "function", "function": {"name": "get_weather", "description": "The weather",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Paris", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
                       "required": ["city", "days"], "additionalProperties": false}}})
}

fn stop() -> Value {
    json!({"type": "function", "function": {"name": "stop-mining"}})
}

/// A call as name and arguments.
type Call = (String, Value);

/// Checks a call and takes it apart.
fn call(call: &Value) -> Call {
    let arguments = call["function"]["arguments"].as_str().unwrap();
    let name = call["function"]["name"].as_str().unwrap();
    assert!(call["type"] == "function" && !call["id"].as_str().unwrap().is_empty(), "{call}");
    let value: Value = serde_json::from_str(arguments).unwrap_or_else(|e| panic!("{call}: {e}"));
    match name {
        "get_weather" => {
            assert!(["Paris", "Oslo"].contains(&value["city"].as_str().unwrap()), "{call}");
            assert!((1..=9).contains(&value["days"].as_u64().unwrap()), "{call}");
        }
        _ => assert_eq!((name, &value), ("stop-mining", &json!({}))),
    }
    (name.to_string(), value)
}

impl Unit {
    fn body(extra: &Value) -> Value {
        let mut body = json!({"messages": [{"role": "user", "content": "What is hashprice?"}], "temperature": 1.5,
                              "seed": 4, "max_tokens": 400, "tools": [weather(), stop()]});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    }

    fn post(&self, extra: &Value) -> (u16, Value) {
        self.running.runtime.block_on(async {
            let body = Unit::body(extra).to_string();
            let mut response = self.client.post_json(PATH, body.as_bytes()).await.unwrap();
            (response.status, serde_json::from_slice(&response.bytes().await.unwrap()).unwrap())
        })
    }

    fn post_to(&self, path: &str, body: &Value) -> Value {
        self.running.runtime.block_on(async {
            let mut response = self.client.post_json(path, body.to_string().as_bytes()).await.unwrap();
            serde_json::from_slice(&response.bytes().await.unwrap()).unwrap()
        })
    }

    /// The one choice: calls, content and finish reason; by a stream too, which must say the same.
    fn ask(&self, extra: Value) -> (Vec<Call>, Value, String) {
        let (status, answer) = self.post(&extra);
        assert_eq!(status, 200, "{answer}");
        let (choice, message) = (&answer["choices"][0], &answer["choices"][0]["message"]);
        let calls: Vec<Call> = message["tool_calls"].as_array().into_iter().flatten().map(call).collect();
        let finish = choice["finish_reason"].as_str().unwrap().to_string();
        let (streamed, text, why) = self.stream(&extra);
        assert_eq!(streamed, calls, "{answer}");
        assert_eq!(text, message["content"].as_str().unwrap_or_default());
        assert_eq!(why, finish);
        (calls, message["content"].clone(), finish)
    }

    fn stream(&self, extra: &Value) -> (Vec<Call>, String, String) {
        let mut body = Unit::body(extra);
        body["stream"] = true.into();
        self.running.runtime.block_on(async {
            let mut response = self.client.post_json(PATH, body.to_string().as_bytes()).await.unwrap();
            let (mut calls, mut text, mut finish): (Vec<Value>, _, _) =
                (Vec::new(), String::new(), String::new());
            while let Some(event) = response.next_event().await.unwrap().filter(|e| !e.is_done()) {
                let chunk: Value = serde_json::from_str(&event.data).unwrap();
                let choice = &chunk["choices"][0];
                text += choice["delta"]["content"].as_str().unwrap_or_default();
                for part in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
                    let index = part["index"].as_u64().unwrap() as usize;
                    if index == calls.len() {
                        assert_eq!(part["function"]["arguments"], "", "a call begins without arguments");
                        calls.push(part.clone());
                        continue;
                    }
                    assert!(part.as_object().unwrap().keys().eq(["index", "function"]), "{part}");
                    assert!(part["function"].as_object().unwrap().keys().eq(["arguments"]), "{part}");
                    assert_eq!(index + 1, calls.len(), "calls come one after another");
                    let whole = calls[index]["function"]["arguments"].as_str().unwrap().to_string()
                        + part["function"]["arguments"].as_str().unwrap();
                    calls[index]["function"]["arguments"] = whole.into();
                }
                finish = choice["finish_reason"].as_str().unwrap_or(&finish).to_string();
            }
            (calls.iter().map(call).collect(), text, finish)
        })
    }
}

fn named(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name}})
}

/// How the dialects' templates show their tools, and what the model's vocabulary does not hold stands as text.
const DIALECTS: [&str; 6] = [
    "",
    "{{ '' if tools else '' }}{# <|start_header_id|> {\"name\": f, \"parameters\": p} #}",
    "{# [TOOL_CALLS] #}",
    "{# [TOOL_CALLS] [ARGS] #}",
    "{# <|tool_call|> #}",
    "{# functools #}",
];

#[test]
fn calls_that_must_be_made_are_made_in_every_dialect() {
    for mark in DIALECTS {
        // The first is the demo's own, Hermes'.
        let unit = unit(|template| match mark {
            "" => template.to_string(),
            mark => template.replace("tool_call>", "call>") + mark,
        });
        let (calls, content, finish) = unit.ask(json!({"tool_choice": "required"}));
        assert!(!calls.is_empty() && content.is_null(), "{mark}: {calls:?} {content}");
        assert_eq!(finish, "tool_calls", "{mark}");
        let (calls, _, _) = unit.ask(json!({"tool_choice": "required", "parallel_tool_calls": false}));
        assert_eq!(calls.len(), 1, "{mark}");
        // Named: one call, which is no news.
        let (calls, content, finish) = unit.ask(json!({"tool_choice": named("stop-mining")}));
        assert_eq!((calls.len(), calls[0].0.as_str(), finish.as_str()), (1, "stop-mining", "stop"), "{mark}");
        assert!(content.is_null());
        let allowed = json!({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named("get_weather")]}});
        let (calls, _, finish) = unit.ask(json!({"tool_choice": allowed, "n": 1}));
        assert!(!calls.is_empty() && calls.iter().all(|call| call.0 == "get_weather"), "{mark}: {calls:?}");
        assert_eq!(finish, "tool_calls");
        // One that may be made and is not: the answer is what it is without tools.
        let (calls, content, _) = unit.ask(json!({"temperature": 0, "tool_choice": "none"}));
        assert!(calls.is_empty() && content.as_str().unwrap().starts_with("Hashprice"), "{mark}: {content}");
    }
}

#[test]
fn calls_may_be_kept_to_rules_without_being_made() {
    let unit = unit(str::to_string);
    // Strict: text as usual, or calls that match.
    let mut strict = weather();
    strict["function"]["strict"] = true.into();
    let (_, content, finish) = unit.ask(json!({"tools": [strict.clone()], "temperature": 0}));
    assert!(content.is_string() && ["stop", "length"].contains(&finish.as_str()), "{content}");
    // Text of a schema, or calls.
    let format =
        json!({"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["yes", "no"]}}});
    for seed in 0..4 {
        let (calls, content, _) = unit.ask(json!({"response_format": format, "seed": seed}));
        assert!(!calls.is_empty() || ["\"yes\"", "\"no\""].contains(&content.as_str().unwrap()), "{content}");
    }
    // A schema that cannot be kept to: strict it is refused, otherwise any object will do.
    let odd = |strict: bool| {
        json!({"type": "function", "function": {"name": "odd", "strict": strict,
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "patternProperties": {"(?=x)": {}}, "dependentSchemas": {"a": {}}}}})
    };
    let (status, answer) = unit.post(&json!({"tools": [odd(true)]}));
    assert_eq!(
        (status, &answer["error"]["param"]),
        (400, &json!("tools[0].function.parameters")),
        "{answer}"
    );
    let (status, answer) =
        unit.post(&json!({"tools": [odd(false)], "tool_choice": "required", "parallel_tool_calls": false}));
    let made = &answer["choices"][0]["message"]["tool_calls"][0]["function"];
    assert!(
        status == 200 && made["name"] == "odd" && made["arguments"].as_str().unwrap().starts_with('{'),
        "{answer}"
    );
}

#[test]
fn a_call_that_is_cut_is_none_to_be_made() {
    let unit = unit(str::to_string);
    let cut = json!({"tools": [weather()], "tool_choice": "required", "stop": ["\"days\""]});
    let (status, answer) = unit.post(&cut);
    let choice = &answer["choices"][0];
    assert!(status == 200 && choice["message"]["tool_calls"].is_array(), "{answer}");
    assert_eq!(choice["finish_reason"], "stop", "{answer}");
    // Each token is told with its log-probability, those that close a call too; the end has no text.
    let (_, answer) = unit.post(&json!({"tool_choice": named("get_weather"), "logprobs": true}));
    let entries = answer["choices"][0]["logprobs"]["content"].as_array().unwrap().len() as u64;
    let tokens = answer["usage"]["completion_tokens"].as_u64().unwrap();
    assert!((tokens - 1..=tokens).contains(&entries), "{entries} of {tokens}");
    // What its arguments are is an object's schema.
    let odd = json!({"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}});
    let (status, answer) = unit.post(&json!({"tools": [odd]}));
    assert_eq!((status, &answer["error"]["code"]), (400, &json!("invalid_function_parameters")), "{answer}");
    // However many tools there are, a schema that takes too long takes its time once.
    let slow = |i: usize| {
        let pattern = format!("^(.*a{i}){{5}}|(.*b){{5}}|(.*c){{5}}|(.*d){{5}}$");
        json!({"type": "function", "function": {"name": format!("f{i}"), "parameters": {
            "type": "object", "properties": {"v": {"type": "string", "pattern": pattern}}, "required": ["v"]}}})
    };
    let many: Vec<Value> = (0..6).map(slow).collect();
    let (status, _) = unit.post(&json!({"tools": many, "tool_choice": "required", "max_tokens": 1}));
    assert!([200, 400].contains(&status), "{status}");
}

#[test]
fn what_came_of_a_call_goes_back_to_the_model() {
    let unit = unit(str::to_string);
    let made = json!([{"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": "{\"city\": \"Oslo\", \"days\": 2}"}}]);
    let messages = json!([
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": null, "tool_calls": made},
        {"role": "tool", "tool_call_id": "call_1", "content": "[{\"rain\": true}]"},
    ]);
    let ids =
        unit.post_to("/tokenize", &json!({"messages": messages, "tools": [weather()]}))["tokens"].clone();
    let answer = unit.post_to("/detokenize", &json!({"tokens": ids}));
    let prompt = answer["prompt"].as_str().unwrap();
    let expected = "<|im_start|>assistant\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\", \"days\": 2}}\n\
                    </tool_call><|im_end|>\n<|im_start|>tool\n[{\"rain\": true}]<|im_end|>\n<|im_start|>assistant\n";
    assert!(prompt.ends_with(expected), "{prompt}");
    assert!(prompt.contains("\"description\": \"The weather\""), "{prompt}");
    unit.ask(json!({"messages": messages, "temperature": 0}));
}

#[test]
fn a_model_that_cannot_call_tools_says_so() {
    let plain = "{% for m in messages %}{{ m.content }}{% endfor %}";
    for (template, why) in [(plain, "shows it no tools"), ("{{ tools }}", "not known")] {
        let unit = unit(|_| template.to_string());
        let (status, answer) = unit.post(&json!({}));
        assert_eq!((status, &answer["error"]["param"]), (400, &json!("tools")), "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(why), "{answer}");
    }
}

#[test]
fn channels_hold_thoughts_calls_and_the_answer() {
    // The demo's vocabulary knows no such marks: they are text, and the grammar makes the model write them.
    let unit = unit(|template| {
        template.replace("tool_call>", "call>")
            + "{# <|channel|>analysis <|channel|>final<|message|> reasoning_effort #}"
    });
    let (calls, content, finish) = unit.ask(json!({"tool_choice": "required", "thinking_token_budget": 5}));
    assert_eq!((calls.len(), content.is_null(), finish.as_str()), (1, true, "tool_calls"));
    let format =
        json!({"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["yes", "no"]}}});
    let (calls, content, _) =
        unit.ask(json!({"tools": [], "response_format": format, "thinking_token_budget": 0}));
    assert!(calls.is_empty() && ["\"yes\"", "\"no\""].contains(&content.as_str().unwrap()), "{content}");
}
