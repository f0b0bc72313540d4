//! JSON as a request may hold it: every name once in its object, no U+0000 in a string.
//!
//! Of a name that occurs twice, two readers may see different values; and U+0000 ends a string in
//! other people's software. Depth is bounded by serde_json (128 levels).

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// A value whose objects hold each name once.
pub struct Strict(pub Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Strict, D::Error> {
        deserializer.deserialize_any(StrictVisitor)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Strict;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_unit<E>(self) -> Result<Strict, E> {
        Ok(Strict(Value::Null))
    }
    fn visit_bool<E>(self, v: bool) -> Result<Strict, E> {
        Ok(Strict(v.into()))
    }
    fn visit_u64<E>(self, v: u64) -> Result<Strict, E> {
        Ok(Strict(v.into()))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Strict, E> {
        Ok(Strict(v.into()))
    }
    fn visit_f64<E>(self, v: f64) -> Result<Strict, E> {
        Ok(Strict(v.into()))
    }
    fn visit_str<E>(self, v: &str) -> Result<Strict, E> {
        Ok(Strict(v.into()))
    }
    fn visit_string<E>(self, v: String) -> Result<Strict, E> {
        Ok(Strict(v.into()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Strict, A::Error> {
        let mut items = Vec::new();
        while let Some(Strict(item)) = seq.next_element()? {
            items.push(item);
        }
        Ok(Strict(items.into()))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Strict, A::Error> {
        let mut map = Map::new();
        while let Some(name) = entries.next_key::<String>()? {
            if map.contains_key(&name) {
                let name: String = name.chars().take(64).collect();
                return Err(A::Error::custom(format!("the name {name:?} occurs twice in an object")));
            }
            let Strict(value) = entries.next_value()?;
            map.insert(name, value);
        }
        Ok(Strict(map.into()))
    }
}

/// The path of the first string that holds U+0000.
pub fn find_nul(value: &Value) -> Option<String> {
    fn below(inner: &Value, step: impl FnOnce() -> String) -> Option<String> {
        find_nul(inner).map(|rest| match rest.starts_with('[') || rest.is_empty() {
            true => step() + &rest,
            false => format!("{}.{rest}", step()),
        })
    }
    match value {
        Value::String(s) => s.contains('\0').then(String::new),
        Value::Array(items) => items.iter().enumerate().find_map(|(i, v)| below(v, || format!("[{i}]"))),
        Value::Object(map) => map.iter().find_map(|(name, v)| {
            // The path goes into an error message: short, and free of what it complains about.
            let step = || name.chars().take(64).filter(|c| *c != '\0').collect::<String>();
            if name.contains('\0') { Some(step()) } else { below(v, step) }
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(text: &str) -> Result<Value, String> {
        serde_json::from_str::<Strict>(text).map(|s| s.0).map_err(|e| e.to_string())
    }

    #[test]
    fn a_value_is_as_serde_json_reads_it() {
        let text =
            r#"{"a": [1, -2, 3.5, null, true, "x\u00e9\n"], "b": {"a": {}}, "c": 18446744073709551615}"#;
        assert_eq!(parse(text).unwrap(), serde_json::from_str::<Value>(text).unwrap());
    }

    #[test]
    fn a_name_that_occurs_twice_is_refused_at_any_depth() {
        for text in [r#"{"n": 1, "n": 2}"#, r#"[{"a": {"b": 1, "b": 1}}]"#, r#"{"a": 1, "\u0061": 2}"#] {
            assert!(parse(text).unwrap_err().contains("occurs twice"), "{text}");
        }
        assert!(parse(r#"{"a": {"a": 1}}"#).is_ok());
    }

    #[test]
    fn a_nul_is_found_by_its_path() {
        let value = json!({"m": [{"x": "a"}, {"content": [{"text": "a\0"}]}]});
        assert_eq!(find_nul(&value).as_deref(), Some("m[1].content[0].text"));
        assert_eq!(find_nul(&json!({"a\0b": 1})).as_deref(), Some("ab"));
        assert_eq!(find_nul(&json!({"prompt": "\0"})).as_deref(), Some("prompt"));
        assert_eq!(find_nul(&json!({"prompt": ["a", 1, null]})), None);
    }
}
