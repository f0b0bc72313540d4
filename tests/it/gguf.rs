//! GGUF files, written by candle from checkpoints of ours in llama.cpp's words: they give the same logits and ids.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::quantized::gguf_file::{self, Value as Meta};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use hashwatt::measure::baseline::Baseline;
use hashwatt::model::Checkpoint;
use hashwatt::model::checkpoint::TokenizerSource;
use hashwatt::model::decoder::{self, Precision, Quantize};
use hashwatt::model::spec::{RopeScaling, RopeSpec};
use hashwatt::ops::blocks::Format;
use hashwatt::text::tokenizer::Tokenizer;
use serde_json::{Value, json};

use crate::support::{Shape, Steps, checkpoint, llama, others, pool, prompt, qwen3, routed};

/// What llama.cpp's converter calls a tensor.
fn name(architecture: &str, name: &str) -> String {
    let Some(rest) = name.strip_prefix("model.layers.") else {
        return match name {
            "model.embed_tokens.weight" => "token_embd.weight",
            "model.norm.weight" => "output_norm.weight",
            "lm_head.weight" => "output.weight",
            other => panic!("{other}"),
        }
        .into();
    };
    let (layer, rest) = rest.split_once('.').unwrap();
    if rest == "self_attn.sinks" {
        return format!("blk.{layer}.attn_sinks.weight");
    }
    let (part, kind) = rest.rsplit_once('.').unwrap();
    let part = match part {
        "input_layernorm" => "attn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.qkv_proj" => "attn_qkv",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "post_attention_layernorm" if ["olmo2", "gemma2", "gemma3", "gpt-oss"].contains(&architecture) => {
            "post_attention_norm"
        }
        "pre_feedforward_layernorm" => "ffn_norm",
        "post_attention_layernorm" => "ffn_norm",
        "post_self_attn_layernorm" => "post_attention_norm",
        "post_feedforward_layernorm" | "post_mlp_layernorm" => "post_ffw_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" | "mlp.gate_up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        "mlp.gate" | "mlp.router" | "block_sparse_moe.gate" => "ffn_gate_inp",
        "mlp.shared_expert.gate_proj" => "ffn_gate_shexp",
        "mlp.shared_expert.up_proj" => "ffn_up_shexp",
        "mlp.shared_expert.down_proj" => "ffn_down_shexp",
        "mlp.shared_expert_gate" => "ffn_gate_inp_shexp",
        "mlp.experts.0.gate_proj" | "block_sparse_moe.experts.0.w1" => "ffn_gate_exps",
        "mlp.experts.0.up_proj" | "block_sparse_moe.experts.0.w3" => "ffn_up_exps",
        "mlp.experts.0.down_proj" | "block_sparse_moe.experts.0.w2" => "ffn_down_exps",
        other => panic!("{other}"),
    };
    format!("blk.{layer}.{part}.{kind}")
}

/// `LlamaModel.permute` of the converter: the halves of each head one by one.
fn permuted(numbers: &[f32], rows: usize, head_dim: usize) -> Vec<f32> {
    let cols = numbers.len() / rows;
    let of_head = |head: usize| (0..head_dim).map(move |i| head * head_dim + i % 2 * (head_dim / 2) + i / 2);
    (0..rows / head_dim).flat_map(of_head).flat_map(|row| numbers[row * cols..][..cols].to_vec()).collect()
}

