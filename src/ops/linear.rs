//! The linear layer: activations `[rows, K]` times a weight `[N, K]` transposed, plus bias.
//!
//! One product serves every row count. An output's value depends on its weight row, its activation
//! row and the instruction set, not on how many rows come along, which they are, or how many threads
//! share the work: threads take panels of weight rows, and K is never split. The weight is read where
//! it lies (it may be a mapped file), without repacking; FP8 is made f32 panel by panel. Blocks meet bf16 activations as
//! whole numbers, f32 activations as f32.

use std::ops::Range;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, DType, InplaceOp2, Layout, Result, bail};

use super::blocks::{Blocks, GROUP, TILE};
use super::cpu::blocks::{self as block_kernels, BlockPanel, Rounded, Rounding};
use super::cpu::dot::{PANEL_ROWS, Pair, Panel, panel};
use super::cpu::fp8::{self, F8E4M3};
use super::cpu::{Element, Isa, SharedMut};
use super::exec::Exec;
use super::gemv;
use super::launch::{Launcher, Place, Product};
use super::storage::{RowsMut, for_rows};
use super::weight::{Weight, WeightSlice, WeightType};

/// Multiply-adds below which waking the pool costs more than it saves.
const INLINE_WORK: usize = 100_000;
/// Bytes of a panel of weights, which stays in the second-level cache while the activations pass.
const PANEL_BYTES: usize = 256 << 10;
/// Outputs that share a cache line of the destination: panels begin at such a boundary.
const LINE: usize = 16;
// A panel of blocks begins with a group.
const _: () = assert!(LINE.is_multiple_of(GROUP) && PANEL_ROWS.is_multiple_of(GROUP));
/// Panels of a task at most.
const PANELS_OF_TASK: usize = 8;

/// `dst[0..rows, column..column + N] = src[0..rows, K] · weightᵀ + bias`, or `+=` with `accumulate`.
///
/// dst: f32 `[capacity, ≥ column + N]`, src: f32 or bf16 `[capacity, K]`, both contiguous; only the first
/// `rows` rows are read, and nothing else is written. Weight and src may be bf16·bf16, f32·f32, f16·f32, bf16·f32,
/// f32·bf16, FP8·f32, FP8·bf16, blocks·f32, blocks·bf16.
#[derive(Clone, Copy)]
pub struct Linear<'a> {
    /// `[N, K]`
    pub weight: &'a Weight,
    /// `[1, N]`
    pub bias: Option<&'a Weight>,
    pub rows: usize,
    /// Where this product's outputs begin in a row of the destination: several products may share one.
    pub column: usize,
    pub accumulate: bool,
    pub on: &'a Exec,
}

/// The same on an instruction set of the caller's choice, which the machine must have.
#[derive(Clone, Copy)]
pub struct LinearOn<'a> {
    pub op: Linear<'a>,
    pub isa: Isa,
}

impl InplaceOp2 for Linear<'_> {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cuda_fwd(
        &self,
        dst: &mut CudaStorage,
        dst_l: &Layout,
        src: &CudaStorage,
        src_l: &Layout,
    ) -> Result<()> {
        self.check()?;
        let (dst, src, stride) =
            (Place::of_cuda(dst, dst_l)?, Place::of_cuda(src, src_l)?, dst_l.shape().dims2()?.1);
        self.launch(self.on.launcher("linear")?, stride, dst, src)
    }

    fn cpu_fwd(&self, dst: &mut CpuStorage, dst_l: &Layout, src: &CpuStorage, src_l: &Layout) -> Result<()> {
        LinearOn { op: *self, isa: Isa::detect() }.cpu_fwd(dst, dst_l, src, src_l)
    }
}

