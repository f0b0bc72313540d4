//! Which tokens a grammar lets come next, where most of a vocabulary is plain text.
//!
//! Inside a JSON string or any other free text nearly every token may come, and what decides is only how many
//! characters are left. So the tokens of plain characters are kept as masks by their length: how far plain text may go
//! from where a grammar is, is found on the states of its lexer, a few hundred bytes a state and each state once an
//! answer. The other tokens (quotes, escapes, control characters, parts of characters) are walked one by one, as every
//! token is where plain characters are not all alike. Knows llguidance's recognizer, no grammar.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use llguidance::derivre::StateID;
use llguidance::earley::{BiasComputer, ParserRecognizer};
use llguidance::toktrie::{Recognizer, SimpleVob, TokEnv, TokTrie};

/// Longest token, in characters, that has a mask: longer ones are few, and are walked.
const MOST_CHARS: usize = 32;
/// A plain character of one byte, which stands for all of them where they are alike.
const ANY: u8 = b'a';

fn is_plain(c: char) -> bool {
    !matches!(c, '\0'..='\x1f' | '"' | '\\' | '\x7f')
}

/// The bytes that go on from each first byte of a character of several: all UTF-8 there is.
const SEVERAL: [(std::ops::RangeInclusive<u8>, &[std::ops::RangeInclusive<u8>]); 8] = [
    (0xc2..=0xdf, &[0x80..=0xbf]),
    (0xe0..=0xe0, &[0xa0..=0xbf, 0x80..=0xbf]),
    (0xe1..=0xec, &[0x80..=0xbf, 0x80..=0xbf]),
    (0xed..=0xed, &[0x80..=0x9f, 0x80..=0xbf]),
    (0xee..=0xef, &[0x80..=0xbf, 0x80..=0xbf]),
    (0xf0..=0xf0, &[0x90..=0xbf, 0x80..=0xbf, 0x80..=0xbf]),
    (0xf1..=0xf3, &[0x80..=0xbf, 0x80..=0xbf, 0x80..=0xbf]),
    (0xf4..=0xf4, &[0x80..=0x8f, 0x80..=0xbf, 0x80..=0xbf]),
];

/// A vocabulary's tokens by what they are made of.
pub struct Words {
    tokens: TokEnv,
    /// At `n`: the tokens of 1 to `n` plain characters.
    upto: Vec<SimpleVob>,
    /// All tokens of plain characters.
    plain: SimpleVob,
    /// Those of more than [`MOST_CHARS`].
    long: TokTrie,
    /// All that are not of plain characters alone.
    others: TokTrie,
}

impl Words {
    pub fn new(tokens: &TokEnv) -> Words {
        let trie = tokens.tok_trie();
        let none = trie.alloc_token_set();
        let (mut upto, mut long, mut others) = (vec![none.clone(); MOST_CHARS + 1], none.clone(), none);
        for id in 0..trie.vocab_size() as u32 {
            let text = std::str::from_utf8(trie.token(id)).ok().filter(|text| text.chars().all(is_plain));
            match text.map(|text| text.chars().count()) {
                Some(0) => {}
                Some(chars) if chars <= MOST_CHARS => upto[chars].allow_token(id),
                Some(_) => long.allow_token(id),
                None => others.allow_token(id),
            }
        }
        for n in 1..=MOST_CHARS {
            let (shorter, this) = upto.split_at_mut(n);
            this[0].or(&shorter[n - 1]);
        }
        let mut plain = upto[MOST_CHARS].clone();
        plain.or(&long);
        Words { upto, plain, long: trie.filter(&long), others: trie.filter(&others), tokens: tokens.clone() }
    }
}

/// What one more plain character does to a state of the lexer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Each leads to this state, within the lexeme.
    To(StateID),
    /// None may come.
    Refused,
    /// They differ.
    Mixed,
}

