//! A client's JSON schema before it is compiled: what cannot be honoured is refused by its keyword and place.
//!
//! The compiler (`llguidance`) refuses unknown demands too, but not always by name; and it reads a keyword of its own
//! (`x-guidance`) that could switch its checks off. References are rewritten where it does not read their escapes.

use serde_json::{Map, Value};

use super::json_pattern::{is_unwritable, writable};

/// What a schema demands that cannot be honoured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct SchemaError {
    /// As "$.properties.name.pattern".
    pub place: String,
    pub problem: String,
}

/// Of a `multipleOf`: 10,007 takes a fifth of a second to compile, 99,991 more than a second, and memory without end.
const MAX_MULTIPLE: u64 = 10_000;

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
/// Patterns of the formats whose own would let through what no calendar has, or what is longer than readers take.
const DATE: &str = "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))";
const TIME: &str =
    "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])";
const DURATION: &str = "P(?:[0-9]{1,4}W|[0-9]{1,4}D(?:T[0-9]{1,2}H(?:[0-9]{1,2}M(?:[0-9]{1,2}S)?)?)?|T(?:[0-9]{1,2}H(?:[0-9]{1,2}M(?:[0-9]{1,2}S)?)?|[0-9]{1,2}M(?:[0-9]{1,2}S)?|[0-9]{1,2}S))";
const EMAIL: &str = "[A-Za-z0-9]{1,16}(?:[._+-][A-Za-z0-9]{1,12}){0,3}@[A-Za-z0-9]{1,20}(?:-[A-Za-z0-9]{1,10})?(?:\\.[A-Za-z0-9]{1,20}){0,2}\\.[A-Za-z]{2,12}";
const HOSTNAME: &str =
    "[A-Za-z0-9]{1,20}(?:-[A-Za-z0-9]{1,10}){0,2}(?:\\.[A-Za-z0-9]{1,20}(?:-[A-Za-z0-9]{1,10}){0,2}){0,3}";
/// Whole numbers beyond are rounded on the way.
const MOST_EXACT: f64 = 9_007_199_254_740_992.0;
const MAX_PATTERN: usize = 4 << 10;
/// Of all objects together: each is held against all others.
const MAX_PATTERN_PROPERTIES: usize = 64;
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
    let patterns = count_of(schema, "patternProperties");
    if patterns > MAX_PATTERN_PROPERTIES {
        return Err(fail(&format!(
            "{patterns} patternProperties, at most {MAX_PATTERN_PROPERTIES} are taken"
        )));
    }
    let mut multiples = Vec::new();
    multiples_of(schema, &mut multiples);
    // Demands that meet are one of their common multiple.
    let meet = count_of(schema, "$ref") + count_of(schema, "allOf") > 0;
    let largest = match meet {
        true => multiples.iter().fold(1u64, |all, one| all.saturating_mul(*one)),
        false => multiples.iter().copied().max().unwrap_or(1),
    };
    if largest > MAX_MULTIPLE {
        return Err(fail(&format!(
            "multipleOf: numbers of up to {MAX_MULTIPLE} without their point are kept to, where they meet their product"
        )));
    }
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
    // Arrays are written the later way by now.
    root.remove("$schema");
    if !definitions.is_empty() {
        root.insert(RENAMED.into(), definitions.into());
    }
    Ok(root)
}

/// The digits of each different `multipleOf`: a grammar has so many states, and takes time and memory with their square.
fn multiples_of(value: &Value, found: &mut Vec<u64>) {
    let digits = |n: &serde_json::Number| {
        let text = n.as_f64().unwrap_or_default().abs().to_string().replace('.', "");
        text.parse::<u64>().unwrap_or(u64::MAX)
    };
    match value {
        Value::Array(all) => all.iter().for_each(|v| multiples_of(v, found)),
        Value::Object(map) => {
            if let Some(n) = map.get("multipleOf").and_then(Value::as_number).map(digits)
                && !found.contains(&n)
            {
                found.push(n);
            }
            map.values().for_each(|v| multiples_of(v, found));
        }
        _ => {}
    }
}

