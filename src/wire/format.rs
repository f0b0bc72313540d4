//! What an answer must look like: `response_format`, and vLLM's `guided_*` and `structured_outputs`.
//!
//! JSON in, one demand out; whether it can be honoured is the service's question.

use serde_json::{Value, json};

use super::fields::{Fields, RequestError, UnknownParameters, wrong};

const MAX_NAME: usize = 64;
const MAX_CHOICES: usize = 10_000;

/// What the text of an answer must match.
#[derive(Debug, Clone, PartialEq)]
pub enum Format {
    JsonObject,
    JsonSchema(Value),
    Regex(String),
    Choice(Vec<String>),
    /// A Lark grammar.
    Grammar(String),
}

/// A demand, and the field that made it.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputFormat {
    pub format: Format,
    pub param: String,
}

impl OutputFormat {
    /// The one demand of a request; `None` where any text will do.
    ///
    /// # Errors
    /// A field that is not what it should be; two demands.
    pub fn read(f: &mut Fields, unknown: UnknownParameters) -> Result<Option<OutputFormat>, RequestError> {
        let mut found = Vec::new();
        if let Some(value) = f.take("response_format") {
            let format = response_format(value, unknown)?;
            found.extend(format.map(|format| OutputFormat { format, param: "response_format".into() }));
        }
        guided(f, "guided_", &mut found)?;
        if let Some(value) = f.take("structured_outputs") {
            let mut inner = Fields::of_value(value, "structured_outputs")?;
            guided(&mut inner, "", &mut found)?;
            if inner.bool("json_object")?.unwrap_or(false) {
                let param = inner.path("json_object");
                found.push(OutputFormat { format: Format::JsonObject, param });
            }
            inner.refuse(&["disable_additional_properties", "structural_tag", "whitespace_pattern"])?;
            // These choose among ways to write the same, and there is one here.
            inner.bool("disable_any_whitespace")?;
            inner.bool("disable_fallback")?;
            inner.finish(unknown)?;
        }
        if let [first, second, ..] = found.as_slice() {
            let message = format!("{} and {} exclude each other", first.param, second.param);
            return Err(RequestError::invalid(&second.param, message));
        }
        Ok(found.pop())
    }
}

fn response_format(value: Value, unknown: UnknownParameters) -> Result<Option<Format>, RequestError> {
    let mut f = Fields::of_value(value, "response_format")?;
    let kind = f.required_string("type")?;
    let format = match kind.as_str() {
        "text" => None,
        "json_object" => Some(Format::JsonObject),
        "json_schema" => {
            let path = f.path("json_schema");
            let Some(value) = f.take("json_schema") else {
                return Err(RequestError::invalid(&path, format!("{path} is required")));
            };
            Some(named_schema(Fields::of_value(value, &path)?, unknown)?)
        }
        "structural_tag" | "grammar" => {
            return Err(RequestError::unsupported(&f.path("type"), &format!("response_format {kind}")));
        }
        _ => return Err(wrong(&f.path("type"), "text, json_object or json_schema", &json!(kind))),
    };
    f.finish(unknown)?;
    Ok(format)
}

fn named_schema(mut f: Fields, unknown: UnknownParameters) -> Result<Format, RequestError> {
    let name = f.required_string("name")?;
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(fine) {
        let expected = format!("1 to {MAX_NAME} letters, digits, _ or -");
        return Err(wrong(&f.path("name"), &expected, &json!(name)));
    }
    // Written for the model by some servers; here the schema itself is kept to.
    f.string("description")?;
    // Strict or not: the schema is always kept to.
    f.bool("strict")?;
    let path = f.path("schema");
    let format = match f.take("schema") {
        None => Format::JsonObject,
        Some(schema @ (Value::Object(_) | Value::Bool(_))) => Format::JsonSchema(schema),
        Some(other) => return Err(wrong(&path, "a JSON schema", &other)),
    };
    f.finish(unknown)?;
    Ok(format)
}

