//! Products of few rows by kernels that read each weight once, with what comes before and after fused in.
//!
//! The one place that says which product goes where: up to [`MOST_ROWS`] rows to these kernels, more to the launcher's
//! own products. Where a fused kernel does not fit, the function says so and the caller runs the operations one by
//! one, as the CPU does. Which is faster where is unmeasured.

use candle_core::{DType, Result, Tensor};

use super::exec::Exec;
use super::launch::{self, Arguments, Launch, Launcher, Place, Product};
use super::rms_norm::RmsNorm;
use super::weight::{Weight, WeightType};

/// Rows of a launch at most.
pub const MOST_ROWS: usize = 8;

/// As `ops/cuda/gemv.cu` has them.
const THREADS: u32 = 128;
const WARPS: usize = 4;
const SCRATCH_BYTES: usize = MOST_ROWS * WARPS * 4;

/// Shared memory that each served card has for a block.
const MOST_SHARED_BYTES: usize = 96 << 10;
/// Blocks of a fused launch at most: eight for each multiprocessor of the largest cards. Each normalises its rows
/// anew, so more of them would only do that more often.
const MOST_FUSED_BLOCKS: usize = 132 * 8;

/// True for a product that the kernels take, a group of rows at a time.
fn suits(k: usize, weight: WeightType, activations: DType) -> bool {
    k.is_multiple_of(8) && weight != WeightType::Fp8 && weight.dtype() == activations
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
    let suits = suits(p.k, p.weight_type, p.src_type);
    if batch_invariant && !suits {
        candle_core::bail!(
            "linear: no product of {:?} weights of {} inputs gives a row the same bits in every batch",
            p.weight_type,
            p.k
        )
    }
    if !suits || p.rows > MOST_ROWS && !batch_invariant {
        return Ok(false);
    }
    for first in (0..p.rows).step_by(MOST_ROWS) {
        let rows = MOST_ROWS.min(p.rows - first);
        let launch = Launch {
            kernel: instance(["gemv_1", "gemv_2", "gemv_4", "gemv_8"], rows),
            types: launch::types(p.src_type)?,
            grid: [p.n.div_ceil(WARPS) as u32, 1, 1],
            threads: THREADS,
            shared_bytes: 0,
            arguments: Arguments::default()
                .with(p.dst + (first * p.dst_stride * 4) as u64)
                .with(p.src + (first * p.k * p.src_type.size_in_bytes()) as u64)
                .with(p.weight)
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
    /// What launches it as one kernel, if one fits.
    fn fused(&self) -> Option<&dyn Launcher> {
        let (rows, k) = (self.norm.rows, self.weight.cols());
        let shared = SCRATCH_BYTES + rows * k * self.activations.size_in_bytes();
        let fits = (1..=MOST_ROWS).contains(&rows) && shared <= MOST_SHARED_BYTES;
        let suits = fits && suits(k, self.weight.kind(), self.activations) && !self.on.batch_invariant;
        self.on.launcher.as_deref().filter(|_| suits && self.norm.weight.cols() == k)
    }

    fn launch(&self, kernel: &'static str, outputs: usize, arguments: Arguments) -> Result<Launch> {
        let shared = SCRATCH_BYTES + self.norm.rows * self.weight.cols() * self.activations.size_in_bytes();
        Ok(Launch {
            kernel,
            types: launch::types(self.activations)?,
            grid: [outputs.div_ceil(WARPS).min(MOST_FUSED_BLOCKS) as u32, 1, 1],
            threads: THREADS,
            shared_bytes: shared as u32,
            arguments,
        })
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
        let Some(launcher) = self.fused() else { return Ok(false) };
        let (n, stride) = (self.weight.rows(), dst.dim(1)?);
        if stride < n || self.bias.is_some_and(|b| b.rows() * b.cols() != n) {
            candle_core::bail!("norm_product: {n} outputs in rows of {stride}, or a bias of others")
        }
        let (to, from) = self.places(dst, src, stride, DType::F32)?;
        let names = ["gemv_norm_1", "gemv_norm_2", "gemv_norm_4", "gemv_norm_8"];
        let arguments = self
            .begin(to, from)
            .with(self.weight.address())
            .with(self.bias.map_or(0, Weight::address))
            .with(self.norm.rows as u32)
            .with(n as u32)
            .with(self.weight.cols() as u32)
            .with(stride as u32);
        // SAFETY: the places hold the rows, and a row of dst the outputs, as checked.
        unsafe { launcher.launch(&self.launch(instance(names, self.norm.rows), n, arguments)?)? };
        Ok(true)
    }

    /// `dst[r] = silu(gate) × up` of the product's two halves; src f32, dst of the activations' type
    /// `[capacity, outputs / 2]`. There is no bias. False when no kernel does it at once.
    ///
    /// # Errors
    /// As [`NormProduct::product`].
    pub fn silu_mul(&self, dst: &Tensor, src: &Tensor) -> Result<bool> {
        let Some(launcher) = self.fused().filter(|_| self.bias.is_none()) else { return Ok(false) };
        let n = self.weight.rows() / 2;
        if dst.dim(1)? != n {
            candle_core::bail!("norm_product: {n} gated outputs in rows of {}", dst.dim(1)?)
        }
        let (to, from) = self.places(dst, src, n, self.activations)?;
        let names =
            ["gemv_norm_silu_mul_1", "gemv_norm_silu_mul_2", "gemv_norm_silu_mul_4", "gemv_norm_silu_mul_8"];
        let arguments = self
            .begin(to, from)
            .with(self.weight.address())
            .with(self.norm.rows as u32)
            .with(n as u32)
            .with(self.weight.cols() as u32);
        // SAFETY: as above; the weight holds gate and up.
        unsafe { launcher.launch(&self.launch(instance(names, self.norm.rows), n, arguments)?)? };
        Ok(true)
    }

    fn begin(&self, dst: Place, src: Place) -> Arguments {
        let RmsNorm { weight, eps, .. } = &self.norm;
        Arguments::default().with(dst.address).with(src.address).with(weight.address()).with(*eps)
    }
}
