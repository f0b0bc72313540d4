//! A panel of weights in blocks against rows of activations that are rounded to bytes: whole numbers inside a tile,
//! f32 between tiles.
//!
//! Activations are rounded as llama.cpp does for its products: of every 32 the largest is 127. The sum over a part of a
//! tile is exact on every instruction set; each output then adds up its tiles in their order, so that it depends on its
//! weights and its activations alone.

use super::super::blocks::{Blocks, Format, GROUP, Line, TILE};
use super::{Element, Isa, SharedMut};
#[cfg(target_arch = "x86_64")]
use super::{blocks_avx2, blocks_avx512};

/// Rows of activations, rounded.
#[derive(Clone, Copy)]
pub struct Rounded<'a> {
    /// Numbers of a row, a multiple of [`TILE`].
    pub k: usize,
    /// `[rows, k]`, −127 to 127.
    pub codes: &'a [i8],
    /// `[rows, k / 32]`; a number is its code times its tile's.
    pub scales: &'a [f32],
    /// `[rows, k / 16]`: of the codes of half a tile.
    pub sums: &'a [i32],
}

/// Where rounded rows are put.
pub struct Rounding<'a> {
    pub codes: &'a mut [i8],
    pub scales: &'a mut [f32],
    pub sums: &'a mut [i32],
}

/// Rounds one row. A tile with a number that is NaN or infinite has such a scale.
///
/// # Safety
/// The machine has `isa`.
///
/// # Panics
/// When the places are not those of a row.
pub unsafe fn round<X: Element>(isa: Isa, x: &[X], to: Rounding<'_>) {
    let tiles = x.len() / TILE;
    let fits = (x.len().is_multiple_of(TILE), to.codes.len(), to.scales.len(), to.sums.len());
    assert_eq!(fits, (true, x.len(), tiles, 2 * tiles), "whole tiles and a place for each");
    // SAFETY: the caller has the instruction set.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => blocks_avx512::round(x, to),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => blocks_avx2::round(x, to),
            _ => round_here(x, to),
        }
    }
}

/// Compiled for each instruction set where it is inlined.
#[inline(always)]
pub(super) fn round_here<X: Element>(x: &[X], to: Rounding<'_>) {
    /// Added, it leaves whole numbers rounded to even in the low bits.
    const WHOLE: f32 = (3 << 22) as f32;
    let places = to.codes.chunks_exact_mut(TILE).zip(to.scales).zip(to.sums.chunks_exact_mut(2));
    for (x, ((codes, scale), sums)) in x.chunks_exact(TILE).zip(places) {
        let mut numbers = [0.0; TILE];
        let mut largest = 0;
        for (to, x) in numbers.iter_mut().zip(x) {
            *to = x.widen();
        }
        for x in &numbers {
            largest = (x.to_bits() & 0x7fff_ffff).max(largest);
        }
        let largest = f32::from_bits(largest);
        *scale = largest / 127.0;
        // Tiles of zeros, and of numbers so small that this is infinite, are zeros.
        let inverse = if *scale >= f32::MIN_POSITIVE { 127.0 / largest } else { 0.0 };
        for (code, x) in codes.iter_mut().zip(&numbers) {
            *code = (x * inverse + WHOLE).to_bits() as i8;
        }
        for (sum, codes) in sums.iter_mut().zip(codes.chunks_exact(TILE / 2)) {
            *sum = codes.iter().map(|c| i32::from(*c)).sum();
        }
    }
}

/// What one task computes: `dst[0..rows, column..column + outputs] (+)= x · wᵀ + bias`.
pub struct BlockPanel<'a> {
    pub weights: &'a Blocks,
    /// The first of the groups whose rows these are.
    pub group: usize,
    /// Weight rows, from the first of the group on.
    pub outputs: usize,
    pub x: Rounded<'a>,
    /// Of activations.
    pub rows: usize,
    /// One for each weight row, zeros where the layer has none; as many as whole groups have.
    pub bias: &'a [f32],
    pub accumulate: bool,
    /// `[rows, stride]`; nobody else writes these columns.
    pub dst: SharedMut<f32>,
    pub stride: usize,
    pub column: usize,
}

impl BlockPanel<'_> {
    pub fn groups(&self) -> usize {
        self.outputs.div_ceil(GROUP)
    }

    /// Writes the outputs of a group, counted from the panel's first, for one row of activations.
    ///
    /// # Safety
    /// `dst` is as [`panel`] asks.
    #[inline(always)]
    pub unsafe fn store(&self, group: usize, row: usize, totals: &[f32; GROUP]) {
        let first = group * GROUP;
        let outputs = (self.outputs - first).min(GROUP);
        for (i, total) in totals[..outputs].iter().enumerate() {
            let value = total + self.bias[first + i];
            // SAFETY: a row and a column of the panel.
            unsafe {
                let out = self.dst.at(row * self.stride + self.column + first + i);
                *out = if self.accumulate { *out + value } else { value };
            }
        }
    }
}

