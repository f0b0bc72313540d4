//! Bodies that are refused, each with the field its error names; bodies that are taken.

use serde_json::{Value, json};

use super::*;

fn chat(extra: Value) -> Result<ChatRequest, RequestError> {
    let mut body = json!({"messages": [{"role": "user", "content": "hi"}]});
    for (k, v) in extra.as_object().unwrap() {
        body[k] = v.clone();
    }
    ChatRequest::parse(body.to_string().as_bytes(), UnknownParameters::Refuse)
}

fn completion(body: Value) -> Result<CompletionRequest, RequestError> {
    CompletionRequest::parse(body.to_string().as_bytes(), UnknownParameters::Refuse)
}

#[test]
fn every_bad_field_is_named() {
    for (param, body) in [
        ("n", json!({"n": 1_000_000_000})),
        ("n", json!({"n": 0})),
        ("n", json!({"n": 1.5})),
        ("n", json!({"n": "two"})),
        ("temperature", json!({"temperature": -0.1})),
        ("temperature", json!({"temperature": 2.1})),
        ("temperature", json!({"temperature": "hot"})),
        ("top_p", json!({"top_p": 1.01})),
        ("top_k", json!({"top_k": -2})),
        ("min_p", json!({"min_p": 2})),
        ("presence_penalty", json!({"presence_penalty": 3})),
        ("frequency_penalty", json!({"frequency_penalty": -3})),
        ("repetition_penalty", json!({"repetition_penalty": 0})),
        ("max_tokens", json!({"max_tokens": -1})),
        ("max_tokens", json!({"max_tokens": 0})),
        ("max_tokens", json!({"max_tokens": 1e300})),
        ("max_completion_tokens", json!({"max_completion_tokens": 0.5})),
        ("max_tokens", json!({"max_tokens": 5, "max_completion_tokens": 7})),
        ("seed", json!({"seed": 1e30})),
        ("seed", json!({"seed": "x"})),
        ("stop", json!({"stop": ""})),
        ("stop", json!({"stop": ["a", ""]})),
        ("stop", json!({"stop": ["a", "b", "c", "d", "e"]})),
        ("stop", json!({"stop": 3})),
        ("stop_token_ids", json!({"stop_token_ids": [-1]})),
        ("logit_bias.5", json!({"logit_bias": {"5": 101}})),
        ("logit_bias.x", json!({"logit_bias": {"x": 1}})),
        ("logit_bias", json!({"logit_bias": [1]})),
        ("top_logprobs", json!({"logprobs": true, "top_logprobs": 21})),
        ("top_logprobs", json!({"top_logprobs": 2})),
        ("logprobs", json!({"logprobs": 3})),
        ("stream", json!({"stream": "yes"})),
        ("stream_options", json!({"stream_options": {"include_usage": true}})),
        ("stream_options.foo", json!({"stream": true, "stream_options": {"foo": true}})),
        ("service_tier", json!({"service_tier": "gold"})),
        ("cache_salt", json!({"cache_salt": ""})),
        ("prediction", json!({"prediction": "text"})),
        ("prediction.type", json!({"prediction": {"content": "text"}})),
        ("prediction.type", json!({"prediction": {"type": "text", "content": "text"}})),
        ("prediction.content", json!({"prediction": {"type": "content"}})),
        ("prediction.content", json!({"prediction": {"type": "content", "content": []}})),
        (
            "prediction.content[0].type",
            json!({"prediction": {"type": "content", "content": [{"type": "file"}]}}),
        ),
        ("prediction.more", json!({"prediction": {"type": "content", "content": "", "more": 1}})),
        ("messages", json!({"messages": []})),
        ("messages", json!({"messages": null})),
        ("messages", json!({"messages": "hi"})),
        ("messages[0]", json!({"messages": ["hi"]})),
        ("messages[0].role", json!({"messages": [{"content": "x"}]})),
        ("messages[0].role", json!({"messages": [{"role": "robot", "content": "x"}]})),
        ("messages[0].tool_call_id", json!({"messages": [{"role": "tool", "content": "x"}]})),
        ("messages[0].content", json!({"messages": [{"role": "user"}]})),
        ("messages[0].content", json!({"messages": [{"role": "user", "content": 5}]})),
        ("messages[0].content", json!({"messages": [{"role": "user", "content": []}]})),
        ("prompt_cache_key", json!({"prompt_cache_key": 1})),
        ("user", json!({"user": "u".repeat(513)})),
        ("metadata", json!({"metadata": 3})),
        ("metadata", json!({"metadata": {"a": 1}})),
        ("parallel_tool_calls", json!({"parallel_tool_calls": "no"})),
        ("model", json!({"model": 1})),
        ("messages[0].content", json!({"messages": [{"role": "user", "content": "a\u{0}b"}]})),
        (
            "messages[0].content[0].text",
            json!({"messages": [{"role": "user", "content": [{"type": "text"}]}]}),
        ),
        (
            "messages[0].refusal",
            json!({"messages": [{"role": "assistant", "content": "x", "refusal": "no"}]}),
        ),
        (
            "messages[0].tool_calls",
            json!({"messages": [{"role": "user", "content": "x", "tool_calls": [{}]}]}),
        ),
        (
            "messages[0].tool_calls[0].id",
            json!({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}),
        ),
        (
            "messages[0].tool_calls[0].function.arguments",
            json!({"messages": [{"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f"}}]}]}),
        ),
        ("messages[0].color", json!({"messages": [{"role": "user", "content": "x", "color": 1}]})),
        (
            "messages[1].content[1].type",
            json!({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": [
                {"type": "text", "text": "b"}, {"type": "image_url", "image_url": {"url": "data:"}}]}]}),
        ),
    ] {
        let error = chat(body.clone()).err().unwrap_or_else(|| panic!("{body} was taken"));
        assert_eq!(error.param.as_deref(), Some(param), "{body}: {error}");
        assert!(error.message.contains(param.split('.').next().unwrap_or(param)) || error.code.is_some());
    }
}

