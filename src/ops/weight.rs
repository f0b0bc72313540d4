//! The one type a linear layer, a norm or an embedding holds: a matrix as its checkpoint stores it.
//!
//! Mapped from a file (the page cache's memory, not ours) or owned. Row-major `[rows, cols]`: row r
//! holds the weights of output r, so a dot product with a row walks memory in order.

use std::sync::Arc;

use candle_core::{DType, Device, Storage, Tensor};
use half::{bf16, f16};
use memmap2::Mmap;

use super::blocks::{Blocks, GROUP};
use super::cpu::Element;
use super::cpu::fp8::F8E4M3;
use super::exec::Exec;
use super::launch::PlaceOfScales;

mod fp8;
mod kind;
mod shard;
#[cfg(test)]
mod tests;
pub use fp8::{ScaleError, Scales};
pub use kind::WeightType;

#[derive(Debug, thiserror::Error)]
#[error("weight of shape [{rows}, {cols}] needs {needed} bytes and {found} were given")]
pub struct WeightSizeError {
    pub rows: usize,
    pub cols: usize,
    pub needed: usize,
    pub found: usize,
}

#[derive(Clone)]
enum Store {
    Mapped {
        map: Arc<Mmap>,
        offset: usize,
    },
    F32(Arc<Vec<f32>>),
    F16(Arc<Vec<f16>>),
    Bf16(Arc<Vec<bf16>>),
    Fp8(Arc<Vec<F8E4M3>>),
    Blocks(Arc<Blocks>),
    /// In a device's memory: a tensor of bytes that is kept, and its address.
    Device {
        address: u64,
        _bytes: Tensor,
        /// 0 for none.
        scales_address: u64,
        _scales: Option<Tensor>,
    },
}

/// A matrix `[rows, cols]`; a vector is `[1, cols]`. Clones share the storage.
#[derive(Clone)]
pub struct Weight {
    rows: usize,
    cols: usize,
    kind: WeightType,
    store: Store,
    /// Of FP8 alone.
    scales: Option<Scales>,
}

