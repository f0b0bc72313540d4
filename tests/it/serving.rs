//! A whole unit over HTTP, with the demo model: many clients at once get exactly what they get alone.

use std::sync::Arc;
use std::time::Duration;

use hashwatt::api::Server;
use hashwatt::cli::{assemble, serve_state};
use hashwatt::clock::Clock;
use hashwatt::config::Resolved;
use hashwatt::engine::fault::Faults;
use hashwatt::unit::Unit;
use hashwatt::wire::client::Client;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// A running unit on a free port.
pub struct Running {
    pub runtime: tokio::runtime::Runtime,
    pub url: String,
    pub unit: Arc<Unit>,
    pub stop: CancellationToken,
    /// Ends when the server has drained.
    pub server: Option<tokio::task::JoinHandle<std::io::Result<()>>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub fn serve(settings: &[(&'static str, &str)]) -> Running {
    serve_with_faults(settings, &[])
}

/// The same with engines that meet faults.
pub fn serve_with_faults(settings: &[(&'static str, &str)], faults: &[Faults]) -> Running {
    let flags: Vec<_> = settings.iter().map(|(k, v)| (*k, v.to_string())).collect();
    let config = Resolved::merge(&flags, &[]).unwrap().config().unwrap();
    let unit = Unit::new(Clock::system());
    let opened = assemble::open(&config, &unit).unwrap();
    let metered = assemble::meters(&config, unit.clock()).unwrap();
    assemble::start_with_faults(&config, &opened, &unit, metered, faults).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let stop = CancellationToken::new();
    let state = serve_state(&config, &opened, &unit);
    let server = runtime.spawn(Server::default().run(listener, state, stop.clone()));
    Running { runtime, url, unit, stop, server: Some(server) }
}

/// The demo model's folder with its chat template changed.
pub fn demo_with_template(change: impl Fn(&str) -> String) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let from = concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo");
    for name in ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(format!("{from}/{name}"), folder.path().join(name)).unwrap();
    }
    let text = std::fs::read_to_string(format!("{from}/tokenizer_config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    config["chat_template"] = change(config["chat_template"].as_str().unwrap()).into();
    std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    folder
}

/// What a streamed chat came to: its text, its finish reason.
pub async fn stream(client: &Client, path: &str, body: &Value) -> (String, String) {
    let mut response = client.post_json(path, body.to_string().as_bytes()).await.unwrap();
    if response.status != 200 {
        let body = response.bytes().await.unwrap();
        panic!("{}: {}", response.status, String::from_utf8_lossy(&body));
    }
    let (mut text, mut finish) = (String::new(), String::new());
    while let Some(event) = response.next_event().await.unwrap().filter(|e| !e.is_done()) {
        let chunk: Value = serde_json::from_str(&event.data).unwrap();
        assert!(chunk.get("error").is_none(), "{chunk}");
        for key in ["/choices/0/delta/content", "/choices/0/text"] {
            text += chunk.pointer(key).and_then(Value::as_str).unwrap_or_default();
        }
        if let Some(reason) = chunk.pointer("/choices/0/finish_reason").and_then(Value::as_str) {
            finish = reason.to_string();
        }
    }
    (text, finish)
}

fn request(i: usize) -> Value {
    let questions = [
        "What is hashprice?",
        "How do I start the server?",
        "List three endpoints",
        "Explain curtailment, and then say what a joule is",
        "hi",
    ];
    let mut body = json!({
        "stream": true, "ignore_eos": true, "temperature": 0, "max_tokens": 24 + (i * 7) % 40,
        "messages": [
            {"role": "system", "content": "You are a helpful assistant. Answer in brief and stay with the facts."},
            {"role": "user", "content": format!("{} ({i}) {}", questions[i % 5], "and more ".repeat(i % 9))},
        ],
    });
    if i.is_multiple_of(4) {
        body["temperature"] = json!(0.9);
        body["top_p"] = json!(0.95);
        body["seed"] = json!(i);
    }
    body
}

#[test]
fn sixty_four_clients_at_once_get_what_they_get_alone() {
    const CLIENTS: usize = 64;
    const PATH: &str = "/v1/chat/completions";
    let alone = {
        let unit = serve(&[("threads", "1")]);
        let client = Client::new(&unit.url).unwrap();
        unit.runtime.block_on(async {
            let mut all = Vec::new();
            for i in 0..CLIENTS {
                all.push(stream(&client, PATH, &request(i)).await);
            }
            all
        })
    };
    let unit = serve(&[("threads", "2")]);
    let together = unit.runtime.block_on(async {
        let tasks: Vec<_> = (0..CLIENTS)
            .map(|i| {
                let client = Client::new(&unit.url).unwrap();
                tokio::spawn(async move {
                    // Staggered: some come while others decode.
                    tokio::time::sleep(Duration::from_millis((i as u64 * 37) % 50)).await;
                    stream(&client, PATH, &request(i)).await
                })
            })
            .collect();
        let mut all = Vec::new();
        for task in tasks {
            all.push(task.await.unwrap());
        }
        all
    });
    for (i, (a, t)) in alone.iter().zip(&together).enumerate() {
        assert_eq!(a, t, "client {i}");
        assert!(!a.0.is_empty() && a.1 == "length", "client {i}: {a:?}");
    }
    let metrics = unit.runtime.block_on(async {
        let mut response = Client::new(&unit.url).unwrap().get("/metrics").await.unwrap();
        String::from_utf8(response.bytes().await.unwrap()).unwrap()
    });
    let value = |name: &str| -> f64 {
        let line = metrics.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("no {name}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!(value("hashwatt_engine_step_rows_max{") >= 16.0);
    assert!(value("vllm:prefix_cache_hits_total{") >= 1.0);
    assert_eq!(value("vllm:num_requests_running{"), 0.0);
}

#[test]
fn two_engines_share_the_load_and_agree() {
    let unit = serve(&[("device", "cpu,cpu"), ("threads", "2")]);
    assert_eq!(unit.unit.replicas().len(), 2);
    let answers = unit.runtime.block_on(async {
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let client = Client::new(&unit.url).unwrap();
                tokio::spawn(async move { stream(&client, "/v1/chat/completions", &request(1)).await })
            })
            .collect();
        let mut all = Vec::new();
        for task in tasks {
            all.push(task.await.unwrap());
        }
        all
    });
    assert!(answers.windows(2).all(|w| w[0] == w[1]));
    for replica in unit.unit.replicas() {
        let steps = replica.stats().steps.load(std::sync::atomic::Ordering::Relaxed);
        assert!(steps > 0, "an engine was idle");
    }
}

#[test]
fn bad_bodies_are_refused_by_name_and_the_server_goes_on() {
    let unit = serve(&[("threads", "1"), ("max-body-bytes", "64KiB")]);
    let client = Client::new(&unit.url).unwrap();
    let deep = format!("{{\"messages\": {}{}}}", "[".repeat(20_000), "]".repeat(20_000));
    let long = json!({"messages": [{"role": "user", "content": "word ".repeat(9_000)}]}).to_string();
    let large = json!({"messages": [{"role": "user", "content": "x".repeat(70_000)}]}).to_string();
    let ask = |more: &str| format!("{{\"messages\": [{{\"role\": \"user\", \"content\": \"hi\"}}], {more}}}");
    /// Body, status, `param`, `code` where it matters.
    type Case = (Vec<u8>, u16, Option<&'static str>, Option<&'static str>);
    let cases: Vec<Case> = vec![
        (b"{".to_vec(), 400, None, None),
        (deep.into_bytes(), 400, None, None),
        (b"{\"messages\": \"\xff\"}".to_vec(), 400, None, None),
        (ask("\"temperature\": NaN").into_bytes(), 400, None, None),
        (ask("\"n\": 1000000000").into_bytes(), 400, Some("n"), None),
        (ask("\"stop\": \"\"").into_bytes(), 400, Some("stop"), None),
        (ask("\"max_tokens\": -5").into_bytes(), 400, Some("max_tokens"), None),
        (ask("\"logit_bias\": {\"999999\": 1}").into_bytes(), 400, Some("logit_bias"), None),
        (ask("\"model\": \"nobody\"").into_bytes(), 404, Some("model"), Some("model_not_found")),
        (ask("\"colour\": 1").into_bytes(), 400, Some("colour"), Some("unknown_parameter")),
        (ask("\"tools\": [{}]").into_bytes(), 400, Some("tools[0].type"), None),
        (ask("\"max_tokens\": 5000").into_bytes(), 400, Some("messages"), Some("context_length_exceeded")),
        (long.into_bytes(), 400, Some("messages"), Some("context_length_exceeded")),
        (large.into_bytes(), 413, None, Some("payload_too_large")),
        (b"{\"messages\": []}".to_vec(), 400, Some("messages"), None),
        (
            b"{\"messages\": [{\"role\": \"x\", \"content\": \"y\"}]}".to_vec(),
            400,
            Some("messages[0].role"),
            None,
        ),
    ];
    unit.runtime.block_on(async {
        for (body, status, param, code) in cases {
            let shown = String::from_utf8_lossy(&body[..body.len().min(120)]).into_owned();
            let mut response = client.post_json("/v1/chat/completions", &body).await.unwrap();
            let answer: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
            assert_eq!(response.status, status, "{shown}: {answer}");
            let error = &answer["error"];
            assert!(error["message"].is_string() && error["type"].is_string(), "{answer}");
            assert_eq!(error["param"].as_str(), param, "{shown}: {answer}");
            if code.is_some() {
                assert_eq!(error["code"].as_str(), code, "{shown}: {answer}");
            }
        }
        let body = json!({"messages": [{"role": "user", "content": "hi"}], "stream": true, "max_tokens": 4});
        assert!(!stream(&client, "/v1/chat/completions", &body).await.0.is_empty());
    });
}

#[test]
fn a_predicted_answer_is_the_same_one_and_guessed() {
    let unit = serve(&[("threads", "1"), ("speculative", "prompt-lookup")]);
    let plain = serve(&[("threads", "1")]);
    let ask = |unit: &Running, prediction: Value| {
        let mut body = request(0);
        (body["stream"], body["max_tokens"], body["temperature"]) = (json!(false), json!(60), json!(0));
        body["prediction"] = prediction;
        unit.runtime.block_on(async {
            let client = Client::new(&unit.url).unwrap();
            let body = body.to_string();
            let mut response = client.post_json("/v1/chat/completions", body.as_bytes()).await.unwrap();
            let answer: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
            assert_eq!(response.status, 200, "{answer}");
            let accepted = &answer["usage"]["completion_tokens_details"]["accepted_prediction_tokens"];
            (
                answer["choices"][0]["message"]["content"].as_str().unwrap().to_string(),
                accepted.as_u64().unwrap(),
            )
        })
    };
    let (answer, unguessed) = ask(&plain, Value::Null);
    assert_eq!((unguessed, ask(&unit, Value::Null).0), (0, answer.clone()));
    let without = ask(&unit, Value::Null).1;
    let (first, rest) = answer.split_at(answer.find(' ').unwrap());
    let parts = json!([{"type": "text", "text": first}, {"type": "text", "text": rest}]);
    for content in [json!(answer), parts] {
        let prediction = json!({"type": "content", "content": content});
        assert_eq!(ask(&plain, prediction.clone()), (answer.clone(), 0));
        let (predicted, accepted) = ask(&unit, prediction);
        assert_eq!(predicted, answer);
        assert!(accepted > 30 && accepted > without, "{accepted} of 60, {without} without a prediction");
    }
    let other = json!({"type": "content", "content": "Something else altogether, what is hashprice?"});
    assert_eq!(ask(&unit, other).0, answer);
}
