//! One model in one type on one kind of device: whether it fits, and what its KV cache holds.
//!
//! Every number is one that `serve` itself works with (`cli::held`, `cli::room`).

use serde::Serialize;

use super::money::Money;
use super::roofline::Step;
use super::target::Target;
use crate::cli::held::{held, weight_bytes};
use crate::cli::room::{self, Cache, GpuMemory, GpuNeeds};
use crate::config::Config;
use crate::model::Checkpoint;
use crate::model::decoder::Quantize;
use crate::model::input::BLOCK_SIZE;
use crate::ops::blocks::Format;

/// Tokens of a sequence, where neither the operator nor a shorter context of the model says another number.
const CONTEXT: usize = 4096;

/// Types that a preset is tried in.
pub const TYPES: [Quantize; 4] =
    [Quantize::AsStored, Quantize::Fp8, Quantize::Blocks(Format::Q8_0), Quantize::Blocks(Format::Q4K)];

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    pub model: String,
    /// What `--quantization` is given; empty for weights as they are stored.
    pub quantization: String,
    /// What the matrices of layers are held in.
    pub weights: &'static str,
    /// The devices have products of this type.
    pub runs: bool,
    pub fits: bool,
    pub problem: Option<String>,
    pub weight_bytes: u64,
    pub step_weight_bytes: u64,
    /// Of a GPU.
    pub workspace_bytes: Option<u64>,
    pub reserve_bytes: Option<u64>,
    pub cache: Option<Room>,
    pub speed: Option<Speed>,
    /// Of the energy of the board, or of the boundary that was measured; `None` without a price.
    pub serving_usd_per_kwh: Option<f64>,
}

/// The KV cache of each device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Room {
    pub dtype: String,
    pub bytes: u64,
    pub tokens: usize,
    /// Of one sequence alone.
    pub longest_context_tokens: usize,
    /// Of each of the sequences at once.
    pub context_tokens: usize,
    /// At once on all devices: as many as there is room for, and as a step takes.
    pub sequences: usize,
}

/// Decoding, of all devices together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Speed {
    pub output_tokens_per_second: f64,
    pub output_tokens_per_joule: f64,
    /// Requests at once.
    pub concurrency: usize,
    /// `roofline` is an upper bound of the tokens, at the board's full watts; `measured` is of a report; `declared` and
    /// others are a report's watts that no instrument said.
    pub basis: String,
    pub boundary: String,
}

/// What is asked of every row.
pub struct Question<'a> {
    pub config: &'a Config,
    pub context: Option<usize>,
    pub money: &'a Money,
}

impl Row {
    pub fn of(
        question: &Question,
        checkpoint: &Checkpoint,
        repo: Option<&str>,
        quantize: Quantize,
        target: &Target,
    ) -> Row {
        let limit = checkpoint.spec.max_positions;
        let context = question.context.unwrap_or(CONTEXT.min(checkpoint.spec.usual_context()));
        let config = as_served(question.config, quantize, target, context);
        let (held, (weight_bytes, step_weight_bytes)) =
            (held(&config, checkpoint), weight_bytes(&config, checkpoint));
        let needs = target.gpu.then(|| GpuNeeds::of(&config, checkpoint, 0));
        let runs = room::check_products(&config, checkpoint);
        let fitted = match &runs {
            Ok(()) => fitted(&config, checkpoint, needs.as_ref(), target),
            Err(_) => Err(None),
        };
        let mut row = Row {
            model: checkpoint.name.trim_start_matches("synthetic:").into(),
            quantization: name_of(quantize),
            weights: held.layers.name(),
            runs: runs.is_ok(),
            fits: fitted.is_ok(),
            problem: runs.err().map(|e| e.to_string()),
            weight_bytes,
            step_weight_bytes,
            workspace_bytes: needs.map(|n| n.workspace),
            reserve_bytes: needs.map(|n| n.reserve),
            cache: None,
            speed: None,
            serving_usd_per_kwh: None,
        };
        match fitted {
            Err(problem) => row.problem = row.problem.or(problem),
            Ok(bytes) => {
                let blocks =
                    usize::try_from(bytes / room::block_bytes(checkpoint, held.cache)).unwrap_or(usize::MAX);
                let sequences = config.sequences().min(blocks / context.div_ceil(BLOCK_SIZE));
                row.cache = Some(Room {
                    dtype: held.cache.name().into(),
                    bytes,
                    tokens: blocks.saturating_mul(BLOCK_SIZE),
                    longest_context_tokens: blocks.saturating_mul(BLOCK_SIZE).min(limit),
                    context_tokens: context,
                    sequences: sequences * target.count,
                });
                // Each sequence takes experts of its own.
                let more = held.layers.size(checkpoint.spec.more_experts_met(sequences)) as u64;
                let step = Step {
                    spec: &checkpoint.spec,
                    weight_bytes: step_weight_bytes + more,
                    cache: held.cache,
                    sequences,
                    context,
                };
                question.money.put(&mut row, &step, repo, target);
            }
        }
        row
    }
}

/// What `serve` would be told.
fn as_served(config: &Config, quantize: Quantize, target: &Target, context: usize) -> Config {
    Config { devices: target.devices(), quantize, max_model_len: Some(context), ..config.clone() }
}

/// Bytes for the KV cache of each device, as `serve` finds them on a device that is empty.
fn fitted(
    config: &Config,
    checkpoint: &Checkpoint,
    needs: Option<&GpuNeeds>,
    target: &Target,
) -> Result<u64, Option<String>> {
    let memory = target.memory_bytes;
    let devices = target.count as u64;
    let budget = match needs {
        Some(needs) => {
            let empty = GpuMemory { total: memory, free: memory };
            room::gpu_cache(config, needs, &target.name, empty)
        }
        None => room::check_weights(config, checkpoint, memory)
            .map(|_| room::processor_cache(config, checkpoint, None, memory) / devices),
    };
    let budget = budget.map(|left| config.kv_memory.map_or(left, |bytes| bytes / devices));
    let checked = budget.and_then(|bytes| Cache::of(config, checkpoint, None, bytes).map(|_| bytes));
    checked.map_err(|e| Some(e.to_string()))
}

/// As `--quantization` takes it.
pub fn name_of(quantize: Quantize) -> String {
    match quantize {
        Quantize::AsStored => String::new(),
        Quantize::Fp8 => "fp8".into(),
        Quantize::Blocks(format) => format.name().to_lowercase(),
    }
}