/// How far plain text may go.
#[derive(Debug, PartialEq, Eq)]
enum Reach {
    Ever,
    /// So many characters, whatever they are, and none more.
    Exactly(usize),
    /// So many at least.
    AtLeast(usize),
    /// That depends on the characters.
    Mixed,
}

/// The masks of one answer, whose lexer numbers its own states.
pub struct Masks {
    words: Arc<Words>,
    /// Of states whose steps do not depend on what the parser knows beside.
    steps: Mutex<HashMap<StateID, Step>>,
}

impl Masks {
    pub fn new(words: Arc<Words>) -> Masks {
        Masks { words, steps: Mutex::default() }
    }

    fn reach(&self, at: &mut ParserRecognizer<'_>) -> Reach {
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        for chars in 0..MOST_CHARS {
            let state = at.lexer_state();
            let step = steps.get(&state).copied().unwrap_or_else(|| {
                let step = step(at);
                // A refusal may be the parser's.
                if step != Step::Refused {
                    steps.insert(state, step);
                }
                step
            });
            match step {
                Step::To(next) if next == state => return Reach::Ever,
                Step::To(_) if at.try_push_byte(ANY) => {}
                Step::Refused => return Reach::Exactly(chars),
                _ if chars == 0 => return Reach::Mixed,
                _ => return Reach::AtLeast(chars),
            }
        }
        Reach::AtLeast(MOST_CHARS)
    }
}

/// The state behind one more byte.
fn peek(at: &mut ParserRecognizer<'_>, byte: u8) -> Option<StateID> {
    at.try_push_byte(byte).then(|| {
        let state = at.lexer_state();
        at.pop_bytes(1);
        state
    })
}

/// Tries each plain character, on the lexer's states.
fn step(at: &mut ParserRecognizer<'_>) -> Step {
    // Where a lexeme ends, a state of the lexer is not all that the future depends on.
    let rows = |at: &mut ParserRecognizer<'_>| (at.stats_mut().rows, at.stats_mut().cached_rows);
    let before = rows(at);
    let to = peek(at, ANY);
    let alike = (0..0x80).filter(|b| is_plain(char::from(*b))).all(|byte| peek(at, byte) == to)
        && match to {
            None => (0xc2..=0xf4).all(|first| peek(at, first).is_none()),
            Some(to) => {
                let mut seen = Vec::new();
                SEVERAL.iter().all(|(first, rest)| first.clone().all(|b| leads(at, b, rest, to, &mut seen)))
            }
        };
    match (alike && rows(at) == before, to) {
        (false, _) => Step::Mixed,
        (true, None) => Step::Refused,
        (true, Some(to)) => Step::To(to),
    }
}