/// A model as a GGUF file. `kind`: of matrices whose rows are whole blocks.
fn write(path: &Path, of: &Checkpoint, kind: GgmlDType, more: &[(&str, Meta)]) {
    let class = of.config["architectures"][0].as_str().unwrap();
    let architecture = match class {
        "MistralForCausalLM" | "MixtralForCausalLM" => "llama".into(),
        "GptOssForCausalLM" => "gpt-oss".into(),
        _ => class.trim_end_matches("ForCausalLM").to_lowercase(),
    };
    let own = |key: &str| format!("{architecture}.{key}");
    let spec = &of.spec;
    let number = |key: &str| of.config[key].as_f64().map(|x| Meta::F32(x as f32));
    let whole = |n: usize| Some(Meta::U32(n as u32));
    let rope = &spec.ropes[0];
    let shared = spec.experts.as_ref().and_then(|experts| experts.shared);
    let plain = RopeSpec::plain(rope.theta, rope.turned);
    let mut values: Vec<(String, Meta)> = [
        ("embedding_length", whole(spec.hidden)),
        ("block_count", whole(spec.layers)),
        ("attention.head_count", whole(spec.heads)),
        ("attention.head_count_kv", whole(spec.kv_heads)),
        ("attention.key_length", whole(spec.head_dim)),
        ("feed_forward_length", whole(spec.intermediate)),
        ("context_length", whole(spec.max_positions)),
        ("rope.dimension_count", whole(rope.turned)),
        ("attention.layer_norm_rms_epsilon", number("rms_norm_eps")),
        ("rope.freq_base", Some(Meta::F32(rope.theta as f32))),
        ("embedding_scale", number("embedding_multiplier")),
        ("residual_scale", number("residual_multiplier")),
        ("attention.scale", number("attention_multiplier")),
        ("logit_scale", number("logits_scaling")),
        ("attn_logit_softcapping", number("attn_logit_softcapping")),
        ("final_logit_softcapping", number("final_logit_softcapping")),
        ("expert_count", spec.experts.as_ref().and_then(|e| whole(e.gating.experts))),
        ("expert_used_count", spec.experts.as_ref().and_then(|e| whole(e.gating.per_token))),
        ("expert_feed_forward_length", spec.experts.as_ref().and_then(|e| whole(e.intermediate))),
        ("expert_shared_feed_forward_length", shared.and_then(|shared| whole(shared.intermediate))),
        ("attention.sliding_window", of.config["sliding_window"].as_u64().and_then(|n| whole(n as usize))),
    ]
    .into_iter()
    .filter_map(|(key, value)| Some((own(key), value?)))
    .collect();
    values.push(("general.architecture".into(), Meta::String(architecture.clone())));
    values.retain(|(key, _)| !more.iter().any(|(other, _)| key == other));
    values.extend(more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    let tensor = |numbers: Vec<f32>, shape: &[usize], kind: GgmlDType| {
        let whole = shape.len() > 1 && shape[shape.len() - 1].is_multiple_of(kind.block_size());
        let tensor = Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap();
        QTensor::quantize(&tensor, if whole { kind } else { GgmlDType::F32 }).unwrap()
    };
    let mut tensors = Vec::new();
    for (hf, mut shape) in decoder::tensors(spec) {
        let read =
            |name: &str, shape: &[usize]| of.source.weight(name, shape).unwrap().to_f32().f32s().to_vec();
        let mut numbers = match hf.split_once("experts.0.") {
            // All experts lie in one tensor.
            Some((before, after)) => {
                let experts = spec.experts.as_ref().unwrap().gating.experts;
                let one = shape.clone();
                shape.insert(0, experts);
                (0..experts).flat_map(|e| read(&format!("{before}experts.{e}.{after}"), &one)).collect()
            }
            None if hf.contains("experts.") => continue,
            None => read(&hf, &shape),
        };
        let turned = hf.contains("q_proj") || hf.contains("k_proj");
        if turned && ["llama", "granite", "smollm3"].contains(&architecture.as_str()) {
            numbers = permuted(&numbers, shape[0], spec.head_dim);
        }
        if architecture.starts_with("gemma") && hf.contains("norm") {
            // As they multiply.
            numbers.iter_mut().for_each(|x| *x += 1.0);
        }
        tensors.push((name(&architecture, &hf), tensor(numbers, &shape, kind)));
    }
    let mut factors_of = |name: &str, factors: Vec<f32>| {
        let n = factors.len();
        tensors.push((name.into(), tensor(factors, &[n], GgmlDType::F32)));
    };
    if let RopeScaling::Long { short, long, original_max_positions, length } = &rope.scaling {
        factors_of("rope_factors_short.weight", short.clone());
        factors_of("rope_factors_long.weight", long.clone());
        let of = [
            ("original_context_length", Meta::U32(*original_max_positions as u32)),
            ("attn_factor", Meta::F32(*length as f32)),
        ];
        values.extend(of.map(|(key, value)| (own(&format!("rope.scaling.{key}")), value)));
    }
    let scaled = rope.inverse_frequencies(rope.turned);
    let factors: Vec<f32> =
        plain.inverse_frequencies(rope.turned).iter().zip(&scaled).map(|(a, b)| a / b).collect();
    if factors.iter().any(|f| *f != 1.0) && rope.original_context().is_none() {
        factors_of("rope_freqs.weight", factors);
    }
    let values: Vec<(&str, &Meta)> = values.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, t)| (name.as_str(), t)).collect();
    let mut file = std::fs::File::create(path).unwrap();
    gguf_file::write(&mut file, &values, &tensors).unwrap();
}

