//! What structured output costs a token: the mask and the step of the grammar, on a vocabulary of 128k.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use hashwatt::clock::Clock;
use hashwatt::text::grammar::{Grammar, Grammars, Match, Part, Source};
use hashwatt::text::tokenizer::{Tokenizer, stand_in_json};
use serde_json::{Value, json};

use crate::Report;

const VOCAB: usize = 128_000;
const ROUNDS: u64 = 9;
const ANSWERS: u64 = 12;
const MOST_TOKENS: usize = 400;
/// How byte-level vocabularies write a space.
const SPACE: char = 'Ġ';

fn random(state: &mut u64) -> usize {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) as usize
}

fn letter(state: &mut u64) -> char {
    match random(state) % 24 {
        0 => char::from(b'0' + (random(state) % 10) as u8),
        1 => [',', '.', ':', '"', '{', '}', '[', ']', '-', '_'][random(state) % 10],
        n => char::from(b"etaoinshrdlcumwfgypbvk"[n - 2]),
    }
}

/// The stand-in's bytes and special tokens, and between them words as long and as varied as a real vocabulary's, every
/// second one behind a space.
fn tokenizer() -> Tokenizer {
    let mut json = stand_in_json(VOCAB).expect("a vocabulary");
    let vocab = json["model"]["vocab"].as_object_mut().expect("a vocabulary");
    let names: Vec<(String, Value)> = std::mem::take(vocab).into_iter().collect();
    let (mut state, mut seen) = (7, HashSet::new());
    for (name, id) in names {
        let mut word = name.clone();
        while name.starts_with(SPACE)
            && name.chars().nth(1) == Some('w')
            && (word == name || !seen.insert(word.clone()))
        {
            let length = 2 + random(&mut state) % 4 + random(&mut state) % 5;
            word = (0..length).map(|_| letter(&mut state)).collect();
            if random(&mut state).is_multiple_of(2) {
                word.insert(0, SPACE);
            }
        }
        vocab.insert(word, id);
    }
    Tokenizer::from_json("words", json.to_string().as_bytes()).expect("a tokenizer")
}

/// As an application asks: a list of records with texts, numbers, dates and choices.
fn schema() -> Value {
    let text = |most: usize| json!({"type": "string", "maxLength": most});
    json!({"type": "object", "additionalProperties": false, "required": ["tickets"], "properties": {"tickets": {
        "type": "array", "minItems": 3, "maxItems": 6, "items": {
            "type": "object", "additionalProperties": false,
            "required": ["id", "title", "state", "due", "hours", "tags", "note"],
            "properties": {
                "id": {"type": "integer", "minimum": 1}, "title": text(60),
                "state": {"enum": ["open", "waiting", "closed"]}, "due": {"type": "string", "format": "date"},
                "hours": {"type": "number", "minimum": 0},
                "tags": {"type": "array", "items": text(12), "maxItems": 4},
                "note": {"anyOf": [text(80), {"type": "null"}]}}}}}})
}

/// Time of an answer's masks and steps, the longest of them, and its tokens.
fn answer(grammar: &Arc<Grammar>, clock: &Clock, mut state: u64) -> (Duration, Duration, usize) {
    let (mut time, mut most, mut tokens) = (Duration::ZERO, Duration::ZERO, 0);
    let (mut at, mut mask, mut forced) = (Match::begin(grammar), vec![0u32; VOCAB.div_ceil(32)], Vec::new());
    while tokens < MOST_TOKENS {
        // What an engine's thread does for a step: a mask, and, for the token that is drawn, what it forces.
        mask.fill(0);
        let begun = clock.now();
        at.fill_mask(&mut mask).expect("a mask");
        let masked = clock.now().since(begun);
        let set: Vec<usize> = (0..VOCAB).filter(|t| mask[t / 32] >> (t % 32) & 1 == 1).collect();
        let token = set[random(&mut state) % set.len()] as u32;
        forced.clear();
        let begun = clock.now();
        let goes_on = at.accept(token).expect("an allowed token")
            && at.force(usize::MAX, &mut forced).expect("forced tokens");
        let step = masked + clock.now().since(begun);
        (time, most, tokens) = (time + step, most.max(step), tokens + 1 + forced.len());
        if !goes_on {
            break;
        }
    }
    (time, most, tokens)
}

pub fn run(report: &mut Report) {
    let tokenizer = Arc::new(tokenizer());
    let clock = Clock::system();
    let since = |begun| clock.now().since(begun).as_secs_f64() * 1e3;
    let begun = clock.now();
    let grammars = Grammars::new(&tokenizer, &[VOCAB as u32 - 1]).expect("grammars");
    report.row("making a vocabulary of 128k ready", "ms", &[since(begun)], None);
    for (name, part, bar) in [
        ("a schema", Part::JsonSchema(schema()), Some(("≤", 50.0))),
        ("any JSON object", Part::json_object(), None),
    ] {
        let begun = clock.now();
        let grammar = grammars.compile(Source::of(part), 0).expect("a grammar");
        report.row(&format!("{name}: compiling"), "ms", &[since(begun)], None);
        let (mut means, mut longest) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let all: Vec<_> = (0..ANSWERS).map(|i| answer(&grammar, &clock, round * 1000 + i)).collect();
            let tokens: usize = all.iter().map(|a| a.2).sum();
            let time: Duration = all.iter().map(|a| a.0).sum();
            means.push(time.as_secs_f64() * 1e6 / tokens as f64);
            longest.push(all.iter().map(|a| a.1).max().unwrap_or_default().as_secs_f64() * 1e6);
        }
        report.row(&format!("{name}: a token"), "µs", &means, bar);
        report.row(&format!("{name}: the longest step"), "µs", &longest, None);
    }
}
