//! The panel of blocks on AVX-512: a register has four codes of each of sixteen weight rows, `vpdpbusd` multiplies them
//! by four of a row of activations.

use std::arch::x86_64::*;

use super::super::blocks::{Format, GROUP, TILE};
use super::Element;
use super::blocks::{BlockPanel, Rounding, of_format, round_here};

/// # Safety
/// As `blocks::round`; the machine has AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn round<X: Element>(x: &[X], to: Rounding<'_>) {
    round_here(x, to);
}

/// # Safety
/// As `blocks::panel`; the machine has AVX-512.
pub unsafe fn panel(p: &BlockPanel<'_>) {
    // SAFETY: the caller's promises.
    unsafe { of_format!(p.weights.format(), sweep(p)) }
}

/// Passes the rows of activations over the groups: a few groups at a time, for as many streams from memory where there
/// are few rows, and for as few loads of activations where there are many.
///
/// # Safety
/// As [`panel`].
unsafe fn sweep<const F: usize>(p: &BlockPanel<'_>) {
    let wide = if p.rows <= 2 { 4 } else { 2 };
    let mut group = 0;
    while group < p.groups() {
        let groups = if p.groups() - group >= wide { wide } else { 1 };
        let mut row = 0;
        while row < p.rows {
            // SAFETY: groups and rows of the panel.
            row += unsafe {
                match (groups, p.rows - row) {
                    (4, 1) => tile::<F, 4, 1>(p, group, row),
                    (4, _) => tile::<F, 4, 2>(p, group, row),
                    (1, ..4) => tile::<F, 1, 1>(p, group, row),
                    (1, _) => tile::<F, 1, 4>(p, group, row),
                    (_, 1) => tile::<F, 2, 1>(p, group, row),
                    (_, 2 | 3) => tile::<F, 2, 2>(p, group, row),
                    (_, 4 | 5 | 8) => tile::<F, 2, 4>(p, group, row),
                    _ => tile::<F, 2, 6>(p, group, row),
                }
            };
        }
        group += groups;
    }
}

/// The codes of a step, made bytes.
///
/// # Safety
/// The lines of a tile of format `F` at `tile`; the machine has AVX-512.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn codes<const F: usize, const STEP: usize>(tile: *const __m512i) -> __m512i {
    // SAFETY: lines of the tile.
    let line = |i: usize| unsafe { _mm512_load_si512(tile.add(i)) };
    let four_bits = || {
        let both = line(STEP % 4);
        let shifted = if STEP < 4 { both } else { _mm512_srli_epi16::<4>(both) };
        _mm512_and_si512(shifted, _mm512_set1_epi8(0x0f))
    };
    // Two bits and one bit: to where they belong in the code.
    let two_bits = |first: usize| {
        let four = line(first + STEP % 2);
        let shifted = match STEP / 2 {
            0 => four,
            1 => _mm512_srli_epi16::<2>(four),
            2 => _mm512_srli_epi16::<4>(four),
            _ => _mm512_srli_epi16::<6>(four),
        };
        _mm512_and_si512(shifted, _mm512_set1_epi8(3))
    };
    let one_bit = |first: usize| {
        // A mask of the bytes that have it is cheaper than shifting it there.
        _mm512_test_epi8_mask(line(first), _mm512_set1_epi8((1u8 << STEP).cast_signed()))
    };
    match const { Format::ALL[F].bits() } {
        8 => line(STEP),
        6 => _mm512_or_si512(four_bits(), _mm512_slli_epi16::<4>(two_bits(4))),
        5 => {
            let low = four_bits();
            _mm512_mask_add_epi8(low, one_bit(4), low, _mm512_set1_epi8(16))
        }
        4 => four_bits(),
        3 => {
            let low = two_bits(0);
            _mm512_mask_add_epi8(low, one_bit(2), low, _mm512_set1_epi8(4))
        }
        _ => two_bits(0),
    }
}

/// Multiplies the codes of four steps from `FROM` (0 or 4) on.
///
/// # Safety
/// As [`tile`]; `weights` and `x` point to a tile each.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn four_steps<const F: usize, const G: usize, const R: usize, const FROM: usize>(
    sums: &mut [[__m512i; G]; R],
    weights: &[*const __m512i; G],
    x: &[*const i32; R],
) {
    macro_rules! step {
        ($step:literal) => {
            // SAFETY: the caller's promises.
            unsafe {
                let w: [__m512i; G] = std::array::from_fn(|g| codes::<F, $step>(weights[g]));
                for r in 0..R {
                    let x = _mm512_set1_epi32(x[r].add($step).read_unaligned());
                    for g in 0..G {
                        sums[r][g] = _mm512_dpbusd_epi32(sums[r][g], w[g], x);
                    }
                }
            }
        };
    }
    if FROM == 0 {
        step!(0);
        step!(1);
        step!(2);
        step!(3);
    } else {
        step!(4);
        step!(5);
        step!(6);
        step!(7);
    }
}

/// Sixteen halves as f32.
///
/// # Safety
/// 32 bytes at `p`; the machine has AVX-512.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn halves(p: *const u8) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
}

