//! Arrivals as they were recorded: CSV of (timestamp, input tokens, output tokens) → offsets and lengths.
//!
//! Timestamps are seconds or `YYYY-MM-DD hh:mm:ss.fffffff`; columns are found by their headers, else by
//! their order. Lines need not be in order of time. A line that cannot be read is an error that names it.

use std::path::Path;

use jiff::civil::DateTime;

/// A request of the recording.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Arrival {
    /// After the first.
    pub seconds: f64,
    pub input_tokens: usize,
    pub output_tokens: usize,
}

#[derive(Debug, PartialEq, thiserror::Error)]
pub enum TraceError {
    #[error("{file}: {problem}")]
    File { file: String, problem: String },
    #[error("{file}, line {line}: {problem}")]
    Line { file: String, line: u64, problem: String },
}

/// # Errors
/// A file that cannot be read, or as [`parse`].
pub fn read(path: &Path) -> Result<Vec<Arrival>, TraceError> {
    let file = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&file, &text),
        Err(error) => Err(TraceError::File { file, problem: error.to_string() }),
    }
}

/// From the first arrival to the last.
const LONGEST_SECONDS: f64 = 366.0 * 86_400.0;

/// Arrivals in order of time.
///
/// # Errors
/// A line that is no arrival, a text without any.
pub fn parse(file: &str, text: &str) -> Result<Vec<Arrival>, TraceError> {
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .trim(csv::Trim::All)
        .comment(Some(b'#'))
        .from_reader(text.trim_start_matches('\u{feff}').as_bytes());
    let mut columns = [0, 1, 2];
    let mut arrivals = Vec::new();
    for (index, record) in reader.records().enumerate() {
        let record = record.map_err(|e| TraceError::File { file: file.into(), problem: e.to_string() })?;
        let line = record.position().map_or(0, csv::Position::line);
        let fail = |problem: String| TraceError::Line { file: file.into(), line, problem };
        if index == 0 && timestamp(record.get(0).unwrap_or_default()).is_none() {
            columns = headers(&record).map_err(fail)?;
            continue;
        }
        let field = |i: usize| record.get(columns[i]).unwrap_or_default();
        let seconds = timestamp(field(0)).ok_or_else(|| fail(format!("{:?} is not a time", field(0))))?;
        let tokens = |i: usize| {
            let parsed = field(i).parse::<usize>().ok().filter(|n| *n <= 10_000_000);
            parsed.ok_or_else(|| fail(format!("{:?} is not a number of tokens", field(i))))
        };
        arrivals.push(Arrival { seconds, input_tokens: tokens(1)?.max(1), output_tokens: tokens(2)?.max(1) });
    }
    arrivals.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    let first = arrivals
        .first()
        .map(|a| a.seconds)
        .ok_or_else(|| TraceError::File { file: file.into(), problem: "holds no arrival".into() })?;
    arrivals.iter_mut().for_each(|a| a.seconds -= first);
    match arrivals.last() {
        Some(last) if last.seconds > LONGEST_SECONDS => Err(TraceError::File {
            file: file.into(),
            problem: format!("its arrivals lie {:e} seconds apart, more than a year", last.seconds),
        }),
        _ => Ok(arrivals),
    }
}

/// Which columns hold time, input and output tokens.
fn headers(record: &csv::StringRecord) -> Result<[usize; 3], String> {
    let names: Vec<String> = record.iter().map(str::to_ascii_lowercase).collect();
    let find = |words: &[&str]| names.iter().position(|n| words.iter().any(|w| n.contains(w)));
    let input = find(&["context", "input", "prompt", "request"]);
    let output = find(&["generated", "output", "completion", "response"]);
    match (find(&["time", "arrived", "second"]), input, output) {
        (Some(time), Some(input), Some(output)) => Ok([time, input, output]),
        _ => Err(format!("the columns {} hold no time, input tokens and output tokens", names.join(", "))),
    }
}

