//! The linear layer against an f64 oracle, and against itself under other batches and thread counts.

use candle_core::{Device, Tensor};
use half::{bf16, f16};

use super::*;
use crate::ops::blocks::Format;

/// Numbers in −1..1 that depend on the seed alone.
fn numbers(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
        })
        .collect()
}

const PAIRS: [(WeightType, DType); 7] = [
    (WeightType::Bf16, DType::BF16),
    (WeightType::F32, DType::F32),
    (WeightType::F16, DType::F32),
    (WeightType::Bf16, DType::F32),
    (WeightType::F32, DType::BF16),
    (WeightType::Fp8, DType::F32),
    (WeightType::Fp8, DType::BF16),
];

fn weight(kind: WeightType, data: Vec<f32>, rows: usize, cols: usize) -> Weight {
    match kind {
        WeightType::F32 => Weight::from_f32(data, rows, cols),
        WeightType::F16 => Weight::from_f16(data.into_iter().map(f16::from_f32).collect(), rows, cols),
        WeightType::Bf16 => Weight::from_bf16(data.into_iter().map(bf16::from_f32).collect(), rows, cols),
        WeightType::Fp8 => Weight::from_f32(data, rows, cols).to_fp8(),
        WeightType::Blocks(format) => {
            let widen = |row: usize, to: &mut [f32]| to.copy_from_slice(&data[row * cols..][..cols]);
            let pool = crate::ops::pool::Pool::new(1);
            Weight::from_blocks(Blocks::quantised(format, (rows, cols), &pool, &widen).unwrap())
        }
    }
}

fn input(data: Vec<f32>, rows: usize, cols: usize, kind: DType) -> Tensor {
    Tensor::from_vec(data, (rows, cols), &Device::Cpu).unwrap().to_dtype(kind).unwrap()
}

fn values(t: &Tensor) -> Vec<f32> {
    t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// A destination full of NaN, with two rows to spare.
fn poisoned(rows: usize, n: usize) -> Tensor {
    Tensor::full(f32::NAN, (rows + 2, n), &Device::Cpu).unwrap()
}

fn apply(op: Linear<'_>, isa: Isa, src: &Tensor) -> Vec<f32> {
    let n = op.weight.rows();
    let dst = poisoned(op.rows, n);
    dst.inplace_op2(src, &LinearOn { op, isa }).unwrap();
    let all = values(&dst);
    assert!(all[op.rows * n..].iter().all(|x| x.is_nan()), "rows beyond the step were written");
    all[..op.rows * n].to_vec()
}

fn isas() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_available())
}

/// Largest error against the oracle over the scale of the sum, which is Σ|w·x|.
fn check_against_oracle(got: &[f32], w: &Weight, x: &[f32], bias: Option<&Weight>, before: f64, what: &str) {
    let (n, k) = (w.rows(), w.cols());
    for (i, got) in got.iter().enumerate() {
        let (r, c) = (i / n, i % n);
        let mut sum = before + bias.map_or(0.0, |b| f64::from(b.get(c)));
        let mut scale = sum.abs() + 1e-3;
        for j in 0..k {
            let p = f64::from(w.get(c * k + j)) * f64::from(x[r * k + j]);
            sum += p;
            scale += p.abs();
        }
        let error = (f64::from(*got) - sum).abs() / scale;
        assert!(error < 2e-6, "{what}: row {r} output {c}: {got} for {sum}");
    }
}

#[test]
fn every_kernel_agrees_with_the_oracle() {
    let pool = Exec::cpu(2);
    for isa in isas() {
        for (kind, src_kind) in PAIRS {
            for k in [8, 15, 17, 33, 192, 1000, 1024] {
                for n in [1, 3, 5, 64, 65] {
                    let w = weight(kind, numbers(1, n * k), n, k);
                    for rows in [1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 33] {
                        if n * k * rows > 400_000 {
                            continue;
                        }
                        let x = input(numbers(2, rows * k), rows, k, src_kind);
                        let op =
                            Linear { weight: &w, bias: None, rows, column: 0, accumulate: false, on: &pool };
                        let what = format!("{isa:?} {kind:?}·{src_kind:?} rows {rows} n {n} k {k}");
                        check_against_oracle(&apply(op, isa, &x), &w, &values(&x), None, 0.0, &what);
                    }
                }
            }
        }
    }
}

