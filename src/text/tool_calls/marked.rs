//! Calls behind marks, or at an answer's beginning: text in, pieces of text and of calls out.
//!
//! One reader for all dialects but gpt-oss's. Behind a mark there may be objects, lists of them, or names with
//! arguments; what turns out to be no call is text, marks and all, so that nothing is lost. White space around calls
//! belongs to nobody.

use super::object::{CallObject, Progress};
use super::{Dialect, Names};
use crate::text::answer::Piece;
use crate::text::reasoning::open_suffix;

/// Longest name in front of arguments, and id behind it.
const MAX_NAME: usize = 256;
const ID: &str = "[CALL_ID]";

/// Reads the calls of one answer.
pub struct MarkedCalls {
    opens: &'static [&'static str],
    close: Option<&'static str>,
    tools: Names,
    /// The block that is read was opened by a mark: in it any name is a tool's, otherwise one that there is.
    by_mark: bool,
    /// Behind a mark a call may be a name, this mark, and its arguments.
    arguments: Option<&'static str>,
    at: At,
    /// Text that has not been looked at, or may still become a mark.
    pending: String,
    /// What was read since the mark, as long as no call has come of it.
    untold: String,
    /// A call has come of the block.
    told: bool,
    /// A list of calls has been opened in it.
    in_list: bool,
    /// White space that comes next is left out.
    trims: bool,
}

enum At {
    /// Nothing but white space has come.
    Start,
    Text,
    /// Behind a mark, before or between calls.
    Between,
    Call {
        call: CallObject,
        told: bool,
    },
}

impl At {
    fn call(call: CallObject) -> At {
        At::Call { call, told: false }
    }
}

impl MarkedCalls {
    pub fn new(dialect: Dialect, tools: Names) -> MarkedCalls {
        let (opens, close): (&[&str], _) = match dialect {
            Dialect::Hermes => (&["<tool_call>"], Some("</tool_call>")),
            Dialect::Llama3 => (&["<|python_tag|>"], None),
            Dialect::Mistral | Dialect::MistralArgs => (&["[TOOL_CALLS]"], None),
            Dialect::Phi4 | Dialect::Functools => (&["<|tool_call|>", "functools"], Some("<|/tool_call|>")),
            // It has a reader of its own.
            Dialect::Harmony => (&[], None),
        };
        MarkedCalls {
            opens,
            close,
            // An object that the answer begins with may be a call.
            at: if dialect == Dialect::Llama3 { At::Start } else { At::Text },
            tools,
            by_mark: false,
            arguments: dialect.wants_short_ids().then_some("[ARGS]"),
            pending: String::new(),
            untold: String::new(),
            told: false,
            in_list: false,
            trims: false,
        }
    }

    /// True while the call that was told last is not complete.
    pub fn is_in_call(&self) -> bool {
        matches!(self.at, At::Call { told: true, .. })
    }

    /// Appends the pieces that this text completes.
    pub fn push(&mut self, text: &str, out: &mut Vec<Piece>) {
        self.pending.push_str(text);
        while self.step(out) {}
    }

    /// What is held back, when nothing more comes.
    pub fn finish(&mut self, out: &mut Vec<Piece>) {
        let mut marks = self.opens.iter().chain(&self.close);
        // Of a mark that was cut off behind a call nothing is told.
        let is_mark =
            self.told && matches!(self.at, At::Between) && marks.any(|mark| mark.starts_with(&self.pending));
        if !self.is_in_call() && !is_mark {
            let rest = std::mem::take(&mut self.untold) + &std::mem::take(&mut self.pending);
            self.tell(&rest, out);
        }
    }

    /// One step; false when it takes more text to go on.
    fn step(&mut self, out: &mut Vec<Piece>) -> bool {
        match &mut self.at {
            At::Start => self.start(),
            At::Text => self.text(out),
            At::Between => self.between(out),
            At::Call { .. } => self.call(out),
        }
    }

    fn start(&mut self) -> bool {
        let begun = self.pending.trim_start();
        if begun.is_empty() {
            return false;
        }
        self.at = match begun.starts_with('{') {
            true => At::call(CallObject::default()),
            false => At::Text,
        };
        true
    }

