//! The bodies of the inference endpoints, parsed and range-checked, every refusal naming its field.
//!
//! JSON bytes → request types. Whether a model can honour a request (context, vocabulary) is the
//! service's question, not this file's. Limits are those of OpenAI's API description.

use serde_json::{Value, json};

use super::fields::{Fields, RequestError, UnknownParameters, as_usize, fits, wrong};
use super::format::OutputFormat;
pub use super::messages::ChatMessage;
use super::messages::{messages, prediction};
use super::thinking::Thinking;
pub use super::tools::Tools;

/// Choices of one prompt.
pub const MAX_N: usize = 128;
/// Prompts of one completion request, and prompts × n.
pub const MAX_CHOICES: usize = 128;
const MAX_STOP_STRINGS: usize = 4;
const MAX_STOP_CHARS: usize = 1024;
const MAX_STOP_TOKENS: usize = 128;
const MAX_LOGIT_BIAS: usize = 1024;
const MAX_TOP_LOGPROBS: usize = 20;
const MAX_COMPLETION_LOGPROBS: usize = 5;
const MAX_CACHE_SALT_CHARS: usize = 256;
/// `user`, `model` and the like; entries of `metadata`.
pub(super) const MAX_LABEL_CHARS: usize = 512;
const MAX_METADATA: usize = 16;

/// Arguments of OpenAI's and vLLM's APIs that exist and are not built here. Those that may say what is
/// the case anyway (`store: false`, `tools: []`) are read before.
const UNSUPPORTED: &[&str] = &[
    "allowed_token_ids",
    "audio",
    "bad_words",
    "best_of",
    "chat_template",
    "continue_final_message",
    "documents",
    "functions",
    "include_stop_str_in_output",
    "kv_transfer_params",
    "length_penalty",
    "logits_processors",
    "mm_processor_kwargs",
    "moderation",
    "prediction",
    "priority",
    "prompt_cache_options",
    "prompt_cache_retention",
    "prompt_embeds",
    "prompt_logprobs",
    "request_id",
    "return_token_ids",
    "return_token_strs",
    "return_tokens_as_token_ids",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "suffix",
    "truncate_prompt_tokens",
    "use_beam_search",
    "verbosity",
    "web_search_options",
];

/// `service_tier`: who is served first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ServiceTier {
    Priority,
    /// What its key is served in, if it is not said: the default where there is a choice.
    #[default]
    Auto,
    Default,
    Flex,
}

impl ServiceTier {
    pub fn as_str(self) -> &'static str {
        match self {
            ServiceTier::Priority => "priority",
            ServiceTier::Auto | ServiceTier::Default => "default",
            ServiceTier::Flex => "flex",
        }
    }
}

/// What both endpoints take. `None` is the model's default.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Parameters {
    pub model: Option<String>,
    pub n: usize,
    pub stop: Vec<String>,
    pub stop_token_ids: Vec<u32>,
    pub stream: bool,
    pub include_usage: bool,
    pub max_tokens: Option<usize>,
    pub min_tokens: usize,
    pub ignore_eos: bool,
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<usize>,
    pub min_p: Option<f32>,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    pub repetition_penalty: Option<f32>,
    pub logit_bias: Vec<(u32, f32)>,
    pub seed: Option<u64>,
    /// Alternatives per token; `Some(0)` reports the token's own only.
    pub logprobs: Option<usize>,
    pub service_tier: ServiceTier,
    pub cache_salt: Option<String>,
    /// What the text must look like.
    pub format: Option<OutputFormat>,
}

/// `POST /v1/chat/completions`.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatRequest {
    pub parameters: Parameters,
    pub messages: Vec<ChatMessage>,
    pub add_generation_prompt: bool,
    pub thinking: Thinking,
    pub tools: Option<Tools>,
    /// What the answer is thought to be.
    pub prediction: Option<String>,
}

/// One prompt of a completion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// `POST /v1/completions`.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletionRequest {
    pub parameters: Parameters,
    pub prompts: Vec<Prompt>,
    pub echo: bool,
}

/// `POST /tokenize`.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenizeRequest {
    pub model: Option<String>,
    pub input: TokenizeInput,
}

#[derive(Debug, Clone, PartialEq)]
pub enum TokenizeInput {
    Prompt { text: String, add_special_tokens: bool },
    Messages { messages: Vec<ChatMessage>, add_generation_prompt: bool, tools: Option<Tools> },
}

/// `POST /detokenize`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetokenizeRequest {
    pub model: Option<String>,
    pub tokens: Vec<u32>,
}

