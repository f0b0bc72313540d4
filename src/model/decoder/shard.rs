//! Tensor parallelism: a decoder cut for the ranks of a group (Megatron-LM, arXiv 1909.08053).
//!
//! A rank has some heads and a part of the feed-forward network: rows of the matrices into them, columns of those out
//! of them, whose partial sums are added up over the ranks. Norms, embedding and head are whole on each: every rank has
//! the residual, and the head is read once a step where the layers are read many times. (Cutting the head too saves
//! memory, and wants a gather.)

use std::ops::Range;

use candle_core::{Result, bail};

use super::feed_forward::{FeedForward, Mlp};
use super::{Decoder, Layer, Matrix, Projection};
use crate::model::spec::QkNorm;
use crate::ops::all_reduce::Rank;
use crate::ops::weight::Weight;

/// The part of `of` that rank `rank` of `ranks` has.
fn part(of: usize, rank: usize, ranks: usize) -> Range<usize> {
    of / ranks * rank..of / ranks * (rank + 1)
}

impl Decoder {
    /// This rank's part of a decoder in the host's memory. What it gives for a step is what all give together.
    ///
    /// # Errors
    /// Heads, or an intermediate width, that so many ranks cannot share.
    pub fn shard(&self, rank: Rank) -> Result<Decoder> {
        let (s, ranks, index) = (&self.spec, rank.ranks(), rank.index());
        if !s.heads.is_multiple_of(ranks) || !s.intermediate.is_multiple_of(ranks) {
            bail!("{ranks} ranks cannot share {} heads and {} intermediate outputs", s.heads, s.intermediate)
        }
        // Fewer K/V heads than ranks: some ranks have the same one.
        if !s.kv_heads.is_multiple_of(ranks) && !ranks.is_multiple_of(s.kv_heads) {
            bail!("{ranks} ranks cannot share {} K/V heads", s.kv_heads)
        }
        if s.qk_norm == QkNorm::Whole {
            bail!("ranks cannot share queries and keys that are normed together")
        }
        let mut spec = s.clone();
        (spec.heads, spec.intermediate) = (s.heads / ranks, s.intermediate / ranks);
        spec.kv_heads = (s.kv_heads / ranks).max(1);
        let first_kv = index * s.kv_heads / ranks;
        let elements = |heads: Range<usize>| heads.start * s.head_dim..heads.end * s.head_dim;
        let (q, kv) = (elements(part(s.heads, index, ranks)), elements(first_kv..first_kv + spec.kv_heads));
        let inner = part(s.intermediate, index, ranks);
        let mut layers = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            let FeedForward::Dense(mlp) = &layer.feed_forward else {
                bail!("ranks cannot share routed experts, as yet")
            };
            layers.push(Layer {
                input_norm: layer.input_norm.clone(),
                qkv: layer.qkv.rows(&[q.clone(), kv.clone(), kv.clone()]),
                o: layer.o.columns(&q, index),
                qk_norms: layer.qk_norms.clone(),
                sinks: layer
                    .sinks
                    .as_ref()
                    .map(|sinks| Weight::vector(sinks.f32s()[part(s.heads, index, ranks)].to_vec())),
                attention_out_norm: layer.attention_out_norm.clone(),
                mlp_norm: layer.mlp_norm.clone(),
                feed_forward: FeedForward::Dense(Mlp {
                    gate_up: mlp.gate_up.rows(&[inner.clone(), inner.clone()]),
                    down: mlp.down.columns(&inner, index),
                }),
                mlp_out_norm: layer.mlp_out_norm.clone(),
                cache_scales: layer.cache_scales,
                rope: layer.rope,
            });
        }
        Ok(Decoder {
            layers,
            spec,
            activations: self.activations,
            cache: self.cache,
            embedding: self.embedding.clone(),
            final_norm: self.final_norm.clone(),
            head: self.head.clone(),
            inverse_frequencies: self.inverse_frequencies.clone(),
            rank: Some(rank),
        })
    }
}

impl Matrix {
    /// Those outputs.
    fn rows(&self, rows: &Range<usize>) -> Matrix {
        Matrix {
            weight: self.weight.shard_rows(rows.clone()),
            bias: self.bias.as_ref().map(|b| Weight::vector(b.f32s()[rows.clone()].to_vec())),
        }
    }
}

impl Projection {
    /// Those outputs of each matrix.
    fn rows(&self, outputs: &[Range<usize>]) -> Projection {
        Projection(self.0.iter().zip(outputs).map(|(matrix, rows)| matrix.rows(rows)).collect())
    }

    /// One matrix as several, which have so many outputs each.
    pub(super) fn cut(&self, outputs: &[usize]) -> Projection {
        let mut first = 0;
        let mut part = |n: &usize| {
            first += n;
            self.0[0].rows(&(first - n..first))
        };
        Projection(outputs.iter().map(&mut part).collect())
    }

    /// Those inputs. A bias is added once: by the first rank.
    fn columns(&self, inputs: &Range<usize>, rank: usize) -> Projection {
        let one = |m: &Matrix| Matrix {
            weight: m.weight.shard_cols(inputs.clone()),
            bias: m.bias.clone().filter(|_| rank == 0),
        };
        Projection(self.0.iter().map(one).collect())
    }
}
