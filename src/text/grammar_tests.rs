//! Grammars on a vocabulary of bytes: what they let through, what they force, and what they refuse.

use std::sync::Arc;

use serde_json::{Value, json};

use super::*;

const VOCAB: usize = 400;
/// `<|im_end|>` of the stand-in.
const END: u32 = VOCAB as u32 - 1;

fn grammars() -> Grammars {
    Grammars::new(&Arc::new(Tokenizer::stand_in(VOCAB).unwrap()), &[END]).unwrap()
}

fn allowed(at: &mut Match) -> Vec<u32> {
    let mut mask = vec![0; VOCAB.div_ceil(32) + 2];
    at.fill_mask(&mut mask).unwrap();
    assert_eq!(mask[VOCAB.div_ceil(32)..], [0, 0], "rows that are no tokens stay forbidden");
    (0..VOCAB as u32).filter(|t| mask[*t as usize / 32] >> (t % 32) & 1 == 1).collect()
}

/// Draws evenly from what may come; the text, and whether it came to an end.
fn walk(grammar: &Arc<Grammar>, seed: u64, forced: bool) -> (String, bool) {
    let tokenizer = Tokenizer::stand_in(VOCAB).unwrap();
    let (mut at, mut state, mut tokens) = (Match::begin(grammar), seed, Vec::new());
    while tokens.len() < 600 {
        if forced && !at.force(usize::MAX, &mut tokens).unwrap() {
            return (tokenizer.decode(&tokens).unwrap(), true);
        }
        let choices = allowed(&mut at);
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let token = choices[(state >> 33) as usize % choices.len()];
        if token == END {
            assert!(!at.accept(token).unwrap());
            return (tokenizer.decode(&tokens).unwrap(), true);
        }
        tokens.push(token);
        if !at.accept(token).unwrap() {
            return (tokenizer.decode(&tokens).unwrap(), true);
        }
    }
    (tokenizer.decode(&tokens).unwrap(), false)
}