/// `json`, `regex`, `choice` and `grammar` behind a prefix.
fn guided(f: &mut Fields, prefix: &str, found: &mut Vec<OutputFormat>) -> Result<(), RequestError> {
    let mut add = |param: String, format: Format| found.push(OutputFormat { format, param });
    let key = format!("{prefix}json");
    let path = f.path(&key);
    match f.take(&key) {
        None => {}
        Some(schema @ (Value::Object(_) | Value::Bool(_))) => add(path, Format::JsonSchema(schema)),
        // A schema written as a text, as vLLM takes it too.
        Some(Value::String(text)) => match serde_json::from_str(&text) {
            Ok(schema) => add(path, Format::JsonSchema(schema)),
            Err(e) => return Err(RequestError::invalid(&path, format!("{path} is not valid JSON: {e}"))),
        },
        Some(other) => return Err(wrong(&path, "a JSON schema", &other)),
    }
    for (name, make) in [("regex", Format::Regex as fn(String) -> Format), ("grammar", Format::Grammar)] {
        let key = format!("{prefix}{name}");
        if let Some(text) = f.string(&key)? {
            add(f.path(&key), make(text));
        }
    }
    let key = format!("{prefix}choice");
    let path = f.path(&key);
    if let Some(value) = f.take(&key) {
        let text = |v: &Value| v.as_str().filter(|s| !s.is_empty()).map(str::to_string);
        let all: Option<Vec<String>> = value.as_array().and_then(|all| all.iter().map(text).collect());
        let expected = format!("an array of 1 to {MAX_CHOICES} texts that are not empty");
        match all.filter(|all| (1..=MAX_CHOICES).contains(&all.len())) {
            Some(all) => add(path, Format::Choice(all)),
            None => return Err(wrong(&path, &expected, &value)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: Value) -> Result<Option<OutputFormat>, RequestError> {
        let mut f = Fields::of_body(body.to_string().as_bytes())?;
        let format = OutputFormat::read(&mut f, UnknownParameters::Refuse)?;
        f.finish(UnknownParameters::Refuse)?;
        Ok(format)
    }

    fn format(body: Value) -> Option<Format> {
        read(body).unwrap().map(|f| f.format)
    }

    #[test]
    fn each_way_to_say_it() {
        let schema = json!({"type": "object"});
        let of_schema = Some(Format::JsonSchema(schema.clone()));
        assert_eq!(format(json!({"response_format": {"type": "text"}})), None);
        assert_eq!(format(json!({"response_format": {"type": "json_object"}})), Some(Format::JsonObject));
        let named = |inner: Value| json!({"response_format": {"type": "json_schema", "json_schema": inner}});
        assert_eq!(
            format(named(json!({"name": "a-1_B", "strict": true, "description": "d", "schema": schema}))),
            of_schema
        );
        assert_eq!(format(named(json!({"name": "a"}))), Some(Format::JsonObject));
        assert_eq!(format(json!({"guided_json": schema})), of_schema);
        assert_eq!(format(json!({"guided_json": schema.to_string()})), of_schema);
        assert_eq!(format(json!({"guided_regex": "a+"})), Some(Format::Regex("a+".into())));
        assert_eq!(
            format(json!({"guided_grammar": "start: \"a\""})),
            Some(Format::Grammar("start: \"a\"".into()))
        );
        assert_eq!(
            format(json!({"guided_choice": ["a", "b"]})),
            Some(Format::Choice(vec!["a".into(), "b".into()]))
        );
        assert_eq!(format(json!({"structured_outputs": {"regex": "x"}})), Some(Format::Regex("x".into())));
        assert_eq!(format(json!({"structured_outputs": {"json_object": true}})), Some(Format::JsonObject));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let named = |inner: Value| json!({"response_format": {"type": "json_schema", "json_schema": inner}});
        for (body, param) in [
            (json!({"response_format": "json"}), "response_format"),
            (json!({"response_format": {}}), "response_format.type"),
            (json!({"response_format": {"type": "yaml"}}), "response_format.type"),
            (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema"),
            (named(json!({"schema": {}})), "response_format.json_schema.name"),
            (named(json!({"name": "a b"})), "response_format.json_schema.name"),
            (named(json!({"name": "a", "schema": 3})), "response_format.json_schema.schema"),
            (named(json!({"name": "a", "extra": 3})), "response_format.json_schema.extra"),
            (json!({"guided_json": "{"}), "guided_json"),
            (json!({"guided_choice": []}), "guided_choice"),
            (json!({"guided_choice": ["a", ""]}), "guided_choice"),
            (json!({"guided_regex": "a", "guided_choice": ["a"]}), "guided_choice"),
            (json!({"response_format": {"type": "json_object"}, "guided_regex": "a"}), "guided_regex"),
            (json!({"structured_outputs": {"structural_tag": "x"}}), "structured_outputs.structural_tag"),
        ] {
            assert_eq!(read(body.clone()).unwrap_err().param.as_deref(), Some(param), "{body}");
        }
    }
}
