//! Encoders against candle-transformers run one text at a time, and against HuggingFace's vectors of the same weights.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use candle_core::{DType, Device, IndexOp, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{bert, modernbert, nomic_bert, qwen3, xlm_roberta};
use hashwatt::clock::Clock;
use hashwatt::engine::encode::{EncodeRequest, HostedEncoder};
use hashwatt::engine::event::{EngineError, Tier};
use hashwatt::engine::fault::{Fault, Faults};
use hashwatt::engine::step_log::Observed;
use hashwatt::engine::worker::{self, EngineConfig, EngineHandle, Limits, Models};
use hashwatt::model::encoder::{Architecture, EncoderCheckpoint, EncoderText, Purpose};
use hashwatt::ops::exec::Exec;
use serde_json::{Value, json};

use super::support::{pool, prompt};

const VOCAB: usize = 300;

/// Small configurations, one a network.
fn networks() -> Vec<Value> {
    let bert = |kind: &str, class: &str, pad: u32, types: usize| {
        json!({
            "architectures": [class], "model_type": kind, "hidden_size": 48, "num_hidden_layers": 3,
            "num_attention_heads": 4, "intermediate_size": 80, "vocab_size": VOCAB, "hidden_act": "gelu",
            "max_position_embeddings": 140, "type_vocab_size": types, "pad_token_id": pad,
            "layer_norm_eps": 1e-12, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
            "initializer_range": 0.02, "position_embedding_type": "absolute",
        })
    };
    let nomic = json!({
        "architectures": ["NomicBertModel"], "model_type": "nomic_bert", "n_embd": 48, "n_head": 4, "n_layer": 3,
        "n_inner": 80, "n_positions": 140, "vocab_size": VOCAB, "type_vocab_size": 2,
        "layer_norm_epsilon": 1e-12, "rotary_emb_fraction": 1.0, "rotary_emb_base": 1000.0,
        "activation_function": "swiglu", "qkv_proj_bias": false, "mlp_fc1_bias": false, "mlp_fc2_bias": false,
    });
    let modern = json!({
        "architectures": ["ModernBertModel"], "model_type": "modernbert", "hidden_size": 48,
        "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 80, "vocab_size": VOCAB,
        "max_position_embeddings": 140, "layer_norm_eps": 1e-5, "norm_eps": 1e-5, "pad_token_id": 0,
        "global_attn_every_n_layers": 3, "global_rope_theta": 160000.0, "local_attention": 16,
        "local_rope_theta": 10000.0, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2,
    });
    vec![
        bert("bert", "BertModel", 0, 2),
        bert("roberta", "RobertaModel", 1, 1),
        bert("xlm-roberta", "XLMRobertaModel", 1, 1),
        nomic,
        modern,
    ]
}

fn checkpoint(config: &Value) -> EncoderCheckpoint {
    EncoderCheckpoint::synthetic("test", "config.json", config.clone(), &pool(1)).unwrap()
}

/// The same as a model that scores pairs.
fn scoring(config: &Value) -> Value {
    let mut config = config.clone();
    let class = config["architectures"][0].as_str().unwrap().replace("Model", "ForSequenceClassification");
    config["architectures"] = json!([class]);
    config["num_labels"] = json!(1);
    config
}

/// Texts of many lengths, none with a token of padding in it.
fn texts(count: usize) -> Vec<EncoderText> {
    let text = |i: usize| {
        let length = 1 + (i * 37) % 128;
        let ids: Vec<u32> = prompt(length, VOCAB - 8, i as u64 + 1).iter().map(|id| id + 4).collect();
        EncoderText { ids, types: Vec::new() }
    };
    (0..count).map(text).collect()
}

/// A checkpoint's tensors under the names that candle-transformers asks for.
fn builder(checkpoint: &EncoderCheckpoint) -> VarBuilder<'static> {
    let bare = checkpoint.spec.architecture == Architecture::ModernBert
        && checkpoint.tensors.iter().all(|(name, _)| !name.starts_with("model."));
    let mut all = HashMap::new();
    for (name, shape) in &checkpoint.tensors {
        let weight = checkpoint.source.weight(name, shape).unwrap().to_f32();
        let tensor = Tensor::from_slice(weight.f32s(), shape.as_slice(), &Device::Cpu).unwrap();
        all.insert(if bare { format!("model.{name}") } else { name.clone() }, tensor);
    }
    VarBuilder::from_tensors(all, DType::F32, &Device::Cpu)
}

