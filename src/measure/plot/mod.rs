//! Plots as SVG text, out of plain numbers: [`Lines`] and [`Bars`].
//!
//! Drawn through plotters for a width of 440 units with letters of 14, so that a phone and a sheet of paper
//! show the same picture: no size but a `viewBox`, black on white, told apart by dash and shape. Whoever
//! places a plot says method and boundary beside it. Loads nothing and knows nothing of reports.

mod bars;
mod canvas;
mod lines;
pub mod scale;

pub use bars::{Bar, Bars};
pub use canvas::escape;
pub use lines::{Crossing, Lines, Phase, Sample, Series};
pub use scale::Scale;

/// How a series or a bar is told from the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// Filled circles on a solid line.
    Filled,
    /// Hollow squares on a long-dashed line.
    Hollow,
    /// A solid line without markers.
    Solid,
    /// A long-dashed line without markers.
    Dashed,
    /// A short-dashed line without markers.
    Dotted,
    /// A solid thin line without markers.
    Plain,
}

/// Title and description for those who do not see the plot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words {
    pub title: String,
    pub description: String,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::economics::estimate::Estimate;

    fn words(text: &str) -> Words {
        Words { title: text.into(), description: text.into() }
    }

    fn lines(text: &str, samples: Vec<Sample>, x_scale: Scale) -> Lines {
        let series = |mark, band| Series { label: text.into(), samples: samples.clone(), mark, band };
        Lines {
            words: words(text),
            x_label: text.into(),
            x_scale,
            y_label: text.into(),
            y_from_zero: true,
            series: vec![series(Mark::Filled, false), series(Mark::Hollow, true)],
            phases: vec![Phase { start: 0.0, end: 10.0, label: text.into() }],
            crossing: Some(Crossing { x: Estimate::new(3.0, 1.0, 5.0), label: text.into() }),
        }
    }

    fn sample(x: f64, y: Estimate) -> Sample {
        Sample { x, y }
    }

    #[test]
    fn a_plot_has_a_box_a_name_and_no_size() {
        let svg = lines("tokens", vec![sample(1.0, Estimate::new(2.0, 1.0, 3.0))], Scale::Log2).svg();
        let head = svg.split_once('>').unwrap().0;
        assert!(head.contains("viewBox=\"0 0 440 ") && head.contains("role=\"img\""), "{head}");
        assert!(!head.contains("width=") && !head.contains("height="), "{head}");
        assert!(svg.contains("<title>tokens</title>") && svg.contains("<desc>tokens</desc>"));
        assert!(svg.trim_end().ends_with("</svg>"));
        assert!(svg.contains("font-size=\"14\""), "{svg}");
        // Told apart by shape: the first series has circles, the second squares and dashes.
        assert!(svg.contains("<circle") && svg.matches("<polyline").count() > 3);
    }

    #[test]
    fn bars_far_apart_become_markers_on_a_logarithmic_axis() {
        let bar = |value, mark| Bar { label: "a".into(), value: Estimate::within(value, 0.1), mark };
        let bars = |values: &[f64]| Bars {
            words: words("t"),
            label: "$/MWh".into(),
            bars: values.iter().map(|v| bar(*v, Mark::Filled)).collect(),
        };
        let near = bars(&[40.0, 100.0]).svg();
        assert!(near.contains("<rect") && !near.contains("logarithmic") && !near.contains("<circle"));
        let far = bars(&[40.0, 4000.0]).svg();
        assert!(far.contains("logarithmic") && far.contains("<circle"));
        assert!(!bars(&[0.0, 4000.0]).svg().contains("logarithmic"));
        assert!(bars(&[-5.0, 40.0]).svg().contains("−5"));
    }

    #[test]
    fn nothing_to_draw_is_no_panic() {
        assert!(lines("", Vec::new(), Scale::Linear).svg().contains("<svg"));
        assert!(Bars { words: words(""), label: String::new(), bars: Vec::new() }.svg().contains("<svg"));
    }

    proptest! {
        /// Whatever the text and the numbers, the picture stays whole and inside its box.
        #[test]
        fn hostile_text_and_numbers_stay_inside(
            text in ".{0,40}",
            raw in prop::collection::vec((prop::num::f64::ANY, prop::num::f64::ANY, prop::num::f64::ANY), 0..6),
        ) {
            let hostile = format!("</title><script>\"'&{text}");
            let samples: Vec<Sample> = raw.iter().map(|(x, y, end)| sample(*x, Estimate { value: *y, low: *end, high: *y })).collect();
            let bars = raw.iter().map(|(low, value, high)| Bar {
                label: hostile.clone(),
                value: Estimate { value: *value, low: *low, high: *high },
                mark: Mark::Hollow,
            });
            let plots = [
                lines(&hostile, samples.clone(), Scale::Linear).svg(),
                lines(&hostile, samples, Scale::Log2).svg(),
                Bars { words: words(&hostile), label: hostile.clone(), bars: bars.collect() }.svg(),
            ];
            for svg in plots {
                prop_assert!(!svg.contains("<script") && !svg.contains("NaN"), "{svg}");
                prop_assert_eq!(svg.matches("</title>").count(), 1);
                prop_assert!(!svg.chars().any(|c| c.is_control() && c != '\n'));
                for at in svg.split(" x=\"").skip(1).chain(svg.split(" cx=\"").skip(1)) {
                    let x: i32 = at.split_once('"').unwrap().0.parse().unwrap();
                    prop_assert!((-20..=460).contains(&x), "{x}");
                }
            }
        }
    }
}
