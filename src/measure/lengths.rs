//! Lengths of prompts and answers: `fixed:N`, `uniform:A,B` or `lognormal:MEAN,SD`, and the seeded numbers
//! they are drawn with. The same seed gives the same load on every machine.

use std::fmt;
use std::str::FromStr;

/// A seeded source of numbers (SplitMix64, Steele et al. 2014).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In [0, 1).
    pub fn share(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Normal with mean 0 and deviation 1 (Box and Muller 1958).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.share()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.share()).cos()
    }

    /// Waiting time of a Poisson process of this rate.
    pub fn waiting(&mut self, rate: f64) -> f64 {
        -(1.0 - self.share()).ln() / rate
    }
}

/// How many tokens a prompt or an answer has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Lengths {
    Fixed(usize),
    /// Both ends included.
    Uniform(usize, usize),
    /// Mean and deviation of the lengths themselves, not of their logarithms.
    Lognormal {
        mean: f64,
        deviation: f64,
    },
}

impl Lengths {
    /// A length of at least one token.
    pub fn draw(&self, random: &mut Random) -> usize {
        match *self {
            Lengths::Fixed(n) => n,
            Lengths::Uniform(a, b) => a + (random.share() * (b - a + 1) as f64) as usize,
            Lengths::Lognormal { mean, deviation } => {
                let variance = (1.0 + (deviation / mean).powi(2)).ln();
                let middle = mean.ln() - variance / 2.0;
                (middle + variance.sqrt() * random.normal()).exp().round() as usize
            }
        }
        .max(1)
    }

    pub fn mean(&self) -> f64 {
        match *self {
            Lengths::Fixed(n) => n as f64,
            Lengths::Uniform(a, b) => (a + b) as f64 / 2.0,
            Lengths::Lognormal { mean, .. } => mean,
        }
    }
}

impl FromStr for Lengths {
    type Err = String;

    fn from_str(text: &str) -> Result<Lengths, String> {
        let wrong = || format!("{text:?} is not a length: fixed:N, uniform:A,B or lognormal:MEAN,SD");
        let (kind, numbers) = text.split_once(':').unwrap_or(("fixed", text));
        let numbers = numbers.split(',').map(|n| n.trim().parse().map_err(|_| wrong()));
        let numbers = numbers.collect::<Result<Vec<f64>, String>>()?;
        let whole = |x: f64| (x >= 1.0 && x.fract() == 0.0 && x <= 1e7).then_some(x as usize);
        let lengths = match (kind, numbers.as_slice()) {
            ("fixed", [n]) => whole(*n).map(Lengths::Fixed),
            ("uniform", [a, b]) if a <= b => whole(*a).zip(whole(*b)).map(|(a, b)| Lengths::Uniform(a, b)),
            ("lognormal", [mean, deviation])
                if (1.0..=1e7).contains(mean) && (0.0..=1e7).contains(deviation) =>
            {
                Some(Lengths::Lognormal { mean: *mean, deviation: *deviation })
            }
            _ => None,
        };
        lengths.ok_or_else(wrong)
    }
}

impl fmt::Display for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Lengths::Fixed(n) => write!(f, "fixed:{n}"),
            Lengths::Uniform(a, b) => write!(f, "uniform:{a},{b}"),
            Lengths::Lognormal { mean, deviation } => write!(f, "lognormal:{mean},{deviation}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The published first outputs of SplitMix64 for the seed 1234567.
    #[test]
    fn splitmix_is_splitmix() {
        let mut random = Random::new(1234567);
        assert_eq!(
            [random.bits(), random.bits(), random.bits()],
            [6457827717110365317, 3203168211198807973, 9817491932198370423]
        );
    }

    #[test]
    fn what_is_no_length_is_refused() {
        for text in [
            "",
            "fixed:0",
            "fixed:1.5",
            "uniform:5,4",
            "uniform:5",
            "lognormal:0,1",
            "normal:5,1",
            "x",
            "fixed:5,x",
            "uniform:a,5,6",
        ] {
            assert!(text.parse::<Lengths>().unwrap_err().contains("fixed:N"), "{text}");
        }
        assert_eq!("128".parse(), Ok(Lengths::Fixed(128)));
    }

    #[test]
    fn a_poisson_process_keeps_its_rate() {
        let mut random = Random::new(3);
        let waits: Vec<f64> = (0..20_000).map(|_| random.waiting(4.0)).collect();
        let mean = waits.iter().sum::<f64>() / 2e4;
        let variance = waits.iter().map(|w| (w - mean).powi(2)).sum::<f64>() / 2e4;
        assert!((mean * 4.0 - 1.0).abs() < 0.03, "{mean}");
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.05, "{variance}");
    }

    proptest! {
        #[test]
        fn text_there_and_back(a in 1usize..5000, more in 0usize..5000, deviation in 0.0..500.0f64) {
            for l in [
                Lengths::Fixed(a),
                Lengths::Uniform(a, a + more),
                Lengths::Lognormal { mean: a as f64, deviation },
            ] {
                prop_assert_eq!(l.to_string().parse(), Ok(l));
            }
        }

        #[test]
        fn drawn_lengths_have_the_mean(seed: u64, a in 20usize..500, more in 0usize..500, shape in 0.0..0.8f64) {
            let mean = a as f64;
            for l in [
                Lengths::Fixed(a),
                Lengths::Uniform(a, a + more),
                Lengths::Lognormal { mean, deviation: shape * mean },
            ] {
                let mut random = Random::new(seed);
                let drawn: Vec<usize> = (0..20_000).map(|_| l.draw(&mut random)).collect();
                let found = drawn.iter().sum::<usize>() as f64 / 2e4;
                prop_assert!((found / l.mean() - 1.0).abs() < 0.04, "{} {}", l, found);
                if let Lengths::Uniform(a, b) = l {
                    prop_assert!(drawn.iter().all(|n| (a..=b).contains(n)));
                }
            }
        }
    }
}
