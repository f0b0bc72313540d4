//! Typed reads from a request's JSON object; every error names the field and what it should have been.
//!
//! A field that has been read is taken out, so that what is left at the end is unknown. `null` is the
//! same as absent.

use serde_json::{Map, Value};

use super::strict::{self, Strict};

/// Why a request body was refused, in the terms of OpenAI's error object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RequestError {
    pub message: String,
    pub param: Option<String>,
    pub code: Option<&'static str>,
}

impl RequestError {
    /// A field with a value that cannot be honoured.
    pub fn invalid(param: &str, message: impl Into<String>) -> RequestError {
        RequestError { message: message.into(), param: Some(param.into()), code: None }
    }

    /// A known field that this server does not support (yet).
    pub fn unsupported(param: &str, what: &str) -> RequestError {
        let message = format!("{what} is not supported by this server");
        RequestError { message, param: Some(param.into()), code: Some("unsupported_parameter") }
    }

    fn body(message: String) -> RequestError {
        RequestError { message, param: None, code: None }
    }
}

/// What happens to a field the API does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnknownParameters {
    #[default]
    Refuse,
    /// Logged by name, otherwise ignored.
    Warn,
}

/// The fields of one JSON object that have not been read yet.
pub struct Fields {
    map: Map<String, Value>,
    /// Where the object is in the body: empty, or `messages[3].`.
    prefix: String,
}

impl Fields {
    /// The object of a request body.
    ///
    /// # Errors
    /// Malformed JSON (with the place), invalid UTF-8, too deep nesting, a name that occurs twice in
    /// an object, U+0000 in a string, or no object.
    pub fn of_body(body: &[u8]) -> Result<Fields, RequestError> {
        let Strict(value) = serde_json::from_slice(body)
            .map_err(|e| RequestError::body(format!("The request body is not valid JSON: {e}")))?;
        if let Some(path) = strict::find_nul(&value) {
            let message = format!("{path} must not contain the character U+0000");
            return Err(RequestError::invalid(&path, message));
        }
        match value {
            Value::Object(map) => Ok(Fields { map, prefix: String::new() }),
            other => {
                let found = kind(&other);
                Err(RequestError::body(format!("The request body must be a JSON object, got {found}")))
            }
        }
    }

    /// The fields of an object inside the body; `path` ends where a field's name would begin.
    pub fn of_value(value: Value, path: &str) -> Result<Fields, RequestError> {
        match value {
            Value::Object(map) => Ok(Fields { map, prefix: format!("{path}.") }),
            other => Err(wrong(path, "an object", &other)),
        }
    }

    pub fn path(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// True when the field is there and not null.
    pub fn has(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(|v| !v.is_null())
    }

    /// Takes a field whatever its type.
    pub fn take(&mut self, key: &str) -> Option<Value> {
        self.map.remove(key).filter(|v| !v.is_null())
    }

    fn typed<T>(
        &mut self,
        key: &str,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, RequestError> {
        let path = self.path(key);
        self.take(key).map(|v| read(&v).ok_or_else(|| wrong(&path, expected, &v))).transpose()
    }

    pub fn string(&mut self, key: &str) -> Result<Option<String>, RequestError> {
        self.typed(key, "a string", |v| v.as_str().map(str::to_string))
    }

    pub fn required_string(&mut self, key: &str) -> Result<String, RequestError> {
        let path = self.path(key);
        self.string(key)?.ok_or_else(|| RequestError::invalid(&path, format!("{path} is required")))
    }

    /// The fields of an object that must be there.
    pub fn object(&mut self, key: &str) -> Result<Fields, RequestError> {
        let path = self.path(key);
        let required = || RequestError::invalid(&path, format!("{path} is required"));
        Fields::of_value(self.take(key).ok_or_else(required)?, &path)
    }

    pub fn bool(&mut self, key: &str) -> Result<Option<bool>, RequestError> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// A number in `min..=max`.
    pub fn number(&mut self, key: &str, min: f64, max: f64) -> Result<Option<f32>, RequestError> {
        let range = format!("a number between {min} and {max}");
        self.typed(key, &range, |v| v.as_f64().filter(|x| (min..=max).contains(x)).map(|x| x as f32))
    }

    /// A whole number in `min..=max`.
    pub fn integer(&mut self, key: &str, min: usize, max: usize) -> Result<Option<usize>, RequestError> {
        let range = match max {
            usize::MAX => format!("a whole number of at least {min}"),
            _ => format!("a whole number between {min} and {max}"),
        };
        self.typed(key, &range, |v| as_usize(v).filter(|x| (min..=max).contains(x)))
    }

    /// A field of which only these values are supported; absent is fine.
    pub fn only(&mut self, key: &str, supported: &[Value]) -> Result<(), RequestError> {
        match self.take(key) {
            Some(v) if !supported.contains(&v) => {
                let path = self.path(key);
                Err(RequestError::unsupported(&path, &format!("{path} = {}", shown(&v))))
            }
            _ => Ok(()),
        }
    }

    /// A string of at most `max_chars`, for fields that label and do not speak to the model.
    pub fn label(&mut self, key: &str, max_chars: usize) -> Result<Option<String>, RequestError> {
        let expected = format!("a string of at most {max_chars} characters");
        self.typed(key, &expected, |v| v.as_str().filter(|s| fits(s, max_chars)).map(str::to_string))
    }

    /// Fields that are known and refused.
    pub fn refuse(&mut self, keys: &[&str]) -> Result<(), RequestError> {
        match keys.iter().find(|k| self.take(k).is_some()) {
            Some(key) => Err(RequestError::unsupported(&self.path(key), &self.path(key))),
            None => Ok(()),
        }
    }

    /// What is left is unknown.
    pub fn finish(self, unknown: UnknownParameters) -> Result<(), RequestError> {
        for (key, value) in &self.map {
            if value.is_null() {
                continue;
            }
            let path = shown(&Value::String(self.path(key))).trim_matches('"').to_string();
            match unknown {
                UnknownParameters::Warn => tracing::warn!(parameter = %path, "unknown request parameter"),
                UnknownParameters::Refuse => {
                    return Err(RequestError {
                        message: format!("Unknown parameter: `{path}`"),
                        param: Some(path),
                        code: Some("unknown_parameter"),
                    });
                }
            }
        }
        Ok(())
    }
}

/// Whether a text has at most so many characters, as JSON schema's `maxLength` counts them.
pub fn fits(text: &str, max_chars: usize) -> bool {
    text.len() <= max_chars || text.chars().count() <= max_chars
}

/// A whole number, also when a client writes it as 3.0.
pub fn as_usize(value: &Value) -> Option<usize> {
    let whole = |x: f64| (x.fract() == 0.0 && (0.0..9e15).contains(&x)).then_some(x as u64);
    value.as_u64().or_else(|| value.as_f64().and_then(whole)).and_then(|n| usize::try_from(n).ok())
}

/// The error of a value of the wrong type or range.
pub fn wrong(path: &str, expected: &str, got: &Value) -> RequestError {
    RequestError::invalid(path, format!("{path} must be {expected}, got {}", shown(got)))
}

/// A value as an error message may show it: scalars short, the rest by its type.
fn shown(value: &Value) -> String {
    match value {
        Value::String(s) if s.chars().count() > 64 => {
            format!("\"{}…\"", s.chars().take(64).collect::<String>().escape_debug())
        }
        Value::String(s) => format!("\"{}\"", s.escape_debug()),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        other => kind(other).into(),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
