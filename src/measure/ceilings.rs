//! What the devices of a bench do at their best, in the same run: a copy and a large product of matrices; and what
//! share of that a point reached.
//!
//! All engines work at the same time, since those of one machine may share what they measure. Devices and a clock
//! in, figures out; the arithmetic of shares knows a report alone.

use std::time::Duration;

use candle_core::{DType, Device, Result, Tensor};

use super::report::{Ceilings, DeviceCeiling, Kind, Point, Range};
use crate::clock::Clock;
use crate::ops::copy::Copy;
use crate::ops::exec::Exec;
use crate::ops::launch::Place;
use crate::ops::linear::Linear;
use crate::ops::weight::Weight;

/// Of each measurement, after one that does not count.
const REPETITIONS: usize = 7;

/// How much is copied and multiplied.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    pub copied_bytes: usize,
    /// Rows, outputs, inputs.
    pub gemm: [usize; 3],
    /// Of a repetition: a device is told to do several before it is waited for.
    pub times: usize,
}

impl Sizes {
    /// More than caches hold, and products of which a device's best kernel is made.
    pub fn of(on: &Exec) -> Sizes {
        match on.launcher {
            Some(_) => Sizes { copied_bytes: 512 << 20, gemm: [8192; 3], times: 8 },
            None => Sizes { copied_bytes: 256 << 20, gemm: [256, 2048, 2048], times: 1 },
        }
    }
}

/// An engine's means, and its name.
pub struct Engine {
    pub name: String,
    pub on: Exec,
}

/// Measures all of them; `dtype` is that of their products. Takes a second or so for each device.
///
/// # Errors
/// A device without room for the matrices, a failed launch.
pub fn measure(engines: &[Engine], dtype: DType, clock: &Clock) -> Result<Vec<DeviceCeiling>> {
    measure_with(engines, dtype, clock, &|on| Sizes::of(on))
}

fn measure_with(
    engines: &[Engine],
    dtype: DType,
    clock: &Clock,
    sizes: &dyn Fn(&Exec) -> Sizes,
) -> Result<Vec<DeviceCeiling>> {
    let sizes: Vec<Sizes> = engines.iter().map(|e| sizes(&e.on)).collect();
    let copies = all(engines, &sizes, clock, &|on, s| Copied::new(on, s.copied_bytes))?;
    let products = all(engines, &sizes, clock, &|on, s| Multiplied::new(on, s.gemm, dtype))?;
    let ceiling = |(i, engine): (usize, &Engine)| {
        let [rows, outputs, inputs] = sizes[i].gemm;
        let rate = |of: &[Duration], each: f64| {
            let mut rates: Vec<f64> =
                of.iter().map(|t| each * sizes[i].times as f64 / t.as_secs_f64()).collect();
            rates.sort_by(f64::total_cmp);
            Range { median: rates[rates.len() / 2], least: rates[0], most: rates[rates.len() - 1] }
        };
        DeviceCeiling {
            device: engine.name.clone(),
            copied_bytes: sizes[i].copied_bytes as u64,
            copy_bytes_per_second: rate(&copies[i], 2.0 * sizes[i].copied_bytes as f64),
            gemm: [rows, outputs, inputs].map(|n| n as u64),
            gemm_dtype: format!("{dtype:?}").to_lowercase(),
            gemm_flops_per_second: rate(&products[i], 2.0 * (rows * outputs * inputs) as f64),
        }
    };
    Ok(engines.iter().enumerate().map(ceiling).collect())
}

/// Something that is done over and over.
trait Work: Send + Sync {
    fn once(&self, on: &Exec) -> Result<()>;
    /// Of what it writes.
    fn result(&self) -> &Tensor;
}

/// Makes each engine's work, then has all do it at once; the times of the repetitions.
fn all<W: Work>(
    engines: &[Engine],
    sizes: &[Sizes],
    clock: &Clock,
    make: &dyn Fn(&Exec, &Sizes) -> Result<W>,
) -> Result<Vec<Vec<Duration>>> {
    let made = engines.iter().zip(sizes).map(|(e, s)| make(&e.on, s)).collect::<Result<Vec<W>>>()?;
    std::thread::scope(|scope| {
        // All are started before one is waited for.
        let mut threads = Vec::new();
        for ((engine, sizes), work) in engines.iter().zip(sizes).zip(&made) {
            threads.push(scope.spawn(move || repeated(&engine.on, work, sizes.times, clock)));
        }
        let ended = threads.into_iter().map(|t| match t.join() {
            Ok(times) => times,
            Err(_) => candle_core::bail!("an operation panicked"),
        });
        ended.collect()
    })
}

