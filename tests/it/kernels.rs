//! The kernels of `src/ops/cuda` without a device: their unchanged source as a library of the host, made by
//! `.ci/kernels.sh`, behind the launcher that the operations use. Without the library these tests are skipped.

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::sync::Arc;

use candle_core::{DType, Device, Result, bail};
use half::{bf16, f16};
use hashwatt::model::decoder::Precision;
use hashwatt::ops::exec::Exec;
use hashwatt::ops::launch::{Launch, Launcher, Product};
use hashwatt::ops::weight::WeightType;
use libloading::Library;

use crate::support::{Shape, Steps, checkpoint, decoder, llama, pool, prompt, qwen3};

const VARIABLE: &str = "HASHWATT_HOST_KERNELS";

type Entry =
    unsafe extern "C" fn(*const c_char, *const c_uint, *const c_uint, c_uint, *mut *mut c_void) -> c_int;

struct Host(Library);

impl Launcher for Host {
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

    fn mirror(&self, arrays: &[&[u32]], addresses: &mut [u64]) -> Result<()> {
        addresses.iter_mut().zip(arrays).for_each(|(to, array)| *to = array.as_ptr() as u64);
        Ok(())
    }

    unsafe fn read(&self, from: u64, to: &mut [f32]) -> Result<()> {
        // SAFETY: the caller's promise; memory of this process.
        to.copy_from_slice(unsafe { std::slice::from_raw_parts(from as *const f32, to.len()) });
        Ok(())
    }

    /// In f64: a device's own product comes from its library of products.
    unsafe fn product(&self, p: &Product) -> Result<()> {
        if let Some(scales) = p.scales {
            let mut room = vec![0u32; p.n * p.k];
            let (launch, dequantised) = p.dequantised(scales, room.as_mut_ptr() as u64)?;
            // SAFETY: the room holds numbers of four bytes, and the rest is the caller's promise.
            return unsafe {
                self.launch(&launch)?;
                self.product(&dequantised)
            };
        }
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
            WeightType::Fp8 => bail!("FP8 without scales"),
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
        Ok(())
    }
}

#[allow(clippy::disallowed_methods)] // CI says where the library is
pub fn kernels() -> Option<Exec> {
    let Some(path) = std::env::var_os(VARIABLE) else {
        println!("skipped: {VARIABLE} names no library of the kernels (.ci/kernels.sh makes one)");
        return None;
    };
    // SAFETY: the library only registers its kernels when it is loaded.
    let library = unsafe { Library::new(path) }.unwrap();
    Some(Exec { pool: pool(1), launcher: Some(Arc::new(Host(library))), device: Device::Cpu })
}

/// Largest difference of any logit, as a share of the largest logit.
fn difference(a: &[Vec<Vec<f32>>], b: &[Vec<Vec<f32>>]) -> f32 {
    let flat = |all: &[Vec<Vec<f32>>]| all.iter().flatten().flatten().copied().collect::<Vec<f32>>();
    let (a, b) = (flat(a), flat(b));
    assert_eq!(a.len(), b.len());
    let scale = a.iter().fold(0f32, |m, x| m.max(x.abs()));
    let worst =
        a.iter().zip(&b).map(|(x, y)| if x.is_finite() && y.is_finite() { (x - y).abs() } else { f32::NAN });
    worst.fold(0f32, |m, d| if d.is_nan() { d } else { m.max(d) }) / scale
}

/// FP8 weights, dequantised by their kernel, and an FP8 cache, each against the CPU's.
#[test]
fn a_decoder_of_fp8_kernels_is_the_decoder() {
    let Some(on) = kernels() else { return };
    let prompts = [1, 17, 80].map(|n| prompt(n, 517, n as u64));
    for (precision, tolerance) in [(Precision::F32, 1e-4), (Precision::Bf16, 3e-2)] {
        for (fp8_weights, fp8_cache) in [(true, false), (false, true)] {
            let checkpoint = checkpoint(qwen3(1));
            let decoder = match fp8_weights {
                true => checkpoint.load_fp8(precision, true, &|_| {}).unwrap(),
                false => checkpoint.load(precision, true, &|_| {}).unwrap(),
            };
            let decoder = Arc::new(if fp8_cache { decoder.with_cache(DType::F8E4M3) } else { decoder });
            // Near as they are in bf16, the two may choose another token, and go on from that.
            let generate = if precision == Precision::F32 { 3 } else { 1 };
            let want = Steps::new(&decoder, Shape::default()).run(&prompts, generate);
            let there = Arc::new(decoder.on_device(&on.device).unwrap());
            let got = Steps::on(&there, on.clone(), Shape::default()).run(&prompts, generate);
            let worst = difference(&want, &got);
            // What differs in its last bit may be stored as the neighbouring FP8 number.
            let tolerance = if fp8_cache { 3e-2 } else { tolerance };
            assert!(worst <= tolerance, "{precision:?}, weights {fp8_weights}, cache {fp8_cache}: {worst}");
        }
    }
}

/// A whole decoder by kernels gives the logits of the CPU's operations: prompts of several tiles, several
/// sequences at once, grouped queries and not, with norms of heads and biases and without.
#[test]
fn a_decoder_of_kernels_is_the_decoder() {
    let Some(on) = kernels() else { return };
    // One token, two blocks of the cache, two tiles of keys.
    let prompts = [1, 17, 80].map(|n| prompt(n, 517, n as u64));
    for (name, config) in [
        ("llama, GQA 4", llama(1)),
        ("llama, GQA 1", llama(4)),
        ("qwen3, GQA 4", qwen3(1)),
        ("qwen3, GQA 1", qwen3(4)),
    ] {
        // In bf16 the two round at different moments.
        for (precision, tolerance) in [(Precision::F32, 1e-4), (Precision::Bf16, 3e-2)] {
            let decoder = decoder(&config, precision);
            let want = Steps::new(&decoder, Shape::default()).run(&prompts, 3);
            // As it would lie on a device: what shares an input is one matrix.
            let there = Arc::new(decoder.on_device(&on.device).unwrap());
            let got = Steps::on(&there, on.clone(), Shape::default()).run(&prompts, 3);
            let worst = difference(&want, &got);
            assert!(worst <= tolerance, "{name}, {precision:?}: {worst} of the largest logit");
        }
    }
}
