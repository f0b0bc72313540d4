//! Routes against their definition.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use proptest::prelude::*;

use super::*;
use crate::ops::pool::Pool;

fn exec() -> Exec {
    Exec::from(Arc::new(Pool::new(2)))
}

fn route(gating: Gating, logits: &[f32], on: &Exec) -> Vec<u32> {
    let rows = logits.len() / gating.experts;
    let src = Tensor::from_slice(logits, (rows, gating.experts), &Device::Cpu).unwrap();
    let dst = Tensor::zeros((1, gating.words(rows) + 5), candle_core::DType::U32, &Device::Cpu).unwrap();
    dst.inplace_op2(&src, &Route { gating, rows, on }).unwrap();
    dst.flatten_all().unwrap().to_vec1().unwrap()
}

proptest! {
    #[test]
    fn a_route_is_the_best_experts_of_each_row_side_by_side(
        (experts, per_token, normalised) in (1usize..9).prop_flat_map(|n| (Just(n), 1..=n, any::<bool>())),
        rows in 1usize..20,
        // Few values, so that many are equal.
        seed in prop::collection::vec(-3i32..4, 20 * 9),
    ) {
        let gating = Gating { experts, per_token, normalised };
        let logits: Vec<f32> = seed[..rows * experts].iter().map(|x| *x as f32 / 2.0).collect();
        let (words, table) = (route(gating, &logits, &exec()), gating.table(rows));
        let starts = &words[table.starts()];
        prop_assert_eq!((starts[0], starts[experts]), (0, table.places as u32));
        let expert_of = |place: u32| starts[1..].iter().position(|end| place < *end).unwrap();
        for row in 0..rows {
            let own = &logits[row * experts..][..experts];
            let mut best: Vec<usize> = (0..experts).collect();
            best.sort_by(|a, b| own[*b].total_cmp(&own[*a]));
            let raised = |i: usize| f64::from(own[i]).exp();
            let over: f64 = if normalised { best[..per_token].iter().map(|i| raised(*i)).sum() } else { (0..experts).map(raised).sum() };
            for (choice, chosen) in best.iter().enumerate().take(per_token) {
                let at = row * per_token + choice;
                let place = words[table.place_of()][at];
                prop_assert_eq!(expert_of(place), *chosen);
                prop_assert_eq!(words[table.rows()][place as usize], row as u32);
                let weight = f64::from(f32::from_bits(words[table.weights()][at]));
                prop_assert!((weight - raised(*chosen) / over).abs() < 1e-6);
            }
        }
        // The places of an expert are in the order of their rows, so a row's own order is all that there is.
        for expert in starts.windows(2) {
            prop_assert!(words[expert[0] as usize..expert[1] as usize].is_sorted());
        }
    }
}

#[test]
fn what_is_no_number_stays_in_its_row() {
    let gating = Gating { experts: 4, per_token: 2, normalised: true };
    let mut logits = vec![0.5; 12];
    logits[5] = f32::NAN;
    logits[8..].fill(f32::NEG_INFINITY);
    let words = route(gating, &logits, &exec());
    let weight = |at: usize| f32::from_bits(words[gating.table(3).weights()][at]);
    assert_eq!((weight(0), weight(1)), (0.5, 0.5));
    assert!(weight(2).is_nan());
}

#[test]
fn tensors_that_are_too_small_are_refused() {
    let (on, gating) = (exec(), Gating { experts: 4, per_token: 2, normalised: true });
    let make = |rows: usize, width: usize, dtype| Tensor::zeros((rows, width), dtype, &Device::Cpu).unwrap();
    let (f32, u32) = (candle_core::DType::F32, candle_core::DType::U32);
    let (logits, words) = (make(3, 4, f32), make(1, gating.words(3), u32));
    words.inplace_op2(&logits, &Route { gating, rows: 3, on: &on }).unwrap();
    let too_many = Route { gating, rows: 4, on: &on };
    assert!(words.inplace_op2(&logits, &too_many).is_err());
    let none = Gating { per_token: 0, ..gating };
    assert!(words.inplace_op2(&logits, &Route { gating: none, rows: 3, on: &on }).is_err());
    let (places, rows) = (make(6, 8, f32), make(3, 8, f32));
    let group = |rows| GroupRows { gating, route: &words, rows, width: 8, on: &on };
    places.inplace_op2(&rows, &group(3)).unwrap();
    assert!(make(5, 8, f32).inplace_op2(&rows, &group(3)).is_err());
    let combine = Combine { gating, route: &words, rows: 3, width: 8, on: &on };
    assert!(rows.inplace_op2(&make(5, 8, f32), &combine).is_err());
    let weights = [Weight::from_f32(vec![0.0; 64], 8, 8)];
    let product =
        GroupedLinear { gating, route: &words, weights: &weights, biases: &[], rows: 3, column: 0, on: &on };
    let error = make(6, 8, f32).inplace_op2(&places, &product).unwrap_err().to_string();
    assert!(error.contains("1 matrices, 0 biases of 4 experts"), "{error}");
}
