//! How further tokens are guessed.

use super::{ConfigError, Resolved};

/// Where guesses come from, and how many a step computes at most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Speculation {
    /// The draft model; without one, what was said before.
    pub draft: Option<String>,
    pub tokens: usize,
}

/// Of `num-speculative-tokens`.
const MOST: usize = 64;

impl Resolved {
    pub(super) fn speculation(&self) -> Result<Option<Speculation>, ConfigError> {
        let draft = self.text("draft-model");
        let looks_up = self.get("speculative", |v| match (v, &draft) {
            ("none", _) => Ok(false),
            ("prompt-lookup", None) => Ok(true),
            ("prompt-lookup", Some(_)) => Err("and --draft-model are two ways to guess: take one".into()),
            _ => Err("is neither none nor prompt-lookup".to_string()),
        })?;
        let tokens = self.get("num-speculative-tokens", |v| match v.parse() {
            Ok(tokens) if (1..=MOST).contains(&tokens) => Ok(tokens),
            _ => Err(format!("is not a whole number from 1 to {MOST}")),
        })?;
        Ok((looks_up || draft.is_some()).then_some(Speculation { draft, tokens }))
    }
}
