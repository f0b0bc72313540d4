//! What chat templates may call beside minijinja's own: `tojson` as HuggingFace has it, Python's string
//! methods, `strftime_now`, `raise_exception`.
//!
//! A template is a program from a downloaded file. minijinja pays for what its own operators make; these
//! functions pay (in fuel, 64 bytes each) before they make anything, so that none of them is a way out.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};

/// Values inside values that `tojson` follows.
const MAX_DEPTH: usize = 64;

pub fn install(environment: &mut Environment) {
    environment.set_unknown_method_callback(method);
    environment.add_filter("tojson", tojson);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", strftime_now);
}

fn refused(what: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.to_string())
}

/// Pays for `bytes` of work or of text.
fn pay(state: &State, bytes: usize) -> Result<(), Error> {
    state.consume_fuel(bytes as u64 / 64 + 1)
}

/// Python's methods of strings and maps. Before one runs, its reading and its result are paid for.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(s) = value.as_str() {
        pay(state, s.len())?;
        let text = |i: usize| args.get(i).and_then(Value::as_str);
        match (name, text(0), text(1)) {
            ("replace", Some(old), Some(new)) => {
                pay(state, s.matches(old).count().saturating_mul(new.len()))?;
            }
            ("join", ..) => pay_join(state, s, args)?,
            ("format", ..) => pay_format(state, s, args)?,
            _ => {}
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

fn pay_join(state: &State, separator: &str, args: &[Value]) -> Result<(), Error> {
    let Some(items) = args.first() else { return Ok(()) };
    for item in items.try_iter()? {
        pay(state, separator.len().saturating_add(scalar_len(&item)?))?;
    }
    Ok(())
}

/// Each place may show the longest argument; widths are not for prompts.
fn pay_format(state: &State, format: &str, args: &[Value]) -> Result<(), Error> {
    if format.as_bytes().windows(4).any(|w| w.iter().all(u8::is_ascii_digit)) {
        return Err(refused("str.format with a number of more than three digits"));
    }
    let mut longest = 1000;
    for arg in args {
        longest = longest.max(scalar_len(arg)?);
    }
    pay(state, format.matches('{').count().saturating_mul(longest))
}

/// Bytes of a value as text, at most. Values that hold others may hold the same one many times over.
fn scalar_len(value: &Value) -> Result<usize, Error> {
    match value.kind() {
        ValueKind::Undefined | ValueKind::None | ValueKind::Bool | ValueKind::Number => Ok(64),
        ValueKind::String => Ok(value.as_str().map_or(0, str::len)),
        _ => Err(refused("only strings and numbers can be joined or formatted")),
    }
}

/// `json.dumps(value, ensure_ascii=False, indent=…)`, as HuggingFace's renderer sets it: unlike Jinja's
/// own filter it escapes nothing for HTML.
fn tojson(state: &State, value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent = kwargs.get::<Option<usize>>("indent")?.map(|n| n.min(16));
    if kwargs.get::<Option<bool>>("ensure_ascii")? == Some(true) {
        return Err(refused("tojson with ensure_ascii=true"));
    }
    kwargs.assert_all_used()?;
    let mut out = String::new();
    write_json(state, value, indent, 0, &mut out)?;
    Ok(Value::from(out))
}

fn write_json(
    state: &State,
    value: &Value,
    indent: Option<usize>,
    depth: usize,
    out: &mut String,
) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(refused("tojson of a value that is nested too deeply"));
    }
    let line = |out: &mut String, depth: usize| {
        if let Some(width) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', width * depth));
        }
    };
    let between = if indent.is_some() { "," } else { ", " };
    // The brackets, the indentation and a number's digits.
    pay(state, 64 + depth * indent.unwrap_or(0))?;
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&value.to_string()),
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            pay(state, text.len())?;
            out.push_str(&serde_json::Value::from(text).to_string());
        }
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            let mut any = false;
            for item in value.try_iter()? {
                out.push_str(if any { between } else { "" });
                any = true;
                line(out, depth + 1);
                write_json(state, &item, indent, depth + 1, out)?;
            }
            if any {
                line(out, depth);
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            let mut any = false;
            for key in value.try_iter()? {
                out.push_str(if any { between } else { "" });
                any = true;
                line(out, depth + 1);
                let name = key.as_str().map_or_else(|| key.to_string(), str::to_string);
                pay(state, name.len())?;
                out.push_str(&serde_json::Value::from(name).to_string());
                out.push_str(": ");
                write_json(state, &value.get_item(&key)?, indent, depth + 1, out)?;
            }
            if any {
                line(out, depth);
            }
            out.push('}');
        }
        other => return Err(refused(&format!("tojson of {other}"))),
    }
    Ok(())
}

