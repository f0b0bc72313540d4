//! What one step reads, as flat arrays: built by the engine from its plan and from nothing else.
//!
//! A row is one token of one sequence. Rows of a sequence are consecutive and in order. The arrays keep
//! their memory from step to step.

use candle_core::Result;

use crate::ops::gather::PENDING;
use crate::ops::launch::{ArrayKind, Launcher, Mirrored};
use crate::ops::paged_attention::Tile;
use crate::ops::paged_attention::kernels::PADDING;
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
    /// The spans cut for kernels; made at launch where there are any.
    pub tiles: Vec<Tile>,
    /// How many of these are for the kernel of decode.
    pub split_tiles: usize,
    /// Rows that need logits, ascending.
    pub logit_rows: Vec<u32>,
    /// Rows whose token the host does not know yet: (row, index of the token among the previous
    /// step's samples). They read the device's own copy.
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
            tiles: Vec::new(),
            split_tiles: 0,
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
        self.tiles.clear();
        self.split_tiles = 0;
        self.logit_rows.clear();
        self.pending.clear();
    }

    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// True when each row is a sequence's next token and wants logits.
    pub fn is_decode(&self) -> bool {
        self.spans.len() == self.rows()
            && self.logit_rows.len() == self.rows()
            && self.spans.iter().all(|s| s.rows == 1)
    }

    /// Grows a decode step to `rows` by rows that belong to no sequence; their keys and values go to `slot`.
    pub fn pad(&mut self, rows: usize, slot: u32) {
        for row in self.rows()..rows {
            self.tokens.push(0);
            self.positions.push(0);
            self.slots.push(slot);
            let first_row = row as u32;
            self.spans.push(AttentionSpan { first_row, rows: 0, first_position: 0, block_table: 0 });
            self.logit_rows.push(first_row);
        }
    }

    /// Fills a decode step's tiles up to so many.
    pub fn pad_tiles(&mut self, tiles: usize) {
        self.tiles.resize(tiles, PADDING);
        self.split_tiles = tiles;
    }

    /// Says in the tokens themselves which rows are pending.
    pub fn mark_pending(&mut self) {
        for &(row, index) in &self.pending {
            self.tokens[row as usize] = PENDING | index;
        }
    }
}

/// The arrays of a step, and where each lies for kernels.
#[derive(Clone, Copy)]
pub struct StepView<'a> {
    pub tokens: Mirrored<'a, u32>,
    pub positions: Mirrored<'a, u32>,
    pub slots: Mirrored<'a, u32>,
    pub spans: Mirrored<'a, AttentionSpan>,
    pub block_tables: Mirrored<'a, u32>,
    pub tiles: Mirrored<'a, Tile>,
    pub split_tiles: usize,
    pub logit_rows: Mirrored<'a, u32>,
    /// Where pending rows find their tokens, for kernels.
    pub sampled: u64,
}

impl StepView<'_> {
    /// Where kernels find the arrays: a captured step reads these places and no others.
    pub fn addresses(&self) -> [u64; 8] {
        [
            self.tokens.address,
            self.positions.address,
            self.slots.address,
            self.spans.address,
            self.block_tables.address,
            self.tiles.address,
            self.logit_rows.address,
            self.sampled,
        ]
    }
}

impl StepInput {
    /// Words of the arrays that a launcher is given.
    pub fn words(&self) -> usize {
        let rows = 3 * self.rows() + self.logit_rows.len();
        rows + 4 * (self.spans.len() + self.tiles.len()) + self.block_tables.len()
    }

    /// For the host, or mirrored to a launcher's memory of that kind.
    ///
    /// # Errors
    /// A device without room, or that is gone.
    pub fn view(&self, launcher: Option<(&dyn Launcher, ArrayKind)>) -> Result<StepView<'_>> {
        let mut view = StepView {
            tokens: self.tokens.as_slice().into(),
            positions: self.positions.as_slice().into(),
            slots: self.slots.as_slice().into(),
            spans: self.spans.as_slice().into(),
            block_tables: self.block_tables.as_slice().into(),
            tiles: self.tiles.as_slice().into(),
            split_tiles: self.split_tiles,
            logit_rows: self.logit_rows.as_slice().into(),
            sampled: 0,
        };
        if let Some((launcher, kind)) = launcher {
            let arrays = [
                &self.tokens,
                &self.positions,
                &self.slots,
                AttentionSpan::words(&self.spans),
                self.tiles.as_flattened(),
                &self.logit_rows,
                // Last: its length changes with each step of the same rows.
                &self.block_tables,
            ];
            let mut to = [0; 7];
            launcher.mirror(kind, &arrays, &mut to)?;
            (view.tokens.address, view.positions.address, view.slots.address) = (to[0], to[1], to[2]);
            (view.spans.address, view.tiles.address) = (to[3], to[4]);
            (view.logit_rows.address, view.block_tables.address) = (to[5], to[6]);
        }
        Ok(view)
    }
}
