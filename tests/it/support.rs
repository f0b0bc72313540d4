//! What several tests need: small seeded models, and a step-by-step run that keeps every logit.

use std::sync::Arc;

use hashwatt::clock::Clock;
use hashwatt::engine::batch;
use hashwatt::engine::block_pool::BlockPool;
use hashwatt::engine::event::{EventStream, GenerateRequest, Tier, TokenEvent};
use hashwatt::engine::sampler::SamplingParams;
use hashwatt::engine::scheduler::{Budget, Scheduler, StepPlan};
use hashwatt::engine::sequence::{Rank, Sequence};
use hashwatt::engine::step_log::Observed;
use hashwatt::engine::worker::{self, EngineConfig, EngineHandle, Limits, Models};
use hashwatt::model::Checkpoint;
use hashwatt::model::decoder::{Decoder, Precision};
use hashwatt::model::input::{BLOCK_SIZE, StepInput};
use hashwatt::model::runner::Runner;
use hashwatt::model::workspace::Capacity;
use hashwatt::ops::exec::Exec;
use hashwatt::ops::pool::Pool;
use serde_json::{Value, json};

pub fn pool(threads: usize) -> Arc<Pool> {
    Arc::new(Pool::new(threads))
}

/// A small Llama: head_dim 64, widths that are no multiple of a tile.
pub fn llama(kv_heads: usize) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 256, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": kv_heads, "intermediate_size": 331,
        "vocab_size": 517, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "tie_word_embeddings": false, "hidden_act": "silu", "torch_dtype": "float32",
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 256}
    })
}

/// A small Qwen3: head_dim 128 wider than hidden / heads, tied head.
pub fn qwen3(kv_heads: usize) -> Value {
    json!({
        "architectures": ["Qwen3ForCausalLM"], "hidden_size": 200, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": kv_heads, "head_dim": 128,
        "intermediate_size": 331, "vocab_size": 517, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": true,
        "hidden_act": "silu", "torch_dtype": "float32"
    })
}

fn of(architecture: &'static str, more: Value) -> (&'static str, Value) {
    let mut config = llama(2);
    config["num_hidden_layers"] = 2.into();
    config["architectures"] = json!([architecture]);
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    (architecture, config)
}

/// Each other shape that a dense decoder can have, by the architecture that has it.
pub fn others() -> Vec<(&'static str, Value)> {
    let scaled = json!({"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "attention_multiplier": 0.1,
                        "logits_scaling": 8.0});
    let gemma = json!({"hidden_act": null, "hidden_activation": "gelu_pytorch_tanh", "head_dim": 64, "sliding_window": 24,
                       "query_pre_attn_scalar": 64, "tie_word_embeddings": true});
    let capped = json!({"attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0});
    let (mut gemma2, mut gemma3) = (gemma.clone(), gemma);
    gemma3["sliding_window_pattern"] = 2.into();
    gemma2.as_object_mut().unwrap().extend(capped.as_object().unwrap().clone());
    vec![
        of("Gemma2ForCausalLM", gemma2),
        of("Gemma3ForCausalLM", gemma3),
        of("Glm4ForCausalLM", json!({"head_dim": 64, "attention_bias": true})),
        of("GraniteForCausalLM", scaled),
        of("MistralForCausalLM", json!({"sliding_window": 24})),
        of("Olmo2ForCausalLM", json!({})),
        of("Phi3ForCausalLM", json!({"partial_rotary_factor": 0.75})),
        of("Qwen2ForCausalLM", json!({})),
        of("SmolLM3ForCausalLM", json!({"no_rope_layers": [1, 0]})),
    ]
}

/// Shapes with routed experts.
pub fn routed() -> Vec<(&'static str, Value)> {
    let experts = json!({"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 96, "norm_topk_prob": true,
                         "decoder_sparse_step": 2});
    let (mut shared, mut plain) = (experts.clone(), experts);
    let more =
        json!({"decoder_sparse_step": 1, "norm_topk_prob": false, "shared_expert_intermediate_size": 160});
    shared.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    plain["head_dim"] = 64.into();
    vec![
        of(
            "GptOssForCausalLM",
            json!({"num_local_experts": 5, "num_experts_per_tok": 3, "sliding_window": 24}),
        ),
        of("MixtralForCausalLM", json!({"num_local_experts": 4, "num_experts_per_tok": 2})),
        of("Qwen2MoeForCausalLM", shared),
        of("Qwen3MoeForCausalLM", plain),
    ]
}

pub fn checkpoint(config: Value) -> Checkpoint {
    Checkpoint::synthetic("test", "config.json", config, &pool(1)).unwrap()
}

pub fn decoder(config: &Value, precision: Precision) -> Arc<Decoder> {
    Arc::new(checkpoint(config.clone()).load(precision, true, &|_| {}).unwrap())
}

/// Token ids that look random and never repeat a pattern.
pub fn prompt(length: usize, vocab: usize, seed: u64) -> Vec<u32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((state >> 33) % vocab as u64) as u32
        })
        .collect()
}

/// How a run is cut into steps.
#[derive(Clone, Copy)]
pub struct Shape {
    pub threads: usize,
    pub blocks: usize,
    pub tokens: usize,
    pub sequences: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Shape { threads: 1, blocks: 512, tokens: 1024, sequences: 32 }
    }
}

/// The scheduler, the batch builder and the runner as the engine joins them, with every logit kept.
pub struct Steps {
    pub runner: Runner,
    pub scheduler: Scheduler<usize>,
    shape: Shape,
    arrivals: u64,
    pub preemptions: usize,
    pub prefix_hits: usize,
    pub largest_step: usize,
}