/// Today's date for templates that state it; the directives they use, others stay as written.
fn strftime_now(format: String) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let now = crate::clock::unix_seconds();
    let (year, month, day) = civil_date(now / 86_400);
    let name = MONTHS[month - 1];
    let two = |n: u64| format!("{n:02}");
    format
        .replace("%Y", &year.to_string())
        .replace("%m", &format!("{month:02}"))
        .replace("%d", &two(day))
        .replace("%B", name)
        .replace("%b", &name[..3])
        .replace("%H", &two(now / 3600 % 24))
        .replace("%M", &two(now / 60 % 60))
        .replace("%S", &two(now % 60))
}

/// Year, month and day of a day since 1970-01-01 (Hinnant, "chrono-compatible low-level date algorithms").
fn civil_date(days: u64) -> (u64, usize, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let of_era = z % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month as usize, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String, Error> {
        let mut environment = Environment::new();
        environment.set_fuel(Some(100_000));
        install(&mut environment);
        environment.render_str(source, minijinja::context! { tools => [1] })
    }

    #[test]
    fn json_is_as_python_writes_it() {
        for (source, json) in [
            (
                "{{ {'a': [1, 2.5, none, true], 'b<': \"x'é\\n\"} | tojson }}",
                r#"{"a": [1, 2.5, null, true], "b<": "x'é\n"}"#,
            ),
            ("{{ [1, {}] | tojson(indent=2) }}", "[\n  1,\n  {}\n]"),
            ("{{ {'a': {'b': []}} | tojson(indent=4) }}", "{\n    \"a\": {\n        \"b\": []\n    }\n}"),
            ("{{ '' | tojson(ensure_ascii=false) }}", "\"\""),
        ] {
            assert_eq!(render(source).unwrap(), json, "{source}");
        }
        assert!(render("{{ missing | tojson }}").is_err());
    }

    #[test]
    fn python_methods_do_what_templates_need() {
        for (source, text) in [
            ("{{ ' a b '.strip().replace('a', 'cc') }}", "cc b"),
            ("{{ ', '.join(['x', 1]) }}", "x, 1"),
            ("{{ '{} {}'.format('a', 2) }}", "a 2"),
            ("{{ 'a</think>b'.split('</think>')[-1] }}", "b"),
            ("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}", "a1"),
            ("{{ 'abc'.startswith('ab') and not 'abc'.endswith('x') }}", "True"),
        ] {
            assert_eq!(render(source).unwrap(), text, "{source}");
        }
    }

    #[test]
    fn methods_are_no_way_around_the_budget() {
        for source in [
            // 10^12 bytes, each from operands that are affordable.
            "{% set s = 'x' * 1000000 %}{{ s.replace('x', s) | length }}",
            "{% set s = 'x' * 1000000 %}{{ s.replace('', s) | length }}",
            "{% set s = 'x' * 1000000 %}{{ s.join(range(100000)) | length }}",
            "{% set s = 'x' * 1000000 %}{{ ''.join([s] * 10000) | length }}",
            "{{ '{:1000000000}'.format('x') }}",
            "{{ '{:{}}'.format('x', 1000000000) }}",
            "{% set s = 'x' * 1000000 %}{{ ('{0}' * 10000).format(s) | length }}",
            // Values that hold one another, doubling at each step.
            "{% set ns = namespace(a=['x' * 1000]) %}{% for i in range(40) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a | tojson }}",
            "{% set ns = namespace(a=['x' * 1000]) %}{% for i in range(40) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ''.join(ns.a) }}",
            "{% set ns = namespace(a=1) %}{% for i in range(200) %}{% set ns.a = [ns.a] %}{% endfor %}{{ ns.a | tojson }}",
            // Reading costs, too.
            "{% set s = 'x' * 1000000 %}{% for i in range(90000) %}{{ s.find('y') }}{% endfor %}",
        ] {
            assert!(render(source).is_err(), "{source}");
        }
    }

    #[test]
    fn dates_are_right() {
        assert_eq!(civil_date(0), (1970, 1, 1));
        assert_eq!(civil_date(19_782), (2024, 2, 29));
        assert_eq!(civil_date(20_780), (2026, 11, 23));
        assert!(!strftime_now("%d %b %Y %H:%M".into()).contains('%'));
    }
}
