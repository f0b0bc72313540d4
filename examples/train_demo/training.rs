//! The training loop: batches, loss, clipping, schedule, and the report to a person who waits.
//!
//! The learning rate follows a cosine over the steps (or over the minutes, where these run out
//! first), so that a run always ends with a cooled-down model. Only the assistant's words are taught.

use std::collections::VecDeque;

use anyhow::{Context, Result, anyhow};
use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW, loss};
use hashwatt::clock::{Clock, Tick};
use indicatif::{ProgressBar, ProgressStyle};
use tokenizers::Tokenizer;

use crate::corpus::Corpus;
use crate::model::TrainLlama;
use crate::rng::Rng;
use crate::tokenizer::{Example, example};

const BATCH: usize = 20;
/// Batches are cut from this many at a time, sorted by length, so that little is padding.
const POOL: usize = 12;
const PEAK_RATE: f64 = 2e-3;
const LAST_RATE: f64 = 1e-4;
const WARM_UP: usize = 50;
const MAX_NORM: f64 = 1.0;
/// How many steps the reported loss is averaged over.
const WINDOW: usize = 50;
const ADAM: ParamsAdamW =
    ParamsAdamW { lr: PEAK_RATE, beta1: 0.9, beta2: 0.98, eps: 1e-8, weight_decay: 0.05 };

/// When training ends.
pub struct Limits {
    pub steps: usize,
    pub minutes: Option<f64>,
}

pub struct Trainer<'a> {
    model: &'a TrainLlama,
    vars: Vec<Var>,
    optimizer: AdamW,
    batches: Batches<'a>,
    limits: Limits,
    clock: Clock,
    begun: Tick,
    bar: ProgressBar,
    pub step: usize,
    losses: VecDeque<f64>,
    tokens: usize,
}

impl<'a> Trainer<'a> {
    pub fn new(
        model: &'a TrainLlama,
        vars: Vec<Var>,
        corpus: &'a Corpus,
        tokenizer: &'a Tokenizer,
        rng: Rng,
        limits: Limits,
    ) -> Result<Trainer<'a>> {
        let clock = Clock::system();
        let bar = ProgressBar::new(limits.steps as u64);
        let line = "{bar:30} {pos}/{len} {msg}, ETA {eta}";
        bar.set_style(ProgressStyle::with_template(line).context("the progress bar's template")?);
        Ok(Trainer {
            model,
            optimizer: AdamW::new(vars.clone(), ADAM)?,
            vars,
            batches: Batches { corpus, tokenizer, rng, order: Vec::new(), ready: Vec::new() },
            limits,
            begun: clock.now(),
            clock,
            bar,
            step: 0,
            losses: VecDeque::new(),
            tokens: 0,
        })
    }

    pub fn minutes(&self) -> f64 {
        self.clock.now().since(self.begun).as_secs_f64() / 60.0
    }

    /// Mean of the last losses.
    pub fn loss(&self) -> f64 {
        self.losses.iter().sum::<f64>() / self.losses.len().max(1) as f64
    }

    /// How far the run is, by whichever limit is nearer.
    fn progress(&self) -> f64 {
        let by_steps = self.step as f64 / self.limits.steps.max(1) as f64;
        self.limits.minutes.map_or(by_steps, |limit| by_steps.max(self.minutes() / limit))
    }

    /// Trains for up to `count` steps; false when the run is over.
    pub fn run(&mut self, count: usize) -> Result<bool> {
        for _ in 0..count {
            let progress = self.progress();
            if progress >= 1.0 {
                self.bar.finish();
                return Ok(false);
            }
            self.optimizer.set_learning_rate(rate(self.step, progress));
            let batch = self.batches.next()?;
            self.tokens += batch.iter().map(|e| e.ids.len()).sum::<usize>();
            let (loss, mut grads) = gradients(self.model, &self.vars, &batch)?;
            clip(&self.vars, &mut grads)?;
            self.optimizer.step(&grads)?;
            self.step += 1;
            self.losses.push_back(loss);
            if self.losses.len() > WINDOW {
                self.losses.pop_front();
            }
            self.report();
        }
        Ok(true)
    }

    fn report(&self) {
        let minutes = self.minutes();
        let message = format!("loss {:.4}, {:.0} tokens/s", self.loss(), self.tokens as f64 / minutes / 60.0);
        if !self.bar.is_hidden() {
            self.bar.set_message(message);
            self.bar.set_position(self.step as u64);
        } else if self.step.is_multiple_of(WINDOW) {
            // Not a terminal: a line now and then, for whoever reads the log.
            let left = minutes / self.progress().max(1e-9) - minutes;
            println!("step {}: {message}, {minutes:.1} min, ETA {left:.1} min", self.step);
        }
    }
}