/// Members of all objects of this name; of one that is no object, itself.
fn count_of(value: &Value, name: &str) -> usize {
    match value {
        Value::Array(all) => all.iter().map(|v| count_of(v, name)).sum(),
        Value::Object(map) => {
            let own = map.get(name).map_or(0, |v| v.as_object().map_or(1, Map::len));
            own + map.values().map(|v| count_of(v, name)).sum::<usize>()
        }
        _ => 0,
    }
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
    if place != "$" && map.get("$id").is_some() {
        return Err(fail("$id", "names inside a schema are not followed".into()));
    }
    for keyword in
        ["const", "enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"]
    {
        if map.get(keyword).is_some_and(|value| !is_exact(value)) {
            return Err(fail(keyword, "whole numbers beyond 2^53 are not kept to".into()));
        }
    }
    if map.get("pattern").and_then(Value::as_str).is_some_and(|p| p.len() > MAX_PATTERN) {
        return Err(fail("pattern", format!("at most {MAX_PATTERN} bytes of a pattern are taken")));
    }
    if let Some(keyword) = ["const", "enum"].into_iter().find(|k| map.get(*k).is_some_and(has_unwritable)) {
        return Err(fail(keyword, "control characters that JSON writes as \\u are not kept to".into()));
    }
    whole_bounds(map);
    rewrite_patterns(map).map_err(|(keyword, problem)| fail(keyword, problem))?;
    if let Some(keyword) = lost_bound(map) {
        return Err(fail(
            keyword,
            "bounds so close together are kept to only where they are inclusive".into(),
        ));
    }
    if let Some(problem) = too_few_names(map) {
        return Err(fail("minProperties", problem));
    }
    rewrite_items(map);
    rewrite_format(map);
    // Options that are different values exclude each other; the compiler sees that of other options only.
    if map.get("oneOf").and_then(Value::as_array).is_some_and(|options| are_distinct_values(options))
        && !map.contains_key("anyOf")
        && !root.to_string().contains("/oneOf/")
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
        let own: std::collections::HashSet<String> = values.iter().map(canonical).collect();
        own.into_iter().all(|value| seen.insert(value))
    })
}

/// A value so written that equal ones are written alike.
fn canonical(value: &Value) -> String {
    match value {
        Value::Number(n) => n.as_f64().unwrap_or_default().to_string(),
        Value::Array(all) => format!("[{}]", all.iter().map(canonical).collect::<Vec<_>>().join(",")),
        Value::Object(map) => {
            let mut members: Vec<String> =
                map.iter().map(|(k, v)| format!("{}:{}", Value::from(k.as_str()), canonical(v))).collect();
            members.sort();
            format!("{{{}}}", members.join(","))
        }
        other => other.to_string(),
    }
}

fn is_exact(value: &Value) -> bool {
    match value {
        Value::Number(n) => n.as_f64().is_some_and(|x| x.abs() < MOST_EXACT || x.fract() != 0.0),
        Value::Array(all) => all.iter().all(is_exact),
        Value::Object(map) => map.values().all(is_exact),
        _ => true,
    }
}

/// Whether a text in it, or a name, has a character that no JSON string here is written with.
fn has_unwritable(value: &Value) -> bool {
    let is = |text: &str| text.chars().any(is_unwritable);
    match value {
        Value::String(text) => is(text),
        Value::Array(all) => all.iter().any(has_unwritable),
        Value::Object(map) => map.iter().any(|(name, value)| is(name) || has_unwritable(value)),
        _ => false,
    }
}

/// Bounds that are whole numbers written as 3.0.
fn whole_bounds(map: &mut Map<String, Value>) {
    for keyword in ["minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"] {
        let whole = map
            .get(keyword)
            .filter(|v| v.is_f64())
            .and_then(|v| v.as_f64().filter(|x| x.fract() == 0.0 && (0.0..=MOST_EXACT).contains(x)))
            .map(|x| x as u64);
        whole.into_iter().for_each(|whole| drop(map.insert(keyword.into(), whole.into())));
    }
}