fn texts(all: &[&str]) -> Meta {
    Meta::Array(all.iter().map(|text| Meta::String((*text).to_owned())).collect())
}

/// A byte-level tokenizer in a file's words.
fn tokenizer(json: &Value) -> Vec<(&'static str, Meta)> {
    let vocab = json["model"]["vocab"].as_object().unwrap();
    let mut tokens = vec![""; vocab.len()];
    vocab.iter().for_each(|(token, id)| tokens[id.as_u64().unwrap() as usize] = token);
    let special: Vec<usize> =
        json["added_tokens"].as_array().unwrap().iter().map(|t| t["id"].as_u64().unwrap() as usize).collect();
    let kinds = (0..tokens.len()).map(|id| Meta::I32(if special.contains(&id) { 3 } else { 1 }));
    let merges = json["model"]["merges"].as_array().unwrap().iter();
    let merges: Vec<String> =
        merges.map(|two| format!("{} {}", two[0].as_str().unwrap(), two[1].as_str().unwrap())).collect();
    vec![
        ("tokenizer.ggml.model", Meta::String("gpt2".into())),
        ("tokenizer.ggml.pre", Meta::String("gpt-2".into())),
        ("tokenizer.ggml.tokens", texts(&tokens)),
        ("tokenizer.ggml.token_type", Meta::Array(kinds.collect())),
        ("tokenizer.ggml.merges", texts(&merges.iter().map(String::as_str).collect::<Vec<_>>())),
        ("tokenizer.ggml.bos_token_id", Meta::U32(0)),
        ("tokenizer.ggml.eos_token_id", Meta::U32(2)),
        ("tokenizer.chat_template", Meta::String("{{ messages[0].content }}".into())),
    ]
}

fn any_tokenizer() -> Vec<(&'static str, Meta)> {
    tokenizer(
        &json!({"model": {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}, "added_tokens": []}),
    )
}

fn file(folder: &tempfile::TempDir, name: &str) -> PathBuf {
    folder.path().join(name)
}

fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(path.to_str().unwrap(), &pool(2)).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn every_architecture_gives_the_logits_it_gives_from_its_own_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let configs = others().into_iter().chain(routed()).map(|(_, config)| config).chain([llama(2), qwen3(2)]);
    for mut config in configs {
        // No file says which layers have no positions, or no window: theirs are every fourth, and every sixth.
        for (key, layers) in [("no_rope_layers", 5), ("sliding_window_pattern", 7)] {
            if config.as_object_mut().unwrap().remove(key).is_some() {
                config["num_hidden_layers"] = layers.into();
            }
        }
        // Nor which have no experts.
        config.as_object_mut().unwrap().remove("decoder_sparse_step");
        if config["architectures"][0] == "MistralForCausalLM" {
            // It goes as Llama there, which has no window.
            config["sliding_window"] = Value::Null;
        }
        let class = config["architectures"][0].as_str().unwrap().to_owned();
        let original = checkpoint(config);
        let path = file(&folder, "model.gguf");
        write(&path, &original, GgmlDType::F32, &any_tokenizer());
        let opened = open(&path);
        assert_eq!(opened.name, "model");
        let run = |checkpoint: &Checkpoint| {
            let decoder = Arc::new(checkpoint.load(Precision::F32, true, &|_| {}).unwrap());
            Steps::new(&decoder, Shape::default()).run(&[prompt(40, 517, 3)], 3).remove(0).concat()
        };
        let (ours, theirs) = (run(&opened), run(&original));
        let scale = theirs.iter().fold(0f32, |m, x| m.max(x.abs()));
        let worst = ours.iter().zip(&theirs).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(worst <= 1e-5 * scale, "{class}: {worst} of {scale}");
    }
}

