//! One choice of a generation: its event stream turned into deltas of text.
//!
//! Tokens become text, text passes the stop strings, and each token is reported (and counted) only when
//! its text is let through. A stop string drops the stream, which cancels the sequence.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::engine::event::{FinishReason, Guess, SequenceStats, TokenEvent, TokenLogprob};
use crate::service::stop::{Passed, StopMatcher};
use crate::service::tools::call_id;
use crate::service::{Delta, Finish, ServiceError, TextLogprob, TopLogprob};
use crate::text::answer::{Contents, Piece, Reader};
use crate::text::detokenizer::Detokenizer;
use crate::text::tokenizer::Tokenizer;
use crate::unit::Answer;

/// A token whose text has not been let through: where its text begins and ends.
struct Open {
    begin: usize,
    end: usize,
    logprob: Option<Box<TokenLogprob>>,
    guessed: bool,
}

pub(super) struct Choice {
    index: usize,
    /// `None` once the choice has ended.
    events: Option<Answer>,
    tokenizer: Arc<Tokenizer>,
    detokenizer: Detokenizer,
    stops: StopMatcher,
    /// To begin anew by.
    plan: Plan,
    /// Tokens whose text no stop string may cut, still to come.
    unstoppable: usize,
    open: VecDeque<Open>,
    /// Bytes of text all tokens so far have made.
    written: usize,
    /// Tokens of this choice that count as completion, and how many of them were thoughts.
    pub counted: usize,
    pub thought: usize,
    /// Guesses that were computed for its tokens, and how many of those that count had been guessed.
    pub guesses: usize,
    pub right_guesses: usize,
    /// `None` where all is text.
    reader: Option<Reader>,
    /// Calls of tools so far.
    calls: usize,
    /// Entries of tokens whose text has been told to nobody yet.
    untold: Vec<TextLogprob>,
    /// True from the first token on.
    pub began: bool,
    pub stats: Option<SequenceStats>,
    /// Of the prompt, found in the prefix cache.
    pub cached_tokens: usize,
    admitted: bool,
    /// The echoed prompt, until the engine's scores of it (if asked for) have come.
    echo: Option<Echo>,
}

/// A prompt to be repeated before the completion.
#[derive(Clone)]
pub(super) struct Echo {
    pub prompt: Arc<[u32]>,
    /// The prompt as the client wrote it: not every tokenizer gives it back.
    pub text: Arc<str>,
    pub scored: bool,
}

/// What a choice makes of its tokens.
#[derive(Clone)]
pub(super) struct Plan {
    pub stops: Vec<String>,
    pub stop_tokens: Arc<[u32]>,
    /// Before this many tokens no stop string counts, either.
    pub min_tokens: usize,
    /// Show the prompt only: the token that the engine makes at least is not shown.
    pub muted: bool,
    /// Its text is shown as it comes, so it cannot begin anew once there was some.
    pub streamed: bool,
    pub echo: Option<Echo>,
    /// What it may hold beside text.
    pub contents: Contents,
    /// Thoughts are told to nobody.
    pub hides_thoughts: bool,
    /// The client named the tool: that it is called is no news.
    pub named: bool,
    /// Special tokens whose text is read here.
    pub shown_tokens: Arc<[u32]>,
    /// The prompt whose text it goes on with.
    pub continued: Option<Arc<[u32]>>,
}

impl Choice {
    pub fn new(index: usize, mut events: Answer, tokenizer: Arc<Tokenizer>, plan: Plan) -> Choice {
        events.hold();
        Choice {
            index,
            events: Some(events),
            detokenizer: Detokenizer::behind(
                tokenizer.clone(),
                plan.shown_tokens.clone(),
                plan.continued.as_deref().unwrap_or_default(),
            ),
            tokenizer,
            stops: StopMatcher::new(plan.stops.clone()),
            unstoppable: plan.min_tokens,
            open: VecDeque::new(),
            written: 0,
            counted: 0,
            thought: 0,
            guesses: 0,
            right_guesses: 0,
            reader: (!plan.contents.is_plain()).then(|| Reader::new(&plan.contents)),
            calls: 0,
            untold: Vec::new(),
            began: false,
            stats: None,
            cached_tokens: 0,
            admitted: false,
            echo: plan.echo.clone(),
            plan,
        }
    }

    /// Where its events come from, until it is over.
    pub fn answer(&self) -> Option<&Answer> {
        self.events.as_ref()
    }

    /// An engine has begun with it.
    pub fn is_admitted(&self) -> bool {
        self.admitted || self.began
    }

    pub fn is_over(&self) -> bool {
        self.events.is_none()
    }