fn parsed<T: serde::de::DeserializeOwned>(config: &Value) -> T {
    serde_json::from_value(config.clone()).unwrap()
}

/// Hidden states of one text, by candle-transformers itself: `[tokens, hidden]`.
fn hidden(checkpoint: &EncoderCheckpoint, text: &EncoderText) -> Tensor {
    let (vb, config) = (builder(checkpoint), &checkpoint.config);
    let ids = Tensor::new(text.ids.as_slice(), &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    let types = match text.types.as_slice() {
        [] => ids.zeros_like().unwrap(),
        types => Tensor::new(types, &Device::Cpu).unwrap().unsqueeze(0).unwrap(),
    };
    let ones = ids.ones_like().unwrap();
    let below = |prefix: &str| {
        if vb.contains_tensor(&format!("{prefix}.embeddings.word_embeddings.weight")) {
            vb.pp(prefix)
        } else {
            vb.clone()
        }
    };
    let hidden = match checkpoint.spec.architecture {
        Architecture::Bert => {
            bert::BertModel::load(below("bert"), &parsed(config)).unwrap().forward(&ids, &types, None)
        }
        Architecture::Roberta | Architecture::XlmRoberta => {
            let network = xlm_roberta::XLMRobertaModel::new(&parsed(config), below("roberta")).unwrap();
            network.forward(&ids, &ones, &types, None, None, None)
        }
        Architecture::NomicBert => {
            nomic_bert::NomicBertModel::load(vb, &parsed(config)).unwrap().forward(&ids, None, None)
        }
        Architecture::Qwen3 => qwen3::Model::new(&parsed(config), vb).unwrap().forward(&ids, 0),
        Architecture::ModernBert => {
            modernbert::ModernBert::load(vb, &parsed(config)).unwrap().forward(&ids, &ones)
        }
    };
    hidden.unwrap().squeeze(0).unwrap()
}

/// The mean over the tokens, scaled to length 1.
fn mean(hidden: &Tensor) -> Vec<f32> {
    let rows = hidden.to_vec2::<f32>().unwrap();
    let mut sum = vec![0f64; rows[0].len()];
    rows.iter().for_each(|row| sum.iter_mut().zip(row).for_each(|(s, x)| *s += f64::from(*x)));
    let length = sum.iter().map(|x| x * x).sum::<f64>().sqrt();
    sum.into_iter().map(|x| (x / length) as f32).collect()
}

/// A head's score of a text, from its tensors.
fn score(checkpoint: &EncoderCheckpoint, hidden: &Tensor) -> f32 {
    let linear = |name: &str, x: &Tensor| {
        let tensor = |name: String| {
            let found = checkpoint.tensors.iter().find(|(n, _)| *n == name)?;
            let weight = checkpoint.source.weight(&found.0, &found.1).unwrap().to_f32();
            Some(Tensor::from_slice(weight.f32s(), found.1.as_slice(), &Device::Cpu).unwrap())
        };
        let product = x.matmul(&tensor(format!("{name}.weight")).unwrap().t().unwrap()).unwrap();
        tensor(format!("{name}.bias")).map_or(product.clone(), |bias| product.broadcast_add(&bias).unwrap())
    };
    let first = hidden.i(0..1).unwrap();
    let out = match checkpoint.spec.architecture {
        Architecture::Bert => linear("classifier", &linear("bert.pooler.dense", &first).tanh().unwrap()),
        Architecture::ModernBert => {
            let dense = linear("head.dense", &first).gelu_erf().unwrap();
            let shape = [checkpoint.spec.hidden];
            let weight = checkpoint.source.weight("head.norm.weight", &shape).unwrap().to_f32();
            let weight = Tensor::from_slice(weight.f32s(), &shape, &Device::Cpu).unwrap();
            let norm = candle_nn::LayerNorm::new_no_bias(weight, 1e-5);
            linear("classifier", &candle_nn::Module::forward(&norm, &dense).unwrap())
        }
        _ => linear("classifier.out_proj", &linear("classifier.dense", &first).tanh().unwrap()),
    };
    1.0 / (1.0 + (-out.flatten_all().unwrap().to_vec1::<f32>().unwrap()[0]).exp())
}

fn assert_near(found: &[f32], wanted: &[f32], most: f32, what: &str) {
    assert_eq!(found.len(), wanted.len(), "{what}");
    let off = found.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(off <= most, "{what}: off by {off}");
}

fn engine(
    checkpoints: &[EncoderCheckpoint],
    threads: usize,
    max_tokens: usize,
    faults: Faults,
) -> EngineHandle {
    let load = |c: &EncoderCheckpoint| HostedEncoder {
        encoder: Arc::new(c.load(&Device::Cpu).unwrap()),
        threads,
        on: Exec::cpu(threads),
        longest: c.spec.max_tokens,
    };
    let config = EngineConfig {
        device: "test".into(),
        limits: Limits { max_rows: 4, max_tokens, duty: 1.0 },
        prefix_caching: false,
        run_ahead: false,
        speculative_tokens: 0,
        max_queue: 16,
        faults,
    };
    let encoders = checkpoints.iter().map(load).collect();
    worker::spawn_with(Models { encoders, ..Models::default() }, config, Clock::system(), Observed::default())
        .unwrap()
        .0
}

fn request(encoder: usize, texts: Vec<EncoderText>) -> EncodeRequest {
    EncodeRequest { encoder, texts: texts.into(), tier: Tier::Default, account: 0 }
}

#[test]
fn each_network_in_batches_equals_candle_transformers_one_by_one() {
    let checkpoints: Vec<_> = networks().iter().map(checkpoint).collect();
    let handle = engine(&checkpoints, 2, 256, Faults::default());
    let texts = texts(40);
    let answers: Vec<_> =
        (0..checkpoints.len()).map(|i| handle.encode(request(i, texts.clone())).unwrap()).collect();
    for (checkpoint, answer) in checkpoints.iter().zip(answers) {
        let vectors = answer.blocking_recv().unwrap().unwrap();
        assert_eq!(vectors.len(), texts.len());
        for (i, (vector, text)) in vectors.iter().zip(&texts).enumerate() {
            let what = format!("{} text {i}", checkpoint.spec.architecture.as_str());
            assert_near(vector, &mean(&hidden(checkpoint, text)), 1e-5, &what);
        }
    }
    let stats = handle.stats();
    assert_eq!(stats.encoded_texts.load(Ordering::Relaxed), 200);
    assert_eq!(stats.encoder_texts.load(Ordering::Relaxed), 0);
    assert_eq!(stats.encodes.load(Ordering::Relaxed), 0);
    let (tokens, padding) =
        (stats.encoded_tokens.load(Ordering::Relaxed), stats.padding_tokens.load(Ordering::Relaxed));
    assert_eq!(tokens, 5 * texts.iter().map(|t| t.ids.len() as u64).sum::<u64>());
    assert!(padding > 0 && padding * 10 <= tokens, "{padding} of {tokens}: some texts shared a batch");
}

/// A decoder that makes vectors.
fn decoder(heads_of_keys: usize) -> Value {
    json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": heads_of_keys, "head_dim": 16, "intermediate_size": 80,
        "vocab_size": VOCAB, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
        "tie_word_embeddings": true, "hidden_act": "silu", "torch_dtype": "float32", "attention_bias": false,
        "max_window_layers": 3, "use_sliding_window": false, "sliding_window": null,
    })
}