impl ChatRequest {
    pub fn parse(body: &[u8], unknown: UnknownParameters) -> Result<ChatRequest, RequestError> {
        let mut f = Fields::of_body(body)?;
        let mut parameters = Parameters::read(&mut f, 1, unknown)?;
        parameters.logprobs = chat_logprobs(&mut f)?;
        // The newer name of the same limit; clients in between send both.
        let newer = f.integer("max_completion_tokens", 1, usize::MAX)?;
        if let (Some(old), Some(new)) = (parameters.max_tokens, newer)
            && old != new
        {
            let message = format!("max_tokens is {old} and max_completion_tokens {new}: they must agree");
            return Err(RequestError::invalid("max_tokens", message));
        }
        parameters.max_tokens = newer.or(parameters.max_tokens);
        let messages = messages(&mut f, unknown)?;
        let add_generation_prompt = f.bool("add_generation_prompt")?.unwrap_or(true);
        let thinking = Thinking::read(&mut f)?;
        let tools = Tools::read(&mut f, unknown)?;
        let prediction = prediction(&mut f, unknown)?;
        f.only("functions", &[json!([])])?;
        f.only("function_call", &[json!("none")])?;
        f.only("modalities", &[json!(["text"])])?;
        f.only("echo", &[json!(false)])?;
        f.refuse(UNSUPPORTED)?;
        f.finish(unknown)?;
        Ok(ChatRequest { parameters, messages, add_generation_prompt, thinking, tools, prediction })
    }
}

impl CompletionRequest {
    pub fn parse(body: &[u8], unknown: UnknownParameters) -> Result<CompletionRequest, RequestError> {
        let mut f = Fields::of_body(body)?;
        let echo = f.bool("echo")?.unwrap_or(false);
        // Nothing but the prompt, scored: how evaluation harnesses ask for log-likelihoods.
        let mut parameters = Parameters::read(&mut f, usize::from(!echo), unknown)?;
        parameters.logprobs = f.integer("logprobs", 0, MAX_COMPLETION_LOGPROBS)?;
        // OpenAI's default for this endpoint.
        parameters.max_tokens = parameters.max_tokens.or(Some(16));
        let prompts = prompts(&mut f, "prompt", MAX_CHOICES)?.0;
        if prompts.len() * parameters.n > MAX_CHOICES {
            let message = format!(
                "{} prompts × n = {} choices; at most {MAX_CHOICES} are served",
                prompts.len(),
                prompts.len() * parameters.n
            );
            return Err(RequestError::invalid("n", message));
        }
        f.refuse(UNSUPPORTED)?;
        f.finish(unknown)?;
        Ok(CompletionRequest { parameters, prompts, echo })
    }
}

impl TokenizeRequest {
    pub fn parse(body: &[u8], unknown: UnknownParameters) -> Result<TokenizeRequest, RequestError> {
        let mut f = Fields::of_body(body)?;
        let model = f.label("model", MAX_LABEL_CHARS)?;
        let input = match f.string("prompt")? {
            Some(text) => TokenizeInput::Prompt {
                text,
                add_special_tokens: f.bool("add_special_tokens")?.unwrap_or(true),
            },
            None if f.has("messages") => TokenizeInput::Messages {
                messages: messages(&mut f, unknown)?,
                add_generation_prompt: f.bool("add_generation_prompt")?.unwrap_or(true),
                tools: Tools::read(&mut f, unknown)?,
            },
            None => return Err(RequestError::invalid("prompt", "prompt or messages is required")),
        };
        if f.has("messages") {
            return Err(RequestError::invalid("messages", "messages and prompt exclude each other"));
        }
        f.refuse(UNSUPPORTED)?;
        f.finish(unknown)?;
        Ok(TokenizeRequest { model, input })
    }
}

impl DetokenizeRequest {
    pub fn parse(body: &[u8], unknown: UnknownParameters) -> Result<DetokenizeRequest, RequestError> {
        let mut f = Fields::of_body(body)?;
        let model = f.label("model", MAX_LABEL_CHARS)?;
        let tokens = f.take("tokens").ok_or_else(|| RequestError::invalid("tokens", "tokens is required"))?;
        let tokens = token_ids(&tokens).ok_or_else(|| wrong("tokens", "an array of token ids", &tokens))?;
        f.finish(unknown)?;
        Ok(DetokenizeRequest { model, tokens })
    }
}

