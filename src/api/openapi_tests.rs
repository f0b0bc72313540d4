//! The description against the server: what it says of answers, headers and bounds is what is the case.

use serde_json::{Value, json};

use crate::access::Access;
use crate::api::openapi::DOCUMENT;
use crate::api::test_engine::FAILING_SEED;
use crate::api::testing::{Unit, exchange};
use crate::api::{ApiConfig, ServerConfig};
use crate::clock::Clock;

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

async fn unit() -> Unit {
    Unit::start(ApiConfig::default(), ServerConfig::default()).await
}

fn document() -> Value {
    serde_json::from_str(DOCUMENT).unwrap()
}

/// What a reference leads to.
fn resolved<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    match value["$ref"].as_str() {
        Some(path) => document.pointer(path.trim_start_matches('#')).expect("a reference leads somewhere"),
        None => value,
    }
}

/// Objects of the description, closed: members it does not name are found out.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            map.values_mut().for_each(close);
            if map.contains_key("properties") && !map.contains_key("additionalProperties") {
                map.insert("additionalProperties".into(), false.into());
            }
        }
        Value::Array(all) => all.iter_mut().for_each(close),
        _ => {}
    }
}

struct Checker {
    document: Value,
    closed: Value,
}

impl Checker {
    fn new() -> Checker {
        let document = document();
        let mut closed = document["components"].clone();
        close(&mut closed);
        Checker { document, closed }
    }

    fn check(&self, schema: &Value, value: &Value) {
        let mut schema = schema.clone();
        schema["components"] = self.closed.clone();
        let validator = jsonschema::validator_for(&schema).unwrap();
        let errors: Vec<String> =
            validator.iter_errors(value).map(|e| format!("{e} at {}", e.instance_path())).collect();
        assert!(errors.is_empty(), "{errors:#?} in {value}");
    }

    /// An answer by the description of its path: the status is described, and so are the headers and the body.
    async fn answer(&self, unit: &Unit, method: &str, path: &str, of: &str, body: Option<&Value>) {
        let client = unit.client();
        let mut answer = match body {
            Some(body) => client.post_json(path, body.to_string().as_bytes()).await.unwrap(),
            None => client.get(path).await.unwrap(),
        };
        let status = answer.status.to_string();
        let described = &self.document["paths"][of][method]["responses"][&status];
        assert!(described.is_object(), "{of} {status} is not described");
        let described = resolved(&self.document, described);
        for (name, header) in described["headers"].as_object().unwrap() {
            let required = resolved(&self.document, header)["required"] == true;
            assert!(
                !required || answer.header(&name.to_lowercase()).is_some(),
                "{of} {status} without {name}"
            );
        }
        let kind = answer.header("content-type").unwrap().split(';').next().unwrap().to_owned();
        let content = &described["content"][&kind];
        assert!(content.is_object(), "{of} {status} answers {kind}");
        if kind == "text/event-stream" {
            let mut events = 0;
            while let Some(event) = answer.next_event().await.unwrap() {
                if event.is_done() {
                    continue;
                }
                let value: Value = serde_json::from_str(&event.data).unwrap();
                self.check(&content["schema"]["properties"]["data"]["anyOf"][1]["contentSchema"], &value);
                events += 1;
            }
            assert!(events > 3);
        } else if kind == "application/json" && of != "/openapi.json" {
            self.check(&content["schema"], &serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap());
        }
    }
}

#[tokio::test]
async fn answers_are_as_described() {
    let (unit, checker) = (unit().await, Checker::new());
    let chat = |more: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    for more in [
        json!({"n": 2, "logprobs": true, "top_logprobs": 2}),
        json!({"stream": true, "n": 2}),
        json!({"stream": true, "stream_options": {"include_usage": true}, "logprobs": true}),
        json!({"stream": true, "seed": FAILING_SEED, "max_tokens": 50}),
        json!({"seed": FAILING_SEED, "max_tokens": 50}),
        json!({"n": 0}),
        json!({"model": "nope"}),
    ] {
        checker.answer(&unit, "post", CHAT, CHAT, Some(&chat(more))).await;
    }
    for body in [
        json!({"prompt": "ab", "logprobs": 1, "echo": true}),
        json!({"prompt": ["ab", [1, 2]], "max_tokens": 2}),
        json!({"prompt": "ab", "logprobs": 1, "echo": true, "stream": true}),
        json!({"prompt": "ab", "stream": true, "stream_options": {"include_usage": true}}),
        json!({"suffix": "x"}),
    ] {
        checker.answer(&unit, "post", TEXT, TEXT, Some(&body)).await;
    }
    for (path, body) in [
        ("/tokenize", json!({"prompt": "ab"})),
        ("/tokenize", json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]})),
        ("/tokenize", json!({})),
        ("/detokenize", json!({"tokens": [65]})),
        ("/detokenize", json!({"tokens": "x"})),
    ] {
        checker.answer(&unit, "post", path, path, Some(&body)).await;
    }
    for path in ["/v1/models", "/livez", "/readyz", "/health", "/metrics", "/openapi.json"] {
        checker.answer(&unit, "get", path, path, None).await;
    }
    for path in ["/v1/models/demo/tiny", "/v1/models/nope"] {
        checker.answer(&unit, "get", path, "/v1/models/{id}", None).await;
    }
    unit.state.service.unit().drain();
    checker.answer(&unit, "get", "/readyz", "/readyz", None).await;
    checker.answer(&unit, "post", CHAT, CHAT, Some(&chat(json!({})))).await;
    let keys =
        ApiConfig { access: Access::fixed(Some("a-key-of-ours"), Clock::system()), ..ApiConfig::default() };
    let guarded = Unit::start(keys, ServerConfig::default()).await;
    checker.answer(&guarded, "get", "/v1/models", "/v1/models", None).await;
}

