//! Greedy answers of the model as it will be shipped, and the scores made from them.
//!
//! The weights are rounded to bf16 and computed with in f32. There is no KV cache: instead the
//! expected answer is tried as a draft, and of it the longest prefix that the model itself would have
//! written is kept. That gives exactly the greedy answer, in one pass where the model knows it.

use std::collections::HashMap;

use anyhow::{Result, ensure};
use candle_core::{D, DType, Device, Tensor};
use candle_nn::VarBuilder;
use tokenizers::Tokenizer;

use crate::corpus::{Corpus, Question};
use crate::model::{TrainConfig, TrainLlama};
use crate::tokenizer::{END_ID, decode, encode, prompt};

const BATCH: usize = 16;
/// No answer of the corpus is this long: whoever gets here is going round in circles.
const MAX_NEW: usize = 96;

/// The model with weights rounded as in the checkpoint.
pub fn rounded(config: &TrainConfig, weights: &HashMap<String, Tensor>) -> Result<TrainLlama> {
    let mut rounded = HashMap::new();
    for (name, tensor) in weights {
        // Detached: an evaluation has no use for a graph of the whole generation.
        rounded.insert(name.clone(), tensor.detach().to_dtype(DType::BF16)?.to_dtype(DType::F32)?);
    }
    Ok(TrainLlama::new(config, VarBuilder::from_tensors(rounded, DType::F32, &Device::Cpu))?)
}

/// The greedy continuation at each position of each row, rows padded on the right.
fn predictions(model: &TrainLlama, rows: &[Vec<u32>]) -> Result<Vec<Vec<u32>>> {
    let len = rows.iter().map(Vec::len).max().unwrap_or(0);
    // What pads is never seen: attention looks back only, and these rows end before the padding.
    let padded: Vec<u32> =
        rows.iter().flat_map(|row| row.iter().copied().chain(std::iter::repeat(0)).take(len)).collect();
    let ids = Tensor::from_vec(padded, (rows.len(), len), &Device::Cpu)?;
    Ok(model.forward(&ids)?.argmax(D::Minus1)?.to_vec2::<u32>()?)
}

/// One answer being written.
struct Row {
    ids: Vec<u32>,
    start: usize,
    done: bool,
}

impl Row {
    fn push(&mut self, id: u32) {
        self.done = id == END_ID || self.ids.len() - self.start >= MAX_NEW;
        if id != END_ID {
            self.ids.push(id);
        }
    }
}

/// Greedy answers to `questions`; `drafts` are guesses, and make it faster where they are right.
pub fn answers(
    model: &TrainLlama,
    tokenizer: &Tokenizer,
    questions: &[&str],
    drafts: &[&str],
) -> Result<Vec<String>> {
    ensure!(questions.len() == drafts.len(), "a draft for each question");
    let mut out = Vec::new();
    for (questions, drafts) in questions.chunks(BATCH).zip(drafts.chunks(BATCH)) {
        let mut rows = Vec::new();
        let mut drafted = Vec::new();
        for (question, draft) in questions.iter().zip(drafts) {
            let ids = encode(tokenizer, &prompt(question))?;
            let draft = encode(tokenizer, draft)?;
            drafted.push([ids.as_slice(), draft.as_slice()].concat());
            rows.push(Row { start: ids.len(), ids, done: false });
        }
        for (row, (draft, next)) in rows.iter_mut().zip(drafted.iter().zip(predictions(model, &drafted)?)) {
            for at in row.start - 1..draft.len() {
                row.push(next[at]);
                if row.done || draft.get(at + 1) != Some(&next[at]) {
                    break;
                }
            }
        }
        continue_rows(model, &mut rows)?;
        for row in &rows {
            out.push(decode(tokenizer, &row.ids[row.start..])?);
        }
    }
    Ok(out)
}

fn continue_rows(model: &TrainLlama, rows: &mut [Row]) -> Result<()> {
    loop {
        let mut open: Vec<&mut Row> = rows.iter_mut().filter(|row| !row.done).collect();
        if open.is_empty() {
            return Ok(());
        }
        let ids: Vec<Vec<u32>> = open.iter().map(|row| row.ids.clone()).collect();
        for (row, next) in open.iter_mut().zip(predictions(model, &ids)?) {
            let last = row.ids.len() - 1;
            row.push(next[last]);
        }
    }
}

pub struct Scores {
    /// Share of held-out questions whose answer has every key word.
    pub held_out: f64,
    /// The same answers against the key words of the next question: what a score by chance looks like.
    pub control: f64,
    pub answers: Vec<String>,
    /// Indices of the questions that failed.
    pub failed: Vec<usize>,
}

pub fn has_keywords(answer: &str, question: &Question) -> bool {
    let answer = answer.to_lowercase();
    question.keywords.iter().all(|word| answer.contains(&word.to_lowercase()))
}

pub fn held_out(model: &TrainLlama, tokenizer: &Tokenizer, corpus: &Corpus) -> Result<Scores> {
    let all = &corpus.questions;
    let asked: Vec<&str> = all.iter().map(|q| q.held_out.as_str()).collect();
    let drafts: Vec<&str> = all.iter().map(|q| q.answer.as_str()).collect();
    let answers = answers(model, tokenizer, &asked, &drafts)?;
    let failed: Vec<usize> = (0..all.len()).filter(|&i| !has_keywords(&answers[i], &all[i])).collect();
    let crossed = (0..all.len()).filter(|&i| has_keywords(&answers[i], &all[(i + 1) % all.len()])).count();
    let share = |n: usize| n as f64 / all.len() as f64;
    Ok(Scores { held_out: share(all.len() - failed.len()), control: share(crossed), answers, failed })
}
