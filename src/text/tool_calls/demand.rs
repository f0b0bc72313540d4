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
