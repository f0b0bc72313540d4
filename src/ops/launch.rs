//! Running an operation's kernel from `ops/cuda`: what a launch and a product of matrices are, and who carries
//! them out: CUDA's driver, or, to test the kernels' logic, a library of the host made from the same source.
//!
//! Addresses are those of the launcher's memory. Nothing here knows a tensor's meaning.

use candle_core::{CpuStorage, CudaStorage, DType, Layout, Result, Storage, Tensor, bail};

use super::blocks::{self, Format};
use super::weight::WeightType;

/// Bytes and number of a launch's arguments at most.
const ARGUMENT_BYTES: usize = 160;
const MOST_ARGUMENTS: usize = 12;

/// A kernel's arguments, each copied as it is.
#[derive(Debug, Clone)]
pub struct Arguments {
    /// Aligned for every type that a kernel takes.
    words: [u64; ARGUMENT_BYTES / 8],
    begins: [u8; MOST_ARGUMENTS],
    count: usize,
    used: usize,
}

/// A number, an address or a `repr(C)` struct of these.
///
/// # Safety
/// The type has no padding and is laid out as the kernel's parameter is.
pub unsafe trait Argument: Copy {}
// SAFETY: numbers, as C has them.
unsafe impl Argument for u32 {}
// SAFETY: as above.
unsafe impl Argument for f32 {}
// SAFETY: an address of 64 bits.
unsafe impl Argument for u64 {}

impl Default for Arguments {
    fn default() -> Self {
        Arguments { words: [0; ARGUMENT_BYTES / 8], begins: [0; MOST_ARGUMENTS], count: 0, used: 0 }
    }
}

impl Arguments {
    /// # Panics
    /// With more than a launch can hold: a kernel's parameters are known when it is written.
    #[must_use]
    pub fn with<T: Argument>(mut self, argument: T) -> Arguments {
        let begin = self.used.next_multiple_of(align_of::<T>());
        assert!(
            begin + size_of::<T>() <= ARGUMENT_BYTES && self.count < MOST_ARGUMENTS,
            "too many arguments"
        );
        // SAFETY: in range by the assertion, aligned by `begin`; T is plain (`Argument`).
        unsafe { self.words.as_mut_ptr().cast::<u8>().add(begin).cast::<T>().write(argument) };
        self.begins[self.count] = begin as u8;
        (self.count, self.used) = (self.count + 1, begin + size_of::<T>());
        self
    }

    /// Pointers to each argument, as `cuLaunchKernel` takes them; the first `len()` count.
    pub fn pointers(&self) -> [*mut std::ffi::c_void; MOST_ARGUMENTS] {
        let base = self.words.as_ptr().cast::<u8>();
        std::array::from_fn(|i| base.wrapping_add(usize::from(self.begins[i])).cast_mut().cast())
    }

    pub fn len(&self) -> usize {
        self.count
    }
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// One kernel over a grid of blocks.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The kernel's name without its element types.
    pub kernel: &'static str,
    /// They follow the name: `rms_norm_bf16`.
    pub types: &'static [DType],
    pub grid: [u32; 3],
    pub threads: u32,
    pub shared_bytes: u32,
    pub arguments: Arguments,
}

/// `dst[rows, n] (+)= src[rows, k] · weight[n, k]ᵀ + bias[n]` in f32 accumulation.
#[derive(Debug, Clone, Copy)]
pub struct Product {
    /// f32, rows `dst_stride` apart.
    pub dst: u64,
    pub dst_stride: usize,
    pub src: u64,
    pub src_type: DType,
    pub weight: u64,
    pub weight_type: WeightType,
    /// Of FP8 weights; the heads of blocks.
    pub scales: Option<PlaceOfScales>,
    /// f32; 0 for none.
    pub bias: u64,
    pub rows: usize,
    pub n: usize,
    pub k: usize,
    pub accumulate: bool,
}

/// Where an FP8 weight's scales lie: f32 `[⌈n / rows⌉, ⌈k / cols⌉]`.
#[derive(Debug, Clone, Copy)]
pub struct PlaceOfScales {
    pub address: u64,
    /// Of a block.
    pub rows: usize,
    pub cols: usize,
}

impl Product {
    /// For products without a kernel of their own for FP8 or blocks: the launch that writes the weights, times their
    /// scales, to `room` in the activations' type, and the product of these. `room` is n · k of them.
    ///
    /// # Errors
    /// Activations of a type that no product takes.
    pub fn dequantised(&self, scales: PlaceOfScales, room: u64) -> Result<(Launch, Product)> {
        let Some(weight_type) = WeightType::of(self.src_type) else {
            bail!(
                "linear: no product of {} weights with {:?} activations",
                self.weight_type.name(),
                self.src_type
            )
        };
        let launch = match self.weight_type {
            WeightType::Blocks(format) => self.widened(format, scales.address, room)?,
            _ => self.scaled(scales, room)?,
        };
        Ok((launch, Product { weight: room, weight_type, scales: None, ..*self }))
    }