#[test]
fn long_contexts_have_the_factors_of_the_file() {
    let mut config = llama(2);
    config["architectures"] = json!(["Phi3ForCausalLM"]);
    config["original_max_position_embeddings"] = 64.into();
    let half = checkpoint(llama(2)).spec.head_dim / 2;
    let factors = |step: f64| (0..half).map(|i| 1.0 + step * i as f64).collect::<Vec<_>>();
    config["rope_scaling"] = json!({"type": "longrope", "attention_factor": 1.25,
        "short_factor": factors(0.25), "long_factor": factors(2.0)});
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, "model.gguf");
    let original = checkpoint(config);
    write(&path, &original, GgmlDType::F32, &any_tokenizer());
    let spec = open(&path).spec;
    assert!(matches!(spec.ropes[0].scaling, RopeScaling::Long { .. }));
    assert_eq!((&spec.ropes, spec.max_positions), (&original.spec.ropes, original.spec.max_positions));
    assert_eq!(spec.usual_context(), 64);
}

#[test]
fn quantised_weights_are_those_that_quantisation_at_load_makes() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = llama(2);
    config["intermediate_size"] = 512.into();
    let original = checkpoint(config);
    let kinds =
        [(GgmlDType::Q8_0, Format::Q8_0), (GgmlDType::Q6K, Format::Q6K), (GgmlDType::Q5K, Format::Q5K)];
    for (kind, format) in kinds {
        let path = file(&folder, "model.gguf");
        write(&path, &original, kind, &any_tokenizer());
        for precision in [Precision::F32, Precision::Bf16] {
            let run = |checkpoint: &Checkpoint, quantize: Quantize| {
                let decoder = Arc::new(checkpoint.load_as(quantize, precision, true, &|_| {}).unwrap());
                Steps::new(&decoder, Shape::default()).run(&[prompt(40, 517, 3)], 2).remove(0).concat()
            };
            let (read, made) =
                (run(&open(&path), Quantize::AsStored), run(&original, Quantize::Blocks(format)));
            let scale = made.iter().fold(0f32, |m, x| m.max(x.abs()));
            let worst = read.iter().zip(&made).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            // A table of Q5_K is Q6_K when it is made at load.
            let allowed = if format == Format::Q5K { 0.1 } else { 1e-4 };
            assert!(worst <= allowed * scale, "{format:?} {precision:?}: {worst} of {scale}");
            let exact = run(&original, Quantize::AsStored);
            let off = read.iter().zip(&exact).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(off > 0.0 && off <= 0.2 * scale, "{format:?} {precision:?}: {off} of {scale}");
        }
    }
}

#[test]
fn quantised_logits_are_those_of_candles_quantised_models() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, "model.gguf");
    let shape = |mut config: Value| {
        // Whole blocks of 256, and the whole tiles of 16 that candle's fastest kernels want.
        for (key, value) in [("hidden_size", 256), ("intermediate_size", 512), ("vocab_size", 528)] {
            config[key] = value.into();
        }
        config["rope_scaling"] = Value::Null;
        checkpoint(config)
    };
    let more: Vec<(&str, Meta)> =
        // Without it candle turns Qwen3 by angles in f16.
        any_tokenizer().into_iter().chain([("general.dtype", Meta::U32(0))]).collect();
    let other = |class: &str| others().into_iter().find(|(name, _)| *name == class).unwrap().1;
    for config in [llama(2), qwen3(2), other("Qwen2ForCausalLM")] {
        let original = shape(config);
        for kind in [GgmlDType::Q8_0, GgmlDType::Q6K, GgmlDType::Q4K] {
            write(&path, &original, kind, &more);
            let opened = open(&path);
            let decoder = Arc::new(opened.load(Precision::F32, true, &|_| {}).unwrap());
            let mut theirs = Baseline::new(&opened, DType::F32, &Device::Cpu).unwrap();
            // What the last prompt left must be forgotten.
            for length in [1, 40] {
                let mut input = prompt(length, 517, 3);
                let ours =
                    Steps::new(&decoder, Shape::default()).run(std::slice::from_ref(&input), 3).remove(0);
                theirs.reset().unwrap();
                for (step, ours) in ours.iter().enumerate() {
                    let theirs = theirs.forward(&input).unwrap();
                    let square = |x: f32| f64::from(x) * f64::from(x);
                    let size: f64 = theirs.iter().map(|x| square(*x)).sum();
                    let off: f64 = ours.iter().zip(&theirs).map(|(a, b)| square(a - b)).sum();
                    let off = (off / size).sqrt();
                    let class = original.spec.architecture;
                    // Both round activations to 8 bits, in blocks of other lengths.
                    assert!(off <= 0.06, "{class} {kind:?}, prompt of {length}, token {step}: {off}");
                    let best = (0..ours.len()).max_by(|a, b| ours[*a].total_cmp(&ours[*b])).unwrap();
                    input = vec![best as u32];
                }
            }
        }
    }
    write(&path, &shape(other("Olmo2ForCausalLM")), GgmlDType::Q8_0, &more);
    let error = Baseline::new(&open(&path), DType::F32, &Device::Cpu).err().unwrap().to_string();
    assert!(error.contains("no quantised candle-transformers baseline for `olmo2`"), "{error}");
}

