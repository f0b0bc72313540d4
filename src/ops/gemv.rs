//! Products of few rows by kernels that read each weight once, with what comes before and after fused in.
//!
//! The one place that says which product goes where: up to [`MOST_ROWS`] rows to these kernels, more to the launcher's
//! own products. Where a fused kernel does not fit, the function says so and the caller runs the operations one by
//! one, as the CPU does. Which is faster where is unmeasured.

use candle_core::{DType, Result, Tensor};

use super::blocks::{Format, GROUP};
use super::exec::Exec;
use super::launch::{self, Argument, Arguments, Launch, Launcher, Place, PlaceOfScales, Product};
use super::rms_norm::RmsNorm;
use super::weight::{Weight, WeightType};

/// Rows of a launch at most.
pub const MOST_ROWS: usize = 8;

/// As `ops/cuda/gemv.cu` has them.
pub(super) const THREADS: u32 = 128;
pub(super) const WARPS: usize = 4;
const SCRATCH_BYTES: usize = MOST_ROWS * WARPS * 4;

/// As `ops/cuda/blocks.cu` has them.
pub(super) const BLOCKS_THREADS: u32 = 256;

/// Shared memory that each served card has for a block.
const MOST_SHARED_BYTES: usize = 96 << 10;
/// Blocks of a fused launch at most: eight for each multiprocessor of the largest cards. Each normalises its rows
/// anew, so more of them would only do that more often.
const MOST_FUSED_BLOCKS: usize = 132 * 8;

/// A matrix of weights as the kernels take it.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Matrix {
    weights: u64,
    /// Of FP8; 0 for none.
    scales: u64,
    block_rows: u32,
    block_cols: u32,
}
// SAFETY: two addresses and two numbers, without padding, as in gemv.cu.
unsafe impl Argument for Matrix {}

impl Matrix {
    pub(super) fn new(weights: u64, scales: Option<PlaceOfScales>) -> Matrix {
        let scales = scales.unwrap_or(PlaceOfScales { address: 0, rows: 1, cols: 1 });
        let (block_rows, block_cols) = (scales.rows as u32, scales.cols as u32);
        Matrix { weights, scales: scales.address, block_rows, block_cols }
    }
}

/// The types in the names of the kernels for weights `[n, k]`, if they take them.
pub(super) fn types(
    k: usize,
    weight: WeightType,
    scales: Option<PlaceOfScales>,
    src: DType,
) -> Option<&'static [DType]> {
    if weight == WeightType::Fp8 {
        // Sixteen weights that a lane reads at once share a scale.
        let block = scales?.cols;
        let whole = k.is_multiple_of(16) && (block >= k || block.is_multiple_of(16));
        let types: &[DType] = match src {
            DType::F32 => &[DType::F32, DType::F8E4M3],
            DType::F16 => &[DType::F16, DType::F8E4M3],
            DType::BF16 => &[DType::BF16, DType::F8E4M3],
            _ => return None,
        };
        return whole.then_some(types);
    }
    (k.is_multiple_of(8) && weight.dtype() == src).then(|| launch::types(src).ok())?
}

/// Rows up to which these kernels are taken. Past a launch's own rows FP8 weights are read twice, a byte each; made
/// bf16 for another product they would be read once, written, and read again at two.
fn most_rows(weight: WeightType) -> usize {
    if weight == WeightType::Fp8 { 2 * MOST_ROWS } else { MOST_ROWS }
}

/// Outputs of a warp: two where it is the activations that take long to read.
fn outputs(rows: usize) -> usize {
    if rows > 2 { 2 } else { 1 }
}

