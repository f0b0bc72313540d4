//! What a `tokenizer.json` may not ask for: work and memory beyond any proportion to its size. Few bytes can say that a
//! pattern is repeated a billion times, or that each character becomes a thousand, and again.
//!
//! In: the file as JSON, before the crate sees it; out: what is too much, by its key.

use serde_json::Value;

/// Bytes of a pattern: real ones have some hundreds.
const LONGEST_PATTERN: usize = 16 << 10;
/// Product of all counts of a pattern, which may stand inside one another: real ones have one or two, of 3 or 4.
const MOST_REPETITIONS: u64 = 1 << 12;
/// How much longer replacements may make a text, one after another: a space becomes three bytes in real ones.
const MOST_GROWTH: u64 = 1 << 12;
/// Tokens around a text, and ids of each.
const MOST_AROUND: usize = 64;

/// # Errors
/// What is too much, and where.
pub fn check(json: &Value) -> Result<(), String> {
    for key in ["normalizer", "pre_tokenizer", "decoder", "post_processor"] {
        let mut growth = 1;
        let found = json.get(key).map_or(Ok(()), |part| check_part(part, &mut growth));
        found.map_err(|problem| format!("{key}: {problem}"))?;
    }
    Ok(())
}

/// Of a step, and of all inside it. `growth`: of the steps so far.
fn check_part(part: &Value, growth: &mut u64) -> Result<(), String> {
    match part {
        Value::Object(map) => {
            if let Some(pattern) = map.get("Regex").and_then(Value::as_str) {
                check_pattern(pattern)?;
            }
            if let (Some(pattern), Some(content)) =
                (map.get("pattern"), map.get("content").and_then(Value::as_str))
            {
                *growth = growth.saturating_mul(growth_of(pattern, content));
                if *growth > MOST_GROWTH {
                    return Err(format!(
                        "replacements make a text up to {growth} times as long; {MOST_GROWTH} is the most"
                    ));
                }
            }
            for key in ["single", "pair"] {
                if let Some(pieces) = map.get(key).and_then(Value::as_array) {
                    check_template(pieces).map_err(|problem| format!("{key}: {problem}"))?;
                }
            }
            if let Some(tokens) = map.get("special_tokens").and_then(Value::as_object)
                && tokens.values().any(|t| t["ids"].as_array().is_some_and(|ids| ids.len() > MOST_AROUND))
            {
                return Err(format!("special_tokens: one has more than {MOST_AROUND} ids"));
            }
            map.values().try_for_each(|inside| check_part(inside, growth))
        }
        Value::Array(all) => all.iter().try_for_each(|inside| check_part(inside, growth)),
        _ => Ok(()),
    }
}

/// How many times as long a text is at most once `content` is in the place of every match.
fn growth_of(pattern: &Value, content: &str) -> u64 {
    let times = match pattern.get("String").and_then(Value::as_str) {
        Some(text) if !text.is_empty() => content.len().div_ceil(text.len()),
        // It may match nothing, between any two characters.
        _ => content.len() + 1,
    };
    times.max(1) as u64
}

fn check_pattern(pattern: &str) -> Result<(), String> {
    if pattern.len() > LONGEST_PATTERN {
        return Err(format!("a pattern has {} bytes; {LONGEST_PATTERN} is the most", pattern.len()));
    }
    let counts = pattern.match_indices('{').filter_map(|(at, _)| {
        let inside = &pattern[at + 1..];
        let inside = &inside[..inside.find('}')?];
        let is_count = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || b == b',' || b == b' ');
        // One too long for a number is more than enough.
        let number = |text: &str| text.trim().parse().unwrap_or(u64::MAX);
        let numbers = inside.split(',').filter(|text| !text.trim().is_empty()).map(number);
        numbers.max().filter(|_| is_count(inside))
    });
    let repetitions = counts.fold(1u64, |product, count| product.saturating_mul(count.max(1)));
    if repetitions > MOST_REPETITIONS {
        return Err(format!("a pattern repeats {repetitions} times; {MOST_REPETITIONS} is the most"));
    }
    Ok(())
}

/// What is put around a text, which is in it once.
fn check_template(pieces: &[Value]) -> Result<(), String> {
    if pieces.len() > MOST_AROUND {
        return Err(format!("has {} pieces; {MOST_AROUND} is the most", pieces.len()));
    }
    let mut texts: Vec<String> =
        pieces.iter().filter_map(|piece| piece.get("Sequence")).map(|text| text["id"].to_string()).collect();
    texts.sort_unstable();
    match texts.windows(2).find(|two| two[0] == two[1]) {
        Some(two) => Err(format!("has the text {} twice", two[0])),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_real_files_have_is_taken() {
        let replace =
            |content: &str| json!({"type": "Replace", "pattern": {"String": " "}, "content": content});
        let split = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)";
        let around = json!([{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                            {"Sequence": {"id": "B", "type_id": 1}}]);
        let file = json!({
            "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace("▁")]},
            "pre_tokenizer": {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated"},
            "decoder": {"type": "Sequence", "decoders": [replace("▁"), replace("")]},
            "post_processor": {"type": "TemplateProcessing", "single": around, "pair": around,
                               "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        });
        check(&file).unwrap();
    }

    #[test]
    fn what_grows_without_end_is_refused_by_its_key() {
        let bomb = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "a".repeat(100)});
        let empty = json!({"type": "Replace", "pattern": {"Regex": ""}, "content": "a".repeat(5000)});
        let text = json!({"Sequence": {"id": "A", "type_id": 0}});
        let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}});
        for (key, part, wanted) in [
            ("normalizer", json!({"type": "Sequence", "normalizers": [bomb, bomb]}), "times as long"),
            ("decoder", empty, "times as long"),
            ("pre_tokenizer", split("(?:(?:(?=a){100}){100}){100}"), "repeats 1000000 times"),
            ("pre_tokenizer", split("a{99999999999999999999}"), "repeats"),
            ("pre_tokenizer", split(&"a".repeat(1 << 20)), "1048576 bytes"),
            ("post_processor", json!({"single": [text, text]}), "twice"),
            ("post_processor", json!({"pair": vec![json!({}); 65]}), "65 pieces"),
            ("post_processor", json!({"special_tokens": {"a": {"ids": vec![1; 65]}}}), "more than 64 ids"),
        ] {
            let error = check(&json!({key: part})).unwrap_err();
            assert!(error.starts_with(key), "{error}");
            assert!(error.contains(wanted), "{error}");
        }
    }
}
