//! The engine's boundary: what a request brings in and what comes back, token by token.
//!
//! `GenerateRequest` goes down to a worker, `TokenEvent`s come back over one bounded channel a
//! request. Dropping the [`EventStream`] cancels the request: the worker frees its blocks at the
//! next step. Text, HTTP and JSON are unknown here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::mpsc;

use crate::clock::Tick;
use crate::engine::constraint::{ConstraintError, TokenConstraint};
use crate::engine::sampler::SamplingParams;

/// Events a client may leave unread before its request is ended as a slow reader.
pub const EVENT_BUFFER: usize = 4096;

/// Who is served first when the unit is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Tier {
    Priority,
    #[default]
    Default,
    Flex,
}

/// One sequence to generate. `n > 1` choices are `n` requests that share their prompt's blocks.
pub struct GenerateRequest {
    /// Token ids of the prompt; never empty.
    pub prompt: Arc<[u32]>,
    pub sampling: SamplingParams,
    /// What the answer is thought to be: a place to look guesses up in, and of no effect on tokens.
    pub prediction: Arc<[u32]>,
    /// Tokens to generate at most; prompt + max_tokens fits the context (the service checks it).
    pub max_tokens: usize,
    /// Before this many tokens no stop token may be sampled.
    pub min_tokens: usize,
    /// Tokens that end the sequence (end-of-sequence ids, `stop_token_ids`); empty under `ignore_eos`.
    pub stop_token_ids: Arc<[u32]>,
    /// Log-probabilities of the prompt's own tokens, with this many alternatives each (`echo`).
    pub prompt_logprobs: Option<usize>,
    pub tier: Tier,
    /// Separates prefix caches of tenants; part of the root of the hash chain.
    pub cache_salt: u64,
    /// Whose joules its work is; `step_log::OVERHEAD` where nobody asks.
    pub account: u64,
    pub constraint: Option<Box<dyn TokenConstraint>>,
}

impl GenerateRequest {
    /// The same request once more.
    pub fn again(&self) -> GenerateRequest {
        let Self {
            ref prompt, ref prediction, ref sampling, max_tokens, min_tokens, ref stop_token_ids, ..
        } = *self;
        GenerateRequest {
            prompt: prompt.clone(),
            prediction: prediction.clone(),
            sampling: sampling.clone(),
            max_tokens,
            min_tokens,
            stop_token_ids: stop_token_ids.clone(),
            prompt_logprobs: self.prompt_logprobs,
            tier: self.tier,
            cache_salt: self.cache_salt,
            account: self.account,
            constraint: self.constraint.as_ref().map(|c| c.again()),
        }
    }
}

/// A token with its log-probability and the most likely alternatives, natural logarithm.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    pub id: u32,
    pub logprob: f32,
    /// Most likely first; as many as `SamplingParams::logprobs` asked for.
    pub top: Vec<(u32, f32)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token or the constraint's end; the stop token itself is reported, as the last token.
    Stop,
    Length,
}

/// What the engine knows of a finished request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SequenceStats {
    pub prompt_tokens: usize,
    /// Prompt tokens whose keys and values came from the prefix cache.
    pub cached_tokens: usize,
    pub generated_tokens: usize,
    pub preemptions: usize,
    pub queued_at: Tick,
    pub scheduled_at: Tick,
    pub first_token_at: Tick,
    pub finished_at: Tick,
}

/// What guesses have to do with a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Guess {
    /// Guesses that its step computed; the first token of the step tells.
    pub computed: u16,
    /// It was guessed.
    pub right: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub enum TokenEvent {
    /// The request runs for the first time, this much of its prompt found in the prefix cache.
    Admitted {
        cached_tokens: usize,
    },
    /// Log-probabilities of prompt tokens 1.. (the first has none), once, before the first token.
    Prompt(Vec<TokenLogprob>),
    Token {
        id: u32,
        logprob: Option<Box<TokenLogprob>>,
        guess: Guess,
    },
    Finished {
        reason: FinishReason,
        stats: Box<SequenceStats>,
    },
    Failed(Box<EngineError>),
    /// The request begins anew at another engine: what was told before is void. Said by a unit, never by an engine,
    /// and only to readers that hold back what they hear.
    Anew,
}

impl TokenEvent {
    pub fn failed(error: EngineError) -> TokenEvent {
        TokenEvent::Failed(Box::new(error))
    }
}

// What is large is boxed: the channel allocates 32 events at a time, and a decode step must not make
// an allocation of a kilobyte.
const _: () = assert!(size_of::<TokenEvent>() <= 24);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    #[error("the queue is full: {waiting} requests wait, the limit is {limit}")]
    QueueFull { waiting: usize, limit: usize },
    #[error("the engine is stopping")]
    Stopping,
    #[error("the model is still loading")]
    Loading,
    #[error("the engine is not running: {0}")]
    Dead(String),
    #[error("the client read too slowly: {EVENT_BUFFER} tokens were waiting for it")]
    SlowReader,
    #[error("the model returned logits that are not finite for this request")]
    NonFiniteLogits,
    #[error("the output's grammar cannot go on: {0}")]
    Constraint(#[from] ConstraintError),
    #[error("the request needs {needed} cache blocks and the device has {total}")]
    TooLargeForCache { needed: usize, total: usize },
    #[error("the step failed: {0}")]
    Step(String),
    #[error("the device failed: {0}")]
    Device(String),
    #[error("the request was cut short: the unit is shutting down")]
    Aborted,
}