fn timestamp(text: &str) -> Option<f64> {
    if let Ok(seconds) = text.parse::<f64>() {
        return seconds.is_finite().then_some(seconds);
    }
    // Offsets of a zone are the same on every line of a recording: left out.
    let text = text.trim_end_matches('Z').trim_end_matches("+00:00");
    let time: DateTime = text.parse().ok()?;
    let since = time.duration_since(DateTime::constant(1970, 1, 1, 0, 0, 0, 0));
    Some(since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn offsets(text: &str) -> Vec<(f64, usize, usize)> {
        let round = |s: f64| (s * 1e4).round() / 1e4;
        let parsed = parse("t.csv", text).unwrap();
        parsed.iter().map(|a| (round(a.seconds), a.input_tokens, a.output_tokens)).collect()
    }

    #[test]
    fn arrivals_that_never_come_are_refused() {
        for text in ["0,1,1\n1e300,1,1", "-1e300,1,1\n0,1,1"] {
            assert!(parse("t.csv", text).unwrap_err().to_string().contains("more than a year"));
        }
    }

    #[test]
    fn recordings_of_both_kinds() {
        let cloud = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:15:46.6805900,374,44\r\n\
                     2023-11-16 18:15:50.9951690,396,109\r\n2023-11-16 23:59:59.9999999,879,55";
        assert_eq!(offsets(cloud), [(0.0, 374, 44), (4.3146, 396, 109), (20653.3194, 879, 55)]);
        assert_eq!(offsets("10.5,7,8\n10.25,5,6\n"), [(0.0, 5, 6), (0.25, 7, 8)]);
        assert_eq!(
            offsets("output,arrived_at,prompt\n9,1,2\n# a remark\n8,3,0\n"),
            [(0.0, 2, 9), (2.0, 1, 8)]
        );
        assert_eq!(offsets("2023-12-31T23:59:59Z,1,1\n2024-01-01T00:00:01Z,1,1"), [(0.0, 1, 1), (2.0, 1, 1)]);
    }

    #[test]
    fn what_is_no_recording_is_named() {
        for (text, want) in [
            ("", "no arrival"),
            ("time,input,output\n", "no arrival"),
            ("when,how,what\n1,2,3", "line 1"),
            ("time,input,output\n1,2,3\nsoon,2,3", "line 3: \"soon\""),
            ("1,2,3\n2,-1,3", "line 2: \"-1\""),
            ("1,2,3\n2,1,99999999999", "line 2: \"99999999999\""),
            ("1,2,3\n2,1", "t.csv"),
            ("nan,1,1\nnan,1,1", "line 1"),
        ] {
            let error = parse("t.csv", text).unwrap_err().to_string();
            assert!(error.contains(want) && error.contains("t.csv"), "{text:?}: {error}");
        }
    }

    proptest! {
        /// Whatever a file holds, there is an answer; and numbers come back as they were.
        #[test]
        fn nothing_breaks_it(text in "[0-9a-z,:\\-\\n .\"#]{0,200}") {
            let _ = parse("t.csv", &text);
        }

        #[test]
        fn seconds_come_back(rows in prop::collection::vec((0u32..100_000, 1usize..5000, 1usize..5000), 1..50)) {
            let text: String = rows.iter().map(|(t, i, o)| format!("{},{i},{o}\n", f64::from(*t) / 8.0)).collect();
            let parsed = parse("t.csv", &text).unwrap();
            let first = rows.iter().map(|r| r.0).min().unwrap();
            let mut want: Vec<f64> = rows.iter().map(|r| f64::from(r.0 - first) / 8.0).collect();
            want.sort_by(f64::total_cmp);
            prop_assert_eq!(parsed.iter().map(|a| a.seconds).collect::<Vec<_>>(), want);
            let sum = |f: fn(&Arrival) -> usize| parsed.iter().map(f).sum::<usize>();
            prop_assert_eq!(sum(|a| a.input_tokens), rows.iter().map(|r| r.1).sum::<usize>());
            prop_assert_eq!(sum(|a| a.output_tokens), rows.iter().map(|r| r.2).sum::<usize>());
        }
    }
}