/// G groups × R rows of activations; R.
///
/// # Safety
/// As [`panel`]; the groups and rows are the panel's.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn tile<const F: usize, const G: usize, const R: usize>(
    p: &BlockPanel<'_>,
    group: usize,
    row: usize,
) -> usize {
    let format = const { Format::ALL[F] };
    let (bits, part, head_bytes) =
        const { (Format::ALL[F].bits(), Format::ALL[F].part(), Format::ALL[F].head_bytes()) };
    let per_block = const { Format::ALL[F].block() / TILE };
    let (parts, factors) = const { (Format::ALL[F].parts(), Format::ALL[F].factors_at()) };
    let (k, tiles) = (p.x.k, p.x.k / TILE);
    let zero = _mm512_setzero_ps();
    let mut totals = [[zero; G]; R];
    let (mut scales, mut floors) = ([zero; G], [zero; G]);
    // SAFETY: what is read lies in the groups and rows of the panel, as `blocks::panel` checked.
    unsafe {
        let of_group: [_; G] = std::array::from_fn(|g| p.weights.group(p.group + group + g));
        let x: [*const i8; R] = std::array::from_fn(|r| p.x.codes.as_ptr().add((row + r) * k));
        let x_scales: [*const f32; R] = std::array::from_fn(|r| p.x.scales.as_ptr().add((row + r) * tiles));
        let x_sums: [*const i32; R] = std::array::from_fn(|r| p.x.sums.as_ptr().add((row + r) * 2 * tiles));
        for t in 0..tiles {
            let head: [*const u8; G] =
                std::array::from_fn(|g| of_group[g].1.as_ptr().add(t / per_block * head_bytes));
            if t % per_block == 0 {
                for g in 0..G {
                    scales[g] = halves(head[g]);
                    if format.has_floors() {
                        floors[g] = halves(head[g].add(2 * GROUP));
                    }
                }
            }
            let weights: [*const __m512i; G] =
                std::array::from_fn(|g| of_group[g].0.as_ptr().add(t * bits).cast());
            let x: [*const i32; R] = std::array::from_fn(|r| x[r].add(t * TILE).cast());
            for half in 0..TILE / part {
                let (mut scales, mut floors) = (scales, floors);
                if format.has_factors() {
                    let this = t % per_block * (TILE / part) + half;
                    for g in 0..G {
                        let factor = _mm_loadu_si128(head[g].add(factors + this * GROUP).cast());
                        let factor = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(factor));
                        scales[g] = _mm512_mul_ps(scales[g], factor);
                        if format.has_floors() {
                            let factor = head[g].add(factors + (parts + this) * GROUP);
                            let factor = _mm512_cvtepu8_epi32(_mm_loadu_si128(factor.cast()));
                            floors[g] = _mm512_mul_ps(floors[g], _mm512_cvtepi32_ps(factor));
                        }
                    }
                }
                let sum_of: [i32; R] = std::array::from_fn(|r| match part {
                    TILE => *x_sums[r].add(2 * t) + *x_sums[r].add(2 * t + 1),
                    _ => *x_sums[r].add(2 * t + half),
                });
                let mut sums: [[__m512i; G]; R] =
                    std::array::from_fn(|r| [_mm512_set1_epi32(-format.offset() * sum_of[r]); G]);
                if part == TILE || half == 0 {
                    four_steps::<F, G, R, 0>(&mut sums, &weights, &x);
                }
                if part == TILE || half == 1 {
                    four_steps::<F, G, R, 4>(&mut sums, &weights, &x);
                }
                for r in 0..R {
                    let scale = *x_scales[r].add(t);
                    let (each, floor) = (_mm512_set1_ps(scale), _mm512_set1_ps(scale * sum_of[r] as f32));
                    for g in 0..G {
                        let whole = _mm512_cvtepi32_ps(sums[r][g]);
                        totals[r][g] = _mm512_fmadd_ps(whole, _mm512_mul_ps(scales[g], each), totals[r][g]);
                        if format.has_floors() {
                            totals[r][g] = _mm512_fmadd_ps(floors[g], floor, totals[r][g]);
                        }
                    }
                }
            }
        }
        for r in 0..R {
            for g in 0..G {
                store(p, group + g, row + r, totals[r][g]);
            }
        }
    }
    R
}

/// Writes the outputs of a group for a row.
///
/// # Safety
/// As [`tile`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn store(p: &BlockPanel<'_>, group: usize, row: usize, totals: __m512) {
    let first = group * GROUP;
    let outputs = (p.outputs - first).min(GROUP);
    let mask = ((1u32 << outputs) - 1) as u16;
    // SAFETY: the mask lets only columns of the panel be touched; the bias has whole groups.
    unsafe {
        let out = p.dst.at(row * p.stride + p.column + first);
        let mut value = _mm512_add_ps(totals, _mm512_loadu_ps(p.bias.as_ptr().add(first)));
        if p.accumulate {
            value = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), value);
        }
        _mm512_mask_storeu_ps(out, mask, value);
    }
}
