//! Attention over the paged cache: queries and block tables → attention output, K and V in place.
//!
//! Prefill, decode and the verification of drafts are the same thing, a span of rows that sees the
//! cache up to each row's own position. A row's result depends on its query and its sequence's keys
//! and values alone, not on the batch, the chunking, the block ids or the thread count. The step's keys
//! and values are in the cache already (`kv_write`).

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, DType, InplaceOp2, Layout, Result, Storage, Tensor, bail};

use super::cache_type::width;
use super::cpu::attention::{self, BLOCK, Group, MAX_HEAD_DIM, MAX_QUERIES, Queries, Scores, Shape};
use super::cpu::attention_cache::{Cache, Q8};
use super::cpu::{Element, Isa, SharedMut};
use super::exec::Exec;
use super::kv_write::{CacheScales, fp8};
use super::launch::{Mirrored, Place};
use super::weight::{Weight, WeightType};
pub use kernels::{Cutting, Tile};

pub mod kernels;

/// Tokens of a cache block.
pub const BLOCK_SIZE: usize = BLOCK;

/// Multiply-adds below which waking the pool costs more than it saves.
const INLINE_WORK: usize = 100_000;

/// Successive rows of one sequence in a step.
#[repr(C)] // as the kernel has it
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionSpan {
    pub first_row: u32,
    pub rows: u32,
    /// Position of `first_row`; row i is at `first_position + i` and sees keys 0 ..= its position.
    pub first_position: u32,
    /// Where this sequence's block ids begin in `block_tables`.
    pub block_table: u32,
}

impl AttentionSpan {
    /// As kernels read them: four numbers each.
    pub fn words(spans: &[AttentionSpan]) -> &[u32] {
        // SAFETY: four u32 in the order of C, without padding.
        unsafe { std::slice::from_raw_parts(spans.as_ptr().cast(), spans.len() * 4) }
    }
}

/// What attention needs to know of a step: built once, used by every layer.
#[derive(Debug, Clone, Copy)]
pub struct AttentionPlan<'a> {
    /// In the order of their rows, which do not overlap.
    pub spans: Mirrored<'a, AttentionSpan>,
    pub block_tables: Mirrored<'a, u32>,
    /// What [`Cutting::cut`] makes of the spans, and perhaps [`PADDING`](kernels::PADDING) after it; for kernels only.
    pub tiles: Mirrored<'a, Tile>,
    /// How many of these are the split kernel's, padding included.
    pub split_tiles: usize,
    pub rows: usize,
}

/// What a layer has besides plain causal attention.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct AttentionLimits {
    /// A sliding window: a row sees so many positions, its own and those before it.
    pub window: Option<usize>,
    /// cap · tanh(score / cap) in place of a score.
    pub soft_cap: Option<f32>,
}

/// dst: `[capacity, heads · head_dim]` f32 or bf16 (kernels: f16 too); src: f32 `[capacity, ≥ heads · head_dim]`, each row beginning
/// with the turned queries.
///
/// Rows that belong to no span are left alone.
#[derive(Clone, Copy)]
pub struct PagedAttention<'a> {
    pub plan: AttentionPlan<'a>,
    /// One layer's cache `[blocks, 2, kv_heads, BLOCK_SIZE, width]`, f32, bf16, FP8 or Q8 (kernels: f16 too); K at
    /// 0, V at 1. The width is `CacheType::width`.
    pub kv: &'a Tensor,
    pub scales: CacheScales,
    pub heads: usize,
    pub kv_heads: usize,
    /// A multiple of 8, at most 256.
    pub head_dim: usize,
    pub scale: f32,
    pub limits: AttentionLimits,
    /// f32 `[1, heads]`: of each head a score that takes its part of the softmax and has no value (arXiv 2309.17453).
    pub sinks: Option<&'a Weight>,
    /// Of [`kernels::scratch`]; only kernels need it.
    pub scratch: Option<&'a Tensor>,
    pub on: &'a Exec,
}

/// The same on an instruction set of the caller's choice, which the machine must have.
#[derive(Clone, Copy)]
pub struct PagedAttentionOn<'a> {
    pub op: PagedAttention<'a>,
    pub isa: Isa,
}

impl InplaceOp2 for PagedAttention<'_> {
    fn name(&self) -> &'static str {
        "paged_attention"
    }

    fn cuda_fwd(&self, dst: &mut CudaStorage, dst_l: &Layout, q: &CudaStorage, q_l: &Layout) -> Result<()> {
        self.launch_on(
            self.on.launcher(self.name())?,
            (Place::of_cuda(dst, dst_l)?, dst_l),
            (Place::of_cuda(q, q_l)?, q_l),
        )
    }

    fn cpu_fwd(&self, dst: &mut CpuStorage, dst_l: &Layout, q: &CpuStorage, q_l: &Layout) -> Result<()> {
        PagedAttentionOn { op: *self, isa: Isa::detect() }.cpu_fwd(dst, dst_l, q, q_l)
    }
}

