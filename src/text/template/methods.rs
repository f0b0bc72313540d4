//! Python's methods of strings, dictionaries and lists. What would change a value is not here: HuggingFace's sandbox
//! refuses it, too.

use minijinja::value::{Kwargs, Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

use super::python::{self, is_space};
use super::view::View;
use super::{pay, refused};

/// Calls a method. Before one runs, its reading and its result are paid for.
pub fn call(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match (value.kind(), name) {
        (ValueKind::String, _) => {
            let text = value.as_str().unwrap_or_default();
            pay(state, text.len())?;
            of_string(state, value, text, name, args)
        }
        (ValueKind::Map | ValueKind::Seq | ValueKind::Iterable, "copy") => {
            let () = from_args(args)?;
            Ok(value.clone())
        }
        (ValueKind::Map, "keys" | "values" | "items") => {
            let () = from_args(args)?;
            View::of(value, name).ok_or_else(|| refused("only a dictionary has keys, values and items"))
        }
        (ValueKind::Seq | ValueKind::Iterable, "index") => {
            let (wanted,): (&Value,) = from_args(args)?;
            for (i, item) in value.try_iter()?.enumerate() {
                pay(state, 64)?;
                if item == *wanted {
                    return Ok(Value::from(i));
                }
            }
            Err(refused("the list does not have this item"))
        }
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args),
    }
}

fn of_string(
    state: &mut State,
    value: &Value,
    text: &str,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    match name {
        "strip" => strip(state, text, args, true, true),
        "lstrip" => strip(state, text, args, true, false),
        "rstrip" => strip(state, text, args, false, true),
        "split" => list(state, split(text, args, false)?),
        "rsplit" => list(state, split(text, args, true)?),
        "splitlines" => {
            let (keep, kwargs): (Option<bool>, Kwargs) = from_args(args)?;
            let keep = keep.or(kwargs.get("keepends")?).unwrap_or(false);
            kwargs.assert_all_used()?;
            list(state, python::lines(text, keep))
        }
        "partition" | "rpartition" => partition(text, args, name == "rpartition"),
        "replace" => replace(state, text, args),
        "join" => join(state, text, args),
        "startswith" | "endswith" => affix(text, args, name == "startswith"),
        "find" | "rfind" | "index" | "rindex" => find(text, args, name),
        "count" => {
            let (what, begin, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
            let window = window(text, begin, end);
            Ok(Value::from(window.map_or(0, |(_, window)| window.matches(what).count())))
        }
        "removeprefix" | "removesuffix" => {
            let (affix,): (&str,) = from_args(args)?;
            let rest =
                if name == "removeprefix" { text.strip_prefix(affix) } else { text.strip_suffix(affix) };
            Ok(Value::from(rest.unwrap_or(text)))
        }
        "title" => {
            let () = from_args(args)?;
            Ok(Value::from(title(text)))
        }
        "swapcase" => {
            let () = from_args(args)?;
            let swap = |c: char| -> String {
                if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
            };
            Ok(Value::from(text.chars().map(swap).collect::<String>()))
        }
        "ljust" | "rjust" | "center" | "zfill" => pad(state, text, args, name),
        "format" => {
            pay_format(state, text, args)?;
            minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
        }
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args),
    }
}

/// A value takes more than a short text.
fn list(state: &State, parts: Vec<&str>) -> Result<Value, Error> {
    pay(state, 64 * parts.len())?;
    Ok(parts.into_iter().map(Value::from).collect())
}

fn strip(state: &State, text: &str, args: &[Value], left: bool, right: bool) -> Result<Value, Error> {
    let (chars,): (Option<&str>,) = from_args(args)?;
    // Each of the text's is looked for among them.
    pay(state, chars.map_or(0, |chars| text.len().saturating_mul(chars.len())))?;
    let matches = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = if left { text.trim_start_matches(matches) } else { text };
    Ok(Value::from(if right { text.trim_end_matches(matches) } else { text }))
}

