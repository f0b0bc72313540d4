//! What one step reads, as flat arrays: built by the engine from its plan and from nothing else.
//!
//! A row is one token of one sequence. Rows of a sequence are consecutive and in order. The arrays keep
//! their memory from step to step.

pub use crate::ops::paged_attention::{AttentionSpan, BLOCK_SIZE};

/// The rows of one step.
#[derive(Debug, Default, Clone)]
pub struct StepInput {
    /// Token of each row; what stands at a pending row is replaced at launch.
    pub tokens: Vec<u32>,
    /// Position of each row in its sequence.
    pub positions: Vec<u32>,
    /// Where each row's key and value go: block × BLOCK_SIZE + offset.
    pub slots: Vec<u32>,
    /// One per sequence.
    pub spans: Vec<AttentionSpan>,
    /// Block ids of all sequences, one table after another; spans hold their offsets.
    pub block_tables: Vec<u32>,
    /// Rows that need logits, ascending.
    pub logit_rows: Vec<u32>,
    /// Rows whose token is not known on the host yet: (row, index of the token among the previous
    /// step's samples). They are filled in from the device's own copy.
    pub pending: Vec<(u32, u32)>,
}

impl StepInput {
    /// Arrays large enough that no step has to grow them.
    pub fn with_capacity(rows: usize, sequences: usize, blocks: usize, logit_rows: usize) -> StepInput {
        StepInput {
            tokens: Vec::with_capacity(rows),
            positions: Vec::with_capacity(rows),
            slots: Vec::with_capacity(rows),
            spans: Vec::with_capacity(sequences),
            block_tables: Vec::with_capacity(blocks),
            logit_rows: Vec::with_capacity(logit_rows),
            pending: Vec::with_capacity(sequences),
        }
    }

    pub fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.slots.clear();
        self.spans.clear();
        self.block_tables.clear();
        self.logit_rows.clear();
        self.pending.clear();
    }

    pub fn rows(&self) -> usize {
        self.tokens.len()
    }
}
