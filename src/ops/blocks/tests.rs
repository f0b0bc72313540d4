//! Every format against candle's reading of it.

use candle_core::quantized::{QStorage, QTensor};
use candle_core::{Device, Tensor};

use super::*;
use crate::ops::pool::Pool;

/// Bytes that depend on the seed alone.
fn noise(seed: u64, n: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as u8
    };
    (0..n).map(|_| next()).collect()
}

/// Any bytes at all, but for scales: those are finite.
fn blocks_of_noise(format: Format, rows: usize, cols: usize) -> Vec<u8> {
    let mut bytes = noise(format as u64 + 3, rows * cols / format.block() * format.file_bytes());
    for block in bytes.chunks_exact_mut(format.file_bytes()) {
        let halves: &[usize] = match format {
            Format::Q4_0 | Format::Q5_0 | Format::Q8_0 => &[0],
            Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => &[0, 2],
            Format::Q2K => &[80, 82],
            Format::Q3K => &[108],
            Format::Q6K => &[208],
        };
        for at in halves {
            // The exponent of an f16 below 31.
            block[at + 1] &= 0xbf;
        }
    }
    bytes
}

fn by_candle(format: Format, bytes: &[u8], rows: usize, cols: usize) -> Vec<f32> {
    let storage =
        QStorage::from_data(std::borrow::Cow::Borrowed(bytes), &Device::Cpu, format.ggml()).unwrap();
    let tensor = QTensor::new(storage, (rows, cols)).unwrap();
    tensor.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn every_format_is_read_as_candle_reads_it() {
    let pool = Pool::new(2);
    for format in Format::ALL {
        let (rows, cols) = (37, 3 * format.block());
        let bytes = blocks_of_noise(format, rows, cols);
        let blocks = Blocks::from_ggml(format, &bytes, (rows, cols), &pool).unwrap();
        assert_eq!(blocks.bytes(), format.size(48 * cols), "whole groups of rows");
        let (ours, theirs) = (blocks.to_f32(), by_candle(format, &bytes, rows, cols));
        let differs = ours.iter().zip(&theirs).position(|(a, b)| (a - b).abs() > 1e-6 * b.abs());
        assert_eq!(differs, None, "{format:?}");
        assert!(theirs.iter().any(|x| *x != 0.0));
    }
}

#[test]
fn rows_and_columns_are_picked() {
    let pool = Pool::new(1);
    for format in Format::ALL {
        let block = format.block();
        let (rows, cols) = (20, 3 * block);
        let bytes = blocks_of_noise(format, rows, cols);
        let blocks = Blocks::from_ggml(format, &bytes, (rows, cols), &pool).unwrap();
        let whole = blocks.to_f32();
        let picked = blocks.picked(&[19, 0, 7], block..3 * block).unwrap().to_f32();
        for (i, row) in [19, 0, 7].into_iter().enumerate() {
            assert_eq!(picked[i * 2 * block..][..2 * block], whole[row * cols + block..][..2 * block]);
        }
        let cut = blocks.picked(&[0], 8..cols);
        assert!(matches!(cut, Err(BlocksError::Width { .. })), "{format:?}: columns inside a block");
    }
}

#[test]
fn codes_and_scales_of_another_format_are_kept() {
    let pool = Pool::new(2);
    let (rows, cols) = (21, 96);
    for format in [Format::Q4_0, Format::Q5_0, Format::Q8_0] {
        let codes: Vec<u8> =
            noise(5, rows * cols).iter().map(|b| (u32::from(*b) % (1 << format.bits())) as u8).collect();
        let scale = |block: usize| f16::from_f32((block as f32 - 20.0) / 7.0);
        let made = Blocks::of_codes(format, (rows, cols), &pool, &|row, block, to| {
            to.copy_from_slice(&codes[row * cols + block * 32..][..32]);
            scale(row * 3 + block)
        });
        let whole = made.unwrap().to_f32();
        for (i, x) in whole.iter().enumerate() {
            let code = i32::from(codes[i]) - format.offset();
            assert_eq!(*x, scale(i / 32).to_f32() * code as f32, "{format:?}: number {i}");
        }
        let infinite = Blocks::of_codes(format, (2, 64), &pool, &|row, block, _| match (row, block) {
            (1, 0) => f16::INFINITY,
            _ => f16::ONE,
        });
        assert_eq!(infinite.unwrap_err(), BlocksError::Scale { block: 2 });
        let cut = Blocks::of_codes(format, (1, 40), &pool, &|_, _, _| f16::ONE);
        assert_eq!(cut.unwrap_err(), BlocksError::Width { format, cols: 40 });
    }
}

#[test]
fn rounding_is_candles_and_as_fine_as_its_bits() {
    let pool = Pool::new(2);
    let (rows, cols) = (18, 512);
    let numbers: Vec<f32> = noise(9, rows * cols).iter().map(|b| (f32::from(*b) - 127.5) / 100.0).collect();
    let tensor = Tensor::from_vec(numbers.clone(), (rows, cols), &Device::Cpu).unwrap();
    for format in Format::ALL {
        let widen = |row: usize, to: &mut [f32]| to.copy_from_slice(&numbers[row * cols..][..cols]);
        let ours = Blocks::quantised(format, (rows, cols), &pool, &widen).unwrap().to_f32();
        let theirs = QTensor::quantize(&tensor, format.ggml()).unwrap();
        let theirs: Vec<f32> =
            theirs.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert!(ours.iter().zip(&theirs).all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs()), "{format:?}");
        let worst = ours.iter().zip(&numbers).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        // The range of the numbers is 2.55, and a step of the codes is that over their count.
        let step = 2.55 / ((1 << format.bits()) - 1) as f32;
        assert!(worst < 1.5 * step, "{format:?}: off by {worst}, a step is {step}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let pool = Pool::new(2);
    let none = Blocks::from_ggml(Format::Q4K, &[], (1, 128), &pool).unwrap_err();
    assert_eq!(none.to_string(), "Q4_K has blocks of 256 numbers, and rows have 128");
    let short = Blocks::from_ggml(Format::Q8_0, &[0; 33], (1, 32), &pool).unwrap_err();
    assert_eq!(short.to_string(), "Q8_0 of [1, 32] has 34 bytes and 33 were given");
    let many = Blocks::from_ggml(Format::Q8_0, &[0; 34], (usize::MAX, 32), &pool).unwrap_err();
    assert!(matches!(many, BlocksError::Size { .. }));
    let mut bytes = vec![0; 3 * 34];
    bytes[2 * 34 + 1] = 0x7c;
    let infinite = Blocks::from_ggml(Format::Q8_0, &bytes, (3, 32), &pool).unwrap_err();
    assert_eq!(infinite, BlocksError::Scale { block: 2 });
}
