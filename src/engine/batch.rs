//! From a plan to the arrays a step reads. `StepInput` is built from the plan and from nothing else.

use crate::engine::scheduler::{Entry, StepPlan};
use crate::model::input::{AttentionSpan, BLOCK_SIZE, StepInput};

/// Fills `input` with the plan's rows. Logit rows follow in the order of the plan.
pub fn build<P>(plan: &StepPlan, running: &[Entry<P>], input: &mut StepInput) {
    input.clear();
    for row in &plan.rows {
        let s = &running[row.sequence].sequence;
        let known = row.tokens.end.min(s.tokens.len());
        let tokens = &s.tokens[row.tokens.start..known];
        match row.tokens.end - known {
            0 => push_span(input, tokens, row.tokens.start, s.table.blocks(), row.logits.len()),
            guesses => {
                let tokens = [tokens, &s.guesses[..guesses]];
                push_parts(input, &tokens, row.tokens.start, s.table.blocks(), row.logits.len());
            }
        }
        if let Some(index) = s.pending.filter(|_| row.tokens.end == s.tokens.len()) {
            input.pending.push((input.rows() as u32 - 1, index));
        }
    }
}

/// Rows of one sequence: its tokens from position `first` on, the last `logits` of them with logits, in these blocks.
pub fn push_span(input: &mut StepInput, tokens: &[u32], first: usize, blocks: &[u32], logits: usize) {
    push_parts(input, &[tokens], first, blocks, logits);
}

fn push_parts(input: &mut StepInput, parts: &[&[u32]], first: usize, blocks: &[u32], logits: usize) {
    let first_row = input.rows();
    parts.iter().for_each(|tokens| input.tokens.extend_from_slice(tokens));
    let rows = input.tokens.len() - first_row;
    input.spans.push(AttentionSpan {
        first_row: first_row as u32,
        rows: rows as u32,
        first_position: first as u32,
        block_table: input.block_tables.len() as u32,
    });
    // Only the blocks this step reads or writes.
    input.block_tables.extend_from_slice(&blocks[..(first + rows).div_ceil(BLOCK_SIZE)]);
    for position in first..first + rows {
        input.positions.push(position as u32);
        input.slots.push(blocks[position / BLOCK_SIZE] * BLOCK_SIZE as u32 + (position % BLOCK_SIZE) as u32);
    }
    let end = (first_row + rows) as u32;
    input.logit_rows.extend(end - logits as u32..end);
}
