//! A request's demands on its answer as a constraint of the engine: a grammar for its text, a budget for its thoughts.
//!
//! A grammar holds from where the answer begins. A model that thinks may think before; it cannot end before its answer.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::clock::Clock;
use crate::engine::constraint::{ConstraintError, TokenConstraint};
use crate::service::tools::Asked;
use crate::service::{ServedModel, ServiceError};
use crate::text::grammar::{GrammarError, Grammars, Match, MatchError, Part};
use crate::text::reasoning::{Marks, Start};
use crate::text::tokenizer::Tokenizer;
use crate::wire::format::{Format, OutputFormat};

/// Time that a grammar may take on the engine's thread, at once and for each token beside: usual ones take a tenth of
/// a millisecond a token.
const AT_ONCE: Duration = Duration::from_millis(500);
const A_TOKEN: Duration = Duration::from_millis(4);

/// White space between thoughts and an answer that must match: as much as models are used to write.
const MOST_BLANKS: usize = 2;

/// How the answer to a conversation thinks.
#[derive(Debug, Clone, Copy)]
pub struct Thoughts {
    pub marks: Marks,
    pub start: Start,
    /// Tokens at most.
    pub budget: Option<usize>,
    /// Whether the client is told them.
    pub shown: bool,
}

/// The grammars of a model's vocabulary, which are made ready when they are first wanted.
#[derive(Default)]
pub struct LazyGrammars {
    grammars: OnceLock<Result<Grammars, GrammarError>>,
    blanks: OnceLock<Arc<[u32]>>,
    going_on: OnceLock<Arc<[u32]>>,
}

impl ServedModel {
    /// Makes grammars ready; a vocabulary of 128k takes half a second or so.
    pub fn prepare_grammars(&self) -> &Result<Grammars, GrammarError> {
        self.grammars.grammars.get_or_init(|| Grammars::new(&self.tokenizer, &self.end_tokens))
    }

    /// What the engine must keep to, if anything; each choice takes it from the beginning (`again`).
    pub(super) fn constraint(
        &self,
        wanted: Option<&OutputFormat>,
        asked: &Asked,
    ) -> Result<Option<Box<dyn TokenConstraint>>, ServiceError> {
        let grammar = self.demanded(wanted, asked)?;
        // Where there are channels, thoughts are a part of the grammar.
        let thoughts = asked.thoughts.as_ref().filter(|_| !self.contents(asked).channels);
        let thinks =
            thoughts.filter(|t| t.start != Start::Answer && (t.budget.is_some() || grammar.is_some()));
        let grammar = grammar.as_ref().map(|grammar| Answer::new(Match::begin(grammar), self.unit.clock()));
        Ok(match (thinks, grammar) {
            (None, None) => None,
            (None, Some(grammar)) => Some(Box::new(grammar)),
            (Some(thoughts), grammar) => Some(Box::new(Thinking::new(self.rules(thoughts), grammar))),
        })
    }

    fn rules(&self, thoughts: &Thoughts) -> Arc<Rules> {
        let blank = |id: &u32| {
            let bytes = self.tokenizer.token_bytes(*id);
            !bytes.is_empty() && bytes.iter().all(u8::is_ascii_whitespace) && !self.tokenizer.is_special(*id)
        };
        let blanks =
            self.grammars.blanks.get_or_init(|| (0..self.tokenizer.vocab() as u32).filter(blank).collect());
        let going_on = self.grammars.going_on.get_or_init(|| {
            let mut mask = vec![0; self.tokenizer.vocab().div_ceil(32)];
            let all = 0..self.tokenizer.vocab() as u32;
            all.filter(|token| !self.end_tokens.contains(token)).for_each(|token| set(&mut mask, token));
            mask.into()
        });
        Arc::new(Rules {
            thoughts: *thoughts,
            open: self.tokenizer.id(thoughts.marks.open),
            close: self.tokenizer.encode(thoughts.marks.close, false).unwrap_or_default(),
            going_on: going_on.clone(),
            blanks: blanks.clone(),
            tokenizer: self.tokenizer.clone(),
        })
    }
}

