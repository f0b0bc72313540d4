//! The most tokens that a board can make in a second: its memory and its multipliers, and nothing else, set the time of
//! a step.
//!
//! A bound, and no forecast: launches, imperfect reads and the host are left out.

use crate::model::kv_cache::CacheType;
use crate::model::spec::DecoderSpec;
use crate::power::boards::Board;

/// A decode step of one device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step<'a> {
    pub spec: &'a DecoderSpec,
    /// Of the matrices that it reads.
    pub weight_bytes: u64,
    pub cache: CacheType,
    pub sequences: usize,
    /// Tokens that each of them has.
    pub context: usize,
}

impl Step<'_> {
    /// Tokens that a row sees, all layers added up: those in a window, where a layer has one.
    fn keys(&self) -> usize {
        let of_layer =
            |layer| self.spec.limits_of(layer).window.map_or(self.context, |w| w.min(self.context));
        (0..self.spec.layers).map(of_layer).sum()
    }

    fn bytes(&self) -> f64 {
        let spec = self.spec;
        let cache = self.keys() * 2 * spec.kv_heads * self.cache.bytes_per_head(spec.head_dim);
        self.weight_bytes as f64 + (self.sequences * cache) as f64
    }

    fn flops(&self) -> f64 {
        let spec = self.spec;
        let products = spec.row_flops(0, true) - spec.flops_per_key();
        let attention = spec.flops_per_key() / spec.layers as f64 * self.keys() as f64;
        self.sequences as f64 * (products + attention)
    }

    /// Tokens that a board makes in a second, at most. Products are of bf16: weights of FP8 are multiplied out before.
    pub fn tokens_per_second(&self, board: &Board) -> f64 {
        let reading = self.bytes() / (board.memory_gigabytes_per_second * 1e9);
        let multiplying = self.flops() / (board.bf16_teraflops * 1e12);
        self.sequences as f64 / reading.max(multiplying)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::arch;
    use crate::model::checkpoint::preset_config;
    use crate::power::boards;

    fn spec(preset: &str) -> DecoderSpec {
        arch::spec_of(preset, &preset_config(preset).unwrap()).unwrap()
    }

    /// The rows of the worked table: an H200 reads 4.8 TB/s by its data sheet.
    #[test]
    fn one_sequence_is_bound_by_the_weights_and_many_by_products() {
        let (spec, h200) = (spec("llama-3.1-8b"), boards::find("H200").unwrap());
        let (layers, head) = spec.step_parameters();
        let weight_bytes = 2 * (layers + head) as u64;
        let step =
            |sequences| Step { spec: &spec, weight_bytes, cache: CacheType::Bf16, sequences, context: 1 };
        // 15.0 GB and 131 KB in 3.13 ms.
        assert!((step(1).tokens_per_second(&h200) / 319.8 - 1.0).abs() < 2e-3);
        // 15.0 GFLOP a token at 989 TFLOP/s.
        assert!((step(4096).tokens_per_second(&h200) / 65_880.0 - 1.0).abs() < 2e-3);
    }

    #[test]
    fn a_window_is_all_that_its_layer_reads() {
        let spec = spec("gemma-3-4b");
        let step =
            |context| Step { spec: &spec, weight_bytes: 0, cache: CacheType::Bf16, sequences: 1, context };
        // 34 layers, every sixth of them sees all: 29 with 1024 tokens, 5 with 4096; 4 heads of 256.
        assert_eq!(step(4096).bytes(), f64::from((29 * 1024 + 5 * 4096) * 2 * 1024 * 2));
        assert_eq!(step(100).bytes(), f64::from(34 * 100 * 2 * 1024 * 2));
    }
}