/// The instance of a kernel for so many rows.
fn instance(names: [&'static str; 4], rows: usize) -> &'static str {
    names[match rows {
        0..=1 => 0,
        2 => 1,
        3..=4 => 2,
        _ => 3,
    }]
}

/// Launches a product, if the kernels take it: few rows, or any number, a group at a time, when a row's bits must not
/// depend on the others. False when somebody else must.
///
/// # Safety
/// As [`Launcher::product`].
pub(super) unsafe fn product(launcher: &dyn Launcher, p: &Product, batch_invariant: bool) -> Result<bool> {
    if let (WeightType::Blocks(format), Some(heads)) = (p.weight_type, p.scales) {
        // SAFETY: the caller's promise.
        return unsafe { product_of_blocks(launcher, p, (format, heads.address), batch_invariant) };
    }
    let Some(types) = types(p.k, p.weight_type, p.scales, p.src_type) else {
        match batch_invariant {
            true => candle_core::bail!(
                "linear: no product of {:?} weights of {} inputs gives a row the same bits in every batch",
                p.weight_type,
                p.k
            ),
            false => return Ok(false),
        }
    };
    if p.rows > most_rows(p.weight_type) && !batch_invariant {
        return Ok(false);
    }
    for first in (0..p.rows).step_by(MOST_ROWS) {
        let rows = MOST_ROWS.min(p.rows - first);
        let launch = Launch {
            kernel: instance(["gemv_1", "gemv_2", "gemv_4", "gemv_8"], rows),
            types,
            grid: [p.n.div_ceil(WARPS * outputs(rows)) as u32, 1, 1],
            threads: THREADS,
            shared_bytes: 0,
            arguments: Arguments::default()
                .with(p.dst + (first * p.dst_stride * 4) as u64)
                .with(p.src + (first * p.k * p.src_type.size_in_bytes()) as u64)
                .with(Matrix::new(p.weight, p.scales))
                .with(p.bias)
                .with(rows as u32)
                .with(p.n as u32)
                .with(p.k as u32)
                .with(p.dst_stride as u32)
                .with(u32::from(p.accumulate)),
        };
        // SAFETY: the caller's promise, for a part of the rows.
        unsafe { launcher.launch(&launch)? };
    }
    Ok(true)
}

/// The same of blocks.
///
/// # Safety
/// As [`Launcher::product`].
unsafe fn product_of_blocks(
    launcher: &dyn Launcher,
    p: &Product,
    (format, heads): (Format, u64),
    batch_invariant: bool,
) -> Result<bool> {
    if p.src_type != DType::BF16 {
        candle_core::bail!(
            "linear: no product of {} weights with {:?} activations",
            format.name(),
            p.src_type
        )
    }
    // Read twice they are fewer bytes than made bf16 and read again.
    if p.rows > 2 * MOST_ROWS && !batch_invariant {
        return Ok(false);
    }
    for first in (0..p.rows).step_by(MOST_ROWS) {
        let rows = MOST_ROWS.min(p.rows - first);
        let sums = if rows == 1 { 1 } else { MOST_ROWS };
        let launch = Launch {
            kernel: format.gemv_kernel(rows),
            types: &[],
            grid: [p.n.div_ceil(GROUP) as u32, 1, 1],
            threads: BLOCKS_THREADS,
            shared_bytes: BLOCKS_THREADS * sums as u32 * 4,
            arguments: Arguments::default()
                .with(p.dst + (first * p.dst_stride * 4) as u64)
                .with(p.src + (first * p.k * p.src_type.size_in_bytes()) as u64)
                .with(p.weight)
                .with(heads)
                .with(p.bias)
                .with(rows as u32)
                .with(p.n as u32)
                .with(p.k as u32)
                .with(p.dst_stride as u32)
                .with(u32::from(p.accumulate)),
        };
        // SAFETY: the caller's promise, for a part of the rows.
        unsafe { launcher.launch(&launch)? };
    }
    Ok(true)
}

/// A norm and the product that follows it.
pub struct NormProduct<'a> {
    /// Of f32 rows, whose width is the weight's inputs.
    pub norm: RmsNorm<'a>,
    pub weight: &'a Weight,
    pub bias: Option<&'a Weight>,
    /// The type that normed rows are rounded to.
    pub activations: DType,
    pub on: &'a Exec,
}

impl NormProduct<'_> {
    fn shared_bytes(&self) -> usize {
        SCRATCH_BYTES + self.norm.rows * self.weight.cols() * self.activations.size_in_bytes()
    }

    /// What launches it as one kernel, and the types in its name, if one fits.
    fn fused(&self) -> Option<(&dyn Launcher, &'static [DType])> {
        let (weight, k) = (self.weight, self.weight.cols());
        let fits = (1..=MOST_ROWS).contains(&self.norm.rows)
            && self.shared_bytes() <= MOST_SHARED_BYTES
            && self.norm.weight.cols() == k
            && !self.on.batch_invariant;
        let types = types(k, weight.kind(), weight.place_of_scales(), self.activations).filter(|_| fits)?;
        Some((self.on.launcher.as_deref()?, types))
    }

    /// `each_warp`: outputs of a warp at once.
    fn launch(
        &self,
        kernel: &'static str,
        types: &'static [DType],
        outputs: usize,
        each_warp: usize,
        arguments: Arguments,
    ) -> Launch {
        let blocks = outputs.div_ceil(WARPS * each_warp).min(MOST_FUSED_BLOCKS);
        let shared_bytes = self.shared_bytes() as u32;
        Launch { kernel, types, grid: [blocks as u32, 1, 1], threads: THREADS, shared_bytes, arguments }
    }

    fn places(&self, dst: &Tensor, src: &Tensor, width: usize, dtype: DType) -> Result<(Place, Place)> {
        let rows = self.norm.rows;
        let dst = Place::of_tensor(dst)?.holds(rows * width, "norm_product")?.is(dtype, "norm_product")?;
        let src = Place::of_tensor(src)?.holds(rows * self.weight.cols(), "norm_product")?;
        Ok((dst, src.is(DType::F32, "norm_product")?))
    }

    /// `dst[r] = norm(src[r]) · weightᵀ + bias`; dst and src f32, dst `[capacity, ≥ outputs]`. False when no kernel
    /// does it at once.
    ///
    /// # Errors
    /// Tensors that do not hold the rows, what the launcher says.
    pub fn product(&self, dst: &Tensor, src: &Tensor) -> Result<bool> {
        let Some((launcher, types)) = self.fused() else { return Ok(false) };
        let (n, stride) = (self.weight.rows(), dst.dim(1)?);
        if stride < n || self.bias.is_some_and(|b| b.rows() * b.cols() != n) {
            candle_core::bail!("norm_product: {n} outputs in rows of {stride}, or a bias of others")
        }
        let (to, from) = self.places(dst, src, stride, DType::F32)?;
        let names = ["gemv_norm_1", "gemv_norm_2", "gemv_norm_4", "gemv_norm_8"];
        let rows = self.norm.rows;
        let arguments = self
            .begin(to, from)
            .with(self.bias.map_or(0, Weight::address))
            .with(rows as u32)
            .with(n as u32)
            .with(self.weight.cols() as u32)
            .with(stride as u32);
        let launch = self.launch(instance(names, rows), types, n, outputs(rows), arguments);
        // SAFETY: the places hold the rows, and a row of dst the outputs, as checked.
        unsafe { launcher.launch(&launch)? };
        Ok(true)
    }

    /// `dst[r] = silu(gate) × up` of the product's two halves; src f32, dst of the activations' type
    /// `[capacity, outputs / 2]`. There is no bias. False when no kernel does it at once.
    ///
    /// # Errors
    /// As [`NormProduct::product`].
    pub fn silu_mul(&self, dst: &Tensor, src: &Tensor) -> Result<bool> {
        let Some((launcher, types)) = self.fused().filter(|_| self.bias.is_none()) else { return Ok(false) };
        let n = self.weight.rows() / 2;
        if dst.dim(1)? != n {
            candle_core::bail!("norm_product: {n} gated outputs in rows of {}", dst.dim(1)?)
        }
        let (to, from) = self.places(dst, src, n, self.activations)?;
        let names =
            ["gemv_norm_silu_mul_1", "gemv_norm_silu_mul_2", "gemv_norm_silu_mul_4", "gemv_norm_silu_mul_8"];
        let rows = self.norm.rows;
        let arguments = self.begin(to, from).with(rows as u32).with(n as u32).with(self.weight.cols() as u32);
        let launch = self.launch(instance(names, rows), types, n, 1, arguments);
        // SAFETY: as above; the weight holds gate and up.
        unsafe { launcher.launch(&launch)? };
        Ok(true)
    }

    fn begin(&self, dst: Place, src: Place) -> Arguments {
        let RmsNorm { weight, eps, .. } = &self.norm;
        let matrix = Matrix::new(self.weight.address(), self.weight.place_of_scales());
        Arguments::default()
            .with(dst.address)
            .with(src.address)
            .with(weight.address())
            .with(*eps)
            .with(matrix)
    }
}