/// Computes a panel.
///
/// # Safety
/// `panel.dst` holds `[rows, stride]` elements, the panel's columns lie within the stride and no other thread touches
/// them meanwhile; the machine has `isa`.
///
/// # Panics
/// When activations, bias or weights are fewer than the panel's.
pub unsafe fn panel(isa: Isa, p: &BlockPanel<'_>) {
    let (k, rows) = (p.x.k, p.rows);
    assert!(p.weights.cols() == k && k.is_multiple_of(TILE), "weights are as wide as activations");
    assert!((p.group * GROUP + p.outputs) <= p.weights.rows() && p.bias.len() >= p.groups() * GROUP);
    let tiles = rows * (k / TILE);
    assert!(p.x.codes.len() >= rows * k && p.x.scales.len() >= tiles && p.x.sums.len() >= 2 * tiles);
    // SAFETY: the caller's promises are passed on.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => blocks_avx512::panel(p),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => blocks_avx2::panel(p),
            _ => plain(p),
        }
    }
}

const _: () = {
    // What `of_format` relies on.
    let mut i = 0;
    while i < Format::ALL.len() {
        assert!(Format::ALL[i] as usize == i);
        i += 1;
    }
};

/// Calls a function for a format, whose number is a constant in it.
macro_rules! of_format {
    ($format:expr, $function:ident($($argument:expr),*)) => {
        match $format {
            Format::Q4_0 => $function::<{ Format::Q4_0 as usize }>($($argument),*),
            Format::Q4_1 => $function::<{ Format::Q4_1 as usize }>($($argument),*),
            Format::Q5_0 => $function::<{ Format::Q5_0 as usize }>($($argument),*),
            Format::Q5_1 => $function::<{ Format::Q5_1 as usize }>($($argument),*),
            Format::Q8_0 => $function::<{ Format::Q8_0 as usize }>($($argument),*),
            Format::Q2K => $function::<{ Format::Q2K as usize }>($($argument),*),
            Format::Q3K => $function::<{ Format::Q3K as usize }>($($argument),*),
            Format::Q4K => $function::<{ Format::Q4K as usize }>($($argument),*),
            Format::Q5K => $function::<{ Format::Q5K as usize }>($($argument),*),
            Format::Q6K => $function::<{ Format::Q6K as usize }>($($argument),*),
        }
    };
}
pub(super) use of_format;

/// The codes of a tile, `[8 steps, 16 rows, 4]`.
fn unpacked(format: Format, lines: &[Line]) -> [[[u8; 4]; GROUP]; 8] {
    let mut all = [[[0; 4]; GROUP]; 8];
    for (step, all) in all.iter_mut().enumerate() {
        for (lane, four) in all.iter_mut().enumerate() {
            *four = format.four(lines, step, lane).to_le_bytes();
        }
    }
    all
}

/// Without vectors.
///
/// # Safety
/// As [`panel`].
unsafe fn plain(p: &BlockPanel<'_>) {
    /// Rows of activations that share the unpacking of a tile.
    const TOGETHER: usize = 8;
    let format = p.weights.format();
    let (per_block, part) = (format.block() / TILE, format.part());
    for group in 0..p.groups() {
        let (codes, heads) = p.weights.group(p.group + group);
        for first in (0..p.rows).step_by(TOGETHER) {
            let rows = TOGETHER.min(p.rows - first);
            let mut totals = [[0f32; GROUP]; TOGETHER];
            for tile in 0..p.x.k / TILE {
                let head = &heads[tile / per_block * format.head_bytes()..][..format.head_bytes()];
                let weights = unpacked(format, &codes[tile * format.bits()..][..format.bits()]);
                for half in 0..TILE / part {
                    let of_block = tile % per_block * (TILE / part) + half;
                    let factors: [(f32, f32); GROUP] =
                        std::array::from_fn(|lane| format.factors(head, of_block, lane));
                    let steps = half * part / 4..(half + 1) * part / 4;
                    for (row, totals) in totals[..rows].iter_mut().enumerate() {
                        let row = first + row;
                        let x = &p.x.codes[row * p.x.k + tile * TILE..][..TILE];
                        let at = row * (p.x.k / TILE) + tile;
                        let sum: i32 = match part {
                            TILE => p.x.sums[2 * at] + p.x.sums[2 * at + 1],
                            _ => p.x.sums[2 * at + half],
                        };
                        let scale = p.x.scales[at];
                        for lane in 0..GROUP {
                            let mut whole = -format.offset() * sum;
                            for step in steps.clone() {
                                for (w, x) in weights[step][lane].iter().zip(&x[4 * step..]) {
                                    whole += i32::from(*w) * i32::from(*x);
                                }
                            }
                            let (of_codes, floor) = factors[lane];
                            totals[lane] += whole as f32 * (of_codes * scale);
                            if format.has_floors() {
                                totals[lane] += floor * (scale * sum as f32);
                            }
                        }
                    }
                }
            }
            for (row, totals) in totals[..rows].iter().enumerate() {
                // SAFETY: the caller's promises.
                unsafe { p.store(group, first + row, totals) };
            }
        }
    }
}
