//! The filter `tojson` as HuggingFace's renderer has it: `json.dumps`, which unlike Jinja's own filter escapes nothing
//! for HTML, keeps the keys' order and spells characters out.

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, State, Value};

use super::view::View;
use super::{MAX_DEPTH, pay, python, refused};

struct Style {
    ascii: bool,
    indent: Option<String>,
    between: String,
    colon: String,
    sorted: bool,
}

pub fn tojson(state: &State, value: &Value, args: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let style = Style::of(&args, &kwargs)?;
    kwargs.assert_all_used()?;
    let mut out = String::new();
    style.write(state, value, 0, &mut out)?;
    Ok(Value::from(out))
}

impl Style {
    fn of(args: &[Value], kwargs: &Kwargs) -> Result<Style, Error> {
        const NAMES: [&str; 4] = ["ensure_ascii", "indent", "separators", "sort_keys"];
        if args.len() > NAMES.len() {
            return Err(refused("tojson with more than four arguments"));
        }
        let mut given = [None, None, None, None];
        for (i, name) in NAMES.into_iter().enumerate() {
            let named = kwargs.get::<Option<Value>>(name)?;
            given[i] = args.get(i).cloned().or(named).filter(|v| !v.is_none());
        }
        let [ascii, indent, separators, sorted] = given;
        let indent = indent.map(|indent| match (indent.as_str(), indent.as_i64()) {
            (Some(text), _) if text.len() <= 16 => Ok(text.to_string()),
            (None, Some(width)) if width <= 16 => Ok(" ".repeat(usize::try_from(width).unwrap_or(0))),
            _ => Err(refused("tojson with an indent that is no text or number up to 16")),
        });
        let indent = indent.transpose()?;
        let (between, colon) = match separators {
            None => (if indent.is_some() { "," } else { ", " }.to_string(), ": ".to_string()),
            Some(pair) => {
                let pair: Vec<Value> = pair.try_iter()?.take(3).collect();
                match pair.iter().map(Value::as_str).collect::<Option<Vec<_>>>().as_deref() {
                    Some([between, colon]) if between.len() + colon.len() <= 32 => {
                        ((*between).to_string(), (*colon).to_string())
                    }
                    _ => return Err(refused("tojson with separators that are no two short texts")),
                }
            }
        };
        let is_true = |value: Option<Value>| value.is_some_and(|v| v.is_true());
        Ok(Style { ascii: is_true(ascii), indent, between, colon, sorted: is_true(sorted) })
    }

    fn line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    }

    fn write(&self, state: &State, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(refused("tojson of a value that is nested too deeply"));
        }
        // The brackets, the indentation and a number's digits.
        pay(state, 64 + depth * self.indent.as_ref().map_or(0, String::len))?;
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)),
            ValueKind::String => self.text(state, value.as_str().unwrap_or_default(), out)?,
            _ if value.downcast_object_ref::<View>().is_some() => {
                return Err(refused("tojson of keys(), values() or items(): use `| list`"));
            }
            // A slice is one that is iterated over.
            ValueKind::Seq | ValueKind::Iterable => {
                out.push('[');
                for (i, item) in value.try_iter()?.enumerate() {
                    out.push_str(if i > 0 { &self.between } else { "" });
                    self.line(depth + 1, out);
                    self.write(state, &item, depth + 1, out)?;
                }
                if !out.ends_with('[') {
                    self.line(depth, out);
                }
                out.push(']');
            }
            ValueKind::Map => self.map(state, value, depth, out)?,
            other => return Err(refused(&format!("tojson of {other}"))),
        }
        Ok(())
    }

    fn map(&self, state: &State, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        let mut keys: Vec<Value> = value.try_iter()?.collect();
        pay(state, 64 * keys.len())?;
        if self.sorted {
            if !keys.iter().all(|key| key.as_str().is_some()) {
                return Err(refused("tojson with sort_keys of keys that are no texts"));
            }
            keys.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
        }
        out.push('{');
        let is_empty = keys.is_empty();
        for (i, key) in keys.into_iter().enumerate() {
            out.push_str(if i > 0 { &self.between } else { "" });
            self.line(depth + 1, out);
            let name = match key.kind() {
                ValueKind::String => key.to_string(),
                ValueKind::None => "null".into(),
                ValueKind::Bool => if key.is_true() { "true" } else { "false" }.into(),
                ValueKind::Number => number(&key),
                other => return Err(refused(&format!("tojson of a key that is a {other}"))),
            };
            self.text(state, &name, out)?;
            out.push_str(&self.colon);
            self.write(state, &value.get_item(&key)?, depth + 1, out)?;
        }
        if !is_empty {
            self.line(depth, out);
        }
        out.push('}');
        Ok(())
    }

    fn text(&self, state: &State, text: &str, out: &mut String) -> Result<(), Error> {
        // With `ensure_ascii` a character of two bytes takes six.
        pay(state, 3 * text.len())?;
        let quoted = serde_json::Value::from(text).to_string();
        if !self.ascii {
            out.push_str(&quoted);
            return Ok(());
        }
        for c in quoted.chars() {
            if matches!(c, ' '..='~') {
                out.push(c);
                continue;
            }
            for unit in c.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        }
        Ok(())
    }
}

fn number(value: &Value) -> String {
    match python::number(value).as_str() {
        "inf" => "Infinity".into(),
        "-inf" => "-Infinity".into(),
        "nan" => "NaN".into(),
        digits => digits.into(),
    }
}
