//! What fits: the memory of a device, what a model needs of it, and the KV cache that the rest has room for.
//!
//! Plain arithmetic, before anything is read: `serve` asks it of the devices that are there, `models fit` of any.

use anyhow::bail;
use candle_core::DType;

use super::assemble::on_gpus;
use super::held::{held, weight_bytes};
use crate::config::Config;
use crate::model::Checkpoint;
use crate::model::decoder::{Precision, Quantize};
use crate::model::input::BLOCK_SIZE;
use crate::model::kv_cache::{CacheType, KvCache};
use crate::model::weights::WeightSource;
use crate::model::workspace::ExpertRoom;
use crate::ops::paged_attention::kernels;
use crate::ops::weight::WeightType;

/// Share of the free memory the KV cache takes by default.
const KV_SHARE_OF_FREE: u64 = 4;
/// Of a GPU: the context, the kernels, cuBLASLt's workspace, captured graphs.
pub const GPU_RESERVE_BYTES: u64 = 768 << 20;
/// Rows with logits in a step: enough to score a prompt in reasonable chunks.
pub const MIN_LOGIT_ROWS: usize = 64;

/// Memory of a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuMemory {
    pub total: u64,
    pub free: u64,
}

/// Bytes of a GPU that the KV cache cannot have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuNeeds {
    pub weights: u64,
    pub workspace: u64,
    pub reserve: u64,
    /// Of other models.
    pub beside: u64,
}

impl GpuNeeds {
    pub fn of(config: &Config, checkpoint: &Checkpoint, beside: u64) -> GpuNeeds {
        let spec = &checkpoint.spec;
        let (rows, logit_rows) =
            (config.batched_tokens() as u64, config.sequences().max(MIN_LOGIT_ROWS) as u64);
        let row =
            4 * (2 * spec.hidden + 2 * spec.q_width() + 2 * spec.kv_width() + 3 * spec.intermediate) as u64;
        let scratch = kernels::scratch_bytes(spec.heads, spec.kv_heads, spec.head_dim) as u64;
        // A matrix of FP8 or of blocks is multiplied out before its product, and that of all experts is one.
        let dense = (2 * spec.intermediate).max(spec.q_width() + 2 * spec.kv_width());
        let stacked = spec.experts.as_ref().map_or(0, |e| 2 * e.gating.experts * e.intermediate);
        let shared = spec.experts.as_ref().and_then(|e| e.shared).map_or(0, |s| 2 * s.intermediate);
        let widest = dense.max(stacked).max(shared) * spec.hidden;
        let held = held(config, checkpoint);
        let x = held.activations.size_in_bytes();
        let of_experts =
            spec.experts.as_ref().map_or(0, |experts| ExpertRoom::row_bytes(experts, spec.hidden, x));
        let of = |kind, numbers| match kind {
            WeightType::Fp8 | WeightType::Blocks(_) => numbers * x,
            _ => 0,
        };
        let room = of(held.layers, widest).max(of(held.head, spec.vocab * spec.hidden));
        let logits = 4 * logit_rows * (2 * spec.hidden + 2 * spec.vocab) as u64;
        GpuNeeds {
            weights: weight_bytes(config, checkpoint).0,
            workspace: scratch + room as u64 + rows * (row + of_experts as u64) + logits,
            reserve: GPU_RESERVE_BYTES,
            beside,
        }
    }

    pub fn total(&self) -> u64 {
        self.weights + self.workspace + self.reserve + self.beside
    }

    /// Bytes left for the KV cache; 0 where there is no room.
    fn room(&self, config: &Config, memory: GpuMemory) -> u64 {
        let taken = (memory.total - memory.free) + self.total();
        ((memory.total as f64 * config.gpu_memory_utilization) as u64).saturating_sub(taken)
    }
}

/// Bytes for the KV cache of a GPU, which `name` names.
///
/// # Errors
/// None are left, in numbers.
pub fn gpu_cache(config: &Config, needs: &GpuNeeds, name: &str, memory: GpuMemory) -> anyhow::Result<u64> {
    let GpuMemory { total, free } = memory;
    match needs.room(config, memory) {
        0 => bail!(
            "{name}: of {total} bytes {free} are free; weights and workspace need {}: lower \
             --max-num-batched-tokens, raise --gpu-memory-utilization, or take a smaller model",
            needs.total()
        ),
        room => Ok(room),
    }
}

