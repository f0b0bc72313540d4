//! Reading a decoder's weights: names, shapes and types are checked, norms and tables scanned for what is no number.

use std::sync::OnceLock;

use candle_core::DType;

use super::feed_forward::{Experts, FeedForward, Mlp, Stack};
use super::{Decoder, Layer, Matrix, Precision, Projection};
use crate::model::LoadError;
use crate::model::spec::{DecoderSpec, ExpertNames, ExpertSpec, FloatType, Parts, QkNorm};
use crate::model::weights::WeightSource;
use crate::ops::blocks::{Blocks, Format};
use crate::ops::kv_write::CacheScales;
use crate::ops::pool::Pool;
use crate::ops::weight::{Weight, WeightType};

/// What becomes of the weights of products when they are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantize {
    /// FP8 where the checkpoint has it.
    AsStored,
    /// All but the embedding and the head, a scale for each output.
    Fp8,
    /// All, the embedding and the head no coarser than Q6_K. Rows that are no whole blocks are rounded to what fits.
    Blocks(Format),
}

impl Quantize {
    /// To blocks of the type of this name.
    pub fn blocks(name: &str) -> Option<Quantize> {
        Format::ALL.into_iter().find(|f| f.name().eq_ignore_ascii_case(name)).map(Quantize::Blocks)
    }

    /// What [`Quantize::blocks`] knows.
    pub fn block_names() -> Vec<String> {
        Format::ALL.iter().map(|format| format.name().to_lowercase()).collect()
    }
}

/// How a checkpoint is read.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    pub precision: Precision,
    pub quantize: Quantize,
    /// Scan every weight for NaN, not only norms and embeddings.
    pub scan_all: bool,
}

/// The tensors of a decoder with their shapes, in the order they are used. Made as they are asked for: a configuration may
/// say that there are more than any file has.
pub fn tensors(spec: &DecoderSpec) -> impl Iterator<Item = (String, Vec<usize>)> + '_ {
    let n = spec.names;
    let embedding = (n.embedding.to_string(), vec![spec.vocab, spec.hidden]);
    let last = std::iter::once((n.final_norm.to_string(), vec![spec.hidden]));
    let head = (!spec.tied_head).then(|| (n.head.to_string(), vec![spec.vocab, spec.hidden]));
    std::iter::once(embedding)
        .chain((0..spec.layers).flat_map(move |layer| tensors_of_layer(spec, layer)))
        .chain(last)
        .chain(head)
}

fn tensors_of_layer(spec: &DecoderSpec, layer: usize) -> impl Iterator<Item = (String, Vec<usize>)> + '_ {
    let n = spec.names;
    let named = move |name: &str| name.replace("{}", &layer.to_string());
    let projection = move |name: &str, bias: bool, out: usize, input: usize| {
        let name = named(name);
        let bias = bias.then(|| (format!("{name}.bias"), vec![out]));
        std::iter::once((format!("{name}.weight"), vec![out, input])).chain(bias)
    };
    let mut all = Vec::new();
    for (name, out) in named_outputs(n.qkv, [spec.q_width(), spec.kv_width(), spec.kv_width()]) {
        all.extend(projection(name, spec.qkv_bias, out, spec.hidden));
    }
    all.extend(projection(n.o, spec.o_bias, spec.hidden, spec.q_width()));
    let experts = match (spec.experts_of(layer), &n.experts) {
        (Some(experts), Some(names)) => Some(tensors_of_experts(spec, experts, names, layer)),
        _ => {
            for (name, out) in named_outputs(n.gate_up, [spec.intermediate; 2]) {
                all.extend(projection(name, spec.mlp_bias, out, spec.hidden));
            }
            all.extend(projection(n.down, spec.mlp_bias, spec.hidden, spec.intermediate));
            None
        }
    };
    let of_residual = [n.input_norm, n.attention_out_norm, n.mlp_norm, n.mlp_out_norm].into_iter().flatten();
    let of_residual = of_residual.map(move |name| (named(name), vec![spec.hidden]));
    let widths = match spec.qk_norm {
        QkNorm::None => None,
        QkNorm::Head => Some([spec.head_dim; 2]),
        QkNorm::Whole => Some([spec.q_width(), spec.kv_width()]),
    };
    let of_heads = widths.into_iter().flat_map(move |widths| [n.q_norm, n.k_norm].into_iter().zip(widths));
    let of_heads = of_heads.map(move |(name, n)| (named(name), vec![n]));
    let sinks = n.sinks.map(|name| (named(name), vec![spec.heads]));
    all.into_iter().chain(experts.into_iter().flatten()).chain(of_residual).chain(of_heads).chain(sinks)
}

