//! Weights in blocks by kernels: products against sums in f64, picked rows, a decoder of them.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use half::bf16;
use hashwatt::model::decoder::{Precision, Quantize};
use hashwatt::ops::blocks::{Blocks, Format};
use hashwatt::ops::gather::Gather;
use hashwatt::ops::launch::Mirrored;
use hashwatt::ops::linear::Linear;
use hashwatt::ops::weight::Weight;

use super::difference;
use crate::host_kernels::kernels;
use crate::support::{Shape, Steps, checkpoint, llama, pool, prompt};

fn numbers(seed: usize, n: usize) -> Vec<f32> {
    prompt(n, 4001, seed as u64 + 1).into_iter().map(|t| (t as f32 - 2000.0) / 2000.0).collect()
}

fn matrix(format: Format, rows: usize, cols: usize) -> Weight {
    let data = numbers(rows + cols, rows * cols);
    let row = |row: usize, to: &mut [f32]| to.copy_from_slice(&data[row * cols..][..cols]);
    Weight::from_blocks(Blocks::quantised(format, (rows, cols), &pool(1), &row).unwrap())
}

/// Outputs that are no whole group; a tile for some of the streams only, and more than one for each.
#[test]
fn products_of_blocks_are_sums_of_products() {
    let Some(on) = kernels() else { return };
    for (rows_of_weights, k, most) in [(37, 256, 17), (48, 768, 1)] {
        for format in Format::ALL {
            let weight = matrix(format, rows_of_weights, k);
            let there = Weight::on_device(&[&weight], &on.device).unwrap();
            let bias = Weight::vector(numbers(3, rows_of_weights));
            for rows in [1, 8, 11, 17].into_iter().filter(|rows| *rows <= most) {
                let x: Vec<bf16> = numbers(rows, rows * k).into_iter().map(bf16::from_f32).collect();
                let src = Tensor::from_slice(&x, (rows, k), &Device::Cpu).unwrap();
                let stride = rows_of_weights + 3;
                let dst = Tensor::full(2f32, (rows, stride), &Device::Cpu).unwrap();
                let op = |accumulate| Linear {
                    weight: &there,
                    bias: Some(&bias),
                    rows,
                    column: 2,
                    accumulate,
                    on: &on,
                };
                dst.inplace_op2(&src, &op(false)).unwrap();
                dst.inplace_op2(&src, &op(true)).unwrap();
                let got: Vec<Vec<f32>> = dst.to_vec2().unwrap();
                for (row, got) in got.iter().enumerate() {
                    assert_eq!((got[0], got[1], got[stride - 1]), (2.0, 2.0, 2.0), "outside of the outputs");
                    for out in 0..rows_of_weights {
                        let one = |i: usize| {
                            f64::from(x[row * k + i].to_f32()) * f64::from(weight.get(out * k + i))
                        };
                        let want = 2.0 * ((0..k).map(one).sum::<f64>() + f64::from(bias.get(out)));
                        // From 17 rows on weights are rounded to bf16 first.
                        let tolerance = if rows > 16 { 0.2 } else { 1e-4 };
                        let off = (f64::from(got[2 + out]) - want).abs();
                        assert!(
                            off <= tolerance,
                            "{format:?}, {rows} rows of {k}, output {out}: off by {off}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn matrices_of_blocks_lie_one_below_the_other() {
    let Some(on) = kernels() else { return };
    let (a, b) = (matrix(Format::Q5K, 32, 256), matrix(Format::Q5K, 21, 256));
    assert!(a.stacks_with(&b) && !b.stacks_with(&a) && !a.stacks_with(&matrix(Format::Q4K, 16, 256)));
    let both = Weight::on_device(&[&a, &b], &on.device).unwrap();
    let (ids, dst) = ([52, 0, 31, 32], Tensor::zeros((4, 256), DType::F32, &Device::Cpu).unwrap());
    let gather = Gather { table: &both, ids: Mirrored::from(&ids[..]), sampled: 0, scale: 2.0, on: &on };
    dst.inplace_op1(&gather).unwrap();
    let got: Vec<f32> = dst.flatten_all().unwrap().to_vec1().unwrap();
    let row = |id: u32| -> Vec<f32> {
        let (of, row) = if id < 32 { (&a, id) } else { (&b, id - 32) };
        (0..256).map(|i| 2.0 * of.get(row as usize * 256 + i)).collect()
    };
    let want = ids.into_iter().flat_map(row);
    assert!(got.iter().zip(want).all(|(got, want)| (got - want).abs() <= 1e-6 * want.abs()));
}

#[test]
fn a_decoder_of_blocks_is_the_decoder() {
    let Some(on) = kernels() else { return };
    let prompts = [1, 17, 80].map(|n| prompt(n, 517, n as u64));
    let mut config = llama(2);
    (config["hidden_size"], config["intermediate_size"]) = (256.into(), 512.into());
    for format in [Format::Q8_0, Format::Q4K, Format::Q6K, Format::Q3K] {
        let decoder =
            checkpoint(config.clone()).load_as(Quantize::Blocks(format), Precision::Bf16, true, &|_| {});
        let decoder = Arc::new(decoder.unwrap());
        let want = Steps::new(&decoder, Shape::default()).run(&prompts, 1);
        let there = Arc::new(decoder.on_device(&on.device).unwrap());
        let got = Steps::on(&there, on.clone(), Shape::default()).run(&prompts, 1);
        // The processor rounds activations to bytes.
        let worst = difference(&want, &got);
        assert!(worst <= 5e-2, "{format:?}: {worst} of the largest logit");
    }
}