    fn text(&mut self, out: &mut Vec<Piece>) -> bool {
        let found = self.opens.iter().filter_map(|mark| Some((self.pending.find(mark)?, *mark))).min();
        match found {
            Some((at, mark)) => {
                let before = self.take(at);
                self.tell(before.trim_end(), out);
                self.untold = before[before.trim_end().len()..].to_string() + &self.take(mark.len());
                (self.at, self.by_mark, self.told, self.in_list) = (At::Between, true, false, false);
                true
            }
            None => {
                let open = self.opens.iter().map(|mark| open_suffix(&self.pending, mark)).max().unwrap_or(0);
                // White space may turn out to stand before a mark.
                let sure = self.pending[..self.pending.len() - open].trim_end().len();
                let text = self.take(sure);
                self.tell(&text, out);
                false
            }
        }
    }

    fn between(&mut self, out: &mut Vec<Piece>) -> bool {
        let blank = self.pending.len() - self.pending.trim_start().len();
        self.pass_over(blank);
        let mut marks = self.opens.iter().chain(&self.close);
        if let Some(mark) = marks.clone().find(|mark| self.pending.starts_with(**mark)) {
            let closes = self.close == Some(*mark);
            self.pass_over(mark.len());
            if closes {
                self.leave(out);
            }
            return true;
        }
        let Some(first) = self.pending.chars().next() else { return false };
        if marks.any(|mark| mark.starts_with(&self.pending)) {
            return false;
        }
        match first {
            '{' => self.at = At::call(CallObject::default()),
            '[' if !self.in_list => {
                self.in_list = true;
                self.pass_over(1);
            }
            ']' if self.in_list => {
                self.in_list = false;
                self.pass_over(1);
            }
            ',' if self.in_list => self.pass_over(1),
            ';' if self.close.is_none() => self.pass_over(1),
            _ => match self.named() {
                Named::Not => self.leave(out),
                Named::Open => return false,
                Named::Call(name, length) => {
                    self.pass_over(length);
                    self.at = At::call(CallObject::of_name(name));
                }
            },
        }
        true
    }

    /// A name and the mark of its arguments at the beginning of what is pending.
    fn named(&self) -> Named {
        let Some(mark) = self.arguments else { return Named::Not };
        let is_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
        let end = self.pending.find(|c| !is_name(c)).unwrap_or(self.pending.len());
        let (name, rest) = self.pending.split_at(end);
        if name.is_empty() || name.len() > MAX_NAME {
            return Named::Not;
        }
        let is_open = |rest: &str| mark.starts_with(rest) || ID.starts_with(rest);
        // Some write an id of the call before its arguments.
        let id = rest.strip_prefix(ID).map(|id| id.find(|c| !is_name(c)).unwrap_or(id.len()));
        let length = id.map_or(0, |id| ID.len() + id);
        let behind = &rest[length..];
        if behind.starts_with(mark) {
            Named::Call(name.to_string(), end + length + mark.len())
        } else if behind.starts_with('{') {
            Named::Call(name.to_string(), end + length)
        } else if length <= MAX_NAME && is_open(behind) {
            Named::Open
        } else {
            Named::Not
        }
    }

    fn call(&mut self, out: &mut Vec<Piece>) -> bool {
        let At::Call { call, told } = &mut self.at else { return false };
        let mut progress = call.push(&self.pending);
        let read = match progress {
            Progress::More => self.pending.len(),
            Progress::Done(read) | Progress::Broken(read) => read,
        };
        if let (false, Some(name)) = (*told, call.name().filter(|_| self.by_mark || call.has_arguments())) {
            // An answer may be an object that only looks like a call.
            match self.by_mark || self.tools.iter().any(|tool| tool == name) {
                true => {
                    out.push(Piece::Call(name.to_string()));
                    (*told, self.told) = (true, true);
                    self.untold.clear();
                }
                false => progress = Progress::Broken(read),
            }
        }
        let told = *told;
        if told {
            let arguments = call.take_arguments();
            out.extend((!arguments.is_empty()).then_some(Piece::Arguments(arguments)));
        }
        let text = self.take(read);
        if !told {
            self.untold += &text;
        }
        match progress {
            Progress::More => return false,
            Progress::Done(_) if told => self.at = At::Between,
            Progress::Done(_) | Progress::Broken(_) => self.leave(out),
        }
        true
    }

