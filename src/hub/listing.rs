//! What a repository holds, and which of it a model is made of.
//!
//! The hub's answer about a revision → commit, files with size and checksum → those to be fetched, or why none is.
//! File names become paths: one that would lead elsewhere ends everything.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::checksum::Checksum;
use super::name::{is_commit, is_pickle, is_safe_path};
use super::{HubError, HubName};

pub const CONFIG: &str = "config.json";
pub const TOKENIZER: &str = "tokenizer.json";
pub const INDEX: &str = "model.safetensors.index.json";
pub const WEIGHTS: &str = "model.safetensors";
const ADAPTER: &str = "adapter_config.json";

/// Fetched where a repository has them; the last three say how an encoder's vectors are made.
pub const OPTIONAL: &[&str] = &[
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "modules.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
];

const MOST_FILES: usize = 100_000;
/// How many names an error shows.
const SHOWN: usize = 12;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listed {
    pub size: Option<u64>,
    pub checksum: Option<Checksum>,
}

#[derive(Debug)]
pub struct Listing {
    pub commit: String,
    pub files: BTreeMap<String, Listed>,
}

impl Listing {
    /// `url` is named in errors.
    pub fn parse(url: &str, answer: &Value) -> Result<Listing, HubError> {
        let wrong = |problem: String| HubError::Answer { url: url.into(), problem };
        let commit = answer["sha"].as_str().filter(|sha| is_commit(sha));
        let commit = commit.ok_or_else(|| wrong("`sha` is no commit".into()))?;
        let all =
            answer["siblings"].as_array().ok_or_else(|| wrong("`siblings` is no list of files".into()))?;
        if all.len() > MOST_FILES {
            return Err(wrong(format!("{} files are more than {MOST_FILES}", all.len())));
        }
        let mut files = BTreeMap::new();
        for file in all {
            let name = file["rfilename"].as_str().ok_or_else(|| wrong("a file has no `rfilename`".into()))?;
            if !is_safe_path(name) {
                return Err(wrong(format!("the file name {name:?} leads out of its folder")));
            }
            files.insert(name.to_string(), Listed::parse(file));
        }
        Ok(Listing { commit: commit.into(), files })
    }

    /// What is fetched before the weights; the index is among it.
    pub fn small_files(&self, name: &HubName) -> Result<Vec<String>, HubError> {
        if name.file.is_some() {
            return Ok(Vec::new());
        }
        self.check_kind(name)?;
        for file in [CONFIG, TOKENIZER] {
            if !self.files.contains_key(file) {
                let hint = "; a config.json and a tokenizer.json are read, of other tokenizers none".into();
                return Err(HubError::NoFile { repo: name.to_string(), file: file.into(), hint });
            }
        }
        let all = [CONFIG, TOKENIZER, INDEX].iter().chain(OPTIONAL);
        Ok(all.filter(|f| self.files.contains_key(**f)).map(ToString::to_string).collect())
    }

    /// The weights' files. `index`: what the index says, where there is one.
    pub fn weights(&self, name: &HubName, index: Option<Vec<String>>) -> Result<Vec<String>, HubError> {
        let all = match (&name.file, index) {
            (Some(file), _) => vec![file.clone()],
            (None, Some(shards)) => shards,
            (None, None) => vec![WEIGHTS.to_string()],
        };
        match all.iter().find(|file| !self.files.contains_key(*file)) {
            None => Ok(all),
            Some(file) => {
                let gguf = self.shown(|f| f.ends_with(".gguf"));
                let hint = if gguf.is_empty() { String::new() } else { format!("; of GGUF it has {gguf}") };
                Err(HubError::NoFile { repo: name.to_string(), file: file.clone(), hint })
            }
        }
    }

    pub fn has_index(&self) -> bool {
        self.files.contains_key(INDEX)
    }

    /// That the repository is a whole model in a format that is read.
    fn check_kind(&self, name: &HubName) -> Result<(), HubError> {
        if self.has_index() || self.files.contains_key(WEIGHTS) {
            return Ok(());
        }
        let repo = name.to_string();
        if self.files.contains_key(ADAPTER) {
            return Err(HubError::Adapter { repo, file: ADAPTER.into() });
        }
        let gguf = self.shown(|f| f.ends_with(".gguf"));
        if !gguf.is_empty() {
            let problem = format!("has GGUF files: name one, as {repo}:FILE, of {gguf}");
            return Err(HubError::Unusable { repo, problem });
        }
        match self.files.keys().find(|file| is_pickle(file)) {
            Some(file) => Err(HubError::Pickle { repo, file: file.clone() }),
            None => {
                let problem = format!("has no weights that are read: no {WEIGHTS}, no {INDEX}, no GGUF file");
                Err(HubError::Unusable { repo, problem })
            }
        }
    }

    fn shown(&self, wanted: impl Fn(&str) -> bool) -> String {
        let all: Vec<&str> = self.files.keys().map(String::as_str).filter(|f| wanted(f)).collect();
        let more = if all.len() > SHOWN { ", …" } else { "" };
        format!("{}{more}", all[..all.len().min(SHOWN)].join(", "))
    }
}

