//! Keys, limits, usage and the admin listeners, over HTTP with the demo model; and across `kill -9` with the real
//! program.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use hashwatt::access::Access;
use hashwatt::api::{ApiState, Server};
use hashwatt::cli::{Listening, assemble, open_access, serve_admin, serve_state_with};
use hashwatt::clock::Clock;
use hashwatt::config::Resolved;
use hashwatt::store::{By, Limits, Scopes, Store, UsageQuery};
use hashwatt::unit::Unit;
use hashwatt::wire::client::{Client, Response};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const CHAT: &str = "/v1/chat/completions";

/// A unit with a store, and what tests look at behind its back.
struct Keyed {
    runtime: tokio::runtime::Runtime,
    url: String,
    state: Arc<ApiState>,
    unit: Arc<Unit>,
    stop: CancellationToken,
    listening: Option<Listening>,
    dir: tempfile::TempDir,
}

impl Drop for Keyed {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn start(settings: &[(&'static str, &str)]) -> Keyed {
    let dir = tempfile::tempdir().unwrap();
    let mut flags: Vec<_> = settings.iter().map(|(k, v)| (*k, v.to_string())).collect();
    flags.push(("state-dir", dir.path().join("state").display().to_string()));
    flags.push(("admin-listen", format!("unix:{}", dir.path().join("admin.sock").display())));
    flags.push(("threads", "1".into()));
    let config = Resolved::merge(&flags, &[]).unwrap().config().unwrap();
    let unit = Unit::new(Clock::system());
    let access = open_access(&config, unit.clock()).unwrap();
    let opened = assemble::open(&config, &unit).unwrap();
    assemble::start(&config, &opened, &unit).unwrap();
    let state = serve_state_with(&config, &opened, &unit, access);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let stop = CancellationToken::new();
    let (url, listening) = runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let listening = serve_admin(&config, &state).await.unwrap();
        tokio::spawn(Server::default().run(listener, state.clone(), stop.clone()));
        (url, Some(listening))
    });
    Keyed { runtime, url, state, unit, stop, listening, dir }
}

impl Keyed {
    fn access(&self) -> &Arc<Access> {
        &self.state.config.access
    }

    fn key(&self, name: &str, scopes: Scopes, limits: Limits) -> String {
        self.access().create(name, scopes, limits).unwrap().secret
    }

    fn client(&self, key: &str) -> Client {
        Client::new(&self.url).unwrap().with_api_key(Some(key.to_owned()).filter(|k| !k.is_empty()))
    }

    fn admin(&self) -> Client {
        Client::of_socket(&self.dir.path().join("admin.sock"))
    }

    fn post(&self, key: &str, path: &str, body: &Value) -> (u16, Value, Response) {
        self.runtime.block_on(post(&self.client(key), path, body))
    }

    fn get(&self, key: &str, path: &str) -> (u16, Value) {
        self.runtime.block_on(async {
            let mut response = self.client(key).get(path).await.unwrap();
            let body = response.bytes().await.unwrap();
            (response.status, serde_json::from_slice(&body).unwrap_or_default())
        })
    }