    fn widened(&self, format: Format, heads: u64, room: u64) -> Result<Launch> {
        /// Sixteen rows of sixteen tiles of 32 numbers, as blocks.cu has them.
        const THREADS: u32 = 256;
        if self.src_type != DType::BF16 {
            bail!("linear: no product of {} weights with {:?} activations", format.name(), self.src_type)
        }
        let tiles = self.k / blocks::TILE;
        Ok(Launch {
            kernel: format.dequantise_kernel(),
            types: &[],
            grid: [self.n.div_ceil(blocks::GROUP) as u32, tiles.div_ceil(16) as u32, 1],
            threads: THREADS,
            shared_bytes: 0,
            arguments: Arguments::default()
                .with(room)
                .with(self.weight)
                .with(heads)
                .with(self.n as u32)
                .with(self.k as u32),
        })
    }

    fn scaled(&self, scales: PlaceOfScales, room: u64) -> Result<Launch> {
        Ok(Launch {
            kernel: "dequantise",
            types: types(self.src_type)?,
            grid: [self.n as u32, 1, 1],
            threads: 256,
            shared_bytes: 0,
            arguments: Arguments::default()
                .with(room)
                .with(self.weight)
                .with(scales.address)
                .with(self.k as u32)
                .with(scales.rows as u32)
                .with(scales.cols as u32),
        })
    }
}

/// Carries out launches in the order they come.
pub trait Launcher: Send + Sync {
    /// # Safety
    /// The arguments are the kernel's own, and point to memory of this launcher that is large enough and not
    /// used otherwise until the launch is done.
    unsafe fn launch(&self, launch: &Launch) -> Result<()>;

    /// # Safety
    /// As for [`Launcher::launch`].
    unsafe fn product(&self, product: &Product) -> Result<()>;

    /// Copies bytes within the memory.
    ///
    /// # Safety
    /// As for [`Launcher::launch`]; the two do not overlap.
    unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()>;

    /// Puts arrays where kernels can read them, without waiting for those; the addresses hold until the next
    /// arrays of the same kind. They depend on the lengths of the arrays alone, all but the last one's.
    fn mirror(&self, kind: ArrayKind, arrays: &[&[u32]], addresses: &mut [u64]) -> Result<()>;

    /// Copies numbers to the host when all that was launched before is done.
    ///
    /// # Safety
    /// `from` is an address of the launcher's memory with so many numbers.
    unsafe fn read(&self, from: u64, to: &mut [f32]) -> Result<()>;

    /// Begins to copy words to the host, behind all that was launched before. One copy is under way at most.
    ///
    /// # Safety
    /// `from` is an address of the launcher's memory with so many words.
    unsafe fn fetch(&self, from: u64, words: usize) -> Result<()>;

    /// Waits for what [`Launcher::fetch`] began, as many words.
    fn collect(&self, to: &mut [u32]) -> Result<()>;

    /// The address of room for a matrix of so many bytes that is dequantised before its product; it does not move when it
    /// is asked for less.
    fn room(&self, bytes: usize) -> Result<u64>;

    /// From here to [`Launcher::end_capture`] what is launched is kept to be replayed, and not done.
    fn begin_capture(&self) -> Result<()>;

    /// What was launched since [`Launcher::begin_capture`].
    fn end_capture(&self) -> Result<Box<dyn Captured>>;
}

/// What arrays are for: each kind has memory of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArrayKind {
    Step,
    /// Of steps that are captured, or replayed: they are read where they lay when it was captured.
    Captured,
    Samples,
}

/// Launches that were captured, with the addresses and sizes they had.
pub trait Captured: Send {
    /// Launches them again, in their order.
    ///
    /// # Safety
    /// As for [`Launcher::launch`], for all of them.
    unsafe fn replay(&self) -> Result<()>;

    fn nodes(&self) -> Nodes;
}

/// What a captured graph consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Nodes {
    pub kernels: usize,
    /// Copies, fills, allocations: a step that allocates nothing has none.
    pub memory: usize,
    pub other: usize,
}

impl Launch {
    /// The name in the source of the kernels.
    pub fn name(&self) -> String {
        let types = self.types.iter().map(|t| format!("_{}", t.as_str()));
        self.kernel.to_string() + &types.collect::<String>()
    }
}