    /// The block is over; what was no call of it is text.
    fn leave(&mut self, out: &mut Vec<Piece>) {
        self.at = At::Text;
        self.trims = self.told;
        let untold = std::mem::take(&mut self.untold);
        self.tell(&untold, out);
    }

    /// Goes past what stands between calls.
    fn pass_over(&mut self, length: usize) {
        let text = self.take(length);
        if !self.told {
            self.untold += &text;
        }
    }

    fn take(&mut self, length: usize) -> String {
        self.pending.drain(..length).collect()
    }

    fn tell(&mut self, text: &str, out: &mut Vec<Piece>) {
        let text = if self.trims { text.trim_start() } else { text };
        if !text.is_empty() {
            self.trims = false;
            out.push(Piece::Text(text.to_string()));
        }
    }
}

enum Named {
    Not,
    /// It takes more text to tell.
    Open,
    /// A name, and how far it and its mark go.
    Call(String, usize),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::answer::joined;
    use proptest::prelude::*;

    fn read(dialect: Dialect, pieces: &[&str]) -> (String, Vec<(String, String)>) {
        let tools = ["f".to_string(), "g".to_string()].into();
        let (mut calls, mut out) = (MarkedCalls::new(dialect, tools), Vec::new());
        pieces.iter().for_each(|piece| calls.push(piece, &mut out));
        calls.finish(&mut out);
        let (_, text, calls) = joined(out);
        (text, calls)
    }