    fn sums(&self, by: &[By]) -> Vec<hashwatt::store::Sum> {
        let query = UsageQuery { by: by.to_vec(), ..UsageQuery::default() };
        self.access().store().unwrap().usage(&query).unwrap()
    }
}

async fn post(client: &Client, path: &str, body: &Value) -> (u16, Value, Response) {
    let mut response = client.post_json(path, body.to_string().as_bytes()).await.unwrap();
    let bytes = response.bytes().await.unwrap();
    (response.status, serde_json::from_slice(&bytes).unwrap_or_default(), response)
}

fn chat(tokens: usize, more: Value) -> Value {
    let mut body = json!({
        "messages": [{"role": "user", "content": "What is hashprice?"}],
        "max_tokens": tokens, "ignore_eos": true, "temperature": 0,
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn error(answer: &(u16, Value, Response)) -> (u16, &str, &str) {
    let error = &answer.1["error"];
    (answer.0, error["code"].as_str().unwrap_or("-"), error["param"].as_str().unwrap_or("-"))
}

#[test]
fn nothing_answers_without_a_key_but_the_probes() {
    let unit = start(&[("metrics", "key")]);
    assert_eq!(unit.post("whatever bearer is sent", CHAT, &chat(1, json!({}))).0, 200);
    let key = unit.key("one", Scopes::default(), Limits::default());
    let document = unit.get(&key, "/openapi.json").1;
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() > 10);
    let also =
        ["/", "/v1", "/admin/keys", "/livez/", "/v1/models/x/y", "//livez", "/v2/chat"].map(String::from);
    for path in paths.keys().cloned().chain(also) {
        let real = path.replace("{id}", "demo");
        let probe = ["/livez", "/readyz", "/health"].contains(&path.as_str());
        for key in ["", "hw-wrong"] {
            let (status, body) = unit.get(key, &real);
            assert_eq!(status == 401, !probe, "GET {path}: {status} {body}");
            let answer = unit.post(key, &real, &json!({}));
            assert_eq!(answer.0 == 401, !probe, "POST {path}");
            if !probe {
                assert_eq!(error(&answer), (401, "invalid_api_key", "-"));
                assert_eq!(answer.2.header("www-authenticate"), Some("Bearer"));
            }
        }
        assert_ne!(unit.get(&key, &real).0, 401, "{path}");
    }
    // The operator's routes are not on this port at all.
    for path in ["/admin/keys", "/admin/usage", "/admin/status"] {
        assert_eq!(unit.get(&key, path).0, 404);
    }
    assert_eq!(unit.post(&key, "/admin/backup", &json!({})).0, 404);
}

#[test]
fn metrics_are_for_whom_they_are_said_to_be() {
    for (said, without, with) in [("auto", 200, 200), ("key", 401, 200), ("admin-only", 404, 404)] {
        let unit = start(&[("metrics", said)]);
        let key = unit.key("one", Scopes::default(), Limits::default());
        assert_eq!((unit.get("", "/metrics").0, unit.get(&key, "/metrics").0), (without, with), "{said}");
        let there = unit.runtime.block_on(async { unit.admin().get("/metrics").await.unwrap().status });
        assert_eq!(there, 200);
    }
}

#[test]
fn a_key_is_held_to_its_scopes() {
    let unit = start(&[("served-model-name", "real,alias")]);
    let scoped =
        |scopes| unit.key(&format!("k{}", unit.access().keys().unwrap().len()), scopes, Limits::default());
    let other = scoped(Scopes { models: vec!["other".into()], ..Scopes::default() });
    let answer = unit.post(&other, CHAT, &chat(1, json!({"model": "real"})));
    assert_eq!(error(&answer), (403, "model_not_allowed", "model"));
    assert_eq!(unit.post(&other, CHAT, &chat(1, json!({}))).0, 403, "the default model, too");
    let refused = unit.post(&other, "/tokenize", &json!({"prompt": "a"}));
    assert_eq!(error(&refused), (403, "model_not_allowed", "model"));
    let refused = unit.post(&other, "/detokenize", &json!({"tokens": [1]}));
    assert_eq!(error(&refused), (403, "model_not_allowed", "model"));
    assert_eq!(unit.get(&other, "/v1/models").1["data"], json!([]));
    assert_eq!(unit.get(&other, "/v1/models/real").0, 404);
    let alias = scoped(Scopes { models: vec!["alias".into()], ..Scopes::default() });
    assert_eq!(unit.post(&alias, CHAT, &chat(1, json!({"model": "real"}))).0, 200);

    let text = scoped(Scopes { endpoints: vec!["/v1/completions".into()], ..Scopes::default() });
    assert_eq!(error(&unit.post(&text, CHAT, &chat(1, json!({})))), (403, "endpoint_not_allowed", "-"));
    assert_eq!(unit.post(&text, "/v1/completions", &json!({"prompt": "a", "max_tokens": 1})).0, 200);
    assert_eq!(unit.post(&text, "/tokenize", &json!({"prompt": "a"})).0, 403);
    assert_eq!(unit.get(&text, "/v1/models").0, 200);

    let flex = scoped(Scopes { tiers: vec!["flex".into()], ..Scopes::default() });
    let refused = unit.post(&flex, CHAT, &chat(1, json!({"service_tier": "priority"})));
    assert_eq!(error(&refused), (403, "tier_not_allowed", "service_tier"));
    assert_eq!(unit.post(&flex, CHAT, &chat(1, json!({"service_tier": "default"}))).0, 403);
    for tier in [json!({}), json!({"service_tier": "auto"}), json!({"service_tier": "flex"})] {
        assert_eq!(unit.post(&flex, CHAT, &chat(1, tier)).1["service_tier"], "flex");
    }
    let any = scoped(Scopes::default());
    assert_eq!(
        unit.post(&any, CHAT, &chat(1, json!({"service_tier": "priority"}))).1["service_tier"],
        "priority"
    );
    assert_eq!(unit.post(&any, CHAT, &chat(1, json!({}))).1["service_tier"], "default");
}

#[test]
fn texts_at_an_encoder_are_held_to_scopes_and_limits_and_counted() {
    let unit = start(&[("model", "demo,synthetic:minilm-tiny,synthetic:reranker-tiny")]);
    let limits = Limits { tokens_per_minute: Some(60), ..Limits::default() };
    let key = unit.key("one", Scopes::default(), limits);
    let chats = Scopes { models: vec!["demo".into()], ..Scopes::default() };
    let other = unit.key("two", chats, Limits::default());
    const EMBED: &str = "/v1/embeddings";
    let (status, body, _) = unit.post(&key, EMBED, &json!({"input": ["hashprice", "PUE"]}));
    let embedded = body["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(status == 200 && embedded > 2, "{body}");
    let (status, body, _) = unit.post(&key, "/v1/rerank", &json!({"query": "a", "documents": ["b"]}));
    let ranked = body["usage"]["total_tokens"].as_u64().unwrap();
    assert_eq!(status, 200, "{body}");
    let (status, body, _) = unit.post(&key, "/v1/score", &json!({"text_1": "a", "text_2": "b"}));
    let scored = body["usage"]["total_tokens"].as_u64().unwrap();
    assert_eq!(status, 200, "{body}");
    // What is left has no room for so long a text, and never will have.
    let long = unit.post(&key, EMBED, &json!({"input": "x".repeat(61)}));
    assert_eq!(error(&long), (429, "rate_limit_exceeded", "-"), "{}", long.1);
    assert_eq!(long.2.header("x-should-retry"), Some("false"));
    // Neither by its name nor as the one that is meant without one.
    for body in [json!({"input": "x", "model": "synthetic:minilm-tiny"}), json!({"input": "x"})] {
        let answer = unit.post(&other, EMBED, &body);
        assert_eq!(
            (answer.0, &answer.1["error"]["code"]),
            (403, &json!("model_not_allowed")),
            "{}",
            answer.1
        );
    }
    let models = unit.get(&other, "/v1/models").1;
    assert_eq!(models["data"].as_array().unwrap().len(), 1, "{models}");
    assert_eq!(unit.get(&other, "/v1/models/synthetic:minilm-tiny").0, 404);
    let sums = unit.sums(&[By::Endpoint]);
    let tokens = |path: &str| {
        let found = sums.iter().find(|sum| sum.endpoint.as_deref() == Some(path));
        found.map(|sum| (sum.requests, sum.prompt_tokens, sum.completion_tokens))
    };
    assert_eq!(tokens(EMBED), Some((1, embedded, 0)));
    assert_eq!(tokens("/v1/rerank"), Some((1, ranked, 0)));
    assert_eq!(tokens("/v1/score"), Some((1, scored, 0)));
}

#[test]
fn answers_say_what_is_left() {
    let unit = start(&[]);
    let limits = Limits { requests_per_minute: Some(3), tokens_per_minute: Some(400), ..Limits::default() };
    let key = unit.key("one", Scopes::default(), limits);
    let (status, body, response) = unit.post(&key, CHAT, &chat(10, json!({})));
    assert_eq!(status, 200, "{body}");
    let header = |response: &Response, name: &str| response.header(name).map(str::to_owned);
    assert_eq!(header(&response, "x-ratelimit-limit-requests").as_deref(), Some("3"));
    assert_eq!(header(&response, "x-ratelimit-remaining-requests").as_deref(), Some("2"));
    assert_eq!(header(&response, "x-ratelimit-limit-tokens").as_deref(), Some("400"));
    let used = body["usage"]["total_tokens"].as_u64().unwrap();
    let left = header(&response, "x-ratelimit-remaining-tokens").unwrap().parse::<u64>().unwrap();
    assert_eq!(left, 400 - used, "settled when the answer was whole");
    let reset = header(&response, "x-ratelimit-reset-tokens").unwrap();
    assert!(reset.ends_with('s') && reset != "0s", "{reset}");

    let large = unit.post(&key, CHAT, &chat(600, json!({})));
    assert_eq!(error(&large), (429, "rate_limit_exceeded", "max_tokens"));
    assert_eq!(large.2.header("x-should-retry"), Some("false"));
    let many = chat(395 - usize::try_from(used).unwrap(), json!({}));
    let full = unit.post(&key, CHAT, &many);
    assert_eq!(error(&full), (429, "rate_limit_exceeded", "-"));
    let ms: u64 = full.2.header("retry-after-ms").unwrap().parse().unwrap();
    let seconds: u64 = full.2.header("retry-after").unwrap().parse().unwrap();
    assert!((50_000..=60_100).contains(&ms) && seconds == ms.div_ceil(1000), "{ms} {seconds}");
    let fourth = unit.post(&key, CHAT, &chat(1, json!({})));
    assert_eq!(error(&fourth), (429, "rate_limit_exceeded", "-"));
    assert!(fourth.1["error"]["message"].as_str().unwrap().contains("3 requests per minute"), "{}", fourth.1);
    assert_eq!(fourth.1["error"]["type"], "rate_limit_error");

    let day = unit.key("day", Scopes::default(), Limits { tokens_per_day: Some(50), ..Limits::default() });
    assert_eq!(unit.post(&day, CHAT, &chat(10, json!({}))).0, 200);
    let over = unit.post(&day, CHAT, &chat(20, json!({})));
    assert_eq!(error(&over), (429, "insufficient_quota", "-"), "{}", over.1);
    let seconds: u64 = over.2.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=86_400).contains(&seconds));
}

#[test]
fn a_hundred_clients_pass_no_limit_and_usage_is_what_the_engine_counted() {
    let unit = start(&[]);
    let limits = Limits {
        requests_per_minute: Some(90),
        tokens_per_minute: Some(900),
        concurrent: Some(20),
        ..Limits::default()
    };
    let key = unit.key("busy", Scopes::default(), limits);
    let counted = |unit: &Keyed| {
        let stats = unit.unit.replicas()[0].stats();
        let load = |n: &std::sync::atomic::AtomicU64| n.load(std::sync::atomic::Ordering::Relaxed);
        (load(&stats.prompt_tokens), load(&stats.generated_tokens))
    };
    let before = counted(&unit);
    let answers = unit.runtime.block_on(async {
        let tasks: Vec<_> = (0..100)
            .map(|i| {
                let client = unit.client(&key);
                // Some say how long they may get, some leave early.
                let body = chat(5 + i % 10, json!({"stream": i % 3 == 0, "stream_options": null}));
                let mut body = body;
                if i % 3 != 0 {
                    body.as_object_mut().unwrap().remove("stream");
                }
                body.as_object_mut().unwrap().remove("stream_options");
                tokio::spawn(async move { post(&client, CHAT, &body).await.0 })
            })
            .collect();
        let mut all = Vec::new();
        for task in tasks {
            all.push(task.await.unwrap());
        }
        all
    });
    let served = answers.iter().filter(|s| **s == 200).count() as u64;
    assert!(answers.iter().all(|s| [200, 429].contains(s)), "{answers:?}");
    assert!((1..100).contains(&served), "{served}");
    let sums = unit.sums(&[By::Key]);
    let [sum] = &sums[..] else { panic!("{sums:?}") };
    assert_eq!(sum.requests, served, "one record each, and none for who was refused");
    let used = sum.prompt_tokens + sum.completion_tokens;
    assert!(used <= 900, "{used}");
    let after = counted(&unit);
    assert_eq!((sum.prompt_tokens, sum.completion_tokens), (after.0 - before.0, after.1 - before.1));
    assert!(sum.prefill_joules + sum.decode_joules > 0.0 && sum.method.is_some());
    // A window later its joules are settled.
    let settled = (0..1000).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        unit.sums(&[By::Key])[0].unsettled == 0
    });
    assert!(settled, "{:?}", unit.sums(&[By::Key]));
    // Nothing runs: everything that was set aside came back.
    let account = unit.access().identify(Some(format!("Bearer {key}").as_bytes())).unwrap().unwrap();
    assert_eq!(account.today().0, used);
    let _all: Vec<_> = (0..20).map_while(|_| account.begin().ok()).collect();
}