impl InplaceOp2 for LinearOn<'_> {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, dst: &mut CpuStorage, dst_l: &Layout, src: &CpuStorage, src_l: &Layout) -> Result<()> {
        if !self.isa.is_available() {
            bail!("linear: this machine has no {:?}", self.isa)
        }
        let op = &self.op;
        let (n, k) = (op.weight.rows(), op.weight.cols());
        op.check()?;
        if let Some(launcher) = &op.on.launcher {
            let stride = dst_l.shape().dims2()?.1;
            return op.launch(&**launcher, stride, Place::of_cpu(dst, dst_l)?, Place::of_cpu(src, src_l)?);
        }
        let (d, stride) = rows_of("destination", dst_l, op.rows, |width| width >= op.column + n)?;
        let (s, _) = rows_of("source", src_l, op.rows, |width| width == k)?;
        let CpuStorage::F32(dst) = dst else {
            bail!("linear: the destination is {:?}, not f32", dst.dtype())
        };
        let dst = Outputs { data: &mut dst[d], stride };
        match (op.weight.slice(), src) {
            (WeightSlice::Bf16(w), CpuStorage::BF16(x)) => self.product(w, &x[s], dst),
            (WeightSlice::F32(w), CpuStorage::F32(x)) => self.product(w, &x[s], dst),
            (WeightSlice::F16(w), CpuStorage::F32(x)) => self.product(w, &x[s], dst),
            (WeightSlice::Bf16(w), CpuStorage::F32(x)) => self.product(w, &x[s], dst),
            (WeightSlice::F32(w), CpuStorage::BF16(x)) => self.product(w, &x[s], dst),
            (WeightSlice::Fp8(w), CpuStorage::F32(x)) => self.product_of_fp8(w, &x[s], dst),
            (WeightSlice::Fp8(w), CpuStorage::BF16(x)) => self.product_of_fp8(w, &x[s], dst),
            (WeightSlice::Blocks(w), CpuStorage::F32(x)) => {
                self.product_widened(&x[s], dst, &|row, to| w.widen_row(row, to))
            }
            (WeightSlice::Blocks(w), CpuStorage::BF16(x)) => self.product_of_blocks(w, &x[s], dst),
            (_, x) => return unsupported(op.weight.kind(), x.dtype()),
        }
        Ok(())
    }
}

impl Linear<'_> {
    fn check(&self) -> Result<()> {
        let n = self.weight.rows();
        match self.bias {
            Some(bias) if bias.rows() * bias.cols() != n => {
                bail!("linear: a bias of [{}, {}] for {n} outputs", bias.rows(), bias.cols())
            }
            _ => Ok(()),
        }
    }

    fn launch(&self, launcher: &dyn Launcher, dst_stride: usize, dst: Place, src: Place) -> Result<()> {
        let (n, k) = (self.weight.rows(), self.weight.cols());
        if dst_stride < self.column + n {
            bail!("linear: {n} outputs from column {} on in rows of {dst_stride}", self.column)
        }
        let dst = dst.holds(self.rows * dst_stride, "linear")?.is(DType::F32, "linear")?;
        let src = src.holds(self.rows * k, "linear")?;
        let product = Product {
            dst: dst.address + (self.column * size_of::<f32>()) as u64,
            dst_stride,
            src: src.address,
            src_type: src.dtype,
            weight: self.weight.address(),
            weight_type: self.weight.kind(),
            scales: self.weight.place_of_scales(),
            bias: self.bias.map_or(0, Weight::address),
            rows: self.rows,
            n,
            k,
            accumulate: self.accumulate,
        };
        // SAFETY: the places hold the rows, and a row the outputs, as checked.
        unsafe {
            match gemv::product(launcher, &product, self.on.batch_invariant)? {
                true => Ok(()),
                false => launcher.product(&product),
            }
        }
    }
}

fn unsupported(weight: WeightType, src: DType) -> Result<()> {
    bail!("linear: no product of {weight:?} weights with {src:?} activations")
}

