//! A CUDA device as a launcher: our kernels by the driver, products of matrices by cuBLASLt, one stream.
//!
//! Everything is in the order of the stream. [`Launcher::read`] and [`Launcher::collect`] wait for the device,
//! [`Launcher::mirror`] for the copy three calls before. Loads the fatbins that build.rs made; knows no operation.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CudaDevice, DType, Result, bail};
use cudarc::driver::{CudaStream, DriverError, result, sys};

use self::arrays::{Arrays, Results};
use self::product::Products;
use super::exec::cuda::DEPENDENT_CAPABILITY;
use super::launch::{ArrayKind, Captured, Launch, Launcher, Product};

mod arrays;
mod graph;
mod product;

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// A launch that wants more shared memory than this must say so to the driver first.
const USUAL_SHARED_BYTES: u32 = 48 << 10;

#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    shared_bytes: u32,
}

/// One device. The stream is candle's, so that tensors and kernels follow each other.
pub struct Driver {
    stream: Arc<CudaStream>,
    modules: Vec<sys::CUmodule>,
    functions: Mutex<HashMap<(&'static str, &'static [DType]), Function>>,
    /// A kernel's blocks may start before the kernel in front of it has ended.
    dependent: bool,
    products: Products,
    step: Mutex<Arrays>,
    captured: Mutex<Arrays>,
    samples: Mutex<Arrays>,
    results: Mutex<Results>,
}

// SAFETY: handles of the driver may be used by any thread that has bound the context, which each call does.
unsafe impl Send for Driver {}
// SAFETY: as above; what changes is behind a lock.
unsafe impl Sync for Driver {}

fn driver(what: &str) -> impl Fn(DriverError) -> candle_core::Error + '_ {
    move |e| candle_core::Error::Msg(format!("{what}: {e:?}")).bt()
}

impl Driver {
    /// `dependent`: by programmatic dependent launch.
    ///
    /// # Errors
    /// Kernels that the driver does not take: it is older than the toolkit they were made with. A card that has no
    /// programmatic dependent launch.
    pub fn new(device: &CudaDevice, dependent: bool) -> Result<Driver> {
        let stream = device.cuda_stream();
        let (major, minor) = stream.context().compute_capability().map_err(driver("compute capability"))?;
        if dependent && major < DEPENDENT_CAPABILITY {
            bail!(
                "programmatic dependent launch needs compute capability {DEPENDENT_CAPABILITY}.0, and this \
                 card has {major}.{minor}"
            )
        }
        stream.context().bind_to_thread().map_err(driver("the CUDA context"))?;
        let mut modules = Vec::new();
        for image in FATBINS {
            // The driver wants an image aligned.
            let aligned: Vec<u64> = image
                .chunks(8)
                .map(|chunk| {
                    let mut word = [0; 8];
                    word[..chunk.len()].copy_from_slice(chunk);
                    u64::from_ne_bytes(word)
                })
                .collect();
            // SAFETY: a whole fatbin, as nvcc wrote it.
            let module = unsafe { result::module::load_data(aligned.as_ptr().cast()) };
            modules.push(module.map_err(driver("loading the kernels"))?);
        }
        let products = Products::new(&stream)?;
        Ok(Driver {
            stream,
            modules,
            functions: Mutex::default(),
            dependent,
            products,
            step: Mutex::default(),
            captured: Mutex::default(),
            samples: Mutex::default(),
            results: Mutex::default(),
        })
    }

    fn function(&self, launch: &Launch) -> Result<Function> {
        let mut all = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.get(&(launch.kernel, launch.types)).copied();
        let mut function = match known {
            Some(function) => function,
            None => Function { handle: self.look_up(launch)?, shared_bytes: USUAL_SHARED_BYTES },
        };
        if launch.shared_bytes > function.shared_bytes {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the handle is of a loaded module.
            let done = unsafe {
                result::function::set_function_attribute(
                    function.handle,
                    attribute,
                    launch.shared_bytes as i32,
                )
            };
            done.map_err(|e| {
                let problem =
                    format!("{}: {} bytes of shared memory: {e:?}", launch.kernel, launch.shared_bytes);
                candle_core::Error::Msg(problem)
            })?;
            function.shared_bytes = launch.shared_bytes;
        } else if known.is_some() {
            return Ok(function);
        }
        all.insert((launch.kernel, launch.types), function);
        Ok(function)
    }