/// What CUDA's driver says when a context is lost: every later call in it fails the same way (CUDA driver API,
/// "Data types used by CUDA driver", the errors that "leave the process in an inconsistent state").
const STICKY: [&str; 15] = [
    "CUDA_ERROR_ECC_UNCORRECTABLE",
    "CUDA_ERROR_NVLINK_UNCORRECTABLE",
    "CUDA_ERROR_ILLEGAL_ADDRESS",
    "CUDA_ERROR_LAUNCH_TIMEOUT",
    "CUDA_ERROR_ASSERT",
    "CUDA_ERROR_HARDWARE_STACK_ERROR",
    "CUDA_ERROR_ILLEGAL_INSTRUCTION",
    "CUDA_ERROR_MISALIGNED_ADDRESS",
    "CUDA_ERROR_INVALID_ADDRESS_SPACE",
    "CUDA_ERROR_INVALID_PC",
    "CUDA_ERROR_LAUNCH_FAILED",
    "CUDA_ERROR_CONTAINED",
    // Not of that list: a card that has fallen off the bus, and a context that is gone.
    "CUDA_ERROR_UNKNOWN",
    "CUDA_ERROR_DEVICE_UNAVAILABLE",
    "CUDA_ERROR_CONTEXT_IS_DESTROYED",
];

impl EngineError {
    /// What a failed step means: the end of its batch, or of the device.
    pub fn of_step(error: &candle_core::Error) -> EngineError {
        let text = error.to_string();
        match STICKY.iter().any(|sticky| text.contains(sticky)) {
            true => EngineError::Device(text),
            false => EngineError::Step(text),
        }
    }

    /// What a panic in a step means: the end of its batch.
    pub fn of_panic(panic: &(dyn std::any::Any + Send)) -> EngineError {
        let text = panic.downcast_ref::<&str>().map(|s| s.to_string());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        EngineError::Step(text.unwrap_or_else(|| "a panic".into()))
    }

    /// True when the engine it comes from serves nobody any more, and another one may.
    pub fn is_of_the_device(&self) -> bool {
        matches!(self, EngineError::Device(_) | EngineError::Dead(_))
    }
}

impl crate::error::Classified for EngineError {
    fn class(&self) -> crate::error::Class {
        use crate::error::Class;
        match self {
            EngineError::QueueFull { .. } => Class::Overloaded,
            EngineError::Stopping
            | EngineError::Loading
            | EngineError::Dead(_)
            | EngineError::Device(_)
            | EngineError::Aborted => Class::Unavailable,
            EngineError::TooLargeForCache { .. } | EngineError::Constraint(_) => Class::InvalidRequest,
            EngineError::SlowReader | EngineError::NonFiniteLogits | EngineError::Step(_) => Class::Internal,
        }
    }
}

const OPEN: u8 = 0;
const SLOW: u8 = 1;
const ENDED: u8 = 2;

/// The engine's end of a request's channel.
#[derive(Clone)]
pub struct EventSender {
    tx: mpsc::Sender<TokenEvent>,
    state: Arc<AtomicU8>,
}

/// The client's end. Dropping it cancels the request.
pub struct EventStream {
    rx: mpsc::Receiver<TokenEvent>,
    state: Arc<AtomicU8>,
}

/// A fresh channel for one request.
pub fn event_channel() -> (EventSender, EventStream) {
    let (tx, rx) = mpsc::channel(EVENT_BUFFER);
    let state = Arc::new(AtomicU8::new(OPEN));
    (EventSender { tx, state: state.clone() }, EventStream { rx, state })
}

impl EventSender {
    /// Hands an event over. False when nobody will read it (client gone, or too slow to be kept):
    /// the sequence should then be dropped.
    pub fn send(&self, event: TokenEvent) -> bool {
        let last = matches!(event, TokenEvent::Finished { .. } | TokenEvent::Failed(_));
        match self.tx.try_send(event) {
            Ok(()) => {
                if last {
                    self.state.store(ENDED, Ordering::Release);
                }
                true
            }
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.state.store(SLOW, Ordering::Release);
                false
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        }
    }

    /// True when the client is gone.
    pub fn is_closed(&self) -> bool {
        self.tx.is_closed()
    }
}

impl EventStream {
    /// The next event; `None` after the last. An engine that vanished without a last word is an error.
    pub async fn next(&mut self) -> Option<TokenEvent> {
        let event = self.rx.recv().await;
        self.or_last_word(event)
    }

    /// As [`EventStream::next`], for callers that own a thread (benches, tests).
    pub fn next_blocking(&mut self) -> Option<TokenEvent> {
        let event = self.rx.blocking_recv();
        self.or_last_word(event)
    }

    /// Poll form, for hand-written streams.
    pub fn poll_next(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Option<TokenEvent>> {
        self.rx.poll_recv(cx).map(|event| self.or_last_word(event))
    }

    fn or_last_word(&self, event: Option<TokenEvent>) -> Option<TokenEvent> {
        if event.is_some() {
            return event;
        }
        match self.state.swap(ENDED, Ordering::AcqRel) {
            SLOW => Some(TokenEvent::failed(EngineError::SlowReader)),
            OPEN => Some(TokenEvent::failed(EngineError::Dead("its thread ended".into()))),
            _ => None,
        }
    }
}
