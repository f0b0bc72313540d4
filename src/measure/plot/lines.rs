//! Lines over a continuous axis: series with intervals, phases behind them, crossings marked on them.

use super::canvas::{Anchor, At, Canvas, Ink, WIDTH, sheet, shortened, width_of};
use super::scale::{Range, Scale, number};
use super::{Mark, Words};
use crate::economics::estimate::Estimate;

#[derive(Debug, Clone, PartialEq)]
pub struct Lines {
    pub words: Words,
    pub x_label: String,
    pub x_scale: Scale,
    pub y_label: String,
    /// The axis of y begins at zero (or below, where values do).
    pub y_from_zero: bool,
    pub series: Vec<Series>,
    pub phases: Vec<Phase>,
    pub crossing: Option<Crossing>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    pub label: String,
    pub samples: Vec<Sample>,
    pub mark: Mark,
    /// Draw the intervals as an area instead of bars.
    pub band: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    pub x: f64,
    pub y: Estimate,
}

/// A part of the axis of x with a name above it.
#[derive(Debug, Clone, PartialEq)]
pub struct Phase {
    pub start: f64,
    pub end: f64,
    pub label: String,
}

/// A place on the axis of x, with its interval.
#[derive(Debug, Clone, PartialEq)]
pub struct Crossing {
    pub x: Estimate,
    pub label: String,
}

const PLOT_HEIGHT: i32 = 210;
const LEGEND_ROW: i32 = 20;
const PHASE_STRIP: i32 = 94;
const PHASE_LETTERS: usize = 11;
const BOTTOM: i32 = 48;
const TICKS_BELOW: usize = 9;
/// Widths of phases that their upright name fits into.
const PHASE_WIDTH: i32 = 15;

struct Place {
    x: Range,
    y: Range,
    left: i32,
    right: i32,
    top: i32,
    bottom: i32,
}

impl Place {
    fn x(&self, value: f64) -> i32 {
        self.left + (f64::from(self.right - self.left) * self.x.share(value)).round() as i32
    }

    fn y(&self, value: f64) -> i32 {
        self.bottom - (f64::from(self.bottom - self.top) * self.y.share(value)).round() as i32
    }

    fn at(&self, x: f64, y: f64) -> At {
        (self.x(x), self.y(y))
    }
}

impl Lines {
    pub fn svg(&self) -> String {
        let top = self.top();
        sheet(&self.words, top + PLOT_HEIGHT + BOTTOM, |canvas| {
            let place = self.place(top);
            self.phases(canvas, &place);
            self.axes(canvas, &place);
            let bands = self.series.iter().filter(|s| s.band);
            bands.for_each(|s| s.draw_band(canvas, &place));
            self.series.iter().for_each(|s| s.draw(canvas, &place, self.x_scale));
            self.crossing(canvas, &place);
            self.legend(canvas);
        })
    }

    /// Title of the axis of y, one row a series, room for the names of phases.
    fn top(&self) -> i32 {
        let names = if self.phases.is_empty() { 12 } else { PHASE_STRIP };
        LEGEND_ROW * (1 + self.legend_rows()) + names
    }

    /// One series explains itself by the axis.
    fn legend_rows(&self) -> i32 {
        let several = if self.series.len() > 1 { self.series.len() as i32 } else { 0 };
        several + i32::from(self.crossing.is_some())
    }

    fn place(&self, top: i32) -> Place {
        let samples = || self.series.iter().flat_map(|s| &s.samples);
        let zero = self.y_from_zero.then_some(0.0);
        let y =
            Range::holding(Scale::Linear, samples().flat_map(|s| [s.y.low, s.y.value, s.y.high]).chain(zero));
        let xs = samples().map(|s| s.x).chain(self.phases.iter().flat_map(|p| [p.start, p.end]));
        let widest = y.ticks(6).into_iter().map(|t| width_of(&number(t))).max().unwrap_or(0);
        let x = match self.x_scale {
            // Time and shares end where they end, not at a round number.
            Scale::Linear => {
                let (low, high) = xs
                    .filter(|x| Scale::Linear.can_draw(*x))
                    .fold((0.0, f64::NEG_INFINITY), |(low, high): (f64, f64), x| (low.min(x), high.max(x)));
                Range::between(Scale::Linear, low, if high > low { high } else { low + 1.0 })
            }
            scale => Range::holding(scale, xs),
        };
        Place { x, y, left: widest + 14, right: WIDTH - 18, top, bottom: top + PLOT_HEIGHT }
    }