fn split<'a>(text: &'a str, args: &[Value], from_right: bool) -> Result<Vec<&'a str>, Error> {
    let (separator, most, kwargs): (Option<Value>, Option<i64>, Kwargs) = from_args(args)?;
    let separator = separator.or(kwargs.get("sep")?).filter(|v| !v.is_none());
    let most = most.or(kwargs.get("maxsplit")?);
    kwargs.assert_all_used()?;
    // Of `n` splits come `n + 1` parts; below zero there is no limit.
    let most = most.and_then(|n| usize::try_from(n).ok()).map_or(usize::MAX, |n| n.saturating_add(1));
    let mut parts: Vec<&str> = match separator.as_ref().map(|s| s.as_str()) {
        None => words(text, most, from_right),
        Some(Some("")) => return Err(refused("split at an empty separator")),
        Some(Some(separator)) if from_right => text.rsplitn(most, separator).collect(),
        Some(Some(separator)) => text.splitn(most, separator).collect(),
        Some(None) => return Err(refused("split at what is no text")),
    };
    if from_right {
        parts.reverse();
    }
    Ok(parts)
}

/// Words between spaces, the last part with all that is left; from the right in their order from there.
fn words(text: &str, most: usize, from_right: bool) -> Vec<&str> {
    let skip = |rest| match from_right {
        true => str::trim_end_matches(rest, is_space),
        false => str::trim_start_matches(rest, is_space),
    };
    let mut parts = Vec::new();
    let mut rest = skip(text);
    while !rest.is_empty() {
        let space = if from_right { rest.rfind(is_space) } else { rest.find(is_space) };
        let Some(at) = space.filter(|_| parts.len() + 1 < most) else {
            parts.push(rest);
            break;
        };
        let width = rest[at..].chars().next().map_or(1, char::len_utf8);
        let (word, left) = match from_right {
            true => (&rest[at + width..], &rest[..at]),
            false => (&rest[..at], &rest[at..]),
        };
        parts.push(word);
        rest = skip(left);
    }
    parts
}

fn partition(text: &str, args: &[Value], from_right: bool) -> Result<Value, Error> {
    let (separator,): (&str,) = from_args(args)?;
    if separator.is_empty() {
        return Err(refused("a partition at an empty separator"));
    }
    let halves = if from_right { text.rsplit_once(separator) } else { text.split_once(separator) };
    let parts = match halves {
        Some((before, after)) => [before, separator, after],
        None if from_right => ["", "", text],
        None => [text, "", ""],
    };
    Ok(Value::from(Tuple::from(parts.map(Value::from))))
}

fn replace(state: &State, text: &str, args: &[Value]) -> Result<Value, Error> {
    let (old, new, count): (&Value, &Value, Option<i64>) = from_args(args)?;
    let (Some(old), Some(new)) = (old.as_str(), new.as_str()) else {
        return Err(refused("replace takes texts"));
    };
    pay(state, text.matches(old).count().saturating_mul(new.len()))?;
    Ok(Value::from(match count.and_then(|count| usize::try_from(count).ok()) {
        None => text.replace(old, new),
        Some(count) => text.replacen(old, new, count),
    }))
}

fn join(state: &State, separator: &str, args: &[Value]) -> Result<Value, Error> {
    let (items,): (&Value,) = from_args(args)?;
    let mut out = String::new();
    for (i, item) in items.try_iter()?.enumerate() {
        let text = item.as_str().ok_or_else(|| refused("join takes texts only"))?;
        pay(state, separator.len() + text.len())?;
        out.push_str(if i > 0 { separator } else { "" });
        out.push_str(text);
    }
    Ok(Value::from(out))
}

