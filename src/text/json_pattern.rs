//! Patterns of texts as a JSON string can hold them: without the control characters that only `\u` escapes would write.
//!
//! A grammar here writes no `\u` escapes, so that nothing is spelled in two ways. The compiler is told so, but of a class of
//! all control characters, as every negated one has, it makes all escapes there are, `\"` and `\\` too, where the class
//! excludes them (derivre 0.3.13, `json_quote`); and a control character of its own it leaves out.

use llguidance::regex_to_lark;
use regex_syntax::hir::{Class, ClassUnicode, ClassUnicodeRange, Hir, HirKind};

/// What no JSON string here is written with: U+007F needs no escape, but the compiler writes one.
const UNWRITABLE: [(char, char); 4] =
    [('\0', '\u{7}'), ('\u{b}', '\u{b}'), ('\u{e}', '\u{1f}'), ('\u{7f}', '\u{7f}')];

pub fn is_unwritable(c: char) -> bool {
    UNWRITABLE.iter().any(|(low, high)| (*low..=*high).contains(&c))
}

/// The pattern without these characters, where it has any. What cannot be parsed stays as it is: the compiler says why.
///
/// # Errors
/// A pattern that nothing else matches.
pub fn writable(pattern: &str) -> Result<Option<String>, String> {
    // As the compiler reads it: digits and word characters are ASCII's.
    let Ok(hir) = regex_syntax::parse(&regex_to_lark(pattern, "dw")) else { return Ok(None) };
    let mut changed = false;
    match without(&hir, &mut changed) {
        _ if !changed => Ok(None),
        Some(hir) => Ok(Some(hir.to_string())),
        None => Err("it matches only texts with control characters, which are not kept to".into()),
    }
}

/// `None` where nothing is left.
fn without(hir: &Hir, changed: &mut bool) -> Option<Hir> {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) | HirKind::Class(Class::Bytes(_)) => Some(hir.clone()),
        HirKind::Literal(literal) => {
            let has = std::str::from_utf8(&literal.0).is_ok_and(|text| text.chars().any(is_unwritable));
            *changed |= has;
            (!has).then(|| hir.clone())
        }
        HirKind::Class(Class::Unicode(class)) => {
            let mut left = class.clone();
            let ranges = UNWRITABLE.map(|(low, high)| ClassUnicodeRange::new(low, high));
            left.difference(&ClassUnicode::new(ranges));
            *changed |= left != *class;
            (!left.ranges().is_empty()).then(|| Hir::class(Class::Unicode(left)))
        }
        HirKind::Repetition(repetition) => match without(&repetition.sub, changed) {
            Some(sub) => {
                let mut repetition = repetition.clone();
                repetition.sub = Box::new(sub);
                Some(Hir::repetition(repetition))
            }
            None => (repetition.min == 0).then(Hir::empty),
        },
        HirKind::Capture(capture) => without(&capture.sub, changed),
        HirKind::Concat(all) => {
            // All are looked at, so that each change is seen.
            let parts: Vec<_> = all.iter().map(|hir| without(hir, changed)).collect();
            parts.into_iter().collect::<Option<Vec<_>>>().map(Hir::concat)
        }
        HirKind::Alternation(all) => {
            let left: Vec<_> = all.iter().filter_map(|hir| without(hir, changed)).collect();
            (!left.is_empty()).then(|| Hir::alternation(left))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_written_is_left_out() {
        for same in ["^[a-z]+$", r"^\d{3}-\w*$", "^a\"b$", "(", r"^[\n\t]$"] {
            assert_eq!(writable(same), Ok(None), "{same}");
        }
        for (pattern, texts, others) in [
            (r#"^[^"\\]{1,3}$"#, &["a\n", "é/"][..], &["a\u{1}", "\"", "\\", "\u{7f}", "abcd"][..]),
            (r"^(a|\x01|[\x00-\x21])$", &["a", "!", "\n"], &["\u{1}", "b", "\u{b}"]),
            (r"^a\u0001?b$", &["ab"], &["a\u{1}b"]),
            ("^.$", &["é", "\r"], &["\u{0}", "\n"]),
            (r"^[^ -~]{3}$", &["\n\té"], &["\"  ", "\\"]),
        ] {
            let changed = writable(pattern).unwrap().unwrap();
            let regex = regex::Regex::new(&changed).unwrap();
            texts.iter().for_each(|t| assert!(regex.is_match(t), "{pattern} as {changed}: {t:?}"));
            others.iter().for_each(|t| assert!(!regex.is_match(t), "{pattern} as {changed}: {t:?}"));
        }
        assert!(writable(r"^a\x1bb$").is_err() && writable(r"^[\x00-\x07]+$").is_err());
    }
}