/// An array of a step as the host has it, and where its copy lies for kernels.
#[derive(Debug, Clone, Copy)]
pub struct Mirrored<'a, T> {
    pub host: &'a [T],
    pub address: u64,
}

impl<'a, T> From<&'a [T]> for Mirrored<'a, T> {
    /// For what works on the host's own memory.
    fn from(host: &'a [T]) -> Self {
        Mirrored { host, address: host.as_ptr() as u64 }
    }
}

/// Where the elements of a contiguous tensor lie.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub address: u64,
    pub elements: usize,
    pub dtype: DType,
}

impl Place {
    pub fn of_cpu(storage: &CpuStorage, layout: &Layout) -> Result<Place> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("a kernel works on contiguous tensors, and this is {layout:?}")
        };
        let (base, dtype) = match storage {
            CpuStorage::F32(v) => (v[start..end].as_ptr() as u64, DType::F32),
            CpuStorage::F16(v) => (v[start..end].as_ptr() as u64, DType::F16),
            CpuStorage::BF16(v) => (v[start..end].as_ptr() as u64, DType::BF16),
            CpuStorage::F8E4M3(v) => (v[start..end].as_ptr() as u64, DType::F8E4M3),
            CpuStorage::U32(v) => (v[start..end].as_ptr() as u64, DType::U32),
            CpuStorage::U8(v) => (v[start..end].as_ptr() as u64, DType::U8),
            _ => bail!("a kernel works on f32, f16, bf16, FP8, u32 and bytes"),
        };
        Ok(Place { address: base, elements: end - start, dtype })
    }

    #[cfg(feature = "cuda")]
    pub fn of_cuda(storage: &CudaStorage, layout: &Layout) -> Result<Place> {
        use candle_core::cuda_backend::CudaStorageSlice as Slice;
        use candle_core::cuda_backend::cudarc::driver::DevicePtr;
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("a kernel works on contiguous tensors, and this is {layout:?}")
        };
        let stream = storage.device.cuda_stream();
        // Everything is on this one stream, so its order is guard enough.
        let (base, dtype) = match &storage.slice {
            Slice::F32(s) => (s.device_ptr(&stream).0, DType::F32),
            Slice::F16(s) => (s.device_ptr(&stream).0, DType::F16),
            Slice::BF16(s) => (s.device_ptr(&stream).0, DType::BF16),
            Slice::F8E4M3(s) => (s.device_ptr(&stream).0, DType::F8E4M3),
            Slice::U32(s) => (s.device_ptr(&stream).0, DType::U32),
            Slice::U8(s) => (s.device_ptr(&stream).0, DType::U8),
            _ => bail!("a kernel works on f32, f16, bf16, FP8, u32 and bytes"),
        };
        Ok(Place { address: base + (start * dtype.size_in_bytes()) as u64, elements: end - start, dtype })
    }

    #[cfg(not(feature = "cuda"))]
    pub fn of_cuda(_: &CudaStorage, _: &Layout) -> Result<Place> {
        bail!("this build has no CUDA")
    }

    pub fn of_tensor(tensor: &Tensor) -> Result<Place> {
        let (storage, layout) = tensor.storage_and_layout();
        match &*storage {
            Storage::Cpu(storage) => Place::of_cpu(storage, layout),
            Storage::Cuda(storage) => Place::of_cuda(storage, layout),
            Storage::Metal(_) => bail!("there are no kernels for that device"),
        }
    }

    /// # Errors
    /// Names the operation when there are fewer elements than it is to touch.
    pub fn holds(self, elements: usize, operation: &str) -> Result<Place> {
        match self.elements >= elements {
            true => Ok(self),
            false => bail!("{operation}: {elements} elements of a tensor of {}", self.elements),
        }
    }

    pub fn is(self, dtype: DType, operation: &str) -> Result<Place> {
        match self.dtype == dtype {
            true => Ok(self),
            false => bail!("{operation}: a tensor of {:?} where {dtype:?} is needed", self.dtype),
        }
    }
}

/// The element type as a kernel's name spells it, once for each.
pub fn types(dtype: DType) -> Result<&'static [DType]> {
    match dtype {
        DType::F32 => Ok(&[DType::F32]),
        DType::F16 => Ok(&[DType::F16]),
        DType::BF16 => Ok(&[DType::BF16]),
        DType::F8E4M3 => Ok(&[DType::F8E4M3]),
        DType::U8 => Ok(&[DType::U8]),
        other => bail!("there are no kernels for {other:?}"),
    }
}