#[test]
fn fp8_weights_are_their_numbers_times_their_scales() {
    let pools = [Exec::cpu(1), Exec::cpu(3)];
    let blocks = [(usize::MAX, usize::MAX), (1, usize::MAX), (128, 128), (7, 40)];
    for isa in isas() {
        for src_kind in [DType::F32, DType::BF16] {
            for (n, k) in [(1, 40), (15, 1), (17, 300), (130, 257)] {
                for (block_rows, block_cols) in blocks {
                    let (r, c) = (block_rows.min(n), block_cols.min(k));
                    let grid =
                        numbers(5, n.div_ceil(r) * k.div_ceil(c)).iter().map(|s| s.abs() + 0.01).collect();
                    let numbers_of_a_byte: Vec<u8> =
                        numbers(1, n * k).iter().map(|x| F8E4M3::narrow(x * 400.0).to_bits()).collect();
                    let w = Weight::from_bytes(&numbers_of_a_byte, n, k, WeightType::Fp8);
                    let w = w.with_scales(grid, (r, c)).unwrap();
                    let rows = 17;
                    let x = numbers(2, rows * k);
                    let op =
                        Linear { weight: &w, bias: None, rows, column: 0, accumulate: false, on: &pools[0] };
                    let src = input(x.clone(), rows, k, src_kind);
                    let what = format!("{isa:?} FP8·{src_kind:?} n {n} k {k} blocks {r} × {c}");
                    let got = apply(op, isa, &src);
                    check_against_oracle(&got, &w, &values(&src), None, 0.0, &what);
                    for row in [0, 16] {
                        let alone = input(x[row * k..][..k].to_vec(), 1, k, src_kind);
                        let alone = apply(Linear { rows: 1, on: &pools[1], ..op }, isa, &alone);
                        let same = alone.iter().zip(&got[row * n..]).all(|(a, b)| a.to_bits() == b.to_bits());
                        assert!(same, "{what}: row {row} alone differs");
                    }
                }
            }
        }
    }
}

/// As products of blocks see activations: of every 32 the largest is 127.
fn rounded(x: &[f32]) -> Vec<f32> {
    let tile = |x: &[f32]| {
        let largest = x.iter().fold(0f32, |m, x| m.max(x.abs()));
        let round = |x: &f32| (x * (127.0 / largest)).round_ties_even() * (largest / 127.0);
        x.iter().map(|x| if largest < 1e-30 { 0.0 } else { round(x) }).collect::<Vec<_>>()
    };
    x.chunks(TILE).flat_map(tile).collect()
}

