//! Our engine against stock candle-transformers: same weights, same threads, alternating.

use std::sync::Arc;

use candle_core::{DType, Device};
use hashwatt::clock::Clock;
use hashwatt::engine::event::{EventStream, GenerateRequest, Tier, TokenEvent};
use hashwatt::engine::sampler::SamplingParams;
use hashwatt::engine::step_log::Observed;
use hashwatt::engine::worker::{EngineConfig, EngineHandle, Limits, spawn};
use hashwatt::measure::baseline::Baseline;
use hashwatt::model::Checkpoint;
use hashwatt::model::decoder::{Decoder, Precision};
use hashwatt::model::runner::Runner;
use hashwatt::model::workspace::Capacity;
use hashwatt::ops::pool::Pool;

use crate::{Report, cores};

const MODEL: &str = "synthetic:qwen3-0.6b";
const ROUNDS: usize = 5;
pub const PREFILL: usize = 512;
pub const CONTEXT: usize = 16;
const STOCK_STEPS: usize = 12;
const OUR_STEPS: usize = 24;

/// Ids that every vocabulary of use has.
pub fn tokens(n: usize, seed: usize) -> Vec<u32> {
    (0..n).map(|i| (1000 + i * 7919 + seed * 104_729) as u32 % 30_000).collect()
}

pub fn engine(decoder: &Arc<Decoder>) -> EngineHandle {
    let capacity = Capacity { rows: PREFILL, logit_rows: 64 };
    let pool = Arc::new(Pool::new(cores()));
    let runner = Runner::new(decoder.clone(), pool, capacity, 512).expect("the cache fits");
    let config = EngineConfig {
        device: "bars".into(),
        limits: Limits { max_rows: 64, max_tokens: PREFILL, duty: 1.0 },
        prefix_caching: false,
        run_ahead: false,
        faults: Default::default(),
        speculative_tokens: 0,
        max_queue: 512,
    };
    spawn(runner, config, Clock::system(), Observed::default()).expect("the engine starts").0
}

fn submit(engine: &EngineHandle, prompt: Vec<u32>, max_tokens: usize) -> EventStream {
    let request = GenerateRequest {
        prompt: prompt.into(),
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        max_tokens,
        min_tokens: 0,
        prediction: Arc::new([]),
        stop_token_ids: Arc::new([]),
        prompt_logprobs: None,
        tier: Tier::Default,
        cache_salt: 0,
        account: 0,
        constraint: None,
    };
    engine.submit(request).expect("the queue has room")
}

/// The next event that is about tokens; `None` after the last.
fn next(stream: &mut EventStream) -> Option<TokenEvent> {
    loop {
        match stream.next_blocking() {
            Some(TokenEvent::Failed(e)) => panic!("{e}"),
            Some(TokenEvent::Admitted { .. }) => {}
            event => return event,
        }
    }
}

/// Tokens a second of `rows` sequences, from the moment all have their first token.
pub fn our_decode(engine: &EngineHandle, clock: &Clock, rows: usize, steps: usize) -> f64 {
    let mut streams: Vec<_> = (0..rows).map(|r| submit(engine, tokens(CONTEXT, r), steps + 1)).collect();
    streams.iter_mut().for_each(|s| drop(next(s)));
    let start = clock.now();
    for stream in &mut streams {
        while next(stream).is_some() {}
    }
    (rows * steps) as f64 / clock.now().since(start).as_secs_f64()
}

pub fn our_prefill(engine: &EngineHandle, clock: &Clock, seed: usize) -> f64 {
    let start = clock.now();
    let mut stream = submit(engine, tokens(PREFILL, seed), 1);
    assert!(matches!(next(&mut stream), Some(TokenEvent::Token { .. })));
    PREFILL as f64 / clock.now().since(start).as_secs_f64()
}

/// Tokens a second: of so many steps after the prompt, else of the prompt.
pub fn stock(model: &mut Baseline, clock: &Clock, prompt: usize, steps: usize) -> f64 {
    model.reset().expect("the cache empties");
    let mut forward = |ids: &[u32]| drop(model.forward(ids).expect("stock candle runs"));
    if steps == 0 {
        let start = clock.now();
        forward(&tokens(prompt, 1));
        return prompt as f64 / clock.now().since(start).as_secs_f64();
    }
    forward(&tokens(prompt, 1));
    let start = clock.now();
    (0..steps).for_each(|i| forward(&[i as u32 * 31]));
    steps as f64 / clock.now().since(start).as_secs_f64()
}

pub fn run(report: &mut Report) {
    let clock = Clock::system();
    let pool = Arc::new(Pool::new(cores()));
    let checkpoint = Checkpoint::open(MODEL, &pool).expect("a preset");
    let decoder = checkpoint.load(Precision::AsStored, false, &|_| {}).expect("synthetic weights load");
    let ours = engine(&Arc::new(decoder));
    let mut theirs = Baseline::new(&checkpoint, DType::F32, &Device::Cpu).expect("a baseline");
    let mut rounds: Vec<[f64; 6]> = Vec::new();
    for round in 0..=ROUNDS {
        let figures = [
            stock(&mut theirs, &clock, CONTEXT, STOCK_STEPS),
            our_decode(&ours, &clock, 1, OUR_STEPS),
            our_decode(&ours, &clock, 8, OUR_STEPS),
            our_decode(&ours, &clock, 32, OUR_STEPS),
            stock(&mut theirs, &clock, PREFILL, 0),
            our_prefill(&ours, &clock, round),
        ];
        // The first round warms both up.
        if round > 0 {
            rounds.push(figures);
        }
    }
    let series = |i: usize| rounds.iter().map(|r| r[i]).collect::<Vec<f64>>();
    let [decode, one, eight, many, prefill, ours] = std::array::from_fn(series);
    report.row(&format!("{MODEL} stock f32, decode at 1 row"), "token/s", &decode, None);
    report.row("ours bf16, decode at 1 row", "token/s", &one, None);
    report.row("ours bf16, decode at 8 rows", "token/s", &eight, None);
    report.row("ours bf16, decode at 32 rows", "token/s", &many, None);
    report.row("stock f32, prefill of 512", "token/s", &prefill, None);
    report.row("ours bf16, prefill of 512", "token/s", &ours, None);
    report.ratio("decode at 1 row ÷ stock at 1 row", &one, &decode, Some(2.0));
    report.ratio("decode at 8 rows ÷ stock at 1 row", &eight, &decode, Some(8.0));
    report.ratio("decode at 32 rows ÷ stock at 1 row", &many, &decode, Some(16.0));
    report.ratio("prefill of 512 ÷ stock", &ours, &prefill, Some(2.0));
}
