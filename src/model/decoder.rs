//! The one transformer: a spec, its weights, and a forward pass over the rows of a step.
//!
//! Step input → logits in the workspace. It reads flags of the spec, never a model's name, and never
//! asks a weight's type. One forward serves prefill, decode and anything between.

use candle_core::{DType, Result, Tensor};

use super::LoadError;
use super::input::StepView;
use super::kv_cache::KvCache;
use super::spec::{DecoderSpec, FloatType};
use super::weights::WeightSource;
use super::workspace::Workspace;
use crate::ops::activation::SiluMul;
use crate::ops::all_reduce::{AllReduce, Rank};
use crate::ops::exec::Exec;
use crate::ops::gather::{Gather, SelectRows};
use crate::ops::gemv::NormProduct;
use crate::ops::kv_write::CacheScales;
use crate::ops::linear::Linear;
use crate::ops::paged_attention::{AttentionPlan, PagedAttention};
use crate::ops::rms_norm::RmsNorm;
use crate::ops::rope::{self, Rope, RopeAngles};
use crate::ops::weight::{Weight, WeightType};

mod device;
mod shard;

/// How the numbers of a checkpoint are held and computed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// As stored: bf16 weights with bf16 activations, f16 and f32 weights with f32 activations.
    AsStored,
    F32,
    F16,
    Bf16,
}

/// What becomes of the weights of products when they are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantize {
    /// FP8 where the checkpoint has it.
    AsStored,
    /// All but the embedding and the head, a scale for each output.
    Fp8,
}

/// How a checkpoint is read.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    pub precision: Precision,
    pub quantize: Quantize,
    /// Scan every weight for NaN, not only norms and embeddings.
    pub scan_all: bool,
}

#[derive(Clone)]
struct Matrix {
    weight: Weight,
    bias: Option<Weight>,
}

/// Matrices over the same input, whose outputs lie side by side. Each stays where its file has it.
#[derive(Clone)]
struct Projection(Vec<Matrix>);

#[derive(Clone)]
struct Layer {
    input_norm: Weight,
    qkv: Projection,
    o: Projection,
    /// Of queries and keys.
    head_norms: Option<[Weight; 2]>,
    post_attention_norm: Weight,
    gate_up: Projection,
    down: Projection,
    /// Of what an FP8 cache stores.
    cache_scales: CacheScales,
}

/// A loaded model. Immutable; replicas on one host share it.
pub struct Decoder {
    spec: DecoderSpec,
    activations: DType,
    cache: Option<DType>,
    embedding: Weight,
    layers: Vec<Layer>,
    final_norm: Weight,
    head: Weight,
    inverse_frequencies: Weight,
    /// Of a part of a model, whose ranks add up what they compute.
    rank: Option<Rank>,
}

/// The tensors of a decoder with their shapes, in the order they are used.
pub fn tensors(spec: &DecoderSpec) -> Vec<(String, Vec<usize>)> {
    let n = spec.names;
    let mut all = vec![(n.embedding.to_string(), vec![spec.vocab, spec.hidden])];
    for layer in 0..spec.layers {
        let mut projection = |name: &str, bias: bool, out: usize, input: usize| {
            let name = name.replace("{}", &layer.to_string());
            all.push((format!("{name}.weight"), vec![out, input]));
            if bias {
                all.push((format!("{name}.bias"), vec![out]));
            }
        };
        projection(n.q, spec.qkv_bias, spec.q_width(), spec.hidden);
        projection(n.k, spec.qkv_bias, spec.kv_width(), spec.hidden);
        projection(n.v, spec.qkv_bias, spec.kv_width(), spec.hidden);
        projection(n.o, spec.o_bias, spec.hidden, spec.q_width());
        projection(n.gate, spec.mlp_bias, spec.intermediate, spec.hidden);
        projection(n.up, spec.mlp_bias, spec.intermediate, spec.hidden);
        projection(n.down, spec.mlp_bias, spec.hidden, spec.intermediate);
        let mut norm = |name: &str, width: usize| {
            all.push((name.replace("{}", &layer.to_string()), vec![width]));
        };
        norm(n.input_norm, spec.hidden);
        norm(n.post_attention_norm, spec.hidden);
        if spec.qk_norm {
            norm(n.q_norm, spec.head_dim);
            norm(n.k_norm, spec.head_dim);
        }
    }
    all.push((n.final_norm.to_string(), vec![spec.hidden]));
    if !spec.tied_head {
        all.push((n.head.to_string(), vec![spec.vocab, spec.hidden]));
    }
    all
}

