//! Rotary positions (arXiv 2104.09864), in the half-split layout of HuggingFace checkpoints.
//!
//! `RopeAngles` writes a step's cosines and sines once; `Rope` turns query or key heads with them,
//! after an RMS norm of each head where the model has one.

use candle_core::{CpuStorage, CudaStorage, DType, InplaceOp1, InplaceOp2, Layout, Result, Tensor};

use super::exec::Exec;
use super::kv_write::{CacheScales, KvWrite};
use super::launch::{self, Argument, Arguments, Launch, Launcher, Mirrored, Place};
use super::paged_attention::{BLOCK_SIZE, cache_blocks};
use super::rms_norm::inverse_rms;
use super::storage::{self, RowsMut};
use super::weight::Weight;

/// Of the kernels' blocks: a warp turns a head at a time.
const THREADS: u32 = 256;

/// `dst[r] = [cos(p·f₀) …, sin(p·f₀) …]` for the position p of row r; `[capacity, 2 × frequencies]`. Both are multiplied by
/// `length` but where the frequency is 0: what is not turned stays as it is.
pub struct RopeAngles<'a> {
    pub positions: Mirrored<'a, u32>,
    /// f32 `[1, frequencies]`
    pub inverse_frequencies: &'a Weight,
    pub length: f32,
    pub on: &'a Exec,
}

impl InplaceOp1 for RopeAngles<'_> {
    fn name(&self) -> &'static str {
        "rope_angles"
    }

    fn cuda_fwd(&self, dst: &mut CudaStorage, dl: &Layout) -> Result<()> {
        self.launch(self.on.launcher(self.name())?, Place::of_cuda(dst, dl)?)
    }

    fn cpu_fwd(&self, dst: &mut CpuStorage, dl: &Layout) -> Result<()> {
        let half = self.inverse_frequencies.cols();
        let positions = self.positions.host;
        if let Some(launcher) = &self.on.launcher {
            return self.launch(&**launcher, Place::of_cpu(dst, dl)?);
        }
        let dst = storage::write_f32(dst, dl, self.name())?;
        if dst.len() < positions.len() * 2 * half {
            candle_core::bail!("rope_angles: no room for {} rows", positions.len());
        }
        for (&position, row) in positions.iter().zip(dst.chunks_exact_mut(2 * half)) {
            let (cos, sin) = row.split_at_mut(half);
            for ((c, s), f) in cos.iter_mut().zip(sin).zip(self.inverse_frequencies.f32s()) {
                let length = if *f == 0.0 { 1.0 } else { self.length };
                let (sine, cosine) = (position as f32 * f).sin_cos();
                (*s, *c) = (sine * length, cosine * length);
            }
        }
        Ok(())
    }
}

impl RopeAngles<'_> {
    fn launch(&self, launcher: &dyn Launcher, dst: Place) -> Result<()> {
        let (rows, half) = (self.positions.host.len(), self.inverse_frequencies.cols());
        let dst = dst.holds(rows * 2 * half, self.name())?.is(DType::F32, self.name())?;
        let launch = Launch {
            kernel: "rope_angles",
            types: &[],
            grid: [rows as u32, 1, 1],
            threads: 64,
            shared_bytes: 0,
            arguments: Arguments::default()
                .with(dst.address)
                .with(self.positions.address)
                .with(self.inverse_frequencies.address())
                .with(half as u32)
                .with(self.length),
        };
        // SAFETY: the destination holds the rows, as checked.
        unsafe { launcher.launch(&launch) }
    }
}

/// Turns queries and keys by their positions and writes keys and values into their slots: on the CPU one after
/// the other, by a kernel in one pass.
///
/// qkv: f32 `[capacity, (heads + 2 × kv_heads) × head_dim]`, queries turned in place (what is left of the keys is
/// of no use); angles as [`RopeAngles`] makes them; cache: `[blocks, 2, kv_heads, BLOCK_SIZE,
/// width]` as `kv_write` has it.
///
/// # Errors
/// What does not fit, by name.
pub fn rope_kv_write(
    qkv: &Tensor,
    angles: &Tensor,
    cache: &Tensor,
    op: &Rope<'_>,
    slots: Mirrored<'_, u32>,
) -> Result<()> {
    let Rope { heads, kv_heads, head_dim, scales, .. } = *op;
    match &op.on.launcher {
        Some(launcher) => op.launch(&**launcher, qkv, angles, cache, slots),
        None => {
            qkv.inplace_op2(angles, op)?;
            cache.inplace_op2(
                qkv,
                &KvWrite { slots: slots.host, column: heads * head_dim, kv_heads, head_dim, scales },
            )
        }
    }
}

/// Numbers of a head that the kernel takes at most.
const MOST_OF_A_HEAD: usize = 256;

/// As the kernel has it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Heads {
    queries: u32,
    keys: u32,
    dim: u32,
}