fn tensors_of_experts<'a>(
    spec: &'a DecoderSpec,
    experts: &'a ExpertSpec,
    names: &'a ExpertNames,
    layer: usize,
) -> impl Iterator<Item = (String, Vec<usize>)> + 'a {
    let (hidden, inner, count) = (spec.hidden, experts.intermediate, experts.gating.experts);
    let named = move |name: &str| format!("{}.weight", name.replace("{}", &layer.to_string()));
    let with_bias = move |name: String, shape: [usize; 2]| {
        let bias = experts.biases.then(|| (name.replace(".weight", ".bias"), vec![shape[0]]));
        std::iter::once((name, shape.to_vec())).chain(bias)
    };
    let of_expert = move |e: usize| {
        let named = move |name: &str| named(name).replace("{e}", &e.to_string());
        let entering = named_outputs(names.gate_up, [inner; 2]).into_iter();
        let entering = entering.flat_map(move |(name, out)| with_bias(named(name), [out, hidden]));
        entering.chain(with_bias(named(names.down), [hidden, inner]))
    };
    let of_shared = experts.shared.into_iter().flat_map(move |shared| {
        let entering = named_outputs(names.shared_gate_up, [shared.intermediate; 2]).into_iter();
        let entering = entering.map(move |(name, out)| (named(name), vec![out, hidden]));
        let down = (named(names.shared_down), vec![hidden, shared.intermediate]);
        entering.chain([down]).chain(shared.gated.then(|| (named(names.shared_gate), vec![1, hidden])))
    });
    let router = with_bias(named(names.router), [count, hidden]);
    router.chain((0..count).flat_map(of_expert)).chain(of_shared)
}

/// The tensors of matrices over the same input, and how many outputs each has.
fn named_outputs<const N: usize>(parts: Parts<N>, outputs: [usize; N]) -> Vec<(&'static str, usize)> {
    match parts {
        Parts::Apart(names) => names.into_iter().zip(outputs).collect(),
        Parts::Together(name) => vec![(name, outputs.iter().sum())],
    }
}