#[test]
fn what_is_not_built_and_what_is_not_known_are_told_apart() {
    for (param, body) in [
        ("tools[0].type", json!({"tools": [{"type": "custom", "custom": {"name": "f"}}]})),
        ("messages[0].role", json!({"messages": [{"role": "function", "name": "f", "content": "x"}]})),
        ("response_format.type", json!({"response_format": {"type": "structural_tag"}})),
        ("modalities", json!({"modalities": ["text", "audio"]})),
        ("audio", json!({"audio": {"voice": "x"}})),
        ("store", json!({"store": true})),
        ("chat_template", json!({"chat_template": "{{ 1 }}"})),
        ("structured_outputs.whitespace_pattern", json!({"structured_outputs": {"whitespace_pattern": " "}})),
        ("prompt_logprobs", json!({"prompt_logprobs": 1_000_000})),
        ("echo", json!({"echo": true})),
        ("best_of", json!({"best_of": 2})),
        (
            "stream_options.continuous_usage_stats",
            json!({"stream": true, "stream_options": {"continuous_usage_stats": true}}),
        ),
    ] {
        let error = chat(body).unwrap_err();
        assert_eq!((error.param.as_deref(), error.code), (Some(param), Some("unsupported_parameter")));
    }
    for field in ["suffix", "best_of"] {
        let error = completion(json!({"prompt": "a", field: 2})).unwrap_err();
        assert_eq!((error.param.as_deref(), error.code), (Some(field), Some("unsupported_parameter")));
    }
    let error = chat(json!({"temprature": 1})).unwrap_err();
    assert_eq!((error.param.as_deref(), error.code), (Some("temprature"), Some("unknown_parameter")));
    let body = br#"{"messages": [{"role": "user", "content": "x"}], "temprature": 1}"#;
    assert!(ChatRequest::parse(body, UnknownParameters::Warn).is_ok());
    let body =
        br#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "a": 1}], "b": 2}]}"#;
    assert!(ChatRequest::parse(body, UnknownParameters::Warn).is_ok());
    let error = ChatRequest::parse(body, UnknownParameters::Refuse).unwrap_err();
    assert_eq!(error.param.as_deref(), Some("messages[0].content[0].a"));
}

#[test]
fn limits_hold_at_the_limit_and_one_beyond() {
    let ids = |n: usize| (0..n).map(|i| (i.to_string(), json!(0))).collect::<serde_json::Map<_, _>>();
    for (at, beyond) in [
        (json!({"n": MAX_N}), json!({"n": MAX_N + 1})),
        (json!({"logprobs": true, "top_logprobs": 20}), json!({"logprobs": true, "top_logprobs": 21})),
        (json!({"stop": "x".repeat(MAX_STOP_CHARS)}), json!({"stop": "x".repeat(MAX_STOP_CHARS + 1)})),
        (json!({"stop": vec!["x"; MAX_STOP_STRINGS]}), json!({"stop": vec!["x"; MAX_STOP_STRINGS + 1]})),
        (
            json!({"stop_token_ids": vec![1; MAX_STOP_TOKENS]}),
            json!({"stop_token_ids": vec![1; MAX_STOP_TOKENS + 1]}),
        ),
        (json!({"logit_bias": ids(MAX_LOGIT_BIAS)}), json!({"logit_bias": ids(MAX_LOGIT_BIAS + 1)})),
        (json!({"cache_salt": "é".repeat(256)}), json!({"cache_salt": "é".repeat(257)})),
        (json!({"user": "é".repeat(MAX_LABEL_CHARS)}), json!({"user": "é".repeat(MAX_LABEL_CHARS + 1)})),
        (json!({"temperature": 2}), json!({"temperature": 2.0001})),
    ] {
        assert!(chat(at).is_ok());
        assert!(chat(beyond).is_err());
    }
    let prompts = |n: usize| completion(json!({"prompt": vec!["a"; n]}));
    assert!(prompts(MAX_CHOICES).is_ok() && prompts(MAX_CHOICES + 1).is_err());
    let logprobs = |n: usize| completion(json!({"prompt": "a", "logprobs": n}));
    assert!(logprobs(5).is_ok() && logprobs(6).is_err());
}

