//! A request's demands on its text as a constraint of the engine: the grammar of `text` behind the engine's trait.

use std::sync::{Arc, OnceLock};

use crate::engine::constraint::{ConstraintError, TokenConstraint};
use crate::service::{ServedModel, ServiceError};
use crate::text::grammar::{Grammar, GrammarError, Grammars, Match, MatchError, Part, Source};
use crate::wire::format::{Format, OutputFormat};

/// The grammars of a model's vocabulary, which are made ready when they are first wanted.
#[derive(Default)]
pub struct LazyGrammars(OnceLock<Result<Grammars, GrammarError>>);

impl ServedModel {
    /// Makes grammars ready; a vocabulary of 128k takes a tenth of a second or so.
    pub fn prepare_grammars(&self) -> &Result<Grammars, GrammarError> {
        self.grammars.0.get_or_init(|| Grammars::new(&self.tokenizer, &self.end_tokens))
    }

    /// The grammar that an answer must match, if the request wants one.
    pub(super) fn grammar(
        &self,
        wanted: Option<&OutputFormat>,
    ) -> Result<Option<Arc<Grammar>>, ServiceError> {
        let Some(OutputFormat { format, param }) = wanted else { return Ok(None) };
        let (part, code) = match format {
            Format::JsonObject => (Part::json_object(), None),
            Format::JsonSchema(schema) => (Part::JsonSchema(schema.clone()), Some("invalid_json_schema")),
            Format::Regex(regex) => (Part::Regex(regex.clone()), None),
            Format::Choice(all) => (Part::Choice(all.clone()), None),
            Format::Grammar(text) => (Part::Lark(text.clone()), None),
        };
        let grammars = self.prepare_grammars().as_ref();
        let compiled = grammars.map_err(Clone::clone).and_then(|g| g.compile(Source::of(part)));
        compiled.map(Some).map_err(|error| ServiceError::Invalid {
            message: format!("{param}: {error}"),
            param: Some(param.clone()),
            code,
        })
    }
}

/// A sequence that must match a grammar.
pub(super) struct Constraint(Match);

impl Constraint {
    pub fn begin(grammar: &Arc<Grammar>) -> Box<dyn TokenConstraint> {
        Box::new(Constraint(Match::begin(grammar)))
    }
}

fn failed(error: MatchError) -> ConstraintError {
    ConstraintError(error.to_string())
}

impl TokenConstraint for Constraint {
    fn fill_mask(&mut self, mask: &mut [u32]) -> Result<bool, ConstraintError> {
        self.0.fill_mask(mask).map(|()| true).map_err(failed)
    }

    fn accept(&mut self, token: u32) -> Result<bool, ConstraintError> {
        self.0.accept(token).map_err(failed)
    }

    fn force(&mut self, most: usize, tokens: &mut Vec<u32>) -> Result<bool, ConstraintError> {
        self.0.force(most, tokens).map_err(failed)
    }

    fn again(&self) -> Box<dyn TokenConstraint> {
        Box::new(Constraint(self.0.again()))
    }
}
