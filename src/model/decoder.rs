//! The one transformer: a spec, its weights, and a forward pass over the rows of a step.
//!
//! Step input → logits in the workspace. It reads flags of the spec, never a model's name, and never
//! asks a weight's type. One forward serves prefill, decode and anything between.

use std::sync::OnceLock;

use candle_core::{DType, Result, Tensor};

use super::LoadError;
use super::input::StepView;
use super::kv_cache::{CacheType, KvCache};
use super::spec::{DecoderSpec, QkNorm};
use super::weights::WeightSource;
use super::workspace::Workspace;
use crate::ops::activation::SoftCap;
use crate::ops::all_reduce::{AllReduce, Rank};
use crate::ops::exec::Exec;
use crate::ops::gather::{Gather, SelectRows};
use crate::ops::gemv::NormProduct;
use crate::ops::kv_write::CacheScales;
use crate::ops::linear::Linear;
use crate::ops::paged_attention::{AttentionPlan, PagedAttention};
use crate::ops::rms_norm::{AddNormed, AsIs, NormSides, RmsNorm};
use crate::ops::rope::{self, Rope, RopeAngles};
use crate::ops::weight::{Weight, WeightType};

mod device;
mod feed_forward;
mod load;
mod shard;
use feed_forward::FeedForward;
pub use load::{Quantize, Reading, tensors};

/// How the numbers of a checkpoint are held and computed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// As stored: bf16 weights with bf16 activations, f16 and f32 weights with f32 activations.
    AsStored,
    F32,
    F16,
    Bf16,
}

#[derive(Clone)]
struct Matrix {
    weight: Weight,
    bias: Option<Weight>,
}

/// Matrices over the same input, whose outputs lie side by side. Each stays where its file has it.
#[derive(Clone)]
struct Projection(Vec<Matrix>);

/// A norm is `None` where the model has none.
#[derive(Clone)]
struct Layer {
    input_norm: Option<Weight>,
    qkv: Projection,
    o: Projection,
    /// Of queries and keys: of each head, or of all together.
    qk_norms: Option<[Weight; 2]>,
    sinks: Option<Weight>,
    /// Of what attention adds to the residual.
    attention_out_norm: Option<Weight>,
    mlp_norm: Option<Weight>,
    feed_forward: FeedForward,
    mlp_out_norm: Option<Weight>,
    /// Of what an FP8 cache stores.
    cache_scales: CacheScales,
    /// Which positions it has, by their place among the decoder's.
    rope: usize,
}

impl Layer {
    /// Every matrix.
    fn weights(&self) -> impl Iterator<Item = &Weight> {
        self.qkv.weights().chain(self.o.weights()).chain(self.feed_forward.weights())
    }

    fn weights_mut(&mut self) -> impl Iterator<Item = &mut Weight> {
        self.qkv.weights_mut().chain(self.o.weights_mut()).chain(self.feed_forward.weights_mut())
    }
}

/// A loaded model. Immutable; replicas on one host share it.
pub struct Decoder {
    spec: DecoderSpec,
    activations: DType,
    cache: Option<CacheType>,
    embedding: Weight,
    layers: Vec<Layer>,
    final_norm: Weight,
    head: Weight,
    /// A kind of positions each: `[1, head_dim / 2]`.
    inverse_frequencies: Vec<Weight>,
    /// Of a part of a model, whose ranks add up what they compute.
    rank: Option<Rank>,
}

impl Decoder {
    /// Reads every tensor of the spec. `progress` is called with the share done, 0..=1.
    ///
    /// # Errors
    /// Names file and tensor: missing, wrong shape or type, NaN or infinite numbers.
    pub fn load(
        spec: &DecoderSpec,
        source: &WeightSource,
        reading: Reading,
        progress: &dyn Fn(f32),
    ) -> std::result::Result<Decoder, LoadError> {
        load::Loader { spec, source, reading, progress, pool: OnceLock::new() }.decoder()
    }

    pub fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    pub fn activations(&self) -> DType {
        self.activations
    }

    /// The model without the layers behind the first `count`, of the same weights.
    ///
    /// # Panics
    /// Of a part of a model, which is no model by itself.
    #[must_use]
    pub fn first_layers(&self, count: usize) -> Decoder {
        assert!(self.rank.is_none(), "a part of a model for several ranks has no first layers");
        let layers = self.layers[..count.min(self.layers.len())].to_vec();
        Decoder {
            spec: DecoderSpec { layers: layers.len(), ..self.spec.clone() },
            activations: self.activations,
            cache: self.cache,
            embedding: self.embedding.clone(),
            layers,
            final_norm: self.final_norm.clone(),
            head: self.head.clone(),
            inverse_frequencies: self.inverse_frequencies.clone(),
            rank: None,
        }
    }

