//! The types that a model's parts are held in, and their bytes, before they are read.

use candle_core::DType;

use super::assemble::on_gpus;
use crate::config::Config;
use crate::model::Checkpoint;
use crate::model::decoder::{self, Precision, Quantize};
use crate::model::kv_cache::CacheType;
use crate::model::spec::{DecoderSpec, FloatType};
use crate::model::weights::WeightSource;
use crate::model::weights::packed::FourBitTable;
use crate::model::weights::safetensors::TensorTable;
use crate::ops::blocks::Format;
use crate::ops::weight::WeightType;

/// Type of the activations.
pub fn activations(config: &Config, checkpoint: &Checkpoint) -> DType {
    let of_blocks = match (&checkpoint.source, config.quantize) {
        (_, Quantize::Blocks(_)) => true,
        (WeightSource::Gguf(table), _) => table.has_blocks(),
        (source, _) => source.four_bit().is_some_and(FourBitTable::has_blocks),
    };
    match (config.precision, checkpoint.spec.float_type) {
        (Precision::Bf16, _) | (Precision::AsStored, FloatType::Bf16) => DType::BF16,
        (Precision::AsStored, _) if of_blocks => DType::BF16,
        // A GPU multiplies f16 by f16; the CPU's kernels take f32 beside f16 weights.
        (Precision::F16, _) | (Precision::AsStored, FloatType::F16) if on_gpus(config) => DType::F16,
        _ => DType::F32,
    }
}

/// Whether the matrices of layers are FP8.
pub fn is_fp8(config: &Config, checkpoint: &Checkpoint) -> bool {
    config.quantize == Quantize::Fp8 || checkpoint.source.is_fp8()
}

/// The types that a model's parts are held in.
#[derive(Debug, Clone, Copy)]
pub struct Held {
    pub activations: DType,
    pub layers: WeightType,
    pub head: WeightType,
    pub cache: CacheType,
}

impl Held {
    fn of(config: &Config, activations: DType, (layers, head): (WeightType, WeightType)) -> Held {
        let cache = config.cache.unwrap_or(CacheType::like(activations));
        Held { activations, layers, head, cache }
    }
}

/// The type of weights that are plain numbers.
fn plain(config: &Config, checkpoint: &Checkpoint) -> WeightType {
    // They stay as they are stored unless they were asked for in another type, or a GPU wants them in one.
    match (config.precision, checkpoint.spec.float_type) {
        (Precision::AsStored, FloatType::F16) | (Precision::F16, _) => WeightType::F16,
        _ => WeightType::of(activations(config, checkpoint)).unwrap_or(WeightType::F32),
    }
}

pub fn held(config: &Config, checkpoint: &Checkpoint) -> Held {
    let (activations, head) = (activations(config, checkpoint), plain(config, checkpoint));
    if let (Quantize::AsStored, Some(packed)) = (config.quantize, checkpoint.source.four_bit()) {
        let table = packed.kind(checkpoint.spec.names.head, head).unwrap_or(head);
        return Held::of(config, activations, (packed.kinds(head), table));
    }
    let (layers, head) = match (config.quantize, &checkpoint.source) {
        (Quantize::AsStored, WeightSource::Gguf(table)) => table.kinds(),
        (Quantize::Blocks(format), _) => {
            let table = format.of_tables();
            let fits = |format: Format| format.for_width(checkpoint.spec.hidden).map(WeightType::Blocks);
            (fits(format).unwrap_or(head), fits(table).unwrap_or(head))
        }
        _ if is_fp8(config, checkpoint) => (WeightType::Fp8, head),
        _ => (head, head),
    };
    Held::of(config, activations, (layers, head))
}

/// Bytes of all weights as they are held, and of those that a decode step reads.
pub fn weight_bytes(config: &Config, checkpoint: &Checkpoint) -> (u64, u64) {
    if let (WeightSource::Gguf(table), Quantize::AsStored, Precision::AsStored) =
        (&checkpoint.source, config.quantize, config.precision)
    {
        return table.held_bytes(checkpoint.spec.experts.as_ref());
    }
    if let (Quantize::AsStored, Some(packed)) = (config.quantize, checkpoint.source.four_bit()) {
        let (spec, plain) = (&checkpoint.spec, plain(config, checkpoint));
        return sums(spec, |name, shape| packed.held_bytes(name, shape, plain) as u64);
    }
    if let (WeightSource::Safetensors(table), Quantize::AsStored) = (&checkpoint.source, config.quantize)
        && !table.is_fp8()
        && !on_gpus(config)
    {
        return bytes_of_folder(config.precision, &checkpoint.spec, table);
    }
    let (spec, held) = (&checkpoint.spec, held(config, checkpoint));
    let bytes = |(layers, table)| held.layers.size(layers) + held.head.size(table);
    let looked_up = if spec.tied_head { 0 } else { held.head.size(spec.vocab * spec.hidden) };
    ((bytes(spec.held_parameters()) + looked_up) as u64, bytes(spec.step_parameters()) as u64)
}

/// The same of a folder on a processor, where each matrix stays in the type that it is stored in, or is asked for in.
fn bytes_of_folder(precision: Precision, spec: &DecoderSpec, table: &TensorTable) -> (u64, u64) {
    // What decides between experts is f32 in place of f16.
    let decides = |name: &str| {
        let deciding = spec.names.experts.iter().flat_map(|names| [names.router, names.shared_gate]);
        let mut ends =
            deciding.filter_map(|pattern| Some(format!("{}.weight", pattern.rsplit_once("{}")?.1)));
        ends.any(|end| name.ends_with(&end))
    };
    sums(spec, |name, shape| {
        if shape.len() != 2 {
            return 0;
        }
        let wanted = match precision {
            Precision::AsStored => table.float_type(name),
            Precision::F32 => Some(FloatType::F32),
            Precision::F16 => Some(FloatType::F16),
            Precision::Bf16 => Some(FloatType::Bf16),
        };
        let kind = match wanted {
            Some(FloatType::F16) if !decides(name) => WeightType::F16,
            Some(FloatType::Bf16) => WeightType::Bf16,
            _ => WeightType::F32,
        };
        kind.size(shape.iter().product()) as u64
    })
}

/// Bytes of all tensors, and of those that a step of one row reads.
fn sums(spec: &DecoderSpec, bytes: impl Fn(&str, &[usize]) -> u64) -> (u64, u64) {
    let of = |(name, shape): (String, Vec<usize>)| bytes(&name, &shape);
    let all = decoder::tensors(spec).map(of).sum();
    let looked_up = if spec.tied_head { 0 } else { bytes(spec.names.embedding, &[spec.vocab, spec.hidden]) };
    let of_experts = decoder::tensors(spec).filter(|(name, _)| name.contains("experts.")).map(of).sum();
    let unread = spec.experts.as_ref().map_or(0, |experts| experts.gating.unread(of_experts));
    (all, all - looked_up - unread)
}
