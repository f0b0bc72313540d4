//! Caches of Q8: the f32 cache of their numbers, to the bit, and nothing that is no number is lost.

use candle_core::{DType, Device, Tensor};

use super::*;
use crate::ops::cpu::q8::{self, SCALE_BYTES};

/// Numbers as a cache of that type has them, a head at a time: U8 is Q8.
pub fn stored(numbers: &[f32], head_dim: usize, kind: DType) -> Tensor {
    if kind != DType::U8 {
        return Tensor::new(numbers, &Device::Cpu).unwrap().to_dtype(kind).unwrap();
    }
    let mut rows = vec![0; numbers.len() / head_dim * (head_dim + SCALE_BYTES)];
    for (from, row) in numbers.chunks(head_dim).zip(rows.chunks_mut(head_dim + SCALE_BYTES)) {
        q8::round(from, row);
    }
    Tensor::new(rows, &Device::Cpu).unwrap()
}

/// The numbers of it, by the definition.
pub fn widened(stored: &Tensor, head_dim: usize) -> Vec<f32> {
    let stored = stored.flatten_all().unwrap();
    if stored.dtype() != DType::U8 {
        return stored.to_dtype(DType::F32).unwrap().to_vec1().unwrap();
    }
    let rows: Vec<u8> = stored.to_vec1().unwrap();
    let of_row = |row: &[u8]| {
        let (codes, scale) = row.split_at(head_dim);
        let scale = f32::from_le_bytes(scale.try_into().unwrap());
        codes.iter().map(|code| f32::from(*code as i8) * scale).collect::<Vec<_>>()
    };
    rows.chunks(head_dim + SCALE_BYTES).flat_map(of_row).collect()
}

/// Numbers `[blocks, 2, kv_heads, BLOCK_SIZE, width]` one after the other as a cache.
pub fn shaped(cache: Tensor, dims: Dims) -> Tensor {
    let width = width(cache.dtype(), dims.head_dim);
    cache.reshape(((), 2, dims.kv_heads, BLOCK_SIZE, width)).unwrap()
}

/// To the bit, whatever the size of heads, the window and the cap: what holds of f32 caches holds of these.
#[test]
fn a_q8_cache_is_the_f32_cache_of_its_numbers() {
    let pools = [Exec::cpu(1), Exec::cpu(3)];
    for isa in isas() {
        for head_dim in [8, 24, 64, 80, 128, 256] {
            let dims = Dims { heads: 6, kv_heads: 2, head_dim };
            let mut q8 = World::new(dims, &[1, 17, 150], DType::U8, 23);
            let mut plain = World::new(dims, &[1, 17, 150], DType::U8, 23);
            plain.cache = shaped(Tensor::new(widened(&q8.cache, head_dim), &Device::Cpu).unwrap(), dims);
            let (width, pieces) = (6 * head_dim, [(0, 0, 1), (2, 0, 150), (1, 3, 17)]);
            for (window, soft_cap) in [(None, None), (Some(40), Some(2.0))] {
                (q8.limits, plain.limits) =
                    (AttentionLimits { window, soft_cap }, AttentionLimits { window, soft_cap });
                let whole = q8.run(&pieces, isa, &pools[0], DType::F32);
                assert_eq!(bits(&whole), bits(&plain.run(&pieces, isa, &pools[0], DType::F32)), "{isa:?}");
                let of_2 = &whole[width..151 * width];
                for position in [0, 15, 16, 63, 64, 149] {
                    for (got, want) in of_2[position * width..][..width].iter().zip(q8.oracle(2, position)) {
                        let error = (f64::from(*got) - want).abs();
                        assert!(error < 2e-5, "{isa:?} dim {head_dim} at {position}: {got} for {want}");
                    }
                }
                let chunks = (0..150).step_by(37).map(|from| (2, from, (from + 37).min(150)));
                let parts = chunks.flat_map(|piece| q8.run(&[piece], isa, &pools[1], DType::F32));
                assert_eq!(bits(&parts.collect::<Vec<_>>()), bits(of_2), "{isa:?} dim {head_dim} in chunks");
                let half = q8.run(&pieces, isa, &pools[1], DType::BF16);
                assert!(half.iter().zip(&whole).all(|(h, w)| *h == half::bf16::from_f32(*w).to_f32()));
            }
        }
    }
}

/// One that is not a number, in a key or in a value, is not taken for one by any row that sees it.
#[test]
fn a_nan_in_a_q8_cache_is_seen() {
    let dims = Dims { heads: 4, kv_heads: 2, head_dim: 64 };
    let pool = Exec::cpu(1);
    for isa in isas() {
        let mut w = World::new(dims, &[40], DType::U8, 29);
        let before = w.run(&[(0, 0, 40)], isa, &pool, DType::F32);
        let whole = widened(&w.cache, 64);
        for part in [0, 1] {
            // The 20th position, of the first of two heads: the first two of four query heads.
            let row = ((w.tables[1] as usize * 2 + part) * 2 * BLOCK_SIZE + 20 % BLOCK_SIZE) * 64;
            let mut numbers = whole.clone();
            numbers[row + 9] = f32::NAN;
            w.cache = shaped(stored(&numbers, 64, DType::U8), dims);
            let after = w.run(&[(0, 0, 40)], isa, &pool, DType::F32);
            for (i, (before, after)) in before.iter().zip(&after).enumerate() {
                let (position, head) = (i / 256, i / 64 % 4);
                match position >= 20 && head < 2 {
                    true => assert!(after.is_nan(), "{isa:?} position {position}, head {head}: {after}"),
                    // Rounded twice, a scale may be its neighbour.
                    false => assert!((before - after).abs() < 1e-5, "{isa:?} {position}: {after}"),
                }
            }
        }
    }
}
