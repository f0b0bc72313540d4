//! From a parsed request and a model to what the engine can run: tokens, limits, sampling.
//!
//! Everything here depends on the model: its context, its vocabulary, its defaults.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::engine::event::{GenerateRequest, Tier};
use crate::engine::sampler::SamplingParams;
use crate::engine::step_log;
use crate::service::{ServedModel, ServiceError};
use crate::text::chat_template::{ChatTemplate, Message};
use crate::text::reasoning::Start;
use crate::wire::messages::ToolCall;
use crate::wire::request::{ChatMessage, Parameters, Prompt, ServiceTier, Tools};
use crate::wire::thinking::Thinking;

/// Below this a temperature is greedy: dividing by it would only overflow.
const GREEDY_BELOW: f32 = 1e-5;

/// A request that will be honoured as it stands.
pub struct ValidRequest {
    /// One per choice, in order: all choices of the first prompt, then those of the next.
    pub choices: Vec<GenerateRequest>,
    pub prompts: Vec<Arc<[u32]>>,
    pub stop: Vec<String>,
    pub tier: ServiceTier,
}

pub(super) fn invalid(param: &str, message: String, code: Option<&'static str>) -> ServiceError {
    ServiceError::Invalid { message, param: Some(param.into()), code }
}

fn too_long(param: &str, model: &ServedModel, prompt: String, max_tokens: Option<usize>) -> ServiceError {
    let context = model.max_model_len;
    let completion = max_tokens.map_or(String::new(), |m| format!(" plus {m} in the completion"));
    let message = format!(
        "This model's maximum context length is {context} tokens; the request has {prompt} tokens in the \
         prompt{completion}."
    );
    invalid(param, message, Some("context_length_exceeded"))
}

impl ServedModel {
    /// Refuses a text that cannot fit before it is tokenised: tokenising is the expensive part.
    fn check_length(&self, bytes: usize, param: &str) -> Result<(), ServiceError> {
        let at_least = bytes / self.tokenizer.longest_token().max(1);
        match at_least > self.max_model_len {
            true => Err(too_long(param, self, format!("more than {at_least}"), None)),
            false => Ok(()),
        }
    }

    /// The token ids of a plain text.
    pub fn encode_text(&self, text: &str, special: bool, param: &str) -> Result<Vec<u32>, ServiceError> {
        self.check_length(text.len(), param)?;
        self.tokenizer.encode(text, special).map_err(|e| invalid(param, e.to_string(), None))
    }

    /// The token ids of a conversation, and where the answer to it begins.
    pub fn encode_chat(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
        thinking: &Thinking,
        tools: Option<&Tools>,
    ) -> Result<(Vec<u32>, Start), ServiceError> {
        let template = self.template.as_ref().ok_or_else(|| {
            let message = format!("The model `{}` has no chat template; use /v1/completions", self.id);
            invalid("model", message, None)
        })?;
        let template = if tools.is_some() { template.for_tools() } else { template };
        self.check_length(messages.iter().map(ChatMessage::bytes).sum(), "messages")?;
        let role = |m: &ChatMessage| match m.role.as_str() {
            "developer" if !template.knows_developer() => "system".to_string(),
            role => role.to_string(),
        };
        let messages: Vec<Message> = messages
            .iter()
            .map(|m| Message {
                role: role(m),
                content: m.content.clone(),
                name: m.name.clone(),
                reasoning: m.reasoning.clone(),
                tool_calls: m.tool_calls.iter().map(written).collect(),
                tool_call_id: m.tool_call_id.clone(),
            })
            .collect();
        let tools = tools.map(Tools::written);
        let arguments = self.template_arguments(template, thinking)?;
        let text = template
            .render_with(&messages, add_generation_prompt, tools.as_ref(), &arguments)
            .map_err(|e| invalid("messages", e.to_string(), None))?;
        let start = self.thoughts.map_or(Start::Answer, |marks| marks.start(&text));
        if thinking.enabled == Some(false) && start == Start::Thinking {
            let message =
                format!("The model `{}` thinks before each answer; it cannot be told not to", self.id);
            return Err(invalid("enable_thinking", message, Some("unsupported_parameter")));
        }
        // The template writes the special tokens itself.
        Ok((self.encode_text(&text, false, "messages")?, start))
    }

    /// What of the request's wishes about thoughts the template is told.
    fn template_arguments(
        &self,
        template: &ChatTemplate,
        thinking: &Thinking,
    ) -> Result<Map<String, Value>, ServiceError> {
        let wanted = [
            (thinking.enabled == Some(true), "enable_thinking"),
            (thinking.effort.is_some(), "reasoning_effort"),
        ];
        if let Some((_, param)) = wanted.into_iter().find(|(wanted, _)| *wanted && self.thoughts.is_none()) {
            let message = format!("{param}: the model `{}` does not think before it answers", self.id);
            return Err(invalid(param, message, Some("unsupported_parameter")));
        }
        let mut arguments = thinking.template.clone();
        if let Some(on) = thinking.enabled {
            if !on && self.thoughts.is_some() && !template.source().contains("enable_thinking") {
                let message = format!("The model `{}` cannot be told not to think", self.id);
                return Err(invalid("enable_thinking", message, Some("unsupported_parameter")));
            }
            arguments.insert("enable_thinking".into(), on.into());
        }
        if let Some(effort) = &thinking.effort {
            arguments.insert("reasoning_effort".into(), effort.as_str().into());
        }
        Ok(arguments)
    }

    /// Tokens of thoughts at most: what is asked for, or, of a model whose template knows no effort, what stands for it.
    pub(super) fn thought_tokens(&self, thinking: &Thinking) -> Option<usize> {
        let knows = self.template.as_ref().is_some_and(|t| t.source().contains("reasoning_effort"));
        let by_effort = match thinking.effort.as_deref().filter(|_| !knows) {
            Some("minimal") => Some(256),
            Some("low") => Some(1024),
            Some("medium") => Some(4096),
            _ => None,
        };
        thinking.budget.or(by_effort)
    }