#[test]
fn a_key_sees_neither_usage_nor_prefixes_of_another() {
    let unit = start(&[]);
    let (one, two) = (
        unit.key("one", Scopes::default(), Limits::default()),
        unit.key("two", Scopes::default(), Limits::default()),
    );
    let long = json!([{"role": "user", "content": "the grid, the miners and the heat ".repeat(12)}]);
    let cached = |key: &str, more: Value| {
        let mut body = chat(2, json!({"messages": long}));
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = unit.post(key, CHAT, &body);
        assert_eq!(answer.0, 200, "{}", answer.1);
        answer.1["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    assert_eq!(cached(&one, json!({})), 0);
    assert!(cached(&one, json!({})) > 0);
    assert_eq!(cached(&two, json!({})), 0);
    assert_eq!(cached(&one, json!({"cache_salt": "a"})), 0, "within a key a salt still parts");
    assert_eq!(cached(&two, json!({"cache_salt": "a"})), 0);
    assert!(cached(&two, json!({"cache_salt": "a"})) > 0);

    let requests = |key: &str| {
        let (status, body) = unit.get(key, "/v1/usage?by=model");
        assert_eq!(status, 200, "{body}");
        body["data"].as_array().unwrap().iter().map(|row| row["requests"].as_u64().unwrap()).sum::<u64>()
    };
    assert_eq!((requests(&one), requests(&two)), (3, 3));
    let theirs = unit.access().keys().unwrap()[0].id.clone();
    for query in [format!("?key={theirs}"), "?by=key".into(), "?by=key,day".into()] {
        assert_eq!(unit.get(&two, &format!("/v1/usage{query}")).0, 400);
    }
    let own = unit.get(&two, "/v1/usage").1;
    assert!(own["data"][0]["day"].is_string() && own["today"]["tokens"].as_u64().unwrap() > 0, "{own}");
    assert!(!own.to_string().contains(&theirs));
}

#[test]
fn the_operator_works_through_the_socket_while_the_unit_runs() {
    let unit = start(&[]);
    let socket = unit.dir.path().join("admin.sock");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let state = unit.dir.path().join("state");
    let made = hashwatt(&state, &["keys", "create", "shop", "--requests-per-minute", "50"]);
    let secret = String::from_utf8(made.stdout.clone()).unwrap().trim().to_string();
    assert!(made.status.success() && secret.starts_with("hw-"), "{made:?}");
    assert_eq!(unit.post("", CHAT, &chat(1, json!({}))).0, 401, "a key exists now");
    assert_eq!(unit.post(&secret, CHAT, &chat(3, json!({}))).0, 200);
    let listed = hashwatt(&state, &["keys", "list"]);
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(
        listed.contains("shop") && listed.contains("requests_per_minute=50") && !listed.contains(&secret)
    );

    let rotated = hashwatt(&state, &["keys", "rotate", "shop", "--json"]);
    let rotated: Value = serde_json::from_slice(&rotated.stdout).unwrap();
    let second = rotated["secret"].as_str().unwrap();
    assert_eq!(unit.post(&secret, CHAT, &chat(1, json!({}))).0, 401);
    assert_eq!(unit.post(second, CHAT, &chat(1, json!({}))).0, 200);
    assert!(hashwatt(&state, &["keys", "revoke", "shop"]).status.success());
    assert_eq!(unit.post(second, CHAT, &chat(1, json!({}))).0, 401, "at once");

    let prices = ["--price-input", "2", "--price-output", "10", "--power-price", "50"];
    let csv = hashwatt(&state, &[&["usage", "--by", "key,day", "--format", "csv"], &prices[..]].concat());
    let csv = String::from_utf8_lossy(&csv.stdout).into_owned();
    let mut lines = csv.lines();
    let heads: Vec<&str> = lines.next().unwrap().split(',').collect();
    let cells: Vec<&str> = lines.next().unwrap_or_else(|| panic!("{csv}")).split(',').collect();
    let cell = |name: &str| cells[heads.iter().position(|h| *h == name).unwrap_or_else(|| panic!("{csv}"))];
    let number = |name: &str| cell(name).parse::<f64>().unwrap();
    assert_eq!((cell("name"), cell("requests")), ("shop", "2"));
    let amount = (number("input_tokens") * 2.0 + number("output_tokens") * 10.0) / 1e6;
    assert!((number("amount_usd") - amount).abs() < 1e-6 && number("output_tokens") == 4.0, "{csv}");
    let energy = number("kwh") * 0.05;
    assert!((number("energy_usd") - energy).abs() < 1e-6 && number("prefill_joules") > 0.0, "{csv}");

    let copy = unit.dir.path().join("copy/hashwatt.db");
    std::fs::create_dir(copy.parent().unwrap()).unwrap();
    assert!(hashwatt(&state, &["keys", "backup", copy.to_str().unwrap()]).status.success());
    let restored = Store::open(copy.parent().unwrap()).unwrap();
    assert_eq!(restored.keys().unwrap()[0].name, "shop");
    let mut unit = unit;
    let wrong = hashwatt(&state, &["keys", "create", "x", "--endpoints", "/v1/chat"]);
    assert!(
        !wrong.status.success() && String::from_utf8_lossy(&wrong.stderr).contains("/v1/chat/completions")
    );
    unit.listening = None;
    assert!(!socket.exists(), "it takes its socket along");
}

#[test]
fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("admin.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(socket.exists());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let first = hashwatt::api::admin::bind_socket(&socket).await.unwrap();
        let second = hashwatt::api::admin::bind_socket(&socket).await;
        let Err(error) = second else { panic!("two on one socket") };
        assert!(error.to_string().contains("a living unit listens"), "{error}");
        drop(first);
        hashwatt::api::admin::bind_socket(&socket).await.unwrap();
        std::fs::remove_file(&socket).unwrap();
        std::fs::write(&socket, "mine").unwrap();
        assert!(hashwatt::api::admin::bind_socket(&socket).await.is_err());
        assert_eq!(std::fs::read(&socket).unwrap(), b"mine");
    });
}

