//! An answer told apart as it comes: text in, pieces of thoughts, of text and of calls of tools out.
//!
//! Whether the text comes cut into pieces makes no difference, and nothing of it is read twice: what may still become
//! a mark is held back, everything else is told at once.

use super::reasoning::{Marks, Splitter, Start};
use super::tool_calls::harmony::Harmony;
use super::tool_calls::marked::MarkedCalls;
use super::tool_calls::{Dialect, Names};

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    Text(String),
    Reasoning(String),
    /// A call of this tool begins.
    Call(String),
    /// More of the arguments of the call that began last: JSON, if the model writes JSON.
    Arguments(String),
}

/// What an answer may hold beside text.
#[derive(Debug, Clone, Default)]
pub struct Contents {
    /// Of a model that thinks: how it marks thoughts, and where the answer begins.
    pub thoughts: Option<(Marks, Start)>,
    /// Where calls are wanted: how the model writes them.
    pub calls: Option<Calls>,
    /// All of it in channels, as gpt-oss writes.
    pub channels: bool,
}

/// Calls that are read out of an answer.
#[derive(Debug, Clone)]
pub struct Calls {
    pub dialect: Dialect,
    pub tools: Names,
    /// At most this many.
    pub most: usize,
}

impl Contents {
    /// True where an answer is text and nothing else.
    pub fn is_plain(&self) -> bool {
        self.thoughts.is_none() && self.calls.is_none() && !self.channels
    }

    /// The marks that are read: where they are special tokens they must be spelled out.
    pub fn marks(&self) -> Vec<&'static str> {
        let thoughts = self.thoughts.iter().flat_map(|(marks, _)| [marks.open, marks.close]);
        let calls = self.calls.iter().flat_map(|calls| calls.dialect.marks());
        let channels = self.channels.then_some(Dialect::Harmony.marks()).into_iter().flatten();
        thoughts.chain(calls.copied()).chain(channels.copied()).collect()
    }
}

/// Reads one answer.
pub struct Reader {
    form: Form,
    told: usize,
    most: usize,
    /// The last call that is wanted has begun and ended.
    complete: bool,
    pieces: Vec<Piece>,
}

enum Form {
    Marked { splitter: Option<Splitter>, calls: Option<Box<MarkedCalls>> },
    Channels(Harmony),
}

impl Reader {
    pub fn new(contents: &Contents) -> Reader {
        let calls = contents.calls.as_ref();
        let form = match contents.channels {
            true => Form::Channels(Harmony::new(calls.is_some())),
            false => Form::Marked {
                splitter: contents.thoughts.map(|(marks, start)| Splitter::new(marks, start)),
                calls: calls.map(|calls| MarkedCalls::new(calls.dialect, calls.tools.clone()).into()),
            },
        };
        let most = calls.map_or(usize::MAX, |calls| calls.most);
        Reader { form, told: 0, most, complete: false, pieces: Vec::new() }
    }

    /// True while what comes next is a thought.
    pub fn is_thinking(&self) -> bool {
        match &self.form {
            Form::Marked { splitter, .. } => splitter.as_ref().is_some_and(Splitter::is_thinking),
            Form::Channels(channels) => channels.is_thinking(),
        }
    }

    /// True when the last call that is wanted is complete: what follows is told to nobody.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// At the end: true when the last call is not complete.
    pub fn is_cut(&self) -> bool {
        !self.complete
            && match &self.form {
                Form::Marked { calls, .. } => calls.as_ref().is_some_and(|calls| calls.is_in_call()),
                Form::Channels(channels) => channels.is_cut(),
            }
    }

    /// Appends the pieces that this text completes.
    pub fn push(&mut self, text: &str, out: &mut Vec<Piece>) {
        match &mut self.form {
            Form::Marked { splitter: None, calls: None } => self.pieces.push(Piece::Text(text.to_string())),
            Form::Marked { splitter: None, calls: Some(calls) } => calls.push(text, &mut self.pieces),
            Form::Marked { splitter: Some(splitter), calls: None } => splitter.push(text, &mut self.pieces),
            Form::Marked { splitter: Some(splitter), calls: Some(calls) } => {
                let mut split = Vec::new();
                splitter.push(text, &mut split);
                told_apart(split, calls, &mut self.pieces);
            }
            Form::Channels(channels) => channels.push(text, &mut self.pieces),
        }
        self.hand_on(out);
    }