/// Reads a decoder's tensors from a source, converting and scanning as asked.
pub(super) struct Loader<'a> {
    pub spec: &'a DecoderSpec,
    pub source: &'a WeightSource,
    pub reading: Reading,
    pub progress: &'a dyn Fn(f32),
    /// Rounds to blocks.
    pub pool: OnceLock<Pool>,
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
        // Four bits that no blocks hold. A scale may be finite and its product none of a smaller type.
        let multiplied_out = self.source.four_bit().is_some_and(|packed| packed.is_multiplied_out(name));
        let weight = match self.reading.precision {
            // With FP8 weights and blocks the precision is that of what they meet.
            _ if matches!(stored.kind(), WeightType::Fp8 | WeightType::Blocks(_)) => stored,
            Precision::AsStored => match self.spec.float_type {
                FloatType::F16 if multiplied_out => stored.to_f16(),
                FloatType::Bf16 if multiplied_out => stored.to_bf16(),
                _ => stored,
            },
            Precision::F32 => stored.to_f32(),
            Precision::F16 => stored.to_f16(),
            Precision::Bf16 => stored.to_bf16(),
        };
        if scan || multiplied_out || self.reading.scan_all { self.finite(name, weight) } else { Ok(weight) }
    }

    fn product_weight(&self, name: &str, shape: &[usize]) -> std::result::Result<Weight, LoadError> {
        match self.reading.quantize {
            Quantize::AsStored => self.matrix(name, shape, false),
            // Read in full anyway, and one number that is not finite would spoil its row's scale.
            Quantize::Fp8 => Ok(self.finite(name, self.source.weight(name, shape)?)?.to_fp8()),
            Quantize::Blocks(format) => self.in_blocks(name, shape, format),
        }
    }

    /// A matrix beside blocks that does not become one.
    fn beside_blocks(&self, weight: Weight) -> Weight {
        match self.reading.precision {
            Precision::F32 => weight.to_f32(),
            Precision::F16 => weight.to_f16(),
            Precision::AsStored | Precision::Bf16 => weight.to_bf16(),
        }
    }

    /// A matrix rounded to a format, or to what fits its width.
    fn in_blocks(
        &self,
        name: &str,
        shape: &[usize],
        format: Format,
    ) -> std::result::Result<Weight, LoadError> {
        let weight = self.finite(name, self.source.weight(name, shape)?)?;
        if let WeightType::Blocks(stored) = weight.kind() {
            let problem =
                format!("is {} already, and is not rounded again to {}", stored.name(), format.name());
            return Err(LoadError::tensor(&self.source.file_of(name), name, problem));
        }
        let Some(format) = format.for_width(weight.cols()) else { return Ok(self.beside_blocks(weight)) };
        let pool =
            self.pool.get_or_init(|| Pool::new(std::thread::available_parallelism().map_or(1, usize::from)));
        let widen = |row: usize, to: &mut [f32]| weight.widen_row(row, to);
        let blocks = Blocks::quantised(format, (weight.rows(), weight.cols()), pool, &widen);
        let blocks = blocks.map_err(|e| LoadError::tensor(&self.source.file_of(name), name, e))?;
        Ok(Weight::from_blocks(blocks))
    }

    /// An embedding or a head, which are looked up or decide between tokens: never FP8, no coarser than Q6_K.
    fn table(&self, name: &str, scan: bool) -> std::result::Result<Weight, LoadError> {
        if let Quantize::Blocks(format) = self.reading.quantize {
            return self.in_blocks(name, &[self.spec.vocab, self.spec.hidden], format.of_tables());
        }
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
        let o = self.spec.names.o.replace("{}", &layer.to_string());
        let attention = o.rsplit_once('.').map_or("", |(attention, _)| attention);
        let find = |which: &str| {
            let names = [
                format!("{attention}.{which}_scale"),
                format!("{attention}.attn.{which}_scale"),
                format!("{attention}.{which}_proj.{which}_scale"),
                format!("{attention}.{which}_proj.output_scale"),
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
        Ok(CacheScales { k: find("k")?, v: find("v")? })
    }

    fn norm(&self, name: &str, layer: usize, width: usize) -> std::result::Result<Weight, LoadError> {
        let name = name.replace("{}", &layer.to_string());
        let norm = self.finite(&name, self.source.weight(&name, &[width])?)?.to_f32();
        Ok(match self.spec.norm_offset {
            0.0 => norm,
            offset => Weight::vector(norm.f32s().iter().map(|w| w + offset).collect()),
        })
    }

    /// A norm that not every model has.
    fn some_norm(&self, name: Option<&str>, layer: usize) -> std::result::Result<Option<Weight>, LoadError> {
        name.map(|name| self.norm(name, layer, self.spec.hidden)).transpose()
    }

    /// The same numbers of each head in the order that turning wants, where the checkpoint has another.
    fn in_order(&self, layer: usize, weight: Weight) -> Weight {
        let s = self.spec;
        let Some(order) = s.ropes[s.rope_of(layer)].order(s.head_dim) else { return weight };
        let of = |numbers: usize| {
            let of_head = |head: usize| order.iter().map(move |i| head * s.head_dim + i);
            (0..numbers / s.head_dim).flat_map(of_head).collect::<Vec<_>>()
        };
        match weight.rows() {
            1 => {
                let numbers = weight.to_f32();
                Weight::vector(of(weight.cols()).into_iter().map(|i| numbers.get(i)).collect())
            }
            rows => weight.picked_rows(&of(rows)),
        }
    }

    /// Matrices over the same input, from a tensor each or one below the other in one.
    fn parts<const N: usize>(
        &self,
        layer: usize,
        parts: Parts<N>,
        outputs: [usize; N],
        bias: bool,
    ) -> std::result::Result<Projection, LoadError> {
        let read = self.projection(layer, &named_outputs(parts, outputs), self.spec.hidden, bias)?;
        Ok(match parts {
            Parts::Apart(_) => read,
            Parts::Together(_) => read.cut(&outputs),
        })
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
        let (q_width, k_width) = match s.qk_norm {
            QkNorm::Whole => (s.q_width(), s.kv_width()),
            QkNorm::None | QkNorm::Head => (s.head_dim, s.head_dim),
        };
        let qk_norms = match s.qk_norm {
            QkNorm::None => None,
            QkNorm::Head | QkNorm::Whole => Some([
                self.in_order(l, self.norm(n.q_norm, l, q_width)?),
                self.in_order(l, self.norm(n.k_norm, l, k_width)?),
            ]),
        };
        let mut qkv = self.parts(l, n.qkv, [s.q_width(), s.kv_width(), s.kv_width()], s.qkv_bias)?;
        for Matrix { weight, bias } in &mut qkv.0[..2] {
            *weight = self.in_order(l, weight.clone());
            *bias = bias.take().map(|bias| self.in_order(l, bias));
        }
        Ok(Layer {
            input_norm: self.some_norm(n.input_norm, l)?,
            qkv,
            o: self.projection(l, &[(n.o, s.hidden)], s.q_width(), s.o_bias)?,
            qk_norms,
            sinks: self.sinks(l)?,
            attention_out_norm: self.some_norm(n.attention_out_norm, l)?,
            mlp_norm: self.some_norm(n.mlp_norm, l)?,
            feed_forward: match (s.experts_of(l), &n.experts) {
                (Some(experts), Some(names)) => {
                    FeedForward::Experts(Box::new(self.experts(l, experts, names)?))
                }
                _ => FeedForward::Dense(self.mlp(l, (n.gate_up, n.down), s.intermediate, s.mlp_bias)?),
            },
            mlp_out_norm: self.some_norm(n.mlp_out_norm, l)?,
            cache_scales: self.cache_scales(l)?,
            rope: s.rope_of(l),
        })
    }

    fn sinks(&self, layer: usize) -> std::result::Result<Option<Weight>, LoadError> {
        let Some(name) = self.spec.names.sinks else { return Ok(None) };
        let name = name.replace("{}", &layer.to_string());
        Ok(Some(self.matrix(&name, &[self.spec.heads], true)?.to_f32()))
    }

    fn mlp(
        &self,
        layer: usize,
        (gate_up, down): (Parts<2>, &str),
        inner: usize,
        bias: bool,
    ) -> std::result::Result<Mlp, LoadError> {
        Ok(Mlp {
            gate_up: self.parts(layer, gate_up, [inner; 2], bias)?,
            down: self.projection(layer, &[(down, self.spec.hidden)], inner, bias)?,
        })
    }

    fn experts(
        &self,
        layer: usize,
        experts: &ExpertSpec,
        names: &ExpertNames,
    ) -> std::result::Result<Experts, LoadError> {
        let (hidden, inner, gating) = (self.spec.hidden, experts.intermediate, experts.gating);
        let named = |name: &str| format!("{}.weight", name.replace("{}", &layer.to_string()));
        let bias_of = |weight: &str, rows: usize| {
            let bias = || Ok(self.matrix(&weight.replace(".weight", ".bias"), &[rows], true)?.to_f32());
            experts.biases.then(bias).transpose()
        };
        let each = |name: &str, shape: [usize; 2]| {
            let mut all = Stack { weights: Vec::new(), biases: Vec::new() };
            for e in 0..gating.experts {
                let name = named(name).replace("{e}", &e.to_string());
                all.weights.push(self.product_weight(&name, &shape)?);
                all.biases.extend(bias_of(&name, shape[0])?);
            }
            Ok::<_, LoadError>(all)
        };
        let entering = named_outputs(names.gate_up, [inner; 2]).into_iter();
        // They decide: never rounded, nor made bf16 with the others.
        let deciding = |name: &str, rows: usize| {
            let weight = self.matrix(&named(name), &[rows, hidden], true)?;
            Ok(if weight.kind() == WeightType::F16 { weight.to_f32() } else { weight })
        };
        let router = Matrix {
            weight: deciding(names.router, gating.experts)?,
            bias: bias_of(&named(names.router), gating.experts)?,
        };
        let shared = experts.shared.map(|shared| {
            let mlp =
                self.mlp(layer, (names.shared_gate_up, names.shared_down), shared.intermediate, false)?;
            let gate = shared.gated.then(|| deciding(names.shared_gate, 1));
            Ok((mlp, gate.transpose()?))
        });
        Ok(Experts {
            gating,
            router,
            gate_up: entering
                .map(|(name, out)| each(name, [out, hidden]))
                .collect::<std::result::Result<_, _>>()?,
            down: each(names.down, [hidden, inner])?,
            shared: shared.transpose()?,
        })
    }

    /// The last norm: logits that the model multiplies are made of a norm that is.
    fn final_norm(&self) -> std::result::Result<Weight, LoadError> {
        let norm = self.norm(self.spec.names.final_norm, 0, self.spec.hidden)?;
        Ok(match self.spec.logit_scale {
            1.0 => norm,
            scale => Weight::vector(norm.f32s().iter().map(|w| w * scale).collect()),
        })
    }

    fn activations(&self, layers: &[Layer], head: &Weight) -> DType {
        let mut all = layers.iter().flat_map(Layer::weights).chain([head]).map(Weight::kind);
        match (head.kind(), self.reading.precision) {
            (WeightType::Bf16, _) => DType::BF16,
            // Blocks are fast with these alone.
            (_, Precision::AsStored | Precision::Bf16)
                if all.any(|kind| matches!(kind, WeightType::Blocks(_))) =>
            {
                DType::BF16
            }
            _ => DType::F32,
        }
    }

    pub fn decoder(&self) -> std::result::Result<Decoder, LoadError> {
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
        let activations = self.activations(&layers, &head);
        let (mut embedding, mut head) = (embedding, head);
        if activations == DType::BF16 {
            // No product mixes f16 with bf16.
            let all = layers.iter_mut().flat_map(Layer::weights_mut);
            for weight in all.filter(|weight| weight.kind() == WeightType::F16) {
                *weight = weight.to_bf16();
            }
            if head.kind() == WeightType::F16 {
                head = head.to_bf16();
                embedding = if s.tied_head { head.clone() } else { embedding };
            }
        }
        Ok(Decoder {
            spec: s.clone(),
            activations,
            cache: None,
            embedding,
            layers,
            final_norm: self.final_norm()?,
            head,
            inverse_frequencies: s
                .ropes
                .iter()
                .map(|rope| Weight::vector(rope.inverse_frequencies(s.head_dim)))
                .collect(),
            rank: None,
        })
    }
}