/// The program with a state folder of the test's.
fn command(state: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hashwatt"));
    command
        .env("HASHWATT_STATE_DIR", state)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn hashwatt(state: &Path, arguments: &[&str]) -> Output {
    command(state).args(arguments).output().unwrap()
}

/// A served unit in a process of its own; its URL, and what it said at its start.
fn child(state: &Path, more: &[&str]) -> (Child, String, String) {
    let mut child = command(state)
        .args(["serve", "--port", "0", "--threads", "1", "--device", "cpu"])
        .args(more)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (mut said, mut url) = (String::new(), String::new());
    for line in BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok) {
        if let Some(at) = line.find("http://").filter(|_| line.trim_start().starts_with("listen")) {
            url = line[at..].split("/v1").next().unwrap().to_string();
        }
        said += &format!("{line}\n");
        if line.contains("'{\"messages\"") {
            break;
        }
    }
    (child, url, said)
}

#[test]
fn usage_outlives_a_clean_stop() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let socket = format!("unix:{}", dir.path().join("a.sock").display());
    let (mut unit, url, _) = child(&state, &["--admin-listen", &socket, "--meter", "declared:5,10"]);
    let client = Client::new(&url).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for _ in 0..5 {
        assert_eq!(runtime.block_on(post(&client, CHAT, &chat(4, json!({})))).0, 200);
    }
    // SAFETY: a signal to a child of ours that has not been waited for.
    unsafe { libc::kill(unit.id() as i32, libc::SIGTERM) };
    assert!(unit.wait().unwrap().success());
    let usage = hashwatt(&state, &["usage", "--by", "key", "--format", "json"]);
    let rows: Value = serde_json::from_slice(&usage.stdout).unwrap_or_else(|_| panic!("{usage:?}"));
    let sum =
        |name: &str| rows.as_array().unwrap().iter().map(|row| row[name].as_u64().unwrap()).sum::<u64>();
    assert_eq!((sum("requests"), sum("unsettled")), (5, 0), "{rows}");
}