fn refusal(part: Part) -> String {
    let shown = format!("{part:?}").chars().take(80).collect::<String>();
    match grammars().compile(Source::of(part), 0) {
        Ok(_) => format!("taken: {shown}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_a_schema_forces_is_forced_in_one_go() {
    let schema = json!({"type": "object", "properties": {"name": {"enum": ["x"]}, "n": {"type": "integer"}},
                        "required": ["name", "n"], "additionalProperties": false});
    let grammar = grammars().compile(Source::of(Part::JsonSchema(schema)), 0).unwrap();
    let mut at = Match::begin(&grammar);
    let mut tokens = Vec::new();
    assert!(at.force(usize::MAX, &mut tokens).unwrap());
    let text = Tokenizer::stand_in(VOCAB).unwrap().decode(&tokens).unwrap();
    assert_eq!(text, r#"{"name": "x", "n": "#);
    assert!(allowed(&mut at).iter().all(|t| b"-0123456789".contains(&(*t as u8))));
    // Fewer, where fewer are wanted.
    let (mut at, mut tokens) = (at.again(), Vec::new());
    assert!(at.force(3, &mut tokens).unwrap() && tokens.len() == 3);
    assert_eq!(allowed(&mut at), [u32::from(b'a')]);
    assert!(at.accept(u32::from(b'b')).is_err());
}

#[test]
fn every_walk_ends_in_what_was_asked_for() {
    let grammars = grammars();
    let regex = r"(ab|c){2,4}[0-9]?é";
    let choices = ["yes", "no", "maybe \"so\"\n", "日本", "<|im_end|>"];
    let lark = "start: WORD (\", \" WORD)*\nWORD: /[a-z]{1,3}/";
    let parts = [
        Part::Regex(regex.into()),
        Part::Choice(choices.map(String::from).to_vec()),
        Part::Lark(lark.into()),
        Part::JsonSchema(json!({"type": "array", "items": {"type": ["boolean", "null"]}, "maxItems": 3})),
    ];
    for (kind, part) in parts.into_iter().enumerate() {
        let grammar = grammars.compile(Source::of(part), 0).unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..60 {
            let (text, ended) = walk(&grammar, seed, seed % 2 == 0);
            assert!(ended, "{text:?}");
            let good = match kind {
                0 => {
                    text.ends_with('é')
                        && text.trim_end_matches('é').chars().all(|c| "abc0123456789".contains(c))
                }
                1 => choices.contains(&text.as_str()),
                2 => text
                    .split(", ")
                    .all(|w| (1..=3).contains(&w.len()) && w.bytes().all(|b| b.is_ascii_lowercase())),
                _ => serde_json::from_str::<Vec<Option<bool>>>(&text).is_ok_and(|v| v.len() <= 3),
            };
            assert!(good, "{kind}: {text:?}");
            seen.insert(text);
        }
        assert!(seen.len() >= 4, "{seen:?}");
    }
}

#[test]
fn parts_are_put_together_by_name() {
    let source = Source {
        start: "start: \"<\" @a \">\" @b".into(),
        parts: vec![
            ("a".into(), Part::Choice(vec!["1".into()])),
            ("b".into(), Part::JsonSchema(json!({"const": [true]}))),
        ],
    };
    let grammar = grammars().compile(source, 0).unwrap();
    assert_eq!(walk(&grammar, 1, true), ("<1>[true]".into(), true));
}

#[test]
fn what_cannot_be_honoured_is_refused_by_name() {
    let schema = |schema: Value| refusal(Part::JsonSchema(schema));
    for (refused, word) in [
        (schema(json!({"not": {}})), "`not`"),
        (schema(json!({"type": "string", "pattern": "(?=a)b"})), "look-ahead"),
        (schema(json!({"type": "stone"})), "stone"),
        (schema(json!({"enum": []})), "anyOf is empty"),
        (schema(json!({"$ref": "#"})), "nothing matches it"),
        (
            schema(json!({"oneOf": [{"type": "integer", "minimum": 3}, {"type": "integer", "maximum": 5}]})),
            "oneOf",
        ),
        (schema(json!({"minItems": -1})), "minItems"),
        (schema(json!({"type": "string", "minLength": 3, "maxLength": 2})), ""),
        (schema(json!({"type": "string", "pattern": "^(a{1000}){1000}$"})), ""),
        (refusal(Part::Regex("(".into())), "regex"),
        (refusal(Part::Lark("start: nothing".into())), "nothing"),
        (refusal(Part::Lark(String::new())), ""),
        (refusal(Part::Choice(Vec::new())), "nothing to choose"),
    ] {
        assert!(refused.contains(word) && !refused.starts_with("taken"), "{word}: {refused}");
        assert!(!refused.contains('\n') && !refused.contains("<state>") && refused.len() < 500, "{refused}");
    }
}

#[test]
fn large_and_hard_ones_are_refused_in_time() {
    let values: Vec<String> = (0..700_000).map(|i| format!("value {i}")).collect();
    assert!(refusal(Part::JsonSchema(json!({"enum": values}))).contains("bytes"));
    let deep = (0..120).fold(json!({"type": "null"}), |inner, _| json!({"items": inner, "type": "array"}));
    // Taken or not: it ends.
    let _ = grammars().compile(Source::of(Part::JsonSchema(deep)), 0);
    let alternatives: Vec<Value> =
        (0..2000).map(|i| json!({"properties": {format!("p{i}"): {"pattern": "(a|b)*c{99}"}}})).collect();
    let clock = crate::clock::Clock::system();
    let begun = clock.now();
    let _ = grammars().compile(Source::of(Part::JsonSchema(json!({"allOf": alternatives}))), 0);
    assert!(clock.now().since(begun) < Duration::from_secs(20), "far beyond the limit");
}

#[test]
fn compiled_grammars_are_kept_within_bounds() {
    let grammars = grammars();
    let choice = |i: usize| Source::of(Part::Choice(vec![format!("choice {i}")]));
    let first = grammars.compile(choice(0), 0).unwrap();
    assert!(Arc::ptr_eq(&first, &grammars.compile(choice(0), 0).unwrap()));
    assert!(!Arc::ptr_eq(&first, &grammars.compile(choice(0), 1).unwrap()), "another's is not shown");
    for i in 1..300 {
        grammars.compile(choice(i), 0).unwrap();
        if i % 30 == 0 {
            assert!(Arc::ptr_eq(&first, &grammars.compile(choice(0), 0).unwrap()), "what is used stays");
        }
    }
    let cache = grammars.cache.lock().unwrap();
    assert!(cache.bytes <= CACHE_BYTES && cache.all.len() < 257, "{}", cache.all.len());
    assert_eq!(cache.bytes, cache.all.values().map(|(g, _)| g.bytes()).sum::<usize>());
}

#[test]
fn what_a_pattern_excludes_comes_by_no_escape_either() {
    let tokenizer = Tokenizer::stand_in(VOCAB).unwrap();
    let backslash = tokenizer.id("\\").unwrap();
    let grammars = grammars();
    for pattern in [
        r#"^[^"\\]{3}$"#,
        "^[^ -~]{3}$",
        r"^[\x00-\x1f]{3}$",
        r"^[^\\/]{1,4}$",
        r#"^[^\n"]{3}$"#,
        r"^\S{3}$",
        "^.{3}$",
    ] {
        let schema = json!({"type": "string", "pattern": pattern});
        let grammar = grammars.compile(Source::of(Part::JsonSchema(schema)), 0).unwrap();
        let regex = regex::Regex::new(pattern).unwrap();
        for seed in 0..40u64 {
            let (mut at, mut state, mut tokens) = (Match::begin(&grammar), seed, Vec::new());
            loop {
                let choices = allowed(&mut at);
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let token = match choices.contains(&backslash) {
                    true => backslash,
                    false => choices[(state >> 33) as usize % choices.len()],
                };
                tokens.extend(Some(token).filter(|token| *token != END));
                if !at.accept(token).unwrap() {
                    break;
                }
            }
            let text: String = serde_json::from_str(&tokenizer.decode(&tokens).unwrap()).unwrap();
            assert!(regex.is_match(&text), "{pattern}: {text:?}");
        }
    }
}
