//! Filters and tests where minijinja's differ from Jinja's, and away with those that Jinja does not have or has
//! otherwise: better a template that is refused than a prompt that is not the one the model was trained on.

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, Error, State, Value};

use super::python::{self, is_space};
use super::view::View;
use super::{pay, refused};

pub fn install(environment: &mut Environment) {
    for name in ["bool", "chain", "lines", "split", "zip", "attr", "pprint"] {
        environment.remove_filter(name);
    }
    for name in ["endingwith", "int", "safe", "startingwith"] {
        environment.remove_test(name);
    }
    environment.remove_global("debug");
    environment.add_filter("string", |state: &State, value: &Value| python::text(state, value));
    environment.add_filter("escape", escape);
    environment.add_filter("e", escape);
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("dictsort", dictsort);
    environment.add_filter("float", float);
    environment.add_filter("indent", indent);
    environment.add_filter("int", int);
    environment.add_filter("join", join);
    // Python's protocols: a text and a dictionary have a length and items, what is undefined has none of either.
    let is_sequence = |v: &Value| {
        let has_items = matches!(
            v.kind(),
            ValueKind::Undefined | ValueKind::Seq | ValueKind::Iterable | ValueKind::String | ValueKind::Map
        );
        has_items && v.downcast_object_ref::<View>().is_none()
    };
    environment.add_test("sequence", is_sequence);
    environment.add_test("iterable", |v: &Value| !v.is_none() && v.try_iter().is_ok());
    environment.add_test("callable", |v: &Value| v.is_undefined() || v.kind() == ValueKind::Plain);
}

/// An argument by its place or its name.
fn argument(args: &[Value], at: usize, kwargs: &Kwargs, name: &str) -> Result<Option<Value>, Error> {
    let named = kwargs.get::<Option<Value>>(name)?;
    match (args.get(at), named) {
        (Some(_), Some(_)) => Err(refused(&format!("`{name}` is given twice"))),
        (given, named) => Ok(given.cloned().or(named)),
    }
}

fn complete(args: &[Value], most: usize, kwargs: &Kwargs) -> Result<(), Error> {
    match args.len() > most {
        true => Err(refused("too many arguments of a filter")),
        false => kwargs.assert_all_used(),
    }
}

/// For HTML, as Python's markupsafe does it.
fn escape(state: &State, value: &Value) -> Result<Value, Error> {
    if value.is_safe() {
        return Ok(value.clone());
    }
    let text = python::text(state, value)?;
    // A quotation mark becomes five.
    pay(state, 4 * text.len())?;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    Ok(Value::from_safe_string(out))
}

fn default(value: &Value, args: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let other = argument(&args, 0, &kwargs, "default_value")?;
    let also_false = argument(&args, 1, &kwargs, "boolean")?.is_some_and(|v| v.is_true());
    complete(&args, 2, &kwargs)?;
    Ok(match value.is_undefined() || (also_false && !value.is_true()) {
        true => other.unwrap_or_else(|| Value::from("")),
        false => value.clone(),
    })
}

fn dictsort(state: &State, value: &Value, args: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let mut named = Vec::new();
    for (i, name) in ["case_sensitive", "by", "reverse"].into_iter().enumerate() {
        named.extend(argument(&args, i, &kwargs, name)?.map(|value| (name, value)));
    }
    complete(&args, 3, &kwargs)?;
    pay(state, value.len().unwrap_or(0).saturating_mul(64))?;
    minijinja::filters::dictsort(value, Kwargs::from_iter(named))
}

/// As Python's `int()` reads one: spaces around it, a sign, underscores between digits.
fn whole(text: &str, base: u32) -> Option<i64> {
    let text = text.trim_matches(is_space);
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let prefix = match base {
        2 => "0b",
        8 => "0o",
        16 => "0x",
        _ => "",
    };
    let lower = digits.to_ascii_lowercase();
    let digits = if prefix.is_empty() { &lower } else { lower.strip_prefix(prefix).unwrap_or(&lower) };
    let tidy = !digits.starts_with(['_', '+', '-']) && !digits.ends_with('_') && !digits.contains("__");
    i64::from_str_radix(&digits.replace('_', ""), base).ok().filter(|_| tidy).map(|n| sign * n)
}