#[test]
fn the_demo_speaks_from_a_gguf_file() {
    let folder = tempfile::tempdir().unwrap();
    let demo = Checkpoint::open("demo", &pool(1)).unwrap();
    let TokenizerSource::Json { bytes, .. } = &demo.text.tokenizer else {
        panic!("the demo has a tokenizer")
    };
    let path = file(&folder, "demo.gguf");
    write(&path, &demo, GgmlDType::F16, &tokenizer(&serde_json::from_slice(bytes).unwrap()));
    let opened = open(&path);
    // Its own, and what ends an answer in any vocabulary that has it.
    assert_eq!(opened.end_tokens().unwrap(), [0, 2]);
    assert_eq!(opened.text.chat_template.as_deref(), Some("{{ messages[0].content }}"));
    let of = |checkpoint: &Checkpoint| match &checkpoint.text.tokenizer {
        TokenizerSource::Json { file, bytes } => Tokenizer::from_json(file, bytes).unwrap(),
        TokenizerSource::Synthetic { .. } => panic!("a tokenizer"),
    };
    let (ours, theirs) = (of(&opened), of(&demo));
    for text in ["Once upon a time", "Grüße, 12345 — <|im_start|>user\n  'll 漢字🙂", "", "  \n\n x\t"]
    {
        let ids = ours.encode(text, true).unwrap();
        assert_eq!(ids, theirs.encode(text, true).unwrap(), "{text:?}");
        assert_eq!(ours.decode_all(&ids).unwrap(), text);
    }
    assert!(ours.is_special(1));
}

#[test]
fn sentencepiece_is_merged_by_its_scores() {
    let folder = tempfile::tempdir().unwrap();
    let bytes: Vec<String> = (0..256).map(|b| format!("<0x{b:02X}>")).collect();
    let mut tokens = vec!["<unk>", "<s>", "</s>"];
    tokens.extend(bytes.iter().map(String::as_str));
    let first = tokens.len();
    tokens.extend(["▁t", "he", "▁the", "er", "▁", "t", "h", "e", "r", "x"]);
    let scores =
        (0..tokens.len()).map(|id| Meta::F32(if id < first { 0.0 } else { first as f32 - id as f32 }));
    let kinds = (0..tokens.len()).map(|id| match id {
        0 => Meta::I32(2),
        1 | 2 => Meta::I32(3),
        id if id < first => Meta::I32(6),
        _ => Meta::I32(1),
    });
    let values = [
        ("tokenizer.ggml.model", Meta::String("llama".into())),
        ("tokenizer.ggml.tokens", texts(&tokens)),
        ("tokenizer.ggml.scores", Meta::Array(scores.collect())),
        ("tokenizer.ggml.token_type", Meta::Array(kinds.collect())),
        ("tokenizer.ggml.bos_token_id", Meta::U32(1)),
        ("tokenizer.ggml.eos_token_id", Meta::U32(2)),
    ];
    let path = file(&folder, "pieces.gguf");
    write(&path, &checkpoint(llama(2)), GgmlDType::F32, &values);
    let TokenizerSource::Json { file, bytes } = open(&path).text.tokenizer else { panic!("a tokenizer") };
    let tokenizer = Tokenizer::from_json(&file, &bytes).unwrap();
    let ids = tokenizer.encode("the therx ü", true).unwrap();
    let spelled: Vec<&str> = ids.iter().map(|id| tokens[*id as usize]).collect();
    // "▁t" is the best piece, then "he"; "▁the" is made of both.
    assert_eq!(spelled, ["<s>", "▁the", "▁the", "r", "x", "▁", "<0xC3>", "<0xBC>"]);
    assert_eq!(tokenizer.decode(&ids).unwrap(), "the therx ü");
}

