//! The panel of blocks on AVX2: a register has four codes of each of eight weight rows.

use std::arch::x86_64::*;

use super::super::blocks::{Format, GROUP, TILE};
use super::Element;
use super::blocks::{BlockPanel, Rounding, of_format, round_here};

/// # Safety
/// As `blocks::round`; the machine has AVX2.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn round<X: Element>(x: &[X], to: Rounding<'_>) {
    round_here(x, to);
}

/// # Safety
/// As `blocks::panel`; the machine has AVX2.
pub unsafe fn panel(p: &BlockPanel<'_>) {
    // SAFETY: the caller's promises.
    unsafe { of_format!(p.weights.format(), sweep(p)) }
}

/// # Safety
/// As [`panel`].
unsafe fn sweep<const F: usize>(p: &BlockPanel<'_>) {
    for group in 0..p.groups() {
        let mut row = 0;
        while row < p.rows {
            // SAFETY: a group and rows of the panel.
            row += unsafe {
                if p.rows - row == 1 { tile::<F, 1>(p, group, row) } else { tile::<F, 2>(p, group, row) }
            };
        }
    }
}

/// The codes of a step that eight rows have, made bytes. `tile` is moved by 32 bytes for the second eight.
///
/// # Safety
/// The lines of a tile of format `F` at `tile`; the machine has AVX2.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn codes<const F: usize>(tile: *const __m256i, step: usize) -> __m256i {
    // A line is two registers.
    // SAFETY: lines of the tile.
    let line = |i: usize| unsafe { _mm256_load_si256(tile.add(2 * i)) };
    let part = |plane: usize, first: usize| {
        let shift = _mm_cvtsi32_si128((step / plane * plane) as i32);
        let mask = _mm256_set1_epi8(((1u32 << plane) - 1) as i8);
        _mm256_and_si256(_mm256_srl_epi16(line(first + step % plane), shift), mask)
    };
    match const { Format::ALL[F].bits() } {
        8 => line(step),
        6 => _mm256_or_si256(part(4, 0), _mm256_slli_epi16::<4>(part(2, 4))),
        5 => _mm256_or_si256(part(4, 0), _mm256_slli_epi16::<4>(part(1, 4))),
        4 => part(4, 0),
        3 => _mm256_or_si256(part(2, 0), _mm256_slli_epi16::<2>(part(1, 2))),
        _ => part(2, 0),
    }
}

/// Adds four products of bytes to each lane, exactly.
///
/// # Safety
/// The machine has AVX2.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_products<const F: usize>(sum: __m256i, w: __m256i, x: __m256i) -> __m256i {
    let pairs = if const { Format::ALL[F].bits() == 8 } {
        // Two products of codes up to 255 would not fit an i16: as −128 to 127 they do, and the offset is in the code.
        let w = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
        _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w))
    } else {
        _mm256_maddubs_epi16(w, x)
    };
    _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
}

/// A group × R rows of activations; R.
///
/// # Safety
/// As [`panel`]; the group and rows are the panel's.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<const F: usize, const R: usize>(p: &BlockPanel<'_>, group: usize, row: usize) -> usize {
    let format = const { Format::ALL[F] };
    let (part, per_block) = const { (Format::ALL[F].part(), Format::ALL[F].block() / TILE) };
    let (parts, factors) = const { (Format::ALL[F].parts(), Format::ALL[F].factors_at()) };
    let offset = if format.bits() == 8 { 0 } else { format.offset() };
    let (k, tiles) = (p.x.k, p.x.k / TILE);
    let (lines, heads) = p.weights.group(p.group + group);
    let mut totals = [[_mm256_setzero_ps(); 2]; R];
    // SAFETY: what is read lies in the group and rows of the panel, as `blocks::panel` checked.
    unsafe {
        for t in 0..tiles {
            let head = heads.as_ptr().add(t / per_block * format.head_bytes());
            let weights: *const __m256i = lines.as_ptr().add(t * format.bits()).cast();
            for half in 0..TILE / part {
                let halves =
                    |at: usize, i: usize| _mm256_cvtph_ps(_mm_loadu_si128(head.add(at + 16 * i).cast()));
                let mut scales: [__m256; 2] = std::array::from_fn(|i| halves(0, i));
                let mut floors = [_mm256_setzero_ps(); 2];
                if format.has_floors() {
                    floors = std::array::from_fn(|i| halves(2 * GROUP, i));
                }
                if format.has_factors() {
                    let this = t % per_block * (TILE / part) + half;
                    let bytes = |part: usize, i: usize| {
                        _mm_loadl_epi64(head.add(factors + part * GROUP + 8 * i).cast())
                    };
                    for i in 0..2 {
                        let factor = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes(this, i)));
                        scales[i] = _mm256_mul_ps(scales[i], factor);
                        if format.has_floors() {
                            let factor = _mm256_cvtepu8_epi32(bytes(parts + this, i));
                            floors[i] = _mm256_mul_ps(floors[i], _mm256_cvtepi32_ps(factor));
                        }
                    }
                }
                let at = |r: usize| (row + r) * tiles + t;
                let sum_of: [i32; R] = std::array::from_fn(|r| match part {
                    TILE => p.x.sums[2 * at(r)] + p.x.sums[2 * at(r) + 1],
                    _ => p.x.sums[2 * at(r) + half],
                });
                let mut sums: [[__m256i; 2]; R] =
                    std::array::from_fn(|r| [_mm256_set1_epi32(-offset * sum_of[r]); 2]);
                for step in half * part / 4..(half + 1) * part / 4 {
                    let w: [__m256i; 2] = std::array::from_fn(|i| codes::<F>(weights.add(i), step));
                    for r in 0..R {
                        let x: *const i32 = p.x.codes.as_ptr().add((row + r) * k + t * TILE).cast();
                        let x = _mm256_set1_epi32(x.add(step).read_unaligned());
                        for i in 0..2 {
                            sums[r][i] = add_products::<F>(sums[r][i], w[i], x);
                        }
                    }
                }
                for r in 0..R {
                    let scale = p.x.scales[at(r)];
                    let (each, floor) = (_mm256_set1_ps(scale), _mm256_set1_ps(scale * sum_of[r] as f32));
                    for i in 0..2 {
                        let whole = _mm256_cvtepi32_ps(sums[r][i]);
                        totals[r][i] = _mm256_fmadd_ps(whole, _mm256_mul_ps(scales[i], each), totals[r][i]);
                        if format.has_floors() {
                            totals[r][i] = _mm256_fmadd_ps(floors[i], floor, totals[r][i]);
                        }
                    }
                }
            }
        }
        for r in 0..R {
            let mut all = [0.0; GROUP];
            for i in 0..2 {
                _mm256_storeu_ps(all.as_mut_ptr().add(8 * i), totals[r][i]);
            }
            p.store(group, row + r, &all);
        }
    }
    R
}