fn repeated<W: Work>(on: &Exec, work: &W, times: usize, clock: &Clock) -> Result<Vec<Duration>> {
    let mut took = Vec::new();
    for repetition in 0..=REPETITIONS {
        let begun = clock.now();
        for _ in 0..times {
            work.once(on)?;
        }
        wait(on, work.result())?;
        if repetition > 0 {
            took.push(clock.now().since(begun));
        }
    }
    Ok(took)
}

/// Until all that was launched is done.
fn wait(on: &Exec, result: &Tensor) -> Result<()> {
    if let Some(launcher) = &on.launcher {
        let place = Place::of_tensor(result)?.holds(1, "ceilings")?;
        // SAFETY: the tensor has a first element.
        unsafe { launcher.read(place.address, &mut [0.0])? };
    }
    Ok(())
}

struct Copied {
    src: Tensor,
    dst: Tensor,
}

impl Copied {
    fn new(on: &Exec, bytes: usize) -> Result<Copied> {
        let elements = bytes / size_of::<f32>();
        let src = Tensor::ones(elements, DType::F32, &on.device)?;
        // Written once, so that the pages are there.
        Ok(Copied { dst: src.zeros_like()?, src })
    }
}

impl Work for Copied {
    fn once(&self, on: &Exec) -> Result<()> {
        self.dst.inplace_op2(&self.src, &Copy { on })
    }
    fn result(&self) -> &Tensor {
        &self.dst
    }
}

struct Multiplied {
    weight: Weight,
    src: Tensor,
    dst: Tensor,
    rows: usize,
}

impl Multiplied {
    fn new(on: &Exec, [rows, outputs, inputs]: [usize; 3], dtype: DType) -> Result<Multiplied> {
        // Numbers of all sizes: a product of zeros takes less power, and so runs at a higher clock.
        let numbers = |count: usize| -> Vec<f32> {
            let number = |i: usize| (i as u32).wrapping_mul(2_654_435_761) as f32 / (1u32 << 31) as f32 - 1.0;
            (0..count).map(number).collect()
        };
        let weight = Weight::made(numbers(outputs * inputs), inputs, dtype, on)?;
        let src = Tensor::from_vec(numbers(rows * inputs), (rows, inputs), &Device::Cpu)?;
        let src = src.to_dtype(dtype)?.to_device(&on.device)?;
        let dst = Tensor::zeros((rows, outputs), DType::F32, &on.device)?;
        Ok(Multiplied { weight, src, dst, rows })
    }
}

impl Work for Multiplied {
    fn once(&self, on: &Exec) -> Result<()> {
        let (weight, rows) = (&self.weight, self.rows);
        let product = Linear { weight, bias: None, rows, column: 0, accumulate: false, on };
        self.dst.inplace_op2(&self.src, &product)
    }
    fn result(&self) -> &Tensor {
        &self.dst
    }
}

/// Of the bandwidth of a copy: what a decode step reads at least, the weights once and the keys and values of its
/// sequences, over the median time from token to token. `None` where that is not the time of a step.
pub fn copy_share(ceilings: &Ceilings, point: &Point) -> Option<f64> {
    if !matches!(point.kind, Kind::Concurrency | Kind::PowerCap | Kind::Sustained) {
        return None;
    }
    let step_seconds = point.itl_seconds?.p50;
    let context = point.mean_input_tokens + point.mean_output_tokens / 2.0;
    // Each engine has the weights, and all sequences are on some engine.
    let engines = f64::from(point.concurrency).min(ceilings.devices.len() as f64);
    let bytes = engines * ceilings.step_weight_bytes as f64
        + f64::from(point.concurrency) * context * ceilings.kv_bytes_per_token as f64;
    let copy: f64 = ceilings.devices.iter().map(|d| d.copy_bytes_per_second.median).sum();
    let share = bytes / step_seconds / (copy * engines / ceilings.devices.len() as f64);
    share.is_finite().then_some(share)
}