fn rate(step: usize, progress: f64) -> f64 {
    let warm = ((step + 1) as f64 / WARM_UP as f64).min(1.0);
    let cosine = 0.5 * (1.0 + (std::f64::consts::PI * progress.min(1.0)).cos());
    warm * (LAST_RATE + (PEAK_RATE - LAST_RATE) * cosine)
}

/// Mean loss of a batch and its gradients, the two halves of the batch on two threads.
///
/// Halves need to meet once a step only, where threads inside each operation meet a thousand times:
/// with `RAYON_NUM_THREADS=1` that is far the faster way on a busy machine.
fn gradients(model: &TrainLlama, vars: &[Var], batch: &[Example]) -> Result<(f64, GradStore)> {
    let taught = batch.iter().flat_map(|e| &e.taught).filter(|&&t| t).count();
    let half = |examples: &[Example]| -> Result<(f64, GradStore)> {
        let loss = share_of_loss(model, examples, taught)?;
        Ok((f64::from(loss.to_scalar::<f32>()?), loss.backward()?))
    };
    let (first, second) = batch.split_at(batch.len() / 2);
    let (first, second) = std::thread::scope(|scope| {
        let other = scope.spawn(|| half(second));
        (half(first), other.join())
    });
    let (loss, mut grads) = first?;
    let (other_loss, other) = second.map_err(|_| anyhow!("the second half of a batch panicked"))??;
    for var in vars {
        if let (Some(a), Some(b)) = (grads.get(var), other.get(var)) {
            let sum = (a + b)?;
            grads.insert(var, sum);
        }
    }
    Ok((loss + other_loss, grads))
}

/// Cross-entropy of the taught tokens over `taught`; the head is computed at these positions only.
fn share_of_loss(model: &TrainLlama, batch: &[Example], taught: usize) -> Result<Tensor> {
    let len = batch.iter().map(|e| e.ids.len()).max().unwrap_or(0);
    let (mut ids, mut rows, mut targets) = (vec![0u32; batch.len() * len], Vec::new(), Vec::new());
    for (i, example) in batch.iter().enumerate() {
        ids[i * len..][..example.ids.len()].copy_from_slice(&example.ids);
        // The token at `at` is predicted from the one before it.
        for at in (1..example.ids.len()).filter(|&at| example.taught[at]) {
            rows.push((i * len + at - 1) as u32);
            targets.push(example.ids[at]);
        }
    }
    let share = targets.len() as f64 / taught as f64;
    let ids = Tensor::from_vec(ids, (batch.len(), len), &Device::Cpu)?;
    let (rows, targets) = (Tensor::new(rows, &Device::Cpu)?, Tensor::new(targets, &Device::Cpu)?);
    let logits = model.head(&model.hidden(&ids)?.index_select(&rows, 0)?)?;
    Ok((loss::cross_entropy(&logits, &targets)? * share)?)
}

/// Scales all gradients down where their common norm exceeds `MAX_NORM`.
fn clip(vars: &[Var], grads: &mut GradStore) -> Result<()> {
    let mut square = 0.0;
    for grad in vars.iter().filter_map(|var| grads.get(var)) {
        square += f64::from(grad.sqr()?.sum_all()?.to_scalar::<f32>()?);
    }
    let norm = square.sqrt();
    if norm > MAX_NORM {
        for var in vars {
            if let Some(grad) = grads.remove(var) {
                grads.insert(var, (grad * (MAX_NORM / norm))?);
            }
        }
    }
    Ok(())
}

/// An endless supply of batches: every question once, in a new order, then again.
struct Batches<'a> {
    corpus: &'a Corpus,
    tokenizer: &'a Tokenizer,
    rng: Rng,
    order: Vec<usize>,
    ready: Vec<Vec<Example>>,
}

impl Batches<'_> {
    fn next(&mut self) -> Result<Vec<Example>> {
        if self.ready.is_empty() {
            let mut pool = (0..BATCH * POOL).map(|_| self.example()).collect::<Result<Vec<_>>>()?;
            pool.sort_by_key(|e| e.ids.len());
            while !pool.is_empty() {
                let rest = pool.split_off(BATCH.min(pool.len()));
                self.ready.push(std::mem::replace(&mut pool, rest));
            }
            self.rng.shuffle(&mut self.ready);
        }
        self.ready.pop().context("no batch")
    }

    fn example(&mut self) -> Result<Example> {
        if self.order.is_empty() {
            self.order = (0..self.corpus.questions.len()).collect();
            self.rng.shuffle(&mut self.order);
        }
        let index = self.order.pop().context("an empty corpus")?;
        example(self.tokenizer, &self.corpus.dialogue(index, &mut self.rng))
    }
}
