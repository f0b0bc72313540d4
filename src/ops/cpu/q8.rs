//! Rows of whole numbers of 8 bits with one scale: keys and values of a cache, a row for each head of each token.
//!
//! A row is its codes, −127 to 127 in two's complement, and behind them the scale in f32: number = code · scale,
//! scale = the largest magnitude / 127. It depends on its own numbers alone, so what is stored of a token does not
//! depend on the step it came in. A scale of f32 has no range that keys could leave; one of f16 would. A row with a
//! NaN or an infinity has a scale that is not finite, and all that is read of it is NaN or infinite.

use std::mem::MaybeUninit;

use super::Isa;
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};

/// Of a row's scale, in little-endian order.
pub const SCALE_BYTES: usize = 4;

/// The largest code.
const MOST: f32 = 127.0;

/// Adding it leaves whole numbers of either sign, rounded to even, in the low bits.
const WHOLE: f32 = (3 << 22) as f32;

/// Stores numbers as a row.
///
/// # Panics
/// When the row is not as long as the numbers and a scale.
pub fn round(from: &[f32], row: &mut [u8]) {
    let (codes, stored) = row.split_at_mut(from.len());
    // Bits of magnitudes have their order, with infinity and NaN above all numbers: neither is lost to a comparison.
    let most = from.iter().fold(0, |most, x| (x.to_bits() & 0x7fff_ffff).max(most));
    let scale = f32::from_bits(most) / MOST;
    stored.copy_from_slice(&scale.to_le_bytes());
    if scale == 0.0 {
        // Nothing but zeros, and what is too small for a scale.
        codes.fill(0);
        return;
    }
    for (code, x) in codes.iter_mut().zip(from) {
        let whole = (x / scale).clamp(-MOST, MOST) + WHOLE;
        *code = whole.to_bits() as u8;
    }
}

/// Writes all the numbers of a row, each rounded once to f32: the same on every instruction set.
///
/// # Safety
/// The machine has `isa`.
///
/// # Panics
/// When the row is not as long as the numbers and a scale.
pub unsafe fn widen(isa: Isa, row: &[u8], to: &mut [MaybeUninit<f32>]) {
    let (codes, scale) = row.split_at(to.len());
    let scale: [u8; SCALE_BYTES] = scale.try_into().expect("a row ends with its scale");
    let scale = f32::from_le_bytes(scale);
    let mut whole = 0;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: there are as many codes as places, and the caller has the instruction set.
    unsafe {
        match isa {
            Isa::Avx512 => whole = avx512::scaled_i8(codes, scale, to),
            Isa::Avx2 => whole = avx2::scaled_i8(codes, scale, to),
            Isa::Scalar => {}
        }
    }
    let _ = isa;
    for (code, to) in codes[whole..].iter().zip(&mut to[whole..]) {
        to.write(f32::from(*code as i8) * scale);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn isas() -> impl Iterator<Item = Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_available())
    }

    /// What is read back, the same on every instruction set.
    fn back(from: &[f32]) -> Vec<f32> {
        let mut row = vec![0xaa; from.len() + SCALE_BYTES];
        round(from, &mut row);
        let mut all = isas().map(|isa| {
            let mut to = vec![MaybeUninit::new(7.0); from.len()];
            // SAFETY: of those that the machine has; each number was written.
            unsafe {
                widen(isa, &row, &mut to);
                to.into_iter().map(|x| x.assume_init()).collect::<Vec<f32>>()
            }
        });
        let first = all.next().expect("plain loops at least");
        let bits =
            |x: &[f32]| x.iter().map(|x| if x.is_nan() { u32::MAX } else { x.to_bits() }).collect::<Vec<_>>();
        all.for_each(|other| assert_eq!(bits(&other), bits(&first)));
        first
    }

    /// From the definition, in f64.
    #[test]
    fn numbers_are_half_a_step_off_at_most() {
        let mut state = 1u32;
        for (i, dim) in [8, 24, 64, 80, 96, 128, 256].into_iter().cycle().take(700).enumerate() {
            let size = 2f32.powi(i as i32 % 200 - 100);
            let from: Vec<f32> = (0..dim)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state as f32 / 2f32.powi(31) - 1.0) * size
                })
                .collect();
            let most = from.iter().fold(0f64, |most, x| most.max(f64::from(x.abs())));
            let got = back(&from);
            for (x, got) in from.iter().zip(&got) {
                let (x, got, step) = (f64::from(*x), f64::from(*got), most / 127.0);
                // The scale and the product are rounded to f32.
                assert!((x - got).abs() <= step * 0.500_01 + x.abs() * 1e-6, "{x} of {most} became {got}");
                let want = (x / step).round() * step;
                let tie = ((x / step).fract().abs() - 0.5).abs() < 1e-4;
                assert!(tie || (want - got).abs() <= most * 1e-6, "{x} of {most} became {got}, not {want}");
            }
            let largest = got.iter().fold(0f64, |most, x| most.max(f64::from(x.abs())));
            assert!((largest / most - 1.0).abs() < 1e-6, "the largest number stays: {most} became {largest}");
        }
    }

    #[test]
    fn whole_numbers_and_ties_are_as_they_should_be() {
        // A scale of one: ties go to the even number.
        let from = [127.0, -127.0, 0.5, 1.5, -0.5, -2.5, 126.5, 0.0];
        assert_eq!(back(&from), [127.0, -127.0, 0.0, 2.0, 0.0, -2.0, 126.0, 0.0]);
        assert_eq!(back(&[f32::MAX, -f32::MAX, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])[..3], {
            let most = f32::MAX / 127.0 * 127.0;
            [most, -most, 0.0]
        });
    }

    #[test]
    fn zeros_stay_zeros() {
        assert_eq!(back(&[0.0; 24]), [0.0; 24]);
        assert_eq!(back(&[-0.0; 8]), [0.0; 8]);
        // Too small for a scale, and just large enough for one.
        assert_eq!(back(&[1e-44, 0.0, -1e-44, 0.0, 0.0, 0.0, 0.0, 0.0]), [0.0; 8]);
        assert!(back(&[1e-40; 8]).iter().all(|x| (x / 1e-40 - 1.0).abs() < 0.01));
    }

    /// Not one number of such a row may look like one.
    #[test]
    fn what_is_not_finite_is_not_lost() {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::from_bits(0x7f80_0001)] {
            for at in [0, 7, 20] {
                let mut from = [0.5f32; 24];
                from[3] = 0.0;
                from[at] = bad;
                let got = back(&from);
                assert!(got.iter().all(|x| !x.is_finite()), "{bad} at {at}: {got:?}");
            }
        }
    }
}