impl Steps {
    pub fn new(decoder: &Arc<Decoder>, shape: Shape) -> Steps {
        Steps::on(decoder, pool(shape.threads).into(), shape)
    }

    /// On given means.
    pub fn on(decoder: &Arc<Decoder>, on: Exec, shape: Shape) -> Steps {
        let capacity = Capacity { rows: shape.tokens, logit_rows: shape.sequences };
        let runner = Runner::new(decoder.clone(), on, capacity, shape.blocks).unwrap();
        let blocks = BlockPool::new(shape.blocks, BLOCK_SIZE);
        Steps {
            runner,
            scheduler: Scheduler::new(blocks, shape.sequences, true),
            shape,
            arrivals: 0,
            preemptions: 0,
            prefix_hits: 0,
            largest_step: 0,
        }
    }

    /// Greedy generation of `generate` tokens for each prompt, all in flight together: for each prompt
    /// the logits of each generated token.
    pub fn run(&mut self, prompts: &[Vec<u32>], generate: usize) -> Vec<Vec<Vec<f32>>> {
        let mut logits: Vec<Vec<Vec<f32>>> = vec![Vec::new(); prompts.len()];
        let blocks = self.scheduler.pool().clone();
        for (i, p) in prompts.iter().enumerate() {
            self.arrivals += 1;
            let rank = Rank { tier: Tier::Default, arrival: self.arrivals };
            self.scheduler.add(Sequence::new(rank, p, p.len() + generate, 0, &blocks), i);
        }
        let Shape { tokens, sequences, .. } = self.shape;
        let (mut plan, mut input) = (StepPlan::default(), StepInput::default());
        while !self.scheduler.is_empty() {
            self.scheduler.plan(Budget { sequences, tokens, logit_rows: sequences }, &mut plan);
            assert!(!plan.rows.is_empty(), "something waits and nothing can run");
            self.preemptions += plan.preempted;
            self.prefix_hits += plan.prefix_hits;
            self.largest_step = self.largest_step.max(plan.rows.len());
            batch::build(&plan, self.scheduler.running(), &mut input);
            self.runner.launch(&mut input).unwrap();
            let rows: Vec<Vec<f32>> = self
                .runner
                .logits(|all| {
                    all.chunks_exact(all.len().max(1) / plan.logit_rows().max(1))
                        .map(<[f32]>::to_vec)
                        .collect()
                })
                .unwrap();
            let mut rows = rows.into_iter();
            for row in &plan.rows {
                let entry = &mut self.scheduler.running_mut()[row.sequence];
                entry.sequence.advance(row.tokens.end);
                for _ in row.logits.clone() {
                    let row = rows.next().unwrap();
                    let best = (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap();
                    entry.sequence.tokens.push(best as u32);
                    logits[entry.payload].push(row);
                }
            }
            self.scheduler.retain(|e| e.sequence.generated() < generate);
        }
        logits
    }
}

/// An engine on the CPU.
pub fn engine(
    decoder: &Arc<Decoder>,
    threads: usize,
    blocks: usize,
    tokens: usize,
    sequences: usize,
) -> EngineHandle {
    let runner = runner(decoder, threads, blocks, tokens, sequences);
    let models = Models { decoder: Some(runner), ..Models::default() };
    engine_of(models, tokens, sequences, 0)
}

pub fn runner(
    decoder: &Arc<Decoder>,
    threads: usize,
    blocks: usize,
    tokens: usize,
    sequences: usize,
) -> Runner {
    let capacity = Capacity { rows: tokens, logit_rows: sequences.max(64) };
    Runner::new(decoder.clone(), pool(threads), capacity, blocks).unwrap()
}

pub fn engine_config(tokens: usize, sequences: usize, speculative_tokens: usize) -> EngineConfig {
    EngineConfig {
        device: "test".into(),
        limits: Limits { max_rows: sequences, max_tokens: tokens, duty: 1.0 },
        prefix_caching: true,
        run_ahead: false,
        faults: Default::default(),
        speculative_tokens,
        max_queue: 4096,
    }
}

/// An engine that guesses so many tokens in a step.
pub fn engine_of(models: Models, tokens: usize, sequences: usize, speculative_tokens: usize) -> EngineHandle {
    let config = engine_config(tokens, sequences, speculative_tokens);
    worker::spawn_with(models, config, Clock::system(), Observed::default()).unwrap().0
}

pub fn request(prompt: &[u32], max_tokens: usize, sampling: SamplingParams) -> GenerateRequest {
    GenerateRequest {
        prompt: prompt.into(),
        sampling,
        max_tokens,
        min_tokens: 0,
        prediction: Arc::new([]),
        stop_token_ids: Arc::new([]),
        prompt_logprobs: None,
        tier: Tier::Default,
        cache_salt: 0,
        account: 0,
        constraint: None,
    }
}

pub fn greedy() -> SamplingParams {
    SamplingParams { temperature: 0.0, ..SamplingParams::default() }
}

/// The first event after the admission.
pub fn first(stream: &mut EventStream) -> TokenEvent {
    loop {
        match stream.next_blocking().expect("an event") {
            TokenEvent::Admitted { .. } => {}
            event => return event,
        }
    }
}

/// Reads a stream to its end: the tokens and the last event.
pub fn drain(mut stream: EventStream) -> (Vec<u32>, TokenEvent) {
    let mut tokens = Vec::new();
    loop {
        match stream.next_blocking().expect("a last event") {
            TokenEvent::Token { id, .. } => tokens.push(id),
            TokenEvent::Prompt(_) | TokenEvent::Admitted { .. } => {}
            last => return (tokens, last),
        }
    }
}