#[test]
fn a_decoder_embeds_by_its_last_token_without_padding() {
    for heads in [1, 4] {
        let checkpoints = [checkpoint(&decoder(heads)), checkpoint(&networks()[0])];
        let handle = engine(&checkpoints, 2, 256, Faults::default());
        let mut texts = texts(20);
        // Of several steps.
        texts.push(EncoderText { ids: prompt(1300, VOCAB, 5), types: Vec::new() });
        let vectors = handle.encode(request(0, texts.clone())).unwrap().blocking_recv().unwrap().unwrap();
        for (i, (vector, text)) in vectors.iter().zip(&texts).enumerate() {
            let hidden = hidden(&checkpoints[0], text);
            let last = hidden.i(text.ids.len() - 1..).unwrap();
            assert_near(vector, &mean(&last), 1e-5, &format!("{heads} heads, text {i}"));
        }
        assert_eq!(handle.stats().padding_tokens.load(Ordering::Relaxed), 0);
    }
}

#[test]
fn each_head_scores_what_its_tensors_say() {
    let texts: Vec<EncoderText> = texts(12)
        .into_iter()
        .map(|mut text| {
            text.types = (0..text.ids.len()).map(|i| u32::from(i > text.ids.len() / 2)).collect();
            text
        })
        .collect();
    for config in networks().iter().filter(|c| c["model_type"] != "nomic_bert") {
        let checkpoint = checkpoint(&scoring(config));
        assert_eq!(checkpoint.spec.purpose, Purpose::Score);
        let mut texts = texts.clone();
        if checkpoint.spec.types == 1 {
            texts.iter_mut().for_each(|t| t.types.clear());
        }
        let encoder = checkpoint.load(&Device::Cpu).unwrap();
        let scores = encoder.run(&texts.iter().collect::<Vec<_>>()).unwrap();
        let mut seen: Vec<f32> = Vec::new();
        for (i, (found, text)) in scores.iter().zip(&texts).enumerate() {
            let what = format!("{} text {i}", config["model_type"]);
            assert_near(found, &[score(&checkpoint, &hidden(&checkpoint, text))], 1e-5, &what);
            assert!(!seen.contains(&found[0]), "{what}: scores differ");
            seen.push(found[0]);
        }
    }
}