/// `text[begin:end]`, and at which character it begins; `None` where that is behind the end.
fn window(text: &str, begin: Option<i64>, end: Option<i64>) -> Option<(usize, &str)> {
    if begin.is_none() && end.is_none() {
        return Some((0, text));
    }
    let length = i64::try_from(text.chars().count()).ok()?;
    let at = |i: i64| (if i < 0 { (i + length).max(0) } else { i.min(length) }) as usize;
    if begin.is_some_and(|begin| begin > length) {
        return None;
    }
    let (begin, end) = (at(begin.unwrap_or(0)), at(end.unwrap_or(length)));
    let byte = |chars: usize| text.char_indices().nth(chars).map_or(text.len(), |(at, _)| at);
    (begin <= end).then(|| (begin, &text[byte(begin)..byte(end)]))
}

fn affix(text: &str, args: &[Value], at_start: bool) -> Result<Value, Error> {
    let (affixes, begin, end): (&Value, Option<i64>, Option<i64>) = from_args(args)?;
    let Some((_, text)) = window(text, begin, end) else { return Ok(Value::from(false)) };
    let has = |affix: &Value| {
        let affix = affix.as_str().ok_or_else(|| refused("startswith and endswith take texts"))?;
        Ok::<bool, Error>(if at_start { text.starts_with(affix) } else { text.ends_with(affix) })
    };
    if affixes.downcast_object_ref::<Tuple>().is_none() {
        return has(affixes).map(Value::from);
    }
    for affix in affixes.try_iter()? {
        if has(&affix)? {
            return Ok(Value::from(true));
        }
    }
    Ok(Value::from(false))
}

fn find(text: &str, args: &[Value], name: &str) -> Result<Value, Error> {
    let (what, begin, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
    let found = window(text, begin, end).and_then(|(first, window)| {
        let at = if name.starts_with('r') { window.rfind(what) } else { window.find(what) };
        at.map(|at| first + window[..at].chars().count())
    });
    match found {
        Some(at) => Ok(Value::from(at)),
        None if name.ends_with("find") => Ok(Value::from(-1)),
        None => Err(refused("the text does not have this part")),
    }
}

/// A letter behind anything but a letter is large.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for c in text.chars() {
        match inside {
            true => out.extend(c.to_lowercase()),
            false => out.extend(c.to_uppercase()),
        }
        inside = c.is_lowercase() || c.is_uppercase();
    }
    out
}

fn pad(state: &State, text: &str, args: &[Value], name: &str) -> Result<Value, Error> {
    let (width, fill): (i64, Option<&str>) = from_args(args)?;
    let fill = if name == "zfill" { "0" } else { fill.unwrap_or(" ") };
    let mut one = fill.chars();
    let (Some(fill), None) = (one.next(), one.next()) else {
        return Err(refused("a text is filled up with one character"));
    };
    let width = usize::try_from(width).unwrap_or(0);
    let missing = width.saturating_sub(text.chars().count());
    pay(state, missing.saturating_mul(fill.len_utf8()))?;
    let fill = |count: usize| String::from_iter(std::iter::repeat_n(fill, count));
    Ok(Value::from(match name {
        "ljust" => text.to_string() + &fill(missing),
        "rjust" => fill(missing) + text,
        "center" => {
            // An odd one stands on the left where the width is odd, too.
            let left = missing / 2 + (missing & width & 1);
            fill(left) + text + &fill(missing - left)
        }
        _ => {
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
            format!("{sign}{}{digits}", fill(missing))
        }
    }))
}

/// Each place may show the longest argument; widths are not for prompts.
fn pay_format(state: &State, format: &str, args: &[Value]) -> Result<(), Error> {
    if format.as_bytes().windows(4).any(|w| w.iter().all(u8::is_ascii_digit)) {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            "str.format with a number of more than three digits",
        ));
    }
    let mut longest = 1000;
    for arg in args {
        longest = longest.max(python::text(state, arg)?.len());
    }
    pay(state, format.matches('{').count().saturating_mul(longest))
}
