//! Failover as clients see it: a server over two engines of the CPU, the first of which meets faults on order.

use std::sync::atomic::Ordering;
use std::time::Duration;

use hashwatt::engine::fault::{Fault, Faults};
use hashwatt::wire::client::{Client, Response};
use serde_json::{Value, json};

use crate::serving::{Running, serve, serve_with_faults};

const PATH: &str = "/v1/completions";
const SETTINGS: &[(&str, &str)] =
    &[("device", "cpu,cpu"), ("threads", "2"), ("step-timeout", "2s"), ("meter", "declared:80,300")];
/// Well above the watchdog's patience.
const HANG: Fault = Fault::Hang(Duration::from_secs(15));
/// Tokens that take longer than a test needs to see the first of them.
const LONG: usize = 3000;

/// A unit whose first engine meets these.
fn unit(faults: &Faults) -> Running {
    serve_with_faults(SETTINGS, std::slice::from_ref(faults))
}

/// Drawn at random, so that only the same seed gives the same text; prompts that do not begin alike.
fn body(i: usize, more: Value) -> Vec<u8> {
    let mut body = json!({
        "prompt": format!("{i}: {}", ["hashprice", "a joule", "curtailment", "the PUE"][i % 4].repeat(4 + i)),
        "max_tokens": 24, "ignore_eos": true, "temperature": 0.9, "seed": i, "logprobs": 1, "n": 1 + i % 2,
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body.to_string().into_bytes()
}

/// Status, headers by the client, and the JSON of an answer.
async fn whole(mut response: Response) -> (u16, Value) {
    let bytes = response.bytes().await.unwrap();
    let text = String::from_utf8(bytes).unwrap();
    (response.status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

async fn ask(url: &str, body: Vec<u8>) -> (u16, Value) {
    whole(Client::new(url).unwrap().post_json(PATH, &body).await.unwrap()).await
}

async fn get(url: &str, path: &str) -> (u16, Value) {
    whole(Client::new(url).unwrap().get(path).await.unwrap()).await
}

/// What two runs have in common.
fn content((status, answer): &(u16, Value)) -> (u16, Value, Value) {
    (*status, answer["choices"].clone(), answer["usage"]["completion_tokens"].clone())
}

/// Asks them all at once.
fn together(unit: &Running, bodies: Vec<Vec<u8>>) -> Vec<(u16, Value, Value)> {
    unit.runtime.block_on(async {
        let asked: Vec<_> = bodies
            .into_iter()
            .map(|body| {
                let url = unit.url.clone();
                tokio::spawn(async move { ask(&url, body).await })
            })
            .collect();
        let mut all = Vec::new();
        for answer in asked {
            all.push(content(&answer.await.unwrap()));
        }
        all
    })
}

fn is_in(unit: &Running) -> Vec<bool> {
    unit.unit.replicas().iter().map(|r| r.is_in()).collect()
}

/// A stream that has begun: text was seen.
struct Begun {
    response: Response,
    text: String,
}

async fn begin(url: &str, body: Vec<u8>) -> Begun {
    let response = Client::new(url).unwrap().post_json(PATH, &body).await.unwrap();
    assert_eq!(response.status, 200);
    let mut begun = Begun { response, text: String::new() };
    while begun.text.is_empty() {
        let event = begun.response.next_event().await.unwrap().expect("more of the stream");
        begun.see(&event.data);
    }
    begun
}

impl Begun {
    fn see(&mut self, data: &str) -> Value {
        let chunk: Value = serde_json::from_str(data).unwrap();
        self.text += chunk.pointer("/choices/0/text").and_then(Value::as_str).unwrap_or_default();
        chunk
    }

    /// Reads on to the end of the connection's answer: the last chunk, and whether `[DONE]` came last of all.
    async fn end(&mut self) -> (Value, bool) {
        let (mut last, mut done) = (Value::Null, false);
        while let Some(event) = self.response.next_event().await.unwrap() {
            assert!(!done, "something after [DONE]: {}", event.data);
            match event.is_done() {
                true => done = true,
                false => last = self.see(&event.data),
            }
        }
        (last, done)
    }
}

/// Polls until it holds; a test that waits in vain ends by itself.
async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    for _ in 0..600 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("never: {what}");
}

fn is_answered_elsewhere(step: u64, fault: Fault) {
    let bodies = || (0..6).map(|i| body(i, json!({}))).collect::<Vec<_>>();
    let want = together(&serve(SETTINGS), bodies());
    assert!(want.iter().all(|(status, ..)| *status == 200), "{want:?}");
    let unit = unit(&Faults::new([(step, fault)]));
    assert_eq!(together(&unit, bodies()), want);
    assert_eq!(is_in(&unit), [false, true]);
    assert!(unit.unit.replicas()[0].moved() > 0, "the first engine had no share of the requests");
    let (health, _) = unit.runtime.block_on(get(&unit.url, "/health"));
    assert_eq!(health, 200, "one engine serves");
}

#[test]
fn whole_answers_outlive_a_lost_device() {
    is_answered_elsewhere(0, Fault::DeviceLost);
}

/// The engine has told tokens by then, which no client has seen.
#[test]
fn whole_answers_outlive_a_device_that_is_lost_in_their_midst() {
    is_answered_elsewhere(12, Fault::DeviceLost);
}

#[test]
fn whole_answers_outlive_a_hang() {
    is_answered_elsewhere(12, HANG);
}

#[test]
fn a_stream_that_has_begun_ends_with_an_error_event_and_the_rest_goes_on() {
    for (fault, why) in [(Fault::DeviceLost, "CUDA_ERROR_LAUNCH_FAILED"), (HANG, "no sign of life")] {
        let faults = Faults::default();
        let unit = unit(&faults);
        let streamed = json!({"stream": true, "max_tokens": LONG, "n": 1, "logprobs": null});
        unit.runtime.block_on(async {
            let mut begun = begin(&unit.url, body(0, streamed)).await;
            faults.order_next(fault);
            let (last, done) = begun.end().await;
            let error = &last["error"];
            assert!(error["message"].as_str().is_some_and(|m| m.contains(why)), "{last}");
            assert_eq!((&error["type"], &error["code"]), (&json!("server_error"), &json!("internal_error")));
            assert!(error.as_object().unwrap().contains_key("param") && done, "{last}");
            // The other engine serves on, streamed and whole.
            let again = json!({"stream": true, "n": 1, "logprobs": null});
            let (last, done) = begin(&unit.url, body(0, again)).await.end().await;
            assert!(done && last["choices"][0]["finish_reason"] == "length", "{last}");
            assert_eq!(ask(&unit.url, body(1, json!({}))).await.0, 200);
        });
        assert_eq!(is_in(&unit), [false, true]);
        assert_eq!(unit.unit.replicas()[0].moved(), 0, "what was seen is not told again");
    }
}

#[test]
fn a_stream_that_has_shown_nothing_goes_on_elsewhere() {
    let streamed = || body(2, json!({"stream": true, "n": 1}));
    let read = |unit: &Running| {
        unit.runtime.block_on(async {
            let mut begun = begin(&unit.url, streamed()).await;
            let (last, done) = begun.end().await;
            assert!(done && last.get("error").is_none(), "{last}");
            begun.text
        })
    };
    let want = read(&serve(SETTINGS));
    let unit = unit(&Faults::new([(0, Fault::DeviceLost)]));
    assert_eq!(read(&unit), want);
    assert_eq!((is_in(&unit), unit.unit.replicas()[0].moved()), (vec![false, true], 1));
}

#[test]
fn a_unit_whose_engines_are_all_out_answers_503_and_says_why() {
    let lost = || Faults::new([(0, Fault::DeviceLost)]);
    let unit = serve_with_faults(SETTINGS, &[lost(), lost()]);
    unit.runtime.block_on(async {
        assert_eq!(get(&unit.url, "/health").await.0, 200);
        let says_why = |(status, answer): (u16, Value)| {
            let error = &answer["error"];
            let message = error["message"].as_str().unwrap_or_default();
            for part in ["no engine is left", "engine 0: ", "engine 1: ", "CUDA_ERROR_LAUNCH_FAILED"] {
                assert!(message.contains(part), "{part:?} is not in {answer}");
            }
            assert_eq!((status, &error["type"]), (503, &json!("server_error")), "{answer}");
        };
        // The one that finds out, and those that come after it.
        for more in [json!({}), json!({}), json!({"stream": true})] {
            says_why(ask(&unit.url, body(1, more)).await);
        }
        for probe in ["/health", "/readyz"] {
            says_why(get(&unit.url, probe).await);
        }
        let response = Client::new(&unit.url).unwrap().post_json(PATH, &body(1, json!({}))).await.unwrap();
        assert!(response.header("retry-after").is_some());
        // The process itself is well, and says what it is that does not serve.
        assert_eq!(get(&unit.url, "/livez").await.0, 200);
        assert_eq!(get(&unit.url, "/v1/models").await.0, 200);
    });
    assert_eq!(is_in(&unit), [false, false]);
}

/// The value of a metric whose labels include these.
fn value(text: &str, name: &str, labels: &[&str]) -> f64 {
    let line = text.lines().find(|line| {
        let rest = line.strip_prefix(name).and_then(|rest| rest.strip_prefix('{'));
        rest.is_some_and(|rest| labels.iter().all(|label| rest.contains(label)))
    });
    let line = line.unwrap_or_else(|| panic!("no {name} with {labels:?} in\n{text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn metrics_tell_the_engines_apart_and_which_is_out() {
    let unit = unit(&Faults::new([(12, HANG)]));
    let scrape = async || match get(&unit.url, "/metrics").await {
        (200, Value::String(text)) => text,
        other => panic!("{other:?}"),
    };
    let engines = ["engine=\"0\"", "engine=\"1\""];
    let before = unit.runtime.block_on(scrape());
    assert_eq!(engines.map(|e| value(&before, "hashwatt_engine_ready", &[e])), [1.0, 1.0]);
    let answers = together(&unit, (0..6).map(|i| body(i, json!({}))).collect());
    assert!(answers.iter().all(|(status, ..)| *status == 200));
    let text = unit.runtime.block_on(async {
        // Windows of a meter that sees both engines do not wait for the step that hangs.
        until("joules of the engine that serves", async || {
            value(&scrape().await, "hashwatt_engine_joules_total", &[engines[1], "phase=\"decode\""]) > 0.0
        })
        .await;
        scrape().await
    });
    let of = |name: &str| engines.map(|engine| value(&text, name, &[engine]));
    assert_eq!(of("hashwatt_engine_ready"), [0.0, 1.0]);
    let (placed, moved) = (of("hashwatt_requests_placed_total"), of("hashwatt_requests_moved_total"));
    assert!(placed[0] >= 1.0 && moved == [placed[0], 0.0], "{placed:?} {moved:?}");
    // Each of the nine choices was answered by the second engine or moved there.
    assert!(placed[1] >= 9.0 - placed[0] + moved[0], "{placed:?} {moved:?}");
    for name in
        ["hashwatt_generated_tokens_total", "hashwatt_prompt_tokens_total", "hashwatt_engine_steps_total"]
    {
        let [first, second] = of(name);
        assert!(first > 0.0 && second > first, "{name}: {first}, {second}");
    }
    assert_eq!(of("vllm:num_requests_waiting").len() + of("vllm:num_requests_running").len(), 4);
    for phase in ["phase=\"prefill\"", "phase=\"decode\"", "phase=\"overhead\""] {
        let labels = |engine| [engine, phase, "boundary=\"node\"", "method=\"declared\""];
        let joules = engines.map(|engine| value(&text, "hashwatt_engine_joules_total", &labels(engine)));
        assert!(joules.iter().all(|joules| *joules >= 0.0), "{phase}: {joules:?}");
    }
}

/// What was taken before the drain ends in order, also where its engine hangs.
#[test]
fn a_drain_with_an_engine_that_hangs_ends_and_loses_nothing_of_the_other() {
    let slow = |i, more: Value| {
        let mut all = json!({"n": 1, "logprobs": null, "max_tokens": 600});
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body(i, all)
    };
    let want = together(&serve(SETTINGS), vec![slow(2, json!({}))]);
    let faults = Faults::default();
    let mut unit = unit(&faults);
    let placed = |unit: &Running| unit.unit.replicas().iter().map(|r| r.placed()).collect::<Vec<_>>();
    let server = unit.server.take().unwrap();
    unit.runtime.block_on(async {
        let streamed = json!({"stream": true, "max_tokens": LONG});
        let mut hangs = begin(&unit.url, slow(0, streamed)).await;
        let mut stays = begin(&unit.url, slow(1, json!({"stream": true, "max_tokens": 900}))).await;
        let url = unit.url.clone();
        let moves = tokio::spawn(async move { ask(&url, slow(2, json!({}))).await });
        until("the third request is placed", async || placed(&unit).iter().sum::<u64>() >= 3).await;
        assert!(placed(&unit).iter().all(|n| *n > 0), "{:?}", placed(&unit));
        faults.order_next(HANG);
        unit.stop.cancel();
        let (last, done) = hangs.end().await;
        let message = last["error"]["message"].as_str().unwrap_or_default();
        assert!(done && message.contains("no sign of life"), "{last}");
        let (last, done) = stays.end().await;
        assert!(done && last["choices"][0]["finish_reason"] == "length", "{last}");
        assert_eq!(content(&moves.await.unwrap()), want[0]);
        server.await.unwrap().unwrap();
    });
    assert_eq!(is_in(&unit), [false, true]);
    assert_eq!(unit.unit.replicas()[1].stats().running.load(Ordering::Acquire), 0);
}
