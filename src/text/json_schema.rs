//! A client's JSON schema before it is compiled: what cannot be honoured is refused by its keyword and place.
//!
//! The compiler (`llguidance`) refuses unknown demands too, but not always by name; and it reads a keyword of its own
//! (`x-guidance`) that could switch its checks off. References are rewritten where it does not read their escapes.

use serde_json::{Map, Value};

/// What a schema demands that cannot be honoured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct SchemaError {
    /// As "$.properties.name.pattern".
    pub place: String,
    pub problem: String,
}

/// Demands of the drafts that no grammar here can hold.
const UNSUPPORTED: &[&str] = &[
    "$dynamicAnchor",
    "$dynamicRef",
    "$recursiveRef",
    "contains",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "else",
    "if",
    "maxContains",
    "minContains",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
    "x-guidance",
];
/// Keywords whose value is a schema, a list of schemas, or schemas by name.
const OF_ONE: &[&str] = &["additionalItems", "additionalProperties", "items"];
const OF_LIST: &[&str] = &["allOf", "anyOf", "items", "oneOf", "prefixItems"];
const OF_NAMES: &[&str] = &["$defs", "definitions", "patternProperties", "properties"];
const FORMATS: &[&str] =
    &["date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid"];
/// Where definitions go whose names need escapes.
const RENAMED: &str = "__renamed";

/// The schema as it can be compiled.
///
/// # Errors
/// The first demand that cannot be honoured.
pub fn prepared(schema: &Value) -> Result<Map<String, Value>, SchemaError> {
    let fail = |problem: &str| SchemaError { place: "$".into(), problem: problem.into() };
    let mut root = match schema {
        Value::Object(map) => Value::Object(map.clone()),
        Value::Bool(true) => Value::Object(Map::new()),
        Value::Bool(false) => return Err(fail("nothing matches `false`")),
        _ => return Err(fail("a schema must be an object or a boolean")),
    };
    let mut moved = Map::new();
    walk(&mut root, schema, "$", &mut moved)?;
    // What was moved refers to others in turn.
    let mut definitions = Map::new();
    while let Some((name, mut definition)) = pop(&mut moved) {
        if definitions.contains_key(&name) {
            continue;
        }
        walk(&mut definition, schema, &format!("$.$defs.{name}"), &mut moved)?;
        definitions.insert(name, definition);
    }
    let Value::Object(mut root) = root else { return Err(fail("a schema must be an object or a boolean")) };
    if !definitions.is_empty() {
        root.insert(RENAMED.into(), definitions.into());
    }
    Ok(root)
}

fn pop(map: &mut Map<String, Value>) -> Option<(String, Value)> {
    let name = map.keys().next()?.clone();
    map.remove_entry(&name)
}

fn walk(
    at: &mut Value,
    root: &Value,
    place: &str,
    moved: &mut Map<String, Value>,
) -> Result<(), SchemaError> {
    let Value::Object(map) = at else { return Ok(()) };
    let fail = |keyword: &str, problem: String| SchemaError { place: format!("{place}.{keyword}"), problem };
    // Distinct items are a demand; that they need not be is none.
    if map.get("uniqueItems").is_some_and(|v| *v == Value::Bool(true)) {
        return Err(fail("uniqueItems", "the keyword `uniqueItems` is not supported".into()));
    }
    map.remove("uniqueItems");
    if let Some(keyword) = UNSUPPORTED.iter().find(|keyword| map.contains_key(**keyword)) {
        return Err(fail(keyword, format!("the keyword `{keyword}` is not supported")));
    }
    if let Some(format) = map.get("format").and_then(Value::as_str)
        && may_be_string(map)
        && !FORMATS.contains(&format)
    {
        return Err(fail(
            "format",
            format!("the format {format:?} is not supported; there are {}", FORMATS.join(", ")),
        ));
    }
    // Options that are different values exclude each other; the compiler sees that of other options only.
    if map.get("oneOf").and_then(Value::as_array).is_some_and(|options| are_distinct_values(options))
        && !map.contains_key("anyOf")
    {
        let options = map.remove("oneOf").unwrap_or_default();
        map.insert("anyOf".into(), options);
    }
    if let Some(reference) = map.get("$ref") {
        let reference =
            reference.as_str().ok_or_else(|| fail("$ref", "a reference must be a string".into()))?;
        if let Some(renamed) = local(reference, root, moved).map_err(|problem| fail("$ref", problem))? {
            map.insert("$ref".into(), renamed.into());
        }
    }
    for (keyword, value) in map.iter_mut() {
        let inner = |name: &str| format!("{place}.{keyword}{name}");
        match value {
            Value::Object(names) if OF_NAMES.contains(&keyword.as_str()) => {
                for (name, schema) in names.iter_mut() {
                    walk(schema, root, &inner(&format!(".{name}")), moved)?;
                }
            }
            Value::Array(all) if OF_LIST.contains(&keyword.as_str()) => {
                for (i, schema) in all.iter_mut().enumerate() {
                    walk(schema, root, &inner(&format!("[{i}]")), moved)?;
                }
            }
            Value::Object(_) if OF_ONE.contains(&keyword.as_str()) => walk(value, root, &inner(""), moved)?,
            _ => {}
        }
    }
    Ok(())
}

