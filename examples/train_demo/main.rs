//! Trains the demo model that is built into the server, from the corpus in `models/demo/corpus`.
//!
//! `RAYON_NUM_THREADS=1 cargo run --example train_demo` writes the model's files and its card, in about
//! half an hour on two cores; the same seed and steps on the same machine repeat a run. With
//! `--eval-only` it scores what is already there.
//! `model.rs` is also included by an integration test, which is why it stands on its own.

mod corpus;
mod eval;
mod model;
mod rng;
mod save;
mod tokenizer;
mod training;

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::Result;
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use clap::Parser;
use tokenizers::Tokenizer;

use crate::corpus::Corpus;
use crate::eval::Scores;
use crate::model::{TrainConfig, TrainLlama};
use crate::rng::Rng;
use crate::save::{Card, Golden};
use crate::training::{Limits, Trainer};

/// Held-out questions are asked, and the model saved, every so many steps.
const EVAL_EVERY: usize = 500;
/// Golden answers in the card; every other one is to a held-out phrasing.
const GOLDEN: usize = 16;
const INIT_STD: f64 = 0.02;

#[derive(Parser)]
#[command(about = "Trains the demo model from its corpus")]
struct Args {
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long, default_value_t = 1600)]
    steps: usize,
    /// Stop after this much time, should the steps not be done by then
    #[arg(long)]
    minutes: Option<f64>,
    #[arg(long, default_value = "models/demo")]
    out: PathBuf,
    #[arg(long, default_value = "models/demo/corpus")]
    corpus: PathBuf,
    /// Score the model in --out; train nothing, write nothing
    #[arg(long)]
    eval_only: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let corpus = Corpus::load(&args.corpus)?;
    if args.eval_only {
        let (config, tokenizer, weights) = save::load(&args.out)?;
        let scores = eval::held_out(&eval::rounded(&config, &weights)?, &tokenizer, &corpus)?;
        print_scores(&corpus, &scores);
        return Ok(());
    }
    train(&args, &corpus)
}

fn train(args: &Args, corpus: &Corpus) -> Result<()> {
    let mut rng = Rng::new(args.seed);
    let tokenizer = tokenizer::train(&corpus.texts())?;
    for index in 0..corpus.questions.len() {
        tokenizer::check(&tokenizer, &corpus.dialogue(index, &mut rng))?;
    }
    let config = config(tokenizer.get_vocab_size(true));
    let variables = VarMap::new();
    let model = TrainLlama::new(&config, VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu))?;
    let named = sorted(&variables)?;
    initialise(&named, &config, &mut rng)?;
    let weights: HashMap<String, Tensor> =
        named.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
    let parameters = weights.values().map(Tensor::elem_count).sum();
    println!("{} questions, {} tokens, {parameters} parameters", corpus.questions.len(), config.vocab_size);

    let limits = Limits { steps: args.steps, minutes: args.minutes };
    let vars = named.into_iter().map(|(_, var)| var).collect();
    let mut trainer = Trainer::new(&model, vars, corpus, &tokenizer, rng, limits)?;
    loop {
        let more = trainer.run(EVAL_EVERY)?;
        let rounded = eval::rounded(&config, &weights)?;
        let scores = eval::held_out(&rounded, &tokenizer, corpus)?;
        println!("after {} steps, {:.1} minutes:", trainer.step, trainer.minutes());
        print_scores(corpus, &scores);
        save::model(&args.out, &config, &tokenizer, &weights)?;
        let card = Card {
            name: "demo",
            licence: "MIT OR Apache-2.0",
            parameters,
            vocab: config.vocab_size,
            command: command(args),
            seed: args.seed,
            steps: trainer.step,
            final_loss: round(trainer.loss()),
            minutes: round(trainer.minutes()),
            date: save::date(),
            questions: corpus.questions.len(),
            held_out_score: round(scores.held_out),
            control_score: round(scores.control),
            golden: golden(&rounded, &tokenizer, corpus, &scores)?,
        };
        save::card(&args.out, &card)?;
        if !more {
            return Ok(());
        }
    }
}

fn config(vocab_size: usize) -> TrainConfig {
    TrainConfig {
        vocab_size,
        hidden_size: 192,
        intermediate_size: 512,
        num_hidden_layers: 5,
        num_attention_heads: 6,
        num_key_value_heads: 2,
        head_dim: 32,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        max_position_embeddings: 4096,
    }
}

/// The variables by name, in an order that does not change from run to run.
fn sorted(variables: &VarMap) -> Result<Vec<(String, Var)>> {
    let data = variables.data().lock().map_err(|_| anyhow::anyhow!("the variables' lock is poisoned"))?;
    let mut named: Vec<(String, Var)> = data.iter().map(|(name, var)| (name.clone(), var.clone())).collect();
    named.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(named)
}

fn initialise(named: &[(String, Var)], config: &TrainConfig, rng: &mut Rng) -> Result<()> {
    for (name, var) in named {
        let residual = name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight");
        // What is added to the residual stream is scaled down, for the sum of all layers to stay small.
        let scale = if residual { (2.0 * config.num_hidden_layers as f64).sqrt().recip() } else { 1.0 };
        let count = var.elem_count();
        let values: Vec<f32> = if name.ends_with("norm.weight") {
            vec![1.0; count]
        } else {
            (0..count).map(|_| (rng.normal() * INIT_STD * scale) as f32).collect()
        };
        var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu)?)?;
    }
    Ok(())
}

/// Greedy answers spread over the corpus, of those questions that the model gets right.
fn golden(
    model: &TrainLlama,
    tokenizer: &Tokenizer,
    corpus: &Corpus,
    scores: &Scores,
) -> Result<Vec<Golden>> {
    let right: Vec<usize> = (0..corpus.questions.len()).filter(|i| !scores.failed.contains(i)).collect();
    let count = GOLDEN.min(right.len());
    let chosen = (0..count).map(|n| (n, &corpus.questions[right[n * right.len() / count]]));
    let (prompts, drafts): (Vec<&str>, Vec<&str>) = chosen
        .map(|(n, q)| (if n % 2 == 0 { &q.ask[0] } else { &q.held_out }, &q.answer))
        .map(|(prompt, draft)| (prompt.as_str(), draft.as_str()))
        .unzip();
    let answers = eval::answers(model, tokenizer, &prompts, &drafts)?;
    let pairs = prompts.iter().zip(answers);
    Ok(pairs.map(|(prompt, answer)| Golden { prompt: prompt.to_string(), answer }).collect())
}

fn print_scores(corpus: &Corpus, scores: &Scores) {
    println!("held-out {:.1} %, control {:.1} %", scores.held_out * 100.0, scores.control * 100.0);
    for &i in &scores.failed {
        let question = &corpus.questions[i];
        println!("  {}: {:?} -> {:?}", question.id, question.held_out, scores.answers[i]);
    }
}

/// What was run, with the thread count that it ran under: sums depend on it in the last bits.
fn command(args: &Args) -> String {
    let threads = candle_core::utils::get_num_threads();
    let minutes = args.minutes.map_or(String::new(), |m| format!(" --minutes {m}"));
    format!(
        "RAYON_NUM_THREADS={threads} cargo run --example train_demo -- --seed {} --steps {}{minutes}",
        args.seed, args.steps
    )
}

fn round(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}
