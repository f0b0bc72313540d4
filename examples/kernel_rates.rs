//! Prints the rates of the CPU kernels: GB/s of weights for one row, GFLOP/s for batches, attention.
//!
//! `cargo run --release --example kernel_rates -- --threads 2 --isa avx2 --only attention`. Medians
//! over repeats, and the best; other load on the machine shows. The dev profile's checks in the inner
//! loops cost several times the arithmetic, so its figures mean little.

use candle_core::{DType, Device, Result, Tensor};
use half::bf16;
use hashwatt::clock::Clock;
use hashwatt::ops::cpu::Isa;
use hashwatt::ops::exec::Exec;
use hashwatt::ops::kv_write::CacheScales;
use hashwatt::ops::linear::{Linear, LinearOn};
use hashwatt::ops::paged_attention as paged;
use hashwatt::ops::paged_attention::{AttentionPlan, AttentionSpan, PagedAttention};
use hashwatt::ops::weight::Weight;

/// Median and least seconds of a call over about half a second of calls.
fn seconds(mut call: impl FnMut() -> Result<()>) -> Result<(f64, f64)> {
    let clock = Clock::system();
    call()?;
    let mut times = vec![];
    let begin = clock.now();
    while times.len() < 5 || (times.len() < 2000 && clock.now().since(begin).as_millis() < 500) {
        let start = clock.now();
        call()?;
        times.push(clock.now().since(start).as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok((times[times.len() / 2], times[0]))
}

fn numbers(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i.wrapping_mul(2_654_435_761) >> 7 & 0xffff) as f32 / 65536.0 - 0.5).collect()
}

/// What meets weights, or comes from a cache, of a type.
fn activations(kind: DType) -> DType {
    if kind == DType::F8E4M3 { DType::BF16 } else { kind }
}

fn linear(on: &Exec, isa: Isa, kind: DType, k: usize, n: usize) -> Result<()> {
    let data = numbers(n * k);
    let (weight, bytes) = match kind {
        DType::BF16 => (Weight::from_bf16(data.iter().map(|x| bf16::from_f32(*x)).collect(), n, k), 2),
        DType::F8E4M3 => (Weight::from_f32(data, n, k).to_fp8(), 1),
        _ => (Weight::from_f32(data, n, k), 4),
    };
    for rows in [1, 2, 4, 8, 32, 128, 512].into_iter().filter(|rows| rows * n <= 32 * 151_936) {
        let x = Tensor::from_vec(numbers(rows * k), (rows, k), &Device::Cpu)?.to_dtype(activations(kind))?;
        let dst = Tensor::zeros((rows, n), DType::F32, &Device::Cpu)?;
        let op = Linear { weight: &weight, bias: None, rows, column: 0, accumulate: false, on };
        let (s, best) = seconds(|| dst.inplace_op2(&x, &LinearOn { op, isa }))?;
        println!(
            "linear {kind:?} K {k:5} N {n:6} rows {rows:3}: {:9.1} µs {:6.1} GB/s {:6.1} GFLOP/s (best {:.1})",
            s * 1e6,
            (n * k * bytes) as f64 / s / 1e9,
            (2 * n * k * rows) as f64 / s / 1e9,
            (2 * n * k * rows) as f64 / best / 1e9
        );
    }
    Ok(())
}

/// `sequences` of `length` tokens of which the last `rows` are in the step.
fn attention(on: &Exec, isa: Isa, kind: DType, step: (usize, usize, usize)) -> Result<()> {
    let (sequences, length, rows) = step;
    let (heads, kv_heads, head_dim) = (16, 8, 128);
    let per = length.div_ceil(paged::BLOCK_SIZE);
    let blocks = sequences * per;
    let cache = Tensor::from_vec(
        numbers(blocks * 2 * kv_heads * paged::BLOCK_SIZE * head_dim),
        (blocks, 2, kv_heads, paged::BLOCK_SIZE, head_dim),
        &Device::Cpu,
    )?
    .to_dtype(kind)?;
    // Neighbouring tokens' blocks are far apart, as after a while of serving.
    let tables: Vec<u32> = (0..blocks).map(|i| (i * 7919 % blocks) as u32).collect();
    let spans: Vec<_> = (0..sequences)
        .map(|s| AttentionSpan {
            first_row: (s * rows) as u32,
            rows: rows as u32,
            first_position: (length - rows) as u32,
            block_table: (s * per) as u32,
        })
        .collect();
    let all = sequences * rows;
    let q = Tensor::from_vec(numbers(all * heads * head_dim), (all, heads * head_dim), &Device::Cpu)?;
    let dst = Tensor::zeros((all, heads * head_dim), activations(kind), &Device::Cpu)?;
    let plan = AttentionPlan {
        spans: spans.as_slice().into(),
        block_tables: tables.as_slice().into(),
        tiles: [].as_slice().into(),
        split_tiles: 0,
        rows: all,
    };
    let op = PagedAttention {
        plan,
        kv: &cache,
        scales: CacheScales::ONE,
        heads,
        kv_heads,
        head_dim,
        scale: 0.088,
        limits: paged::AttentionLimits::default(),
        sinks: None,
        scratch: None,
        on,
    };
    let (s, best) = seconds(|| dst.inplace_op2(&q, &paged::PagedAttentionOn { op, isa }))?;
    let seen = sequences * (rows * (length - rows) + rows * (rows + 1) / 2);
    let read = sequences * length * 2 * kv_heads * head_dim * kind.size_in_bytes();
    println!(
        "attention {kind:?} {sequences:2} × {rows:3} rows of {length:5}: {:9.1} µs {:6.1} GB/s {:6.1} GFLOP/s (best {:.1})",
        s * 1e6,
        read as f64 / s / 1e9,
        (4 * seen * heads * head_dim) as f64 / s / 1e9,
        (4 * seen * heads * head_dim) as f64 / best / 1e9
    );
    Ok(())
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let option = |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).cloned();
    let pool = Exec::cpu(option("--threads").and_then(|t| t.parse().ok()).unwrap_or(2));
    let named =
        |isa: &Isa| option("--isa").is_some_and(|name| format!("{isa:?}").eq_ignore_ascii_case(&name));
    let isa = Isa::ALL.into_iter().find(named).unwrap_or_else(Isa::detect);
    let wanted = |what: &str| option("--only").is_none_or(|only| only == what);
    println!("{isa:?}, {} threads", pool.pool.threads());
    for kind in [DType::BF16, DType::F8E4M3, DType::F32] {
        if wanted("linear") {
            for (k, n) in [(192, 512), (1024, 3072), (3072, 1024), (8192, 2048), (1024, 151_936)] {
                linear(&pool, isa, kind, k, n)?;
            }
        }
        if wanted("attention") {
            for step in [(1, 256, 1), (1, 4096, 1), (32, 1024, 1), (1, 512, 512), (1, 4096, 512)] {
                attention(&pool, isa, kind, step)?;
            }
        }
    }
    Ok(())
}