#[test]
fn a_prompt_may_be_scored_without_a_completion() {
    let scored = completion(json!({"prompt": "a", "echo": true, "logprobs": 0, "max_tokens": 0})).unwrap();
    assert_eq!(
        (scored.parameters.max_tokens, scored.parameters.logprobs, scored.echo),
        (Some(0), Some(0), true)
    );
    let error = completion(json!({"prompt": "a", "max_tokens": 0})).unwrap_err();
    assert_eq!(error.param.as_deref(), Some("max_tokens"));
}

#[test]
fn what_is_tokenised_is_a_prompt_or_messages() {
    let parse = |body: Value| TokenizeRequest::parse(body.to_string().as_bytes(), UnknownParameters::Refuse);
    let text = TokenizeInput::Prompt { text: "a".into(), add_special_tokens: false };
    assert_eq!(parse(json!({"prompt": "a", "add_special_tokens": false})).unwrap().input, text);
    let message = json!([{"role": "user", "content": "x"}]);
    assert!(matches!(parse(json!({"messages": message})).unwrap().input, TokenizeInput::Messages { .. }));
    for (param, body) in [
        ("prompt", json!({})),
        ("prompt", json!({"prompt": ["a"]})),
        ("messages", json!({"prompt": "a", "messages": message})),
        ("add_special_tokens", json!({"messages": message, "add_special_tokens": true})),
    ] {
        assert_eq!(parse(body).unwrap_err().param.as_deref(), Some(param));
    }
    let parse =
        |body: Value| DetokenizeRequest::parse(body.to_string().as_bytes(), UnknownParameters::Refuse);
    assert_eq!(parse(json!({"tokens": [1, 2]})).unwrap().tokens, [1, 2]);
    for body in
        [json!({}), json!({"tokens": [-1]}), json!({"tokens": "a"}), json!({"tokens": [4294967296u64]})]
    {
        assert_eq!(parse(body).unwrap_err().param.as_deref(), Some("tokens"));
    }
}

#[test]
fn bodies_that_are_not_json_are_refused() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep_field = format!("{{\"messages\": {deep}}}");
    for body in [
        &b""[..],
        b"{",
        b"[]",
        b"\"x\"",
        b"{\"temperature\": NaN}",
        b"{\"temperature\": 1e999}",
        b"{\"messages\": \"\xff\xfe\"}",
        b"{\"a\": \"\\ud800\"}",
        b"{\"n\": 1, \"n\": 2, \"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}",
        deep.as_bytes(),
        deep_field.as_bytes(),
    ] {
        let error = ChatRequest::parse(body, UnknownParameters::Refuse).unwrap_err();
        assert_eq!(error.param, None, "{error}");
    }
}

#[test]
fn calls_and_what_came_of_them_are_read() {
    let request = chat(json!({"messages": [
        {"role": "assistant", "content": null, "tool_calls": [
            {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{\"b\": [1]}"}},
            {"id": "c", "function": {"name": "g", "arguments": ""}},
            {"id": "d", "function": {"name": "g", "arguments": "no JSON"}}]},
        {"role": "tool", "tool_call_id": "a", "content": "x"}]}))
    .unwrap();
    let calls: Vec<Value> =
        request.messages[0].tool_calls.iter().map(|call| call.arguments.clone()).collect();
    assert_eq!(calls, [json!({"b": [1]}), json!({}), json!("no JSON")]);
    assert_eq!(request.messages[1].tool_call_id.as_deref(), Some("a"));
}

#[test]
fn accepted_without_effect() {
    let plain = chat(json!({})).unwrap();
    let decorated = chat(json!({
        "user": "u", "metadata": {"a": "b"}, "safety_identifier": "s", "prompt_cache_key": "k", "store": false,
        "service_tier": "auto", "parallel_tool_calls": true, "tools": [], "tool_choice": "none",
        "response_format": {"type": "text"}, "modalities": ["text"], "temperature": null
    }));
    assert_eq!(decorated.unwrap(), plain);
    let streamed = chat(json!({"stream": true, "stream_options": {"include_obfuscation": false}})).unwrap();
    assert!(streamed.parameters.stream && !streamed.parameters.include_usage);
}