#[test]
fn a_failed_step_ends_its_requests_and_no_others() {
    let checkpoints = [checkpoint(&networks()[0])];
    let faults = Faults::new([(0, Fault::Panic), (1, Fault::NoMemory(7))]);
    let handle = engine(&checkpoints, 1, 64, faults);
    let ask = || handle.encode(request(0, texts(1))).unwrap().blocking_recv().unwrap();
    assert!(matches!(ask(), Err(EngineError::Step(text)) if text.contains("on order")));
    assert!(matches!(ask(), Err(EngineError::Step(text)) if text.contains("7 bytes")));
    assert_eq!(ask().unwrap().len(), 1);
    let faults = Faults::new([(0, Fault::DeviceLost)]);
    let handle = engine(&checkpoints, 1, 64, faults);
    let lost = handle.encode(request(0, texts(1))).unwrap().blocking_recv().unwrap();
    assert!(matches!(lost, Err(EngineError::Device(_))));
}

#[test]
fn who_is_gone_is_not_computed_and_a_full_queue_says_so() {
    let checkpoints = [checkpoint(&networks()[0])];
    // The first step takes its time, so that all others queue.
    let slow = Fault::Hang(std::time::Duration::from_secs(3));
    let handle = engine(&checkpoints, 1, 64, Faults::new([(0, slow)]));
    let first = handle.encode(request(0, texts(1))).unwrap();
    let mut others: Vec<_> = (0..15).map(|_| handle.encode(request(0, texts(4))).unwrap()).collect();
    let full = handle.encode(request(0, texts(1)));
    assert!(matches!(full, Err(EngineError::QueueFull { waiting: 16, limit: 16 })));
    let last = others.pop().unwrap();
    drop(others);
    assert_eq!(first.blocking_recv().unwrap().unwrap().len(), 1);
    assert_eq!(last.blocking_recv().unwrap().unwrap().len(), 4);
    let stats = handle.stats();
    assert_eq!(stats.encoded_texts.load(Ordering::Relaxed), 5);
    assert_eq!((stats.encodes.load(Ordering::Relaxed), stats.encoder_texts.load(Ordering::Relaxed)), (0, 0));
}

/// Made by `benches/encoder_goldens.py`, with weights of the same formula.
#[test]
fn huggingface_says_the_same_of_the_same_weights() {
    let goldens: Value = serde_json::from_str(include_str!("cases/encoders.json")).unwrap();
    let numbers = |v: &Value| -> Vec<u32> {
        v.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect()
    };
    let inputs = goldens["inputs"].as_array().unwrap();
    for case in goldens["cases"].as_array().unwrap() {
        let checkpoint = checkpoint(&case["config"]);
        let encoder = checkpoint.load(&Device::Cpu).unwrap();
        let text = |input: &Value| {
            let types =
                if case["config"]["model_type"] == "bert" { numbers(&input["types"]) } else { Vec::new() };
            EncoderText { ids: numbers(&input["ids"]), types }
        };
        let texts: Vec<EncoderText> = inputs.iter().map(text).collect();
        // All in one batch: padding must not show.
        let texts: Vec<&EncoderText> = texts.iter().collect();
        let found = match encoder.causal(&Exec::cpu(1), 64, 140).unwrap() {
            Some(mut causal) => causal.run(&texts).unwrap(),
            None => encoder.run(&texts).unwrap(),
        };
        let wanted = case["results"].as_array().unwrap();
        assert_eq!(found.len(), wanted.len());
        for (i, (found, wanted)) in found.iter().zip(wanted).enumerate() {
            let wanted: Vec<f32> =
                wanted.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect();
            assert_near(found, &wanted, 1e-4, &format!("{} text {i}", case["config"]["architectures"][0]));
        }
    }
}