    /// An answer in the five dialects with the calls and the text that it holds, by every cut into two and character
    /// by character.
    #[test]
    fn calls_and_text_are_told_apart_wherever_it_is_cut() {
        use Dialect::*;
        let f = |arguments: &str| vec![("f", arguments.to_string())];
        let both = |a: &str, b: &str| vec![("f", a.to_string()), ("g", b.to_string())];
        let one = r#"{"a": "é}\"<"}"#;
        type Case = (Dialect, String, &'static str, Vec<(&'static str, String)>);
        let cases: Vec<Case> = vec![
            (
                Hermes,
                format!("I look.\n<tool_call>\n{{\"name\": \"f\", \"arguments\": {one}}}\n</tool_call>"),
                "I look.",
                f(one),
            ),
            (
                Hermes,
                format!(
                    "<tool_call>{{\"name\": \"f\", \"arguments\": {one}}}</tool_call>\n<tool_call>{{\"arguments\": {{}}, \"name\": \"g\"}}</tool_call>\n"
                ),
                "",
                both(one, "{}"),
            ),
            (Hermes, "<tool_call>{\"name\": \"f\"}</tool_call>\n\nDone <b>".into(), "Done <b>", f("{}")),
            (Hermes, "Write <tool_call> so: <tool_ca".into(), "Write <tool_call> so: <tool_ca", vec![]),
            (
                Hermes,
                "a <tool_call>{\"no\": 1}</tool_call>".into(),
                "a <tool_call>{\"no\": 1}</tool_call>",
                vec![],
            ),
            // Whatever its name is: the client can tell the model that there is no such tool.
            (
                Hermes,
                "<tool_call>{\"name\": \"h\", \"arguments\": {\"x\":".into(),
                "",
                vec![("h", "{\"x\":".into())],
            ),
            (Llama3, format!("{{\"name\": \"f\", \"parameters\": {one}}}"), "", f(one)),
            (
                Llama3,
                format!(
                    "\n{{\"type\": \"function\", \"name\": \"f\", \"parameters\": {one}}}; {{\"name\": \"g\", \"parameters\": {{}}}}"
                ),
                "",
                both(one, "{}"),
            ),
            (Llama3, "{\"name\": \"Bob\", \"age\": 3}".into(), "{\"name\": \"Bob\", \"age\": 3}", vec![]),
            (Llama3, "{\"name\": \"f\", \"age\": 3}".into(), "{\"name\": \"f\", \"age\": 3}", vec![]),
            (MistralArgs, "[TOOL_CALLS]f[ARGS]{}Thanks".into(), "Thanks", f("{}")),
            (
                Mistral,
                "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {}}], and [so]".into(),
                ", and [so]",
                f("{}"),
            ),
            (Llama3, "{\"a\": 1} {".into(), "{\"a\": 1} {", vec![]),
            (Llama3, format!("<|python_tag|>{{\"name\": \"f\", \"parameters\": {one}}}"), "", f(one)),
            (
                Llama3,
                "<|python_tag|>search.call(query=\"x\")".into(),
                "<|python_tag|>search.call(query=\"x\")",
                vec![],
            ),
            (Llama3, "So: {\"name\": \"f\"}".into(), "So: {\"name\": \"f\"}", vec![]),
            (
                Mistral,
                format!(
                    "[TOOL_CALLS] [{{\"name\": \"f\", \"arguments\": {one}}}, {{\"name\": \"g\", \"arguments\": {{}}}}]"
                ),
                "",
                both(one, "{}"),
            ),
            (Mistral, "[1, 2] [TOOL".into(), "[1, 2] [TOOL", vec![]),
            (
                MistralArgs,
                format!("Well. [TOOL_CALLS]f[ARGS]{one}[TOOL_CALLS]g[CALL_ID]abc123[ARGS]{{}}"),
                "Well.",
                both(one, "{}"),
            ),
            (MistralArgs, format!("[TOOL_CALLS]f{one}"), "", f(one)),
            (MistralArgs, "[TOOL_CALLS]no call".into(), "[TOOL_CALLS]no call", vec![]),
            (
                Phi4,
                format!("<|tool_call|>[{{\"name\": \"f\", \"arguments\": {one}}}]<|/tool_call|>"),
                "",
                f(one),
            ),
            (
                Functools,
                format!(
                    "functools[{{\"name\": \"f\", \"arguments\": {one}}}, {{\"name\": \"g\", \"arguments\": {{}}}}]"
                ),
                "",
                both(one, "{}"),
            ),
            (Functools, "functools.partial is fine".into(), "functools.partial is fine", vec![]),
        ];
        for (dialect, answer, text, calls) in cases {
            let calls: Vec<(String, String)> = calls.into_iter().map(|(n, a)| (n.to_string(), a)).collect();
            let expected = (text.to_string(), calls);
            assert_eq!(read(dialect, &[&answer]), expected, "{answer}");
            for at in (0..=answer.len()).filter(|at| answer.is_char_boundary(*at)) {
                let (a, b) = answer.split_at(at);
                assert_eq!(read(dialect, &[a, b]), expected, "{a:?} {b:?}");
            }
            let single: Vec<&str> = answer.split("").collect();
            assert_eq!(read(dialect, &single), expected, "{answer} by characters");
        }
    }

    proptest! {
        #[test]
        fn cuts_do_not_matter_and_no_text_gets_lost(
            parts in prop::collection::vec(
                "(<tool_call>|</tool_call>|\\[TOOL_CALLS\\]|\\[ARGS\\]|functools|<\\|tool_call\\|>|<\\|python_tag\\|>|\\{\"name\": \"f\"|, \"arguments\": \\{\"a\": [0-9]\\}|\\}|[ \n<\\[\\]{},;aé\"]{0,3})",
                0..10,
            ),
            cuts in prop::collection::vec(0..120usize, 0..8),
            dialect in prop::sample::select(vec![
                Dialect::Hermes, Dialect::Llama3, Dialect::Mistral, Dialect::MistralArgs, Dialect::Phi4, Dialect::Functools,
            ]),
        ) {
            let text = parts.concat();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| text.floor_char_boundary(c)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|w| &text[w[0]..w[1]]).collect();
            let whole = read(dialect, &[&text]);
            prop_assert_eq!(&read(dialect, &pieces), &whole);
            // Without a call nothing is left out but white space at the very end of what was held.
            if whole.1.is_empty() {
                prop_assert_eq!(whole.0, text);
            }
        }
    }
}
