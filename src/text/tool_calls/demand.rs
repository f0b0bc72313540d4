//! Calls as a grammar: what an answer must be, written in the model's own dialect.
//!
//! Tools and what else the answer may be in, the parts of a grammar out. Marks that are special tokens of the vocabulary
//! stand in it as such, others as text.

use super::Dialect;
use crate::text::grammar::{Part, Source, literal};
use crate::text::tokenizer::Tokenizer;

/// What an answer must be.
#[derive(Debug, Clone, Default)]
pub struct Demand {
    /// The tools that may be called, with what their arguments must be.
    pub tools: Vec<(String, Part)>,
    /// More than one call may be made.
    pub many: bool,
    /// What it may be instead of calls.
    pub otherwise: Otherwise,
    /// Thoughts in a channel may come first, at most so many tokens of them. (Other models' thoughts are no part of
    /// the grammar.)
    pub thoughts: Option<usize>,
}

#[derive(Debug, Clone, Default)]
pub enum Otherwise {
    /// There must be a call.
    #[default]
    Nothing,
    /// Any text; calls may follow it.
    Text,
    This(Part),
}

/// Any text, a special token excepted.
const ANY: &str = "/(?s:.*)/";

/// The grammar of a demand.
pub fn source(dialect: Dialect, demand: Demand, tokenizer: &Tokenizer) -> Source {
    let writer = Writer { dialect, tokenizer };
    let (mut rules, mut parts, mut ways) = (Vec::new(), Vec::new(), Vec::new());
    if !demand.tools.is_empty() {
        for (i, (name, arguments)) in demand.tools.into_iter().enumerate() {
            rules.push(format!("call_{i}: {}", writer.call(&name, &format!("@arguments_{i}"))));
            parts.push((format!("arguments_{i}"), arguments));
        }
        let any: Vec<String> = (0..parts.len()).map(|i| format!("call_{i}")).collect();
        rules.push(format!("call: {}", any.join(" | ")));
        rules.push(format!("opened_calls: {}", writer.opened_calls(demand.many)));
        rules.push(format!(
            "calls: {} opened_calls",
            writer.open().map(|m| writer.mark(m)).unwrap_or_default()
        ));
        ways.push("calls".to_string());
    }
    match demand.otherwise {
        Otherwise::Nothing => {}
        Otherwise::Text if !ways.is_empty() => writer.text_before_calls(&mut rules, &mut ways),
        Otherwise::Text => ways.push(writer.final_message(ANY)),
        Otherwise::This(part) => {
            parts.push(("answer".into(), part));
            ways.push(writer.final_message("@answer"));
        }
    }
    let mut start = format!("({})", ways.join(" | "));
    if dialect == Dialect::Harmony && demand.thoughts != Some(0) {
        let most = demand.thoughts.map_or(String::new(), |most| format!("[max_tokens={most}]"));
        rules.push(format!("thought{most}: {ANY}"));
        rules.push(format!("thoughts: {}", writer.thoughts("thought")));
        start.insert_str(0, "thoughts? ");
    }
    rules.insert(0, format!("start: {start}"));
    Source { start: rules.join("\n"), parts }
}

struct Writer<'a> {
    dialect: Dialect,
    tokenizer: &'a Tokenizer,
}

