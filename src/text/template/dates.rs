//! `strftime_now`: today's date, for templates that state it. In UTC: HuggingFace's renderer takes the local time of
//! the machine, and servers run in UTC.

use jiff::civil::DateTime;
use jiff::{Timestamp, tz::TimeZone};
use minijinja::value::Kwargs;
use minijinja::{Error, Value};

use super::refused;

/// Bytes of a format; real ones have about ten.
const MAX_FORMAT: usize = 256;

/// The function as a template calls it, at this second since 1970.
pub fn strftime_now(now: u64) -> Value {
    Value::from_function(move |format: Option<Value>, kwargs: Kwargs| {
        let format = format.or(kwargs.get("format")?);
        kwargs.assert_all_used()?;
        let format = format.as_ref().and_then(Value::as_str);
        let format = format.ok_or_else(|| refused("strftime_now takes a format"))?;
        strftime(now, format)
    })
}

fn strftime(now: u64, format: &str) -> Result<String, Error> {
    let seconds = i64::try_from(now).map_err(|_| refused("a clock that is far off"))?;
    let time = Timestamp::from_second(seconds).map_err(|e| refused(&e.to_string()))?;
    if format.len() > MAX_FORMAT {
        return Err(refused(&format!("strftime_now with a format of more than {MAX_FORMAT} bytes")));
    }
    let time: DateTime = TimeZone::UTC.to_datetime(time);
    let format = whole(format);
    jiff::fmt::strtime::format(&format, time).map_err(|e| refused(&format!("strftime_now: {e}")))
}

/// Directives that jiff has otherwise, by others: a date without a time zone has no name of one, the C locale's ways to
/// write date and time, microseconds.
fn whole(format: &str) -> String {
    let mut out = String::with_capacity(format.len());
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        out.push(c);
        if c != '%' {
            continue;
        }
        let Some(directive) = chars.next() else { break };
        let written = match directive {
            'z' | 'Z' => "",
            'c' => "%a %b %e %H:%M:%S %Y",
            'x' => "%m/%d/%y",
            'X' => "%H:%M:%S",
            'f' => "000000",
            other => {
                out.push(other);
                continue;
            }
        };
        out.pop();
        out.push_str(written);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right() {
        for (day, date) in [(0, "1970-01-01"), (19_782, "2024-02-29"), (20_780, "2026-11-23")] {
            assert_eq!(strftime(day * 86_400, "%Y-%m-%d").unwrap(), date);
        }
        assert_eq!(strftime(1_000_000_000, "%d %b %Y %H:%M").unwrap(), "09 Sep 2001 01:46");
        assert_eq!(strftime(0, "%c|%x|%Z%%c").unwrap(), "Thu Jan  1 00:00:00 1970|01/01/70|%c");
        assert!(strftime(0, "%Q").is_err() && strftime(u64::MAX, "%Y").is_err());
        assert!(strftime(0, &"%c".repeat(200)).is_err());
    }
}
