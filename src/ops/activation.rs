//! The gated activation of the feed-forward network: `silu(gate) × up`.

use candle_core::{CpuStorage, CudaStorage, DType, InplaceOp2, Layout, Result};

use super::exec::Exec;
use super::launch::{self, Arguments, Launch, Launcher, Place};
use super::storage::{self, ActivationsMut, Element, RowsMut};

/// `dst = silu(gate) × up` over the first `rows` rows; src: f32 `[capacity, 2 × width]`, gate before up; dst:
/// f32 or bf16 `[capacity, width]`.
pub struct SiluMul<'a> {
    pub rows: usize,
    pub width: usize,
    pub on: &'a Exec,
}

/// Of a kernel's block.
const THREADS: u32 = 256;

#[inline(always)]
fn silu_mul(gate: f32, up: f32) -> f32 {
    gate / (1.0 + exp(-gate)) * up
}

/// eˣ in f32 by range reduction and a polynomial (Cephes' coefficients): the library's `expf` keeps the
/// loop from being vectorised. Relative error below 2e-7; saturates instead of overflowing.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    let n = (x * std::f32::consts::LOG2_E + 12_582_912.0) - 12_582_912.0;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4f32;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_6e-1;
    let p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    p * f32::from_bits(((n as i32 + 127) << 23) as u32)
}

impl InplaceOp2 for SiluMul<'_> {
    fn name(&self) -> &'static str {
        "silu_mul"
    }

    fn cuda_fwd(&self, dst: &mut CudaStorage, dl: &Layout, src: &CudaStorage, sl: &Layout) -> Result<()> {
        let (dst, src) = (Place::of_cuda(dst, dl)?, Place::of_cuda(src, sl)?);
        self.launch(self.on.launcher(self.name())?, dst, src)
    }

    fn cpu_fwd(&self, dst: &mut CpuStorage, dl: &Layout, src: &CpuStorage, sl: &Layout) -> Result<()> {
        if let Some(launcher) = &self.on.launcher {
            return self.launch(&**launcher, Place::of_cpu(dst, dl)?, Place::of_cpu(src, sl)?);
        }
        let src = storage::read_f32(src, sl, self.name())?;
        if src.len() < self.rows * 2 * self.width {
            candle_core::bail!("silu_mul: {} rows do not fit the given tensors", self.rows);
        }
        match storage::write(dst, dl, self.name())? {
            ActivationsMut::F32(d) => self.activate(d, src),
            ActivationsMut::Bf16(d) => self.activate(d, src),
        }
        Ok(())
    }
}

impl SiluMul<'_> {
    fn launch(&self, launcher: &dyn Launcher, dst: Place, src: Place) -> Result<()> {
        let n = self.rows * self.width;
        let dst = dst.holds(n, self.name())?;
        let src = src.holds(2 * n, self.name())?.is(DType::F32, self.name())?;
        let width = self.width as u32;
        let launch = Launch {
            kernel: "silu_mul",
            types: launch::types(dst.dtype)?,
            grid: [self.rows as u32, width.div_ceil(THREADS), 1],
            threads: THREADS,
            shared_bytes: 0,
            arguments: Arguments::default().with(dst.address).with(src.address).with(width),
        };
        // SAFETY: both places hold the rows, as checked.
        unsafe { launcher.launch(&launch) }
    }

    fn activate<T: Element>(&self, dst: &mut [T], src: &[f32]) {
        let out = RowsMut::new(dst, self.width);
        storage::for_rows(&self.on.pool, self.rows, self.width, &|r| {
            let (gate, up) = src[2 * r * self.width..2 * (r + 1) * self.width].split_at(self.width);
            // SAFETY: each task is given its own row.
            let out = unsafe { out.row(r) };
            for ((o, g), u) in out.iter_mut().zip(gate).zip(up) {
                *o = T::from_f32(silu_mul(*g, *u));
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exact_to_a_few_ulp_and_never_overflows() {
        for i in -8700..8800 {
            let x = i as f32 / 100.0;
            let want = f64::from(x).exp();
            let error = (f64::from(exp(x)) - want).abs() / want;
            assert!(error < 3e-7, "exp({x}) is off by {error}");
        }
        assert!(exp(1e9).is_finite() && exp(-1e9) >= 0.0);
        assert!(silu_mul(-1e6, 1.0).abs() < 1e-30 && silu_mul(f32::NAN, 1.0).is_nan());
    }
}