/// Whether the devices have products for the type that a model's layers are held in.
///
/// # Errors
/// They have not, by the type's name. Weights that are to be rounded, and are already.
pub fn check_products(config: &Config, checkpoint: &Checkpoint) -> anyhow::Result<()> {
    checkpoint.check_rounding(config.quantize)?;
    let held = held(config, checkpoint);
    if let WeightType::Blocks(format) = held.layers
        && on_gpus(config)
        && held.activations != DType::BF16
    {
        let packed = checkpoint.source.four_bit();
        let of = packed.map_or(String::new(), |packed| format!(", made of {}'s,", packed.how().name()));
        bail!(
            "weights of type {}{of} meet bf16 activations alone on GPUs: leave --dtype at auto, or take --device cpu",
            format.name()
        );
    }
    Ok(())
}

/// Weights that are made or rounded when they are loaded must lie in memory; those of a file may stay there.
fn are_made(config: &Config, checkpoint: &Checkpoint) -> bool {
    matches!(checkpoint.source, WeightSource::Synthetic(_))
        || checkpoint.source.four_bit().is_some()
        || checkpoint.source.has_stacks()
        || matches!(held(config, checkpoint).layers, WeightType::Blocks(_))
        || config.quantize != Quantize::AsStored
        || config.precision != Precision::AsStored
}

/// Whether a processor's memory holds the weights; a word where it does not and they may stay in their file.
///
/// # Errors
/// It does not and must, in numbers.
pub fn check_weights(
    config: &Config,
    checkpoint: &Checkpoint,
    available: u64,
) -> anyhow::Result<Option<String>> {
    let needed = weight_bytes(config, checkpoint).0;
    if needed <= available {
        return Ok(None);
    }
    let problem = format!(
        "the weights of {} are {:.1} GiB and {:.1} GiB of memory are available",
        checkpoint.name,
        gib(needed),
        gib(available)
    );
    if are_made(config, checkpoint) {
        let fp8 = if checkpoint.source.four_bit().is_some() { "" } else { ", or --quantization fp8" };
        bail!("{problem}: take a smaller model{fp8}");
    }
    Ok(Some(format!("{problem}: they are read from the disk again and again")))
}

/// A word where matrices of four bits are held in more.
pub fn word_of_multiplied_out(config: &Config, checkpoint: &Checkpoint) -> Option<String> {
    let packed = checkpoint.source.four_bit()?;
    let (out, all) = packed.multiplied_out();
    (out > 0).then(|| {
        format!(
            "{out} of {all} matrices of 4 bits are multiplied out (about {:.1} GiB in all): {}",
            gib(weight_bytes(config, checkpoint).0),
            "their groups of inputs do not lie side by side (desc_act), or their scales are no float16"
        )
    })
}

pub fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

/// Bytes for the KV caches of a processor's engines together, unless they are said: never what the weights will take.
pub fn processor_cache(
    config: &Config,
    checkpoint: &Checkpoint,
    draft: Option<&Checkpoint>,
    available: u64,
) -> u64 {
    let made = [Some(checkpoint), draft].into_iter().flatten().filter(|model| are_made(config, model));
    let made: u64 = made.map(|model| weight_bytes(config, model).0).sum();
    (available / KV_SHARE_OF_FREE).min(available.saturating_sub(made))
}

/// The KV cache of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cache {
    pub blocks: usize,
    pub block_bytes: u64,
    pub max_model_len: usize,
}

impl Cache {
    /// Of `budget` bytes, and no larger than all sequences can fill.
    ///
    /// # Errors
    /// A context that the model does not have, or that there is no room for.
    pub fn of(
        config: &Config,
        checkpoint: &Checkpoint,
        draft: Option<&Checkpoint>,
        budget: u64,
    ) -> anyhow::Result<Cache> {
        let spec = &checkpoint.spec;
        if let Some(asked) = config.max_model_len.filter(|l| *l > spec.max_positions) {
            bail!("max-model-len = {asked}: the model's context is {} tokens", spec.max_positions);
        }
        let context = config.max_model_len.unwrap_or(spec.max_positions);
        let wanted = config.sequences() * context.div_ceil(BLOCK_SIZE);
        let of = |model| block_bytes(model, held(config, model).cache);
        // A draft model has as many blocks of its own.
        let block_bytes = of(checkpoint) + draft.map_or(0, of);
        let blocks = wanted.min(usize::try_from(budget / block_bytes).unwrap_or(usize::MAX));
        let room = blocks * BLOCK_SIZE;
        if room < 2 * BLOCK_SIZE || config.max_model_len.is_some_and(|l| l > room) {
            bail!(
                "the KV cache of {budget} bytes per device has room for {room} tokens, and one sequence may have \
                 {context}: raise --kv-memory or lower --max-model-len"
            );
        }
        Ok(Cache { blocks, block_bytes, max_model_len: context.min(room) })
    }
}

/// Bytes of a block of the cache over all layers.
pub fn block_bytes(checkpoint: &Checkpoint, cache: CacheType) -> u64 {
    KvCache::block_bytes(&checkpoint.spec, cache) as u64
}
