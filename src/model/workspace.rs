//! The activations of a step: tensors made once, written by every step, never reallocated.
//!
//! Sized for the largest step; an operation is told how many rows to touch, and captured steps use the first rows of
//! the same tensors.

use candle_core::{DType, Device, Result, Tensor};

use super::spec::{DecoderSpec, ExpertSpec};
use crate::ops::paged_attention::kernels;
use crate::ops::sample::RESULT_WORDS;
use crate::ops::storage::zeros;

/// Row counts a workspace has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    pub rows: usize,
    pub logit_rows: usize,
}

/// `x` is the activation type of the model: f32, or bf16 where the weights are.
pub struct Workspace {
    pub capacity: Capacity,
    /// Residual stream, f32 `[rows, hidden]`.
    pub residual: Tensor,
    /// Normed residual, x `[rows, hidden]`.
    pub normed: Tensor,
    /// Of each kind of positions f32 `[rows, head_dim]`: cosines, then sines.
    pub angles: Vec<Tensor>,
    /// What is normed before it is added to the residual, f32 `[rows, hidden]`, where the model does that.
    pub branch: Option<Tensor>,
    /// Queries, keys and values side by side, f32 `[rows, (heads + 2 × kv_heads) × head_dim]`.
    pub qkv: Tensor,
    /// x `[rows, heads × head_dim]`.
    pub attention: Tensor,
    /// What attention's kernels leave for each other, f32.
    pub attention_scratch: Tensor,
    /// Gate and up side by side, f32 `[rows, 2 × intermediate]`.
    pub gate_up: Tensor,
    /// x `[rows, intermediate]`.
    pub activated: Tensor,
    /// Where the model has experts.
    pub experts: Option<ExpertRoom>,
    /// f32 and x `[logit_rows, hidden]`.
    pub selected: Tensor,
    pub selected_normed: Tensor,
    /// f32 `[logit_rows, vocab]`.
    pub logits: Tensor,
    /// The same with penalties, bias and masks, where a row has any.
    pub adjusted: Tensor,
    /// What was sampled last, u32 `[logit_rows, RESULT_WORDS]`.
    pub results: Tensor,
}

/// What experts compute with. A row has a place for each of its experts.
pub struct ExpertRoom {
    /// Of the router, f32 `[rows, experts]`.
    pub logits: Tensor,
    /// Which rows are where, u32; see `ops::experts`.
    pub route: Tensor,
    /// x `[places, hidden]`.
    pub grouped: Tensor,
    /// f32 `[places, 2 × intermediate]`.
    pub gate_up: Tensor,
    /// x `[places, intermediate]`.
    pub activated: Tensor,
    /// f32 `[places, hidden]`.
    pub out: Tensor,
    pub shared: Option<SharedRoom>,
}

/// Of the expert that every row takes.
pub struct SharedRoom {
    /// f32 `[rows, 2 × intermediate]`.
    pub gate_up: Tensor,
    /// x `[rows, intermediate]`.
    pub activated: Tensor,
    /// f32 `[rows, 1]`.
    pub gate: Tensor,
}

impl Workspace {
    pub fn new(spec: &DecoderSpec, capacity: Capacity, x: DType, device: &Device) -> Result<Workspace> {
        let make = |rows: usize, width: usize, dtype| zeros((rows, width), dtype, device);
        let (r, l, f) = (capacity.rows, capacity.logit_rows, DType::F32);
        Ok(Workspace {
            capacity,
            residual: make(r, spec.hidden, f)?,
            normed: make(r, spec.hidden, x)?,
            angles: spec.ropes.iter().map(|_| make(r, spec.head_dim, f)).collect::<Result<_>>()?,
            branch: spec.norms_outputs().then(|| make(r, spec.hidden, f)).transpose()?,
            qkv: make(r, spec.q_width() + 2 * spec.kv_width(), f)?,
            attention: make(r, spec.q_width(), x)?,
            // Zeroed pages of the host cost memory only when first written.
            attention_scratch: kernels::scratch(spec.heads, spec.kv_heads, spec.head_dim, device)?,
            gate_up: make(r, 2 * spec.intermediate, f)?,
            activated: make(r, spec.intermediate, x)?,
            experts: spec
                .experts
                .as_ref()
                .map(|experts| ExpertRoom::new(spec, experts, &make, r, x))
                .transpose()?,
            selected: make(l, spec.hidden, f)?,
            selected_normed: make(l, spec.hidden, x)?,
            logits: make(l, spec.vocab, f)?,
            adjusted: make(l, spec.vocab, f)?,
            results: make(l, RESULT_WORDS, DType::U32)?,
        })
    }
}

impl ExpertRoom {
    /// Bytes of a row, with activations of `x` bytes.
    pub fn row_bytes(experts: &ExpertSpec, hidden: usize, x: usize) -> usize {
        let f = size_of::<f32>();
        let place = hidden * (x + f) + experts.intermediate * (2 * f + x);
        let shared = experts.shared.map_or(0, |shared| shared.intermediate * (2 * f + x) + f);
        f * (experts.gating.experts + experts.gating.words(1)) + experts.gating.per_token * place + shared
    }

    fn new(
        spec: &DecoderSpec,
        experts: &ExpertSpec,
        make: &impl Fn(usize, usize, DType) -> Result<Tensor>,
        rows: usize,
        x: DType,
    ) -> Result<ExpertRoom> {
        let (places, inner, f) = (rows * experts.gating.per_token, experts.intermediate, DType::F32);
        let shared = experts.shared.map(|shared| {
            Ok::<_, candle_core::Error>(SharedRoom {
                gate_up: make(rows, 2 * shared.intermediate, f)?,
                activated: make(rows, shared.intermediate, x)?,
                gate: make(rows, 1, f)?,
            })
        });
        Ok(ExpertRoom {
            logits: make(rows, experts.gating.experts, f)?,
            route: make(1, experts.gating.words(rows), DType::U32)?,
            grouped: make(places, spec.hidden, x)?,
            gate_up: make(places, 2 * inner, f)?,
            activated: make(places, inner, x)?,
            out: make(places, spec.hidden, f)?,
            shared: shared.transpose()?,
        })
    }
}