/// Reads a decoder's tensors from a source, converting and scanning as asked.
struct Loader<'a> {
    spec: &'a DecoderSpec,
    source: &'a WeightSource,
    reading: Reading,
    progress: &'a dyn Fn(f32),
}

impl Loader<'_> {
    fn finite(&self, name: &str, weight: Weight) -> std::result::Result<Weight, LoadError> {
        match weight.first_non_finite() {
            None => Ok(weight),
            Some(i) => {
                let problem = format!("element {i} is {}", weight.get(i));
                Err(LoadError::tensor(&self.source.file_of(name), name, problem))
            }
        }
    }

    fn matrix(&self, name: &str, shape: &[usize], scan: bool) -> std::result::Result<Weight, LoadError> {
        let stored = self.source.weight(name, shape)?;
        let weight = match self.reading.precision {
            // With FP8 weights the precision is that of what they meet.
            _ if stored.kind() == WeightType::Fp8 => stored,
            Precision::AsStored => stored,
            Precision::F32 => stored.to_f32(),
            Precision::F16 => stored.to_f16(),
            Precision::Bf16 => stored.to_bf16(),
        };
        if scan || self.reading.scan_all { self.finite(name, weight) } else { Ok(weight) }
    }

    fn product_weight(&self, name: &str, shape: &[usize]) -> std::result::Result<Weight, LoadError> {
        match self.reading.quantize {
            Quantize::AsStored => self.matrix(name, shape, false),
            // Read in full anyway, and one number that is not finite would spoil its row's scale.
            Quantize::Fp8 => Ok(self.finite(name, self.source.weight(name, shape)?)?.to_fp8()),
        }
    }

    /// An embedding or a head, which are looked up or decide between tokens: never FP8.
    fn table(&self, name: &str, scan: bool) -> std::result::Result<Weight, LoadError> {
        let weight = self.matrix(name, &[self.spec.vocab, self.spec.hidden], scan)?;
        match (weight.kind(), self.reading.precision, self.spec.float_type) {
            (WeightType::Fp8, Precision::F32, _) => Ok(weight.to_f32()),
            (WeightType::Fp8, Precision::F16, _) => Ok(weight.to_f16()),
            (WeightType::Fp8, Precision::AsStored, FloatType::F32) => Ok(weight.to_f32()),
            (WeightType::Fp8, Precision::AsStored, FloatType::F16) => Ok(weight.to_f16()),
            (WeightType::Fp8, ..) => Ok(weight.to_bf16()),
            _ => Ok(weight),
        }
    }

    /// Of an FP8 cache, under the names that quantisers give them; 1 where there are none.
    fn cache_scales(&self, layer: usize) -> std::result::Result<CacheScales, LoadError> {
        let find = |projection: &str, which: &str| {
            let projection = projection.replace("{}", &layer.to_string());
            let attention = projection.rsplit_once('.').map_or("", |(attention, _)| attention);
            let names = [
                format!("{attention}.{which}_scale"),
                format!("{attention}.attn.{which}_scale"),
                format!("{projection}.{which}_scale"),
                format!("{projection}.output_scale"),
            ];
            for name in names {
                match self.source.scalar(&name)? {
                    None => {}
                    Some(scale) if scale.is_finite() && scale > 0.0 => return Ok(scale),
                    Some(scale) => {
                        let problem = format!("is {scale}, not a finite number above 0");
                        return Err(LoadError::tensor(&self.source.file_of(&name), &name, problem));
                    }
                }
            }
            Ok(1.0)
        };
        Ok(CacheScales { k: find(self.spec.names.k, "k")?, v: find(self.spec.names.v, "v")? })
    }

    fn norm(&self, name: &str, layer: usize, width: usize) -> std::result::Result<Weight, LoadError> {
        let name = name.replace("{}", &layer.to_string());
        Ok(self.finite(&name, self.source.weight(&name, &[width])?)?.to_f32())
    }

    /// `parts`: names and outputs.
    fn projection(
        &self,
        layer: usize,
        parts: &[(&str, usize)],
        input: usize,
        bias: bool,
    ) -> std::result::Result<Projection, LoadError> {
        let part = |(name, out): &(&str, usize)| {
            let name = name.replace("{}", &layer.to_string());
            let weight = self.product_weight(&format!("{name}.weight"), &[*out, input])?;
            let bias = match bias {
                true => Some(self.matrix(&format!("{name}.bias"), &[*out], true)?.to_f32()),
                false => None,
            };
            Ok(Matrix { weight, bias })
        };
        parts.iter().map(part).collect::<std::result::Result<_, _>>().map(Projection)
    }

    fn layer(&self, l: usize) -> std::result::Result<Layer, LoadError> {
        let (s, n) = (self.spec, self.spec.names);
        let head_norms = match s.qk_norm {
            true => Some([self.norm(n.q_norm, l, s.head_dim)?, self.norm(n.k_norm, l, s.head_dim)?]),
            false => None,
        };
        let qkv = [(n.q, s.q_width()), (n.k, s.kv_width()), (n.v, s.kv_width())];
        let gate_up = [(n.gate, s.intermediate), (n.up, s.intermediate)];
        Ok(Layer {
            input_norm: self.norm(n.input_norm, l, s.hidden)?,
            qkv: self.projection(l, &qkv, s.hidden, s.qkv_bias)?,
            o: self.projection(l, &[(n.o, s.hidden)], s.q_width(), s.o_bias)?,
            head_norms,
            post_attention_norm: self.norm(n.post_attention_norm, l, s.hidden)?,
            gate_up: self.projection(l, &gate_up, s.hidden, s.mlp_bias)?,
            down: self.projection(l, &[(n.down, s.hidden)], s.intermediate, s.mlp_bias)?,
            cache_scales: self.cache_scales(l)?,
        })
    }

    fn decoder(&self) -> std::result::Result<Decoder, LoadError> {
        let (s, n) = (self.spec, self.spec.names);
        let embedding = self.table(n.embedding, true)?;
        let mut layers = Vec::with_capacity(s.layers);
        for l in 0..s.layers {
            layers.push(self.layer(l)?);
            (self.progress)((l + 1) as f32 / s.layers as f32);
        }
        let head = match s.tied_head {
            true => embedding.clone(),
            false => self.table(n.head, false)?,
        };
        let activations = match head.kind() {
            WeightType::Bf16 => DType::BF16,
            _ => DType::F32,
        };
        Ok(Decoder {
            spec: s.clone(),
            activations,
            cache: None,
            embedding,
            layers,
            final_norm: self.norm(n.final_norm, 0, s.hidden)?,
            head,
            inverse_frequencies: Weight::vector(s.rope.inverse_frequencies(s.head_dim)),
            rank: None,
        })
    }
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
        Loader { spec, source, reading, progress }.decoder()
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

    /// Keeps keys and values as `dtype`: F8E4M3, or what the activations are.
    #[must_use]
    pub fn with_cache(mut self, dtype: DType) -> Decoder {
        self.cache = Some(dtype);
        self
    }

    /// Type of the KV cache: that of the activations unless another was asked for.
    pub fn cache_type(&self) -> DType {
        self.cache.unwrap_or(self.activations)
    }

    /// Bytes of all matrices, as held.
    pub fn weight_bytes(&self) -> usize {
        let projections = self.layers.iter().flat_map(|l| [&l.qkv, &l.o, &l.gate_up, &l.down]);
        let layers: usize = projections.flat_map(|p| &p.0).map(|m| m.weight.bytes()).sum();
        let head = if self.spec.tied_head { 0 } else { self.head.bytes() };
        layers + self.embedding.bytes() + head
    }

    /// Of the largest matrix that kernels multiply out before its product.
    pub fn dequantised_bytes(&self) -> usize {
        let projections = self.layers.iter().flat_map(|l| [&l.qkv, &l.o, &l.gate_up, &l.down]);
        let weights = projections.flat_map(|p| &p.0).map(|m| &m.weight).chain([&self.head]);
        let of_fp8 = weights.filter(|w| w.kind() == WeightType::Fp8).map(|w| w.rows() * w.cols());
        of_fp8.max().unwrap_or(0) * self.activations().size_in_bytes()
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
        ws.residual.inplace_op1(&Gather { table, ids, sampled, on })?;
        let inverse_frequencies = &self.inverse_frequencies;
        ws.angles.inplace_op1(&RopeAngles { positions: input.positions, inverse_frequencies, on })?;
        for (index, layer) in self.layers.iter().enumerate() {
            self.attention(layer, input, ws, cache.layer(index), on)?;
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
        if (NormProduct { norm, weight, bias, activations, on }).product(&ws.logits, &ws.selected)? {
            return Ok(());
        }
        ws.selected_normed.inplace_op2(&ws.selected, &self.norm(&self.final_norm, rows, on))?;
        let head = Linear { weight, bias, rows, column: 0, accumulate: false, on };
        ws.logits.inplace_op2(&ws.selected_normed, &head)
    }

    fn norm<'a>(&self, weight: &'a Weight, rows: usize, on: &'a Exec) -> RmsNorm<'a> {
        RmsNorm { weight, eps: self.spec.norm_eps, rows, on }
    }

    fn attention(
        &self,
        layer: &Layer,
        input: &StepView<'_>,
        ws: &Workspace,
        kv: &Tensor,
        on: &Exec,
    ) -> Result<()> {
        let s = &self.spec;
        let (rows, heads, kv_heads, head_dim) = (input.tokens.host.len(), s.heads, s.kv_heads, s.head_dim);
        let norm = || self.norm(&layer.input_norm, rows, on);
        let at_once = layer.qkv.after(norm(), self.activations, on);
        if !at_once.map_or(Ok(false), |op| op.product(&ws.qkv, &ws.residual))? {
            ws.normed.inplace_op2(&ws.residual, &norm())?;
            layer.qkv.product(&ws.qkv, &ws.normed, rows, false, on)?;
        }
        let norms = layer.head_norms.as_ref().map(|weights| (weights, s.norm_eps));
        let scales = match kv.dtype() {
            DType::F8E4M3 => layer.cache_scales,
            _ => CacheScales::ONE,
        };
        let turn = Rope { rows, heads, kv_heads, head_dim, norms, scales, on };
        rope::rope_kv_write(&ws.qkv, &ws.angles, kv, &turn, input.slots)?;
        let plan = AttentionPlan {
            spans: input.spans,
            block_tables: input.block_tables,
            tiles: input.tiles,
            split_tiles: input.split_tiles,
            rows,
        };
        let scale = 1.0 / (head_dim as f32).sqrt();
        let scratch = Some(&ws.attention_scratch);
        let attend = PagedAttention { plan, kv, scales, heads, kv_heads, head_dim, scale, scratch, on };
        ws.attention.inplace_op2(&ws.qkv, &attend)?;
        self.add(&layer.o, &ws.residual, &ws.attention, rows, on)
    }

    fn feed_forward(&self, layer: &Layer, rows: usize, ws: &Workspace, on: &Exec) -> Result<()> {
        let norm = || self.norm(&layer.post_attention_norm, rows, on);
        let at_once = layer.gate_up.after(norm(), self.activations, on);
        if !at_once.map_or(Ok(false), |op| op.silu_mul(&ws.activated, &ws.residual))? {
            ws.normed.inplace_op2(&ws.residual, &norm())?;
            layer.gate_up.product(&ws.gate_up, &ws.normed, rows, false, on)?;
            let activate = SiluMul { rows, width: self.spec.intermediate, on };
            ws.activated.inplace_op2(&ws.gate_up, &activate)?;
        }
        self.add(&layer.down, &ws.residual, &ws.activated, rows, on)
    }

    /// Adds a product to the residual. Of ranks the first adds to it and the others put their part in its place, so
    /// that the sum over all is the residual with every part.
    fn add(
        &self,
        product: &Projection,
        residual: &Tensor,
        src: &Tensor,
        rows: usize,
        on: &Exec,
    ) -> Result<()> {
        let Some(rank) = &self.rank else { return product.product(residual, src, rows, true, on) };
        product.product(residual, src, rows, rank.index() == 0, on)?;
        residual.inplace_op1(&AllReduce { rank, rows })
    }
}

impl Projection {
    /// With the norm before it, where it is one matrix.
    fn after<'a>(&'a self, norm: RmsNorm<'a>, activations: DType, on: &'a Exec) -> Option<NormProduct<'a>> {
        match self.0.as_slice() {
            [Matrix { weight, bias }] => {
                Some(NormProduct { norm, weight, bias: bias.as_ref(), activations, on })
            }
            _ => None,
        }
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