impl Parameters {
    fn read(
        f: &mut Fields,
        least_tokens: usize,
        unknown: UnknownParameters,
    ) -> Result<Parameters, RequestError> {
        let stream = f.bool("stream")?.unwrap_or(false);
        let parameters = Parameters {
            model: f.label("model", MAX_LABEL_CHARS)?,
            n: f.integer("n", 1, MAX_N)?.unwrap_or(1),
            stop: stop(f)?,
            stop_token_ids: stop_token_ids(f)?,
            stream,
            include_usage: stream_options(f, stream, unknown)?,
            max_tokens: f.integer("max_tokens", least_tokens, usize::MAX)?,
            min_tokens: f.integer("min_tokens", 0, usize::MAX)?.unwrap_or(0),
            ignore_eos: f.bool("ignore_eos")?.unwrap_or(false),
            temperature: f.number("temperature", 0.0, 2.0)?,
            top_p: f.number("top_p", 0.0, 1.0)?,
            top_k: top_k(f)?,
            min_p: f.number("min_p", 0.0, 1.0)?,
            presence_penalty: f.number("presence_penalty", -2.0, 2.0)?.unwrap_or(0.0),
            frequency_penalty: f.number("frequency_penalty", -2.0, 2.0)?.unwrap_or(0.0),
            repetition_penalty: f.number("repetition_penalty", 0.01, 10.0)?,
            logit_bias: logit_bias(f)?,
            seed: seed(f)?,
            logprobs: None,
            service_tier: service_tier(f)?,
            cache_salt: cache_salt(f)?,
            format: OutputFormat::read(f, unknown)?,
        };
        f.only("store", &[json!(false)])?;
        for label in ["user", "safety_identifier", "prompt_cache_key"] {
            f.label(label, MAX_LABEL_CHARS)?;
        }
        metadata(f)?;
        Ok(parameters)
    }
}

/// Labels for the caller's own books; they have no effect here, but must be what they should be.
fn metadata(f: &mut Fields) -> Result<(), RequestError> {
    let Some(value) = f.take("metadata") else { return Ok(()) };
    let short = |v: &Value| v.as_str().is_some_and(|s| fits(s, MAX_LABEL_CHARS));
    match &value {
        Value::Object(map) if map.len() <= MAX_METADATA && map.values().all(short) => Ok(()),
        _ => {
            let expected =
                format!("an object of up to {MAX_METADATA} strings of at most {MAX_LABEL_CHARS} characters");
            Err(wrong("metadata", &expected, &value))
        }
    }
}

fn chat_logprobs(f: &mut Fields) -> Result<Option<usize>, RequestError> {
    let on = f.bool("logprobs")?.unwrap_or(false);
    match (on, f.integer("top_logprobs", 0, MAX_TOP_LOGPROBS)?) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => Err(RequestError::invalid("top_logprobs", "top_logprobs needs logprobs: true")),
    }
}

fn stop(f: &mut Fields) -> Result<Vec<String>, RequestError> {
    let expected = "a string or an array of up to 4 strings";
    let strings = match f.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(s)) => vec![s],
        Some(Value::Array(all)) if all.len() <= MAX_STOP_STRINGS => all
            .iter()
            .map(|v| v.as_str().map(str::to_string).ok_or_else(|| wrong("stop", expected, v)))
            .collect::<Result<_, _>>()?,
        Some(other) => return Err(wrong("stop", expected, &other)),
    };
    if strings.iter().any(String::is_empty) {
        return Err(RequestError::invalid("stop", "stop must not contain an empty string"));
    }
    if !strings.iter().all(|s| fits(s, MAX_STOP_CHARS)) {
        let message = format!("a stop string may have {MAX_STOP_CHARS} characters at most");
        return Err(RequestError::invalid("stop", message));
    }
    Ok(strings)
}

fn token_ids(value: &Value) -> Option<Vec<u32>> {
    let id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    value.as_array()?.iter().map(id).collect()
}

fn stop_token_ids(f: &mut Fields) -> Result<Vec<u32>, RequestError> {
    let Some(value) = f.take("stop_token_ids") else { return Ok(Vec::new()) };
    let ids = token_ids(&value).filter(|ids| ids.len() <= MAX_STOP_TOKENS);
    let expected = format!("an array of up to {MAX_STOP_TOKENS} token ids");
    ids.ok_or_else(|| wrong("stop_token_ids", &expected, &value))
}