/// What is known to lead where it should: a state, and the bytes that go on from it.
type Seen = Vec<(StateID, &'static [std::ops::RangeInclusive<u8>])>;

/// Whether a byte, and whatever may go on from it, leads to this state.
fn leads(
    at: &mut ParserRecognizer<'_>,
    byte: u8,
    rest: &'static [std::ops::RangeInclusive<u8>],
    to: StateID,
    seen: &mut Seen,
) -> bool {
    let Some((next, beyond)) = rest.split_first() else { return peek(at, byte) == Some(to) };
    if !at.try_push_byte(byte) {
        return false;
    }
    let here = (at.lexer_state(), rest);
    let all = seen.contains(&here) || next.clone().all(|b| leads(at, b, beyond, to, seen));
    if all {
        seen.push(here);
    }
    at.pop_bytes(1);
    all
}

impl BiasComputer for Masks {
    fn compute_bias(&self, at: &mut ParserRecognizer<'_>, start: &[u8]) -> SimpleVob {
        let words = &self.words;
        let mut set = self.trie().alloc_token_set();
        let reach = match start.is_empty() {
            true => {
                at.trie_started("plain text");
                let reach = self.reach(at);
                at.trie_finished();
                reach
            }
            false => Reach::Mixed,
        };
        match reach {
            Reach::Ever => set.or(&words.plain),
            Reach::Exactly(chars) => set.or(&words.upto[chars]),
            Reach::AtLeast(MOST_CHARS) => {
                set.or(&words.upto[MOST_CHARS]);
                words.long.add_bias(at, &mut set, &[]);
            }
            Reach::AtLeast(_) | Reach::Mixed => {
                self.trie().add_bias(at, &mut set, start);
                return set;
            }
        }
        words.others.add_bias(at, &mut set, &[]);
        set
    }

    fn trie(&self) -> &TokTrie {
        self.words.tokens.tok_trie()
    }
}

#[cfg(test)]
mod tests {
    //! The crate's own way, which walks every token, is what the masks are held to.

    use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
    use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokRxInfo};
    use llguidance::{Matcher, ParserFactory, TokenParser};
    use serde_json::json;

    use super::*;

    fn random(state: &mut u64) -> usize {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 33) as usize
    }

    /// Every byte, and words of up to forty characters of one to four bytes, some with what is not plain.
    fn vocabulary() -> TokEnv {
        const LETTERS: [&str; 20] = [
            "a", "b", "e", "x", "0", "7", "-", ",", " ", "\"", "\\", "\n", "\u{7f}", "é", "ß", "€", "日",
            "🚀", "\u{7ff}", "}",
        ];
        let mut words: Vec<Vec<u8>> = (0..=255).map(|b| vec![b]).collect();
        let mut state = 7;
        while words.len() < 4000 {
            let plain = random(&mut state).is_multiple_of(2);
            let longest = if random(&mut state).is_multiple_of(40) { 40 } else { 8 };
            let length = 2 + random(&mut state) % longest;
            let letter = |state: &mut u64| LETTERS[random(state) % if plain { 9 } else { LETTERS.len() }];
            let word: String = (0..length).map(|_| letter(&mut state)).collect();
            // Now and then a character is cut.
            let cut = usize::from(random(&mut state).is_multiple_of(8)).min(word.len() - 1);
            words.push(word.as_bytes()[cut..].to_vec());
        }
        words.sort();
        words.dedup();
        words.push(b"\xff<end>".to_vec());
        let info = TokRxInfo::new(words.len() as u32, words.len() as u32 - 1);
        Arc::new(ApproximateTokEnv::new(TokTrie::from(&info, &words)))
    }

    fn schema(schema: serde_json::Value) -> TopLevelGrammar {
        TopLevelGrammar::from_json_schema(schema)
    }

    fn lark(text: &str) -> TopLevelGrammar {
        TopLevelGrammar { grammars: vec![GrammarWithLexer::from_lark(text.into())], max_tokens: None }
    }

    #[test]
    fn masks_are_those_of_every_token_walked() {
        let tokens = vocabulary();
        let factory = ParserFactory::new(&tokens, InferenceCapabilities::default(), &[]).unwrap();
        let words = Arc::new(Words::new(&tokens));
        let text = |most: usize| json!({"type": "string", "maxLength": most});
        let grammars = [
            schema(json!({"type": "object"})),
            schema(json!({"type": "array", "items": text(3), "maxItems": 9})),
            schema(json!({"type": "array", "items": text(40)})),
            schema(json!({"type": "string", "minLength": 3, "maxLength": 5})),
            schema(json!({"type": "array", "items": {"anyOf": [text(2), {"enum": ["abba", "a€", "日本"]},
                {"type": "number"}, {"type": "string", "pattern": "^[a-e]*$"}, {"type": "null"}]}})),
            schema(json!({"type": "string", "format": "date"})),
            schema(json!({"type": "object", "additionalProperties": text(4), "required": ["a", "é"]})),
            lark(r#"start: /[^"\\\x00-\x1f\x7f]{0,4}|aaaaaaa/"#),
            lark(r#"start: /[^"\\\x00-\x1f\x7fé]{0,9}/"#),
            lark(r#"start: /[^"\\\x00-\x1f\x7f€]*/ "€" /[0-9]*/"#),
            lark(r#"start: /[^"\\\x00-\x1f\x7f\u{7ff}]{2,6}/"#),
            lark("start: A B | A\nA: /(.|\\n){0,3}/\nB: /[0-9a-z]{3}/"),
            lark("start: /[a-z]{0,4}/ /[0-9a-z ]{3}/ (/./)*"),
            lark("start: (/[^\"\\\\\\x00-\\x1f\\x7f]{1,4}/ \"\\n\")*"),
        ];
        for (number, grammar) in grammars.into_iter().enumerate() {
            let fresh: TokenParser = factory.create_parser(grammar).unwrap();
            for seed in 0..24 {
                let masks = Arc::new(Masks::new(words.clone()));
                let with = |masks: Option<Arc<Masks>>| {
                    let mut parser = fresh.deep_clone();
                    if let Some(masks) = masks {
                        parser.bias_computer = masks;
                    }
                    Matcher::new(Ok(parser))
                };
                let (mut all, mut ours) = (with(None), with(Some(masks.clone())));
                let mut state = seed;
                for place in 0..40 {
                    let expected = all.compute_mask_or_eos().unwrap();
                    let mask = ours.compute_mask_or_eos().unwrap();
                    let wrong: Vec<_> = (0..expected.len() as u32)
                        .filter(|id| expected.is_allowed(*id) != mask.is_allowed(*id))
                        .map(|id| tokens.tok_trie().token_str(id))
                        .collect();
                    assert_eq!(wrong, Vec::<String>::new(), "grammar {number}, seed {seed}, token {place}");
                    let choices: Vec<u32> = mask.iter().collect();
                    let token = choices[random(&mut state) % choices.len()];
                    all.consume_token(token).unwrap();
                    ours.consume_token(token).unwrap();
                    if ours.is_stopped() {
                        break;
                    }
                }
            }
        }
    }

    #[test]
    fn how_far_plain_text_goes_is_found() {
        let tokens = vocabulary();
        let factory = ParserFactory::new(&tokens, InferenceCapabilities::default(), &[]).unwrap();
        let words = Arc::new(Words::new(&tokens));
        let text = |most: usize| schema(json!({"type": "string", "maxLength": most}));
        for (grammar, begins, reach) in [
            (schema(json!({"type": "string"})), "\"", Reach::Ever),
            (text(7), "\"ab€", Reach::Exactly(4)),
            (text(7), "\"abcdefg", Reach::Exactly(0)),
            (text(90), "\"", Reach::AtLeast(MOST_CHARS)),
            (schema(json!({"type": "string", "pattern": "^[a-e]*$"})), "\"a", Reach::Mixed),
            (lark(r#"start: /[^"\\\x00-\x1f\x7fé]{0,9}/"#), "", Reach::Mixed),
            (lark(r#"start: /[^"\\\x00-\x1f\x7f]{2}[^"\\\x00-\x1f\x7fx]*/"#), "", Reach::AtLeast(2)),
            // A lexeme that may end where plain text goes on is the parser's business.
            (lark(r#"start: /[^"\\\x00-\x1f\x7f]{1,3}/ /[^"\\\x00-\x1f\x7f]x/"#), "", Reach::AtLeast(2)),
            (text(7), "", Reach::Exactly(0)),
        ] {
            let mut parser: TokenParser = factory.create_parser(grammar).unwrap();
            parser.start_without_prompt();
            let masks = Masks::new(words.clone());
            for token in begins.bytes() {
                let id = tokens.tok_trie().token_id(&[token]).unwrap();
                parser.consume_token(id).unwrap();
            }
            let found = parser.parser.with_recognizer(|at| {
                at.trie_started("test");
                let reach = masks.reach(at);
                at.trie_finished();
                reach
            });
            assert_eq!(found, reach, "after {begins:?}");
        }
    }
}
