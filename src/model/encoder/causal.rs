//! Decoders that make vectors of texts, as Qwen3-Embedding does: the hidden state of a text's last token.
//!
//! The network is this house's own decoder; of its head nothing is left but the identity, so what comes out as logits
//! is the last hidden state after its norm. Texts stand beside each other in a step without padding, each in blocks of
//! its own, which the next step takes over.

use std::sync::Arc;

use candle_core::Result;

use super::EncoderText;
use crate::model::decoder::Decoder;
use crate::model::input::{AttentionSpan, BLOCK_SIZE, StepInput};
use crate::model::pooling::scaled;
use crate::model::runner::Runner;
use crate::model::workspace::Capacity;
use crate::ops::exec::Exec;

/// Texts of a step at most: each has a row of the vocabulary's width in the workspace.
const TEXTS: usize = 16;

/// One device's means to run such a decoder.
pub struct CausalEncoder {
    runner: Runner,
    input: StepInput,
    normalize: bool,
}

impl CausalEncoder {
    /// `rows`: tokens of a step at most; a longer text takes several. `longest`: tokens of a text at most.
    ///
    /// # Errors
    /// A device without room.
    pub fn new(
        decoder: Arc<Decoder>,
        on: &Exec,
        rows: usize,
        longest: usize,
        normalize: bool,
    ) -> Result<CausalEncoder> {
        let blocks = (rows.div_ceil(BLOCK_SIZE) + TEXTS).max(longest.div_ceil(BLOCK_SIZE));
        let capacity = Capacity { rows, logit_rows: TEXTS };
        let runner = Runner::new(decoder, on.clone(), capacity, blocks)?;
        Ok(CausalEncoder { runner, input: StepInput::with_capacity(rows, TEXTS, blocks, TEXTS), normalize })
    }

    /// The vectors of some texts, none longer than was said.
    ///
    /// # Errors
    /// What the runner answers.
    pub fn run(&mut self, texts: &[&EncoderText]) -> Result<Vec<Vec<f32>>> {
        let (rows, mut vectors) = (self.runner.capacity().rows, Vec::with_capacity(texts.len()));
        let mut rest = texts;
        while let Some(first) = rest.first() {
            // As many whole texts as a step holds; one that is longer by itself, chunk by chunk.
            let mut tokens = 0;
            let fit = rest.iter().take(TEXTS).take_while(|text| {
                tokens += text.ids.len();
                tokens <= rows
            });
            let count = fit.count();
            if count == 0 {
                vectors.push(self.long(first)?);
                rest = &rest[1..];
                continue;
            }
            let (now, later) = rest.split_at(count);
            self.input.clear();
            now.iter().for_each(|text| self.add(text, 0, text.ids.len()));
            vectors.extend(self.step()?);
            rest = later;
        }
        Ok(vectors)
    }

    /// A text that takes several steps.
    fn long(&mut self, text: &EncoderText) -> Result<Vec<f32>> {
        let rows = self.runner.capacity().rows;
        let mut vector = Vec::new();
        for from in (0..text.ids.len()).step_by(rows) {
            self.input.clear();
            self.add(text, from, (from + rows).min(text.ids.len()));
            vector = self.step()?.pop().unwrap_or_default();
        }
        Ok(vector)
    }

    /// Adds the tokens of a text from one place up to another, in the blocks that are next.
    fn add(&mut self, text: &EncoderText, from: usize, to: usize) {
        let input = &mut self.input;
        let table = input.block_tables.len() as u32;
        let blocks = to.div_ceil(BLOCK_SIZE) as u32;
        input.block_tables.extend(table..table + blocks);
        let (first_row, first_position) = (input.rows() as u32, from as u32);
        let rows = (to - from) as u32;
        input.spans.push(AttentionSpan { first_row, rows, first_position, block_table: table });
        for (position, id) in text.ids.iter().enumerate().take(to).skip(from) {
            input.tokens.push(*id);
            input.positions.push(position as u32);
            input.slots.push(table * BLOCK_SIZE as u32 + position as u32);
        }
        input.logit_rows.push(input.rows() as u32 - 1);
    }

    /// The vector of each text of the step.
    fn step(&mut self) -> Result<Vec<Vec<f32>>> {
        self.runner.launch(&mut self.input)?;
        let (width, hidden) = {
            let spec = self.runner.decoder().spec();
            (spec.vocab, spec.hidden)
        };
        let normalize = self.normalize;
        self.runner.logits(|logits| {
            let vector = |row: &[f32]| match normalize {
                true => scaled(&row[..hidden]),
                false => row[..hidden].to_vec(),
            };
            logits.chunks_exact(width).map(vector).collect()
        })
    }
}