impl InplaceOp2 for PagedAttentionOn<'_> {
    fn name(&self) -> &'static str {
        "paged_attention"
    }

    fn cpu_fwd(&self, dst: &mut CpuStorage, dst_l: &Layout, q: &CpuStorage, q_l: &Layout) -> Result<()> {
        if !self.isa.is_available() {
            bail!("paged_attention: this machine has no {:?}", self.isa)
        }
        let op = &self.op;
        let width = op.heads * op.head_dim;
        if let Some(launcher) = &op.on.launcher {
            let (dst, q) = (Place::of_cpu(dst, dst_l)?, Place::of_cpu(q, q_l)?);
            return op.launch_on(&**launcher, (dst, dst_l), (q, q_l));
        }
        let (d, _) = op.rows("destination", dst_l, |found| found == width)?;
        let (s, stride) = op.rows("queries", q_l, |found| found >= width)?;
        let q = Queries { rows: &q.as_slice::<f32>()?[s], stride };
        let (kv, kv_l) = op.kv.storage_and_layout();
        let (blocks, start) = cache_blocks(kv_l, kv.dtype(), op.kv_heads, op.head_dim)?;
        op.check(blocks)?;
        let Storage::Cpu(kv) = &*kv else { bail!("paged_attention: the cache is not on the CPU") };
        match (dst, kv) {
            (CpuStorage::F32(dst), CpuStorage::F32(kv)) => self.attend(&mut dst[d], q, &kv[start..]),
            (CpuStorage::F32(dst), CpuStorage::BF16(kv)) => self.attend(&mut dst[d], q, &kv[start..]),
            (CpuStorage::BF16(dst), CpuStorage::F32(kv)) => self.attend(&mut dst[d], q, &kv[start..]),
            (CpuStorage::BF16(dst), CpuStorage::BF16(kv)) => self.attend(&mut dst[d], q, &kv[start..]),
            (CpuStorage::F32(dst), CpuStorage::F8E4M3(kv)) => self.attend(&mut dst[d], q, fp8(&kv[start..])),
            (CpuStorage::BF16(dst), CpuStorage::F8E4M3(kv)) => self.attend(&mut dst[d], q, fp8(&kv[start..])),
            (CpuStorage::F32(dst), CpuStorage::U8(kv)) => self.attend(&mut dst[d], q, Q8(&kv[start..])),
            (CpuStorage::BF16(dst), CpuStorage::U8(kv)) => self.attend(&mut dst[d], q, Q8(&kv[start..])),
            (dst, kv) => bail!("paged_attention: no {:?} from a {:?} cache", dst.dtype(), kv.dtype()),
        }
        Ok(())
    }
}

/// How many blocks a layer's cache `[blocks, 2, kv_heads, BLOCK_SIZE, width]` of that type has, and where it
/// begins in its storage.
pub(super) fn cache_blocks(
    layout: &Layout,
    dtype: DType,
    kv_heads: usize,
    head_dim: usize,
) -> Result<(usize, usize)> {
    let wanted = width(dtype, head_dim);
    match (layout.dims(), layout.contiguous_offsets()) {
        ([blocks, 2, heads, BLOCK_SIZE, width], Some((start, _)))
            if *heads == kv_heads && *width == wanted =>
        {
            Ok((*blocks, start))
        }
        _ => {
            bail!("the cache is {layout:?} where [blocks, 2, {kv_heads}, {BLOCK_SIZE}, {wanted}] is needed")
        }
    }
}

