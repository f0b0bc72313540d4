//! The seam for grammars: what may be sampled next, decided outside the engine.
//!
//! `service` wraps a grammar of `text` in this trait; the engine calls it between `launch` and
//! `sample`. The engine knows nothing of grammars.

/// Restricts the next token of one sequence.
pub trait TokenConstraint: Send {
    /// Clears the bit of every token that may not come next. `mask` has one bit a vocabulary entry,
    /// least significant bit first; all bits are set when this is called.
    fn fill_mask(&mut self, mask: &mut [u32]);
    /// Told of the token that was sampled. False ends the sequence after it.
    fn accept(&mut self, token: u32) -> bool;
}
