//! The linear layer: activations `[rows, K]` times a weight `[N, K]` transposed, plus bias.
//!
//! One product serves every row count. An output's value depends on its weight row, its activation
//! row and the instruction set, not on how many rows come along, which they are, or how many threads
//! share the work: threads take panels of weight rows, and K is never split. The weight is read where
//! it lies (it may be a mapped file), without repacking.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, DType, InplaceOp2, Layout, Result, bail};

use super::cpu::dot::{PANEL_ROWS, Pair, Panel, panel};
use super::cpu::{Element, Isa, SharedMut};
use super::exec::Exec;
use super::launch::{Launcher, Place, Product};
use super::weight::{Weight, WeightSlice, WeightType};

/// Multiply-adds below which waking the pool costs more than it saves.
const INLINE_WORK: usize = 100_000;
/// Bytes of a panel of weights, which stays in the second-level cache while the activations pass.
const PANEL_BYTES: usize = 256 << 10;
/// Outputs that share a cache line of the destination: panels begin at such a boundary.
const LINE: usize = 16;
/// Panels of a task at most.
const PANELS_OF_TASK: usize = 8;

/// `dst[0..rows, column..column + N] = src[0..rows, K] · weightᵀ + bias`, or `+=` with `accumulate`.
///
/// dst: f32 `[capacity, ≥ column + N]`, src: f32 or bf16 `[capacity, K]`, both contiguous; only the first
/// `rows` rows are read, and nothing else is written. Weight and src may be bf16·bf16, f32·f32, f16·f32, bf16·f32, f32·bf16.
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
            bias: self.bias.map_or(0, Weight::address),
            rows: self.rows,
            n,
            k,
            accumulate: self.accumulate,
        };
        // SAFETY: the places hold the rows, and a row the outputs, as checked.
        unsafe { launcher.product(&product) }
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
        let Linear { weight, bias, rows, column, accumulate, on } = self.op;
        let pool = &on.pool;
        let (n, k) = (weight.rows(), weight.cols());
        if n == 0 || k == 0 || rows == 0 {
            return;
        }
        let out = SharedMut::new(dst.data);
        let step = panel_rows(n, k * size_of::<W>(), pool.threads());
        let panels = n.div_ceil(step);
        let weights = |i: usize| &w[(i * step * k).min(w.len())..((i + 1) * step * k).min(w.len())];
        // A task is a few panels, so that a thread knows which weights it needs next.
        let per_task = (panels / (4 * pool.threads())).clamp(1, PANELS_OF_TASK);
        let task = |t: usize| {
            let end = ((t + 1) * per_task).min(panels);
            for i in t * per_task..end {
                let mut widened = [0.0; PANEL_ROWS];
                if let Some(bias) = bias {
                    for (j, b) in widened[..step.min(n - i * step)].iter_mut().enumerate() {
                        *b = bias.get(i * step + j);
                    }
                }
                let p = Panel {
                    w: weights(i),
                    next: if i + 1 < end { weights(i + 1) } else { &[] },
                    x,
                    k,
                    rows,
                    bias: &widened,
                    accumulate,
                    dst: out,
                    stride: dst.stride,
                    column: column + i * step,
                };
                // SAFETY: dst holds rows × stride elements (sliced so by the caller), of which n from column
                // on are this product's; panels own disjoint ones, and cpu_fwd checked that the machine has the instruction set.
                unsafe { panel(self.isa, &p) }
            }
        };
        let tasks = panels.div_ceil(per_task);
        if n * k * rows < INLINE_WORK { (0..tasks).for_each(task) } else { pool.run(tasks, &task) }
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
