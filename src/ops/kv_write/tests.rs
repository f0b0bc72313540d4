//! Slots: each key and value lands where attention looks for it, and nowhere else.

use candle_core::{DType, Device, Tensor};

use super::*;

#[test]
fn rows_land_in_their_slots_and_nothing_else_changes() {
    let (blocks, heads, dim) = (3, 2, 8);
    for kind in [DType::F32, DType::BF16] {
        let cache =
            Tensor::full(7.0f32, (blocks, 2, heads, BLOCK_SIZE, dim), &Device::Cpu).unwrap().to_dtype(kind);
        let cache = cache.unwrap();
        // Four rows of capacity, three in the step; the spare row must not be read into the cache.
        let (column, width) = (5, heads * dim);
        let row = |base: f32| {
            let data: Vec<f32> = (0..4 * width).map(|i| base + i as f32).collect();
            Tensor::from_vec(data, (4, width), &Device::Cpu).unwrap()
        };
        let before = Tensor::full(f32::NAN, (4, column), &Device::Cpu).unwrap();
        let rows = Tensor::cat(&[&before, &row(0.0), &row(100.0)], 1).unwrap();
        let slots = [35u32, 0, 17];
        let op = KvWrite { slots: &slots, column, kv_heads: heads, head_dim: dim, scales: CacheScales::ONE };
        cache.inplace_op2(&rows, &op).unwrap();
        let got: Vec<f32> = cache.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        for (i, got) in got.iter().enumerate() {
            let (d, i) = (i % dim, i / dim);
            let (offset, i) = (i % BLOCK_SIZE, i / BLOCK_SIZE);
            let (head, i) = (i % heads, i / heads);
            let (part, block) = (i % 2, i / 2);
            let row = slots.iter().position(|s| *s as usize == block * BLOCK_SIZE + offset);
            let want = row.map_or(7.0, |r| (part * 100 + (r * heads + head) * dim + d) as f32);
            assert_eq!(*got, want, "{kind:?} block {block} part {part} head {head} offset {offset} dim {d}");
        }
    }
}

#[test]
fn rounding_is_to_the_nearest_even() {
    let cache = Tensor::zeros((1, 2, 1, BLOCK_SIZE, 8), DType::BF16, &Device::Cpu).unwrap();
    let x = [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, 1.0 + 1.01 / 256.0, f32::INFINITY, -0.0, 3e38, 1e-40, 0.5];
    let k = Tensor::new(&[x], &Device::Cpu).unwrap();
    let rows = Tensor::cat(&[&k, &k], 1).unwrap();
    cache
        .inplace_op2(
            &rows,
            &KvWrite { slots: &[1], column: 0, kv_heads: 1, head_dim: 8, scales: CacheScales::ONE },
        )
        .unwrap();
    let got: Vec<half::bf16> = cache.flatten_all().unwrap().to_vec1().unwrap();
    for (i, x) in x.iter().enumerate() {
        assert_eq!(got[8 + i].to_bits(), half::bf16::from_f32(*x).to_bits(), "{x}");
    }
    assert!(half::bf16::narrow(f32::NAN).is_nan());
}

#[test]
fn fp8_is_stored_by_its_scale() {
    let cache = Tensor::zeros((1, 2, 1, BLOCK_SIZE, 8), DType::F8E4M3, &Device::Cpu).unwrap();
    let k = [0.0, 1.0, -3.0, 0.3, 1e9, -1e9, f32::NAN, 2e-3];
    let k = Tensor::new(&[k], &Device::Cpu).unwrap();
    let rows = Tensor::cat(&[&k, &k], 1).unwrap();
    let scales = CacheScales { k: 0.5, v: 4.0 };
    cache.inplace_op2(&rows, &KvWrite { slots: &[1], column: 0, kv_heads: 1, head_dim: 8, scales }).unwrap();
    let got: Vec<f32> = cache.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    let same = |got: &[f32], want: &[f32]| {
        let alike = |(g, w): (&f32, &f32)| g == w || g.is_nan() && w.is_nan();
        assert!(got.iter().zip(want).all(alike), "{got:?}, not {want:?}");
    };
    same(&got[8..16], &[0.0, 2.0, -6.0, 0.625, 448.0, -448.0, f32::NAN, 2.0 / 512.0]);
    same(&got[128 + 8..128 + 16], &[0.0, 0.25, -0.75, 0.078_125, 448.0, -448.0, f32::NAN, 0.0]);
}

