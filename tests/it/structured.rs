//! Structured output: whatever the weights and the temperature, what ends by itself is what was asked for.

use std::collections::BTreeSet;
use std::sync::Arc;

use hashwatt::clock::Clock;
use hashwatt::model::decoder::Precision;
use hashwatt::service::{SamplingDefaults, ServedModel, Service, ServiceError};
use hashwatt::text::tokenizer::Tokenizer;
use hashwatt::unit::Unit;
use hashwatt::wire::client::Client;
use hashwatt::wire::fields::UnknownParameters;
use hashwatt::wire::request::CompletionRequest;
use serde_json::{Value, json};

use crate::serving::{serve, stream};
use crate::support::{decoder, engine, llama};

const VOCAB: usize = 517;

/// A model of random weights over bytes.
fn service() -> Service {
    let unit = Unit::new(Clock::system());
    let handle = engine(&decoder(&llama(1), Precision::F32), 2, 2048, 256, 32);
    unit.open(vec![handle]);
    let model = ServedModel {
        id: "random".into(),
        aliases: Vec::new(),
        created: 0,
        max_model_len: 1024,
        vocab: VOCAB,
        end_tokens: vec![VOCAB as u32 - 1],
        tokenizer: Arc::new(Tokenizer::stand_in(VOCAB).unwrap()),
        template: None,
        thoughts: None,
        dialect: None,
        grammars: Default::default(),
        defaults: SamplingDefaults::default(),
        unit: unit.clone(),
    };
    Service::new(vec![model], unit)
}

async fn complete(service: &Service, body: Value) -> Result<Vec<(String, &'static str)>, ServiceError> {
    let request = CompletionRequest::parse(body.to_string().as_bytes(), UnknownParameters::Refuse)?;
    // Others are compiled: a client would come again.
    let generation = loop {
        match service.complete(&request) {
            Err(ServiceError::Busy(_)) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            generation => break generation?,
        }
    };
    let collected = generation.collect().await?;
    Ok(collected.choices.into_iter().map(|c| (c.text, c.finish.unwrap().as_str())).collect())
}

/// Each line of the suite: a schema, and the word that its refusal must have, if it is to be refused.
#[test]
fn every_schema_is_kept_to_or_refused_by_its_keyword() {
    let suite = include_str!("cases/schemas.jsonl");
    let cases: Vec<Value> = suite.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(cases.len() >= 200, "{}", cases.len());
    let service = Arc::new(service());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let run = |case: Value| {
        let service = service.clone();
        async move {
            let (schema, mut ended) = (&case["schema"], 0);
            let validator = case
                .get("refused")
                .is_none()
                .then(|| jsonschema::options().should_validate_formats(true).build(schema).unwrap());
            for temperature in [0.0, 1.0, 2.0] {
                let body = json!({"prompt": "a", "guided_json": schema, "temperature": temperature, "n": 3,
                                  "seed": 7, "max_tokens": 700});
                match (complete(&service, body).await, &validator) {
                    (Err(error), None) => {
                        let (error, word) = (error.to_string(), case["refused"].as_str().unwrap());
                        assert!(
                            error.contains(word) && error.starts_with("guided_json: "),
                            "{case}: {error}"
                        );
                        return 0;
                    }
                    (Ok(_), None) => panic!("{case} was taken"),
                    (Err(error), Some(_)) => panic!("{case}: {error}"),
                    (Ok(choices), Some(validator)) => {
                        for (text, finish) in choices {
                            if finish == "length" {
                                continue;
                            }
                            ended += 1;
                            match serde_json::from_str::<Value>(&text) {
                                Ok(value) => assert!(validator.is_valid(&value), "{case}: {text}"),
                                // JSON bounds no number; this reader does.
                                Err(e) if e.to_string().contains("number out of range") => {}
                                Err(e) => panic!("{case}: {text:?}: {e}"),
                            }
                        }
                    }
                }
            }
            ended
        }
    };
    let ended: usize = runtime.block_on(async {
        let tasks: Vec<_> = cases.into_iter().map(|case| tokio::spawn(run(case))).collect();
        let mut ended = 0;
        for task in tasks {
            ended += task.await.unwrap();
        }
        ended
    });
    assert!(ended > 900, "only {ended} answers came to an end");
}

#[test]
fn forced_tokens_change_no_answer() {
    let service = service();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let schema = json!({"type": "object", "properties": {
        "measured_watts": {"type": "integer", "minimum": 0, "maximum": 999}, "state": {"enum": ["serving", "parked"]}},
        "required": ["measured_watts", "state"], "additionalProperties": false});
    let ask = |extra: Value| {
        let mut body = json!({"prompt": "abc", "guided_json": schema, "seed": 3, "max_tokens": 200});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        runtime.block_on(complete(&service, body)).unwrap().remove(0)
    };
    let steps = || service.unit().replicas()[0].stats().steps.load(std::sync::atomic::Ordering::Relaxed);
    let before = steps();
    let (text, finish) = ask(json!({}));
    let with_forced = steps() - before;
    // With log-probabilities each token is computed on its own.
    assert_eq!(ask(json!({"logprobs": 0})), (text.clone(), finish));
    let one_by_one = steps() - before - with_forced;
    assert_eq!(finish, "stop");
    // The last step is counted after its answer was told.
    assert!(
        text.starts_with("{\"measured_watts\": ") && one_by_one + 1 >= text.len() as u64,
        "{text} {one_by_one}"
    );
    assert!(with_forced * 4 < one_by_one, "{with_forced} steps instead of {one_by_one}");
    // A limit in the midst of what is forced.
    for most in 1..text.len() {
        let (cut, finish) = ask(json!({"max_tokens": most}));
        assert_eq!((cut.as_str(), finish), (&text[..most], "length"));
    }
}

