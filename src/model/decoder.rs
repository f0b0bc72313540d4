//! The one transformer: a spec, its weights, and a forward pass over the rows of a step.
//!
//! Step input → logits in the workspace. It reads flags of the spec, never a model's name, and never
//! asks a weight's type. One forward serves prefill, decode and anything between.

use candle_core::{DType, Result};

use super::LoadError;
use super::input::StepInput;
use super::kv_cache::KvCache;
use super::spec::DecoderSpec;
use super::weights::WeightSource;
use super::workspace::Workspace;
use crate::ops::activation::SiluMul;
use crate::ops::gather::{Gather, SelectRows};
use crate::ops::kv_write::KvWrite;
use crate::ops::linear::Linear;
use crate::ops::paged_attention::{AttentionPlan, PagedAttention};
use crate::ops::pool::Pool;
use crate::ops::rms_norm::RmsNorm;
use crate::ops::rope::{Rope, RopeAngles};
use crate::ops::weight::Weight;

/// How the numbers of a checkpoint are held and computed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// As stored: bf16 weights with bf16 activations, f16 and f32 weights with f32 activations.
    AsStored,
    F32,
    F16,
    Bf16,
}

struct Projection {
    weight: Weight,
    bias: Option<Weight>,
}

struct Layer {
    input_norm: Vec<f32>,
    q: Projection,
    k: Projection,
    v: Projection,
    o: Projection,
    q_norm: Option<Vec<f32>>,
    k_norm: Option<Vec<f32>>,
    post_attention_norm: Vec<f32>,
    gate: Projection,
    up: Projection,
    down: Projection,
}