/// Where the first `rows` rows of `[capacity, width]` lie in their storage, and their width.
fn rows_of(
    what: &str,
    layout: &Layout,
    rows: usize,
    fits: impl Fn(usize) -> bool,
) -> Result<(std::ops::Range<usize>, usize)> {
    let (capacity, width) = layout.shape().dims2()?;
    match layout.contiguous_offsets() {
        Some((start, _)) if fits(width) && capacity >= rows => Ok((start..start + rows * width, width)),
        _ => bail!(
            "linear: the {what} is {layout:?}, too small for {rows} rows, too narrow, or not contiguous"
        ),
    }
}

/// The rows that a product writes into.
struct Outputs<'a> {
    data: &'a mut [f32],
    stride: usize,
}

impl LinearOn<'_> {
    /// w: `[N, K]`, x: `[rows, K]`, dst: `[rows, stride]`.
    fn product<W: Pair<X>, X: Element>(&self, w: &[W], x: &[X], dst: Outputs<'_>) {
        let k = self.op.weight.cols();
        let (out, stride) = (SharedMut::new(dst.data), dst.stride);
        self.panels(k * size_of::<W>(), &|this, next| {
            let weights = |rows: Range<usize>| &w[rows.start * k..rows.end * k];
            self.one(this.start, weights(this), weights(next), x, out, stride);
        });
    }

    /// The same of FP8 weights, with their scales.
    fn product_of_fp8<X: Element>(&self, w: &[F8E4M3], x: &[X], dst: Outputs<'_>)
    where
        f32: Pair<X>,
    {
        let weight = self.op.weight;
        let k = weight.cols();
        self.product_widened(x, dst, &|row, to| {
            let (from, whole) = (&w[row * k..][..k], [1.0]);
            let (scales, width) = match weight.scales() {
                Some(scales) => (scales.of_row(row, k), scales.block().1),
                None => (&whole[..], k),
            };
            for ((from, to), scale) in from.chunks(width).zip(to.chunks_mut(width)).zip(scales) {
                // SAFETY: cpu_fwd checked that the machine has the instruction set.
                unsafe { fp8::scaled(self.isa, from, *scale, to) };
            }
        });
    }

    /// The same of weights whose rows `widen` makes f32: a panel once for all rows of activations.
    fn product_widened<X: Element>(
        &self,
        x: &[X],
        dst: Outputs<'_>,
        widen: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) where
        f32: Pair<X>,
    {
        let k = self.op.weight.cols();
        let (out, stride) = (SharedMut::new(dst.data), dst.stride);
        self.panels(k * size_of::<f32>(), &|this, _| {
            self.op.on.pool.with_scratch(|panel| {
                let length = this.len() * k;
                panel.resize(panel.len().max(length), 0.0);
                for (row, to) in this.clone().zip(panel.chunks_exact_mut(k)) {
                    widen(row, to);
                }
                self.one(this.start, &panel[..length], &[], x, out, stride);
            });
        });
    }

    /// The same of blocks, with activations rounded to bytes.
    fn product_of_blocks<X: Element>(&self, weights: &Blocks, x: &[X], dst: Outputs<'_>) {
        let Linear { weight, bias, rows, column, accumulate, on } = self.op;
        let n = weight.rows();
        on.pool.with_scratch(|room| {
            let rounded = self.rounded(x, room);
            let (out, stride) = (SharedMut::new(dst.data), dst.stride);
            self.panels(weights.bytes() / n.max(1), &|this, _| {
                let mut widened = [0.0; PANEL_ROWS];
                if let Some(bias) = bias {
                    for (to, row) in widened.iter_mut().zip(this.clone()) {
                        *to = bias.get(row);
                    }
                }
                let p = BlockPanel {
                    weights,
                    group: this.start / GROUP,
                    outputs: this.len(),
                    x: rounded,
                    rows,
                    bias: &widened,
                    accumulate,
                    dst: out,
                    stride,
                    column: column + this.start,
                };
                // SAFETY: as in `one`.
                unsafe { block_kernels::panel(self.isa, &p) }
            });
        });
    }

    /// Rounds the rows of activations, into `room`.
    fn rounded<'r, X: Element>(&self, x: &[X], room: &'r mut Vec<f32>) -> Rounded<'r> {
        let (rows, k, pool) = (self.op.rows, self.op.weight.cols(), &self.op.on.pool);
        let (tiles, codes) = (rows * (k / TILE), rows * k / 4);
        room.resize(room.len().max(3 * tiles + codes), 0.0);
        let (scales, rest) = room.split_at_mut(tiles);
        let (sums, rest) = rest.split_at_mut(2 * tiles);
        // SAFETY: numbers of as many bytes; any bytes are numbers of these types.
        let (sums, codes): (&mut [i32], &mut [i8]) = unsafe {
            (
                std::slice::from_raw_parts_mut(sums.as_mut_ptr().cast(), 2 * tiles),
                std::slice::from_raw_parts_mut(rest.as_mut_ptr().cast(), rows * k),
            )
        };
        let of_row = k / TILE;
        let places = (RowsMut::new(codes, k), RowsMut::new(scales, of_row), RowsMut::new(sums, 2 * of_row));
        for_rows(pool, rows, k, &|row| {
            // SAFETY: each row is written by one task; cpu_fwd checked that the machine has the instruction set.
            unsafe {
                let to =
                    Rounding { codes: places.0.row(row), scales: places.1.row(row), sums: places.2.row(row) };
                block_kernels::round(self.isa, &x[row * k..][..k], to);
            }
        });
        Rounded { k, codes, scales, sums }
    }

    /// Calls `each` with the weight rows of every panel, and those that the same thread turns to next.
    fn panels(&self, row_bytes: usize, each: &(dyn Fn(Range<usize>, Range<usize>) + Sync)) {
        let Linear { weight, rows, on, .. } = self.op;
        let (n, k, pool) = (weight.rows(), weight.cols(), &on.pool);
        if n == 0 || k == 0 || rows == 0 {
            return;
        }
        let step = panel_rows(n, row_bytes, pool.threads());
        let panels = n.div_ceil(step);
        let of_panel = |i: usize| (i * step).min(n)..((i + 1) * step).min(n);
        // A task is a few panels, so that a thread knows which weights it needs next.
        let per_task = (panels / (4 * pool.threads())).clamp(1, PANELS_OF_TASK);
        let task = |t: usize| {
            let end = ((t + 1) * per_task).min(panels);
            for i in t * per_task..end {
                each(of_panel(i), if i + 1 < end { of_panel(i + 1) } else { 0..0 });
            }
        };
        let tasks = panels.div_ceil(per_task);
        if n * k * rows < INLINE_WORK { (0..tasks).for_each(task) } else { pool.run(tasks, &task) }
    }

    /// One panel, whose weights begin with row `first`.
    fn one<W: Pair<X>, X: Element>(
        &self,
        first: usize,
        w: &[W],
        next: &[W],
        x: &[X],
        dst: SharedMut<f32>,
        stride: usize,
    ) {
        let Linear { weight, bias, rows, column, accumulate, .. } = self.op;
        let k = weight.cols();
        let mut widened = [0.0; PANEL_ROWS];
        if let Some(bias) = bias {
            for (j, b) in widened[..w.len() / k].iter_mut().enumerate() {
                *b = bias.get(first + j);
            }
        }
        let bias = &widened;
        let p = Panel { w, next, x, k, rows, bias, accumulate, dst, stride, column: column + first };
        // SAFETY: dst holds rows × stride elements (sliced so by the caller), of which N from column
        // on are this product's; panels own disjoint ones, and cpu_fwd checked that the machine has the instruction set.
        unsafe { panel(self.isa, &p) }
    }
}

/// Weight rows of a panel: few enough to stay cached and to share out evenly.
fn panel_rows(n: usize, row_bytes: usize, threads: usize) -> usize {
    let cached = PANEL_BYTES / row_bytes.max(1);
    let even = n.div_ceil(4 * threads);
    let rows = cached.min(even).clamp(LINE, PANEL_ROWS);
    rows - rows % LINE
}

#[cfg(test)]
mod tests;
