//! The seam for grammars: what may come next, decided outside the engine.
//!
//! `service` wraps a grammar of `text` in this trait; the engine asks it between `launch` and `sample`, while the
//! device works. The engine knows nothing of grammars. A constraint that fails ends its request: nothing is ever
//! sampled without it.

/// Why a constraint cannot go on (its grammar has become too complex, say).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConstraintError(pub String);

/// Restricts the next tokens of one sequence.
pub trait TokenConstraint: Send {
    /// Sets the bit of every token that may come next. `mask` has one bit a vocabulary entry, least significant bit
    /// first; all are clear when this is called. False: every token may come, and the mask counts for nothing.
    ///
    /// # Errors
    /// When it cannot tell.
    fn fill_mask(&mut self, mask: &mut [u32]) -> Result<bool, ConstraintError>;

    /// Told of the token that was sampled. False ends the sequence after it.
    ///
    /// # Errors
    /// When it does not allow this token, or cannot go on.
    fn accept(&mut self, token: u32) -> Result<bool, ConstraintError>;

    /// Appends the tokens that alone may come next, `most` of them at most, and takes them as accepted; appends
    /// nothing where there is a choice. False ends the sequence after them.
    ///
    /// # Errors
    /// When it cannot go on.
    fn force(&mut self, most: usize, tokens: &mut Vec<u32>) -> Result<bool, ConstraintError> {
        let _ = (most, tokens);
        Ok(true)
    }

    /// The same, from its beginning: for a request that is answered anew.
    fn again(&self) -> Box<dyn TokenConstraint>;
}
