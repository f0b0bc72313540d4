//! Decode: many sequences at once through the engine, tokens as the throughput. Also the engine and the
//! loads that the joule suite repeats.

use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use hashwatt::clock::{BusyTime, Clock};
use hashwatt::engine::event::{EventStream, GenerateRequest, Tier, TokenEvent};
use hashwatt::engine::sampler::SamplingParams;
use hashwatt::engine::step_log::Observed;
use hashwatt::engine::worker::{EngineConfig, EngineHandle, Limits, spawn};
use hashwatt::model::Checkpoint;
use hashwatt::model::decoder::Precision;
use hashwatt::model::input::BLOCK_SIZE;
use hashwatt::model::runner::Runner;
use hashwatt::model::workspace::Capacity;
use hashwatt::ops::pool::Pool;

/// Sequences in flight, and tokens each generates in an iteration.
pub const CONCURRENCY: [usize; 3] = [1, 8, 32];
pub const TOKENS: usize = 64;
const PROMPT: usize = 16;

pub const LIMITS: Limits = Limits { max_rows: 256, max_tokens: 512, duty: 1.0 };

pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// An engine with all cores, and what is known of it from outside.
pub struct Engine {
    pub handle: EngineHandle,
    pub busy: BusyTime,
    pub clock: Clock,
    pub model: String,
    /// Longest sequence.
    pub context: usize,
}

/// An engine of the model: `demo`, `synthetic:PRESET` or a folder.
pub fn engine(model: &str) -> Engine {
    let pool = Arc::new(Pool::new(cores()));
    let checkpoint = Checkpoint::open(model, &pool).unwrap_or_else(|e| panic!("{model}: {e}"));
    let context = checkpoint.spec.max_positions;
    let decoder = checkpoint.load(Precision::AsStored, false, &|_| {}).expect("the model loads");
    let capacity = Capacity { rows: LIMITS.max_tokens, logit_rows: LIMITS.max_rows };
    let blocks = LIMITS.max_rows * (PROMPT + TOKENS).div_ceil(BLOCK_SIZE) + 256;
    let runner = Runner::new(Arc::new(decoder), pool, capacity, blocks).expect("the model fits");
    let config = EngineConfig {
        device: "bench".into(),
        limits: LIMITS,
        // Each iteration computes its own prompts.
        prefix_caching: false,
        run_ahead: false,
        faults: Default::default(),
        speculative_tokens: 0,
        max_queue: 512,
    };
    let (clock, observed) = (Clock::system(), Observed::default());
    let busy = observed.busy.clone();
    let (handle, _thread) = spawn(runner, config, clock.clone(), observed).expect("the engine starts");
    Engine { handle, busy, clock, model: model.into(), context }
}

fn start(engine: &EngineHandle, id: u32, prompt: usize, tokens: usize) -> EventStream {
    let request = GenerateRequest {
        prompt: (0..prompt as u32).map(|t| 3 + (t * 31 + id * 7) % 1000).collect(),
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        max_tokens: tokens,
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

/// Runs so many sequences at once, each of so many prompt and generated tokens; the tokens generated.
pub fn run_load(engine: &EngineHandle, sequences: usize, prompt: usize, tokens: usize) -> usize {
    let streams: Vec<EventStream> = (0..sequences).map(|i| start(engine, i as u32, prompt, tokens)).collect();
    let mut generated = 0;
    for mut stream in streams {
        while let Some(event) = stream.next_blocking() {
            match event {
                TokenEvent::Token { .. } => generated += 1,
                TokenEvent::Failed(e) => panic!("{e}"),
                _ => {}
            }
        }
    }
    generated
}

/// Generates with so many sequences at once; the tokens that came.
pub fn generate(engine: &EngineHandle, sequences: usize) -> usize {
    run_load(engine, sequences, PROMPT, TOKENS)
}

/// Seconds per iteration.
pub fn run(criterion: &mut Criterion, engine: &Engine) {
    let mut group = criterion.benchmark_group(format!("decode/{}", engine.model));
    group
        .sampling_mode(SamplingMode::Flat)
        .sample_size(20)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(5));
    for sequences in CONCURRENCY {
        group.throughput(Throughput::Elements((sequences * TOKENS) as u64));
        group.bench_function(BenchmarkId::from_parameter(sequences), |b| {
            b.iter(|| assert_eq!(generate(&engine.handle, sequences), sequences * TOKENS));
        });
    }
    group.finish();
}