impl PagedAttention<'_> {
    const NAME: &'static str = "paged_attention";

    /// Where the step's rows lie in a tensor's storage, and their width.
    fn rows(
        &self,
        what: &str,
        layout: &Layout,
        fits: impl Fn(usize) -> bool,
    ) -> Result<(std::ops::Range<usize>, usize)> {
        let (capacity, width) = layout.shape().dims2()?;
        let rows = self.plan.rows;
        match layout.contiguous_offsets() {
            Some((start, _)) if fits(width) && capacity >= rows => Ok((start..start + rows * width, width)),
            _ => bail!(
                "paged_attention: the {what} is {layout:?}, not {rows} rows of {} heads of {}",
                self.heads,
                self.head_dim
            ),
        }
    }

    /// Everything that the kernels rely on without looking again.
    fn check(&self, blocks: usize) -> Result<()> {
        let PagedAttention { plan, heads, kv_heads, head_dim, limits, sinks, .. } = *self;
        if limits.window == Some(0) || limits.soft_cap.is_some_and(|cap| !cap.is_finite() || cap <= 0.0) {
            bail!("paged_attention: {limits:?}: a window holds a position, and a cap is a number above 0")
        }
        if sinks.is_some_and(|sinks| sinks.rows() * sinks.cols() != heads || sinks.kind() != WeightType::F32)
        {
            bail!("paged_attention: sinks that are not {heads} of f32")
        }
        if kv_heads == 0 || heads == 0 || !heads.is_multiple_of(kv_heads) {
            bail!("paged_attention: {heads} query heads for {kv_heads} K/V heads")
        }
        if head_dim == 0 || !head_dim.is_multiple_of(8) || head_dim > MAX_HEAD_DIM {
            bail!("paged_attention: head_dim {head_dim} is not a multiple of 8 up to {MAX_HEAD_DIM}")
        }
        let mut row = 0;
        for span in plan.spans.host {
            let first = span.first_row as usize;
            if first < row || first + span.rows as usize > plan.rows {
                bail!("paged_attention: {span:?} overlaps, or leaves the step's {} rows", plan.rows)
            }
            row = first + span.rows as usize;
            let Some(table) = table(&plan, span) else {
                bail!("paged_attention: {span:?} ends beyond {} block ids", plan.block_tables.host.len())
            };
            if let Some(id) = table.iter().find(|id| **id as usize >= blocks) {
                bail!("paged_attention: block {id} of a cache of {blocks} in {span:?}")
            }
        }
        Ok(())
    }
}

/// The block ids that a span reads.
fn table<'a>(plan: &AttentionPlan<'a>, span: &AttentionSpan) -> Option<&'a [u32]> {
    let seen = span.first_position as usize + span.rows as usize;
    plan.block_tables.host.get(span.block_table as usize..)?.get(..seen.div_ceil(BLOCK_SIZE))
}

impl PagedAttentionOn<'_> {
    fn attend<C: Cache, O: Element>(&self, dst: &mut [O], q: Queries<'_>, cache: C) {
        let PagedAttention { plan, heads, kv_heads, head_dim, scale, scales, limits, sinks, on, .. } =
            self.op;
        let pool = &on.pool;
        let scores = Scores { scale: scale * scales.k, cap: limits.soft_cap };
        let window = limits.window.unwrap_or(usize::MAX);
        let sinks = sinks.map(Weight::f32s);
        let shape = Shape { heads, kv_heads, head_dim, scores, window, v_scale: scales.v, sinks };
        let cut = Cut::new(heads / kv_heads);
        let dst = SharedMut::new(dst);
        let mut tasks = 0;
        let mut work = 0;
        for span in plan.spans.host {
            let rows = span.rows as usize;
            tasks += cut.tasks(rows, kv_heads);
            let seen = (span.first_position as usize + rows).min(window.saturating_add(rows));
            work += rows * seen * heads * head_dim * 2;
        }
        let task = |i: usize| {
            if let Some(group) = cut.group(&plan, kv_heads, i) {
                // SAFETY: `check` has seen the spans (disjoint, within the rows) and their tables
                // (within the cache); groups are disjoint; cpu_fwd checked the instruction set.
                unsafe { attention::attend(self.isa, &shape, &group, q, cache, dst) }
            }
        };
        if work < INLINE_WORK { (0..tasks).for_each(task) } else { pool.run(tasks, &task) }
    }
}

/// How a step is cut into groups of query vectors.
#[derive(Clone, Copy)]
struct Cut {
    /// Query heads of one K/V head.
    group: usize,
    /// Query heads of a task.
    heads: usize,
    /// Rows of a task.
    rows: usize,
}

impl Cut {
    fn new(group: usize) -> Cut {
        let heads = group.min(MAX_QUERIES);
        Cut { group, heads, rows: MAX_QUERIES / heads }
    }

    fn tasks(&self, rows: usize, kv_heads: usize) -> usize {
        rows.div_ceil(self.rows) * kv_heads * self.group.div_ceil(self.heads)
    }

    /// The i-th group of a step. Within a span the last rows come first: they see the most.
    fn group<'a>(&self, plan: &AttentionPlan<'a>, kv_heads: usize, mut i: usize) -> Option<Group<'a>> {
        for span in plan.spans.host {
            let rows = span.rows as usize;
            let tasks = self.tasks(rows, kv_heads);
            if i >= tasks {
                i -= tasks;
                continue;
            }
            let cuts = self.group.div_ceil(self.heads);
            let (kv_head, cut) = (i / cuts % kv_heads, i % cuts);
            let first = (rows.div_ceil(self.rows) - 1 - i / cuts / kv_heads) * self.rows;
            return Some(Group {
                first_row: span.first_row as usize + first,
                rows: self.rows.min(rows - first),
                first_position: span.first_position as usize + first,
                first_head: kv_head * self.group + cut * self.heads,
                heads: self.heads.min(self.group - cut * self.heads),
                kv_head,
                table: table(plan, span)?,
            });
        }
        None
    }
}

#[cfg(test)]
mod tests;
