//! What opening a file takes: twice its size at most for the header of a GGUF file, whatever it says, and no more than it
//! has for any count that a file claims.

use std::path::Path;

use hashwatt::model::Checkpoint;
use hashwatt::model::gguf::GgufTable;
use serde_json::json;

use super::gguf_file::{GgufFile, of_list, of_text, of_u32};
use super::seeds;
use crate::allocation::peak_of;
use crate::support::pool;

/// Beside twice the size: paths, errors, the map's own.
const BESIDE: usize = 64 << 10;

fn written(folder: &Path, bytes: &[u8]) -> std::path::PathBuf {
    let path = folder.join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    path
}

/// Names that are as short as so many can be.
fn name(i: usize) -> String {
    let digits = "abcdefghijklmnopqrstuvwxyz".as_bytes();
    let mut rest = i;
    let mut name = String::new();
    while rest > 0 || name.is_empty() {
        name.push(char::from(digits[rest % digits.len()]));
        rest /= digits.len();
    }
    name
}

#[test]
fn a_header_takes_twice_its_size_at_most() {
    let folder = tempfile::tempdir().unwrap();
    let pool = pool(1);
    let mut values = GgufFile::new();
    (0..4096).for_each(|i| values.value(&name(i), (0, vec![1])));
    let mut tensors = GgufFile::new();
    (0..65_536).for_each(|i| tensors.tensor(&name(i), &[], 1, &[]));
    let mut tensors = tensors.bytes();
    tensors.extend([0; 64]);
    let mut lists = GgufFile::new();
    let empty: Vec<_> = (0..100_000).map(|_| of_text("")).collect();
    (0..4).for_each(|i| lists.value(&name(i), of_list(8, &empty)));
    lists.value("long", of_text(&"x".repeat(1 << 20)));
    let mut twice = tensors.clone();
    // The last tensor is called like the first.
    let name_of_last = name(65_535);
    let last = twice.windows(name_of_last.len()).rposition(|w| w == name_of_last.as_bytes()).unwrap();
    let first = name(65_534);
    twice[last..last + first.len()].copy_from_slice(first.as_bytes());
    for (what, bytes, sound) in [
        ("values", values.bytes(), true),
        ("tensors", tensors.clone(), true),
        ("lists", lists.bytes(), true),
        ("a name twice", twice, false),
        ("cut", tensors[..tensors.len() / 2].to_vec(), false),
    ] {
        let path = written(folder.path(), &bytes);
        let (opened, peak) = peak_of(|| GgufTable::open(&path, &pool));
        assert_eq!(opened.is_ok(), sound, "{what}: {:?}", opened.err().map(|e| e.to_string()));
        assert!(peak <= 2 * bytes.len() + BESIDE, "{what}: {peak} bytes for {}", bytes.len());
        assert!(peak > 0, "{what}: nothing was counted");
    }
}

#[test]
fn what_a_file_claims_is_not_allocated() {
    let folder = tempfile::tempdir().unwrap();
    let pool = pool(1);
    let sound = seeds::of(super::Target::Gguf).remove(0).1;
    let with = |key: &str, value: (u32, Vec<u8>)| {
        let mut file = GgufFile::read(&sound).unwrap();
        file.replace(key, value);
        file.bytes()
    };
    let count = |kind: u32, count: u64| (9, [&kind.to_le_bytes()[..], &count.to_le_bytes()].concat());
    let mut counts = sound.clone();
    counts[8..16].copy_from_slice(&60_000u64.to_le_bytes());
    let mut more = sound.clone();
    more[16..24].copy_from_slice(&4_096u64.to_le_bytes());
    for (bytes, wanted) in [
        (counts, "ends inside"),
        (more, "ends inside"),
        (with("tokenizer.ggml.tokens", count(8, 1 << 40)), "ends inside tokenizer.ggml.tokens"),
        (with("tokenizer.ggml.scores", count(6, u64::MAX)), "ends inside"),
        (with("llama.block_count", of_u32(u32::MAX)), "llama.block_count"),
        (with("llama.attention.head_count", of_u32(1 << 24)), "attn_q.weight"),
        (with("llama.expert_count", of_u32(1024)), "ffn_down"),
        (with("llama.context_length", of_u32(u32::MAX)), "llama.context_length"),
        (with("llama.embedding_length", of_u32(1 << 24)), "token_embd.weight"),
    ] {
        let path = written(folder.path(), &bytes);
        let (opened, peak) = peak_of(|| Checkpoint::open(path.to_str().unwrap(), &pool));
        let error = opened.err().unwrap().to_string();
        assert!(error.contains(wanted) && error.contains("model.gguf"), "{error}, not {wanted}");
        assert!(peak <= 2 * bytes.len() + BESIDE, "{wanted}: {peak} bytes for {}", bytes.len());
    }
}

#[test]
fn a_configuration_that_claims_more_than_its_folder_has_is_refused_by_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let pool = pool(1);
    let sound = super::inputs::files_of(&seeds::of(super::Target::Folder).remove(0).1);
    for (changes, wanted) in [
        (json!({"num_hidden_layers": 16_777_216}), "num_hidden_layers"),
        (json!({"num_hidden_layers": 1024}), "model.layers.1."),
        (json!({"vocab_size": 16_777_216}), "embed_tokens"),
        (json!({"rms_norm_eps": -1.0}), "rms_norm_eps"),
        (
            json!({"architectures": ["MixtralForCausalLM"], "num_local_experts": 1024, "num_hidden_layers": 1024}),
            "block_sparse_moe",
        ),
        (json!({"architectures": ["x".repeat(100_000)]}), "architectures"),
        (json!({"hidden_size": "x".repeat(100_000)}), "hidden_size"),
    ] {
        for (name, content) in &sound {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        let path = folder.path().join("config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        std::fs::write(&path, config.to_string()).unwrap();
        let (opened, peak) = peak_of(|| Checkpoint::open(folder.path().to_str().unwrap(), &pool));
        let error = opened.err().unwrap().to_string();
        assert!(error.contains(wanted) && error.len() < 1500, "{error}, not {wanted}");
        assert!(peak <= 4 << 20, "{wanted}: {peak} bytes");
    }
}
