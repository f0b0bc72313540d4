//! Blocks as GGUF files have them (ggml-common.h and ggml-quants.c of llama.cpp), read into ours.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use half::f16;

use super::{Block, Blocks, BlocksError, Format, GROUP, Writer};
use crate::ops::pool::Pool;
use crate::ops::storage::RowsMut;

fn half(bytes: &[u8]) -> f16 {
    f16::from_le_bytes([bytes[0], bytes[1]])
}

/// Sixteen bytes of two codes each: the lower halves are the first sixteen.
fn nibbles(bytes: &[u8], codes: &mut [u8]) {
    for (i, byte) in bytes[..16].iter().enumerate() {
        (codes[i], codes[i + 16]) = (byte & 15, byte >> 4);
    }
}

/// Scales and floors of eight parts in 6 bits each.
fn six_bits(packed: &[u8], block: &mut Block) {
    for i in 0..4 {
        (block.scales[i], block.floors[i]) = ((packed[i] & 63).cast_signed(), packed[i + 4] & 63);
        let both = packed[i + 8];
        block.scales[i + 4] = (both & 15 | packed[i] >> 6 << 4).cast_signed();
        block.floors[i + 4] = both >> 4 | packed[i + 4] >> 6 << 4;
    }
}

/// Two bits of 256 codes in 64 bytes: a half has 32 bytes, and a pair of bits of all its bytes is 32 codes.
fn pairs_of_bits(bytes: &[u8], codes: &mut [u8]) {
    for (i, code) in codes.iter_mut().enumerate() {
        let (half, shift, byte) = (i / 128, i % 128 / 32 * 2, i % 32);
        *code = bytes[half * 32 + byte] >> shift & 3;
    }
}

/// One block of a file.
fn block(format: Format, bytes: &[u8]) -> Block {
    let mut block = Block::EMPTY;
    let codes = &mut block.codes;
    match format {
        Format::Q4_0 => {
            block.scale = half(bytes);
            nibbles(&bytes[2..], codes);
        }
        Format::Q4_1 => {
            (block.scale, block.floor) = (half(bytes), half(&bytes[2..]));
            nibbles(&bytes[4..], codes);
        }
        Format::Q5_0 | Format::Q5_1 => {
            block.scale = half(bytes);
            let rest = match format {
                Format::Q5_0 => &bytes[2..],
                _ => {
                    block.floor = half(&bytes[2..]);
                    &bytes[4..]
                }
            };
            let high = u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]);
            nibbles(&rest[4..], codes);
            for (i, code) in codes[..32].iter_mut().enumerate() {
                *code |= ((high >> i & 1) as u8) << 4;
            }
        }
        Format::Q8_0 => {
            block.scale = half(bytes);
            for (code, byte) in codes.iter_mut().zip(&bytes[2..]) {
                *code = byte ^ 0x80;
            }
        }
        Format::Q2K => {
            for (part, both) in bytes[..16].iter().enumerate() {
                (block.scales[part], block.floors[part]) = ((both & 15).cast_signed(), both >> 4);
            }
            pairs_of_bits(&bytes[16..80], codes);
            (block.scale, block.floor) = (half(&bytes[80..]), -half(&bytes[82..]));
        }
        Format::Q3K => {
            let (high, low, packed) = (&bytes[..32], &bytes[32..96], &bytes[96..108]);
            pairs_of_bits(low, codes);
            for (i, code) in codes.iter_mut().enumerate() {
                *code |= (high[i % 32] >> (i / 32) & 1) << 2;
            }
            for i in 0..16 {
                let low = if i < 8 { packed[i] & 15 } else { packed[i - 8] >> 4 };
                let high = packed[8 + i % 4] >> (i / 4 * 2) & 3;
                block.scales[i] = (low | high << 4).cast_signed() - 32;
            }
            block.scale = half(&bytes[108..]);
        }
        Format::Q4K | Format::Q5K => {
            (block.scale, block.floor) = (half(bytes), -half(&bytes[2..]));
            let (high, low) = match format {
                Format::Q4K => (None, &bytes[16..]),
                _ => (Some(&bytes[16..48]), &bytes[48..]),
            };
            for (i, code) in codes.iter_mut().enumerate() {
                let (part, byte) = (i / 32, i % 32);
                *code = low[part / 2 * 32 + byte] >> (part % 2 * 4) & 15;
                if let Some(high) = high {
                    *code |= (high[byte] >> part & 1) << 4;
                }
            }
            six_bits(&bytes[4..16], &mut block);
        }
        Format::Q6K => {
            let (low, high, scales) = (&bytes[..128], &bytes[128..192], &bytes[192..208]);
            for (i, code) in codes.iter_mut().enumerate() {
                let (half, quarter, byte) = (i / 128, i % 128 / 32, i % 32);
                let four = low[half * 64 + quarter % 2 * 32 + byte] >> (quarter / 2 * 4) & 15;
                *code = four | (high[half * 32 + byte] >> (quarter * 2) & 3) << 4;
            }
            for (to, from) in block.scales.iter_mut().zip(scales) {
                *to = from.cast_signed();
            }
            block.scale = half(&bytes[208..]);
        }
    }
    block
}

