//! Picking rows: token embeddings out of a weight, and the rows that need logits out of a step.

use candle_core::{CpuStorage, CudaStorage, DType, InplaceOp1, InplaceOp2, Layout, Result};

use super::cpu::Element;
use super::exec::Exec;
use super::launch::{self, Arguments, Launch, Launcher, Mirrored, Place};
use super::storage;
use super::weight::{Weight, WeightSlice, WeightType};

/// Of a kernel's block.
const THREADS: u32 = 256;

/// Instead of a token's id: that of the sample with the index in the lower bits.
pub const PENDING: u32 = 1 << 31;

/// What rows are picked from, and what picks them.
struct Table {
    address: u64,
    /// Of blocks.
    heads: Option<u64>,
    kernel: &'static str,
    types: &'static [DType],
}

impl Table {
    fn plain(address: u64, dtype: DType) -> Result<Table> {
        Ok(Table { address, heads: None, kernel: "gather", types: launch::types(dtype)? })
    }

    fn of(weight: &Weight) -> Result<Table> {
        match weight.kind() {
            WeightType::Blocks(format) => Ok(Table {
                address: weight.address(),
                heads: weight.place_of_scales().map(|heads| heads.address),
                kernel: format.gather_kernel(),
                types: &[],
            }),
            plain => Table::plain(weight.address(), plain.dtype()),
        }
    }
}

/// `dst[i] = scale × table[ids[i]]`, widened.
fn launch(
    launcher: &dyn Launcher,
    dst: Place,
    table: Table,
    (ids, sampled): (Mirrored<'_, u32>, u64),
    (width, scale): (usize, f32),
) -> Result<()> {
    let dst = dst.holds(ids.host.len() * width, "gather")?.is(DType::F32, "gather")?;
    let mut arguments = Arguments::default().with(dst.address).with(table.address);
    if let Some(heads) = table.heads {
        arguments = arguments.with(heads);
    }
    let arguments = arguments.with(ids.address).with(sampled).with(width as u32).with(scale);
    let launch = Launch {
        kernel: table.kernel,
        types: table.types,
        grid: [ids.host.len() as u32, 1, 1],
        threads: THREADS,
        shared_bytes: 0,
        arguments,
    };
    // SAFETY: the destination holds the rows, as checked; callers have checked the ids.
    unsafe { launcher.launch(&launch) }
}

fn widen<T: Element>(out: &mut [f32], row: &[T], scale: f32) {
    for (o, x) in out.iter_mut().zip(row) {
        *o = x.widen() * scale;
    }
}

/// `dst[r] = scale × table[ids[r]]`, widened to f32; dst `[capacity, table.cols()]`.
pub struct Gather<'a> {
    pub table: &'a Weight,
    pub ids: Mirrored<'a, u32>,
    /// Results of sampling (see `ops::sample`) that [`PENDING`] ids refer to; for kernels only, 0 for none.
    pub sampled: u64,
    pub scale: f32,
    pub on: &'a Exec,
}

impl InplaceOp1 for Gather<'_> {
    fn name(&self) -> &'static str {
        "gather"
    }

    fn cuda_fwd(&self, dst: &mut CudaStorage, dl: &Layout) -> Result<()> {
        self.check()?;
        let ids = (self.ids, self.sampled);
        let width = (self.table.cols(), self.scale);
        let table = Table::of(self.table)?;
        launch(self.on.launcher(self.name())?, Place::of_cuda(dst, dl)?, table, ids, width)
    }

    fn cpu_fwd(&self, dst: &mut CpuStorage, dl: &Layout) -> Result<()> {
        let width = self.table.cols();
        let ids = self.ids.host;
        self.check()?;
        if let Some(launcher) = &self.on.launcher {
            let ids = (self.ids, self.sampled);
            let table = Table::of(self.table)?;
            return launch(&**launcher, Place::of_cpu(dst, dl)?, table, ids, (width, self.scale));
        }
        let dst = storage::write_f32(dst, dl, self.name())?;
        if dst.len() < ids.len() * width {
            candle_core::bail!("gather: no room for {} rows", ids.len());
        }
        for (&id, out) in ids.iter().zip(dst.chunks_exact_mut(width)) {
            let row = id as usize;
            let range = row * width..(row + 1) * width;
            match self.table.slice() {
                WeightSlice::Fp8(_) => candle_core::bail!("gather: no table of FP8"),
                WeightSlice::F32(t) => widen(out, &t[range], self.scale),
                WeightSlice::F16(t) => widen(out, &t[range], self.scale),
                WeightSlice::Bf16(t) => widen(out, &t[range], self.scale),
                WeightSlice::Blocks(t) => {
                    t.widen_row(row, out);
                    out.iter_mut().for_each(|x| *x *= self.scale);
                }
            }
        }
        Ok(())
    }
}

/// `dst[i] = src[rows[i]]`; both f32, `[_, width]`.
pub struct SelectRows<'a> {
    pub rows: Mirrored<'a, u32>,
    pub width: usize,
    pub on: &'a Exec,
}

impl InplaceOp2 for SelectRows<'_> {
    fn name(&self) -> &'static str {
        "select_rows"
    }

    fn cuda_fwd(&self, dst: &mut CudaStorage, dl: &Layout, src: &CudaStorage, sl: &Layout) -> Result<()> {
        self.launch(self.on.launcher(self.name())?, Place::of_cuda(dst, dl)?, Place::of_cuda(src, sl)?)
    }

    fn cpu_fwd(&self, dst: &mut CpuStorage, dl: &Layout, src: &CpuStorage, sl: &Layout) -> Result<()> {
        let rows = self.rows.host;
        if let Some(launcher) = &self.on.launcher {
            return self.launch(&**launcher, Place::of_cpu(dst, dl)?, Place::of_cpu(src, sl)?);
        }
        let src = storage::read_f32(src, sl, self.name())?;
        let dst = storage::write_f32(dst, dl, self.name())?;
        if dst.len() < rows.len() * self.width {
            candle_core::bail!("select_rows: no room for {} rows", rows.len());
        }
        for (&row, out) in rows.iter().zip(dst.chunks_exact_mut(self.width)) {
            let start = row as usize * self.width;
            match src.get(start..start + self.width) {
                Some(row) => out.copy_from_slice(row),
                None => candle_core::bail!("select_rows: row {row} is outside the step"),
            }
        }
        Ok(())
    }
}

impl Gather<'_> {
    fn check(&self) -> Result<()> {
        let known = |id: u32| (id as usize) < self.table.rows() || self.sampled != 0 && id & PENDING != 0;
        match self.ids.host.iter().find(|id| !known(**id)) {
            Some(id) => {
                candle_core::bail!("gather: token {id} is outside the vocabulary of {}", self.table.rows())
            }
            None => Ok(()),
        }
    }
}

impl SelectRows<'_> {
    fn launch(&self, launcher: &dyn Launcher, dst: Place, src: Place) -> Result<()> {
        let last = self.rows.host.iter().max().map_or(0, |row| *row as usize + 1);
        let src = src.holds(last * self.width, self.name())?.is(DType::F32, self.name())?;
        launch(launcher, dst, Table::plain(src.address, DType::F32)?, (self.rows, 0), (self.width, 1.0))
    }
}
