//! RMS normalisation (arXiv 1910.07467): f32 rows in, f32 or bf16 rows out.

use candle_core::{CpuStorage, CudaStorage, DType, InplaceOp1, InplaceOp2, Layout, Result};

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

/// `dst[r] += src[r] / rms(src[r]) × weight`, all f32, otherwise as [`RmsNorm`].
pub struct AddNormed<'a>(pub RmsNorm<'a>);

/// `dst[r] = src[r]`, where other models have a norm; as [`RmsNorm`].
pub struct AsIs<'a> {
    pub width: usize,
    pub rows: usize,
    pub on: &'a Exec,
}

/// Norms the first two parts of each of the first `rows` rows in place, each with a weight of its own, as wide as its
/// weight; f32 `[capacity, ≥ both]`.
pub struct NormSides<'a> {
    /// f32 `[1, width]` each.
    pub weights: &'a [Weight; 2],
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
        self.launch(self.on.launcher(self.name())?, self.name(), dst, src)
    }

    fn cpu_fwd(&self, dst: &mut CpuStorage, dl: &Layout, src: &CpuStorage, sl: &Layout) -> Result<()> {
        if let Some(launcher) = &self.on.launcher {
            return self.launch(&**launcher, self.name(), Place::of_cpu(dst, dl)?, Place::of_cpu(src, sl)?);
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

/// Launches a kernel of rows of f32 and a weight that is as wide, or none.
fn launch(
    launcher: &dyn Launcher,
    kernel: &'static str,
    (dst, src): (Place, Place),
    (rows, width): (usize, usize),
    (weight, eps): (u64, f32),
) -> Result<()> {
    let dst = dst.holds(rows * width, kernel)?;
    let src = src.holds(rows * width, kernel)?.is(DType::F32, kernel)?;
    let launch = Launch {
        kernel,
        types: launch::types(dst.dtype)?,
        grid: [rows as u32, 1, 1],
        threads: THREADS,
        shared_bytes: THREADS / 32 * 4,
        arguments: Arguments::default()
            .with(dst.address)
            .with(src.address)
            .with(weight)
            .with(width as u32)
            .with(eps),
    };
    // SAFETY: both places hold the rows, as checked; a row is `width` long, as the weight is.
    unsafe { launcher.launch(&launch) }
}

impl RmsNorm<'_> {
    fn launch(&self, launcher: &dyn Launcher, kernel: &'static str, dst: Place, src: Place) -> Result<()> {
        let shape = (self.rows, self.weight.cols());
        launch(launcher, kernel, (dst, src), shape, (self.weight.address(), self.eps))
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

impl InplaceOp2 for AddNormed<'_> {
    fn name(&self) -> &'static str {
        "add_normed"
    }

    fn cuda_fwd(&self, dst: &mut CudaStorage, dl: &Layout, src: &CudaStorage, sl: &Layout) -> Result<()> {
        let (dst, src) = (Place::of_cuda(dst, dl)?, Place::of_cuda(src, sl)?);
        self.0.launch(self.0.on.launcher(self.name())?, self.name(), dst.is(DType::F32, self.name())?, src)
    }

    fn cpu_fwd(&self, dst: &mut CpuStorage, dl: &Layout, src: &CpuStorage, sl: &Layout) -> Result<()> {
        let RmsNorm { weight, eps, rows, on } = self.0;
        if let Some(launcher) = &on.launcher {
            let (dst, src) = (Place::of_cpu(dst, dl)?, Place::of_cpu(src, sl)?);
            return self.0.launch(&**launcher, self.name(), dst.is(DType::F32, self.name())?, src);
        }
        let (width, weight) = (weight.cols(), weight.f32s());
        let (src, dst) =
            (storage::read_f32(src, sl, self.name())?, storage::write_f32(dst, dl, self.name())?);
        if src.len() < rows * width || dst.len() < rows * width {
            candle_core::bail!("add_normed: {rows} rows of {width} do not fit the given tensors");
        }
        let out = RowsMut::new(dst, width);
        storage::for_rows(&on.pool, rows, width, &|r| {
            let row = &src[r * width..(r + 1) * width];
            let scale = inverse_rms(row, eps);
            // SAFETY: each task is given its own row.
            for ((o, x), w) in unsafe { out.row(r) }.iter_mut().zip(row).zip(weight) {
                *o += x * scale * w;
            }
        });
        Ok(())
    }
}

impl InplaceOp2 for AsIs<'_> {
    fn name(&self) -> &'static str {
        "as_is"
    }

    fn cuda_fwd(&self, dst: &mut CudaStorage, dl: &Layout, src: &CudaStorage, sl: &Layout) -> Result<()> {
        let places = (Place::of_cuda(dst, dl)?, Place::of_cuda(src, sl)?);
        launch(self.on.launcher(self.name())?, self.name(), places, (self.rows, self.width), (0, 0.0))
    }

    fn cpu_fwd(&self, dst: &mut CpuStorage, dl: &Layout, src: &CpuStorage, sl: &Layout) -> Result<()> {
        if let Some(launcher) = &self.on.launcher {
            let places = (Place::of_cpu(dst, dl)?, Place::of_cpu(src, sl)?);
            return launch(&**launcher, self.name(), places, (self.rows, self.width), (0, 0.0));
        }
        let (src, n) = (storage::read_f32(src, sl, self.name())?, self.rows * self.width);
        fn copy<T: Element>(dst: &mut [T], src: &[f32]) {
            dst.iter_mut().zip(src).for_each(|(to, x)| *to = T::from_f32(*x));
        }
        match (storage::write(dst, dl, self.name())?, src.get(..n)) {
            (ActivationsMut::F32(d), Some(src)) if d.len() >= n => copy(d, src),
            (ActivationsMut::Bf16(d), Some(src)) if d.len() >= n => copy(d, src),
            _ => candle_core::bail!("as_is: {} rows of {} do not fit", self.rows, self.width),
        }
        Ok(())
    }
}

