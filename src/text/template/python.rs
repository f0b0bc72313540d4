//! Values as Python writes them: `str()` where a template prints one, `repr()` inside lists and dictionaries.
//!
//! Every value costs fuel: one list may hold another many times over.

use std::fmt::Write;

use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, State, Value};

use super::view::View;
use super::{MAX_DEPTH, pay, refused};

/// `str(value)`; what is undefined is empty.
pub fn text(state: &State, value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    match value.as_str() {
        Some(text) => {
            pay(state, text.len())?;
            out.push_str(text);
        }
        None if value.is_undefined() => {}
        None => repr(state, value, 0, &mut out)?,
    }
    Ok(out)
}

fn repr(state: &State, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(refused("a value that is nested too deeply"));
    }
    pay(state, 64)?;
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            pay(state, text.len())?;
            quoted(text, out);
        }
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::Seq | ValueKind::Iterable => {
            let kind = value.downcast_object_ref::<View>().map(View::kind);
            if let Some(kind) = kind {
                out.push_str(kind);
                out.push('(');
            }
            let is_tuple = value.downcast_object_ref::<Tuple>().is_some();
            out.push(if is_tuple { '(' } else { '[' });
            let mut items = 0;
            for item in value.try_iter()? {
                out.push_str(if items > 0 { ", " } else { "" });
                items += 1;
                repr(state, &item, depth + 1, out)?;
            }
            out.push_str(if is_tuple && items == 1 { "," } else { "" });
            out.push(if is_tuple { ')' } else { ']' });
            out.push_str(if kind.is_some() { ")" } else { "" });
        }
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter()?.enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                repr(state, &key, depth + 1, out)?;
                out.push_str(": ");
                repr(state, &value.get_item(&key)?, depth + 1, out)?;
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

/// A number as Python and its `json` write it.
pub fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(number) if !value.is_integer() => float(number),
        _ => value.to_string(),
    }
}

/// The fewest digits that mean this number; with an exponent below 1e-4 and from 1e16 on.
fn float(number: f64) -> String {
    if !number.is_finite() {
        return match number {
            n if n.is_nan() => "nan",
            n if n > 0.0 => "inf",
            _ => "-inf",
        }
        .into();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>().unwrap_or(0) {
        exponent if number == 0.0 || (-4..16).contains(&exponent) => {
            let fixed = number.to_string();
            if fixed.contains('.') { fixed } else { fixed + ".0" }
        }
        exponent => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
    }
}

fn quoted(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if is_printable(c) => out.push(c),
            // Writing to a string does not fail.
            c => drop(match c as u32 {
                code @ ..0x100 => write!(out, "\\x{code:02x}"),
                code @ ..0x1_0000 => write!(out, "\\u{code:04x}"),
                code => write!(out, "\\U{code:08x}"),
            }),
        }
    }
    out.push(quote);
}

/// `str.isprintable`: neither a control, nor a format character, nor a space but U+0020, nor unassigned. Rust escapes
/// the same ones; behind another character it leaves combining marks as they are.
fn is_printable(c: char) -> bool {
    match c {
        ' '..='~' => true,
        '\0'..='\x7f' => false,
        _ => String::from_iter(['a', c]).escape_debug().nth(1) == Some(c),
    }
}

/// What `str.split()` and `str.strip()` take for space.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\x1c'..='\x1f')
}

/// `str.splitlines`.
pub fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    let is_end = |c: char| matches!(c, '\n'..='\r' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}');
    while let Some(at) = rest.find(is_end) {
        let end = match &rest[at..] {
            both if both.starts_with("\r\n") => at + 2,
            one => at + one.chars().next().map_or(1, char::len_utf8),
        };
        lines.push(&rest[..if keep_ends { end } else { at }]);
        rest = &rest[end..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_as_python_writes_them() {
        for (number, text) in [
            (1e16, "1e+16"),
            (1e15, "1000000000000000.0"),
            (1.5e-7, "1.5e-07"),
            (0.0001, "0.0001"),
            (-1e300, "-1e+300"),
            (0.0, "0.0"),
            (-2.5, "-2.5"),
            (f64::INFINITY, "inf"),
        ] {
            assert_eq!(float(number), text);
        }
    }

    #[test]
    fn lines_end_where_python_ends_them() {
        assert_eq!(lines("a\r\nb\rc\u{2028}\n", false), ["a", "b", "c", ""]);
        assert_eq!(lines("a\r\nb\x0b", true), ["a\r\n", "b\x0b"]);
    }
}