/// Of the rate of a large product: the operations that prompts take, over the time they took.
pub fn gemm_share(ceilings: &Ceilings, point: &Point) -> Option<f64> {
    if point.kind != Kind::Prefill {
        return None;
    }
    let keys = (point.mean_input_tokens + 1.0) / 2.0;
    let flops = ceilings.flops_per_token + keys * ceilings.flops_per_key;
    let gemm: f64 = ceilings.devices.iter().map(|d| d.gemm_flops_per_second.median).sum();
    let share = point.input_tokens_per_second.value * flops / gemm;
    share.is_finite().then_some(share)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::testing;

    fn device(copy: f64, gemm: f64) -> DeviceCeiling {
        let range = |x| Range { median: x, least: x, most: x };
        DeviceCeiling {
            device: "cpu:0".into(),
            copied_bytes: 1,
            copy_bytes_per_second: range(copy),
            gemm: [1; 3],
            gemm_dtype: "bf16".into(),
            gemm_flops_per_second: range(gemm),
        }
    }

    fn ceilings(devices: Vec<DeviceCeiling>) -> Ceilings {
        Ceilings {
            devices,
            step_weight_bytes: 2_000_000,
            kv_bytes_per_token: 1000,
            flops_per_token: 4e6,
            flops_per_key: 1e4,
        }
    }

    /// Ten milliseconds a step, 128 tokens in and out.
    #[test]
    fn decode_is_held_against_the_copy() {
        let one = testing::point(Kind::Concurrency, 1, 100.0, 50.0);
        let share = |devices, point: &Point| copy_share(&ceilings(devices), point).unwrap();
        // 2 MB and 192 tokens of a kilobyte, a hundred times a second.
        assert!((share(vec![device(1e9, 1.0)], &one) - 219.2e6 / 1e9).abs() < 1e-12);
        let eight = Point { concurrency: 8, ..one.clone() };
        assert!((share(vec![device(1e9, 1.0)], &eight) - 353.6e6 / 1e9).abs() < 1e-12);
        // Two engines read the weights twice, from twice the memory; one sequence keeps one of them busy.
        let two = || vec![device(1e9, 1.0), device(1e9, 1.0)];
        assert!((share(two(), &eight) - 553.6e6 / 2e9).abs() < 1e-12);
        assert!((share(two(), &one) - 219.2e6 / 1e9).abs() < 1e-12);
        let paused = Point { kind: Kind::Duty, ..one };
        assert_eq!(copy_share(&ceilings(two()), &paused), None);
    }

    #[test]
    fn prompts_are_held_against_the_product() {
        let point = Point { mean_input_tokens: 1023.0, ..testing::point(Kind::Prefill, 4, 1000.0, 50.0) };
        let ceilings = ceilings(vec![device(1.0, 2e10), device(1.0, 2e10)]);
        // 4 MFLOP and 512 keys of 10 kFLOP, a thousand times a second.
        assert!((gemm_share(&ceilings, &point).unwrap() - 9.12e9 / 4e10).abs() < 1e-12);
        assert_eq!(gemm_share(&ceilings, &testing::point(Kind::Concurrency, 1, 100.0, 50.0)), None);
    }

    #[test]
    fn engines_are_measured_together_and_each_is_named() {
        let engine = |i: usize| Engine { name: format!("cpu:{i}"), on: Exec::cpu(1) };
        let small = |_: &Exec| Sizes { copied_bytes: 1 << 16, gemm: [5, 33, 64], times: 2 };
        for dtype in [DType::F32, DType::BF16] {
            let all = measure_with(&[engine(0), engine(1)], dtype, &Clock::system(), &small).unwrap();
            assert_eq!(all.iter().map(|d| d.device.as_str()).collect::<Vec<_>>(), ["cpu:0", "cpu:1"]);
            for d in all {
                for rate in [d.copy_bytes_per_second, d.gemm_flops_per_second] {
                    assert!(rate.least > 0.0 && rate.least <= rate.median && rate.median <= rate.most);
                    assert!(rate.most.is_finite());
                }
            }
        }
        // What no product takes is said.
        assert!(measure_with(&[engine(0)], DType::F16, &Clock::system(), &small).is_err());
    }
}
