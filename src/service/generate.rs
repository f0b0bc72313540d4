//! A generation: the choices of one request, merged into one stream of deltas.
//!
//! Dropping it cancels every choice. The first failure ends it.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;

use crate::access::Size;
use crate::clock::{Clock, Tick};
use crate::energy::{AccountHandle, RequestEnergy};
use crate::service::choice::{Choice, Echo, Plan};
use crate::service::collected::CollectedChoice;
use crate::service::constraint::Thoughts;
use crate::service::tools::Asked;
use crate::service::validate::tenant;
use crate::service::{Admit, Delta, ServedModel, ServiceError, Timings, Usage};
use crate::wire::request::{ChatRequest, CompletionRequest, Parameters, Prompt, ServiceTier};
use crate::wire::tools::ToolChoice;

/// Events of one choice that are handled before the others get their turn.
const EVENTS_A_TURN: usize = 32;

/// A running generation.
pub struct Generation {
    /// Id of the model that answers.
    pub model: String,
    /// When it began, Unix seconds.
    pub created: u64,
    pub tier: ServiceTier,
    choices: Vec<Choice>,
    ready: VecDeque<Delta>,
    prompt_tokens: usize,
    failed: bool,
    began: bool,
    /// `None` without a meter.
    account: Option<AccountHandle>,
    clock: Clock,
    begun_at: Tick,
    first_token_at: Option<Tick>,
    ended_at: Option<Tick>,
}

/// What a generation came to, for callers that do not stream.
#[derive(Debug, Clone, Default)]
pub struct Collected {
    pub choices: Vec<CollectedChoice>,
    pub usage: Usage,
}

impl ServedModel {
    /// Starts the answer to a conversation.
    ///
    /// # Errors
    /// What the model cannot honour, and what the unit answers (full, loading, draining).
    pub fn chat(&self, request: &ChatRequest, admit: Admit<'_>) -> Result<Generation, ServiceError> {
        let (thinking, tools) = (&request.thinking, request.tools.as_ref());
        tools.map(|_| self.check_calls()).transpose()?;
        let (prompt, start) =
            self.encode_chat(&request.messages, request.add_generation_prompt, thinking, tools)?;
        let thoughts = self.thoughts.map(|marks| Thoughts {
            marks,
            start,
            budget: self.thought_tokens(thinking),
            shown: thinking.shown,
        });
        let prediction = request.prediction.as_deref();
        let asked =
            Asked { thoughts, tools, prediction, tenant: tenant(&request.parameters), continues: false };
        self.generate(&request.parameters, vec![prompt], "messages", None, asked, admit)
    }

    /// Starts the completion of one or more prompts.
    ///
    /// # Errors
    /// As [`ServedModel::chat`].
    pub fn complete(
        &self,
        request: &CompletionRequest,
        admit: Admit<'_>,
    ) -> Result<Generation, ServiceError> {
        let prompts = request.prompts.iter().map(|p| self.encode_prompt(p)).collect::<Result<Vec<_>, _>>()?;
        let echo =
            request.echo.then(|| request.prompts.iter().zip(&prompts).map(|p| self.shown(p)).collect());
        let asked = Asked { tenant: tenant(&request.parameters), continues: true, ..Asked::default() };
        self.generate(&request.parameters, prompts, "prompt", echo, asked, admit)
    }

    /// A prompt as an echo shows it: as it was written, or what its ids say.
    fn shown(&self, (prompt, ids): (&Prompt, &Vec<u32>)) -> Arc<str> {
        match prompt {
            Prompt::Text(text) => text.as_str().into(),
            Prompt::Tokens(_) => self.tokenizer.decode_all(ids).unwrap_or_default().into(),
        }
    }

    fn generate(
        &self,
        parameters: &Parameters,
        prompts: Vec<Vec<u32>>,
        param: &str,
        echo: Option<Vec<Arc<str>>>,
        asked: Asked,
        admit: Admit<'_>,
    ) -> Result<Generation, ServiceError> {
        let valid = self.validate(parameters, prompts, param, echo.is_some())?;
        let predicted = asked.prediction.map(|text| self.encode_text(text, false, "prediction.content"));
        let predicted: Arc<[u32]> = predicted.transpose()?.unwrap_or_default().into();
        let contents = self.contents(&asked);
        let marks = contents.marks();
        let shown_tokens: Arc<[u32]> = marks.into_iter().filter_map(|mark| self.tokenizer.id(mark)).collect();
        let prompt_tokens = valid.prompts.iter().map(|p| p.len()).sum();
        let most_tokens: usize = valid.choices.iter().map(|c| c.max_tokens).sum();
        let said = parameters.max_tokens.is_some();
        admit(Size { prompt_tokens: prompt_tokens as u64, most_tokens: most_tokens as u64, said })?;
        // Last: it may take a second.
        let constraint = self.constraint(parameters.format.as_ref(), &asked)?;
        let account = self.unit.ledger().map(|ledger| ledger.open());
        let clock = self.unit.clock().clone();
        let begun_at = clock.now();
        let mut choices: Vec<Choice> = Vec::with_capacity(valid.choices.len());
        for (index, mut request) in valid.choices.into_iter().enumerate() {
            if let Some(account) = &account {
                request.account = account.id;
            }
            request.prediction = predicted.clone();
            request.constraint = constraint.as_ref().map(|constraint| constraint.again());
            let text = echo.as_ref().and_then(|texts| texts.get(index / parameters.n));
            let plan = Plan {
                stops: valid.stop.clone(),
                stop_tokens: request.stop_token_ids.clone(),
                min_tokens: request.min_tokens,
                streamed: parameters.stream,
                muted: parameters.max_tokens == Some(0),
                contents: contents.clone(),
                hides_thoughts: asked.thoughts.is_some_and(|thoughts| !thoughts.shown),
                named: asked.tools.is_some_and(|tools| matches!(tools.choice, ToolChoice::Named(_))),
                shown_tokens: shown_tokens.clone(),
                continued: asked.continues.then(|| request.prompt.clone()),
                echo: text.map(|text| Echo {
                    prompt: request.prompt.clone(),
                    text: text.clone(),
                    scored: request.prompt_logprobs.is_some(),
                }),
            };
            // When one is refused, those before it are dropped, and so cancelled.
            // Choices of one prompt stay together.
            let beside = choices.last().and_then(Choice::answer).filter(|_| index % parameters.n != 0);
            let answer = match beside {
                Some(other) => self.unit.submit_beside(request, other)?,
                None => self.unit.submit(request)?,
            };
            choices.push(Choice::new(index, answer, self.tokenizer.clone(), plan));
        }
        Ok(Generation {
            model: self.id.clone(),
            created: crate::clock::unix_seconds(),
            tier: valid.tier,
            choices,
            ready: VecDeque::new(),
            prompt_tokens,
            failed: false,
            began: false,
            account,
            clock,
            begun_at,
            first_token_at: None,
            ended_at: None,
        })
    }
}

