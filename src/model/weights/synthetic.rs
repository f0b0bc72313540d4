//! Weights from a seed, so that hardware can be measured before any download.
//!
//! Element i of a tensor is the sum of four uniform 16-bit integers taken from one hash of (seed,
//! tensor name, i), centred and scaled: approximately normal, and the same bits on every device and
//! thread count, because everything before the one final multiplication is integer arithmetic.

use std::sync::Arc;

use half::{bf16, f16};

use super::rows_cols;
use crate::model::spec::{DecoderSpec, FloatType};
use crate::ops::pool::Pool;
use crate::ops::weight::Weight;

/// Standard deviation of the sum of four uniform integers in 0..65536.
const SUM_DEVIATION: f32 = 37_837.227;
/// Twice the range's middle, four times: the mean of the sum.
const SUM_MEAN: i32 = 2 * 65_535;
/// Elements one task makes.
const CHUNK: usize = 1 << 16;

/// Makes any tensor of a model from `seed`.
pub struct Generator {
    seed: u64,
    float_type: FloatType,
    layers: usize,
    pool: Arc<Pool>,
}

impl Generator {
    pub fn new(seed: u64, spec: &DecoderSpec, pool: Arc<Pool>) -> Generator {
        Generator::of_layers(seed, spec.float_type, spec.layers, pool)
    }

    /// For a model of so many layers.
    pub fn of_layers(seed: u64, float_type: FloatType, layers: usize, pool: Arc<Pool>) -> Generator {
        Generator { seed, float_type, layers, pool }
    }

    /// The tensor `name` of this shape.
    pub fn weight(&self, name: &str, shape: &[usize]) -> Weight {
        let (rows, cols) = rows_cols(shape);
        let distribution = self.distribution(name, shape);
        let key = mix(self.seed ^ name_hash(name));
        match self.float_type {
            FloatType::F32 => Weight::from_f32(self.fill(rows * cols, key, distribution, |x| x), rows, cols),
            FloatType::F16 => {
                Weight::from_f16(self.fill(rows * cols, key, distribution, f16::from_f32), rows, cols)
            }
            FloatType::Bf16 => {
                Weight::from_bf16(self.fill(rows * cols, key, distribution, bf16::from_f32), rows, cols)
            }
        }
    }

    /// Mean and deviation: norms lie around 1; a matrix keeps the scale of its input; what is added to
    /// the residual stream shrinks with depth, so that 64 layers stay finite; embeddings are small, so
    /// that a tied head does not only repeat the last token.
    fn distribution(&self, name: &str, shape: &[usize]) -> (f32, f32) {
        let fan_in = 1.0 / (rows_cols(shape).1 as f32).sqrt();
        if name.ends_with(".bias") {
            (0.0, 0.02)
        } else if name.contains("norm") || name.contains("Norm") {
            (1.0, 0.1)
        } else if name.contains("embed") {
            (0.0, 0.02)
        } else if name.contains("o_proj") || name.contains("down_proj") || name.ends_with(".w2.weight") {
            (0.0, fan_in / (2.0 * self.layers as f32).sqrt())
        } else {
            (0.0, fan_in)
        }
    }

    fn fill<T: Copy + Send + Sync + Default>(
        &self,
        n: usize,
        key: u64,
        (mean, deviation): (f32, f32),
        convert: fn(f32) -> T,
    ) -> Vec<T> {
        let mut data = vec![T::default(); n];
        let scale = deviation / SUM_DEVIATION;
        let make = |first: usize, out: &mut [T]| {
            for (i, x) in out.iter_mut().enumerate() {
                *x = convert(mean + centred_sum(key, (first + i) as u64) as f32 * scale);
            }
        };
        let whole = n / CHUNK;
        let (head, tail) = data.split_at_mut(whole * CHUNK);
        let rows = crate::ops::storage::RowsMut::new(head, CHUNK);
        // SAFETY: each task is given its own chunk.
        self.pool.run(whole, &|c| make(c * CHUNK, unsafe { rows.row(c) }));
        make(whole * CHUNK, tail);
        data
    }
}

/// Four uniform 16-bit integers of one hash, summed and centred.
fn centred_sum(key: u64, index: u64) -> i32 {
    let h = mix(key.wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
    let part = |shift: u32| ((h >> shift) & 0xFFFF) as i32;
    part(0) + part(16) + part(32) + part(48) - SUM_MEAN
}

/// The finaliser of splitmix64.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// FNV-1a of a tensor's name.
fn name_hash(name: &str) -> u64 {
    name.bytes().fold(0xCBF2_9CE4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01B3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generator(threads: usize) -> Generator {
        Generator { seed: 7, float_type: FloatType::Bf16, layers: 4, pool: Arc::new(Pool::new(threads)) }
    }

    #[test]
    fn the_bits_depend_on_nothing_but_name_seed_and_index() {
        let one = generator(1).weight("model.layers.0.mlp.up_proj.weight", &[300, 700]);
        let two = generator(2).weight("model.layers.0.mlp.up_proj.weight", &[300, 700]);
        assert!((0..300 * 700).all(|i| one.get(i).to_bits() == two.get(i).to_bits()));
        let other = generator(1).weight("model.layers.1.mlp.up_proj.weight", &[300, 700]);
        assert!((0..1000).any(|i| one.get(i) != other.get(i)));
        // Pinned, so that a change of the generator is noticed.
        assert_eq!(centred_sum(mix(7 ^ name_hash("x")), 0), centred_sum(mix(7 ^ name_hash("x")), 0));
    }

    #[test]
    fn the_numbers_are_about_normal() {
        let w = generator(2).weight("model.layers.0.mlp.up_proj.weight", &[1000, 1000]);
        let n = 1_000_000;
        let mean = (0..n).map(|i| f64::from(w.get(i))).sum::<f64>() / n as f64;
        let var = (0..n).map(|i| f64::from(w.get(i)).powi(2)).sum::<f64>() / n as f64;
        let beyond = (0..n).filter(|i| f64::from(w.get(*i)).abs() > 2.0 * var.sqrt()).count();
        assert!(mean.abs() < 2e-4, "mean {mean}");
        assert!((var.sqrt() * 1000f64.sqrt() - 1.0).abs() < 0.01, "deviation {}", var.sqrt());
        // 4.5 % for the normal distribution, 4.4 % for the sum of four uniforms.
        assert!((40_000..48_000).contains(&beyond), "{beyond}");
    }
}