    /// cuBLASLt says of a context that is lost only that something failed: the driver says what.
    ///
    /// # Safety
    /// As [`Launcher::product`].
    unsafe fn run_product(&self, product: &Product) -> Result<()> {
        // SAFETY: the caller's promise.
        let failed = unsafe { self.products.run(product, &self.stream) }.err();
        let Some(error) = failed else { return Ok(()) };
        // Of a stream that captures, waiting is an error of its own, and the capture is given up anyway.
        match self.stream.synchronize() {
            Err(lost) => bail!("{error}: {lost:?}"),
            Ok(()) => Err(error),
        }
    }

    fn look_up(&self, launch: &Launch) -> Result<sys::CUfunction> {
        let name = launch.name();
        let Ok(text) = CString::new(name.clone()) else { bail!("a kernel named {name:?}") };
        for module in &self.modules {
            // SAFETY: the modules are loaded until `drop`.
            if let Ok(function) = unsafe { result::module::get_function(*module, text.clone()) } {
                return Ok(function);
            }
        }
        bail!("there is no kernel {name}")
    }
}

impl Launcher for Driver {
    unsafe fn launch(&self, launch: &Launch) -> Result<()> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        self.stream.context().bind_to_thread().map_err(driver(launch.kernel))?;
        let function = self.function(launch)?;
        let mut pointers: [*mut c_void; _] = launch.arguments.pointers();
        let mut dependent = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: launch.grid[0],
            gridDimY: launch.grid[1],
            gridDimZ: launch.grid[2],
            blockDimX: launch.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared_bytes,
            hStream: self.stream.cu_stream(),
            attrs: &raw mut dependent,
            numAttrs: u32::from(self.dependent),
        };
        let (function, arguments) = (function.handle, pointers.as_mut_ptr());
        // SAFETY: the caller's promise about the arguments; their number is the kernel's own.
        let done =
            unsafe { sys::cuLaunchKernelEx(&raw const config, function, arguments, std::ptr::null_mut()) };
        done.result().map_err(driver(launch.kernel))
    }

    unsafe fn product(&self, product: &Product) -> Result<()> {
        self.stream.context().bind_to_thread().map_err(driver("product"))?;
        let Some(scales) = product.scales else {
            // SAFETY: the caller's promise.
            return unsafe { self.run_product(product) };
        };
        let bytes = product.n * product.k * product.src_type.size_in_bytes();
        let (launch, product) = product.dequantised(scales, self.room(bytes)?)?;
        // SAFETY: the caller's promise, and the room is large enough; the stream keeps the two in order, and
        // the next product's weights come after this product.
        unsafe {
            self.launch(&launch)?;
            self.run_product(&product)
        }
    }

    unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.stream.context().bind_to_thread().map_err(driver("copy"))?;
        // SAFETY: the caller's promise.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) }.map_err(driver("copy"))
    }

    fn mirror(&self, kind: ArrayKind, arrays: &[&[u32]], addresses: &mut [u64]) -> Result<()> {
        let memory = match kind {
            ArrayKind::Step => &self.step,
            ArrayKind::Captured => &self.captured,
            ArrayKind::Samples => &self.samples,
        };
        memory.lock().unwrap_or_else(PoisonError::into_inner).put(&self.stream, arrays, addresses)
    }

    unsafe fn read(&self, from: u64, to: &mut [f32]) -> Result<()> {
        self.stream.context().bind_to_thread().map_err(driver("reading"))?;
        // SAFETY: the caller's promise; `to` is not used before the stream is through.
        unsafe { result::memcpy_dtoh_async(to, from, self.stream.cu_stream()) }.map_err(driver("reading"))?;
        self.stream.synchronize().map_err(driver("the device"))
    }

    unsafe fn fetch(&self, from: u64, words: usize) -> Result<()> {
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the caller's promise.
        unsafe { results.fetch(&self.stream, from, words) }
    }

    fn collect(&self, to: &mut [u32]) -> Result<()> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner).collect(to)
    }

    fn room(&self, bytes: usize) -> Result<u64> {
        self.products.room(bytes, &self.stream)
    }

    fn begin_capture(&self) -> Result<()> {
        // Other threads go on with their own devices.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).map_err(driver("capturing a step"))
    }

    fn end_capture(&self) -> Result<Box<dyn Captured>> {
        graph::end_capture(&self.stream)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.stream.synchronize();
        for module in &self.modules {
            // SAFETY: loaded by `new`; nothing runs any more.
            let _ = unsafe { result::module::unload(*module) };
        }
    }
}
