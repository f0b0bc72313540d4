//! Numbers one by one: the gated activation of the feed-forward network, and the cap of logits.

use candle_core::{CpuStorage, CudaStorage, DType, InplaceOp1, InplaceOp2, Layout, Result};

use super::exec::Exec;
use super::launch::{self, Arguments, Launch, Launcher, Place};
use super::storage::{self, ActivationsMut, Element, RowsMut};

/// What a gate goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GateActivation {
    /// x · σ(x)
    Silu,
    /// GELU by its tanh approximation (arXiv 1606.08415): x · σ(2 √(2/π) (x + 0.044715 x³)).
    GeluTanh,
    /// gpt-oss: x · σ(α x) of a gate of at most a limit, and by its up, within that limit, plus 1.
    ClampedSwiglu,
}

/// α of [`GateActivation::ClampedSwiglu`].
pub const SWIGLU_ALPHA: f32 = 1.702;
pub const SWIGLU_LIMIT: f32 = 7.0;

/// `dst = activation(gate) × up` over the first `rows` rows; src: f32 `[capacity, 2 × width]`, gate before up; dst:
/// f32 or bf16 `[capacity, width]`.
pub struct GateMul<'a> {
    pub activation: GateActivation,
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

#[inline(always)]
fn gelu_tanh_mul(gate: f32, up: f32) -> f32 {
    /// 2 √(2/π)
    const TWICE: f32 = 1.595_769;
    gate / (1.0 + exp(-TWICE * (gate + 0.044_715 * gate * gate * gate))) * up
}

/// What is no number stays none.
#[inline(always)]
fn clamped_swiglu_mul(gate: f32, up: f32) -> f32 {
    let gate = if gate > SWIGLU_LIMIT { SWIGLU_LIMIT } else { gate };
    gate / (1.0 + exp(-SWIGLU_ALPHA * gate)) * (up.clamp(-SWIGLU_LIMIT, SWIGLU_LIMIT) + 1.0)
}

/// cap · tanh(x / cap)
#[inline(always)]
fn soft_cap(x: f32, cap: f32) -> f32 {
    let small = exp((x / cap).abs() * -2.0);
    (cap * (1.0 - small) / (1.0 + small)).copysign(x)
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

impl InplaceOp2 for GateMul<'_> {
    fn name(&self) -> &'static str {
        match self.activation {
            GateActivation::Silu => "silu_mul",
            GateActivation::GeluTanh => "gelu_tanh_mul",
            GateActivation::ClampedSwiglu => "clamped_swiglu_mul",
        }
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
            candle_core::bail!("{}: {} rows do not fit the given tensors", self.name(), self.rows);
        }
        match (storage::write(dst, dl, self.name())?, self.activation) {
            (ActivationsMut::F32(d), GateActivation::Silu) => self.activate(d, src, silu_mul),
            (ActivationsMut::Bf16(d), GateActivation::Silu) => self.activate(d, src, silu_mul),
            (ActivationsMut::F32(d), GateActivation::GeluTanh) => self.activate(d, src, gelu_tanh_mul),
            (ActivationsMut::Bf16(d), GateActivation::GeluTanh) => self.activate(d, src, gelu_tanh_mul),
            (ActivationsMut::F32(d), GateActivation::ClampedSwiglu) => {
                self.activate(d, src, clamped_swiglu_mul)
            }
            (ActivationsMut::Bf16(d), GateActivation::ClampedSwiglu) => {
                self.activate(d, src, clamped_swiglu_mul)
            }
        }
        Ok(())
    }
}

