//! Windows of a steady state → a rate with its interval; samples of latency → quantiles.
//!
//! A rate is the ratio of two sums over all windows, as a bill has it; its interval comes from how much
//! the windows differ (ratio estimator, Cochran, *Sampling Techniques*, ch. 6; Student's t, 95 %).

use super::report::Quantiles;
use crate::economics::estimate::Estimate;

/// Student's t for a two-sided 95 % interval, by degrees of freedom from 1.
const T_95: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];

fn t_95(degrees: usize) -> f64 {
    match degrees {
        0 => f64::INFINITY,
        1..=30 => T_95[degrees - 1],
        // Falls to the normal's 1.960; right to 0.1 %.
        _ => 1.960 + 2.46 / degrees as f64,
    }
}

/// Sum of the numerators over the sum of the denominators. With one window the interval is that value
/// itself: nothing is known of its error. `None` without a denominator.
pub fn ratio(numerators: &[f64], denominators: &[f64]) -> Option<Estimate> {
    let n = numerators.len().min(denominators.len());
    let (top, bottom): (f64, f64) = (numerators[..n].iter().sum(), denominators[..n].iter().sum());
    let value = top / bottom;
    if bottom <= 0.0 || !value.is_finite() {
        return None;
    }
    if n < 2 {
        return Some(Estimate::exact(value));
    }
    let pairs = numerators.iter().zip(denominators);
    let squares: f64 = pairs.map(|(a, b)| (a - value * b).powi(2)).sum();
    let error = (squares * n as f64 / (n as f64 - 1.0)).sqrt() / bottom;
    let half = t_95(n - 1) * error;
    Some(Estimate::new(value, (value - half).max(0.0), value + half))
}

/// The reciprocal; the ends change places. `None` where it is not finite.
pub fn inverse(e: Estimate) -> Option<Estimate> {
    (e.value > 0.0).then(|| {
        // An interval that reaches zero has no upper end on the other side; ten times the value stands for it.
        let high = if e.low > 0.0 { 1.0 / e.low } else { 10.0 / e.value };
        Estimate::new(1.0 / e.value, 1.0 / e.high, high)
    })
}

/// Quantile of sorted values, by linear interpolation (type 7 of Hyndman and Fan 1996).
pub fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let at = q.clamp(0.0, 1.0) * last as f64;
    let below = at.floor() as usize;
    let above = (below + 1).min(last);
    Some(sorted[below] + (sorted[above] - sorted[below]) * (at - below as f64))
}

pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    quantile(&sorted, 0.5)
}

/// The three quantiles latencies are told by.
pub fn quantiles(mut values: Vec<f64>) -> Option<Quantiles> {
    values.sort_by(f64::total_cmp);
    Some(Quantiles {
        p50: quantile(&values, 0.5)?,
        p90: quantile(&values, 0.9)?,
        p99: quantile(&values, 0.99)?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn close(a: f64, b: f64, tolerance: f64) {
        assert!((a - b).abs() <= tolerance, "{a} is not {b}");
    }

    /// Student's own data (Biometrika 1908, hours of sleep gained); R's `t.test(sleep…, paired = TRUE)`
    /// prints the interval 0.7001142 to 2.4598858.
    #[test]
    fn the_interval_of_students_sleep() {
        let gained = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4];
        let e = ratio(&gained, &[1.0; 10]).unwrap();
        close(e.value, 1.58, 1e-9);
        close(e.low, 0.7001142, 2e-4);
        close(e.high, 2.4598858, 2e-4);
    }

    /// Michelson's speed of light (NIST StRD: mean 299.8524, standard deviation 0.0790105478190518; R's
    /// `quantile(morley$Speed)`: 620, 807.5, 850, 892.5, 1070). Here km/s above 299000.
    #[test]
    fn michelsons_speed_of_light() {
        let data: Vec<f64> = MORLEY.split_whitespace().map(|x| x.parse().unwrap()).collect();
        assert_eq!(data.len(), 100);
        let e = ratio(&data, &[1.0; 100]).unwrap();
        close(e.value, 852.4, 1e-9);
        // t for 99 degrees of freedom is 1.98422.
        close((e.high - e.low) / 2.0, 1.98422 * 79.0105478190518 / 10.0, 0.02);
        let mut sorted = data;
        sorted.sort_by(f64::total_cmp);
        for (q, want) in [(0.0, 620.0), (0.25, 807.5), (0.5, 850.0), (0.75, 892.5), (1.0, 1070.0)] {
            close(quantile(&sorted, q).unwrap(), want, 1e-9);
        }
        assert_eq!(median(&sorted), Some(850.0));
    }

    const MORLEY: &str = "
        850 740 900 1070 930 850 950 980 980 880 1000 980 930 650 760 810 1000 1000 960 960
        960 940 960 940 880 800 850 880 900 840 830 790 810 880 880 830 800 790 760 800
        880 880 880 860 720 720 620 860 970 950 880 910 850 870 840 840 850 840 840 840
        890 810 810 820 800 770 760 740 750 760 910 920 890 860 880 720 840 850 850 780
        890 840 780 810 760 810 790 810 820 850 870 870 810 740 810 940 950 800 810 870";

    #[test]
    fn what_cannot_be_known_is_not_said() {
        assert_eq!(ratio(&[], &[]), None);
        assert_eq!(ratio(&[1.0], &[0.0]), None);
        assert_eq!(ratio(&[6.0], &[2.0]), Some(Estimate::exact(3.0)));
        assert_eq!(quantiles(Vec::new()), None);
        assert_eq!(inverse(Estimate::exact(0.0)), None);
        assert_eq!(inverse(Estimate::new(2.0, 1.0, 4.0)), Some(Estimate::new(0.5, 0.25, 1.0)));
    }

    proptest! {
        /// Windows of unlike length at one rate have no error; scaling a side scales the ratio.
        #[test]
        fn a_steady_rate_is_found(
            rate in 0.1..1e4f64, times in prop::collection::vec(0.1..10.0f64, 2..30), scale in 0.1..10.0f64
        ) {
            let tokens: Vec<f64> = times.iter().map(|t| t * rate).collect();
            let e = ratio(&tokens, &times).unwrap();
            prop_assert!((e.value / rate - 1.0).abs() < 1e-9 && e.high - e.low < rate * 1e-6);
            let longer: Vec<f64> = times.iter().map(|t| t * scale).collect();
            let slower = ratio(&tokens, &longer).unwrap();
            prop_assert!((slower.value * scale / rate - 1.0).abs() < 1e-9);
        }

        #[test]
        fn quantiles_are_in_order(values in prop::collection::vec(0.0..1e3f64, 1..200)) {
            let most = values.iter().copied().fold(0.0, f64::max);
            let q = quantiles(values).unwrap();
            prop_assert!(q.p50 <= q.p90 && q.p90 <= q.p99 && q.p99 <= most);
        }
    }
}
