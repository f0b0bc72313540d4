//! Embeddings, reranking and scores over HTTP: a chat model and encoders in one unit, chosen by `model`.

use std::path::Path;

use hashwatt::engine::fault::{Fault, Faults};
use hashwatt::model::encoder::EncoderCheckpoint;
use hashwatt::text::tokenizer::stand_in_json;
use hashwatt::wire::client::Client;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use super::serving::{Running, serve, serve_with_faults, stream};
use super::support::pool;

const ALL: &str = "demo,mini=synthetic:minilm-tiny,ranker=synthetic:reranker-tiny";

fn post(unit: &Running, path: &str, body: &Value) -> (u16, Value) {
    let client = Client::new(&unit.url).unwrap();
    unit.runtime.block_on(async {
        let mut response = client.post_json(path, body.to_string().as_bytes()).await.unwrap();
        let bytes = response.bytes().await.unwrap();
        (response.status, serde_json::from_slice(&bytes).unwrap())
    })
}

fn get(unit: &Running, path: &str) -> String {
    let client = Client::new(&unit.url).unwrap();
    unit.runtime.block_on(async {
        let mut response = client.get(path).await.unwrap();
        String::from_utf8(response.bytes().await.unwrap()).unwrap()
    })
}

fn ok(unit: &Running, path: &str, body: Value) -> Value {
    let (status, answer) = post(unit, path, &body);
    assert_eq!(status, 200, "{body}: {answer}");
    answer
}

fn vector(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

fn vectors(answer: &Value) -> Vec<Vec<f32>> {
    answer["data"].as_array().unwrap().iter().map(|e| vector(&e["embedding"])).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn assert_near(a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5), "{a:?} {b:?}");
}

#[test]
fn vectors_come_in_each_form_that_is_asked_for() {
    let unit = serve(&[("model", ALL), ("threads", "2")]);
    let embed = |body: Value| ok(&unit, "/v1/embeddings", body);
    let texts = ["hashprice", "a much longer text about curtailment and the price of energy", "x"];
    let answer = embed(json!({"model": "mini", "input": texts, "user": "me"}));
    assert_eq!((answer["object"].as_str(), answer["model"].as_str()), (Some("list"), Some("mini")));
    let bytes: usize = texts.iter().map(|t| t.len()).sum();
    assert_eq!(answer["usage"]["prompt_tokens"], bytes, "the stand-in has a token a byte");
    assert_eq!(answer["usage"]["total_tokens"], bytes);
    let all = vectors(&answer);
    for (i, (vector, text)) in all.iter().zip(texts).enumerate() {
        assert_eq!((vector.len(), answer["data"][i]["index"].as_u64()), (64, Some(i as u64)));
        assert!((dot(vector, vector) - 1.0).abs() < 1e-5, "of length 1");
        // Alone, and as token ids.
        let alone = embed(json!({"model": "mini", "input": text}));
        assert_near(&vectors(&alone)[0], vector);
        let ids: Vec<u32> = text.bytes().map(u32::from).collect();
        assert_near(&vectors(&embed(json!({"model": "mini", "input": ids})))[0], vector);
        assert_near(&vectors(&embed(json!({"model": "mini", "input": [ids, [3]]})))[0], vector);
    }
    // Without a name: the encoder that makes vectors.
    assert_eq!(embed(json!({"input": "x"}))["model"], "mini");
    let base64 = embed(json!({"model": "mini", "input": texts, "encoding_format": "base64"}));
    for (i, wanted) in all.iter().enumerate() {
        let text = base64["data"][i]["embedding"].as_str().unwrap();
        let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text).unwrap();
        let numbers: Vec<f32> =
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        assert_near(&numbers, wanted);
    }
    let short = vectors(&embed(json!({"model": "mini", "input": texts[0], "dimensions": 16})));
    let length = dot(&all[0][..16], &all[0][..16]).sqrt();
    assert_near(&short[0], &all[0][..16].iter().map(|x| x / length).collect::<Vec<_>>());
    let metrics = get(&unit, "/metrics");
    assert!(metrics.contains("hashwatt_encoder_padding_tokens_total{"), "{metrics}");
    let waiting = metrics.lines().find(|l| l.starts_with("hashwatt_encoder_texts_waiting{")).unwrap();
    assert!(waiting.ends_with(" 0.0"), "{waiting}");
}

