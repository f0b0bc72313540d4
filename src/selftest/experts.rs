//! Routed experts, from a router's logits to what a row takes of them, by definition.

use candle_core::{DType, Result, Tensor};

use super::numbers::{Want, compare, held, poison, random, read, rounded, tensor, ulp};
use super::table::{products, types, types_and_stored};
use super::{Outcome, Size};
use crate::ops::exec::Exec;
use crate::ops::experts::{Combine, GateRows, Gating, GroupRows, GroupedLinear, Route};
use crate::ops::weight::Weight;

/// Rows, experts of which so many a row, outputs, inputs.
struct Case {
    rows: usize,
    gating: Gating,
    n: usize,
    k: usize,
}

/// Few rows, as many as a kernel takes at once, more; experts that no row takes, and one that most do.
pub fn experts(on: &Exec, size: Size) -> Vec<Outcome> {
    let shapes: &[[usize; 5]] = match size {
        Size::Small => &[[1, 4, 2, 16, 64], [9, 6, 3, 70, 80], [150, 3, 1, 33, 48]],
        Size::Full => &[
            [1, 64, 8, 768, 256],
            [8, 60, 4, 64, 96],
            [17, 8, 2, 258, 2048],
            [600, 128, 8, 70, 144],
            [200, 3, 2, 33, 48],
        ],
    };
    let mut all = Vec::new();
    for (i, &[rows, experts, per_token, n, k]) in shapes.iter().enumerate() {
        let gating = Gating { experts, per_token, normalised: i % 2 == 0 };
        let case = Case { rows, gating, n, k };
        all.extend(types_and_stored(on).into_iter().map(|(dtype, stored)| case.tried(dtype, stored, on)));
    }
    all
}

impl Case {
    fn tried(&self, dtype: DType, stored: DType, on: &Exec) -> Outcome {
        let Case { rows, gating, n, k } = *self;
        // The first expert is liked by most.
        let liked = |(i, x): (usize, f32)| 4.0 * x + if i % gating.experts == 0 { 3.0 } else { 0.0 };
        let logits: Vec<f32> = random(51, rows * gating.experts).into_iter().enumerate().map(liked).collect();
        let (src, w) = (random(52, rows * k), random(53, gating.experts * n * k));
        let biases = random(56, gating.experts * n);
        let run = || {
            let logits = tensor(on, logits.clone(), gating.experts, DType::F32)?;
            let weights = self.cut(&w, k, stored, on)?;
            // Not of every case.
            let biases = if gating.normalised { self.cut(&biases, 1, DType::F32, on)? } else { Vec::new() };
            self.run(&logits, &tensor(on, src.clone(), k, dtype)?, (&weights, &biases), on)
        };
        let (src, w) = (rounded(&src, dtype), held(&w, k, stored));
        let numbers = logits.chunks(gating.experts).zip(src.chunks(k)).flat_map(|(logits, src)| {
            let mut sum = vec![0.5; n];
            for (expert, weight) in chosen(gating, logits) {
                let of_expert = products(src, &w[expert * n * k..][..n * k], k);
                let bias = |out: usize| {
                    if gating.normalised { f64::from(biases[expert * n + out]) } else { 0.0 }
                };
                sum.iter_mut()
                    .zip(of_expert)
                    .enumerate()
                    .for_each(|(out, (sum, x))| *sum += weight * (x + bias(out)));
            }
            sum
        });
        let rounds = if stored == dtype { 0.0 } else { ulp(dtype) * (k as f64).sqrt() };
        let want = Want { numbers: numbers.collect(), tolerance: (1e-5, 1e-6 * k as f64 + rounds) };
        let Gating { experts, per_token, .. } = gating;
        let case = format!(
            "{rows} rows, {per_token} of {experts} experts, {n} outputs of {k} inputs, {dtype:?} on {stored:?}"
        );
        compare("experts", case, run(), &want)
    }

    /// A matrix an expert, or on a device one of all.
    fn cut(&self, w: &[f32], k: usize, stored: DType, on: &Exec) -> Result<Vec<Weight>> {
        let each = if on.launcher.is_some() { w.len() } else { self.n * k };
        w.chunks(each).map(|part| Weight::made(part.to_vec(), k, stored, on)).collect()
    }

    fn run(
        &self,
        logits: &Tensor,
        src: &Tensor,
        (weights, biases): (&[Weight], &[Weight]),
        on: &Exec,
    ) -> Result<Vec<f32>> {
        let Case { rows, gating, n, k } = *self;
        let places = rows * gating.per_token;
        let route = &Tensor::zeros((1, gating.words(rows)), DType::U32, &on.device)?;
        route.inplace_op2(logits, &Route { gating, rows, on })?;
        let grouped = poison(on, places + 1, k, src.dtype())?;
        grouped.inplace_op2(src, &GroupRows { gating, route, rows, width: k, on })?;
        let out = poison(on, places + 1, n, DType::F32)?;
        let product = GroupedLinear { gating, route, weights, biases, rows, column: 0, on };
        out.inplace_op2(&grouped, &product)?;
        let dst = tensor(on, [vec![0.5; rows * n], vec![f32::NAN; n]].concat(), n, DType::F32)?;
        dst.inplace_op2(&out, &Combine { gating, route, rows, width: n, on })?;
        read(&dst)
    }
}

/// The experts of a row and their weights, the best first.
fn chosen(gating: Gating, logits: &[f32]) -> Vec<(usize, f64)> {
    let mut best: Vec<usize> = (0..gating.experts).collect();
    best.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
    let raised = |expert: usize| f64::from(logits[expert]).exp();
    let among = if gating.normalised { &best[..gating.per_token] } else { &best[..] };
    let over: f64 = among.iter().map(|expert| raised(*expert)).sum();
    best[..gating.per_token].iter().map(|expert| (*expert, raised(*expert) / over)).collect()
}

pub fn gate_rows(on: &Exec, _: Size) -> Vec<Outcome> {
    let case = |&dtype: &DType| {
        let (rows, width) = (5, 300);
        let (numbers, gates) = (random(54, rows * width), random(55, rows));
        let run = || -> Result<Vec<f32>> {
            let dst = tensor(on, [numbers.clone(), vec![f32::NAN; width]].concat(), width, dtype)?;
            dst.inplace_op2(&tensor(on, gates.clone(), 1, DType::F32)?, &GateRows { rows, width, on })?;
            read(&dst)
        };
        let open = |row: usize| 1.0 / (1.0 + (-f64::from(gates[row])).exp());
        let held = rounded(&numbers, dtype);
        let numbers = held.iter().enumerate().map(|(i, x)| f64::from(*x) * open(i / width)).collect();
        let want = Want { numbers, tolerance: (ulp(dtype), 1e-6) };
        compare("gate_rows", format!("{rows} rows of {width}, {dtype:?}"), run(), &want)
    };
    types(on).iter().map(case).collect()
}