/// `include_usage`; the object is only allowed with `stream: true`.
fn stream_options(f: &mut Fields, stream: bool, unknown: UnknownParameters) -> Result<bool, RequestError> {
    let Some(value) = f.take("stream_options") else { return Ok(false) };
    if !stream {
        return Err(RequestError::invalid("stream_options", "stream_options needs stream: true"));
    }
    let mut options = Fields::of_value(value, "stream_options")?;
    let include = options.bool("include_usage")?.unwrap_or(false);
    // Padding against traffic analysis: it changes no token.
    options.bool("include_obfuscation")?;
    options.only("continuous_usage_stats", &[json!(false)])?;
    options.finish(unknown)?;
    Ok(include)
}

/// −1 and 0 keep all tokens, as in vLLM.
fn top_k(f: &mut Fields) -> Result<Option<usize>, RequestError> {
    let Some(value) = f.take("top_k") else { return Ok(None) };
    if value.as_i64() == Some(-1) {
        return Ok(Some(0));
    }
    let k = as_usize(&value).ok_or_else(|| wrong("top_k", "a whole number of at least -1", &value))?;
    Ok(Some(k))
}

fn logit_bias(f: &mut Fields) -> Result<Vec<(u32, f32)>, RequestError> {
    let expected = "an object of token ids to numbers between -100 and 100";
    let map = match f.take("logit_bias") {
        None => return Ok(Vec::new()),
        Some(Value::Object(map)) if map.len() <= MAX_LOGIT_BIAS => map,
        Some(other) => {
            return Err(wrong("logit_bias", &format!("{expected}, {MAX_LOGIT_BIAS} at most"), &other));
        }
    };
    map.iter()
        .map(|(key, value)| {
            let id = key.parse::<u32>().ok().filter(|_| !key.starts_with('+'));
            let bias = value.as_f64().filter(|b| (-100.0..=100.0).contains(b));
            id.zip(bias.map(|b| b as f32)).ok_or_else(|| {
                let key: String = key.chars().take(32).collect();
                wrong(&format!("logit_bias.{key}"), &format!("part of {expected}"), value)
            })
        })
        .collect()
}

/// Any 64-bit integer, signed as OpenAI has it or not.
fn seed(f: &mut Fields) -> Result<Option<u64>, RequestError> {
    let Some(value) = f.take("seed") else { return Ok(None) };
    let seed = value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned));
    seed.map(Some).ok_or_else(|| wrong("seed", "a 64-bit integer", &value))
}

pub(super) fn service_tier(f: &mut Fields) -> Result<ServiceTier, RequestError> {
    match f.string("service_tier")?.as_deref() {
        None | Some("auto") => Ok(ServiceTier::Auto),
        Some("default") => Ok(ServiceTier::Default),
        Some("priority") => Ok(ServiceTier::Priority),
        Some("flex") => Ok(ServiceTier::Flex),
        Some(other) => Err(wrong("service_tier", "auto, default, priority or flex", &json!(other))),
    }
}

fn cache_salt(f: &mut Fields) -> Result<Option<String>, RequestError> {
    let salt = f.string("cache_salt")?;
    match salt {
        Some(s) if s.is_empty() || !fits(&s, MAX_CACHE_SALT_CHARS) => Err(wrong(
            "cache_salt",
            &format!("a string of 1 to {MAX_CACHE_SALT_CHARS} characters"),
            &json!(s),
        )),
        salt => Ok(salt),
    }
}

/// One or more texts or lists of token ids, up to `most`, and whether it was one that is not in an array.
pub(super) fn prompts(f: &mut Fields, key: &str, most: usize) -> Result<(Vec<Prompt>, bool), RequestError> {
    let expected = "a string, an array of strings, an array of token ids, or an array of such arrays";
    let missing = || RequestError::invalid(key, format!("{key} is required"));
    let value = f.take(key).ok_or_else(missing)?;
    let one = |v: &Value| match v {
        Value::String(s) => Some(Prompt::Text(s.clone())),
        Value::Array(_) => token_ids(v).map(Prompt::Tokens),
        _ => None,
    };
    let single = match &value {
        Value::Array(all) => all.first().is_some_and(Value::is_number),
        _ => true,
    };
    let prompts = match &value {
        Value::Array(all) if !single => all.iter().map(one).collect(),
        value => one(value).map(|p| vec![p]),
    };
    match prompts.ok_or_else(|| wrong(key, expected, &value))? {
        p if p.is_empty() => Err(RequestError::invalid(key, format!("{key} must not be an empty array"))),
        p if p.len() > most => {
            let message = format!("{} {key}s were given; at most {most} are served", p.len());
            Err(RequestError::invalid(key, message))
        }
        p => Ok((p, single)),
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
