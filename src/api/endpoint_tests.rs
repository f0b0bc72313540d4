//! The endpoints as a client sees them, over the real server and an engine that always says the same.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::api::test_engine::{FAILING_SEED, Pace};
use crate::api::testing::{REPLY, Unit, eventually, quick_limits};
use crate::api::{ApiConfig, ServerConfig, routes};
use crate::wire::client::Response;
use crate::wire::response::{ChatChunk, ChatCompletion, ModelList, TextCompletion};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

async fn unit() -> Unit {
    Unit::start(ApiConfig::default(), ServerConfig::default()).await
}

fn chat(more: Value) -> String {
    let mut body = json!({"model": "tiny", "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body.to_string()
}

fn error(answer: &(u16, Value)) -> (u16, Option<&str>, Option<&str>) {
    let e = &answer.1["error"];
    assert!(e["message"].is_string() && e["type"].is_string(), "{answer:?}");
    (answer.0, e["param"].as_str(), e["code"].as_str())
}

#[tokio::test]
async fn a_chat_completion() {
    let unit = unit().await;
    let (status, body) = unit.post(CHAT, &chat(json!({"max_tokens": 5, "n": 2}))).await;
    assert_eq!(status, 200);
    for required in ["/choices/0/logprobs", "/choices/0/message/refusal", "/system_fingerprint"] {
        assert!(body.pointer(required).is_some(), "{required} in {body}");
    }
    let answer: ChatCompletion = serde_json::from_value(body).unwrap();
    assert!(answer.id.starts_with("chatcmpl-") && answer.object == "chat.completion");
    assert_eq!(answer.model, "demo/tiny");
    assert_eq!(answer.service_tier.as_deref(), Some("default"));
    assert_eq!(answer.choices.len(), 2);
    for (i, choice) in answer.choices.iter().enumerate() {
        assert_eq!(choice.index, i);
        assert_eq!(choice.message.role, "assistant");
        // Five tokens of one byte each; the fifth is half of a letter.
        assert_eq!(choice.message.content.as_deref(), Some("Grü\u{fffd}"));
        assert_eq!(choice.finish_reason.as_deref(), Some("length"));
    }
    let usage = answer.usage;
    assert_eq!(usage.completion_tokens, 10);
    assert_eq!(usage.prompt_tokens_details.cached_tokens, 1);
    assert_eq!(usage.total_tokens, usage.prompt_tokens + 10);
    assert!(
        unit.metric("hashwatt_requests_finished_total{model_name=\"test\",finished_reason=\"length\"} 2")
    );
    assert!(unit.metric("vllm:e2e_request_latency_seconds_count{model_name=\"test\"} 1"));
}

#[tokio::test]
async fn a_chat_stream() {
    let unit = unit().await;
    let body =
        chat(json!({"max_completion_tokens": 40, "stream": true, "stream_options": {"include_usage": true}}));
    let events = unit.stream(CHAT, &body).await;
    assert_eq!(events.last().unwrap(), "[DONE]");
    let events = &events[..events.len() - 1];
    let chunks: Vec<ChatChunk> = events.iter().map(|e| serde_json::from_str(e).unwrap()).collect();
    let (last, chunks) = chunks.split_last().unwrap();
    assert!(last.choices.is_empty());
    assert_eq!(last.usage.as_ref().unwrap().completion_tokens, 40);
    assert!(events[..chunks.len()].iter().all(|e| e.contains("\"usage\":null")));
    assert!(chunks.iter().all(|c| c.id == last.id && c.created == last.created && c.usage.is_none()));
    assert_eq!(chunks[0].choices[0].delta.role.as_deref(), Some("assistant"));
    let finishes: Vec<_> = chunks.iter().filter_map(|c| c.choices[0].finish_reason.as_deref()).collect();
    assert_eq!(finishes, ["length"]);
    let text: String = chunks.iter().filter_map(|c| c.choices[0].delta.content.as_deref()).collect();
    assert!(REPLY.repeat(4).starts_with(text.trim_end_matches('\u{fffd}')), "{text}");
}

#[tokio::test]
async fn stops_are_not_part_of_the_text() {
    let unit = unit().await;
    let (status, body) = unit.post(CHAT, &chat(json!({"max_tokens": 100, "stop": [", w"]}))).await;
    assert_eq!(status, 200);
    assert_eq!(body["choices"][0]["message"]["content"], "Grüße");
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn logprobs_of_both_shapes() {
    let unit = unit().await;
    let ask = chat(json!({"max_tokens": 2, "logprobs": true, "top_logprobs": 2}));
    let answer: ChatCompletion = serde_json::from_value(unit.post(CHAT, &ask).await.1).unwrap();
    let content = &answer.choices[0].logprobs.as_ref().unwrap().content;
    assert_eq!(content.len(), 2);
    assert_eq!((content[0].token.as_str(), content[0].logprob), ("G", -0.25));
    assert_eq!(content[0].bytes.as_deref(), Some(&b"G"[..]));
    assert_eq!(content[0].top_logprobs.len(), 2);
    let ask = json!({"model": "tiny", "prompt": "ab", "max_tokens": 2, "logprobs": 1, "echo": true});
    let answer: TextCompletion = serde_json::from_value(unit.post(TEXT, &ask.to_string()).await.1).unwrap();
    assert!(answer.id.starts_with("cmpl-") && answer.object == "text_completion");
    assert_eq!(answer.choices[0].text, "abGr");
    let logprobs = answer.choices[0].logprobs.as_ref().unwrap();
    assert_eq!(logprobs.tokens, ["a", "b", "G", "r"]);
    assert_eq!(logprobs.text_offset, [0, 1, 2, 3]);
    assert_eq!(logprobs.token_logprobs, [None, Some(-0.25), Some(-0.25), Some(-0.25)]);
    // Streamed, the parts add up to the same.
    let ask = json!({"model": "tiny", "prompt": "ab", "max_tokens": 2, "logprobs": 1, "echo": true, "stream": true});
    let mut text = String::new();
    let mut offsets = Vec::new();
    for event in unit.stream(TEXT, &ask.to_string()).await.iter().filter(|e| *e != "[DONE]") {
        let chunk: TextCompletion = serde_json::from_str(event).unwrap();
        text += &chunk.choices[0].text;
        offsets.extend(chunk.choices[0].logprobs.iter().flat_map(|l| l.text_offset.clone()));
    }
    assert_eq!((text.as_str(), offsets), ("abGr", vec![0, 1, 2, 3]));
}

#[tokio::test]
async fn refusals_name_the_field() {
    let unit = unit().await;
    assert_eq!(error(&unit.post(CHAT, "{").await), (400, None, None));
    assert_eq!(error(&unit.post(CHAT, "").await), (400, None, None));
    assert_eq!(error(&unit.post(CHAT, &"[".repeat(100_000)).await), (400, None, None));
    assert_eq!(error(&unit.post(CHAT, &chat(json!({"n": 1_000_000_000}))).await), (400, Some("n"), None));
    let unknown = unit.post(CHAT, &chat(json!({"model": "nope"}))).await;
    assert_eq!(error(&unknown), (404, Some("model"), Some("model_not_found")));
    let options = unit.post(CHAT, &chat(json!({"stream_options": {"include_usage": true}}))).await;
    assert_eq!(error(&options), (400, Some("stream_options"), None));
    for (field, value) in [("suffix", json!("x")), ("best_of", json!(2))] {
        let mut body = json!({"prompt": "x"});
        body[field] = value;
        let answer = unit.post(TEXT, &body.to_string()).await;
        assert_eq!(error(&answer), (400, Some(field), Some("unsupported_parameter")));
    }
    let long = unit.post(CHAT, &chat(json!({"max_tokens": 1_000_000}))).await;
    assert_eq!(error(&long).2, Some("context_length_exceeded"));
}

#[tokio::test]
async fn a_failure_is_a_500_or_an_error_event() {
    let unit = unit().await;
    let failing = json!({"seed": FAILING_SEED, "max_tokens": 50});
    assert_eq!(error(&unit.post(CHAT, &chat(failing.clone())).await), (500, None, Some("internal_error")));
    let mut failing = failing;
    failing["stream"] = json!(true);
    let events = unit.stream(CHAT, &chat(failing)).await;
    let (done, rest) = events.split_last().unwrap();
    assert_eq!(done, "[DONE]");
    let last: Value = serde_json::from_str(rest.last().unwrap()).unwrap();
    assert_eq!(last["error"]["type"], "server_error");
    assert!(rest.len() > 1);
    assert!(unit.metric("hashwatt_requests_finished_total{model_name=\"test\",finished_reason=\"error\"} 2"));
}

#[tokio::test]
async fn loading_then_ready_then_draining() {
    let unit = Unit::loading(ApiConfig::default(), ServerConfig::default(), axum::Router::new()).await;
    let expect = async |status: u16, code: Option<&str>| {
        assert_eq!(unit.get("/livez").await.0, 200);
        assert_eq!(unit.get("/v1/models").await.0, 200);
        for path in ["/readyz", "/health"] {
            let ready = unit.get(path).await;
            assert_eq!((ready.0, ready.1["error"]["code"].as_str()), (status, code), "{path}");
        }
        let mut answer =
            unit.client().post_json(CHAT, chat(json!({"max_tokens": 1})).as_bytes()).await.unwrap();
        assert_eq!(answer.status, status);
        if status == 503 {
            assert!(answer.header("retry-after").is_some() && answer.header("retry-after-ms").is_some());
            let body: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
            assert_eq!(body["error"]["code"].as_str(), code);
        }
    };
    expect(503, Some("model_loading")).await;
    unit.load(Pace::default());
    expect(200, None).await;
    unit.state.service.unit().drain();
    expect(503, Some("draining")).await;
}

#[tokio::test]
async fn a_full_queue_is_a_503_at_once() {
    let unit = Unit::loading(ApiConfig::default(), ServerConfig::default(), axum::Router::new()).await;
    unit.load(Pace { slots: 1, max_queue: 1, step: Duration::from_millis(5) });
    let mut streams: Vec<Response> = Vec::new();
    let mut refused = None;
    let body = chat(json!({"max_tokens": 3000, "stream": true}));
    for _ in 0..3 {
        let mut answer = unit.client().post_json(CHAT, body.as_bytes()).await.unwrap();
        if answer.status == 200 {
            streams.push(answer);
        } else {
            let body = answer.bytes().await.unwrap();
            refused = Some((answer.status, serde_json::from_slice(&body).unwrap()));
            assert_eq!(answer.header("retry-after"), Some("1"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(streams.len(), 2);
    assert_eq!(error(&refused.unwrap()), (503, None, Some("server_overloaded")));
    // Leaving frees the running and the waiting place.
    drop(streams);
    eventually("both are gone", || unit.state.service.unit().live_requests() == 0).await;
}

#[tokio::test]
async fn the_choices_of_one_request_need_no_queue_when_the_engine_has_room() {
    let unit = Unit::loading(ApiConfig::default(), ServerConfig::default(), axum::Router::new()).await;
    unit.load(Pace { slots: 4, max_queue: 1, ..Pace::default() });
    let body = |n: usize| chat(json!({"max_tokens": 5, "n": n}));
    for (n, status) in [(5, 200), (6, 503)] {
        let answer = unit.client().post_json(CHAT, body(n).as_bytes()).await.unwrap();
        assert_eq!(answer.status, status, "n = {n}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_sequence() {
    let unit = unit().await;
    for stream in [true, false] {
        let body = chat(json!({"max_tokens": 4000, "stream": stream}));
        let mut socket = unit.connect().await;
        let head = format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
        socket.write_all((head + &body).as_bytes()).await.unwrap();
        eventually("it runs", || unit.state.service.unit().live_requests() == 1).await;
        drop(socket);
        eventually("it is cancelled", || unit.state.service.unit().live_requests() == 0).await;
    }
    eventually("they count as aborted", || {
        unit.metric("hashwatt_requests_finished_total{model_name=\"test\",finished_reason=\"abort\"} 2")
    })
    .await;
}

#[tokio::test]
async fn an_abort_ends_streams_with_an_error_and_the_server_with_them() {
    let unit = unit().await;
    let body = chat(json!({"max_tokens": 4000, "stream": true}));
    let mut response = unit.client().post_json(CHAT, body.as_bytes()).await.unwrap();
    unit.shutdown.cancel();
    response.next_event().await.unwrap().unwrap();
    assert_eq!(unit.get("/readyz").await.0, 503);
    unit.state.service.unit().abort();
    let mut last = Vec::new();
    while let Some(event) = response.next_event().await.unwrap() {
        last.push(event.data);
    }
    assert_eq!(last.pop().unwrap(), "[DONE]");
    let error: Value = serde_json::from_str(&last.pop().unwrap()).unwrap();
    assert_eq!(error["error"]["code"], "draining");
    tokio::time::timeout(Duration::from_secs(5), unit.server).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_slow_reader_loses_its_sequence() {
    let config = ServerConfig { limits: quick_limits(), ..ServerConfig::default() };
    let unit = Unit::loading(ApiConfig::default(), config, axum::Router::new()).await;
    unit.load(Pace { step: Duration::from_micros(10), ..Pace::default() });
    // Many choices and little read: socket buffers fill, then ours, then the limit strikes.
    let body = chat(json!({"max_tokens": 4000, "stream": true, "n": 128}));
    let mut socket = unit.connect().await;
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    socket.write_all((head + &body).as_bytes()).await.unwrap();
    socket.read_u8().await.unwrap();
    eventually("it runs", || unit.state.service.unit().live_requests() > 0).await;
    eventually("it is cut off", || unit.metric("hashwatt_http_connections 0")).await;
    eventually("its sequences are freed", || unit.state.service.unit().live_requests() == 0).await;
}

#[tokio::test]
async fn models_and_tokens() {
    let unit = unit().await;
    let list: ModelList = serde_json::from_value(unit.get("/v1/models").await.1).unwrap();
    let ids: Vec<_> = list.data.iter().map(|m| m.id.as_str()).collect();
    assert_eq!(ids, ["demo/tiny", "tiny"]);
    assert_eq!(list.data[1].root.as_deref(), Some("demo/tiny"));
    assert_eq!(list.data[0].max_model_len, Some(4096));
    for path in ["/v1/models/demo/tiny", "/v1/models/demo%2Ftiny", "/v1/models/tiny"] {
        assert_eq!(unit.get(path).await.0, 200, "{path}");
    }
    assert_eq!(error(&unit.get("/v1/models/other").await).2, Some("model_not_found"));
    let (_, tokens) = unit.post("/tokenize", r#"{"prompt": "Grüße"}"#).await;
    assert_eq!(tokens["count"], 7);
    let back = unit.post("/detokenize", &json!({"tokens": tokens["tokens"]}).to_string()).await;
    assert_eq!(back, (200, json!({"prompt": "Grüße"})));
    assert_eq!(unit.post("/detokenize", r#"{"tokens": [99999999]}"#).await.0, 400);
}

#[tokio::test]
async fn metrics_in_both_formats() {
    let unit = unit().await;
    let mut plain = unit.client().get("/metrics").await.unwrap();
    assert_eq!(plain.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let text = String::from_utf8(plain.bytes().await.unwrap()).unwrap();
    assert!(text.contains("# TYPE vllm:prompt_tokens_total counter\n"));
    assert!(
        text.contains("vllm:cache_config_info{model_name=\"test\",engine=\"0\",block_size=\"16\""),
        "{text}"
    );
}

/// The document and the router name the same routes and methods.
#[tokio::test]
async fn the_openapi_document_is_the_router() {
    let unit = unit().await;
    let (_, document) = unit.get("/openapi.json").await;
    let paths = document["paths"].as_object().unwrap();
    for (path, methods) in paths {
        let mut methods: Vec<_> = methods.as_object().unwrap().keys().map(|m| m.to_uppercase()).collect();
        if methods == ["GET"] {
            methods.push("HEAD".into());
        }
        let concrete = path.replace("{id}", "tiny");
        let request = format!("PATCH {concrete} HTTP/1.1\r\nconnection: close\r\n\r\n");
        let answer = crate::api::testing::exchange(&unit, &request).await;
        assert!(answer.starts_with("HTTP/1.1 405 "), "{path}: {answer}");
        assert!(answer.contains(&format!("\r\nallow: {}\r\n", methods.join(","))), "{path}: {answer}");
    }
    // axum lists its routes only in its debug form.
    let router = format!("{:?}", routes());
    let known = router.split("fallback_router").next().unwrap().split('"');
    let known: BTreeSet<String> =
        known.filter(|s| s.starts_with('/')).map(|s| s.replace("{*", "{")).collect();
    assert_eq!(known, paths.keys().cloned().collect());
}

/// Every request field of the document is one that the parser knows and supports.
#[tokio::test]
async fn the_openapi_document_describes_what_is_accepted() {
    let unit = unit().await;
    let (_, document) = unit.get("/openapi.json").await;
    for (schema, path) in [
        ("ChatRequest", CHAT),
        ("CompletionRequest", TEXT),
        ("TokenizeRequest", "/tokenize"),
        ("DetokenizeRequest", "/detokenize"),
    ] {
        let fields = document["components"]["schemas"][schema]["properties"].as_object().unwrap();
        for field in fields.keys() {
            let mut body = json!({"max_tokens": 1});
            match path {
                CHAT => body["messages"] = json!([{"role": "user", "content": "x"}]),
                "/detokenize" => body = json!({"tokens": [1]}),
                "/tokenize" => {
                    let other = if field.contains("gen") || field.contains("tool") || field == "messages" {
                        "messages"
                    } else {
                        "prompt"
                    };
                    body = json!({other: if other == "prompt" { json!("x") } else { json!([{"role": "user", "content": "x"}]) }});
                }
                _ => body["prompt"] = json!("x"),
            }
            // A wrong type is refused otherwise than an unknown name.
            body[field] = match field.as_str() {
                // Of these only the values that are described are known.
                _ if fields[field]["maxItems"] == 0 => json!([]),
                _ if fields[field]["enum"].is_array() => fields[field]["enum"][0].clone(),
                "structured_outputs" => json!({"regex": []}),
                "response_format" => json!({"type": 1}),
                _ => json!({"x": []}),
            };
            let answer = unit.post(path, &body.to_string()).await;
            let code = answer.1["error"]["code"].as_str().unwrap_or_default();
            assert!(!code.starts_with("un"), "{schema}.{field}: {answer:?}");
        }
    }
}