/// A row for each head of each token, and nothing else is written.
#[test]
fn q8_is_stored_with_a_scale_for_each_head() {
    let (heads, dim) = (2, 24);
    let width = dim + 4;
    let cache = Tensor::full(0x55u8, (3, 2, heads, BLOCK_SIZE, width), &Device::Cpu).unwrap();
    // Heads of very different sizes: each by its own.
    let number = |i: usize| (i as f32 * 0.7).sin() * 10f32.powi((i / dim) as i32 % 5 - 2);
    let numbers: Vec<f32> = (0..3 * 2 * heads * dim).map(number).collect();
    let rows = Tensor::from_vec(numbers.clone(), (3, 2 * heads * dim), &Device::Cpu).unwrap();
    let slots = [35u32, 0, 17];
    // Scales are FP8's.
    let scales = CacheScales { k: 0.5, v: 4.0 };
    let op = KvWrite { slots: &slots, column: 0, kv_heads: heads, head_dim: dim, scales };
    cache.inplace_op2(&rows, &op).unwrap();
    let got: Vec<u8> = cache.flatten_all().unwrap().to_vec1().unwrap();
    for (i, row) in got.chunks(width).enumerate() {
        let (offset, i) = (i % BLOCK_SIZE, i / BLOCK_SIZE);
        let (head, i) = (i % heads, i / heads);
        let (part, block) = (i % 2, i / 2);
        let Some(r) = slots.iter().position(|s| *s as usize == block * BLOCK_SIZE + offset) else {
            assert!(row.iter().all(|byte| *byte == 0x55));
            continue;
        };
        let from = &numbers[((r * 2 + part) * heads + head) * dim..][..dim];
        let most = from.iter().fold(0f64, |most, x| most.max(f64::from(x.abs())));
        let scale = f64::from(f32::from_le_bytes(row[dim..].try_into().unwrap()));
        assert!((scale * 127.0 / most - 1.0).abs() < 1e-6, "{scale} for {most}");
        for (x, code) in from.iter().zip(row) {
            let error = (f64::from(*x) - f64::from(*code as i8) * scale).abs();
            assert!(error <= 0.501 * scale, "{x} became {} of {scale}", *code as i8);
        }
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let cache = Tensor::zeros((2, 2, 1, BLOCK_SIZE, 8), DType::F32, &Device::Cpu).unwrap();
    let rows = Tensor::zeros((2, 16), DType::F32, &Device::Cpu).unwrap();
    let op = KvWrite { slots: &[0, 31], column: 0, kv_heads: 1, head_dim: 8, scales: CacheScales::ONE };
    cache.inplace_op2(&rows, &op).unwrap();
    assert!(cache.inplace_op2(&rows, &KvWrite { slots: &[0, 32], ..op }).is_err());
    assert!(cache.inplace_op2(&rows, &KvWrite { slots: &[0, 1, 2], ..op }).is_err());
    assert!(cache.inplace_op2(&rows, &KvWrite { kv_heads: 2, ..op }).is_err());
    assert!(cache.inplace_op2(&rows, &KvWrite { column: 1, ..op }).is_err());
    assert!(cache.inplace_op2(&rows.to_dtype(DType::BF16).unwrap(), &op).is_err());
    // Bytes without room for scales are no Q8 cache.
    let bytes = Tensor::zeros((2, 2, 1, BLOCK_SIZE, 8), DType::U8, &Device::Cpu).unwrap();
    assert!(bytes.inplace_op2(&rows, &op).is_err());
}