/// A demand on a text as a part of a grammar.
pub(super) fn part(wanted: &OutputFormat) -> Part {
    match &wanted.format {
        Format::JsonObject => Part::json_object(),
        Format::JsonSchema(schema) => Part::JsonSchema(schema.clone()),
        Format::Regex(regex) => Part::Regex(regex.clone()),
        Format::Choice(all) => Part::Choice(all.clone()),
        Format::Grammar(text) => Part::Lark(text.clone()),
    }
}

/// A sequence that must match a grammar. While it says what may come the engine's other sequences wait: one that takes
/// too long over it ends.
struct Answer {
    at: Match,
    clock: Clock,
    spent: Duration,
    tokens: u32,
}

impl Answer {
    fn new(at: Match, clock: &Clock) -> Answer {
        Answer { at, clock: clock.clone(), spent: Duration::ZERO, tokens: 0 }
    }

    fn timed<R>(
        &mut self,
        work: impl FnOnce(&mut Match) -> Result<R, MatchError>,
    ) -> Result<R, ConstraintError> {
        let begun = self.clock.now();
        let result = work(&mut self.at).map_err(|error| ConstraintError(error.to_string()))?;
        self.spent += self.clock.now().since(begun);
        match self.spent > AT_ONCE + A_TOKEN * self.tokens {
            true => Err(ConstraintError("it takes too long to say what may come next".into())),
            false => Ok(result),
        }
    }

    fn again(&self) -> Answer {
        Answer::new(self.at.again(), &self.clock)
    }
}

impl TokenConstraint for Answer {
    fn fill_mask(&mut self, mask: &mut [u32]) -> Result<bool, ConstraintError> {
        self.timed(|at| at.fill_mask(mask)).map(|()| true)
    }

    fn accept(&mut self, token: u32) -> Result<bool, ConstraintError> {
        self.tokens += 1;
        self.timed(|at| at.accept(token))
    }

    fn force(&mut self, most: usize, tokens: &mut Vec<u32>) -> Result<bool, ConstraintError> {
        let before = tokens.len();
        let goes_on = self.timed(|at| at.force(most, tokens));
        self.tokens += (tokens.len() - before) as u32;
        goes_on
    }

    fn again(&self) -> Box<dyn TokenConstraint> {
        Box::new(Answer::again(self))
    }
}

/// What stays the same from token to token.
struct Rules {
    thoughts: Thoughts,
    /// The token that opens thoughts, of a vocabulary that has one.
    open: Option<u32>,
    /// The tokens that close them.
    close: Vec<u32>,
    /// The mask of all tokens but those that end an answer.
    going_on: Arc<[u32]>,
    /// Tokens of white space.
    blanks: Arc<[u32]>,
    tokenizer: Arc<Tokenizer>,
}

/// Where an answer is.
#[derive(Debug, Clone, PartialEq)]
enum Phase {
    /// At its beginning, with what may become the mark that opens thoughts.
    Open(Vec<u8>),
    /// In thoughts: how many tokens there were, and what may become the mark that closes them.
    Thinking(usize, Vec<u8>),
    /// So many tokens of the mark that closes them have come, because the budget is used up.
    Closing(usize),
    /// Behind them, and so many blanks.
    Behind(usize),
    Answer,
}

/// A sequence that may think before it answers.
struct Thinking {
    rules: Arc<Rules>,
    phase: Phase,
    grammar: Option<Answer>,
}

impl Thinking {
    fn new(rules: Arc<Rules>, grammar: Option<Answer>) -> Thinking {
        let phase = match rules.thoughts.start {
            Start::Thinking => Phase::Thinking(0, Vec::new()),
            _ => Phase::Open(Vec::new()),
        };
        let mut new = Thinking { rules, phase, grammar };
        new.keep_to_budget();
        new
    }

    fn keep_to_budget(&mut self) {
        if let (Phase::Thinking(count, _), Some(budget)) = (&self.phase, self.rules.thoughts.budget)
            && *count >= budget
            && !self.rules.close.is_empty()
        {
            self.phase = Phase::Closing(0);
        }
    }