/// The elements of a weight, borrowed.
#[derive(Clone, Copy)]
pub enum WeightSlice<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
    /// To be multiplied by their scales.
    Fp8(&'a [F8E4M3]),
    Blocks(&'a Blocks),
}

#[cfg(feature = "cuda")]
fn device_address(bytes: &Tensor) -> candle_core::Result<u64> {
    use candle_core::cuda_backend::CudaStorageSlice;
    use candle_core::cuda_backend::cudarc::driver::DevicePtr;
    match &*bytes.storage_and_layout().0 {
        Storage::Cuda(storage) => match &storage.slice {
            CudaStorageSlice::U8(s) => Ok(s.device_ptr(&storage.device.cuda_stream()).0),
            _ => candle_core::bail!("weights are copied as bytes"),
        },
        _ => candle_core::bail!("weights are copied to CUDA devices only"),
    }
}

#[cfg(not(feature = "cuda"))]
fn device_address(bytes: &Tensor) -> candle_core::Result<u64> {
    match &*bytes.storage_and_layout().0 {
        // The device of the tests: kernels that run on the host.
        Storage::Cpu(candle_core::CpuStorage::U8(bytes)) => Ok(bytes.as_ptr() as u64),
        _ => candle_core::bail!("this build has no CUDA"),
    }
}

/// Bytes one behind the other in a device's memory.
fn copied(parts: &[&[u8]], device: &Device) -> candle_core::Result<Tensor> {
    let bytes = parts.iter().map(|part| part.len()).sum();
    let each = parts.iter().map(|part| Tensor::from_slice(part, part.len(), device));
    let all = each.collect::<candle_core::Result<Vec<_>>>().and_then(|each| match each.as_slice() {
        [one] => Ok(one.clone()),
        all => Tensor::cat(all, 0),
    });
    all.map_err(|e| super::storage::no_room(bytes, &e))
}

impl Weight {
    /// A view of a mapped file. Elements that are not aligned for their type are copied.
    ///
    /// # Errors
    /// When the range `offset..` does not hold `rows × cols` elements.
    pub fn mapped(
        map: Arc<Mmap>,
        offset: usize,
        rows: usize,
        cols: usize,
        kind: WeightType,
    ) -> Result<Weight, WeightSizeError> {
        let needed = rows * cols * kind.bytes();
        let found = map.len().saturating_sub(offset);
        if needed > found {
            return Err(WeightSizeError { rows, cols, needed, found });
        }
        if !(map.as_ptr() as usize + offset).is_multiple_of(kind.bytes()) {
            return Ok(Weight::from_bytes(&map[offset..offset + needed], rows, cols, kind));
        }
        Ok(Weight { rows, cols, kind, store: Store::Mapped { map, offset }, scales: None })
    }

    /// A copy of little-endian elements.
    pub(crate) fn from_bytes(bytes: &[u8], rows: usize, cols: usize, kind: WeightType) -> Weight {
        let store = match kind {
            WeightType::F32 => Store::F32(Arc::new(
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            )),
            WeightType::F16 => Store::F16(Arc::new(
                bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]])).collect(),
            )),
            WeightType::Bf16 => Store::Bf16(Arc::new(
                bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]])).collect(),
            )),
            WeightType::Fp8 => Store::Fp8(Arc::new(F8E4M3::from_bytes(bytes).to_vec())),
            WeightType::Blocks(format) => panic!("{} is read by its own module", format.name()),
        };
        Weight { rows, cols, kind, store, scales: None }
    }

    /// # Panics
    /// When `data.len() != rows × cols`.
    pub fn from_f32(data: Vec<f32>, rows: usize, cols: usize) -> Weight {
        assert_eq!(data.len(), rows * cols, "an owned weight is made with its own shape");
        Weight { rows, cols, kind: WeightType::F32, store: Store::F32(Arc::new(data)), scales: None }
    }

    pub fn from_blocks(blocks: Blocks) -> Weight {
        let (rows, cols, kind) = (blocks.rows(), blocks.cols(), WeightType::Blocks(blocks.format()));
        Weight { rows, cols, kind, store: Store::Blocks(Arc::new(blocks)), scales: None }
    }

    /// f32 `[1, n]`.
    pub fn vector(data: Vec<f32>) -> Weight {
        let n = data.len();
        Weight::from_f32(data, 1, n)
    }

    /// # Panics
    /// When `data.len() != rows × cols`.
    pub fn from_bf16(data: Vec<bf16>, rows: usize, cols: usize) -> Weight {
        assert_eq!(data.len(), rows * cols, "an owned weight is made with its own shape");
        Weight { rows, cols, kind: WeightType::Bf16, store: Store::Bf16(Arc::new(data)), scales: None }
    }

    /// # Panics
    /// When `data.len() != rows × cols`.
    pub fn from_f16(data: Vec<f16>, rows: usize, cols: usize) -> Weight {
        assert_eq!(data.len(), rows * cols, "an owned weight is made with its own shape");
        Weight { rows, cols, kind: WeightType::F16, store: Store::F16(Arc::new(data)), scales: None }
    }

    /// Outputs of the layer.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Inputs of the layer.
    pub fn cols(&self) -> usize {
        self.cols
    }
    pub fn kind(&self) -> WeightType {
        self.kind
    }
    /// Of all numbers and scales.
    pub fn bytes(&self) -> usize {
        match &self.store {
            Store::Blocks(blocks) => blocks.bytes(),
            _ => {
                let scales = self.scales.as_ref().map_or(0, |s| size_of_val(s.data()));
                self.rows * self.cols * self.kind.bytes() + scales
            }
        }
    }
    pub fn is_mapped(&self) -> bool {
        matches!(self.store, Store::Mapped { .. })
    }

    fn bytes_slice(&self) -> &[u8] {
        let (pointer, length) = match self.slice() {
            WeightSlice::F32(s) => (s.as_ptr().cast::<u8>(), size_of_val(s)),
            WeightSlice::F16(s) => (s.as_ptr().cast(), size_of_val(s)),
            WeightSlice::Bf16(s) => (s.as_ptr().cast(), size_of_val(s)),
            WeightSlice::Fp8(s) => return F8E4M3::bytes(s),
            WeightSlice::Blocks(blocks) => return blocks.parts().0,
        };
        // SAFETY: numbers are bytes; the slice borrows self.
        unsafe { std::slice::from_raw_parts(pointer, length) }
    }

    /// Matrices of the same inputs and type, one below the other, in a device's memory.
    ///
    /// # Errors
    /// A device without room for them, or that is none.
    ///
    /// # Panics
    /// With no part, or parts of unlike width or type.
    pub fn on_device(parts: &[&Weight], device: &Device) -> candle_core::Result<Weight> {
        let (cols, kind) = (parts[0].cols, parts[0].kind);
        assert!(parts.iter().all(|p| p.cols == cols && p.kind == kind), "parts of one matrix are alike");
        let rows = parts.iter().map(|p| p.rows).sum();
        let each: Vec<&[u8]> = parts.iter().map(|p| p.bytes_slice()).collect();
        let bytes = copied(&each, device)?;
        let address = device_address(&bytes)?;
        let mut weight = Weight {
            rows,
            cols,
            kind,
            store: Store::Device { address, _bytes: bytes, scales_address: 0, _scales: None },
            scales: None,
        };
        match kind {
            WeightType::Fp8 => {
                let scales = fp8::stacked(parts);
                let bytes: Vec<u8> = scales.data().iter().flat_map(|s| s.to_ne_bytes()).collect();
                weight.put_scales(copied(&[&bytes], device)?)?;
                weight.scales = Some(scales);
            }
            WeightType::Blocks(_) => {
                let heads = |p: &&'_ Weight| match &p.store {
                    Store::Blocks(blocks) => blocks.clone(),
                    _ => panic!("blocks are copied from the host's memory"),
                };
                let all: Vec<_> = parts.iter().map(heads).collect();
                let heads: Vec<&[u8]> = all.iter().map(|blocks| blocks.parts().1).collect();
                weight.put_scales(copied(&heads, device)?)?;
            }
            _ => {}
        }
        Ok(weight)
    }

    /// Whether another matrix of the same inputs can lie below this one, as one matrix with it.
    pub fn stacks_with(&self, below: &Weight) -> bool {
        let whole = !matches!(self.kind, WeightType::Blocks(_)) || self.rows.is_multiple_of(GROUP);
        self.kind == below.kind && whole
    }

    /// What lies beside the numbers on a device: scales of FP8, heads of blocks.
    fn put_scales(&mut self, bytes: Tensor) -> candle_core::Result<()> {
        if let Store::Device { scales_address, _scales, .. } = &mut self.store {
            (*scales_address, *_scales) = (device_address(&bytes)?, Some(bytes));
        }
        Ok(())
    }

    /// All elements, row after row.
    ///
    /// # Panics
    /// Of a weight that lies on a device.
    pub fn slice(&self) -> WeightSlice<'_> {
        let n = self.rows * self.cols;
        match &self.store {
            Store::F32(v) => WeightSlice::F32(v),
            Store::F16(v) => WeightSlice::F16(v),
            Store::Bf16(v) => WeightSlice::Bf16(v),
            Store::Fp8(v) => WeightSlice::Fp8(v),
            Store::Blocks(blocks) => WeightSlice::Blocks(blocks),
            Store::Device { .. } => panic!("a weight on a device is read by its kernels alone"),
            Store::Mapped { map, offset } => {
                let p = map[*offset..].as_ptr();
                // SAFETY: `mapped` checked that n elements of this type lie at `offset`, aligned; the
                // map lives as long as self and nobody writes to it; every bit pattern is a number.
                unsafe {
                    match self.kind {
                        WeightType::F32 => WeightSlice::F32(std::slice::from_raw_parts(p.cast(), n)),
                        WeightType::F16 => WeightSlice::F16(std::slice::from_raw_parts(p.cast(), n)),
                        WeightType::Bf16 => WeightSlice::Bf16(std::slice::from_raw_parts(p.cast(), n)),
                        WeightType::Fp8 => WeightSlice::Fp8(std::slice::from_raw_parts(p.cast(), n)),
                        WeightType::Blocks(_) => unreachable!("blocks are never mapped"),
                    }
                }
            }
        }
    }

    /// Where the elements lie, for a kernel.
    pub fn address(&self) -> u64 {
        if let Store::Device { address, .. } = &self.store {
            return *address;
        }
        match self.slice() {
            WeightSlice::F32(s) => s.as_ptr() as u64,
            WeightSlice::F16(s) => s.as_ptr() as u64,
            WeightSlice::Bf16(s) => s.as_ptr() as u64,
            WeightSlice::Fp8(s) => s.as_ptr() as u64,
            WeightSlice::Blocks(blocks) => blocks.parts().0.as_ptr() as u64,
        }
    }

    /// Where the scales of an FP8 weight lie for a kernel, as [`Scales`] has them; the heads of blocks.
    pub fn place_of_scales(&self) -> Option<PlaceOfScales> {
        if let WeightType::Blocks(format) = self.kind {
            let address = match &self.store {
                Store::Device { scales_address, .. } => *scales_address,
                Store::Blocks(blocks) => blocks.parts().1.as_ptr() as u64,
                _ => return None,
            };
            return Some(PlaceOfScales { address, rows: 1, cols: format.block() });
        }
        let scales = self.scales()?;
        let address = match &self.store {
            Store::Device { scales_address, .. } => *scales_address,
            _ => scales.data().as_ptr() as u64,
        };
        let (rows, cols) = scales.block();
        Some(PlaceOfScales { address, rows, cols })
    }

    /// The elements of a weight that was made f32 (norms, biases, frequencies).
    ///
    /// # Panics
    /// On one that was not.
    pub fn f32s(&self) -> &[f32] {
        match self.slice() {
            WeightSlice::F32(s) => s,
            _ => panic!("a weight of {:?} where f32 was loaded", self.kind),
        }
    }

    /// Row `row` as f32.
    ///
    /// # Panics
    /// When `to` is not as long as a row.
    pub fn widen_row(&self, row: usize, to: &mut [f32]) {
        assert_eq!(to.len(), self.cols, "a place for each number of the row");
        fn widen<T: Element>(row: &[T], to: &mut [f32]) {
            to.iter_mut().zip(row).for_each(|(to, x)| *to = x.widen());
        }
        let numbers = row * self.cols..(row + 1) * self.cols;
        match self.slice() {
            WeightSlice::F32(s) => to.copy_from_slice(&s[numbers]),
            WeightSlice::F16(s) => widen(&s[numbers], to),
            WeightSlice::Bf16(s) => widen(&s[numbers], to),
            WeightSlice::Fp8(s) => {
                for (col, (to, x)) in to.iter_mut().zip(&s[numbers]).enumerate() {
                    *to = x.widen() * self.scale_at(row, col);
                }
            }
            WeightSlice::Blocks(blocks) => blocks.widen_row(row, to),
        }
    }

    /// Element `i` of the row-major storage, widened.
    pub fn get(&self, i: usize) -> f32 {
        match self.slice() {
            WeightSlice::F32(s) => s[i],
            WeightSlice::F16(s) => s[i].to_f32(),
            WeightSlice::Bf16(s) => s[i].to_f32(),
            WeightSlice::Fp8(s) => s[i].widen() * self.scale_at(i / self.cols, i % self.cols),
            WeightSlice::Blocks(blocks) => blocks.get(i / self.cols, i % self.cols),
        }
    }

    /// The same numbers as f32 (for norms, for `--dtype f32`, for oracles). Always owned.
    pub fn to_f32(&self) -> Weight {
        let data = match self.slice() {
            WeightSlice::F32(s) => s.to_vec(),
            WeightSlice::F16(s) => s.iter().map(|x| x.to_f32()).collect(),
            WeightSlice::Bf16(s) => s.iter().map(|x| x.to_f32()).collect(),
            WeightSlice::Fp8(s) => {
                let mut all = Vec::with_capacity(s.len());
                self.for_each_scaled(s, |x| all.push(x));
                all
            }
            WeightSlice::Blocks(blocks) => blocks.to_f32(),
        };
        Weight::from_f32(data, self.rows, self.cols)
    }

    /// The same numbers rounded to f16. Shares the storage when they are f16 already.
    pub fn to_f16(&self) -> Weight {
        let data = match self.slice() {
            WeightSlice::F16(_) => return self.clone(),
            WeightSlice::F32(s) => s.iter().map(|x| f16::from_f32(*x)).collect(),
            WeightSlice::Bf16(s) => s.iter().map(|x| f16::from_f32(x.to_f32())).collect(),
            WeightSlice::Fp8(s) => {
                let mut all = Vec::with_capacity(s.len());
                self.for_each_scaled(s, |x| all.push(f16::from_f32(x)));
                all
            }
            WeightSlice::Blocks(blocks) => blocks.to_f32().into_iter().map(f16::from_f32).collect(),
        };
        Weight::from_f16(data, self.rows, self.cols)
    }

    /// Of f32 numbers, rounded to a type (FP8 with a scale for each row), where `on` reads it: for what makes its own
    /// matrices, as tries and measurements do.
    ///
    /// # Errors
    /// A device without room.
    pub fn made(data: Vec<f32>, cols: usize, dtype: DType, on: &Exec) -> candle_core::Result<Weight> {
        let rows = data.len() / cols.max(1);
        let exact = Weight::from_f32(data, rows, cols);
        let weight = match dtype {
            DType::F16 => exact.to_f16(),
            DType::BF16 => exact.to_bf16(),
            DType::F8E4M3 => exact.to_fp8(),
            _ => exact,
        };
        match on.launcher {
            Some(_) => Weight::on_device(&[&weight], &on.device),
            None => Ok(weight),
        }
    }

    /// The same numbers rounded to bf16. Shares the storage when they are bf16 already.
    pub fn to_bf16(&self) -> Weight {
        let data = match self.slice() {
            WeightSlice::Bf16(_) => return self.clone(),
            WeightSlice::F32(s) => s.iter().map(|x| bf16::from_f32(*x)).collect(),
            WeightSlice::F16(s) => s.iter().map(|x| bf16::from_f32(x.to_f32())).collect(),
            WeightSlice::Fp8(s) => {
                let mut all = Vec::with_capacity(s.len());
                self.for_each_scaled(s, |x| all.push(bf16::from_f32(x)));
                all
            }
            WeightSlice::Blocks(blocks) => blocks.to_f32().into_iter().map(bf16::from_f32).collect(),
        };
        Weight::from_bf16(data, self.rows, self.cols)
    }

    /// Index of the first element that is NaN or infinite.
    pub fn first_non_finite(&self) -> Option<usize> {
        match self.slice() {
            WeightSlice::F32(s) => first_above(s, f32::INFINITY.to_bits() - 1, |x| x.abs().to_bits()),
            WeightSlice::F16(s) => first_above(s, f16::INFINITY.to_bits() - 1, |x| x.to_bits() & !SIGN),
            WeightSlice::Bf16(s) => first_above(s, bf16::INFINITY.to_bits() - 1, |x| x.to_bits() & !SIGN),
            WeightSlice::Fp8(s) => s.iter().position(|x| x.is_nan()),
            // Their scales are finite, or they were not made.
            WeightSlice::Blocks(_) => None,
        }
    }
}

/// Of a number of two bytes.
const SIGN: u16 = 1 << 15;

/// Index of the first number whose bits without the sign are above `largest`. A piece at a time, in which nothing is
/// decided: that is as fast as memory.
fn first_above<T, B: Ord + Copy + Default>(
    numbers: &[T],
    largest: B,
    magnitude: impl Fn(&T) -> B,
) -> Option<usize> {
    const PIECE: usize = 4096;
    let has_one = |piece: &[T]| piece.iter().map(&magnitude).fold(B::default(), Ord::max) > largest;
    let piece = numbers.chunks(PIECE).position(has_one)? * PIECE;
    let at = numbers[piece..].iter().position(|x| magnitude(x) > largest)?;
    Some(piece + at)
}
