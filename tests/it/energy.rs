//! Joules of requests over HTTP: `usage.energy`, its header, its metrics; and what `--require-measured` refuses.

use std::time::Duration;

use hashwatt::cli::assemble;
use hashwatt::clock::Clock;
use hashwatt::config::Resolved;
use hashwatt::wire::client::Client;
use hashwatt::wire::response::{ChatChunk, ChatCompletion, TextCompletion};
use serde_json::{Value, json};

use crate::serving::serve;

const DECLARED: &[(&str, &str)] = &[("meter", "declared:80,300"), ("threads", "2")];

fn chat(extra: Value) -> Vec<u8> {
    let mut body = json!({"messages": [{"role": "user", "content": "What is hashprice?"}], "temperature": 0,
        "max_tokens": 200, "ignore_eos": true});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body.to_string().into_bytes()
}

#[test]
fn answers_carry_their_joules_with_method_and_boundary() {
    let unit = serve(DECLARED);
    let client = Client::new(&unit.url).unwrap();
    unit.runtime.block_on(async {
        let mut answer = client.post_json("/v1/chat/completions", &chat(json!({}))).await.unwrap();
        let header: f64 = answer.header("x-energy-joules").unwrap().parse().unwrap();
        let parsed: ChatCompletion = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        let energy = parsed.usage.energy.unwrap();
        assert_eq!((energy.method.as_str(), energy.boundary.as_str()), ("declared", "node"));
        assert_eq!(header, energy.joules);
        assert!(
            energy.joules > 0.0 && energy.decode_joules > 0.0 && energy.prefill_joules > 0.0,
            "{energy:?}"
        );
        assert!((energy.prefill_joules + energy.decode_joules - energy.joules).abs() < 1e-5);

        let body = json!({"prompt": "PUE", "max_tokens": 5, "temperature": 0}).to_string();
        let mut answer = client.post_json("/v1/completions", body.as_bytes()).await.unwrap();
        let parsed: TextCompletion = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        assert!(parsed.usage.unwrap().energy.is_some());

        let streamed = chat(json!({"stream": true, "stream_options": {"include_usage": true}}));
        let mut answer = client.post_json("/v1/chat/completions", &streamed).await.unwrap();
        assert!(answer.header("x-energy-joules").is_none(), "nothing is known when a stream begins");
        let mut last = None;
        while let Some(event) = answer.next_event().await.unwrap().filter(|e| !e.is_done()) {
            let chunk: ChatChunk = serde_json::from_str(&event.data).unwrap();
            assert!(last.is_none(), "the usage comes last");
            last = chunk.usage.map(|u| u.energy.unwrap());
        }
        assert!(last.unwrap().joules > 0.0);
    });
}

#[test]
fn metrics_carry_settled_joules_that_add_up() {
    let unit = serve(DECLARED);
    let client = Client::new(&unit.url).unwrap();
    let ledger = unit.unit.ledger().unwrap().clone();
    unit.runtime.block_on(async {
        for _ in 0..3 {
            client.post_json("/v1/chat/completions", &chat(json!({}))).await.unwrap().bytes().await.unwrap();
        }
        // Two windows later everything is settled.
        for _ in 0..100 {
            if ledger.told_totals()[1] > 0.0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let text = client.get("/metrics").await.unwrap().bytes().await.unwrap();
        let text = String::from_utf8(text).unwrap();
        for line in [
            "hashwatt_energy_joules_total{device=\"declared:80,300\",boundary=\"node\",method=\"declared\",phase=\"decode\"} ",
            "hashwatt_idle_joules_total{device=\"declared:80,300\",boundary=\"node\",method=\"declared\"} ",
            "hashwatt_power_watts{device=\"declared:80,300\",boundary=\"node\",method=\"declared\"} ",
            "hashwatt_joules_per_token{boundary=\"node\",method=\"declared\"} ",
        ] {
            let value = text.lines().find_map(|l| l.strip_prefix(line)).unwrap_or_else(|| panic!("{line} in\n{text}"));
            assert!(value.parse::<f64>().unwrap() > 0.0, "{line}{value}");
        }
    });
    let (_, totals) = ledger.meters().remove(0);
    assert!((totals.attributed().0 - totals.total).abs() < 1e-6 * totals.total);
    assert!(totals.overhead > 0.0, "the warm-up");
}

#[test]
fn watts_that_nobody_measured_are_refused_where_measured_ones_are_required() {
    for meter in ["declared:80,300", "assumed"] {
        let flags = [("meter", meter.to_string()), ("require-measured", "true".to_string())];
        let config = Resolved::merge(&flags, &[]).unwrap().config().unwrap();
        let error = assemble::meters(&config, &Clock::system()).err().unwrap().to_string();
        assert!(
            error.contains("not measured") && error.contains(meter.split(':').next().unwrap()),
            "{error}"
        );
    }
}