    /// Thoughts are over, with `rest` behind their mark.
    fn close(&mut self, rest: &[u8]) -> Result<(), ConstraintError> {
        self.phase = if self.grammar.is_some() { Phase::Behind(0) } else { Phase::Answer };
        match self.grammar.is_none() || rest.iter().all(u8::is_ascii_whitespace) {
            true => Ok(()),
            false => Err(ConstraintError("the answer begins in the token that ends the thoughts".into())),
        }
    }

    fn answer(&mut self, token: u32) -> Result<bool, ConstraintError> {
        self.phase = Phase::Answer;
        self.grammar.as_mut().map_or(Ok(true), |grammar| grammar.accept(token))
    }
}

fn set(mask: &mut [u32], token: u32) {
    if let Some(word) = mask.get_mut(token as usize / 32) {
        *word |= 1 << (token % 32);
    }
}

impl TokenConstraint for Thinking {
    fn fill_mask(&mut self, mask: &mut [u32]) -> Result<bool, ConstraintError> {
        if let Phase::Closing(next) = self.phase {
            set(mask, self.rules.close[next]);
            return Ok(true);
        }
        let Some(grammar) = &mut self.grammar else { return Ok(false) };
        match &self.phase {
            // Anything but an end: the answer is still to come.
            Phase::Thinking(..) => {
                mask.iter_mut().zip(&*self.rules.going_on).for_each(|(to, from)| *to = *from);
                return Ok(true);
            }
            Phase::Open(_) => self.rules.open.into_iter().for_each(|open| set(mask, open)),
            Phase::Behind(blanks) if *blanks < MOST_BLANKS => {
                self.rules.blanks.iter().for_each(|blank| set(mask, *blank));
            }
            _ => {}
        }
        let beside = mask.to_vec();
        grammar.fill_mask(mask)?;
        mask.iter_mut().zip(beside).for_each(|(to, from)| *to |= from);
        Ok(true)
    }

    fn accept(&mut self, token: u32) -> Result<bool, ConstraintError> {
        let marks = self.rules.thoughts.marks;
        let bytes = || self.rules.tokenizer.token_bytes(token);
        match &mut self.phase {
            Phase::Open(_) if self.grammar.is_some() && self.rules.open != Some(token) => {
                return self.answer(token);
            }
            Phase::Open(head) => {
                head.extend(bytes());
                let begun = head.trim_ascii_start();
                if let Some(rest) = begun.strip_prefix(marks.open.as_bytes()) {
                    self.phase = Phase::Thinking(0, rest.to_vec());
                } else if !marks.open.as_bytes().starts_with(begun) {
                    self.phase = Phase::Answer;
                }
            }
            Phase::Thinking(count, tail) => {
                *count += 1;
                tail.extend(bytes());
                let close = marks.close.as_bytes();
                if let Some(at) = tail.windows(close.len()).position(|window| window == close) {
                    let rest = tail[at + close.len()..].to_vec();
                    self.close(&rest)?;
                } else {
                    let useless = tail.len().saturating_sub(close.len() - 1);
                    tail.drain(..useless);
                }
            }
            Phase::Closing(next) => {
                *next += 1;
                if *next == self.rules.close.len() {
                    self.close(&[])?;
                }
            }
            Phase::Behind(blanks) if *blanks < MOST_BLANKS && self.rules.blanks.contains(&token) => {
                *blanks += 1
            }
            Phase::Behind(_) | Phase::Answer => return self.answer(token),
        }
        self.keep_to_budget();
        Ok(true)
    }

    fn force(&mut self, most: usize, tokens: &mut Vec<u32>) -> Result<bool, ConstraintError> {
        if let Phase::Closing(next) = self.phase {
            let end = self.rules.close.len().min(next + most);
            tokens.extend_from_slice(&self.rules.close[next..end]);
            self.phase = Phase::Closing(end);
            return if end == self.rules.close.len() { self.close(&[]).map(|()| true) } else { Ok(true) };
        }
        match (&self.phase, &mut self.grammar) {
            (Phase::Answer, Some(grammar)) => grammar.force(most, tokens),
            _ => Ok(true),
        }
    }

    fn again(&self) -> Box<dyn TokenConstraint> {
        Box::new(Thinking::new(self.rules.clone(), self.grammar.as_ref().map(Answer::again)))
    }
}