    /// The model with nothing for a head: in place of the first `hidden` logits stands the last hidden state, after its
    /// norm.
    #[must_use]
    pub fn headless(mut self) -> Decoder {
        let width = self.spec.hidden;
        let mut identity = vec![0.0; width * width];
        identity.iter_mut().step_by(width + 1).for_each(|x| *x = 1.0);
        let identity = Weight::from_f32(identity, width, width);
        self.head = if self.activations == DType::BF16 { identity.to_bf16() } else { identity };
        self
    }

    /// Keeps keys and values as FP8, Q8, or what the activations are.
    #[must_use]
    pub fn with_cache(mut self, cache: CacheType) -> Decoder {
        self.cache = Some(cache);
        self
    }

    /// Type of the KV cache: that of the activations unless another was asked for.
    pub fn cache_type(&self) -> CacheType {
        self.cache.unwrap_or(CacheType::like(self.activations))
    }

    /// Bytes of all matrices, as held.
    pub fn weight_bytes(&self) -> usize {
        let layers: usize = self.layers.iter().flat_map(Layer::weights).map(Weight::bytes).sum();
        let head = if self.spec.tied_head { 0 } else { self.head.bytes() };
        layers + self.embedding.bytes() + head
    }

    /// Of the largest matrix that kernels multiply out before its product.
    pub fn dequantised_bytes(&self) -> usize {
        let weights = self.layers.iter().flat_map(Layer::weights).chain([&self.head]);
        let multiplied_out = weights.filter(|w| matches!(w.kind(), WeightType::Fp8 | WeightType::Blocks(_)));
        multiplied_out.map(|w| w.rows() * w.cols()).max().unwrap_or(0) * self.activations().size_in_bytes()
    }

    /// One pass over the step's rows; the logits of `input.logit_rows` are in `ws.logits` afterwards.
    pub fn forward(&self, input: &StepView<'_>, ws: &Workspace, cache: &KvCache, on: &Exec) -> Result<()> {
        let done = self.pass(input, ws, cache, on);
        if let (Err(_), Some(rank)) = (&done, &self.rank) {
            // The others must not wait for this one.
            rank.leave();
        }
        done
    }

    fn pass(&self, input: &StepView<'_>, ws: &Workspace, cache: &KvCache, on: &Exec) -> Result<()> {
        let rows = input.tokens.host.len();
        let (table, ids, sampled) = (&self.embedding, input.tokens, input.sampled);
        let scale = self.spec.embedding_scale;
        ws.residual.inplace_op1(&Gather { table, ids, sampled, scale, on })?;
        for ((rope, inverse_frequencies), angles) in
            self.spec.ropes.iter().zip(&self.inverse_frequencies).zip(&ws.angles)
        {
            let (positions, length) = (input.positions, rope.length());
            angles.inplace_op1(&RopeAngles { positions, inverse_frequencies, length, on })?;
        }
        for (index, layer) in self.layers.iter().enumerate() {
            self.attention(index, layer, input, ws, cache, on)?;
            self.feed_forward(layer, rows, ws, on)?;
        }
        let logit_rows = input.logit_rows;
        if logit_rows.host.is_empty() {
            return Ok(());
        }
        let select = SelectRows { rows: logit_rows, width: self.spec.hidden, on };
        ws.selected.inplace_op2(&ws.residual, &select)?;
        let rows = logit_rows.host.len();
        let norm = self.norm(&self.final_norm, rows, on);
        let (weight, bias, activations) = (&self.head, None, self.activations);
        if !(NormProduct { norm, weight, bias, activations, on }).product(&ws.logits, &ws.selected)? {
            ws.selected_normed.inplace_op2(&ws.selected, &self.norm(&self.final_norm, rows, on))?;
            let head = Linear { weight, bias, rows, column: 0, accumulate: false, on };
            ws.logits.inplace_op2(&ws.selected_normed, &head)?;
        }
        match self.spec.logit_cap {
            Some(cap) => ws.logits.inplace_op1(&SoftCap { cap, rows, width: self.spec.vocab, on }),
            None => Ok(()),
        }
    }

    fn norm<'a>(&self, weight: &'a Weight, rows: usize, on: &'a Exec) -> RmsNorm<'a> {
        RmsNorm { weight, eps: self.spec.norm_eps, rows, on }
    }

