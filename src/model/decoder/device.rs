//! A decoder copied to a device's memory.

use candle_core::{DType, Device, Result, bail};

use super::feed_forward::{Experts, FeedForward, Mlp, Stack};
use super::{Decoder, Layer, Matrix, Projection};
use crate::ops::weight::{Weight, WeightType};

impl Decoder {
    /// The same in a device's memory, matrices over the same input as one.
    ///
    /// # Errors
    /// A device without room, experts whose matrices are of several types.
    pub fn on_device(&self, device: &Device) -> Result<Decoder> {
        if self.rank.is_some() {
            bail!("a part of a model for several ranks runs on the CPU only")
        }
        // Products take both sides of one type; blocks take what they were loaded for.
        let of_blocks = |weight: &Weight| matches!(weight.kind(), WeightType::Blocks(_));
        let activations = match self.layers.iter().flat_map(Layer::weights).chain([&self.head]).any(of_blocks)
        {
            true => self.activations,
            false => self.head.kind().dtype(),
        };
        let to = To { device, activations };
        let embedding = to.matrix(&self.embedding)?;
        Ok(Decoder {
            spec: self.spec.clone(),
            activations,
            cache: self.cache,
            head: if self.spec.tied_head { embedding.clone() } else { to.matrix(&self.head)? },
            embedding,
            layers: self.layers.iter().map(|layer| to.layer(layer)).collect::<Result<_>>()?,
            final_norm: to.as_is(&self.final_norm)?,
            inverse_frequencies: self
                .inverse_frequencies
                .iter()
                .map(|all| to.as_is(all))
                .collect::<Result<_>>()?,
            rank: None,
        })
    }
}

/// Where weights go, and the type of what they are multiplied by there.
struct To<'a> {
    device: &'a Device,
    activations: DType,
}

impl To<'_> {
    fn as_is(&self, weight: &Weight) -> Result<Weight> {
        Weight::on_device(&[weight], self.device)
    }

    fn some(&self, weight: &Option<Weight>) -> Result<Option<Weight>> {
        weight.as_ref().map(|weight| self.as_is(weight)).transpose()
    }

    /// A matrix in a type that it has a product in.
    fn of_product(&self, weight: &Weight) -> Weight {
        match (weight.kind(), self.activations) {
            (WeightType::Fp8 | WeightType::Blocks(_), _) => weight.clone(),
            (WeightType::F32 | WeightType::F16, DType::BF16) => weight.to_bf16(),
            (WeightType::F32 | WeightType::Bf16, DType::F16) => weight.to_f16(),
            (WeightType::F16 | WeightType::Bf16, DType::F32) => weight.to_f32(),
            _ => weight.clone(),
        }
    }

    fn matrix(&self, weight: &Weight) -> Result<Weight> {
        self.as_is(&self.of_product(weight))
    }

    fn stacked(&self, weights: &[Weight]) -> Result<Weight> {
        Weight::on_device(&weights.iter().collect::<Vec<_>>(), self.device)
    }

    /// A bias is a row: side by side they are one longer row.
    fn side_by_side<'w>(&self, biases: impl Iterator<Item = &'w Weight>) -> Result<Option<Weight>> {
        let all: Vec<f32> = biases.flat_map(Weight::f32s).copied().collect();
        if all.is_empty() { Ok(None) } else { self.as_is(&Weight::vector(all)).map(Some) }
    }

    fn together(&self, matrices: &[Matrix]) -> Result<Matrix> {
        let weights: Vec<Weight> = matrices.iter().map(|m| self.of_product(&m.weight)).collect();
        let bias = self.side_by_side(matrices.iter().filter_map(|m| m.bias.as_ref()))?;
        Ok(Matrix { weight: self.stacked(&weights)?, bias })
    }

    fn projection(&self, projection: &Projection) -> Result<Projection> {
        // A checkpoint may leave some of the matrices as they were, and round the others to FP8.
        let alike = projection.0.chunk_by(|a, b| a.weight.stacks_with(&b.weight));
        alike.map(|matrices| self.together(matrices)).collect::<Result<_>>().map(Projection)
    }

    fn mlp(&self, mlp: &Mlp) -> Result<Mlp> {
        Ok(Mlp { gate_up: self.projection(&mlp.gate_up)?, down: self.projection(&mlp.down)? })
    }

    /// Those of all experts as one, an expert's side by side.
    fn stack(&self, kinds: &[Stack]) -> Result<Stack> {
        let weights = |expert: usize| kinds.iter().map(move |kind| &kind.weights[expert]);
        let all = (0..kinds[0].weights.len()).flat_map(weights).map(|weight| self.of_product(weight));
        let all: Vec<Weight> = all.collect();
        if !all.windows(2).all(|two| two[0].stacks_with(&two[1])) {
            bail!("experts whose matrices are of several types have no product on GPUs")
        }
        let biases = |expert: usize| kinds.iter().map(move |kind| &kind.biases[expert]);
        let biases = self.side_by_side((0..kinds[0].biases.len()).flat_map(biases))?;
        Ok(Stack { weights: vec![self.stacked(&all)?], biases: biases.into_iter().collect() })
    }

    fn experts(&self, experts: &Experts) -> Result<Experts> {
        let shared = experts.shared.as_ref().map(|(mlp, gate)| {
            let gate = gate.as_ref().map(|gate| self.matrix(gate)).transpose()?;
            Ok::<_, candle_core::Error>((self.mlp(mlp)?, gate))
        });
        Ok(Experts {
            gating: experts.gating,
            router: self.together(std::slice::from_ref(&experts.router))?,
            gate_up: vec![self.stack(&experts.gate_up)?],
            down: self.stack(std::slice::from_ref(&experts.down))?,
            shared: shared.transpose()?,
        })
    }

    fn layer(&self, layer: &Layer) -> Result<Layer> {
        let norms = layer.qk_norms.as_ref();
        Ok(Layer {
            input_norm: self.some(&layer.input_norm)?,
            qkv: self.projection(&layer.qkv)?,
            o: self.projection(&layer.o)?,
            qk_norms: norms
                .map(|[q, k]| Ok::<_, candle_core::Error>([self.as_is(q)?, self.as_is(k)?]))
                .transpose()?,
            sinks: self.some(&layer.sinks)?,
            attention_out_norm: self.some(&layer.attention_out_norm)?,
            mlp_norm: self.some(&layer.mlp_norm)?,
            feed_forward: match &layer.feed_forward {
                FeedForward::Dense(mlp) => FeedForward::Dense(self.mlp(mlp)?),
                FeedForward::Experts(experts) => FeedForward::Experts(Box::new(self.experts(experts)?)),
            },
            mlp_out_norm: self.some(&layer.mlp_out_norm)?,
            cache_scales: layer.cache_scales,
            rope: layer.rope,
        })
    }
}