#[test]
fn documents_are_ranked_by_a_cross_encoder_or_by_cosine() {
    let unit = serve(&[("model", ALL), ("threads", "2")]);
    let documents = ["a beach", "USD per TH per day", "grid power", "the price of hashing"];
    let scores = |model: &str| {
        let body = json!({"model": model, "text_1": "what is hashprice?", "text_2": documents});
        let answer = ok(&unit, "/v1/score", body);
        assert!(answer["id"].as_str().unwrap().starts_with("score-") && answer["object"] == "list");
        let data = answer["data"].as_array().unwrap();
        assert!(data.iter().enumerate().all(|(i, s)| s["index"] == i && s["object"] == "score"));
        data.iter().map(|s| s["score"].as_f64().unwrap()).collect::<Vec<_>>()
    };
    for model in ["ranker", "mini"] {
        let scores = scores(model);
        let mut order: Vec<usize> = (0..documents.len()).collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        let body = json!({"model": model, "query": "what is hashprice?", "documents": documents});
        let ranked = ok(&unit, "/v1/rerank", body.clone());
        let results = ranked["results"].as_array().unwrap();
        let indices: Vec<usize> = results.iter().map(|r| r["index"].as_u64().unwrap() as usize).collect();
        assert_eq!(indices, order, "{model}: {scores:?}");
        assert!(results.iter().all(|r| r.get("document").is_none()));
        assert!(
            results
                .iter()
                .zip(&order)
                .all(|(r, i)| { (r["relevance_score"].as_f64().unwrap() - scores[*i]).abs() < 1e-5 })
        );
        let mut body = body;
        (body["top_n"], body["return_documents"]) = (json!(2), json!(true));
        body["documents"] = documents.iter().map(|d| json!({"text": d})).collect();
        let best = ok(&unit, "/v1/rerank", body);
        assert_eq!(best["results"].as_array().unwrap().len(), 2);
        assert_eq!(best["results"][0]["document"]["text"], documents[order[0]]);
        assert!(best["usage"]["total_tokens"].as_u64().unwrap() > 0);
    }
    // Of a pair, each text is read together with its partner only.
    let pairs = json!({"model": "mini", "text_1": ["a", "b"], "text_2": ["a", "b"]});
    let same = ok(&unit, "/v1/score", pairs);
    assert!(
        same["data"].as_array().unwrap().iter().all(|s| (s["score"].as_f64().unwrap() - 1.0).abs() < 1e-5)
    );
    let unnamed = ok(&unit, "/v1/rerank", json!({"query": "a", "documents": ["b"]}));
    assert_eq!(unnamed["model"], "ranker", "a cross-encoder, where there is one");
    let (status, answer) = post(&unit, "/v1/embeddings", &json!({"model": "ranker", "input": "a"}));
    assert_eq!((status, answer["error"]["param"].as_str()), (400, Some("model")), "{answer}");
}

#[test]
fn what_cannot_be_honoured_is_named_and_each_model_says_what_it_is_for() {
    let unit = serve(&[("model", ALL), ("threads", "1"), ("max-model-len", "128")]);
    let long = "x".repeat(129);
    for (path, body, status, param, code) in [
        ("/v1/embeddings", json!({"model": "mini", "input": ""}), 400, "input", None),
        ("/v1/embeddings", json!({"model": "mini", "input": ["a", ""]}), 400, "input[1]", None),
        ("/v1/embeddings", json!({"model": "mini", "input": [[1], []]}), 400, "input[1]", None),
        ("/v1/embeddings", json!({"model": "mini", "input": [512]}), 400, "input", None),
        (
            "/v1/embeddings",
            json!({"model": "mini", "input": ["a", long]}),
            400,
            "input[1]",
            Some("context_length_exceeded"),
        ),
        (
            "/v1/embeddings",
            json!({"model": "mini", "input": "a", "dimensions": 65}),
            400,
            "dimensions",
            Some("unsupported_parameter"),
        ),
        ("/v1/embeddings", json!({"model": "nobody", "input": "a"}), 404, "model", Some("model_not_found")),
        ("/v1/embeddings", json!({"model": "demo", "input": "a"}), 400, "model", Some("model_not_supported")),
        ("/v1/rerank", json!({"model": "ranker", "query": "", "documents": ["a"]}), 400, "query", None),
        (
            "/v1/rerank",
            json!({"model": "ranker", "query": "q", "documents": ["a", ""]}),
            400,
            "documents[1]",
            None,
        ),
        (
            "/v1/rerank",
            json!({"model": "ranker", "query": "q", "documents": ["x".repeat(128)]}),
            400,
            "documents[0]",
            Some("context_length_exceeded"),
        ),
        (
            "/v1/rerank",
            json!({"model": "ranker", "query": "x".repeat(129), "documents": ["a"]}),
            400,
            "query",
            Some("context_length_exceeded"),
        ),
        (
            "/v1/score",
            json!({"model": "demo", "text_1": "q", "text_2": "a"}),
            400,
            "model",
            Some("model_not_supported"),
        ),
        (
            "/v1/completions",
            json!({"model": "mini", "prompt": "a"}),
            400,
            "model",
            Some("model_not_supported"),
        ),
        (
            "/v1/completions",
            json!({"model": "ranker", "prompt": "a"}),
            400,
            "model",
            Some("model_not_supported"),
        ),
        (
            "/v1/chat/completions",
            json!({"model": "mini", "messages": [{"role": "user", "content": "a"}]}),
            400,
            "model",
            Some("model_not_supported"),
        ),
    ] {
        let (found, answer) = post(&unit, path, &body);
        let error = &answer["error"];
        assert_eq!(found, status, "{body}: {answer}");
        assert_eq!(error["param"], param, "{body}: {answer}");
        assert_eq!(error["code"].as_str(), code, "{body}: {answer}");
    }
    let (_, answer) = post(&unit, "/v1/embeddings", &json!({"model": "mini", "input": "x".repeat(129)}));
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("128 tokens") && message.contains("129 tokens"), "{message}");
    let models: Value = serde_json::from_str(&get(&unit, "/v1/models")).unwrap();
    let ids: Vec<&str> =
        models["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["demo", "mini", "ranker"]);
    let one: Value = serde_json::from_str(&get(&unit, "/v1/models/mini")).unwrap();
    assert_eq!(one["max_model_len"], 128);
}