impl Writer<'_> {
    fn special(&self, mark: &str) -> Option<u32> {
        self.tokenizer.id(mark).filter(|id| self.tokenizer.is_special(*id))
    }

    fn mark(&self, mark: &str) -> String {
        self.special(mark).map_or_else(|| literal(mark), |id| format!("<[{id}]>"))
    }

    /// One call, without what stands around all of them.
    fn call(&self, name: &str, arguments: &str) -> String {
        let object = |word: &str| {
            let head = format!("{{\"name\": {}, \"{word}\": ", serde_json::Value::from(name));
            format!("{} {arguments} \"}}\"", literal(&head))
        };
        match self.dialect {
            Dialect::Llama3 => object("parameters"),
            Dialect::MistralArgs => format!("{} {} {arguments}", literal(name), self.mark("[ARGS]")),
            Dialect::Harmony => format!(
                "{} {} {} \"json\" {} {arguments}",
                self.mark("<|channel|>"),
                literal(&format!("commentary to=functions.{name} ")),
                self.mark("<|constrain|>"),
                self.mark("<|message|>")
            ),
            _ => object("arguments"),
        }
    }

    /// The mark that opens calls.
    fn open(&self) -> Option<&'static str> {
        match self.dialect {
            Dialect::Hermes => Some("<tool_call>"),
            Dialect::Mistral | Dialect::MistralArgs => Some("[TOOL_CALLS]"),
            Dialect::Phi4 => Some("<|tool_call|>"),
            Dialect::Functools => Some("functools"),
            Dialect::Llama3 | Dialect::Harmony => None,
        }
    }

    /// Calls behind the mark that opens them.
    fn opened_calls(&self, many: bool) -> String {
        let mark = |mark: &str| self.mark(mark);
        let (first, between, close) = match self.dialect {
            Dialect::Hermes => {
                let (open, close) = (mark("<tool_call>"), mark("</tool_call>"));
                (r#""\n""#, format!(r#""\n" {close} "\n" {open} "\n""#), format!(r#""\n" {close}"#))
            }
            Dialect::Llama3 => ("", r#""; ""#.into(), String::new()),
            // Newer vocabularies write no space.
            Dialect::Mistral => (r"/ ?\[/", r#"", ""#.into(), r#""]""#.into()),
            Dialect::MistralArgs => ("", mark("[TOOL_CALLS]"), String::new()),
            Dialect::Phi4 => (r#""[""#, r#"", ""#.into(), format!(r#""]" {}"#, mark("<|/tool_call|>"))),
            Dialect::Functools => (r#""[""#, r#"", ""#.into(), r#""]""#.into()),
            // A call of gpt-oss ends its answer.
            Dialect::Harmony => return "call".into(),
        };
        let more = if many { format!("({between} call)*") } else { String::new() };
        format!("{first} call {more} {close}")
    }

    /// Ways to write a text, which calls may follow.
    fn text_before_calls(&self, rules: &mut Vec<String>, ways: &mut Vec<String>) {
        match self.open() {
            None if self.dialect == Dialect::Harmony => ways.push(self.final_message(ANY)),
            // What begins like a call is one.
            None => ways.push(r"/([^\s{](?s:.*))?/".into()),
            Some(mark) if self.special(mark).is_some() => {
                rules.push("TEXT: /(?s:.+)/".into());
                *ways = vec!["TEXT? calls?".into()];
            }
            Some(mark) => {
                // Up to the mark, or without one to the end: never both.
                rules.push(format!("TEXT: {ANY} & ~/(?s:.*){}(?s:.*)/", escape(mark)));
                rules.push(format!("lead[suffix={}]: {ANY}", literal(mark)));
                *ways = vec!["TEXT".into(), "lead opened_calls".into()];
            }
        }
    }

    /// The answer itself, in its channel where there are channels.
    fn final_message(&self, content: &str) -> String {
        match self.dialect {
            Dialect::Harmony => {
                let (channel, message) = (self.mark("<|channel|>"), self.mark("<|message|>"));
                format!("{channel} \"final\" {message} {content}")
            }
            _ => content.into(),
        }
    }

    fn thoughts(&self, content: &str) -> String {
        let [channel, message, end, start] =
            ["<|channel|>", "<|message|>", "<|end|>", "<|start|>"].map(|mark| self.mark(mark));
        format!("{channel} \"analysis\" {message} {content} {end} {start} \"assistant\"")
    }
}

/// As a regular expression; `\<` would be the beginning of a word.
fn escape(text: &str) -> String {
    let one = |c: char| match c.is_ascii_alphanumeric() {
        true => c.to_string(),
        false => format!("\\x{{{:x}}}", u32::from(c)),
    };
    text.chars().map(one).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::text::answer::{Calls, Contents, Reader, joined};
    use crate::text::detokenizer::Detokenizer;
    use crate::text::grammar::{Grammars, Match};
    use crate::text::reasoning::Marks;
    use crate::text::tokenizer::stand_in_json;

    const ALL: [Dialect; 7] = [
        Dialect::Hermes,
        Dialect::Llama3,
        Dialect::Mistral,
        Dialect::MistralArgs,
        Dialect::Phi4,
        Dialect::Functools,
        Dialect::Harmony,
    ];

    /// Bytes, and the dialect's marks as tokens of their own, special or not.
    fn tokenizer(dialect: Dialect, special: bool) -> Arc<Tokenizer> {
        let mut json = stand_in_json(259).unwrap();
        for (i, mark) in dialect.marks().iter().enumerate() {
            let token = json!({"id": 259 + i, "content": mark, "single_word": false, "lstrip": false,
                               "rstrip": false, "normalized": false, "special": special});
            json["added_tokens"].as_array_mut().unwrap().push(token);
        }
        Arc::new(Tokenizer::from_json("test", json.to_string().as_bytes()).unwrap())
    }

    /// An answer drawn at random from what the grammar allows, read as one that a model wrote.
    fn drawn(
        dialect: Dialect,
        tokenizer: &Arc<Tokenizer>,
        demand: &Demand,
        seed: u64,
    ) -> (String, String, Vec<(String, String)>) {
        let end = tokenizer.id("<|im_end|>").unwrap();
        let grammars = Grammars::new(tokenizer, &[end]).unwrap();
        let source = source(dialect, demand.clone(), tokenizer);
        let shown = source.start.clone();
        let mut at = Match::begin(&grammars.compile(source, 0).unwrap_or_else(|e| panic!("{shown}: {e}")));
        let contents = Contents {
            thoughts: Marks::of_template("<|channel|>analysis").map(|m| (m, m.start(""))),
            calls: Some(Calls { dialect, tools: ["f".into(), "g".into()].into(), most: usize::MAX }),
            channels: dialect == Dialect::Harmony,
        };
        let contents = Contents { thoughts: contents.thoughts.filter(|_| contents.channels), ..contents };
        let marks = contents.marks().into_iter().filter_map(|mark| tokenizer.id(mark)).collect();
        let (mut text, mut reader) = (Detokenizer::new(tokenizer.clone(), marks), Reader::new(&contents));
        let (mut pieces, mut state) = (Vec::new(), seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut draw = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 16) as usize % below
        };
        for step in 0..2000 {
            let mut mask = vec![0u32; tokenizer.vocab().div_ceil(32)];
            at.fill_mask(&mut mask).unwrap();
            let is_set = |id: &u32| mask[*id as usize / 32] >> (id % 32) & 1 == 1;
            let allowed: Vec<u32> = (0..tokenizer.vocab() as u32).filter(is_set).collect();
            // A mark, or the end, more often than the one byte among all that it is.
            let rare: Vec<u32> = allowed.iter().copied().filter(|id| *id >= 256).collect();
            let from = if !rare.is_empty() && draw(4) == 0 { &rare } else { &allowed };
            let token = from[draw(from.len())];
            assert!(step < 1999, "{shown} has no end");
            if token == end {
                break;
            }
            reader.push(&text.push(token), &mut pieces);
            at.accept(token).unwrap();
        }
        reader.push(&text.finish(), &mut pieces);
        reader.finish(&mut pieces);
        joined(pieces)
    }

    fn demand(otherwise: Otherwise, thoughts: usize) -> Demand {
        let schema = json!({"type": "object", "properties": {"a": {"enum": [1, "x\"}"]}}, "required": ["a"], "additionalProperties": false});
        let none = json!({"type": "object", "properties": {}, "additionalProperties": false});
        let tools = vec![("f".to_string(), Part::JsonSchema(schema)), ("g".into(), Part::JsonSchema(none))];
        Demand { tools, many: true, otherwise, thoughts: Some(thoughts) }
    }

    #[test]
    fn what_a_grammar_allows_is_read_as_what_was_demanded() {
        let fits = |(name, arguments): &(String, String)| {
            let arguments: Value = serde_json::from_str(arguments).unwrap();
            match name.as_str() {
                "f" => [json!({"a": 1}), json!({"a": "x\"}"})].contains(&arguments),
                _ => name == "g" && arguments == json!({}),
            }
        };
        for (dialect, special) in ALL.into_iter().flat_map(|dialect| [(dialect, true), (dialect, false)]) {
            let tokenizer = tokenizer(dialect, special);
            // Thoughts end at a mark, which they must not hold as text.
            let demand = |otherwise| demand(otherwise, if special { 4 } else { 0 });
            let mut called = 0;
            for seed in 1..12 {
                let (_, text, calls) = drawn(dialect, &tokenizer, &demand(Otherwise::Nothing), seed);
                assert!(text.is_empty() && !calls.is_empty(), "{dialect:?}: {text:?}");
                assert!(calls.iter().all(fits), "{dialect:?}: {calls:?}");
                let one = Demand { many: false, ..demand(Otherwise::Nothing) };
                assert_eq!(drawn(dialect, &tokenizer, &one, seed).2.len(), 1, "{dialect:?}");
                let (_, _, calls) = drawn(dialect, &tokenizer, &demand(Otherwise::Text), seed);
                assert!(calls.iter().all(fits), "{dialect:?}: {calls:?}");
                called += calls.len();
                let this = Otherwise::This(Part::Choice(vec!["yes".into()]));
                let (_, text, calls) = drawn(dialect, &tokenizer, &demand(this), seed);
                assert!(if calls.is_empty() { text == "yes" } else { calls.iter().all(fits) }, "{text:?}");
            }
            // Bytes drawn at random spell no mark, and seldom a brace first.
            assert!(called > 0 || !special || dialect == Dialect::Llama3, "{dialect:?} never calls");
        }
    }
}