    /// Takes the events that are there, at most `limit`.
    pub fn poll(&mut self, cx: &mut Context<'_>, limit: usize, out: &mut VecDeque<Delta>) {
        if self.echo.as_ref().is_some_and(|e| !e.scored) {
            self.echo_prompt(Vec::new(), out);
        }
        for _ in 0..limit {
            let Some(events) = &mut self.events else { return };
            match events.poll_next(cx) {
                Poll::Pending => return,
                Poll::Ready(event) => self.take(event, out),
            }
        }
        // More may be there: come back.
        cx.waker().wake_by_ref();
    }

    fn take(&mut self, event: Option<TokenEvent>, out: &mut VecDeque<Delta>) {
        match event {
            Some(TokenEvent::Admitted { cached_tokens }) => {
                (self.cached_tokens, self.admitted) = (cached_tokens, true);
            }
            Some(TokenEvent::Token { id, logprob, guess }) => self.token(id, logprob, guess, out),
            Some(TokenEvent::Prompt(scores)) => self.echo_prompt(scores, out),
            Some(TokenEvent::Finished { reason, stats }) => {
                self.cached_tokens = stats.cached_tokens;
                self.stats = Some(*stats);
                self.finished(reason, out);
            }
            Some(TokenEvent::Anew) => self.begin_anew(out),
            Some(TokenEvent::Failed(error)) => {
                self.events = None;
                out.push_back(Delta::Failed((*error).into()));
            }
            None => {
                self.events = None;
                let error = ServiceError::Internal("the engine ended without a last word".into());
                out.push_back(Delta::Failed(error));
            }
        }
    }

    /// Another engine answers from the first token on.
    fn begin_anew(&mut self, out: &mut VecDeque<Delta>) {
        let Some(events) = self.events.take() else { return };
        *self = Choice::new(self.index, events, self.tokenizer.clone(), self.plan.clone());
        out.push_back(Delta::Anew { choice: self.index });
    }

    /// Hands text on, told apart.
    fn tell(&mut self, text: String, logprobs: Vec<TextLogprob>, out: &mut VecDeque<Delta>) {
        let Some(reader) = &mut self.reader else { return self.say(Piece::Text(text), logprobs, out) };
        let mut pieces = Vec::new();
        reader.push(&text, &mut pieces);
        let complete = reader.is_complete();
        self.say_all(pieces, logprobs, out);
        if complete {
            self.end(Finish::Stop, out);
        }
    }

    fn say_all(&mut self, pieces: Vec<Piece>, logprobs: Vec<TextLogprob>, out: &mut VecDeque<Delta>) {
        self.untold.extend(logprobs);
        for piece in pieces {
            let logprobs = std::mem::take(&mut self.untold);
            self.say(piece, logprobs, out);
        }
    }

    /// In a stream it is seen from now on.
    fn say(&mut self, piece: Piece, logprobs: Vec<TextLogprob>, out: &mut VecDeque<Delta>) {
        let choice = self.index;
        let delta = match piece {
            Piece::Text(text) => Delta::Text { choice, text, logprobs },
            Piece::Reasoning(_) if self.plan.hides_thoughts => return,
            Piece::Reasoning(text) => Delta::Reasoning { choice, text, logprobs },
            Piece::Call(name) => {
                self.calls += 1;
                let short = self.plan.contents.calls.as_ref().is_some_and(|c| c.dialect.wants_short_ids());
                Delta::Call { choice, index: self.calls - 1, id: call_id(short), name, logprobs }
            }
            Piece::Arguments(text) => {
                Delta::Arguments { choice, index: self.calls.saturating_sub(1), text, logprobs }
            }
        };
        if let Some(events) = self.events.as_mut().filter(|_| self.plan.streamed) {
            events.shown();
        }
        out.push_back(delta);
    }

    fn finished(&mut self, reason: FinishReason, out: &mut VecDeque<Delta>) {
        // The engine has scored no prompt of one token: the echo has not been told yet.
        self.echo_prompt(Vec::new(), out);
        let rest = self.detokenizer.finish();
        self.written += rest.len();
        if let Some(last) = self.open.back_mut() {
            last.end = self.written;
        }
        let reason = match reason {
            _ if self.plan.muted => Finish::Length,
            FinishReason::Stop => Finish::Stop,
            FinishReason::Length => Finish::Length,
        };
        if self.pass(&rest, out) {
            let tail = self.stops.finish();
            self.emit(tail, usize::MAX, out);
            self.end(reason, out);
        }
    }