    pub fn encode_prompt(&self, prompt: &Prompt) -> Result<Vec<u32>, ServiceError> {
        match prompt {
            Prompt::Text(text) => self.encode_text(text, true, "prompt"),
            Prompt::Tokens(ids) => {
                self.check_ids(ids, "prompt")?;
                Ok(ids.clone())
            }
        }
    }

    pub fn check_ids(&self, ids: &[u32], param: &str) -> Result<(), ServiceError> {
        match ids.iter().find(|id| **id as usize >= self.vocab) {
            Some(id) => {
                let message = format!("token id {id} is outside the model's vocabulary of {}", self.vocab);
                Err(invalid(param, message, None))
            }
            None => Ok(()),
        }
    }

    /// The engine's requests for these prompts. `param` is where the prompts came from.
    pub fn validate(
        &self,
        p: &Parameters,
        prompts: Vec<Vec<u32>>,
        param: &str,
        echo: bool,
    ) -> Result<ValidRequest, ServiceError> {
        let biased: Vec<u32> = p.logit_bias.iter().map(|b| b.0).collect();
        self.check_ids(&biased, "logit_bias")?;
        self.check_ids(&p.stop_token_ids, "stop_token_ids")?;
        let seed = match p.seed {
            Some(seed) => seed,
            None => getrandom::u64().map_err(|e| ServiceError::Internal(format!("no random seed: {e}")))?,
        };
        let prompts: Vec<Arc<[u32]>> = prompts.into_iter().map(Into::into).collect();
        let mut choices = Vec::with_capacity(prompts.len() * p.n);
        for prompt in &prompts {
            let max_tokens = self.max_tokens(p, prompt, param)?;
            for choice in 0..p.n {
                choices.push(GenerateRequest {
                    prompt: prompt.clone(),
                    prediction: Arc::new([]),
                    // Choices differ although one seed was given.
                    sampling: self.sampling(p, seed.wrapping_add(choice as u64)),
                    // An engine makes one token at least; the choice does not show it.
                    max_tokens: max_tokens.max(1),
                    min_tokens: p.min_tokens.min(max_tokens),
                    stop_token_ids: self.stop_tokens(p),
                    prompt_logprobs: if echo { p.logprobs } else { None },
                    tier: tier(p.service_tier),
                    account: step_log::OVERHEAD,
                    cache_salt: tenant(p),
                    constraint: None,
                });
            }
        }
        Ok(ValidRequest { choices, prompts, stop: p.stop.clone(), tier: p.service_tier })
    }

    /// Tokens this request may generate.
    fn max_tokens(&self, p: &Parameters, prompt: &[u32], param: &str) -> Result<usize, ServiceError> {
        let context = self.max_model_len;
        if prompt.is_empty() {
            return Err(invalid(param, format!("{param} must have at least one token"), None));
        }
        let room = context.saturating_sub(prompt.len());
        match p.max_tokens.map(|asked| if room == 0 { asked.max(1) } else { asked }) {
            Some(asked) if asked > room => Err(too_long(param, self, prompt.len().to_string(), Some(asked))),
            None if room == 0 => Err(too_long(param, self, prompt.len().to_string(), None)),
            asked => {
                let max_tokens = asked.unwrap_or(room);
                if p.min_tokens > max_tokens {
                    let message = format!("min_tokens is {} and max_tokens {max_tokens}", p.min_tokens);
                    return Err(invalid("min_tokens", message, None));
                }
                Ok(max_tokens)
            }
        }
    }

    fn stop_tokens(&self, p: &Parameters) -> Arc<[u32]> {
        let end: &[u32] = if p.ignore_eos { &[] } else { &self.end_tokens };
        p.stop_token_ids.iter().chain(end).copied().collect()
    }

    fn sampling(&self, p: &Parameters, seed: u64) -> SamplingParams {
        let d = &self.defaults;
        let temperature = p.temperature.or(d.temperature).unwrap_or(1.0);
        let top_p = p.top_p.or(d.top_p).unwrap_or(1.0);
        SamplingParams {
            // A nucleus of no mass is the most likely token.
            temperature: if temperature < GREEDY_BELOW || top_p == 0.0 { 0.0 } else { temperature },
            top_k: p.top_k.or(d.top_k).unwrap_or(0),
            top_p,
            min_p: p.min_p.or(d.min_p).unwrap_or(0.0),
            presence_penalty: p.presence_penalty,
            frequency_penalty: p.frequency_penalty,
            repetition_penalty: p.repetition_penalty.or(d.repetition_penalty).unwrap_or(1.0),
            logit_bias: p.logit_bias.clone(),
            seed,
            logprobs: p.logprobs,
        }
    }
}

/// A call as templates read it.
fn written(call: &ToolCall) -> Value {
    let function = json!({"name": call.name, "arguments": call.arguments});
    json!({"id": call.id, "type": "function", "function": function})
}

pub(super) fn tier(tier: ServiceTier) -> Tier {
    match tier {
        ServiceTier::Priority => Tier::Priority,
        ServiceTier::Auto | ServiceTier::Default => Tier::Default,
        ServiceTier::Flex => Tier::Flex,
    }
}

/// A tenant's salt as a number; 0 is "no salt".
pub(super) fn tenant(parameters: &Parameters) -> u64 {
    use sha2::Digest;
    let Some(text) = &parameters.cache_salt else { return 0 };
    let digest = sha2::Sha256::digest(text.as_bytes());
    let mut first = [0u8; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_le_bytes(first).max(1)
}
