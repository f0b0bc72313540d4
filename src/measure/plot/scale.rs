//! Axes: values → the range that holds them, where each lies in it, and where the ticks go; numbers as text.
//!
//! Knows nothing of pixels. What cannot be drawn (not finite, beyond 1e15, not above zero on a logarithmic
//! axis) is left out of ranges, never an error.

/// How an axis is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    Linear,
    Log2,
    Log10,
}

/// Larger values than this are not drawn.
const LARGEST: f64 = 1e15;
/// On a logarithmic axis smaller values than this are not drawn.
const SMALLEST: f64 = 1e-12;

/// An axis from `low` to `high`, `low < high`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    scale: Scale,
    low: f64,
    high: f64,
}

impl Scale {
    pub fn can_draw(self, value: f64) -> bool {
        value.is_finite() && value.abs() <= LARGEST && (self == Scale::Linear || value >= SMALLEST)
    }

    fn to_linear(self, value: f64) -> f64 {
        match self {
            Scale::Linear => value,
            Scale::Log2 => value.max(SMALLEST).log2(),
            Scale::Log10 => value.max(SMALLEST).log10(),
        }
    }
}

impl Range {
    /// The smallest range with round ends that holds all values that can be drawn; 0 to 1 (1 to 2) of none.
    pub fn holding(scale: Scale, values: impl Iterator<Item = f64>) -> Range {
        let drawable = values.filter(|v| scale.can_draw(*v)).map(|v| scale.to_linear(v));
        let (low, high) =
            drawable.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        let (low, high) = if low <= high { (low, high) } else { (0.0, 1.0) };
        let base = match scale {
            Scale::Linear => {
                let least = low.abs().max(high.abs()).max(1e-6) * 1e-3;
                let high = if high - low > least { high } else { low + least };
                let step = round_step((high - low) / 4.0);
                return Range {
                    scale,
                    low: (low / step + 1e-9).floor() * step,
                    high: (high / step - 1e-9).ceil() * step,
                };
            }
            Scale::Log2 => 2.0f64,
            Scale::Log10 => 10.0,
        };
        let (low, high) = ((low + 1e-9).floor(), (high - 1e-9).ceil());
        Range { scale, low: base.powf(low), high: base.powf(high.max(low + 1.0)) }
    }

    /// Exactly these ends.
    pub fn between(scale: Scale, low: f64, high: f64) -> Range {
        Range { scale, low, high: if high > low { high } else { low + 1.0 } }
    }

    /// 0 at the low end, 1 at the high one; values outside are put on the nearer end.
    pub fn share(&self, value: f64) -> f64 {
        let [low, high, at] = [self.low, self.high, value].map(|v| self.scale.to_linear(v));
        ((at - low) / (high - low)).clamp(0.0, 1.0)
    }

    pub fn holds(&self, value: f64) -> bool {
        self.scale.can_draw(value) && (self.low..=self.high).contains(&value)
    }

    /// Round values in the range, not more than `at_most` of them (two at least).
    pub fn ticks(&self, at_most: usize) -> Vec<f64> {
        let at_most = at_most.max(2);
        match self.scale {
            Scale::Linear => {
                let mut step = round_step((self.high - self.low) / at_most as f64);
                while (self.high / step).floor() - (self.low / step).ceil() + 1.0 > at_most as f64 {
                    step = round_step(step * 1.5);
                }
                let (first, last) =
                    ((self.low / step - 1e-9).ceil() as i64, (self.high / step + 1e-9).floor() as i64);
                (first..=last).map(|i| i as f64 * step).collect()
            }
            Scale::Log2 => self.powers(2.0, at_most),
            Scale::Log10 => self.powers(10.0, at_most),
        }
    }

    fn powers(&self, base: f64, at_most: usize) -> Vec<f64> {
        let [first, last] = [self.low, self.high].map(|v| (self.scale.to_linear(v) + 1e-9).round() as i32);
        let every = ((last - first) as usize / at_most + 1) as i32;
        (first..=last).filter(|i| (i - first) % every == 0).map(|i| base.powi(i)).collect()
    }
}

/// The next of 1, 2, 5 × a power of ten.
fn round_step(at_least: f64) -> f64 {
    let power = 10f64.powf(at_least.max(1e-15).log10().floor());
    let digit = at_least / power;
    let round = [1.0, 2.0, 5.0, 10.0].into_iter().find(|r| digit <= r * (1.0 + 1e-9)).unwrap_or(10.0);
    round * power
}

/// Three significant digits or all before the point; thousands apart; powers of ten where it is far from one.
pub fn number(value: f64) -> String {
    if !value.is_finite() {
        return "–".into();
    }
    let magnitude = value.abs();
    let sign = if value < 0.0 { "−" } else { "" };
    if magnitude == 0.0 {
        return "0".into();
    }
    if !(1e-4..1e9).contains(&magnitude) {
        return format!("{sign}{magnitude:.1e}");
    }
    let decimals = (2 - magnitude.log10().floor() as i32).max(0) as usize;
    let text = format!("{magnitude:.decimals$}");
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let fraction = fraction.trim_end_matches('0');
    let mut out = String::from(sign);
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    if !fraction.is_empty() {
        out.push('.');
        out.push_str(fraction);
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(scale: Scale, values: &[f64]) -> Range {
        Range::holding(scale, values.iter().copied())
    }

    #[test]
    fn axes_have_round_ends_and_ticks() {
        let r = of(Scale::Linear, &[0.0, 16.7]);
        assert_eq!((r.low, r.high), (0.0, 20.0));
        assert_eq!(r.ticks(6), [0.0, 5.0, 10.0, 15.0, 20.0]);
        assert_eq!(of(Scale::Log2, &[1.0, 8.0, 32.0]).ticks(8), [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]);
        assert_eq!(of(Scale::Log2, &[1.0, 1024.0]).ticks(6), [1.0, 4.0, 16.0, 64.0, 256.0, 1024.0]);
        assert_eq!(of(Scale::Log10, &[40.0, 4387.0]).ticks(6), [10.0, 100.0, 1000.0, 10_000.0]);
        assert_eq!(of(Scale::Log2, &[4.0]).ticks(6), [4.0, 8.0]);
    }

    #[test]
    fn numbers_are_short() {
        for (value, want) in [
            (0.0, "0"),
            (1234567.0, "1,234,567"),
            (-50.0, "−50"),
            (0.0702, "0.0702"),
            (14.2, "14.2"),
            (99.96, "100"),
            (4387.4, "4,387"),
            (1e12, "1.0e12"),
            (f64::NAN, "–"),
        ] {
            assert_eq!(number(value), want);
        }
    }

    proptest! {
        #[test]
        fn a_range_holds_its_values(values in prop::collection::vec(prop::num::f64::ANY, 0..20), at_most in 2usize..12) {
            for scale in [Scale::Linear, Scale::Log2, Scale::Log10] {
                let r = of(scale, &values);
                prop_assert!(r.low < r.high && r.low.is_finite() && r.high.is_finite(), "{r:?}");
                let slack = (r.high - r.low) * 1e-6;
                for v in values.iter().copied().filter(|v| scale.can_draw(*v)) {
                    prop_assert!(v >= r.low - slack && v <= r.high + slack, "{v} in {r:?}");
                    prop_assert!((0.0..=1.0).contains(&r.share(v)));
                }
                let ticks = r.ticks(at_most);
                prop_assert!(ticks.len() <= at_most + 1 && ticks.iter().all(|t| t.is_finite()), "{ticks:?}");
            }
        }
    }
}
