//! RMS normalisation (arXiv 1910.07467): f32 rows in, f32 or bf16 rows out.

use candle_core::{CpuStorage, CudaStorage, DType, InplaceOp2, Layout, Result};

use super::exec::Exec;
use super::launch::{self, Arguments, Launch, Launcher, Place};
use super::storage::{self, ActivationsMut, Element, RowsMut};
use super::weight::Weight;

/// Of a kernel's block.
const THREADS: u32 = 256;

/// `dst[r] = src[r] / rms(src[r]) × weight` for the first `rows` rows; `[capacity, width]`.
pub struct RmsNorm<'a> {
    /// f32 `[1, width]`
    pub weight: &'a Weight,
    pub eps: f32,
    pub rows: usize,
    pub on: &'a Exec,
}

/// 1 / rms of a row: sixteen partial sums, always in the same order.
pub(super) fn inverse_rms(row: &[f32], eps: f32) -> f32 {
    let mut sums = [0f32; 16];
    let chunks = row.chunks_exact(16);
    let tail = chunks.remainder();
    for chunk in chunks {
        for (s, x) in sums.iter_mut().zip(chunk) {
            *s += x * x;
        }
    }
    for (s, x) in sums.iter_mut().zip(tail) {
        *s += x * x;
    }
    let total: f32 = sums.iter().sum();
    1.0 / (total / row.len() as f32 + eps).sqrt()
}

impl InplaceOp2 for RmsNorm<'_> {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cuda_fwd(&self, dst: &mut CudaStorage, dl: &Layout, src: &CudaStorage, sl: &Layout) -> Result<()> {
        let (dst, src) = (Place::of_cuda(dst, dl)?, Place::of_cuda(src, sl)?);
        self.launch(self.on.launcher(self.name())?, dst, src)
    }

    fn cpu_fwd(&self, dst: &mut CpuStorage, dl: &Layout, src: &CpuStorage, sl: &Layout) -> Result<()> {
        if let Some(launcher) = &self.on.launcher {
            return self.launch(&**launcher, Place::of_cpu(dst, dl)?, Place::of_cpu(src, sl)?);
        }
        let width = self.weight.cols();
        let src = storage::read_f32(src, sl, self.name())?;
        if src.len() < self.rows * width {
            candle_core::bail!("rms_norm: {} rows of {width} asked, {} elements given", self.rows, src.len());
        }
        match storage::write(dst, dl, self.name())? {
            ActivationsMut::F32(d) => self.normalise(d, src),
            ActivationsMut::Bf16(d) => self.normalise(d, src),
        }
        Ok(())
    }
}

impl RmsNorm<'_> {
    fn launch(&self, launcher: &dyn Launcher, dst: Place, src: Place) -> Result<()> {
        let width = self.weight.cols();
        let dst = dst.holds(self.rows * width, self.name())?;
        let src = src.holds(self.rows * width, self.name())?.is(DType::F32, self.name())?;
        let launch = Launch {
            kernel: "rms_norm",
            types: launch::types(dst.dtype)?,
            grid: [self.rows as u32, 1, 1],
            threads: THREADS,
            shared_bytes: THREADS / 32 * 4,
            arguments: Arguments::default()
                .with(dst.address)
                .with(src.address)
                .with(self.weight.address())
                .with(width as u32)
                .with(self.eps),
        };
        // SAFETY: both places hold the rows, as checked; a row is `width` long, as the weight is.
        unsafe { launcher.launch(&launch) }
    }

    fn normalise<T: Element>(&self, dst: &mut [T], src: &[f32]) {
        let width = self.weight.cols();
        let weight = self.weight.f32s();
        let out = RowsMut::new(dst, width);
        storage::for_rows(&self.on.pool, self.rows, width, &|r| {
            let row = &src[r * width..(r + 1) * width];
            let scale = inverse_rms(row, self.eps);
            // SAFETY: each task is given its own row.
            for ((o, x), w) in unsafe { out.row(r) }.iter_mut().zip(row).zip(weight) {
                *o = T::from_f32(x * scale * w);
            }
        });
    }
}