    fn axes(&self, canvas: &Canvas, place: &Place) {
        for tick in place.y.ticks(6) {
            let y = place.y(tick);
            canvas.line(&[(place.left, y), (place.right, y)], Ink::Pale, 1);
            canvas.text(&number(tick), (place.left - 6, y), Anchor::End);
        }
        for tick in place.x.ticks(TICKS_BELOW) {
            let x = place.x(tick);
            canvas.line(&[(x, place.bottom), (x, place.bottom + 4)], Ink::Black, 1);
            canvas.text(&number(tick), (x, place.bottom + 14), Anchor::Middle);
        }
        if place.y.holds(0.0) {
            let y = place.y(0.0);
            canvas.line(&[(place.left, y), (place.right, y)], Ink::Grey, 1);
        }
        canvas.line(
            &[(place.left, place.top), (place.left, place.bottom), (place.right, place.bottom)],
            Ink::Black,
            1,
        );
        canvas.text(&self.y_label, (4, LEGEND_ROW / 2), Anchor::Start);
        canvas.text(&self.x_label, ((place.left + place.right) / 2, place.bottom + 36), Anchor::Middle);
    }

    fn phases(&self, canvas: &Canvas, place: &Place) {
        for phase in &self.phases {
            let (from, to) = (place.x(phase.start), place.x(phase.end));
            canvas.rectangle((from, place.top), (to, place.bottom), Ink::Pale, true);
            canvas.line(&[(from, place.top - 4), (from, place.bottom)], Ink::Grey, 1);
            if to - from >= PHASE_WIDTH {
                let name = shortened(&phase.label, PHASE_LETTERS);
                canvas.upright(&name, ((from + to) / 2, place.top - 4), Anchor::Start);
            }
        }
    }

    fn crossing(&self, canvas: &Canvas, place: &Place) {
        let Some(crossing) = &self.crossing else { return };
        if !place.x.holds(crossing.x.value) {
            return;
        }
        let x = place.x(crossing.x.value);
        canvas.dashed(&[(x, place.top), (x, place.bottom)], 2, 3, 1);
        let y = place.top + 6;
        canvas.whisker((place.x(crossing.x.low), y), (place.x(crossing.x.high), y));
        canvas.marker((x, y), Mark::Filled);
    }

    fn legend(&self, canvas: &Canvas) {
        let row = |i: i32| LEGEND_ROW * (i + 1) + LEGEND_ROW / 2;
        let mut rows = 0;
        if self.series.len() > 1 {
            for series in &self.series {
                let y = row(rows);
                if series.band {
                    canvas.area(&[(8, y - 7), (44, y - 7), (44, y + 7), (8, y + 7)]);
                }
                canvas.path(&[(8, y), (44, y)], series.mark);
                canvas.marker((26, y), series.mark);
                canvas.text(&shortened(&series.label, 48), (54, y), Anchor::Start);
                rows += 1;
            }
        }
        if let Some(crossing) = &self.crossing {
            let y = row(rows);
            canvas.whisker((8, y), (44, y));
            canvas.marker((26, y), Mark::Filled);
            canvas.text(&shortened(&crossing.label, 48), (54, y), Anchor::Start);
        }
    }
}

impl Series {
    fn drawable(&self, place: &Place, x_scale: Scale) -> Vec<(At, Sample)> {
        let fine = |s: &&Sample| x_scale.can_draw(s.x) && Scale::Linear.can_draw(s.y.value);
        self.samples.iter().filter(fine).map(|s| (place.at(s.x, s.y.value), *s)).collect()
    }

    fn draw(&self, canvas: &Canvas, place: &Place, x_scale: Scale) {
        let drawable = self.drawable(place, x_scale);
        let path: Vec<At> = drawable.iter().map(|(at, _)| *at).collect();
        if !self.band {
            for ((x, _), sample) in &drawable {
                canvas.whisker((*x, place.y(sample.y.low)), (*x, place.y(sample.y.high)));
            }
        }
        canvas.path(&path, self.mark);
        path.iter().for_each(|at| canvas.marker(*at, self.mark));
    }

    fn draw_band(&self, canvas: &Canvas, place: &Place) {
        let fine = |s: &&Sample| Scale::Linear.can_draw(s.y.low) && Scale::Linear.can_draw(s.y.high);
        let there = self.samples.iter().filter(fine).map(|s| place.at(s.x, s.y.low));
        let back = self.samples.iter().filter(fine).rev().map(|s| place.at(s.x, s.y.high));
        canvas.area(&there.chain(back).collect::<Vec<_>>());
    }
}