/// Whatever the router refuses by itself is described for every path it can happen to.
#[tokio::test]
async fn every_refusal_of_the_layers_is_described() {
    let document = document();
    let open = ["/livez", "/readyz", "/health"];
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let answers = operation["responses"].as_object().unwrap();
            let mut wanted = vec!["200", "500", "503"];
            if !open.contains(&path.as_str()) {
                wanted.extend(["401", "403"]);
            }
            if method == "post" {
                wanted.extend(["400", "408", "413", "429"]);
            }
            for status in wanted {
                assert!(answers.contains_key(status), "{method} {path} {status}");
            }
            for (status, answer) in answers.iter().filter(|(status, _)| *status != "200") {
                let schema = &resolved(&document, answer)["content"]["application/json"]["schema"];
                assert_eq!(schema["$ref"], "#/components/schemas/Error", "{path} {status}");
            }
        }
    }
    let unit = unit().await;
    let foreign =
        "GET /v1/models HTTP/1.1\r\nhost: x\r\norigin: https://x.example\r\nconnection: close\r\n\r\n";
    let answer = exchange(&unit, foreign).await;
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("x-request-id"), "{answer}");
}

/// Values just inside and just outside of what a schema allows.
fn around(document: &Value, schema: &Value) -> (Vec<Value>, Vec<Value>) {
    let schema = resolved(document, schema);
    let (mut inside, mut outside) = (Vec::new(), Vec::new());
    for option in schema["oneOf"].as_array().into_iter().flatten() {
        let (more_inside, more_outside) = around(document, option);
        inside.extend(more_inside);
        outside.extend(more_outside);
    }
    let whole = schema["type"] == "integer"
        || schema["type"].as_array().is_some_and(|t| t.contains(&json!("integer")));
    for (bound, step) in [("minimum", -1i32), ("maximum", 1)] {
        match &schema[bound] {
            Value::Number(n) if whole => {
                let beyond = n.as_i128().unwrap() + i128::from(step);
                inside.push(n.clone().into());
                // Numbers beyond 64 bits are floats to a reader of JSON, and no whole ones.
                outside.push(serde_json::from_str(&beyond.to_string()).unwrap());
            }
            Value::Number(n) => {
                inside.push(n.clone().into());
                outside.push((n.as_f64().unwrap() + f64::from(step) * 0.001).into());
            }
            _ => {}
        }
    }
    let length = |bound: &str| schema[bound].as_u64().map(|n| n as usize);
    // A letter of two bytes: bounds are in characters.
    if let Some(n) = length("maxLength") {
        inside.push("é".repeat(n).into());
        outside.push("é".repeat(n + 1).into());
    }
    if length("minLength") == Some(1) {
        outside.push("".into());
    }
    if length("minItems") == Some(1) {
        outside.push(json!([]));
    }
    if let Some(n) = length("maxItems") {
        let item = if schema["items"]["type"] == "integer" { json!(1) } else { json!("x") };
        inside.push(vec![item.clone(); n].into());
        outside.push(vec![item; n + 1].into());
    }
    for allowed in schema["enum"].as_array().into_iter().flatten() {
        inside.push(allowed.clone());
        outside = vec![json!("no such word"), json!(true)];
    }
    (inside, outside)
}

#[tokio::test]
async fn the_described_bounds_are_those_that_hold() {
    let (unit, document) = (unit().await, document());
    let mut tried = 0;
    for (schema, path, base) in [
        ("ChatRequest", CHAT, json!({"messages": [{"role": "user", "content": "x"}], "logprobs": true})),
        ("CompletionRequest", TEXT, json!({"prompt": "x", "echo": true})),
        ("TokenizeRequest", "/tokenize", json!({"prompt": "x"})),
        ("DetokenizeRequest", "/detokenize", json!({"tokens": [1]})),
    ] {
        for (field, described) in document["components"]["schemas"][schema]["properties"].as_object().unwrap()
        {
            let (inside, outside) = around(&document, described);
            let ask = async |value: &Value| {
                let mut body = base.clone();
                if field != "max_tokens" && path.starts_with("/v1") {
                    body["max_tokens"] = json!(1);
                }
                body[field] = value.clone();
                let (status, answer) = unit.post(path, &body.to_string()).await;
                let param = answer["error"]["param"].as_str().unwrap_or_default();
                let named = param == field || param.starts_with(&format!("{field}["));
                (status, named, answer)
            };
            for value in inside.iter().filter(|value| fits_this_unit(field, value)) {
                let (status, named, answer) = ask(value).await;
                assert!(status == 200 || !named, "{schema}.{field} refuses {value}: {answer}");
                tried += 1;
            }
            for value in &outside {
                let (status, named, answer) = ask(value).await;
                assert!(status == 400 && named, "{schema}.{field} takes {value}: {answer}");
                tried += 1;
            }
        }
    }
    assert!(tried > 150, "{tried}");
}

/// What the description allows and this unit's model does not: its context, its vocabulary, its lack of thoughts.
fn fits_this_unit(field: &str, value: &Value) -> bool {
    match field {
        "model" | "reasoning_effort" | "response_format" | "guided_choice" | "tools" | "tool_choice" => false,
        "max_tokens" | "max_completion_tokens" | "min_tokens" => value.as_u64() < Some(4000),
        _ => true,
    }
}
