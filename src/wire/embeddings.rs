//! `/v1/embeddings`, `/v1/rerank`, `/v1/score`: what they are asked and what they answer.
//!
//! Embeddings are OpenAI's, reranking is Jina's and Cohere's, scores are vLLM's. Whether a model can honour a request
//! (its length, its width) is the service's question.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::fields::{Fields, RequestError, UnknownParameters, wrong};
use super::request::{MAX_LABEL_CHARS, Prompt, ServiceTier, prompts, service_tier};
use super::response::Energy;

/// Texts of one request, as OpenAI has it.
pub const MAX_TEXTS: usize = 2048;

/// Arguments of others' APIs that exist and are not built here.
const UNSUPPORTED: &[&str] = &[
    "add_special_tokens",
    "additional_data",
    "embedding_type",
    "input_type",
    "instruction",
    "late_chunking",
    "max_chunks_per_doc",
    "max_tokens_per_doc",
    "messages",
    "mm_processor_kwargs",
    "normalize",
    "priority",
    "rank_fields",
    "task",
    "truncate",
    "truncate_prompt_tokens",
    "truncation",
    "use_activation",
];

/// How a vector is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Encoding {
    #[default]
    Float,
    /// Little-endian f32, one after another.
    Base64,
}

/// `POST /v1/embeddings`.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbeddingRequest {
    pub model: Option<String>,
    pub inputs: Vec<Prompt>,
    /// The input is one text or one list of token ids, not an array of such.
    pub single: bool,
    pub encoding: Encoding,
    pub dimensions: Option<usize>,
    pub tier: ServiceTier,
}

/// `POST /v1/rerank`.
#[derive(Debug, Clone, PartialEq)]
pub struct RerankRequest {
    pub model: Option<String>,
    pub query: String,
    pub documents: Vec<String>,
    pub top_n: Option<usize>,
    pub return_documents: bool,
    pub tier: ServiceTier,
}

/// `POST /v1/score`.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoreRequest {
    pub model: Option<String>,
    /// One for all of `second`, or one for each.
    pub first: Vec<String>,
    pub second: Vec<String>,
    pub tier: ServiceTier,
}

impl EmbeddingRequest {
    pub fn parse(body: &[u8], unknown: UnknownParameters) -> Result<EmbeddingRequest, RequestError> {
        let mut f = Fields::of_body(body)?;
        let (inputs, single) = prompts(&mut f, "input", MAX_TEXTS)?;
        let encoding = match f.string("encoding_format")?.as_deref() {
            None | Some("float") => Encoding::Float,
            Some("base64") => Encoding::Base64,
            Some(other) => return Err(wrong("encoding_format", "float or base64", &json!(other))),
        };
        let dimensions = f.integer("dimensions", 1, usize::MAX)?;
        let (model, tier) = end(f, unknown)?;
        Ok(EmbeddingRequest { model, inputs, single, encoding, dimensions, tier })
    }
}

impl RerankRequest {
    pub fn parse(body: &[u8], unknown: UnknownParameters) -> Result<RerankRequest, RequestError> {
        let mut f = Fields::of_body(body)?;
        let query = f.required_string("query")?;
        let documents = documents(&mut f, unknown)?;
        let top_n = f.integer("top_n", 1, usize::MAX)?;
        let return_documents = f.bool("return_documents")?.unwrap_or(false);
        let (model, tier) = end(f, unknown)?;
        Ok(RerankRequest { model, query, documents, top_n, return_documents, tier })
    }
}

impl ScoreRequest {
    pub fn parse(body: &[u8], unknown: UnknownParameters) -> Result<ScoreRequest, RequestError> {
        let mut f = Fields::of_body(body)?;
        let (first, second) = (texts(&mut f, "text_1")?, texts(&mut f, "text_2")?);
        if first.len() != 1 && first.len() != second.len() {
            let (ones, others) = (first.len(), second.len());
            let message =
                format!("text_1 has {ones} texts and text_2 {others}: one for all, or one for each");
            return Err(RequestError::invalid("text_1", message));
        }
        let (model, tier) = end(f, unknown)?;
        Ok(ScoreRequest { model, first, second, tier })
    }
}

/// What all three take.
fn end(mut f: Fields, unknown: UnknownParameters) -> Result<(Option<String>, ServiceTier), RequestError> {
    let model = f.string("model")?;
    f.label("user", MAX_LABEL_CHARS)?;
    let tier = service_tier(&mut f)?;
    f.refuse(UNSUPPORTED)?;
    f.finish(unknown)?;
    Ok((model, tier))
}

fn at_most(path: &str, count: usize) -> Result<(), RequestError> {
    match count {
        0 => Err(RequestError::invalid(path, format!("{path} must not be an empty array"))),
        n if n > MAX_TEXTS => {
            Err(RequestError::invalid(path, format!("{n} texts were given; at most {MAX_TEXTS} are served")))
        }
        _ => Ok(()),
    }
}

fn texts(f: &mut Fields, key: &str) -> Result<Vec<String>, RequestError> {
    let missing = || RequestError::invalid(key, format!("{key} is required"));
    let all = match f.take(key).ok_or_else(missing)? {
        Value::String(text) => return Ok(vec![text]),
        Value::Array(all) => all,
        other => return Err(wrong(key, "a string or an array of strings", &other)),
    };
    at_most(key, all.len())?;
    let text = |(i, v): (usize, &Value)| {
        v.as_str().map(str::to_string).ok_or_else(|| wrong(&format!("{key}[{i}]"), "a string", v))
    };
    all.iter().enumerate().map(text).collect()
}

