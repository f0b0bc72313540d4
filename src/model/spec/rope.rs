//! How positions become angles, and which numbers of a head are turned by them.

/// Rotary positions of some layers.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeSpec {
    pub theta: f64,
    pub scaling: RopeScaling,
    /// Numbers of a head that are turned, the first ones; the others are left as they are.
    pub turned: usize,
    /// The two numbers of a pair stand beside each other in the checkpoint, not half of the turned ones apart.
    pub interleaved: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    None,
    /// All frequencies divided by the factor.
    Linear {
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, a smooth band between.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_positions: f64,
    },
    /// YaRN (arXiv 2309.00071): the same by how often a pair turns within the original context, and longer queries and
    /// keys.
    Yarn {
        factor: f64,
        beta_fast: f64,
        beta_slow: f64,
        original_max_positions: f64,
        /// The edges of the band are whole dimensions.
        truncate: bool,
        length: f64,
    },
    /// Each frequency divided by a factor of its own, and longer queries and keys.
    Each {
        factors: Vec<f32>,
        length: f64,
    },
    /// LongRoPE (arXiv 2402.13753): the same, with other factors for texts beyond the original context. Turned keys are
    /// kept, so which of them hold is settled once, by the context that is served ([`RopeSpec::settle`]); the short ones
    /// until then.
    Long {
        short: Vec<f32>,
        long: Vec<f32>,
        original_max_positions: usize,
        length: f64,
    },
}

impl RopeSpec {
    /// All numbers of a head turned, as Llama does it.
    pub fn plain(theta: f64, head_dim: usize) -> RopeSpec {
        RopeSpec { theta, scaling: RopeScaling::None, turned: head_dim, interleaved: false }
    }

    /// Layers without positions: nothing is turned.
    pub fn none() -> RopeSpec {
        RopeSpec { turned: 0, ..RopeSpec::plain(2.0, 0) }
    }

    /// One frequency per pair of a head's numbers, in the order of [`RopeSpec::order`]: `[head_dim / 2]`, f32 as the peers
    /// compute it. Pairs that are not turned have 0.
    pub fn inverse_frequencies(&self, head_dim: usize) -> Vec<f32> {
        let pairs = self.turned / 2;
        (0..head_dim / 2)
            .map(|i| match i < pairs {
                true => {
                    let f = 1f32 / (self.theta as f32).powf((2 * i) as f32 / self.turned as f32);
                    self.scaled(f, i)
                }
                false => 0.0,
            })
            .collect()
    }

    /// What turned numbers are multiplied by, beside being turned.
    pub fn length(&self) -> f32 {
        match self.scaling {
            RopeScaling::Yarn { length, .. }
            | RopeScaling::Each { length, .. }
            | RopeScaling::Long { length, .. } => length as f32,
            _ => 1.0,
        }
    }

    /// The context beyond which other factors hold.
    pub fn original_context(&self) -> Option<usize> {
        match self.scaling {
            RopeScaling::Long { original_max_positions, .. } => Some(original_max_positions),
            _ => None,
        }
    }

    /// Takes LongRoPE's factors for sequences of up to so many tokens, whatever the length of each.
    pub fn settle(&mut self, context: usize) {
        if let RopeScaling::Long { short, long, original_max_positions, length } = &mut self.scaling {
            let factors = if context > *original_max_positions { long } else { short };
            self.scaling = RopeScaling::Each { factors: std::mem::take(factors), length: *length };
        }
    }

    /// Where each number of a head is in the checkpoint, so that pairs lie half a head apart and those that are turned
    /// come first in each half. `None` where they lie so already. A query times a key is the same in any order.
    pub fn order(&self, head_dim: usize) -> Option<Vec<usize>> {
        if self.turned == 0 || self.turned == head_dim && !self.interleaved {
            return None;
        }
        let (half, pairs) = (head_dim / 2, self.turned / 2);
        let mut order = vec![0; head_dim];
        for i in 0..pairs {
            let (first, second) = if self.interleaved { (2 * i, 2 * i + 1) } else { (i, i + pairs) };
            (order[i], order[half + i]) = (first, second);
        }
        for i in pairs..half {
            let left = self.turned + 2 * (i - pairs);
            (order[i], order[half + i]) = (left, left + 1);
        }
        Some(order)
    }

    fn scaled(&self, frequency: f32, pair: usize) -> f32 {
        match &self.scaling {
            RopeScaling::None => frequency,
            RopeScaling::Linear { factor } => frequency / *factor as f32,
            RopeScaling::Each { factors, .. } | RopeScaling::Long { short: factors, .. } => {
                frequency / factors.get(pair).copied().unwrap_or(1.0)
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                let (factor, low, high) = (*factor as f32, *low_freq_factor as f32, *high_freq_factor as f32);
                let original = *original_max_positions as f32;
                let wavelength = 2.0 * std::f32::consts::PI / frequency;
                if wavelength < original / high {
                    frequency
                } else if wavelength > original / low {
                    frequency / factor
                } else {
                    let smooth = (original / wavelength - low) / (high - low);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
            RopeScaling::Yarn { factor, beta_fast, beta_slow, original_max_positions, truncate, .. } => {
                let dim = self.turned as f64;
                // The pair that turns so often within the original context.
                let pair_of = |turns: f64| {
                    dim * (original_max_positions / (turns * 2.0 * std::f64::consts::PI)).ln()
                        / (2.0 * self.theta.ln())
                };
                let (mut low, mut high) = (pair_of(*beta_fast), pair_of(*beta_slow));
                if *truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let (low, mut high) = (low.max(0.0) as f32, high.min(dim - 1.0) as f32);
                if low == high {
                    high += 0.001;
                }
                let kept = 1.0 - ((pair as f32 - low) / (high - low)).clamp(0.0, 1.0);
                frequency / *factor as f32 * (1.0 - kept) + frequency * kept
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_put_half_a_head_apart() {
        let spec = |turned, interleaved| RopeSpec { turned, interleaved, ..RopeSpec::plain(1e4, 8) };
        assert_eq!(spec(8, false).order(8), None);
        assert_eq!(RopeSpec::none().order(8), None);
        assert_eq!(spec(8, true).order(8).unwrap(), [0, 2, 4, 6, 1, 3, 5, 7]);
        assert_eq!(spec(4, false).order(8).unwrap(), [0, 1, 4, 6, 2, 3, 5, 7]);
        assert_eq!(spec(4, true).order(8).unwrap(), [0, 2, 4, 6, 1, 3, 5, 7]);
        let frequencies = spec(4, false).inverse_frequencies(8);
        assert_eq!(frequencies, [1.0, 0.01, 0.0, 0.0]);
    }
}