/// Patterns of texts and of names, each without what no text has.
fn rewrite_patterns(map: &mut Map<String, Value>) -> Result<(), (&'static str, String)> {
    if let Some(Value::String(pattern)) = map.get_mut("pattern")
        && let Some(rewritten) = writable(pattern).map_err(|problem| ("pattern", problem))?
    {
        *pattern = rewritten;
    }
    if let Some(Value::Object(all)) = map.get_mut("patternProperties") {
        let mut rewritten = Map::new();
        for (pattern, schema) in std::mem::take(all) {
            let changed = writable(&pattern).map_err(|problem| ("patternProperties", problem))?;
            if rewritten.insert(changed.unwrap_or(pattern), schema).is_some() {
                return Err(("patternProperties", "two patterns match the same names".into()));
            }
        }
        *all = rewritten;
    }
    Ok(())
}

/// An exclusive bound that the compiler takes for an inclusive one: a whole number, with the other bound between it and
/// the next (llguidance 1.9.1, `rx_float_range`).
fn lost_bound(map: &Map<String, Value>) -> Option<&'static str> {
    if map.get("type").is_some_and(|kind| kind == "integer") {
        return None;
    }
    let number = |keyword: &str| map.get(keyword).and_then(Value::as_f64);
    let low = [number("minimum"), number("exclusiveMinimum")].into_iter().flatten().reduce(f64::max)?;
    let high = [number("maximum"), number("exclusiveMaximum")].into_iter().flatten().reduce(f64::min)?;
    let exclusive =
        ["exclusiveMinimum", "exclusiveMaximum"].into_iter().find(|keyword| map.contains_key(*keyword))?;
    (low.trunc() == high.trunc()).then_some(exclusive)
}

/// The compiler counts members, and would count one name twice.
fn too_few_names(map: &Map<String, Value>) -> Option<String> {
    let least = map.get("minProperties").and_then(Value::as_u64)?;
    let required = map.get("required").and_then(Value::as_array).map_or(0, Vec::len) as u64;
    let open = map.get("additionalProperties").is_none_or(|v| *v != Value::Bool(false));
    let most = required + u64::from(open && !map.contains_key("patternProperties"));
    (least > most).then(|| format!("more than {most} members are not kept to here: require them by name"))
}

/// Arrays as drafts before 2020-12 wrote them.
fn rewrite_items(map: &mut Map<String, Value>) {
    let additional = map.remove("additionalItems");
    if map.get("items").is_some_and(Value::is_array)
        && let Some(first) = map.remove("items")
    {
        map.insert("prefixItems".into(), first);
        if let Some(rest) = additional {
            map.insert("items".into(), rest);
        }
    }
}

/// Dates and times by patterns of ours; beside another pattern both hold.
fn rewrite_format(map: &mut Map<String, Value>) {
    let pattern = match map.get("format").and_then(Value::as_str).filter(|_| may_be_string(map)) {
        Some("date") => format!("^(?:{DATE})$"),
        Some("time") => format!("^(?:{TIME})$"),
        Some("date-time") => format!("^(?:{DATE})T(?:{TIME})$"),
        Some("email") => format!("^(?:{EMAIL})$"),
        Some("hostname") => format!("^(?:{HOSTNAME})$"),
        Some("duration") => format!("^(?:{DURATION})$"),
        _ => return,
    };
    map.remove("format");
    if !map.contains_key("pattern") {
        map.insert("pattern".into(), pattern.into());
        return;
    }
    let all = map.entry("allOf").or_insert_with(|| Value::Array(Vec::new()));
    if let Value::Array(all) = all {
        all.push(serde_json::json!({"pattern": pattern}));
    }
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
        for (keyword, value) in [("const", json!("a\u{1}b")), ("enum", json!([{"\u{7f}": 1}]))] {
            assert!(refused(json!({keyword: value})).starts_with(&format!("$.{keyword}: control")));
        }
        assert!(refused(json!({"pattern": "^\\x1b$"})).starts_with("$.pattern: "));
        let alike = json!({"patternProperties": {"^[^\"]$": {}, "^[^\"\\x01]$": {}}});
        assert!(refused(alike).starts_with("$.patternProperties: "));
        let whole = prepared(&json!({"maxLength": 3.0, "pattern": "^[^\"]$"})).unwrap();
        assert_eq!(whole["maxLength"], json!(3));
        assert_ne!(whole["pattern"], "^[^\"]$");
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