// SAFETY: three numbers, no padding.
unsafe impl Argument for Heads {}

/// Turns the query heads and, after them, the key heads of `dst` `[capacity, ≥ (heads + kv_heads) × head_dim]` in
/// place by the angles in `src`.
pub struct Rope<'a> {
    pub rows: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Weights `[head_dim]` for queries and keys, and epsilon, of the norm each head gets first.
    pub norms: Option<(&'a [Weight; 2], f32)>,
    /// Of what is stored; turning knows nothing of them.
    pub scales: CacheScales,
    pub on: &'a Exec,
}

impl Rope<'_> {
    fn launch(
        &self,
        launcher: &dyn Launcher,
        qkv: &Tensor,
        angles: &Tensor,
        cache: &Tensor,
        slots: Mirrored<'_, u32>,
    ) -> Result<()> {
        let name = "rope_kv_write";
        let (blocks, _) = cache_blocks(cache.layout(), cache.dtype(), self.kv_heads, self.head_dim)?;
        if let Some(slot) = slots.host.iter().find(|s| **s as usize >= blocks * BLOCK_SIZE) {
            candle_core::bail!("{name}: slot {slot} of a cache of {blocks} blocks of {BLOCK_SIZE}")
        }
        if self.head_dim > MOST_OF_A_HEAD {
            candle_core::bail!("{name}: heads of {}, and the kernel takes {MOST_OF_A_HEAD}", self.head_dim)
        }
        let stride = qkv.dim(1)?;
        if stride < (self.heads + 2 * self.kv_heads) * self.head_dim || slots.host.len() != self.rows {
            candle_core::bail!(
                "{name}: rows of {stride} for {} heads, {} slots",
                self.heads,
                slots.host.len()
            )
        }
        let qkv = Place::of_tensor(qkv)?.holds(self.rows * stride, name)?.is(DType::F32, name)?;
        let angles =
            Place::of_tensor(angles)?.holds(self.rows * self.head_dim, name)?.is(DType::F32, name)?;
        let cache = Place::of_tensor(cache)?;
        let norm = |i: usize| self.norms.map_or(0, |(weights, _)| weights[i].address());
        let launch = Launch {
            kernel: name,
            types: launch::types(cache.dtype)?,
            grid: [self.rows as u32, 1, 1],
            threads: THREADS,
            shared_bytes: 0,
            arguments: Arguments::default()
                .with(qkv.address)
                .with(cache.address)
                .with(angles.address)
                .with(slots.address)
                .with(norm(0))
                .with(norm(1))
                .with(Heads {
                    queries: self.heads as u32,
                    keys: self.kv_heads as u32,
                    dim: self.head_dim as u32,
                })
                .with(stride as u32)
                .with(self.norms.map_or(0.0, |(_, eps)| eps))
                .with(self.scales.k)
                .with(self.scales.v),
        };
        // SAFETY: places hold the rows and slots lie in the cache, as checked. The kernel writes to `qkv` and
        // `cache`, which nobody else touches while a step runs.
        unsafe { launcher.launch(&launch) }
    }

    fn head(&self, head: &mut [f32], norm: Option<(&[f32], f32)>, cos: &[f32], sin: &[f32]) {
        if let Some((weight, eps)) = norm {
            let scale = inverse_rms(head, eps);
            for (x, w) in head.iter_mut().zip(weight) {
                *x = *x * scale * w;
            }
        }
        let (low, high) = head.split_at_mut(self.head_dim / 2);
        for (((l, h), c), s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
            let (a, b) = (*l, *h);
            *l = a * c - b * s;
            *h = b * c + a * s;
        }
    }
}

impl InplaceOp2 for Rope<'_> {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, dst: &mut CpuStorage, dl: &Layout, src: &CpuStorage, sl: &Layout) -> Result<()> {
        let (_, width) = dl.shape().dims2()?;
        let half = self.head_dim / 2;
        let turned = (self.heads + self.kv_heads) * self.head_dim;
        let angles = storage::read_f32(src, sl, self.name())?;
        let dst = storage::write_f32(dst, dl, self.name())?;
        if width < turned || dst.len() < self.rows * width || angles.len() < self.rows * 2 * half {
            candle_core::bail!("rope: {} rows do not fit the given tensors", self.rows);
        }
        let out = RowsMut::new(dst, width);
        storage::for_rows(&self.on.pool, self.rows, turned, &|r| {
            let (cos, sin) = angles[r * 2 * half..(r + 1) * 2 * half].split_at(half);
            // SAFETY: each task is given its own row.
            let row = unsafe { out.row(r) };
            for (i, head) in row[..turned].chunks_exact_mut(self.head_dim).enumerate() {
                let norm =
                    self.norms.map(|(weights, eps)| (weights[usize::from(i >= self.heads)].f32s(), eps));
                self.head(head, norm, cos, sin);
            }
        });
        Ok(())
    }
}