fn documents(f: &mut Fields, unknown: UnknownParameters) -> Result<Vec<String>, RequestError> {
    let missing = || RequestError::invalid("documents", "documents is required");
    let all = match f.take("documents").ok_or_else(missing)? {
        Value::Array(all) => all,
        other => return Err(wrong("documents", "an array of strings or of objects with `text`", &other)),
    };
    at_most("documents", all.len())?;
    let text = |(i, v): (usize, Value)| match v {
        Value::String(text) => Ok(text),
        Value::Object(_) => {
            let mut document = Fields::of_value(v, &format!("documents[{i}]"))?;
            let text = document.required_string("text")?;
            document.finish(unknown)?;
            Ok(text)
        }
        other => Err(wrong(&format!("documents[{i}]"), "a string or an object with `text`", &other)),
    };
    all.into_iter().enumerate().map(text).collect()
}

/// Counts of a request without completion.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EmbeddingUsage {
    pub prompt_tokens: usize,
    pub total_tokens: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy: Option<Energy>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Vector {
    Float(Vec<f32>),
    Base64(String),
}

impl Vector {
    pub fn new(numbers: Vec<f32>, encoding: Encoding) -> Vector {
        match encoding {
            Encoding::Float => Vector::Float(numbers),
            Encoding::Base64 => {
                let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
                Vector::Base64(STANDARD.encode(bytes))
            }
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Embedding {
    pub object: String,
    pub index: usize,
    pub embedding: Vector,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EmbeddingList {
    pub object: String,
    pub data: Vec<Embedding>,
    pub model: String,
    pub usage: EmbeddingUsage,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RankedDocument {
    pub text: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ranked {
    pub index: usize,
    pub relevance_score: f32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<RankedDocument>,
}

/// Most relevant first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ranking {
    pub id: String,
    pub model: String,
    pub results: Vec<Ranked>,
    pub usage: EmbeddingUsage,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Score {
    pub index: usize,
    pub object: String,
    pub score: f32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScoreList {
    pub id: String,
    pub object: String,
    pub created: u64,
    pub model: String,
    pub data: Vec<Score>,
    pub usage: EmbeddingUsage,
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFUSE: UnknownParameters = UnknownParameters::Refuse;

    #[test]
    fn inputs_come_in_four_forms() {
        for (input, want, single) in [
            (json!("a"), vec![Prompt::Text("a".into())], true),
            (json!(["a", "b"]), vec![Prompt::Text("a".into()), Prompt::Text("b".into())], false),
            (json!([1, 2]), vec![Prompt::Tokens(vec![1, 2])], true),
            (json!([[1], [2]]), vec![Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2])], false),
        ] {
            let body = json!({"input": input, "model": "m"}).to_string();
            let request = EmbeddingRequest::parse(body.as_bytes(), REFUSE).unwrap();
            assert_eq!((request.inputs, request.single), (want, single));
        }
    }

    #[test]
    fn what_cannot_be_honoured_is_named() {
        let many = json!({"input": vec!["a"; MAX_TEXTS + 1]});
        for (body, param) in [
            (json!({}), "input"),
            (json!({"input": []}), "input"),
            (json!({"input": [1, "a"]}), "input"),
            (json!({"input": 3}), "input"),
            (many, "input"),
            (json!({"input": "a", "encoding_format": "int8"}), "encoding_format"),
            (json!({"input": "a", "dimensions": 0}), "dimensions"),
            (json!({"input": "a", "truncate": true}), "truncate"),
            (json!({"input": "a", "colour": 1}), "colour"),
        ] {
            let error = EmbeddingRequest::parse(body.to_string().as_bytes(), REFUSE).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param));
        }
        for (body, param) in [
            (json!({"documents": ["a"]}), "query"),
            (json!({"query": "q"}), "documents"),
            (json!({"query": "q", "documents": []}), "documents"),
            (json!({"query": "q", "documents": "a"}), "documents"),
            (json!({"query": "q", "documents": ["a", 3]}), "documents[1]"),
            (json!({"query": "q", "documents": [{"title": "a"}]}), "documents[0].text"),
            (json!({"query": "q", "documents": ["a"], "top_n": 0}), "top_n"),
        ] {
            let error = RerankRequest::parse(body.to_string().as_bytes(), REFUSE).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param));
        }
        for (body, param) in [
            (json!({"text_1": "a"}), "text_2"),
            (json!({"text_1": ["a", "b"], "text_2": ["a"]}), "text_1"),
            (json!({"text_1": "a", "text_2": ["b", null]}), "text_2[1]"),
        ] {
            let error = ScoreRequest::parse(body.to_string().as_bytes(), REFUSE).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param));
        }
    }

    #[test]
    fn base64_is_of_little_endian_floats() {
        let Vector::Base64(text) = Vector::new(vec![1.0, -2.5], Encoding::Base64) else { panic!() };
        assert_eq!(text, "AACAPwAAIMA=");
    }
}