#[test]
fn usage_outlives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let made = hashwatt(&state, &["keys", "create", "a"]);
    let secret = String::from_utf8_lossy(&made.stdout).trim().to_string();
    assert!(secret.starts_with("hw-"), "{made:?}");
    let socket = format!("unix:{}", dir.path().join("a.sock").display());
    let (mut unit, url, said) = child(&state, &["--admin-listen", &socket]);
    assert!(said.contains("API key required"), "{said}");
    let client = Client::new(&url).unwrap().with_api_key(Some(secret));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut tokens = 0;
    for _ in 0..5 {
        let (status, body, _) = runtime.block_on(post(&client, CHAT, &chat(4, json!({}))));
        assert_eq!(status, 200, "{body}");
        tokens += body["usage"]["total_tokens"].as_u64().unwrap();
    }
    // What is older than a second is on disk.
    std::thread::sleep(Duration::from_secs(1));
    unit.kill().unwrap();
    unit.wait().unwrap();
    let usage = hashwatt(&state, &["usage", "--by", "key", "--format", "json"]);
    let rows: Value = serde_json::from_slice(&usage.stdout).unwrap_or_else(|_| panic!("{usage:?}"));
    let sum =
        |name: &str| rows.as_array().unwrap().iter().map(|row| row[name].as_u64().unwrap()).sum::<u64>();
    assert_eq!((sum("requests"), sum("input_tokens") + sum("output_tokens")), (5, tokens));

    // Its socket is stale; the next unit takes it over.
    let (mut unit, ..) = child(&state, &["--admin-listen", &socket]);
    let listed = hashwatt(&state, &["keys", "list", "--json"]);
    assert!(listed.status.success(), "{listed:?}");
    // While it lives, another does not serve without the keys.
    let second = command(&state).args(["serve", "--port", "0", "--admin-listen", "none"]).output().unwrap();
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("it has keys"), "{second:?}");
    unit.kill().unwrap();
    unit.wait().unwrap();
}