#[test]
fn demands_come_over_http_as_clients_make_them() {
    let unit = serve(&[("threads", "1")]);
    let client = Client::new(&unit.url).unwrap();
    const PATH: &str = "/v1/chat/completions";
    let ask = |extra: Value| {
        let mut body = json!({"stream": true, "max_tokens": 300, "temperature": 1.5, "seed": 5,
                              "messages": [{"role": "user", "content": "What is hashprice?"}]});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        unit.runtime.block_on(stream(&client, PATH, &body))
    };
    let schema = json!({"type": "object", "properties": {"answer": {"type": "string", "maxLength": 12}, "sure": {"type": "boolean"}},
                        "required": ["answer", "sure"], "additionalProperties": false});
    let format =
        json!({"type": "json_schema", "json_schema": {"name": "reply", "strict": true, "schema": schema}});
    let (text, finish) = ask(json!({"response_format": format}));
    let reply: Value = serde_json::from_str(&text).unwrap();
    assert!(finish == "stop" && reply["sure"].is_boolean() && reply["answer"].is_string(), "{text}");
    let (text, _) = ask(json!({"guided_choice": ["hashing", "serving"]}));
    assert!(["hashing", "serving"].contains(&text.as_str()), "{text}");
    assert_eq!(ask(json!({"structured_outputs": {"regex": "[0-9]{3} W"}})).0.len(), 5);
    assert_eq!(ask(json!({"guided_grammar": "start: \"{\" /[ab]{2}/ \"}\""})).0.len(), 4);
    let refused = |extra: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "x"}]});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        unit.runtime.block_on(async {
            let mut response = client.post_json(PATH, body.to_string().as_bytes()).await.unwrap();
            let body: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
            (response.status, body["error"].clone())
        })
    };
    let format = json!({"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}});
    let (status, error) = refused(json!({"response_format": format}));
    assert_eq!(
        (status, &error["param"], &error["code"]),
        (400, &json!("response_format"), &json!("invalid_json_schema"))
    );
    assert!(error["message"].as_str().unwrap().contains("`not`"), "{error}");
    let (status, error) = refused(json!({"guided_regex": "("}));
    assert_eq!((status, &error["param"]), (400, &json!("guided_regex")));
}

/// Grammars that take ever longer end their own request, and soon; others are served meanwhile.
#[test]
fn a_grammar_without_end_ends_its_request_alone() {
    let service = Arc::new(service());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let grammar = "start: s\ns: s s | s s s | s s s s | s s s s s | /[a-z ]/";
    let hostile =
        json!({"prompt": "a", "guided_grammar": grammar, "max_tokens": 300, "temperature": 2, "seed": 1});
    let deep = (0..11_000).map(|i| format!("r{i}: r{} | \"x\" r{}\n", i + 1, i + 1)).collect::<String>();
    let deep = json!({"prompt": "a", "guided_grammar": format!("start: r0\n{deep}r11000: \"a\"")});
    runtime.block_on(async {
        let error = complete(&service, deep).await.unwrap_err().to_string();
        assert!(error.contains("bytes"), "{error}");
        let ended = tokio::spawn({
            let service = service.clone();
            async move { complete(&service, hostile).await }
        });
        let plain = json!({"prompt": "b", "max_tokens": 50, "temperature": 1, "seed": 1, "ignore_eos": true});
        assert_eq!(complete(&service, plain).await.unwrap()[0].1, "length");
        // Refused at once, or on the way, or done: it is over, and nothing else is.
        let _ = ended.await.unwrap();
    });
}

/// What a client may not have as text ends its answer before it is forced.
#[test]
fn a_stop_token_among_those_that_are_forced_stops() {
    let service = service();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for logprobs in [Value::Null, json!(0)] {
        let body = json!({"prompt": "abc", "guided_choice": ["stop here"], "stop_token_ids": [u32::from(b' ')], "max_tokens": 30,
                          "logprobs": logprobs});
        assert_eq!(runtime.block_on(complete(&service, body)).unwrap()[0], ("stop".into(), "stop"));
    }
}

/// A schema a request, each another: bounded in number and memory, and the engine goes on.
#[test]
fn a_schema_of_its_own_for_each_request() {
    let service = service();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let texts: BTreeSet<String> = runtime.block_on(async {
        let mut texts = BTreeSet::new();
        for i in 0..200 {
            let schema = json!({"const": format!("own {i}")});
            let body = json!({"prompt": "a", "guided_json": schema, "max_tokens": 30});
            texts.insert(complete(&service, body).await.unwrap().remove(0).0);
        }
        texts
    });
    assert_eq!(texts.len(), 200);
}