/// As Python's `float()` reads one.
fn real(text: &str) -> Option<f64> {
    let text = text.trim_matches(is_space);
    let tidy = !text.starts_with('_') && !text.ends_with('_') && !text.contains("__");
    text.replace('_', "").parse().ok().filter(|_| tidy)
}

fn int(value: &Value, args: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let other = argument(&args, 0, &kwargs, "default")?.unwrap_or_else(|| Value::from(0));
    let base = argument(&args, 1, &kwargs, "base")?.map_or(Ok(10), u32::try_from)?;
    complete(&args, 2, &kwargs)?;
    if !(2..=36).contains(&base) {
        return Err(refused("int with a base that is not between 2 and 36"));
    }
    let cut = |n: f64| (n.is_finite() && n.abs() < 9e18).then(|| Value::from(n.trunc() as i64));
    Ok(match value.kind() {
        ValueKind::Undefined => return Err(refused("int of what is undefined")),
        ValueKind::Bool => Value::from(i64::from(value.is_true())),
        ValueKind::Number if value.is_integer() => value.clone(),
        ValueKind::Number => f64::try_from(value.clone()).ok().and_then(cut).unwrap_or(other),
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            let read = whole(text, base).map(Value::from);
            read.or_else(|| real(text).and_then(cut)).unwrap_or(other)
        }
        _ => other,
    })
}

fn float(value: &Value, args: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let other = argument(&args, 0, &kwargs, "default")?.unwrap_or_else(|| Value::from(0.0));
    complete(&args, 1, &kwargs)?;
    Ok(match value.kind() {
        ValueKind::Undefined => return Err(refused("float of what is undefined")),
        ValueKind::Bool => Value::from(f64::from(u8::from(value.is_true()))),
        ValueKind::Number => f64::try_from(value.clone()).map_or(other, Value::from),
        ValueKind::String => real(value.as_str().unwrap_or_default()).map_or(other, Value::from),
        _ => other,
    })
}

fn indent(state: &State, value: &Value, args: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let width = argument(&args, 0, &kwargs, "width")?.unwrap_or_else(|| Value::from(4));
    let is_true = |value: Option<Value>| value.is_some_and(|v| v.is_true());
    let first = is_true(argument(&args, 1, &kwargs, "first")?);
    let blank = is_true(argument(&args, 2, &kwargs, "blank")?);
    complete(&args, 3, &kwargs)?;
    let margin = match (width.as_str(), width.as_i64()) {
        (Some(text), _) if text.len() <= 1000 => text.to_string(),
        (None, Some(width)) if width <= 1000 => " ".repeat(usize::try_from(width).unwrap_or(0)),
        _ => return Err(refused("indent by what is no text or number up to 1000")),
    };
    let text = python::text(state, value)? + "\n";
    let lines = python::lines(&text, false);
    pay(state, text.len() + lines.len() * margin.len())?;
    let mut out = String::new();
    for (i, line) in lines.into_iter().enumerate() {
        out.push_str(if i > 0 { "\n" } else { "" });
        let is_moved = if i == 0 { first } else { blank || !line.is_empty() };
        out.push_str(if is_moved { &margin } else { "" });
        out.push_str(line);
    }
    Ok(out)
}

/// Unlike the method of a text it takes any values.
fn join(state: &State, value: &Value, args: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let between = match argument(&args, 0, &kwargs, "d")? {
        Some(between) => python::text(state, &between)?,
        None => String::new(),
    };
    let attribute = argument(&args, 1, &kwargs, "attribute")?;
    complete(&args, 2, &kwargs)?;
    let mut out = String::new();
    if value.is_undefined() {
        return Ok(out);
    }
    for (i, item) in value.try_iter()?.enumerate() {
        pay(state, between.len())?;
        out.push_str(if i > 0 { &between } else { "" });
        let item = match &attribute {
            Some(path) => member(&item, path)?,
            None => item,
        };
        out.push_str(&python::text(state, &item)?);
    }
    Ok(out)
}

/// `a.b.c` of a value.
fn member(value: &Value, path: &Value) -> Result<Value, Error> {
    let Some(path) = path.as_str() else { return value.get_item(path) };
    path.split('.').try_fold(value.clone(), |value, name| match name.parse::<usize>() {
        Ok(at) => value.get_item(&Value::from(at)),
        Err(_) => value.get_attr(name),
    })
}