fn may_be_string(map: &Map<String, Value>) -> bool {
    match map.get("type") {
        Some(Value::String(kind)) => kind == "string",
        Some(Value::Array(kinds)) => kinds.iter().any(|kind| kind == "string"),
        _ => true,
    }
}

/// Options that are constants and enumerations without a value in common.
fn are_distinct_values(options: &[Value]) -> bool {
    let values_of = |option: &Value| match (option.get("const"), option.get("enum").and_then(Value::as_array))
    {
        (Some(value), None) => Some(vec![value.clone()]),
        (None, Some(all)) => Some(all.clone()),
        _ => None,
    };
    let Some(options) = options.iter().map(values_of).collect::<Option<Vec<_>>>() else { return false };
    let mut seen = std::collections::HashSet::new();
    options.iter().all(|values| {
        let own: std::collections::HashSet<String> = values.iter().map(Value::to_string).collect();
        own.into_iter().all(|value| seen.insert(value))
    })
}

/// Checks a reference into the schema itself (RFC 6901); another name for it where its own needs escapes.
fn local(reference: &str, root: &Value, moved: &mut Map<String, Value>) -> Result<Option<String>, String> {
    let Some(pointer) = reference.strip_prefix('#').filter(|p| p.is_empty() || p.starts_with('/')) else {
        return Err(format!(
            "only references into the schema itself (`#/…`) are followed, not {reference:?}"
        ));
    };
    let decoded = percent_decoded(pointer).ok_or_else(|| format!("{reference:?} is not a reference"))?;
    let target = root.pointer(&decoded).ok_or_else(|| format!("{reference:?} refers to nothing"))?;
    if decoded == pointer && !pointer.contains('~') {
        return Ok(None);
    }
    let name: String = pointer.bytes().map(|byte| format!("{byte:02x}")).collect();
    moved.insert(name.clone(), target.clone());
    Ok(Some(format!("#/{RENAMED}/{name}")))
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn refused(schema: Value) -> String {
        prepared(&schema).unwrap_err().to_string()
    }

    #[test]
    fn what_cannot_be_honoured_is_named_with_its_place() {
        let inner = json!({"type": "object", "properties": {"a": {"anyOf": [{"items": {"not": {}}}]}}});
        assert_eq!(refused(inner), "$.properties.a.anyOf[0].items.not: the keyword `not` is not supported");
        assert!(refused(json!({"uniqueItems": true})).contains("uniqueItems"));
        assert!(prepared(&json!({"uniqueItems": false})).unwrap().is_empty());
        assert!(refused(json!({"x-guidance": {"lenient": true}})).contains("x-guidance"));
        assert!(
            refused(json!({"type": "string", "format": "isbn"})).starts_with("$.format: the format \"isbn\"")
        );
        assert!(prepared(&json!({"type": "integer", "format": "int64"})).is_ok());
        assert!(refused(json!(false)).contains("false") && prepared(&json!(true)).unwrap().is_empty());
        assert!(refused(json!([1])).contains("must be an object"));
    }

    #[test]
    fn what_only_looks_like_a_demand_is_none() {
        let schema = json!({
            "properties": {"not": {"type": "string"}, "if": {"const": {"not": 1}}},
            "enum": [{"not": 1}], "default": {"contains": 1}, "examples": [{"if": 2}],
        });
        assert_eq!(Value::from(prepared(&schema).unwrap()), schema);
    }

    #[test]
    fn references_are_followed_inside_the_schema_and_nowhere_else() {
        let schema = json!({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"items": {"$ref": "#/$defs/c%20d"}}, "c d": {"type": "null"}}});
        let prepared = Value::from(prepared(&schema).unwrap());
        let first = prepared["$ref"].as_str().unwrap().strip_prefix('#').unwrap();
        let items = &prepared.pointer(first).unwrap()["items"];
        let second = items["$ref"].as_str().unwrap().strip_prefix('#').unwrap();
        assert_eq!(prepared.pointer(second).unwrap(), &json!({"type": "null"}));
        for reference in ["http://elsewhere/schema", "other.json#/a", "#name", "#/$defs/missing", "#/%zz"] {
            assert!(refused(json!({"$ref": reference})).starts_with("$.$ref: "), "{reference}");
        }
        // A definition that refers to itself is no loop here.
        let own = json!({"$ref": "#/$defs/a~0", "$defs": {"a~": {"items": {"$ref": "#/$defs/a~0"}}}});
        assert!(super::prepared(&own).is_ok());
    }
}
