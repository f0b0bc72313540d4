//! Decode: many sequences at once through the engine, tokens as the throughput.

use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use hashwatt::clock::{BusyTime, Clock};
use hashwatt::engine::event::{EventStream, GenerateRequest, Tier, TokenEvent};
use hashwatt::engine::sampler::SamplingParams;
use hashwatt::engine::worker::{EngineConfig, EngineHandle, Limits, spawn};
use hashwatt::model::Checkpoint;
use hashwatt::model::decoder::Precision;
use hashwatt::model::runner::Runner;
use hashwatt::model::workspace::Capacity;
use hashwatt::ops::pool::Pool;

/// Sequences in flight, and tokens each generates in an iteration.
pub const CONCURRENCY: [usize; 3] = [1, 8, 32];
pub const TOKENS: usize = 64;

pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// An engine of the demo model on all cores.
pub fn engine() -> EngineHandle {
    let pool = Arc::new(Pool::new(cores()));
    let checkpoint = Checkpoint::open("demo", &pool).expect("the demo is in the binary");
    let decoder = checkpoint.load(Precision::AsStored, false, &|_| {}).expect("the demo loads");
    let capacity = Capacity { rows: 512, logit_rows: 64 };
    let runner = Runner::new(Arc::new(decoder), pool, capacity, 2048).expect("the demo fits");
    let config = EngineConfig {
        device: "bench".into(),
        limits: Limits { max_rows: 64, max_tokens: 512, duty: 1.0 },
        // Each iteration computes its own prompts.
        prefix_caching: false,
        max_queue: 512,
    };
    spawn(runner, config, Clock::system(), BusyTime::default()).expect("the engine starts").0
}

fn start(engine: &EngineHandle, id: u32) -> EventStream {
    let request = GenerateRequest {
        prompt: (0..16).map(|t| 3 + (t * 31 + id * 7) % 1000).collect(),
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        max_tokens: TOKENS,
        min_tokens: 0,
        stop_token_ids: Arc::new([]),
        prompt_logprobs: None,
        tier: Tier::Default,
        cache_salt: 0,
        constraint: None,
    };
    engine.submit(request).expect("the queue has room")
}

/// Generates with so many sequences at once; the tokens that came.
pub fn generate(engine: &EngineHandle, sequences: usize) -> usize {
    let streams: Vec<EventStream> = (0..sequences).map(|i| start(engine, i as u32)).collect();
    let mut tokens = 0;
    for mut stream in streams {
        while let Some(event) = stream.next_blocking() {
            match event {
                TokenEvent::Token { .. } => tokens += 1,
                TokenEvent::Failed(e) => panic!("{e}"),
                _ => {}
            }
        }
    }
    tokens
}

pub fn run(criterion: &mut Criterion) {
    let engine = engine();
    let mut group = criterion.benchmark_group("decode/demo");
    group
        .sampling_mode(SamplingMode::Flat)
        .sample_size(20)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(5));
    for sequences in CONCURRENCY {
        group.throughput(Throughput::Elements((sequences * TOKENS) as u64));
        group.bench_function(BenchmarkId::from_parameter(sequences), |b| {
            b.iter(|| assert_eq!(generate(&engine, sequences), sequences * TOKENS));
        });
    }
    group.finish();
}