/// Puts rows of a file into a group, whose first block is `first` in errors.
pub(super) fn put_rows(writer: &mut Writer<'_>, bytes: &[u8], first: usize) -> Result<(), BlocksError> {
    let (format, of_row) = (writer.format, writer.cols / writer.format.block());
    for (i, bytes) in bytes.chunks_exact(format.file_bytes()).enumerate() {
        let block = block(format, bytes);
        if !block.scale.is_finite() || !block.floor.is_finite() {
            return Err(BlocksError::Scale { block: first + i });
        }
        writer.put(i / of_row, i % of_row, &block);
    }
    Ok(())
}

/// Fills a group's place with those rows.
type Fill<'a> = dyn Fn(Range<usize>, &mut Writer<'_>) -> Result<(), BlocksError> + Sync + 'a;

impl Blocks {
    /// Of the bytes of a GGUF tensor.
    ///
    /// # Errors
    /// Rows that are not whole blocks, another number of bytes, scales that are NaN or infinite.
    pub fn from_ggml(
        format: Format,
        bytes: &[u8],
        (rows, cols): (usize, usize),
        pool: &Pool,
    ) -> Result<Blocks, BlocksError> {
        let each = format.file_bytes();
        if cols == 0 || !cols.is_multiple_of(format.block()) {
            return Err(BlocksError::Width { format, cols });
        }
        let row_bytes = cols / format.block() * each;
        if rows.checked_mul(row_bytes) != Some(bytes.len()) {
            let wanted = rows.saturating_mul(row_bytes);
            return Err(BlocksError::Size { format, rows, cols, wanted, found: bytes.len() });
        }
        Blocks::filled(format, (rows, cols), pool, &|rows, writer| {
            let bytes = &bytes[rows.start * row_bytes..rows.end * row_bytes];
            put_rows(writer, bytes, rows.start * (cols / format.block()))
        })
    }

    /// Calls `fill` for each group with its rows and their place, on all threads.
    pub(super) fn filled(
        format: Format,
        (rows, cols): (usize, usize),
        pool: &Pool,
        fill: &Fill<'_>,
    ) -> Result<Blocks, BlocksError> {
        let mut all = Blocks::zeros(format, rows, cols);
        let (lines, heads) = (all.lines_of_group(), all.heads_of_group());
        let groups = rows.div_ceil(GROUP);
        let failed = Mutex::new(None);
        let codes = RowsMut::new(&mut all.codes, lines);
        let all_heads = RowsMut::new(&mut all.heads, heads);
        pool.run(groups, &|group| {
            // SAFETY: each task is given its own group.
            let (codes, heads) = unsafe { (codes.row(group), all_heads.row(group)) };
            let mut writer = Writer { format, cols, codes, heads };
            if let Err(error) = fill(group * GROUP..((group + 1) * GROUP).min(rows), &mut writer) {
                let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                if failed.as_ref().is_none_or(|(first, _)| group < *first) {
                    *failed = Some((group, error));
                }
            }
        });
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some((_, error)) => Err(error),
            None => Ok(all),
        }
    }
}
