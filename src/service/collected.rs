//! Deltas put together: what each choice of a generation came to.

use crate::service::{Delta, Finish, ServiceError, TextLogprob};

/// A choice, so far or whole.
#[derive(Debug, Clone, Default)]
pub struct CollectedChoice {
    pub text: String,
    pub reasoning: String,
    pub calls: Vec<CollectedCall>,
    pub logprobs: Vec<TextLogprob>,
    pub finish: Option<Finish>,
}

/// A call of a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollectedCall {
    pub id: String,
    pub name: String,
    pub arguments: String,
}

impl CollectedChoice {
    pub fn several(choices: usize) -> Vec<CollectedChoice> {
        vec![CollectedChoice::default(); choices]
    }

    /// Adds a delta to the choice that it is of.
    ///
    /// # Errors
    /// The failure that it tells of.
    pub fn take(choices: &mut [CollectedChoice], delta: Delta) -> Result<(), ServiceError> {
        let Some(choice) = delta.choice().and_then(|index| choices.get_mut(index)) else {
            return match delta {
                Delta::Failed(error) => Err(error),
                _ => Ok(()),
            };
        };
        match delta {
            Delta::Text { text, logprobs, .. } => {
                choice.text += &text;
                choice.logprobs.extend(logprobs);
            }
            Delta::Reasoning { text, logprobs, .. } => {
                choice.reasoning += &text;
                choice.logprobs.extend(logprobs);
            }
            Delta::Call { id, name, logprobs, .. } => {
                choice.calls.push(CollectedCall { id, name, arguments: String::new() });
                choice.logprobs.extend(logprobs);
            }
            Delta::Arguments { index, text, logprobs, .. } => {
                if let Some(call) = choice.calls.get_mut(index) {
                    call.arguments += &text;
                }
                choice.logprobs.extend(logprobs);
            }
            Delta::Finish { reason, .. } => choice.finish = Some(reason),
            Delta::Anew { .. } => *choice = CollectedChoice::default(),
            Delta::Failed(error) => return Err(error),
        }
        Ok(())
    }
}
