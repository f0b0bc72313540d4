//! Horizontal bars, each a value with its interval, one below the other in the order given.
//!
//! Where the values differ too much for one measure of length the axis is logarithmic, and then a bar, whose
//! length would mean nothing, becomes a marker.

use super::canvas::{Anchor, At, Canvas, Ink, WIDTH, sheet, shortened, width_of};
use super::scale::{Range, Scale, number};
use super::{Mark, Words};
use crate::economics::estimate::Estimate;

#[derive(Debug, Clone, PartialEq)]
pub struct Bars {
    pub words: Words,
    /// Of the axis, with the unit.
    pub label: String,
    pub bars: Vec<Bar>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    pub label: String,
    pub value: Estimate,
    /// `Filled` is drawn black with bold letters, the others grey.
    pub mark: Mark,
}

const ROW: i32 = 22;
const TOP: i32 = 8;
const BOTTOM: i32 = 48;
const LABEL_LETTERS: usize = 24;
/// Beyond this ratio of the values the axis is logarithmic.
const TOO_FAR_APART: f64 = 15.0;

struct Place {
    range: Range,
    left: i32,
    right: i32,
}

impl Place {
    fn x(&self, value: f64) -> i32 {
        self.left + (f64::from(self.right - self.left) * self.range.share(value)).round() as i32
    }
}

impl Bars {
    pub fn svg(&self) -> String {
        let height = TOP + ROW * self.bars.len() as i32 + BOTTOM;
        sheet(&self.words, height, |canvas| self.draw(canvas, height - BOTTOM))
    }

    fn draw(&self, canvas: &Canvas, bottom: i32) {
        let scale = self.scale();
        let labels: Vec<String> = self.bars.iter().map(|b| shortened(&b.label, LABEL_LETTERS)).collect();
        let texts: Vec<String> = self.bars.iter().map(|b| number(b.value.value)).collect();
        let widest = |all: &[String]| all.iter().map(|t| width_of(t)).max().unwrap_or(0);
        let ends = self.bars.iter().flat_map(|b| [b.value.low, b.value.value, b.value.high]);
        let zero = (scale == Scale::Linear).then_some(0.0);
        let place = Place {
            range: Range::holding(scale, ends.chain(zero)),
            left: widest(&labels) + 12,
            right: WIDTH - widest(&texts) - 14,
        };
        for tick in place.range.ticks(4) {
            let x = place.x(tick);
            canvas.line(&[(x, TOP), (x, bottom)], Ink::Pale, 1);
            canvas.text(&number(tick), (x, bottom + 12), Anchor::Middle);
        }
        canvas.line(&[(place.left, bottom), (place.right, bottom)], Ink::Black, 1);
        canvas.text(&self.axis_label(scale), (WIDTH / 2, bottom + 34), Anchor::Middle);
        for (i, (bar, (label, text))) in self.bars.iter().zip(labels.iter().zip(&texts)).enumerate() {
            let y = TOP + ROW * i as i32 + ROW / 2;
            let write = if bar.mark == Mark::Filled { Canvas::bold } else { Canvas::text };
            write(canvas, label, (place.left - 8, y), Anchor::End);
            write(canvas, text, (WIDTH - 4, y), Anchor::End);
            self.bar(canvas, &place, scale, bar, y);
        }
    }

    fn bar(&self, canvas: &Canvas, place: &Place, scale: Scale, bar: &Bar, y: i32) {
        let Estimate { value, low, high } = bar.value;
        if !scale.can_draw(value) {
            return;
        }
        let at = |v: f64| -> At { (place.x(v), y) };
        if scale == Scale::Linear {
            let (from, to) = (place.x(0.0f64.min(value)), place.x(0.0f64.max(value)));
            let ink = if bar.mark == Mark::Filled { Ink::Grey } else { Ink::Pale };
            canvas.rectangle((from, y - 6), (to, y + 6), ink, true);
            canvas.rectangle((from, y - 6), (to, y + 6), Ink::Black, false);
        }
        canvas.whisker(at(low), at(high));
        if scale != Scale::Linear {
            canvas.marker(at(value), bar.mark);
        }
    }

    fn scale(&self) -> Scale {
        let all = || self.bars.iter().map(|b| b.value.value);
        let (low, high) =
            all().fold((f64::INFINITY, 0.0), |(low, high): (f64, f64), v| (low.min(v), high.max(v)));
        // Zero and less have no logarithm.
        let far = low > 0.0 && high / low > TOO_FAR_APART;
        if far && self.bars.iter().all(|b| b.value.low > 0.0) { Scale::Log10 } else { Scale::Linear }
    }

    fn axis_label(&self, scale: Scale) -> String {
        match scale {
            Scale::Linear => self.label.clone(),
            _ => format!("{} (logarithmic)", self.label),
        }
    }
}