    /// What is held back, when nothing more comes.
    pub fn finish(&mut self, out: &mut Vec<Piece>) {
        match &mut self.form {
            Form::Marked { splitter, calls } => {
                let mut split = Vec::new();
                if let Some(splitter) = splitter {
                    splitter.finish(&mut split);
                }
                match calls {
                    None => self.pieces.append(&mut split),
                    Some(calls) => {
                        told_apart(split, calls, &mut self.pieces);
                        calls.finish(&mut self.pieces);
                    }
                }
            }
            Form::Channels(channels) => channels.finish(&mut self.pieces),
        }
        self.hand_on(out);
    }

    /// Pieces up to the last call that is wanted.
    fn hand_on(&mut self, out: &mut Vec<Piece>) {
        let open = match &self.form {
            Form::Marked { calls, .. } => calls.as_ref().is_some_and(|calls| calls.is_in_call()),
            Form::Channels(channels) => channels.is_in_call(),
        };
        for piece in self.pieces.drain(..) {
            let goes_on = self.told == self.most && !matches!(piece, Piece::Arguments(_));
            self.complete |= goes_on;
            if self.complete {
                continue;
            }
            self.told += usize::from(matches!(piece, Piece::Call(_)));
            out.push(piece);
        }
        self.complete |= self.told == self.most && !open;
    }
}

fn told_apart(pieces: Vec<Piece>, calls: &mut MarkedCalls, out: &mut Vec<Piece>) {
    for piece in pieces {
        match piece {
            Piece::Text(text) => calls.push(&text, out),
            other => out.push(other),
        }
    }
}

/// For tests: thoughts, text and calls, joined.
#[cfg(test)]
pub(super) type Joined = (String, String, Vec<(String, String)>);

#[cfg(test)]
pub(super) fn joined(pieces: Vec<Piece>) -> Joined {
    let (mut reasoning, mut text, mut calls) = (String::new(), String::new(), Vec::new());
    for piece in pieces {
        match piece {
            Piece::Text(more) => text += &more,
            Piece::Reasoning(more) => reasoning += &more,
            Piece::Call(name) => calls.push((name, String::new())),
            Piece::Arguments(more) => {
                let last: &mut (String, String) = calls.last_mut().expect("a call before its arguments");
                last.1 += &more;
            }
        }
    }
    (reasoning, text, calls)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(most: usize) -> Contents {
        let marks = Marks { open: "<think>", close: "</think>" };
        let calls = Calls { dialect: Dialect::Hermes, tools: ["f".into()].into(), most };
        Contents { thoughts: Some((marks, Start::Open)), calls: Some(calls), channels: false }
    }

    const ANSWER: &str = "<think>Call <tool_call>?</think>I do.\n<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}</tool_call>\n<tool_call>{\"name\": \"f\"}</tool_call>";

    /// What is told of the answer that comes so many bytes at a time, and where the reader had enough.
    fn read(most: usize, step: usize) -> (Joined, Option<usize>) {
        let (mut reader, mut out, mut complete) = (Reader::new(&contents(most)), Vec::new(), None);
        for (i, piece) in ANSWER.as_bytes().chunks(step).enumerate() {
            reader.push(std::str::from_utf8(piece).unwrap(), &mut out);
            complete = complete.or(reader.is_complete().then_some((i + 1) * step));
        }
        reader.finish(&mut out);
        (joined(out), complete)
    }

    #[test]
    fn thoughts_text_and_calls_are_told_apart() {
        let call = |arguments: &str| ("f".to_string(), arguments.to_string());
        let both =
            ("Call <tool_call>?".to_string(), "I do.".to_string(), vec![call("{\"a\": 1}"), call("{}")]);
        let one = (both.0.clone(), both.1.clone(), vec![call("{\"a\": 1}")]);
        let first = ANSWER.find("}}").unwrap() + 2;
        for step in 1..=ANSWER.len() {
            assert_eq!(read(usize::MAX, step), (both.clone(), None), "by {step}");
            // With the last call that is wanted the answer is over.
            let (told, complete) = read(1, step);
            assert_eq!(told, one, "by {step}");
            assert!((first..first + step).contains(&complete.unwrap()), "by {step}: {complete:?}");
        }
    }
}
