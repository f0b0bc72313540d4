//! Numbers for cases: random ones of a fixed seed, on a device and back, and how far off an answer is.
//!
//! A destination is full of NaN before an operation writes it, so what is not written, or too much, shows.

use candle_core::{DType, Device, Result, Tensor};

use super::Outcome;
use crate::ops::cpu::Element;
use crate::ops::cpu::fp8::F8E4M3;
use crate::ops::exec::Exec;
use crate::ops::launch::{ArrayKind, Mirrored};
use crate::ops::weight::Weight;

/// Evenly between −1 and 1, by a seed (Knuth's MMIX generator).
pub fn random(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// The numbers as a type holds them.
pub fn rounded(numbers: &[f32], dtype: DType) -> Vec<f32> {
    let round = |x: &f32| match dtype {
        DType::F16 => half::f16::from_f32(*x).to_f32(),
        DType::BF16 => half::bf16::from_f32(*x).to_f32(),
        DType::F8E4M3 => F8E4M3::narrow(*x).widen(),
        _ => *x,
    };
    numbers.iter().map(round).collect()
}

/// A matrix's numbers as [`weight`] holds them.
pub fn held(numbers: &[f32], cols: usize, dtype: DType) -> Vec<f32> {
    if dtype != DType::F8E4M3 {
        return rounded(numbers, dtype);
    }
    let weight = Weight::from_f32(numbers.to_vec(), numbers.len() / cols, cols).to_fp8();
    (0..numbers.len()).map(|i| weight.get(i)).collect()
}

/// Share of a number by which a type may be off.
pub fn ulp(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2f64.powi(-10),
        DType::BF16 => 2f64.powi(-7),
        DType::F8E4M3 => 2f64.powi(-3),
        _ => 2f64.powi(-22),
    }
}

pub fn tensor(on: &Exec, numbers: Vec<f32>, width: usize, dtype: DType) -> Result<Tensor> {
    let rows = numbers.len() / width.max(1);
    Tensor::from_vec(numbers, (rows, width), &Device::Cpu)?.to_dtype(dtype)?.to_device(&on.device)
}

/// `[rows, width]` of NaN.
pub fn poison(on: &Exec, rows: usize, width: usize, dtype: DType) -> Result<Tensor> {
    tensor(on, vec![f32::NAN; rows * width], width, dtype)
}

/// As f32 on the host, when all that was launched is done.
pub fn read(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

/// Arrays where kernels can read them; they hold until the next call.
pub fn mirrored<'a, const N: usize>(on: &Exec, arrays: [&'a [u32]; N]) -> Result<[Mirrored<'a, u32>; N]> {
    let mut all = arrays.map(Mirrored::from);
    if let Some(launcher) = &on.launcher {
        let mut addresses = [0; N];
        launcher.mirror(ArrayKind::Step, &arrays, &mut addresses)?;
        all.iter_mut().zip(addresses).for_each(|(array, address)| array.address = address);
    }
    Ok(all)
}

/// What an answer should be, and how far off each number may be.
pub struct Want {
    pub numbers: Vec<f64>,
    /// Share of the number, and absolute.
    pub tolerance: (f64, f64),
}

/// Holds an answer against what it should be. Behind that, and where `want` says NaN, nothing may have been written.
pub fn compare(operation: &'static str, case: String, got: Result<Vec<f32>>, want: &Want) -> Outcome {
    let got = match got {
        Ok(got) => got,
        Err(error) => return Outcome::failed(operation, case, &error),
    };
    let mut outcome = Outcome { operation, case, error: 0.0, worst: String::new() };
    let wanted = want.numbers.iter().copied().chain(std::iter::repeat(f64::NAN));
    for (i, (got, want_here)) in got.iter().zip(wanted).enumerate() {
        let off = match (got.is_nan(), want_here.is_nan()) {
            (true, true) => 0.0,
            (false, false) => {
                let (share, least) = want.tolerance;
                (f64::from(*got) - want_here).abs() / (share * want_here.abs() + least)
            }
            _ => f64::INFINITY,
        };
        if off > outcome.error {
            outcome.error = off;
            outcome.worst = format!("element {i}: {got} for {want_here}");
        }
    }
    if got.len() < want.numbers.len() {
        outcome.error = f64::INFINITY;
        outcome.worst = format!("{} numbers of {}", got.len(), want.numbers.len());
    }
    outcome
}
