//! What both kinds of plot draw with: lines, markers and text on a sheet, which ends as one `<svg>` element.
//!
//! Positions are units of the `viewBox`, from the upper left. Text is cleaned and escaped here, once.

use plotters::coord::Shift;
use plotters::element::DashedPathElement;
use plotters::prelude::{
    BLACK, Circle, Color, DrawingArea, FontTransform, IntoDrawingArea, IntoFont, PathElement, Polygon,
    RGBColor, Rectangle, SVGBackend, ShapeStyle, Text, TextStyle,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{Mark, Words};

pub const WIDTH: i32 = 440;
/// Height of letters in the drawing; 20 when shown 640 wide, 10.7 on a phone of 360.
const LETTERS: f64 = 14.0;
/// plotters divides what it is given by this.
const PLOTTERS_FONT: f64 = 1.24;
const GREY: RGBColor = RGBColor(120, 120, 120);
const PALE: RGBColor = RGBColor(225, 225, 225);

pub type At = (i32, i32);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ink {
    Black,
    Grey,
    /// Areas behind everything else.
    Pale,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    Start,
    Middle,
    End,
}

pub struct Canvas<'a> {
    area: DrawingArea<SVGBackend<'a>, Shift>,
}

/// The element that `draw` fills.
pub fn sheet(words: &Words, height: i32, draw: impl FnOnce(&Canvas)) -> String {
    let mut svg = String::new();
    {
        let backend = SVGBackend::with_string(&mut svg, (WIDTH as u32, height as u32));
        let canvas = Canvas { area: backend.into_drawing_area() };
        draw(&canvas);
        // Writing to a string cannot fail.
        let _ = canvas.area.present();
    }
    // The backend's own head fixes a size in pixels.
    let body = svg.split_once('>').map_or("", |(_, body)| body.trim_end());
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n\
         <title>{}</title>\n<desc>{}</desc>\n{body}\n",
        escape(&words.title),
        escape(&words.description),
    )
}

/// Text for an element or a quoted attribute. What is no letter (control, direction) becomes a replacement mark.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in clean(text).chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

fn clean(text: &str) -> String {
    let directs =
        |c| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let forbidden = |c: char| c.is_control() || directs(c) || matches!(c, '\u{fffe}' | '\u{ffff}');
    text.chars()
        .map(|c| match c {
            '\n' | '\t' => ' ',
            c if forbidden(c) => '\u{fffd}',
            c => c,
        })
        .collect()
}

/// Not more than so many letters.
pub fn shortened(text: &str, letters: usize) -> String {
    if text.chars().count() <= letters {
        return text.to_owned();
    }
    let kept: String = text.chars().take(letters.saturating_sub(1)).collect();
    format!("{}…", kept.trim_end())
}

/// A guess at the width of a text; letters of a sans-serif face are a little over half as wide as high.
pub fn width_of(text: &str) -> i32 {
    (text.chars().count() as f64 * LETTERS * 0.56).ceil() as i32
}

impl Canvas<'_> {
    pub fn text(&self, text: &str, at: At, anchor: Anchor) {
        self.write(text, at, anchor, false, FontTransform::None);
    }

    pub fn bold(&self, text: &str, at: At, anchor: Anchor) {
        self.write(text, at, anchor, true, FontTransform::None);
    }

    /// Reads from below to above; `at` is where it begins.
    pub fn upright(&self, text: &str, at: At, anchor: Anchor) {
        self.write(text, at, anchor, false, FontTransform::Rotate270);
    }

    fn write(&self, text: &str, at: At, anchor: Anchor, bold: bool, transform: FontTransform) {
        let font = ("sans-serif", LETTERS * PLOTTERS_FONT).into_font().transform(transform);
        let font = if bold { font.style(plotters::style::FontStyle::Bold) } else { font };
        let h_pos = match anchor {
            Anchor::Start => HPos::Left,
            Anchor::Middle => HPos::Center,
            Anchor::End => HPos::Right,
        };
        let style = TextStyle::from(font).color(&BLACK).pos(Pos::new(h_pos, VPos::Center));
        let _ = self.area.draw(&Text::new(clean(text), at, style));
    }

    pub fn line(&self, points: &[At], ink: Ink, width: u32) {
        let _ = self.area.draw(&PathElement::new(points, ink.style().stroke_width(width)));
    }

    pub fn dashed(&self, points: &[At], dash: i32, gap: i32, width: u32) {
        let style = Ink::Black.style().stroke_width(width);
        let _ = self.area.draw(&DashedPathElement::new(points.to_vec(), dash, gap, style));
    }

    pub fn area(&self, outline: &[At]) {
        let _ = self.area.draw(&Polygon::new(outline, Ink::Pale.style().filled()));
    }

    pub fn rectangle(&self, from: At, to: At, ink: Ink, filled: bool) {
        let style = if filled { ink.style().filled() } else { ink.style() };
        let _ = self.area.draw(&Rectangle::new([from, to], style));
    }

    /// A path in the manner of a mark, without markers.
    pub fn path(&self, points: &[At], mark: Mark) {
        match mark {
            Mark::Filled | Mark::Solid => self.line(points, Ink::Black, 2),
            Mark::Plain => self.line(points, Ink::Black, 1),
            Mark::Hollow | Mark::Dashed => self.dashed(points, 9, 5, 2),
            Mark::Dotted => self.dashed(points, 3, 4, 2),
        }
    }

    pub fn marker(&self, (x, y): At, mark: Mark) {
        match mark {
            Mark::Filled => {
                let _ = self.area.draw(&Circle::new((x, y), 4, Ink::Black.style().filled()));
            }
            Mark::Hollow => {
                let white = ShapeStyle::from(&plotters::prelude::WHITE).filled();
                let _ = self.area.draw(&Rectangle::new([(x - 4, y - 4), (x + 4, y + 4)], white));
                self.rectangle((x - 4, y - 4), (x + 4, y + 4), Ink::Black, false);
            }
            Mark::Solid | Mark::Dashed | Mark::Dotted | Mark::Plain => {}
        }
    }

    /// An interval with its ends marked; drawn only where it has a length.
    pub fn whisker(&self, from: At, to: At) {
        if from == to {
            return;
        }
        self.line(&[from, to], Ink::Black, 1);
        let across = if from.0 == to.0 { (4, 0) } else { (0, 4) };
        for (x, y) in [from, to] {
            self.line(&[(x - across.0, y - across.1), (x + across.0, y + across.1)], Ink::Black, 1);
        }
    }
}

impl Ink {
    fn style(self) -> ShapeStyle {
        let color: RGBColor = match self {
            Ink::Black => BLACK,
            Ink::Grey => GREY,
            Ink::Pale => PALE,
        };
        color.stroke_width(1)
    }
}
