//! From a plan to the arrays a step reads. `StepInput` is built from the plan and from nothing else.

use crate::engine::scheduler::{Entry, StepPlan};
use crate::model::input::{AttentionSpan, StepInput};

/// Fills `input` with the plan's rows. Logit rows follow in the order of the plan.
pub fn build<P>(plan: &StepPlan, running: &[Entry<P>], block_size: usize, input: &mut StepInput) {
    input.clear();
    for row in &plan.rows {
        let s = &running[row.sequence].sequence;
        let first_row = input.rows();
        input.spans.push(AttentionSpan {
            first_row: first_row as u32,
            rows: row.tokens.len() as u32,
            first_position: row.tokens.start as u32,
            block_table: input.block_tables.len() as u32,
        });
        let blocks = s.table.blocks();
        // Only the blocks this step reads or writes.
        input.block_tables.extend_from_slice(&blocks[..row.tokens.end.div_ceil(block_size)]);
        input.tokens.extend_from_slice(&s.tokens[row.tokens.clone()]);
        if let Some(index) = s.pending.filter(|_| row.tokens.end == s.tokens.len()) {
            input.pending.push((input.rows() as u32 - 1, index));
        }
        for position in row.tokens.clone() {
            input.positions.push(position as u32);
            input
                .slots
                .push(blocks[position / block_size] * block_size as u32 + (position % block_size) as u32);
        }
        let skipped = (row.logits.start - row.tokens.start) as u32;
        let rows = first_row as u32 + skipped..(first_row + row.tokens.len()) as u32;
        input.logit_rows.extend(rows.take(row.logits.len()));
    }
}