#[test]
fn a_second_unit_serves_without_a_store_that_has_no_keys() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let held = Store::open(&state).unwrap();
    let (mut unit, url, said) = child(&state, &["--admin-listen", "none"]);
    assert!(said.contains("authentication is off") && !said.contains("  state "), "{said}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let status = runtime.block_on(post(&Client::new(&url).unwrap(), CHAT, &chat(1, json!({})))).0;
    assert_eq!(status, 200);
    unit.kill().unwrap();
    unit.wait().unwrap();
    drop(held);
}

#[test]
fn a_port_of_the_operators_wants_the_token() {
    let unit = start(&[]);
    let serve = |settings: &[(&'static str, &str)]| {
        let flags: Vec<_> = settings.iter().map(|(k, v)| (*k, v.to_string())).collect();
        let config = Resolved::merge(&flags, &[]).unwrap().config().unwrap();
        let listening = unit.runtime.block_on(serve_admin(&config, &unit.state)).unwrap();
        let [line] = &listening.lines[..] else { panic!("{:?}", listening.lines) };
        let (url, token) = line.split_once(" (token: ").unwrap();
        let (url, token) = (url.to_owned(), token.trim_end_matches(')').to_owned());
        (listening, url, token)
    };
    let status = |url: &str, token: Option<&str>| {
        let client = Client::new(url).unwrap().with_api_key(token.map(str::to_owned));
        unit.runtime.block_on(async { client.get("/admin/status").await.unwrap().status })
    };
    let (_listening, url, token) = serve(&[("admin-listen", "127.0.0.1:0")]);
    assert_eq!(
        (status(&url, None), status(&url, Some("hw-no")), status(&url, Some(&token))),
        (401, 401, 200)
    );
    let (_listening, url, shown) = serve(&[("admin-listen", "127.0.0.1:0"), ("admin-token", "my-own-token")]);
    assert_eq!(shown, "as set");
    assert_eq!((status(&url, Some(&token)), status(&url, Some("my-own-token"))), (401, 200));
    // A key of a client is no token.
    let key = unit.key("one", Scopes::default(), Limits::default());
    assert_eq!(status(&url, Some(&key)), 401);
}

#[test]
fn a_stream_that_is_left_is_settled_for_what_it_made() {
    let unit = start(&[]);
    let limits = Limits { tokens_per_minute: Some(4000), concurrent: Some(1), ..Limits::default() };
    let key = unit.key("one", Scopes::default(), limits);
    let account = unit.access().identify(Some(format!("Bearer {key}").as_bytes())).unwrap().unwrap();
    let body = chat(400, json!({"stream": true}));
    unit.runtime.block_on(async {
        let mut response = unit.client(&key).post_json(CHAT, body.to_string().as_bytes()).await.unwrap();
        assert_eq!(response.status, 200);
        assert!(account.allowances()[1].unwrap().remaining < 4000 - 400, "set aside");
        let second = post(&unit.client(&key), CHAT, &chat(1, json!({}))).await;
        assert_eq!(error(&second), (429, "rate_limit_exceeded", "-"));
        response.next_event().await.unwrap();
        response.next_event().await.unwrap();
    });
    let mut sum = None;
    for _ in 0..500 {
        sum = unit.sums(&[By::Key]).pop();
        if sum.is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let sum = sum.expect("a record");
    assert!(sum.requests == 1 && sum.completion_tokens < 400, "{sum:?}");
    let used = sum.prompt_tokens + sum.completion_tokens;
    assert_eq!(account.allowances()[1].unwrap().remaining, 4000 - used);
    assert_eq!(unit.post(&key, CHAT, &chat(1, json!({}))).0, 200);
}