    fn attention(
        &self,
        index: usize,
        layer: &Layer,
        input: &StepView<'_>,
        ws: &Workspace,
        cache: &KvCache,
        on: &Exec,
    ) -> Result<()> {
        let (s, kv) = (&self.spec, cache.layer(index));
        let (rows, heads, kv_heads, head_dim) = (input.tokens.host.len(), s.heads, s.kv_heads, s.head_dim);
        let norm = layer.input_norm.as_ref();
        let at_once = self.after(norm, &layer.qkv, rows, on);
        if !at_once.map_or(Ok(false), |op| op.product(&ws.qkv, &ws.residual))? {
            self.enter(norm, rows, ws, on)?;
            layer.qkv.product(&ws.qkv, &ws.normed, rows, false, on)?;
        }
        let mut norms = layer.qk_norms.as_ref().map(|weights| (weights, s.norm_eps));
        if let Some((weights, eps)) = norms.take_if(|_| s.qk_norm == QkNorm::Whole) {
            ws.qkv.inplace_op1(&NormSides { weights, eps, rows, on })?;
        }
        let scales = match kv.dtype() {
            DType::F8E4M3 => layer.cache_scales,
            _ => CacheScales::ONE,
        };
        let turn = Rope { rows, heads, kv_heads, head_dim, norms, scales, on };
        rope::rope_kv_write(&ws.qkv, &ws.angles[layer.rope], kv, &turn, input.slots)?;
        let plan = AttentionPlan {
            spans: input.spans,
            block_tables: input.block_tables,
            tiles: input.tiles,
            split_tiles: input.split_tiles,
            rows,
        };
        let (scale, limits) = (s.attention_scale, s.limits_of(index));
        let scratch = Some(&ws.attention_scratch);
        let sinks = layer.sinks.as_ref();
        let attend =
            PagedAttention { plan, kv, scales, heads, kv_heads, head_dim, scale, limits, sinks, scratch, on };
        ws.attention.inplace_op2(&ws.qkv, &attend)?;
        self.add(&layer.o, layer.attention_out_norm.as_ref(), ws, &ws.attention, rows, on)
    }

    /// A norm and the product behind it as one operation, where there is a norm and one matrix.
    fn after<'a>(
        &self,
        norm: Option<&'a Weight>,
        product: &'a Projection,
        rows: usize,
        on: &'a Exec,
    ) -> Option<NormProduct<'a>> {
        let [Matrix { weight, bias }] = product.0.as_slice() else { return None };
        let norm = self.norm(norm?, rows, on);
        Some(NormProduct { norm, weight, bias: bias.as_ref(), activations: self.activations, on })
    }

    /// The residual, normed where the model does, as a product takes it.
    fn enter(&self, norm: Option<&Weight>, rows: usize, ws: &Workspace, on: &Exec) -> Result<()> {
        match norm {
            Some(weight) => ws.normed.inplace_op2(&ws.residual, &self.norm(weight, rows, on)),
            None => ws.normed.inplace_op2(&ws.residual, &AsIs { width: self.spec.hidden, rows, on }),
        }
    }

    /// Adds a product to the residual, through a norm where there is one. Of ranks the first adds to it and the others
    /// put their part in its place, so that the sum over all is the residual with every part.
    fn add(
        &self,
        product: &Projection,
        norm: Option<&Weight>,
        ws: &Workspace,
        src: &Tensor,
        rows: usize,
        on: &Exec,
    ) -> Result<()> {
        let residual = &ws.residual;
        if let (Some(weight), Some(branch)) = (norm, &ws.branch) {
            product.product(branch, src, rows, false, on)?;
            if let Some(rank) = &self.rank {
                branch.inplace_op1(&AllReduce { rank, rows })?;
            }
            return residual.inplace_op2(branch, &AddNormed(self.norm(weight, rows, on)));
        }
        let Some(rank) = &self.rank else { return product.product(residual, src, rows, true, on) };
        product.product(residual, src, rows, rank.index() == 0, on)?;
        residual.inplace_op1(&AllReduce { rank, rows })
    }
}

impl Projection {
    fn weights(&self) -> impl Iterator<Item = &Weight> {
        self.0.iter().map(|matrix| &matrix.weight)
    }

    fn weights_mut(&mut self) -> impl Iterator<Item = &mut Weight> {
        self.0.iter_mut().map(|matrix| &mut matrix.weight)
    }

    fn product(&self, dst: &Tensor, src: &Tensor, rows: usize, accumulate: bool, on: &Exec) -> Result<()> {
        let mut column = 0;
        for Matrix { weight, bias } in &self.0 {
            let bias = bias.as_ref();
            dst.inplace_op2(src, &Linear { weight, bias, rows, column, accumulate, on })?;
            column += weight.rows();
        }
        Ok(())
    }
}
