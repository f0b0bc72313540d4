//! The few elements that the page is made of. Text goes in raw and comes out escaped; nothing else writes text.

use crate::economics::estimate::{Estimate, Figure};
use crate::measure::plot::escape;
use crate::measure::plot::scale::number;

/// Cells longer than this may break over lines.
const LONG_CELL: usize = 34;

pub fn paragraph(text: &str) -> String {
    format!("<p>{}</p>\n", escape(text))
}

pub fn classed(class: &'static str, text: &str) -> String {
    format!("<p class=\"{class}\">{}</p>\n", escape(text))
}

pub fn heading(level: u8, text: &str) -> String {
    format!("<h{level}>{}</h{level}>\n", escape(text))
}

/// A list; nothing for an empty one.
pub fn list<T: AsRef<str>>(items: impl IntoIterator<Item = T>) -> String {
    let items: String =
        items.into_iter().map(|item| format!("<li>{}</li>\n", escape(item.as_ref()))).collect();
    if items.is_empty() { items } else { format!("<ul>\n{items}</ul>\n") }
}

/// A table whose first column names the rows; nothing without rows. The caption says method and boundary.
pub fn table(caption: &str, head: &[&str], rows: &[Vec<String>]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    // The caption stays outside of what scrolls.
    let mut out = format!("<figure class=\"data\">\n<figcaption>{}</figcaption>\n", escape(caption));
    out += "<div class=\"wide\" tabindex=\"0\">\n<table>\n<thead>\n<tr>";
    for cell in head {
        out += &format!("<th scope=\"col\">{}</th>", escape(cell));
    }
    out += "</tr>\n</thead>\n<tbody>\n";
    for row in rows {
        out += "<tr>";
        for (i, cell) in row.iter().enumerate() {
            let class = if cell.chars().count() > LONG_CELL { " class=\"long\"" } else { "" };
            let text = escape(cell);
            out += &match i {
                0 => format!("<th scope=\"row\"{class}>{text}</th>"),
                _ => format!("<td{class}>{text}</td>"),
            };
        }
        out += "</tr>\n";
    }
    out + "</tbody>\n</table>\n</div>\n</figure>\n"
}

/// `svg` is markup; the caption is text.
pub fn figure(svg: &str, caption: &str) -> String {
    format!("<figure>\n{svg}<figcaption>{}</figcaption>\n</figure>\n", escape(caption))
}

/// `4,387 (3,900 to 4,900)`.
pub fn estimate(e: Estimate) -> String {
    if e.low == e.value && e.high == e.value {
        return number(e.value);
    }
    format!("{} ({} to {})", number(e.value), number(e.low), number(e.high))
}

pub fn of_figure(f: &Figure) -> Estimate {
    Estimate { value: f.value, low: f.low, high: f.high }
}

/// A dash for what is not known.
pub fn or_dash<T>(value: Option<T>, show: impl Fn(T) -> String) -> String {
    value.map_or_else(|| "–".into(), show)
}
