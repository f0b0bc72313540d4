//! A launcher whose memory is this process's: the kernels' unchanged source as a library of the host, made by
//! `.ci/kernels.sh`. Captures are lists of launches; arrays have places of their own, as on a device.

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::sync::{Arc, Mutex, MutexGuard};

use candle_core::{DType, Result, bail};
use half::{bf16, f16};
use hashwatt::ops::exec::Exec;
use hashwatt::ops::launch::{ArrayKind, Captured, Launch, Launcher, Nodes, Product};
use hashwatt::ops::weight::WeightType;
use libloading::Library;

const VARIABLE: &str = "HASHWATT_HOST_KERNELS";
/// Words of a kind of arrays: never moved.
const ARRAY_WORDS: usize = 1 << 18;

type Entry =
    unsafe extern "C" fn(*const c_char, *const c_uint, *const c_uint, c_uint, *mut *mut c_void) -> c_int;

enum Call {
    Launch(Launch),
    Product(Product),
}

struct Kernels(Library);

impl Kernels {
    /// # Safety
    /// As [`Launcher::launch`] and [`Launcher::product`].
    unsafe fn run(&self, call: &Call) -> Result<()> {
        match call {
            // SAFETY: the caller's promise.
            Call::Launch(launch) => unsafe { self.launch(launch) },
            // SAFETY: the caller's promise.
            Call::Product(p) => unsafe {
                let Some(scales) = p.scales else {
                    product(p);
                    return Ok(());
                };
                let mut room = vec![0u32; p.n * p.k];
                let (launch, dequantised) = p.dequantised(scales, room.as_mut_ptr() as u64)?;
                self.launch(&launch)?;
                product(&dequantised);
                Ok(())
            },
        }
    }

    /// # Safety
    /// As [`Launcher::launch`].
    unsafe fn launch(&self, launch: &Launch) -> Result<()> {
        let name = CString::new(launch.name()).unwrap();
        let threads = [launch.threads, 1, 1];
        let mut arguments = launch.arguments.pointers();
        // SAFETY: all_on_host.cpp defines the function so; the arguments are the caller's promise.
        let code = unsafe {
            let entry: libloading::Symbol<'_, Entry> = self.0.get(b"hashwatt_launch").unwrap();
            let (grid, shared) = (launch.grid.as_ptr(), launch.shared_bytes);
            entry(name.as_ptr(), grid, threads.as_ptr(), shared, arguments.as_mut_ptr())
        };
        match code {
            0 => Ok(()),
            1 => bail!("there is no kernel {name:?}"),
            _ => bail!("{name:?} asks for more than a device has"),
        }
    }
}

/// In f64: a device's own product comes from its library of products.
///
/// # Safety
/// As [`Launcher::product`].
unsafe fn product(p: &Product) {
    // SAFETY: the caller's promise: addresses of this memory, as large as the product says.
    let read = |address: u64, dtype: DType, i: usize| unsafe {
        match dtype {
            DType::F32 => f64::from(*(address as *const f32).add(i)),
            DType::F16 => f64::from((*(address as *const f16).add(i)).to_f32()),
            _ => f64::from((*(address as *const bf16).add(i)).to_f32()),
        }
    };
    let weight_type = match p.weight_type {
        WeightType::F32 => DType::F32,
        WeightType::F16 => DType::F16,
        WeightType::Bf16 => DType::BF16,
        WeightType::Fp8 => panic!("FP8 without scales"),
        WeightType::Blocks(_) => panic!("blocks have no kernels"),
    };
    for row in 0..p.rows {
        for out in 0..p.n {
            let term =
                |i| read(p.src, p.src_type, row * p.k + i) * read(p.weight, weight_type, out * p.k + i);
            let mut sum: f64 = (0..p.k).map(term).sum();
            if p.bias != 0 {
                sum += read(p.bias, DType::F32, out);
            }
            // SAFETY: as above.
            let place = unsafe { &mut *(p.dst as *mut f32).add(row * p.dst_stride + out) };
            *place = if p.accumulate { (f64::from(*place) + sum) as f32 } else { sum as f32 };
        }
    }
}

#[derive(Default)]
struct State {
    step: Vec<u32>,
    captured: Vec<u32>,
    samples: Vec<u32>,
    fetched: Vec<u32>,
    capturing: Option<Vec<Call>>,
    /// For matrices that are dequantised: the largest last, the others kept for what was captured.
    rooms: Vec<Vec<u64>>,
}

