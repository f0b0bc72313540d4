//! What is no number is found wherever it is.

use half::{bf16, f16};

use super::Weight;

#[test]
fn the_first_number_that_is_not_finite_is_found() {
    let (rows, cols) = (3, 4099);
    let clean = || -> Vec<f32> { (0..rows * cols).map(|i| (i as f32 - 6000.0) * 5.0).collect() };
    let of = |numbers: Vec<f32>| {
        let wide = Weight::from_f32(numbers, rows, cols);
        [wide.to_bf16(), wide.to_f16(), wide]
    };
    for weight in of(clean()).into_iter().chain([
        Weight::vector(vec![f32::MAX, f32::MIN]),
        Weight::vector(vec![bf16::MAX.to_f32()]).to_bf16(),
        Weight::vector(vec![-f16::MAX.to_f32()]).to_f16(),
    ]) {
        assert_eq!(weight.first_non_finite(), None, "{:?}", weight.kind());
    }
    for at in [0, 1, 4095, 4096, 8191, rows * cols - 1] {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut numbers = clean();
            numbers[at] = bad;
            *numbers.last_mut().unwrap() = f32::NAN;
            for weight in of(numbers) {
                assert_eq!(weight.first_non_finite(), Some(at), "{bad} as {:?}", weight.kind());
            }
        }
    }
}