impl GateMul<'_> {
    fn launch(&self, launcher: &dyn Launcher, dst: Place, src: Place) -> Result<()> {
        let n = self.rows * self.width;
        let dst = dst.holds(n, self.name())?;
        let src = src.holds(2 * n, self.name())?.is(DType::F32, self.name())?;
        let width = self.width as u32;
        let launch = Launch {
            kernel: self.name(),
            types: launch::types(dst.dtype)?,
            grid: [self.rows as u32, width.div_ceil(THREADS), 1],
            threads: THREADS,
            shared_bytes: 0,
            arguments: Arguments::default().with(dst.address).with(src.address).with(width),
        };
        // SAFETY: both places hold the rows, as checked.
        unsafe { launcher.launch(&launch) }
    }

    /// A function of its own type each, so that the loop becomes vector code.
    fn activate<T: Element>(&self, dst: &mut [T], src: &[f32], gate_mul: impl Fn(f32, f32) -> f32 + Sync) {
        let out = RowsMut::new(dst, self.width);
        storage::for_rows(&self.on.pool, self.rows, self.width, &|r| {
            let (gate, up) = src[2 * r * self.width..2 * (r + 1) * self.width].split_at(self.width);
            // SAFETY: each task is given its own row.
            let out = unsafe { out.row(r) };
            for ((o, g), u) in out.iter_mut().zip(gate).zip(up) {
                *o = T::from_f32(gate_mul(*g, *u));
            }
        });
    }
}

/// `x = cap · tanh(x / cap)` over the first `rows` rows, f32 `[capacity, width]`.
pub struct SoftCap<'a> {
    /// Above 0.
    pub cap: f32,
    pub rows: usize,
    pub width: usize,
    pub on: &'a Exec,
}

impl InplaceOp1 for SoftCap<'_> {
    fn name(&self) -> &'static str {
        "soft_cap"
    }

    fn cuda_fwd(&self, dst: &mut CudaStorage, dl: &Layout) -> Result<()> {
        self.launch(self.on.launcher(self.name())?, Place::of_cuda(dst, dl)?)
    }

    fn cpu_fwd(&self, dst: &mut CpuStorage, dl: &Layout) -> Result<()> {
        if let Some(launcher) = &self.on.launcher {
            return self.launch(&**launcher, Place::of_cpu(dst, dl)?);
        }
        let dst = storage::write_f32(dst, dl, self.name())?;
        if dst.len() < self.rows * self.width {
            candle_core::bail!("soft_cap: {} rows do not fit the given tensor", self.rows);
        }
        let rows = RowsMut::new(dst, self.width);
        storage::for_rows(&self.on.pool, self.rows, self.width, &|r| {
            // SAFETY: each task is given its own row.
            unsafe { rows.row(r) }.iter_mut().for_each(|x| *x = soft_cap(*x, self.cap));
        });
        Ok(())
    }
}

impl SoftCap<'_> {
    fn launch(&self, launcher: &dyn Launcher, dst: Place) -> Result<()> {
        let dst = dst.holds(self.rows * self.width, self.name())?.is(DType::F32, self.name())?;
        let width = self.width as u32;
        let launch = Launch {
            kernel: self.name(),
            types: &[],
            grid: [self.rows as u32, width.div_ceil(THREADS), 1],
            threads: THREADS,
            shared_bytes: 0,
            arguments: Arguments::default().with(dst.address).with(width).with(self.cap),
        };
        // SAFETY: the place holds the rows, as checked.
        unsafe { launcher.launch(&launch) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gelu_and_caps_are_theirs_in_f64() {
        for i in -2000..2000 {
            let x = i as f32 / 50.0;
            let wide = f64::from(x);
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044_715 * wide.powi(3));
            let gelu = 0.5 * wide * (1.0 + inner.tanh());
            assert!(
                (f64::from(gelu_tanh_mul(x, 1.0)) - gelu).abs() < 2e-6 * wide.abs().max(1.0),
                "gelu({x})"
            );
            for cap in [0.5, 30.0] {
                let want = f64::from(cap) * (wide / f64::from(cap)).tanh();
                assert!(
                    (f64::from(soft_cap(x, cap)) - want).abs() < 1e-6 * f64::from(cap),
                    "{x} under {cap}"
                );
            }
        }
        assert!(soft_cap(f32::NAN, 3.0).is_nan() && gelu_tanh_mul(f32::NAN, 1.0).is_nan());
        assert_eq!((soft_cap(f32::INFINITY, 3.0), soft_cap(-1e30, 3.0)), (3.0, -3.0));
    }

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