impl InplaceOp1 for NormSides<'_> {
    fn name(&self) -> &'static str {
        "norm_sides"
    }

    fn cuda_fwd(&self, dst: &mut CudaStorage, dl: &Layout) -> Result<()> {
        self.launch(self.on.launcher(self.name())?, Place::of_cuda(dst, dl)?, self.stride(dl)?)
    }

    fn cpu_fwd(&self, dst: &mut CpuStorage, dl: &Layout) -> Result<()> {
        let stride = self.stride(dl)?;
        if let Some(launcher) = &self.on.launcher {
            return self.launch(&**launcher, Place::of_cpu(dst, dl)?, stride);
        }
        let dst = storage::write_f32(dst, dl, self.name())?;
        if dst.len() < self.rows * stride {
            candle_core::bail!("norm_sides: {} rows do not fit the given tensor", self.rows);
        }
        let out = RowsMut::new(dst, stride);
        storage::for_rows(&self.on.pool, self.rows, stride, &|r| {
            // SAFETY: each task is given its own row.
            let mut rest = unsafe { out.row(r) };
            for weight in self.weights {
                let (side, beyond) = rest.split_at_mut(weight.cols());
                let scale = inverse_rms(side, self.eps);
                side.iter_mut().zip(weight.f32s()).for_each(|(x, w)| *x = *x * scale * w);
                rest = beyond;
            }
        });
        Ok(())
    }
}

impl NormSides<'_> {
    /// The width of a row.
    fn stride(&self, layout: &Layout) -> Result<usize> {
        let (_, stride) = layout.shape().dims2()?;
        match self.weights.iter().map(Weight::cols).sum::<usize>() <= stride {
            true => Ok(stride),
            false => candle_core::bail!("norm_sides: rows of {stride} are narrower than both weights"),
        }
    }

    fn launch(&self, launcher: &dyn Launcher, dst: Place, stride: usize) -> Result<()> {
        let dst = dst.holds(self.rows * stride, self.name())?.is(DType::F32, self.name())?;
        let [first, second] = self.weights;
        let launch = Launch {
            kernel: "norm_sides",
            types: &[],
            grid: [self.rows as u32, 2, 1],
            threads: THREADS,
            shared_bytes: THREADS / 32 * 4,
            arguments: Arguments::default()
                .with(dst.address)
                .with(first.address())
                .with(second.address())
                .with(first.cols() as u32)
                .with(second.cols() as u32)
                .with(stride as u32)
                .with(self.eps),
        };
        // SAFETY: the place holds the rows, each as wide as both weights at least, as checked.
        unsafe { launcher.launch(&launch) }
    }
}
