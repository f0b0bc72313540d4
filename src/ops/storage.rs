//! Borrowing the numbers behind a candle tensor: contiguous slices with a clear error otherwise.

use std::alloc;

use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, DType, Device, Layout, Result, Shape, Storage, Tensor, WithDType};
use half::bf16;

/// Activations are f32, or bf16 where the weights are.
pub enum Activations<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

/// A number an activation is stored as.
pub trait Element: Copy + Send + Sync {
    fn from_f32(x: f32) -> Self;
}

impl Element for f32 {
    #[inline(always)]
    fn from_f32(x: f32) -> f32 {
        x
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn from_f32(x: f32) -> bf16 {
        bf16::from_f32(x)
    }
}

pub enum ActivationsMut<'a> {
    F32(&'a mut [f32]),
    Bf16(&'a mut [bf16]),
}

/// A tensor of zeros; where it does not fit, the error says how many bytes were wanted. On the host its pages cost
/// memory, and time, only when they are first written.
pub fn zeros(shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Tensor> {
    let shape = shape.into();
    let count = shape.elem_count();
    let made = || {
        let storage = match (device, dtype) {
            (Device::Cpu, DType::F32) => CpuStorage::F32(untouched(count)?),
            (Device::Cpu, DType::BF16) => CpuStorage::BF16(untouched(count)?),
            (Device::Cpu, DType::F16) => CpuStorage::F16(untouched(count)?),
            (Device::Cpu, DType::F8E4M3) => CpuStorage::F8E4M3(untouched(count)?),
            (Device::Cpu, DType::U8) => CpuStorage::U8(untouched(count)?),
            _ => return Tensor::zeros(&shape, dtype, device),
        };
        Ok(Tensor::from_storage(Storage::Cpu(storage), &shape, BackpropOp::none(), false))
    };
    made().map_err(|e| no_room(count * dtype.size_in_bytes(), &e))
}

/// Zeros that the system has set aside and nobody has written; `vec![bf16::ZERO; n]` writes each.
fn untouched<T: WithDType>(count: usize) -> Result<Vec<T>> {
    match alloc::Layout::array::<T>(count) {
        Ok(layout) if layout.size() > 0 => {
            // SAFETY: the layout has a size.
            let first = unsafe { alloc::alloc_zeroed(layout) }.cast::<T>();
            if first.is_null() {
                candle_core::bail!("the system has no room");
            }
            // SAFETY: the global allocator gave them, with the layout of a vector of so many, and a number without a
            // bit set is the zero of each of candle's types.
            Ok(unsafe { Vec::from_raw_parts(first, count, count) })
        }
        Ok(_) => Ok(Vec::new()),
        Err(error) => candle_core::bail!("{error}"),
    }
}

/// That a device had no room for so many bytes.
pub fn no_room(bytes: usize, error: &candle_core::Error) -> candle_core::Error {
    candle_core::Error::Msg(format!("{bytes} bytes could not be had: {error}")).bt()
}

/// The part of the storage a contiguous layout covers.
pub fn range(layout: &Layout, op: &str) -> Result<std::ops::Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => candle_core::bail!("{op}: a tensor of shape {:?} is not contiguous", layout.shape()),
    }
}

pub fn read<'a>(storage: &'a CpuStorage, layout: &Layout, op: &str) -> Result<Activations<'a>> {
    let r = range(layout, op)?;
    match storage {
        CpuStorage::F32(v) => Ok(Activations::F32(&v[r])),
        CpuStorage::BF16(v) => Ok(Activations::Bf16(&v[r])),
        _ => candle_core::bail!("{op}: reads f32 or bf16 only"),
    }
}

pub fn write<'a>(storage: &'a mut CpuStorage, layout: &Layout, op: &str) -> Result<ActivationsMut<'a>> {
    let r = range(layout, op)?;
    match storage {
        CpuStorage::F32(v) => Ok(ActivationsMut::F32(&mut v[r])),
        CpuStorage::BF16(v) => Ok(ActivationsMut::Bf16(&mut v[r])),
        _ => candle_core::bail!("{op}: writes f32 or bf16 only"),
    }
}

pub fn read_f32<'a>(storage: &'a CpuStorage, layout: &Layout, op: &str) -> Result<&'a [f32]> {
    match read(storage, layout, op)? {
        Activations::F32(s) => Ok(s),
        Activations::Bf16(_) => candle_core::bail!("{op}: reads f32 only"),
    }
}

pub fn write_f32<'a>(storage: &'a mut CpuStorage, layout: &Layout, op: &str) -> Result<&'a mut [f32]> {
    match write(storage, layout, op)? {
        ActivationsMut::F32(s) => Ok(s),
        ActivationsMut::Bf16(_) => candle_core::bail!("{op}: writes f32 only"),
    }
}

/// Rows of a mutable matrix that a pool's tasks take one by one.
pub struct RowsMut<'a, T> {
    data: *mut T,
    width: usize,
    rows: usize,
    lives: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: each row is handed to one task (the contract of `row`), so threads never share a row.
unsafe impl<T: Send> Sync for RowsMut<'_, T> {}

impl<'a, T> RowsMut<'a, T> {
    /// `width` elements a row; elements past the last whole row are left alone.
    pub fn new(data: &'a mut [T], width: usize) -> RowsMut<'a, T> {
        RowsMut {
            data: data.as_mut_ptr(),
            width,
            rows: data.len() / width.max(1),
            lives: std::marker::PhantomData,
        }
    }

    /// # Safety
    /// No two live borrows may be of the same row.
    #[allow(clippy::mut_from_ref)] // distinct rows are distinct memory
    pub unsafe fn row(&self, row: usize) -> &mut [T] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: in range by the assertion; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(row * self.width), self.width) }
    }
}

/// Below this many elements a loop is not worth waking the pool's threads.
const WORTH_A_THREAD: usize = 16 * 1024;

/// Runs `body` for each row, on the pool when there is enough work for it.
pub fn for_rows(pool: &super::pool::Pool, rows: usize, width: usize, body: &(dyn Fn(usize) + Sync)) {
    if rows * width < 2 * WORTH_A_THREAD {
        (0..rows).for_each(body);
    } else {
        pool.run(rows, body);
    }
}