    fn token(
        &mut self,
        id: u32,
        logprob: Option<Box<TokenLogprob>>,
        guess: Guess,
        out: &mut VecDeque<Delta>,
    ) {
        self.began = true;
        self.guesses += usize::from(guess.computed);
        self.echo_prompt(Vec::new(), out);
        if self.plan.muted {
            return;
        }
        if self.plan.stop_tokens.contains(&id) {
            // It ends the sequence or is there although it should not count as text: it was computed, so
            // it counts, and it is never shown.
            self.counted += 1;
            self.right_guesses += usize::from(guess.right);
            return;
        }
        let piece = self.detokenizer.push(id);
        let begin = self.written;
        self.written += piece.len();
        self.open.push_back(Open { begin, end: self.written, logprob, guessed: guess.right });
        if self.unstoppable > 0 {
            self.unstoppable -= 1;
            let text = self.stops.pass_by(&piece);
            let passed = self.stops.passed();
            self.emit(text, passed, out);
        } else {
            self.pass(&piece, out);
        }
    }

    /// Lets text through the stop strings; false when one ended the choice.
    fn pass(&mut self, piece: &str, out: &mut VecDeque<Delta>) -> bool {
        match self.stops.push(piece) {
            Passed::Text(text) => {
                let passed = self.stops.passed();
                self.emit(text, passed, out);
                true
            }
            Passed::Stopped { text, at } => {
                // Tokens that begin inside the stop string, or after it, were run ahead: not counted.
                self.open.retain(|t| t.begin < at);
                self.emit(text, usize::MAX, out);
                self.end(Finish::Stop, out);
                false
            }
        }
    }

    /// Reports text and the tokens whose text has been let through, `passed` bytes in all. A token that
    /// has no text of its own (a part of a character) waits for what comes after it: a stop string may
    /// still begin there.
    fn emit(&mut self, text: String, passed: usize, out: &mut VecDeque<Delta>) {
        let mut logprobs = Vec::new();
        while self.open.front().is_some_and(|t| t.end <= passed && t.begin < passed) {
            if let Some(token) = self.open.pop_front() {
                self.counted += 1;
                self.right_guesses += usize::from(token.guessed);
                self.thought += usize::from(self.reader.as_ref().is_some_and(Reader::is_thinking));
                logprobs.extend(token.logprob.map(|l| self.text_logprob(&l)));
            }
        }
        if !text.is_empty() || !logprobs.is_empty() {
            self.tell(text, logprobs, out);
        }
    }

    fn end(&mut self, reason: Finish, out: &mut VecDeque<Delta>) {
        if self.is_over() {
            return;
        }
        let mut is_cut = false;
        if let Some(reader) = &mut self.reader {
            let mut pieces = Vec::new();
            reader.finish(&mut pieces);
            is_cut = reader.is_cut();
            self.say_all(pieces, Vec::new(), out);
        }
        // Of tokens behind the last piece, which said nothing.
        let untold = std::mem::take(&mut self.untold);
        if !untold.is_empty() {
            self.say(Piece::Text(String::new()), untold, out);
        }
        self.events = None;
        let reason = match reason {
            // A call that a stop string cut is none to be made.
            Finish::Stop if self.calls > 0 && !self.plan.named && !is_cut => Finish::ToolCalls,
            reason => reason,
        };
        out.push_back(Delta::Finish { choice: self.index, reason });
    }

    fn echo_prompt(&mut self, scores: Vec<TokenLogprob>, out: &mut VecDeque<Delta>) {
        let Some(echo) = self.echo.take() else { return };
        let text = echo.text.to_string();
        let mut logprobs = Vec::new();
        if echo.scored {
            let bytes = self.tokenizer.token_bytes(echo.prompt[0]);
            let token = String::from_utf8_lossy(&bytes).into_owned();
            // Nothing comes before the first token, so nothing predicts it.
            logprobs.push(TextLogprob { token, bytes, logprob: None, top: Vec::new() });
            logprobs.extend(scores.iter().map(|s| self.text_logprob(s)));
        }
        self.tell(text, logprobs, out);
    }

    fn text_logprob(&self, l: &TokenLogprob) -> TextLogprob {
        let text = |id| {
            let bytes = self.tokenizer.token_bytes(id);
            (String::from_utf8_lossy(&bytes).into_owned(), bytes)
        };
        let (token, bytes) = text(l.id);
        let top = l
            .top
            .iter()
            .map(|&(id, logprob)| {
                let (token, bytes) = text(id);
                TopLogprob { token, bytes, logprob }
            })
            .collect();
        TextLogprob { token, bytes, logprob: Some(l.logprob), top }
    }
}