#[test]
fn the_demo_alone_embeds_nothing_and_encoders_alone_generate_nothing() {
    let demo = serve(&[("threads", "1")]);
    for model in [json!(null), json!("demo")] {
        let (status, answer) = post(&demo, "/v1/embeddings", &json!({"model": model, "input": "a"}));
        assert_eq!((status, answer["error"]["param"].as_str()), (400, Some("model")), "{answer}");
    }
    let alone = serve(&[("model", "synthetic:minilm-tiny"), ("threads", "1"), ("served-model-name", "a,b")]);
    for name in ["a", "b"] {
        assert_eq!(ok(&alone, "/v1/embeddings", json!({"model": name, "input": "x"}))["model"], "a");
    }
    let chat = json!({"messages": [{"role": "user", "content": "hi"}]});
    let (status, answer) = post(&alone, "/v1/chat/completions", &chat);
    assert_eq!((status, answer["error"]["param"].as_str()), (400, Some("model")), "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("/v1/embeddings"));
}

#[test]
fn a_conversation_goes_on_while_many_texts_are_embedded() {
    let unit = serve(&[("model", ALL), ("threads", "2"), ("max-num-batched-tokens", "64")]);
    let texts: Vec<String> = (0..256).map(|i| "word ".repeat(1 + i % 90)).collect();
    let question = json!({"model": "demo", "stream": true, "ignore_eos": true, "temperature": 0, "max_tokens": 24,
        "messages": [{"role": "user", "content": "What is hashprice?"}]});
    let (alone, embedded, chat) = unit.runtime.block_on(async {
        let client = Client::new(&unit.url).unwrap();
        let alone = stream(&client, "/v1/chat/completions", &question).await;
        let body = json!({"model": "mini", "input": texts}).to_string();
        let embedder = Client::new(&unit.url).unwrap();
        let embedding = tokio::spawn(async move {
            let mut response = embedder.post_json("/v1/embeddings", body.as_bytes()).await.unwrap();
            serde_json::from_slice::<Value>(&response.bytes().await.unwrap()).unwrap()
        });
        let chat = stream(&client, "/v1/chat/completions", &question).await;
        (alone, embedding.await.unwrap(), chat)
    });
    assert_eq!(chat, alone);
    assert_eq!(vectors(&embedded).len(), texts.len());
}

#[test]
fn texts_move_on_when_a_device_is_lost() {
    let lost = Faults::new([(0, Fault::DeviceLost)]);
    let settings = [("model", "synthetic:minilm-tiny"), ("device", "cpu,cpu"), ("threads", "2")];
    let unit = serve_with_faults(&settings, &[lost.clone(), Faults::default()]);
    let wanted = vectors(&ok(&unit, "/v1/embeddings", json!({"input": ["a", "bb"]})));
    assert_eq!(wanted.len(), 2);
    assert_eq!(unit.unit.replicas().iter().filter(|r| r.is_in()).count(), 1);
    assert_near(&vectors(&ok(&unit, "/v1/embeddings", json!({"input": "a"})))[0], &wanted[0]);
}

/// Writes a checkpoint as a folder, with further files.
fn folder(dir: &Path, checkpoint: &EncoderCheckpoint, files: &[(&str, Value)]) {
    let weights: Vec<(String, Vec<usize>, Vec<u8>)> = checkpoint
        .tensors
        .iter()
        .map(|(name, shape)| {
            let weight = checkpoint.source.weight(name, shape).unwrap().to_f32();
            let bytes = weight.f32s().iter().flat_map(|x| x.to_le_bytes()).collect();
            // As decoders without a head are saved.
            let name = name.strip_prefix("model.").unwrap_or(name);
            (name.to_string(), shape.clone(), bytes)
        })
        .collect();
    let views = weights.iter().map(|(name, shape, bytes)| {
        (name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
    let tokenizer = stand_in_json(checkpoint.spec.vocab).unwrap();
    let config = checkpoint.config.clone();
    std::fs::create_dir_all(dir.join("1_Pooling")).unwrap();
    for (name, json) in [("tokenizer.json", tokenizer), ("config.json", config)].iter().chain(files) {
        std::fs::write(dir.join(name), json.to_string()).unwrap();
    }
}

#[test]
fn a_decoder_is_served_for_vectors_where_its_folder_says_so() {
    let config = json!({
        "architectures": ["Qwen3ForCausalLM"], "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 80, "vocab_size": 300, "model_type": "qwen3",
        "max_position_embeddings": 700, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": true,
        "hidden_act": "silu", "torch_dtype": "float32", "is_matryoshka": true,
    });
    let tiny = EncoderCheckpoint::synthetic("tiny", "config.json", config, &pool(1)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let module =
        |kind: &str| json!({"type": format!("sentence_transformers.models.{kind}"), "path": "1_Pooling"});
    let last = json!({"pooling_mode_lasttoken": true});
    let modules = json!([module("Transformer"), module("Pooling"), module("Normalize")]);
    folder(dir.path(), &tiny, &[("modules.json", modules), ("1_Pooling/config.json", last)]);
    let models = format!("demo,tiny={}", dir.path().display());
    let unit = serve(&[("model", &models), ("threads", "1")]);
    let of = |body: Value| vectors(&ok(&unit, "/v1/embeddings", body));
    let long: Vec<u32> = (0..690).map(|i| i * 7 % 250).collect();
    let all = of(json!({"input": [[5, 6, 7], [9], long]}));
    assert_near(&all[2], &of(json!({"input": long}))[0]);
    assert_near(&all[1], &of(json!({"input": [9]}))[0]);
    assert!((dot(&all[0], &all[0]) - 1.0).abs() < 1e-5 && all[0].len() == 48);
    assert_eq!(of(json!({"input": [5, 6, 7], "dimensions": 16}))[0].len(), 16);
    // The last token is what stands for the text: what comes behind it changes all.
    assert!(dot(&all[0], &of(json!({"input": [5, 6, 7, 8]}))[0]) < 0.9999);
    let (status, answer) = post(&unit, "/v1/completions", &json!({"model": "tiny", "prompt": "a"}));
    assert_eq!((status, answer["error"]["code"].as_str()), (400, Some("model_not_supported")), "{answer}");
}

#[test]
fn a_folder_says_how_its_vectors_are_made() {
    let tiny = EncoderCheckpoint::open("synthetic:minilm-tiny", &pool(1)).unwrap();
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let module = |kind: &str, path: &str| json!({"type": format!("sentence_transformers.models.{kind}"), "path": path});
    let cls = json!({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false});
    folder(dirs[0].path(), &tiny, &[]);
    folder(
        dirs[1].path(),
        &tiny,
        &[
            ("modules.json", json!([module("Transformer", ""), module("Pooling", "1_Pooling")])),
            ("1_Pooling/config.json", cls),
            ("sentence_bert_config.json", json!({"max_seq_length": 100})),
        ],
    );
    let models =
        format!("synthetic:minilm-tiny,plain={},cls={}", dirs[0].path().display(), dirs[1].path().display());
    let unit = serve(&[("model", &models), ("threads", "1")]);
    let of = |model: &str, input: Value| {
        vectors(&ok(&unit, "/v1/embeddings", json!({"model": model, "input": input}))).remove(0)
    };
    let text = json!("what is in the folder is what counts");
    assert_near(&of("plain", text.clone()), &of("synthetic:minilm-tiny", text.clone()));
    let first = of("cls", text.clone());
    assert!((dot(&first, &first) - 1.0).abs() > 0.1, "it asks for no normalisation");
    // The first token's state of one token is the mean.
    let (bare, mean) = (of("cls", json!([65])), of("plain", json!([65])));
    let length = dot(&bare, &bare).sqrt();
    assert_near(&bare.iter().map(|x| x / length).collect::<Vec<_>>(), &mean);
    let (status, answer) = post(&unit, "/v1/embeddings", &json!({"model": "cls", "input": "x".repeat(101)}));
    assert_eq!(
        (status, answer["error"]["code"].as_str()),
        (400, Some("context_length_exceeded")),
        "{answer}"
    );
}
