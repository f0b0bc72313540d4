//! The demo model as a differentiable graph: an f32 Llama with Hugging Face tensor names.
//!
//! It is written from the primitives that have a backward pass (`rms_norm_slow`, `rope_slow`,
//! `softmax`), where the server has fused ones. It depends on candle and serde only, so that an
//! integration test can include this file by path and hold the server's decoder against it.

use candle_core::{D, Device, Result, Tensor};
use candle_nn::{VarBuilder, ops, rotary_emb};
use serde::{Deserialize, Serialize};

/// The fields of `config.json` that shape the model.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TrainConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub max_position_embeddings: usize,
}

/// A weight without bias, applied to `[rows, in]`.
struct Linear {
    weight: Tensor,
}

impl Linear {
    fn new(input: usize, output: usize, vb: VarBuilder) -> Result<Linear> {
        Ok(Linear { weight: vb.get((output, input), "weight")? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.matmul(&self.weight.t()?)
    }
}

/// What every layer of one forward pass shares.
struct Positions {
    batch: usize,
    len: usize,
    cos: Tensor,
    sin: Tensor,
    mask: Tensor,
}

struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Attention {
    fn new(c: &TrainConfig, vb: VarBuilder) -> Result<Attention> {
        let (hidden, q_dim) = (c.hidden_size, c.num_attention_heads * c.head_dim);
        let kv_dim = c.num_key_value_heads * c.head_dim;
        Ok(Attention {
            q: Linear::new(hidden, q_dim, vb.pp("q_proj"))?,
            k: Linear::new(hidden, kv_dim, vb.pp("k_proj"))?,
            v: Linear::new(hidden, kv_dim, vb.pp("v_proj"))?,
            o: Linear::new(q_dim, hidden, vb.pp("o_proj"))?,
            heads: c.num_attention_heads,
            kv_heads: c.num_key_value_heads,
            head_dim: c.head_dim,
        })
    }

    /// `[rows, heads * head_dim]` to `[batch, heads, len, head_dim]`.
    fn split(&self, x: &Tensor, heads: usize, p: &Positions) -> Result<Tensor> {
        x.reshape((p.batch, p.len, heads, self.head_dim))?.transpose(1, 2)?.contiguous()
    }

    /// Gives each group of query heads its own copy of the key (or value) head it shares.
    fn repeat(&self, x: &Tensor, p: &Positions) -> Result<Tensor> {
        let times = self.heads / self.kv_heads;
        x.unsqueeze(2)?
            .broadcast_as((p.batch, self.kv_heads, times, p.len, self.head_dim))?
            .contiguous()?
            .reshape((p.batch, self.heads, p.len, self.head_dim))
    }

    fn forward(&self, x: &Tensor, p: &Positions) -> Result<Tensor> {
        let q = self.split(&self.q.forward(x)?, self.heads, p)?;
        let k = self.split(&self.k.forward(x)?, self.kv_heads, p)?;
        let v = self.split(&self.v.forward(x)?, self.kv_heads, p)?;
        let q = rotary_emb::rope_slow(&q, &p.cos, &p.sin)?;
        let k = rotary_emb::rope_slow(&k, &p.cos, &p.sin)?;
        let (k, v) = (self.repeat(&k, p)?, self.repeat(&v, p)?);
        let scores = (q.matmul(&k.t()?)? * (self.head_dim as f64).powf(-0.5))?;
        let weights = ops::softmax(&scores.broadcast_add(&p.mask)?, D::Minus1)?;
        let mixed = weights.matmul(&v)?.transpose(1, 2)?.contiguous()?;
        self.o.forward(&mixed.reshape((p.batch * p.len, self.heads * self.head_dim))?)
    }
}

struct Mlp {
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Mlp {
    fn new(c: &TrainConfig, vb: VarBuilder) -> Result<Mlp> {
        Ok(Mlp {
            gate: Linear::new(c.hidden_size, c.intermediate_size, vb.pp("gate_proj"))?,
            up: Linear::new(c.hidden_size, c.intermediate_size, vb.pp("up_proj"))?,
            down: Linear::new(c.intermediate_size, c.hidden_size, vb.pp("down_proj"))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let gated = (self.gate.forward(x)?.silu()? * self.up.forward(x)?)?;
        self.down.forward(&gated)
    }
}

struct Layer {
    attention_norm: Tensor,
    attention: Attention,
    mlp_norm: Tensor,
    mlp: Mlp,
}

impl Layer {
    fn new(c: &TrainConfig, vb: VarBuilder) -> Result<Layer> {
        Ok(Layer {
            attention_norm: vb.get(c.hidden_size, "input_layernorm.weight")?,
            attention: Attention::new(c, vb.pp("self_attn"))?,
            mlp_norm: vb.get(c.hidden_size, "post_attention_layernorm.weight")?,
            mlp: Mlp::new(c, vb.pp("mlp"))?,
        })
    }

    fn forward(&self, x: &Tensor, eps: f32, p: &Positions) -> Result<Tensor> {
        let normed = ops::rms_norm_slow(x, &self.attention_norm, eps)?;
        let x = (x + self.attention.forward(&normed, p)?)?;
        let normed = ops::rms_norm_slow(&x, &self.mlp_norm, eps)?;
        &x + self.mlp.forward(&normed)?
    }
}

/// The whole decoder; the head is the embedding table, transposed.
pub struct TrainLlama {
    config: TrainConfig,
    embed: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
}

impl TrainLlama {
    pub fn new(config: &TrainConfig, vb: VarBuilder) -> Result<TrainLlama> {
        let vb = vb.pp("model");
        let embed = vb.get((config.vocab_size, config.hidden_size), "embed_tokens.weight")?;
        let layers = (0..config.num_hidden_layers)
            .map(|i| Layer::new(config, vb.pp("layers").pp(i)))
            .collect::<Result<Vec<_>>>()?;
        let norm = vb.get(config.hidden_size, "norm.weight")?;
        Ok(TrainLlama { config: config.clone(), embed, layers, norm })
    }

    /// Logits `[batch, len, vocab]` of the ids `[batch, len]`.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let (batch, len) = ids.dims2()?;
        self.head(&self.hidden(ids)?)?.reshape((batch, len, self.config.vocab_size))
    }

    /// The last hidden states, normed, as rows `[batch * len, hidden]`.
    ///
    /// Apart from [`TrainLlama::head`] because training reads the logits of a few rows only.
    pub fn hidden(&self, ids: &Tensor) -> Result<Tensor> {
        let (batch, len) = ids.dims2()?;
        let eps = self.config.rms_norm_eps as f32;
        let positions = self.positions(batch, len, ids.device())?;
        let mut x = self.embed.index_select(&ids.flatten_all()?, 0)?;
        for layer in &self.layers {
            x = layer.forward(&x, eps, &positions)?;
        }
        ops::rms_norm_slow(&x, &self.norm, eps)
    }

    /// Logits `[rows, vocab]` of hidden states `[rows, hidden]`.
    pub fn head(&self, hidden: &Tensor) -> Result<Tensor> {
        hidden.matmul(&self.embed.t()?)
    }

    fn positions(&self, batch: usize, len: usize, device: &Device) -> Result<Positions> {
        let half = self.config.head_dim / 2;
        let mut angles = Vec::with_capacity(len * half);
        for position in 0..len {
            for i in 0..half {
                let exponent = (2 * i) as f64 / self.config.head_dim as f64;
                angles.push((position as f64 / self.config.rope_theta.powf(exponent)) as f32);
            }
        }
        let angles = Tensor::from_vec(angles, (len, half), device)?;
        // A large finite number in place of minus infinity: no row is ever fully masked, and the
        // backward pass then has no 0 * inf.
        let mask = (0..len * len).map(|at| if at % len > at / len { -1e9f32 } else { 0.0 });
        let mask = Tensor::from_vec(mask.collect::<Vec<_>>(), (1, 1, len, len), device)?;
        Ok(Positions { batch, len, cos: angles.cos()?, sin: angles.sin()?, mask })
    }
}