#[test]
fn blocks_are_their_numbers_and_meet_activations_as_bytes() {
    let pools = [Exec::cpu(1), Exec::cpu(3)];
    for format in Format::ALL {
        for isa in isas() {
            for (n, k) in [(1, 256), (70, 512)] {
                let w = weight(WeightType::Blocks(format), numbers(1, n * k), n, k);
                let bias = Weight::vector(numbers(3, n));
                for rows in [1, 2, 3, 5, 7, 8, 10] {
                    for kind in [DType::F32, DType::BF16] {
                        let mut x = numbers(2, rows * k);
                        // A tile of zeros, and one of very small numbers.
                        x[..TILE].fill(0.0);
                        x[TILE..2 * TILE].iter_mut().for_each(|x| *x *= 1e-39);
                        let x = input(x, rows, k, kind);
                        let op = Linear {
                            weight: &w,
                            bias: Some(&bias),
                            rows,
                            column: 0,
                            accumulate: false,
                            on: &pools[0],
                        };
                        let what = format!("{isa:?} {format:?}·{kind:?} rows {rows} n {n} k {k}");
                        let got = apply(op, isa, &x);
                        let seen = match kind {
                            DType::F32 => values(&x),
                            _ => rounded(&values(&x)),
                        };
                        check_against_oracle(&got, &w, &seen, Some(&bias), 0.0, &what);
                        let again = apply(Linear { on: &pools[1], ..op }, isa, &x);
                        assert!(again == got, "{what}: other threads, other numbers");
                        let all = values(&x);
                        for row in [0, rows - 1] {
                            let alone = input(all[row * k..][..k].to_vec(), 1, k, kind);
                            let alone = apply(Linear { rows: 1, ..op }, isa, &alone);
                            assert!(alone == got[row * n..][..n], "{what}: row {row} alone differs");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn what_is_no_number_spoils_its_own_row_of_a_product_of_blocks() {
    let pool = Exec::cpu(1);
    let (n, k) = (20, 256);
    for isa in isas() {
        for format in Format::ALL {
            let w = weight(WeightType::Blocks(format), numbers(1, n * k), n, k);
            for poison in [f32::NAN, f32::INFINITY] {
                let mut x = numbers(2, 3 * k);
                x[k + 77] = poison;
                let op = Linear { weight: &w, bias: None, rows: 3, column: 0, accumulate: false, on: &pool };
                let got = apply(op, isa, &input(x, 3, k, DType::BF16));
                assert!(got[..n].iter().chain(&got[2 * n..]).all(|x| x.is_finite()), "{isa:?} {format:?}");
                assert!(got[n..2 * n].iter().all(|x| !x.is_finite()), "{isa:?} {format:?} {poison}");
            }
        }
    }
}

#[test]
fn bias_is_added_and_the_destination_is_added_to() {
    let pool = Exec::cpu(2);
    let (rows, n, k) = (7, 70, 96);
    for isa in isas() {
        for (kind, src_kind) in PAIRS {
            let w = weight(kind, numbers(1, n * k), n, k);
            let bias = weight(kind, numbers(3, n), 1, n);
            let x = input(numbers(2, rows * k), rows, k, src_kind);
            let op = Linear { weight: &w, bias: Some(&bias), rows, column: 0, accumulate: true, on: &pool };
            let dst = Tensor::full(2.5f32, (rows, n), &Device::Cpu).unwrap();
            dst.inplace_op2(&x, &LinearOn { op, isa }).unwrap();
            let what = format!("{isa:?} {kind:?}·{src_kind:?}");
            check_against_oracle(&values(&dst), &w, &values(&x), Some(&bias), 2.5, &what);
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch_or_on_the_threads() {
    let pools = [Exec::cpu(1), Exec::cpu(2), Exec::cpu(3)];
    for isa in isas() {
        for (kind, src_kind) in PAIRS {
            for (n, k) in [(65, 1000), (130, 1024), (48, 33)] {
                let w = weight(kind, numbers(1, n * k), n, k);
                let x = numbers(2, 33 * k);
                let alone: Vec<u32> = (0..33)
                    .flat_map(|r| {
                        let x = input(x[r * k..(r + 1) * k].to_vec(), 1, k, src_kind);
                        let op = Linear {
                            weight: &w,
                            bias: None,
                            rows: 1,
                            column: 0,
                            accumulate: false,
                            on: &pools[0],
                        };
                        apply(op, isa, &x)
                    })
                    .map(f32::to_bits)
                    .collect();
                for rows in [2, 3, 5, 8, 16, 33] {
                    let x = input(x[..rows * k].to_vec(), rows, k, src_kind);
                    for pool in &pools {
                        let op =
                            Linear { weight: &w, bias: None, rows, column: 0, accumulate: false, on: pool };
                        let batch: Vec<u32> = apply(op, isa, &x).into_iter().map(f32::to_bits).collect();
                        let threads = pool.pool.threads();
                        assert!(
                            batch == alone[..rows * n],
                            "{isa:?} {kind:?}·{src_kind:?} k {k}: {rows} rows on {threads} threads differ"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn an_output_does_not_depend_on_its_place_among_the_weights() {
    let pool = Exec::cpu(1);
    let (n, k) = (70, 200);
    for isa in isas() {
        let all = numbers(1, n * k);
        let w = weight(WeightType::Bf16, all.clone(), n, k);
        let x = input(numbers(2, 3 * k), 3, k, DType::BF16);
        let op = Linear { weight: &w, bias: None, rows: 3, column: 0, accumulate: false, on: &pool };
        let together = apply(op, isa, &x);
        for c in [0, 1, 5, 63, 66, 69] {
            let one = weight(WeightType::Bf16, all[c * k..(c + 1) * k].to_vec(), 1, k);
            let alone = apply(Linear { weight: &one, ..op }, isa, &x);
            for r in 0..3 {
                assert_eq!(alone[r].to_bits(), together[r * n + c].to_bits(), "{isa:?} output {c}");
            }
        }
    }
}

#[test]
fn products_side_by_side_are_what_they_are_alone() {
    let pool = Exec::cpu(2);
    let x = input(numbers(7, 5 * 40), 5, 40, DType::F32);
    let weights = [(1, 37), (2, 64), (3, 3)].map(|(s, n)| weight(WeightType::F32, numbers(s, n * 40), n, 40));
    let dst = poisoned(5, 37 + 64 + 3 + 1);
    let mut column = 0;
    for w in &weights {
        let op = Linear { weight: w, bias: None, rows: 5, column, accumulate: false, on: &pool };
        dst.inplace_op2(&x, &op).unwrap();
        column += w.rows();
    }
    let all = values(&dst);
    let mut column = 0;
    for w in &weights {
        let op = Linear { weight: w, bias: None, rows: 5, column: 0, accumulate: false, on: &pool };
        let alone = apply(op, Isa::detect(), &x);
        for row in 0..5 {
            let n = w.rows();
            assert_eq!(all[row * 105 + column..][..n], alone[row * n..][..n], "row {row} of {n} outputs");
        }
        column += w.rows();
    }
    assert!((0..5).all(|row| all[row * 105 + 104].is_nan()), "a column of nobody was written");
    let op = Linear { weight: &weights[0], bias: None, rows: 5, column: 69, accumulate: false, on: &pool };
    assert!(dst.inplace_op2(&x, &op).is_err(), "one column too few");
}

#[test]
fn what_does_not_fit_is_an_error() {
    let pool = Exec::cpu(1);
    let w = weight(WeightType::Bf16, numbers(1, 12), 3, 4);
    let op = Linear { weight: &w, bias: None, rows: 2, column: 0, accumulate: false, on: &pool };
    let dst = poisoned(2, 3);
    let fits = input(numbers(2, 8), 2, 4, DType::F32);
    dst.inplace_op2(&fits, &op).unwrap();
    let narrow = input(numbers(2, 6), 2, 3, DType::F32);
    assert!(dst.inplace_op2(&narrow, &op).is_err());
    let few = input(numbers(2, 4), 1, 4, DType::F32);
    assert!(dst.inplace_op2(&few, &op).is_err());
    let strided = input(numbers(2, 16), 4, 4, DType::F32).t().unwrap();
    assert!(dst.inplace_op2(&strided, &op).is_err());
    let half = input(numbers(2, 8), 2, 4, DType::F16);
    assert!(dst.inplace_op2(&half, &op).is_err());
    let bias = Weight::from_f32(vec![0.0; 4], 1, 4);
    assert!(dst.inplace_op2(&fits, &Linear { bias: Some(&bias), ..op }).is_err());
    assert!(dst.inplace_op2(&fits, &Linear { rows: 5, ..op }).is_err());
    let half_dst = poisoned(2, 3).to_dtype(DType::BF16).unwrap();
    assert!(half_dst.inplace_op2(&fits, &op).is_err());
}