/// A loaded model. Immutable; replicas on one host share it.
pub struct Decoder {
    spec: DecoderSpec,
    activations: DType,
    embedding: Weight,
    layers: Vec<Layer>,
    final_norm: Vec<f32>,
    head: Weight,
    inverse_frequencies: Vec<f32>,
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
    precision: Precision,
    /// Scan every weight for NaN, not only norms and embeddings.
    scan_all: bool,
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
        let weight = match self.precision {
            Precision::AsStored => stored,
            Precision::F32 => stored.to_f32(),
            Precision::F16 => stored.to_f16(),
            Precision::Bf16 => stored.to_bf16(),
        };
        if scan || self.scan_all { self.finite(name, weight) } else { Ok(weight) }
    }

    fn norm(&self, name: &str, layer: usize, width: usize) -> std::result::Result<Vec<f32>, LoadError> {
        let name = name.replace("{}", &layer.to_string());
        let weight = self.finite(&name, self.source.weight(&name, &[width])?)?;
        Ok((0..width).map(|i| weight.get(i)).collect())
    }

    fn projection(
        &self,
        name: &str,
        layer: usize,
        bias: bool,
        out: usize,
        input: usize,
    ) -> std::result::Result<Projection, LoadError> {
        let name = name.replace("{}", &layer.to_string());
        let weight = self.matrix(&format!("{name}.weight"), &[out, input], false)?;
        let bias = match bias {
            true => Some(self.matrix(&format!("{name}.bias"), &[out], true)?.to_f32()),
            false => None,
        };
        Ok(Projection { weight, bias })
    }

    fn layer(&self, l: usize) -> std::result::Result<Layer, LoadError> {
        let (s, n) = (self.spec, self.spec.names);
        let head_norm = |name| match s.qk_norm {
            true => self.norm(name, l, s.head_dim).map(Some),
            false => Ok(None),
        };
        Ok(Layer {
            input_norm: self.norm(n.input_norm, l, s.hidden)?,
            q: self.projection(n.q, l, s.qkv_bias, s.q_width(), s.hidden)?,
            k: self.projection(n.k, l, s.qkv_bias, s.kv_width(), s.hidden)?,
            v: self.projection(n.v, l, s.qkv_bias, s.kv_width(), s.hidden)?,
            o: self.projection(n.o, l, s.o_bias, s.hidden, s.q_width())?,
            q_norm: head_norm(n.q_norm)?,
            k_norm: head_norm(n.k_norm)?,
            post_attention_norm: self.norm(n.post_attention_norm, l, s.hidden)?,
            gate: self.projection(n.gate, l, s.mlp_bias, s.intermediate, s.hidden)?,
            up: self.projection(n.up, l, s.mlp_bias, s.intermediate, s.hidden)?,
            down: self.projection(n.down, l, s.mlp_bias, s.hidden, s.intermediate)?,
        })
    }

    fn decoder(&self) -> std::result::Result<Decoder, LoadError> {
        let (s, n) = (self.spec, self.spec.names);
        let embedding = self.matrix(n.embedding, &[s.vocab, s.hidden], true)?;
        let mut layers = Vec::with_capacity(s.layers);
        for l in 0..s.layers {
            layers.push(self.layer(l)?);
            (self.progress)((l + 1) as f32 / s.layers as f32);
        }
        let head = match s.tied_head {
            true => embedding.clone(),
            false => self.matrix(n.head, &[s.vocab, s.hidden], false)?,
        };
        let activations = match head.kind() {
            crate::ops::weight::WeightType::Bf16 => DType::BF16,
            _ => DType::F32,
        };
        Ok(Decoder {
            spec: s.clone(),
            activations,
            embedding,
            layers,
            final_norm: self.norm(n.final_norm, 0, s.hidden)?,
            head,
            inverse_frequencies: s.rope.inverse_frequencies(s.head_dim),
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
        precision: Precision,
        scan_all: bool,
        progress: &dyn Fn(f32),
    ) -> std::result::Result<Decoder, LoadError> {
        Loader { spec, source, precision, scan_all, progress }.decoder()
    }

    pub fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    /// Type of the activations and of the KV cache.
    pub fn activations(&self) -> DType {
        self.activations
    }

    /// Bytes of all matrices, as held.
    pub fn weight_bytes(&self) -> usize {
        let of = |p: &Projection| p.weight.bytes();
        let layers: usize = self
            .layers
            .iter()
            .map(|l| [&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down].map(of).iter().sum::<usize>())
            .sum();
        let head = if self.spec.tied_head { 0 } else { self.head.bytes() };
        layers + self.embedding.bytes() + head
    }

    /// One pass over the step's rows; the logits of `input.logit_rows` are in `ws.logits` afterwards.
    pub fn forward(&self, input: &StepInput, ws: &Workspace, cache: &KvCache, pool: &Pool) -> Result<()> {
        let rows = input.rows();
        ws.residual.inplace_op1(&Gather { table: &self.embedding, ids: &input.tokens })?;
        let inverse_frequencies = &self.inverse_frequencies;
        ws.angles.inplace_op1(&RopeAngles { positions: &input.positions, inverse_frequencies })?;
        for (index, layer) in self.layers.iter().enumerate() {
            self.attention(layer, input, ws, cache.layer(index), pool)?;
            self.feed_forward(layer, rows, ws, pool)?;
        }
        let logit_rows = &input.logit_rows;
        if logit_rows.is_empty() {
            return Ok(());
        }
        let select = SelectRows { rows: logit_rows, width: self.spec.hidden };
        ws.selected.inplace_op2(&ws.residual, &select)?;
        let norm = self.norm(&self.final_norm, logit_rows.len(), pool);
        ws.selected_normed.inplace_op2(&ws.selected, &norm)?;
        let head = Linear { weight: &self.head, bias: None, rows: logit_rows.len(), accumulate: false, pool };
        ws.logits.inplace_op2(&ws.selected_normed, &head)
    }

    fn norm<'a>(&self, weight: &'a [f32], rows: usize, pool: &'a Pool) -> RmsNorm<'a> {
        RmsNorm { weight, eps: self.spec.norm_eps, rows, pool }
    }

    fn attention(
        &self,
        layer: &Layer,
        input: &StepInput,
        ws: &Workspace,
        kv: &candle_core::Tensor,
        pool: &Pool,
    ) -> Result<()> {
        let s = &self.spec;
        let (rows, heads, kv_heads, head_dim) = (input.rows(), s.heads, s.kv_heads, s.head_dim);
        ws.normed.inplace_op2(&ws.residual, &self.norm(&layer.input_norm, rows, pool))?;
        ws.q.inplace_op2(&ws.normed, &layer.q.product(rows, false, pool))?;
        ws.k.inplace_op2(&ws.normed, &layer.k.product(rows, false, pool))?;
        ws.v.inplace_op2(&ws.normed, &layer.v.product(rows, false, pool))?;
        let norm = layer.q_norm.as_deref().map(|w| (w, s.norm_eps));
        ws.q.inplace_op2(&ws.angles, &Rope { rows, heads, head_dim, norm, pool })?;
        let norm = layer.k_norm.as_deref().map(|w| (w, s.norm_eps));
        ws.k.inplace_op2(&ws.angles, &Rope { rows, heads: kv_heads, head_dim, norm, pool })?;
        kv.inplace_op3(&ws.k, &ws.v, &KvWrite { slots: &input.slots, kv_heads, head_dim })?;
        let plan = AttentionPlan { spans: &input.spans, block_tables: &input.block_tables, rows };
        let scale = 1.0 / (head_dim as f32).sqrt();
        let attend = PagedAttention { plan, kv, heads, kv_heads, head_dim, scale, pool };
        ws.attention.inplace_op2(&ws.q, &attend)?;
        ws.residual.inplace_op2(&ws.attention, &layer.o.product(rows, true, pool))
    }

    fn feed_forward(&self, layer: &Layer, rows: usize, ws: &Workspace, pool: &Pool) -> Result<()> {
        ws.normed.inplace_op2(&ws.residual, &self.norm(&layer.post_attention_norm, rows, pool))?;
        ws.gate.inplace_op2(&ws.normed, &layer.gate.product(rows, false, pool))?;
        ws.up.inplace_op2(&ws.normed, &layer.up.product(rows, false, pool))?;
        let activate = SiluMul { rows, width: self.spec.intermediate, pool };
        ws.activated.inplace_op3(&ws.gate, &ws.up, &activate)?;
        ws.residual.inplace_op2(&ws.activated, &layer.down.product(rows, true, pool))
    }
}

impl Projection {
    fn product<'a>(&'a self, rows: usize, accumulate: bool, pool: &'a Pool) -> Linear<'a> {
        Linear { weight: &self.weight, bias: self.bias.as_ref(), rows, accumulate, pool }
    }
}