/// The kernels as a launcher.
pub struct Host {
    kernels: Arc<Kernels>,
    state: Mutex<State>,
}

impl Host {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// # Safety
    /// As [`Launcher::launch`] and [`Launcher::product`].
    unsafe fn call(&self, call: Call) -> Result<()> {
        let mut state = self.state();
        match &mut state.capturing {
            Some(calls) => {
                calls.push(call);
                Ok(())
            }
            // SAFETY: the caller's promise.
            None => unsafe { self.kernels.run(&call) },
        }
    }
}

impl Launcher for Host {
    unsafe fn launch(&self, launch: &Launch) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.call(Call::Launch(launch.clone())) }
    }

    unsafe fn product(&self, product: &Product) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.call(Call::Product(*product)) }
    }

    unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise; memory of this process.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }

    fn mirror(&self, kind: ArrayKind, arrays: &[&[u32]], addresses: &mut [u64]) -> Result<()> {
        let mut state = self.state();
        let memory = match kind {
            ArrayKind::Step => &mut state.step,
            ArrayKind::Captured => &mut state.captured,
            ArrayKind::Samples => &mut state.samples,
        };
        // What nobody has written is no token, no position and no block.
        memory.clear();
        memory.resize(ARRAY_WORDS, u32::MAX);
        let mut at = 0;
        for (array, to) in arrays.iter().zip(addresses) {
            memory[at..at + array.len()].copy_from_slice(array);
            *to = memory[at..].as_ptr() as u64;
            at += array.len();
        }
        Ok(())
    }

    unsafe fn read(&self, from: u64, to: &mut [f32]) -> Result<()> {
        // SAFETY: the caller's promise; memory of this process.
        to.copy_from_slice(unsafe { std::slice::from_raw_parts(from as *const f32, to.len()) });
        Ok(())
    }

    unsafe fn fetch(&self, from: u64, words: usize) -> Result<()> {
        // SAFETY: the caller's promise; memory of this process.
        self.state().fetched = unsafe { std::slice::from_raw_parts(from as *const u32, words) }.to_vec();
        Ok(())
    }

    fn collect(&self, to: &mut [u32]) -> Result<()> {
        to.copy_from_slice(&std::mem::take(&mut self.state().fetched));
        Ok(())
    }

    fn room(&self, bytes: usize) -> Result<u64> {
        let rooms = &mut self.state().rooms;
        if rooms.last().is_none_or(|room| size_of_val(room.as_slice()) < bytes) {
            rooms.push(vec![0; bytes.div_ceil(size_of::<u64>())]);
        }
        Ok(rooms.last().unwrap().as_ptr() as u64)
    }

    fn begin_capture(&self) -> Result<()> {
        self.state().capturing = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&self) -> Result<Box<dyn Captured>> {
        match self.state().capturing.take() {
            Some(calls) => Ok(Box::new(Recording { kernels: self.kernels.clone(), calls })),
            None => bail!("nothing was captured"),
        }
    }
}

struct Recording {
    kernels: Arc<Kernels>,
    calls: Vec<Call>,
}

impl Captured for Recording {
    unsafe fn replay(&self) -> Result<()> {
        // SAFETY: the caller's promise.
        self.calls.iter().try_for_each(|call| unsafe { self.kernels.run(call) })
    }

    fn nodes(&self) -> Nodes {
        Nodes { kernels: self.calls.len(), ..Nodes::default() }
    }
}

/// What runs kernels, if the library is there.
#[allow(clippy::disallowed_methods)] // CI says where the library is
pub fn kernels() -> Option<Exec> {
    let Some(path) = std::env::var_os(VARIABLE) else {
        println!("skipped: {VARIABLE} names no library of the kernels (.ci/kernels.sh makes one)");
        return None;
    };
    // SAFETY: the library only registers its kernels when it is loaded.
    let library = unsafe { Library::new(path) }.unwrap();
    let host = Host { kernels: Arc::new(Kernels(library)), state: Mutex::default() };
    let launcher: Arc<dyn Launcher> = Arc::new(host);
    Some(Exec { launcher: Some(launcher), ..Exec::cpu(1) })
}
