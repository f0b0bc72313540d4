//! A decoder copied to a device's memory.

use candle_core::{DType, Device, Result};

use super::feed_forward::{Experts, FeedForward, Mlp, Stack};
use super::{Decoder, Layer, Matrix, Projection};
use crate::ops::weight::{Weight, WeightType};

impl Decoder {
    /// The same in a device's memory, matrices over the same input as one.
    ///
    /// # Errors
    /// A device without room.
    pub fn on_device(&self, device: &Device) -> Result<Decoder> {
        if self.rank.is_some() {
            candle_core::bail!("a part of a model for several ranks runs on the CPU only")
        }
        let one = |weight: &Weight| Weight::on_device(&[weight], device);
        // Products take both sides of one type; blocks take what they were loaded for.
        let of_blocks = |weight: &Weight| matches!(weight.kind(), WeightType::Blocks(_));
        let activations = match self.layers.iter().flat_map(Layer::weights).chain([&self.head]).any(of_blocks)
        {
            true => self.activations,
            false => self.head.kind().dtype(),
        };
        let of_product = |weight: &Weight| match (weight.kind(), activations) {
            (WeightType::Fp8 | WeightType::Blocks(_), _) => weight.clone(),
            (WeightType::F32 | WeightType::F16, DType::BF16) => weight.to_bf16(),
            (WeightType::F32 | WeightType::Bf16, DType::F16) => weight.to_f16(),
            (WeightType::F16 | WeightType::Bf16, DType::F32) => weight.to_f32(),
            _ => weight.clone(),
        };
        let together = |matrices: &[Matrix]| {
            let weights: Vec<Weight> = matrices.iter().map(|m| of_product(&m.weight)).collect();
            let weights: Vec<&Weight> = weights.iter().collect();
            let biases: Vec<&Weight> = matrices.iter().filter_map(|m| m.bias.as_ref()).collect();
            let bias = match biases.as_slice() {
                [] => None,
                // A bias is a row: side by side they are one longer row.
                all => Some(Weight::vector(all.iter().flat_map(|b| b.f32s()).copied().collect())),
            };
            let bias = bias.as_ref().map(one).transpose()?;
            Ok::<_, candle_core::Error>(Matrix { weight: Weight::on_device(&weights, device)?, bias })
        };
        let projection = |projection: &Projection| {
            // A checkpoint may leave some of the matrices as they were, and round the others to FP8.
            let alike = projection.0.chunk_by(|a, b| a.weight.stacks_with(&b.weight));
            alike.map(together).collect::<Result<_>>().map(Projection)
        };
        let mlp = |mlp: &Mlp| {
            Ok::<_, candle_core::Error>(Mlp {
                gate_up: projection(&mlp.gate_up)?,
                down: projection(&mlp.down)?,
            })
        };
        // Those of all experts as one, an expert's side by side.
        let stacked = |kinds: &[Stack]| {
            let each = |expert| kinds.iter().map(move |of_kind| of_product(&of_kind.weights[expert]));
            let all: Vec<Weight> = (0..kinds[0].weights.len()).flat_map(each).collect();
            if !all.windows(2).all(|two| two[0].stacks_with(&two[1])) {
                candle_core::bail!("experts whose matrices are of several types have no product on GPUs")
            }
            let bias = |expert: usize| kinds.iter().flat_map(move |of_kind| of_kind.biases[expert].f32s());
            let biases: Vec<f32> = (0..kinds[0].biases.len()).flat_map(bias).copied().collect();
            let biases = if biases.is_empty() { Vec::new() } else { vec![one(&Weight::vector(biases))?] };
            let weights = vec![Weight::on_device(&all.iter().collect::<Vec<_>>(), device)?];
            Ok::<_, candle_core::Error>(Stack { weights, biases })
        };
        let experts = |experts: &Experts| {
            Ok::<_, candle_core::Error>(Experts {
                gating: experts.gating,
                router: together(std::slice::from_ref(&experts.router))?,
                gate_up: vec![stacked(&experts.gate_up)?],
                down: stacked(std::slice::from_ref(&experts.down))?,
                shared: match &experts.shared {
                    Some((shared, gate)) => {
                        Some((mlp(shared)?, gate.as_ref().map(|gate| one(&of_product(gate))).transpose()?))
                    }
                    None => None,
                },
            })
        };
        let layer = |layer: &Layer| {
            let norms = layer.qk_norms.as_ref();
            let some = |norm: &Option<Weight>| norm.as_ref().map(one).transpose();
            Ok::<_, candle_core::Error>(Layer {
                input_norm: some(&layer.input_norm)?,
                qkv: projection(&layer.qkv)?,
                o: projection(&layer.o)?,
                qk_norms: norms.map(|[q, k]| Ok::<_, candle_core::Error>([one(q)?, one(k)?])).transpose()?,
                sinks: some(&layer.sinks)?,
                attention_out_norm: some(&layer.attention_out_norm)?,
                mlp_norm: some(&layer.mlp_norm)?,
                feed_forward: match &layer.feed_forward {
                    FeedForward::Dense(dense) => FeedForward::Dense(mlp(dense)?),
                    FeedForward::Experts(all) => FeedForward::Experts(Box::new(experts(all)?)),
                },
                mlp_out_norm: some(&layer.mlp_out_norm)?,
                cache_scales: layer.cache_scales,
                rope: layer.rope,
            })
        };
        let embedding = one(&of_product(&self.embedding))?;
        Ok(Decoder {
            spec: self.spec.clone(),
            activations,
            cache: self.cache,
            head: if self.spec.tied_head { embedding.clone() } else { one(&of_product(&self.head))? },
            embedding,
            layers: self.layers.iter().map(layer).collect::<Result<_>>()?,
            final_norm: one(&self.final_norm)?,
            inverse_frequencies: self.inverse_frequencies.iter().map(one).collect::<Result<_>>()?,
            rank: None,
        })
    }
}