#[test]
fn fields_arrive() {
    let r = chat(json!({
        "model": "m", "n": 2, "stop": "END", "max_tokens": 7, "max_completion_tokens": 7, "temperature": 0.5,
        "top_p": 0.9, "top_k": -1, "seed": -1, "logit_bias": {"17": -100}, "logprobs": true,
        "top_logprobs": 3, "service_tier": "flex", "stream": true, "stream_options": {"include_usage": true},
        "messages": [{"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    }))
    .unwrap();
    let p = &r.parameters;
    assert_eq!((p.n, p.max_tokens, p.top_k, p.seed), (2, Some(7), Some(0), Some(u64::MAX)));
    assert_eq!((p.logprobs, p.service_tier, p.include_usage), (Some(3), ServiceTier::Flex, true));
    assert_eq!(p.logit_bias, [(17, -100.0)]);
    assert_eq!((r.messages[0].role.as_str(), r.messages[0].content.as_str()), ("developer", "ab"));
}

#[test]
fn a_prompt_has_four_forms() {
    let prompts = |p: Value| completion(json!({"prompt": p})).map(|r| r.prompts);
    let text = |s: &str| Prompt::Text(s.into());
    assert_eq!(prompts(json!("a")).unwrap(), [text("a")]);
    assert_eq!(prompts(json!(["a", "b"])).unwrap(), [text("a"), text("b")]);
    assert_eq!(prompts(json!([1, 2])).unwrap(), [Prompt::Tokens(vec![1, 2])]);
    assert_eq!(prompts(json!([[1], [2, 3]])).unwrap(), [Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])]);
    for bad in [json!([]), json!(5), json!([1, "a"]), json!([-1]), json!({"a": 1}), json!(null)] {
        assert_eq!(prompts(bad).unwrap_err().param.as_deref(), Some("prompt"));
    }
    let many = completion(json!({"prompt": vec!["a"; 10], "n": 100})).unwrap_err();
    assert_eq!(many.param.as_deref(), Some("n"));
}

/// A body that uses every field that has a form of its own.
const RICH: &str = r#"{"model":"m","n":2,"stop":["a","b"],"logit_bias":{"7":1.5},"stop_token_ids":[1,2],
"stream":true,"stream_options":{"include_usage":true},"metadata":{"k":"v"},"seed":-9223372036854775808,
"top_k":-1,"temperature":0.5,"prompt":[[1,2],[3]],"tools":[{"type":"function","function":{"name":"f","strict":true,"parameters":{}}}],
"tool_choice":{"type":"allowed_tools","allowed_tools":{"mode":"auto","tools":[{"type":"function","function":{"name":"f"}}]}},
"response_format":{"type":"text"},"messages":[{"role":"user","content":[{"type":"text","text":"x\u00e9"}]},
{"role":"assistant","tool_calls":[{"id":"a","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}}]}]}"#;

proptest::proptest! {
    #[test]
    fn no_body_makes_a_parser_panic(
        cuts in proptest::collection::vec((0..RICH.len(), proptest::prelude::any::<u8>()), 0..6),
        end in 0..=RICH.len(),
    ) {
        let mut body = RICH.as_bytes().to_vec();
        cuts.into_iter().for_each(|(at, byte)| body[at] = byte);
        for body in [&body[..], &body[..end], &body[end..]] {
            for unknown in [UnknownParameters::Refuse, UnknownParameters::Warn] {
                let _ = ChatRequest::parse(body, unknown);
                let _ = CompletionRequest::parse(body, unknown);
                let _ = TokenizeRequest::parse(body, unknown);
                let _ = DetokenizeRequest::parse(body, unknown);
            }
        }
    }

    #[test]
    fn no_value_of_a_field_makes_a_parser_panic(field in "[a-z_]{1,20}", which in 0..12usize) {
        let values = [
            json!(null), json!(true), json!(-1), json!(u64::MAX), json!(i64::MIN), json!(1e308), json!(-0.0),
            json!(""), json!("x"), json!([]), json!([[null, {"a": [1]}]]), json!({"a": {"type": 1}}),
        ];
        let known = ["messages", "prompt", "stop", "seed", "n", "logit_bias", "tokens", "metadata", "top_k",
            "max_tokens", "stream_options", "tools", "tool_choice", "response_format", "stop_token_ids", "logprobs"];
        for name in known.into_iter().chain([field.as_str()]) {
            let body = json!({"stream": true, "prompt": "x", name: values[which]}).to_string();
            let _ = ChatRequest::parse(body.as_bytes(), UnknownParameters::Refuse);
            let _ = CompletionRequest::parse(body.as_bytes(), UnknownParameters::Refuse);
            let _ = TokenizeRequest::parse(body.as_bytes(), UnknownParameters::Refuse);
            let _ = DetokenizeRequest::parse(body.as_bytes(), UnknownParameters::Refuse);
        }
    }
}
