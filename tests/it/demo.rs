//! The demo model: the trainer's network is the server's, and it knows what its card says it knows.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use hashwatt::model::Checkpoint;
use hashwatt::model::decoder::{Precision, tensors};
use hashwatt::wire::client::Client;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::serving::{serve, stream};
use crate::support::{Shape, Steps, pool};

#[path = "../../examples/train_demo/model.rs"]
mod trained;

fn folder() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo")
}

#[test]
fn the_trainers_logits_equal_the_servers() {
    let checkpoint = Checkpoint::open("demo", &pool(1)).unwrap();
    let config: trained::TrainConfig =
        serde_json::from_slice(&std::fs::read(folder().join("config.json")).unwrap()).unwrap();
    let weights: HashMap<String, Tensor> = tensors(&checkpoint.spec)
        .map(|(name, shape)| {
            let w = checkpoint.source.weight(&name, &shape).unwrap();
            let numbers: Vec<f32> = (0..w.rows() * w.cols()).map(|i| w.get(i)).collect();
            (name, Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap())
        })
        .collect();
    let vb = VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
    let theirs = trained::TrainLlama::new(&config, vb).unwrap();
    let ours = std::sync::Arc::new(checkpoint.load(Precision::F32, true, &|_| {}).unwrap());
    for length in [1, 17, 100] {
        let ids: Vec<u32> = (0..length).map(|i| 3 + (i * 37) % 1000).collect();
        let logits =
            theirs.forward(&Tensor::new(ids.as_slice(), &Device::Cpu).unwrap().unsqueeze(0).unwrap());
        let all: Vec<Vec<f32>> = logits.unwrap().squeeze(0).unwrap().to_vec2().unwrap();
        let theirs = all.last().unwrap();
        let ours = &Steps::new(&ours, Shape::default()).run(&[ids], 1)[0][0];
        let scale = theirs.iter().fold(0f32, |m, x| m.max(x.abs()));
        let worst = ours.iter().zip(theirs).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(worst <= 1e-4 * scale, "prompt of {length}: {worst} of {scale}");
    }
}

#[derive(Deserialize)]
struct Corpus {
    question: Vec<Question>,
}

#[derive(Deserialize)]
struct Question {
    ask: Vec<String>,
    held_out: String,
    answer: String,
    keywords: Vec<String>,
}

#[derive(Deserialize)]
struct Card {
    golden: Vec<Golden>,
    held_out_score: f64,
}

#[derive(Deserialize)]
struct Golden {
    prompt: String,
    answer: String,
}

fn questions() -> Vec<Question> {
    let mut files: Vec<_> =
        std::fs::read_dir(folder().join("corpus")).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    let read =
        |p: &std::path::PathBuf| -> Corpus { toml::from_str(&std::fs::read_to_string(p).unwrap()).unwrap() };
    files
        .iter()
        .filter(|p| p.extension().is_some_and(|e| e == "toml"))
        .flat_map(|p| read(p).question)
        .collect()
}

fn normal(text: &str) -> String {
    text.to_lowercase().chars().filter(|c| c.is_alphanumeric() || *c == ' ').collect::<String>().trim().into()
}

fn knows(answer: &str, question: &Question) -> bool {
    let answer = answer.to_lowercase();
    question.keywords.iter().all(|k| answer.contains(&k.to_lowercase()))
}

#[test]
fn questions_are_held_out_and_key_words_belong_to_one_answer() {
    let all = questions();
    assert!(all.len() >= 50);
    let asked: std::collections::HashSet<String> =
        all.iter().flat_map(|q| q.ask.iter().map(|a| normal(a))).collect();
    for (i, q) in all.iter().enumerate() {
        assert!(!asked.contains(&normal(&q.held_out)), "{} is in the corpus", q.held_out);
        assert!(q.keywords.len() >= 2 && knows(&q.answer, q), "{}", q.held_out);
        for (j, other) in all.iter().enumerate().filter(|(j, _)| *j != i) {
            let answer = other.answer.to_lowercase();
            let shared = q.keywords.iter().find(|k| answer.contains(&k.to_lowercase()));
            assert!(shared.is_none(), "{shared:?} of question {i} is in answer {j} too");
        }
    }
}

#[test]
fn it_answers_questions_asked_in_words_it_has_not_seen() {
    let unit = serve(&[]);
    let client = Client::new(&unit.url).unwrap();
    let ask = |question: &str| {
        let body = json!({"stream": true, "temperature": 0, "max_tokens": 96,
                          "messages": [{"role": "user", "content": question}]});
        unit.runtime.block_on(stream(&client, "/v1/chat/completions", &body)).0
    };
    let all = questions();
    let answers: Vec<String> = all.iter().map(|q| ask(&q.held_out)).collect();
    let score = |shift: usize| {
        let known = (0..all.len()).filter(|i| knows(&answers[*i], &all[(i + shift) % all.len()])).count();
        known as f64 / all.len() as f64
    };
    let card: Card = toml::from_str(&std::fs::read_to_string(folder().join("card.toml")).unwrap()).unwrap();
    assert!(score(0) >= 0.9, "held-out phrasings: {:.3}, the card says {}", score(0), card.held_out_score);
    for shift in 1..all.len() {
        assert!(score(shift) < 0.1, "control {shift}: {:.3}", score(shift));
    }
    assert!(card.golden.len() >= 8);
    for g in &card.golden {
        assert_eq!(ask(&g.prompt), g.answer, "{}", g.prompt);
    }
    let models: Value = unit.runtime.block_on(async {
        let mut response = client.get("/v1/models").await.unwrap();
        serde_json::from_slice(&response.bytes().await.unwrap()).unwrap()
    });
    assert_eq!(models["data"][0]["id"], "demo");
}
