//! A copy of one tensor into another: what a device's memory does when nothing is computed.

use candle_core::{CpuStorage, CudaStorage, DType, InplaceOp2, Layout, Result, bail};

use super::exec::Exec;
use super::launch::Place;
use super::storage::{self, RowsMut};

/// `dst = src`, f32 of one shape.
pub struct Copy<'a> {
    pub on: &'a Exec,
}

impl Copy<'_> {
    fn launch(&self, dst: Place, src: Place) -> Result<()> {
        let (dst, src) =
            (dst.is(DType::F32, "copy")?, src.is(DType::F32, "copy")?.holds(dst.elements, "copy")?);
        let bytes = dst.elements * DType::F32.size_in_bytes();
        // SAFETY: both hold so many bytes, as checked.
        unsafe { self.on.launcher("copy")?.copy(dst.address, src.address, bytes) }
    }
}

impl InplaceOp2 for Copy<'_> {
    fn name(&self) -> &'static str {
        "copy"
    }

    fn cuda_fwd(&self, dst: &mut CudaStorage, dl: &Layout, src: &CudaStorage, sl: &Layout) -> Result<()> {
        self.launch(Place::of_cuda(dst, dl)?, Place::of_cuda(src, sl)?)
    }

    fn cpu_fwd(&self, dst: &mut CpuStorage, dl: &Layout, src: &CpuStorage, sl: &Layout) -> Result<()> {
        if self.on.launcher.is_some() {
            return self.launch(Place::of_cpu(dst, dl)?, Place::of_cpu(src, sl)?);
        }
        let (to, from) = (storage::write_f32(dst, dl, "copy")?, storage::read_f32(src, sl, "copy")?);
        if from.len() < to.len() {
            bail!("copy: {} elements of a tensor of {}", to.len(), from.len())
        }
        // A piece a thread: pieces that fit a cache would be copied through it.
        let piece = to.len().div_ceil(self.on.pool.threads()).max(1);
        let whole = to.len() / piece;
        let (pieces, rest) = to.split_at_mut(whole * piece);
        rest.copy_from_slice(&from[whole * piece..][..rest.len()]);
        let pieces = RowsMut::new(pieces, piece);
        self.on.pool.run(whole, &|i| {
            // SAFETY: each task has a piece of its own.
            unsafe { pieces.row(i) }.copy_from_slice(&from[i * piece..][..piece]);
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    #[test]
    fn every_element_is_copied_on_any_number_of_threads() {
        for (elements, threads) in [(0usize, 2), (1, 3), (7, 2), (1000, 3)] {
            let from: Vec<f32> = (0..elements).map(|i| i as f32 + 1.0).collect();
            let src = Tensor::from_slice(&from, elements, &Device::Cpu).unwrap();
            let dst = Tensor::zeros(elements, DType::F32, &Device::Cpu).unwrap();
            dst.inplace_op2(&src, &Copy { on: &Exec::cpu(threads) }).unwrap();
            assert_eq!(dst.to_vec1::<f32>().unwrap(), from);
        }
    }
}