impl Listed {
    fn parse(file: &Value) -> Listed {
        let large = file["lfs"]["sha256"].as_str().or(file["lfs"]["oid"].as_str());
        let small = file["blobId"].as_str().filter(|_| file["lfs"].is_null());
        Listed { size: file["size"].as_u64(), checksum: large.or(small).and_then(Checksum::of_etag) }
    }
}

/// The files that an index of weights names, none of which leads elsewhere.
pub fn shards(index: &Value) -> Option<Vec<String>> {
    let files = index["weight_map"].as_object()?.values().map(|v| v.as_str().map(str::to_string));
    let files = files.collect::<Option<BTreeSet<String>>>()?;
    let fine = !files.is_empty() && files.iter().all(|f| is_safe_path(f) && f.ends_with(".safetensors"));
    fine.then(|| files.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn listing(files: &[&str]) -> Result<Listing, HubError> {
        let files: Vec<Value> = files.iter().map(|f| json!({"rfilename": f, "size": 3})).collect();
        Listing::parse("http://h/api", &json!({"sha": COMMIT, "siblings": files}))
    }

    fn small(name: &str, files: &[&str]) -> Result<Vec<String>, String> {
        let name = HubName::parse(name).unwrap().unwrap();
        listing(files).and_then(|l| l.small_files(&name)).map_err(|e| e.to_string())
    }

    #[test]
    fn only_what_a_model_is_made_of_is_fetched() {
        let files = [
            "README.md",
            CONFIG,
            TOKENIZER,
            "tokenizer.model",
            INDEX,
            "model-1.safetensors",
            "consolidated.safetensors",
            "pytorch_model.bin",
            "onnx/model.onnx",
            "generation_config.json",
        ];
        let want = [CONFIG, TOKENIZER, INDEX, "generation_config.json"];
        assert_eq!(small("a/b", &files).unwrap(), want);
        let name = HubName::parse("a/b").unwrap().unwrap();
        let index = json!({"weight_map": {"x": "model-1.safetensors", "y": "model-1.safetensors"}});
        let weights = |index: &Value| listing(&files).unwrap().weights(&name, shards(index));
        assert_eq!(weights(&index).unwrap(), ["model-1.safetensors"]);
        let gone = weights(&json!({"weight_map": {"x": "model-2.safetensors"}})).unwrap_err().to_string();
        assert!(gone.contains("model-2.safetensors"), "{gone}");
        for shard in ["../x.safetensors", "/x.safetensors", "x.bin"] {
            assert_eq!(shards(&json!({"weight_map": {"x": shard}})), None);
        }
    }

    #[test]
    fn what_cannot_be_served_is_refused_by_its_file() {
        for (files, words) in [
            (&["config.json", "pytorch_model.bin"][..], &["pytorch_model.bin", "pickle", "safetensors"][..]),
            (&["adapter_config.json", "adapter_model.safetensors"], &["adapter_config.json", "adapter"]),
            (&["b-q4.gguf", "b-q8.gguf"], &["a/b:FILE", "b-q4.gguf, b-q8.gguf"]),
            (&["config.json", "README.md"], &["no weights"]),
            (&["model.safetensors", "config.json"], &["tokenizer.json"]),
            (&["model.safetensors", "tokenizer.json"], &["config.json"]),
            (&["../../etc/passwd"], &["leads out"]),
            (&["/etc/passwd"], &["leads out"]),
            (&["a\\..\\b"], &["leads out"]),
        ] {
            let error = small("a/b", files).unwrap_err();
            assert!(words.iter().all(|w| error.contains(w)), "{words:?}: {error}");
        }
        let name = HubName::parse("a/b:c.gguf").unwrap().unwrap();
        let error = listing(&["d.gguf"]).unwrap().weights(&name, None).unwrap_err().to_string();
        assert!(error.contains("c.gguf") && error.contains("d.gguf"), "{error}");
    }

    #[test]
    fn checksums_are_git_s_for_small_files_and_sha256_for_large_ones() {
        let sha = "ab".repeat(32);
        let files = json!([
            {"rfilename": "a", "size": 5, "blobId": COMMIT},
            {"rfilename": "b", "size": 7, "blobId": COMMIT, "lfs": {"sha256": sha, "size": 7}},
            {"rfilename": "c"},
        ]);
        let l = Listing::parse("u", &json!({"sha": COMMIT, "siblings": files})).unwrap();
        assert_eq!(l.files["a"].checksum, Some(Checksum::GitBlob(COMMIT.into())));
        assert_eq!(
            (l.files["b"].size, l.files["b"].checksum.clone()),
            (Some(7), Some(Checksum::Sha256(sha)))
        );
        assert_eq!(l.files["c"], Listed::default());
        for bad in [json!({}), json!({"sha": "../x", "siblings": []}), json!({"sha": COMMIT})] {
            assert!(Listing::parse("u", &bad).is_err(), "{bad}");
        }
    }
}