impl Generation {
    pub fn choices(&self) -> usize {
        self.choices.len()
    }

    /// Whether an engine has begun with any of it.
    pub fn has_begun(&self) -> bool {
        self.began
    }

    /// Token counts so far; final after the last `Finish`.
    pub fn usage(&self) -> Usage {
        let cached = self.choices.iter().map(|c| c.cached_tokens);
        Usage {
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.choices.iter().map(|c| c.counted).sum(),
            reasoning_tokens: self.choices.iter().map(|c| c.thought).sum(),
            right_guesses: self.choices.iter().map(|c| c.right_guesses).sum(),
            wrong_guesses: self.choices.iter().map(|c| c.guesses - c.right_guesses).sum(),
            // Of the prompt as it is counted: once, however many choices found it.
            cached_tokens: cached.max().unwrap_or(0),
        }
    }

    /// Joules so far, over all choices; an estimate until the meters' windows have closed.
    pub fn energy(&self) -> Option<RequestEnergy> {
        self.account.as_ref().and_then(AccountHandle::energy)
    }

    /// Its account at the meters, to be asked after it has ended; from then on it is asked no more itself.
    pub fn take_account(&mut self) -> Option<AccountHandle> {
        self.account.take().inspect(AccountHandle::close)
    }

    /// Times of the first choice that the engine ended, in seconds. When a stop string ended all of
    /// them, the engine has not told its own: then as seen from here, without queue and prefill.
    pub fn timings(&self) -> Timings {
        let between = |a: Tick, b: Tick| Some(b.since(a).as_secs_f64());
        let Some(s) = self.choices.iter().find_map(|c| c.stats) else {
            return Timings {
                time_to_first_token: self.first_token_at.and_then(|t| between(self.begun_at, t)),
                decode: self.first_token_at.zip(self.ended_at).and_then(|(a, b)| between(a, b)),
                end_to_end: self.ended_at.and_then(|t| between(self.begun_at, t)),
                ..Timings::default()
            };
        };
        Timings {
            queue: between(s.queued_at, s.scheduled_at),
            time_to_first_token: between(s.queued_at, s.first_token_at),
            prefill: between(s.scheduled_at, s.first_token_at),
            decode: between(s.first_token_at, s.finished_at),
            end_to_end: between(s.queued_at, s.finished_at),
        }
    }

    /// The next delta; `None` after the last.
    pub async fn next(&mut self) -> Option<Delta> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// Reads to the end.
    ///
    /// # Errors
    /// What the first choice to fail failed with.
    pub async fn collect(mut self) -> Result<Collected, ServiceError> {
        let mut choices = CollectedChoice::several(self.choices.len());
        while let Some(delta) = self.next().await {
            CollectedChoice::take(&mut choices, delta)?;
        }
        Ok(Collected { choices, usage: self.usage() })
    }
}

impl Stream for Generation {
    type Item = Delta;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Delta>> {
        let this = &mut *self;
        if this.ready.is_empty() && !this.failed {
            for choice in this.choices.iter_mut().filter(|c| !c.is_over()) {
                choice.poll(cx, EVENTS_A_TURN, &mut this.ready);
            }
            this.began |= this.choices.iter().any(Choice::is_admitted);
            if this.first_token_at.is_none() && this.choices.iter().any(|c| c.began) {
                this.first_token_at = Some(this.clock.now());
            }
            if this.ended_at.is_none() && this.choices.iter().all(Choice::is_over) {
                this.ended_at = Some(this.clock.now());
                if let Some(account) = &this.account {
                    account.close();
                }
            }
        }
        match this.ready.pop_front() {
            Some(Delta::Failed(error)) => {
                // Nothing more is said, and the other choices are cancelled.
                this.failed = true;
                this.ready.clear();
                this.choices.clear();
                Poll::Ready(Some(Delta::Failed(error)))
            }
            Some(delta) => Poll::Ready(Some(delta)),
            None if this.failed || this.choices.iter().all(Choice::is_over) => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}