#[test]
fn what_is_not_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, "model.gguf");
    let refused = |path: &Path| match Checkpoint::open(path.to_str().unwrap(), &pool(1)) {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(error) => error.to_string(),
    };
    let original = checkpoint(llama(2));
    write(&path, &original, GgmlDType::Q8_0, &any_tokenizer());
    let rounded = open(&path).load_as(Quantize::Blocks(Format::Q4K), Precision::AsStored, false, &|_| {});
    assert!(rounded.err().unwrap().to_string().contains("is Q8_0 already"));
    for (more, wanted) in [
        (vec![("general.architecture", Meta::String("mamba".into()))], "`mamba` is not an architecture"),
        (vec![("llama.expert_count", Meta::U32(8))], "`blk.0.ffn_down.weight`: is none of"),
        (vec![("split.count", Meta::U16(3))], "one of several parts"),
        (
            vec![("llama.block_count", Meta::U32(10_000_000))],
            "llama.block_count: is more than there are tensors",
        ),
        (vec![("llama.block_count", Meta::U32(2))], "tensor `blk.2."),
        (vec![("tokenizer.ggml.tokens", texts(&["a", "b", "a"]))], "tokens 0 and 2 are the same"),
        (
            vec![("tokenizer.ggml.token_type", Meta::Array(vec![Meta::I32(1)]))],
            "has 1 entries where 3 belong",
        ),
        (vec![("general.alignment", Meta::U32(0))], "general.alignment: is not a power of two"),
        (
            vec![("llama.context_length", Meta::String("long".into()))],
            "llama.context_length: is no whole number",
        ),
    ] {
        let mut values = any_tokenizer();
        values.retain(|(key, _)| !more.iter().any(|(other, _)| key == other));
        values.extend(more);
        write(&path, &original, GgmlDType::F32, &values);
        let error = refused(&path);
        assert!(error.contains(wanted) && error.contains("model.gguf"), "{error}");
    }
    for (key, value, wanted) in [
        ("llama.attention.head_count", Meta::U32(0), "llama.attention.head_count: 0 is not between"),
        ("llama.attention.head_count_kv", Meta::U32(3), "llama.attention.head_count_kv: "),
        (
            "llama.attention.key_length",
            Meta::U32(68),
            "llama.attention.key_length: 68 is not a multiple of 8",
        ),
        ("llama.rope.freq_base", Meta::F32(0.5), "llama.rope.freq_base: 0.5 is not greater than 1"),
        ("llama.rope.dimension_count", Meta::U32(1000), "llama.rope.dimension_count: "),
        (
            "llama.rope.scaling.type",
            Meta::String("dynamic".into()),
            "llama.rope.scaling.type: type `dynamic`",
        ),
        (
            "llama.attention.layer_norm_rms_epsilon",
            Meta::F32(-1.0),
            "llama.attention.layer_norm_rms_epsilon: ",
        ),
    ] {
        let mut values = any_tokenizer();
        values.push((key, value));
        write(&path, &original, GgmlDType::F32, &values);
        let error = refused(&path);
        assert!(error.contains(&format!("model.gguf: {wanted}")), "{error}, not {wanted}");
    }
    for (pre, wanted) in [("nonsense", "`nonsense` is not a pre-tokenizer"), ("qwen2", "")] {
        let mut values = any_tokenizer();
        values[1].1 = Meta::String(pre.into());
        write(&path, &original, GgmlDType::F32, &values);
        match wanted {
            "" => drop(open(&path)),
            wanted => assert!(refused(&path).contains(wanted)),
        }
    }
    for (name, wanted) in [
        ("model.bin", "is a pickle"),
        ("model.safetensors", "name the folder"),
        ("model.txt", "none of GGUF"),
        ("empty.gguf", "is no GGUF file"),
    ] {
        std::fs::write(file(&folder, name), b"x").unwrap();
        let error = refused(&file(&folder, name));
        assert!(error.contains(wanted) && error.contains(name), "{error}");
    }
}
