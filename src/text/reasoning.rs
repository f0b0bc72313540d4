//! Thoughts and answer told apart: text as it comes in, pieces of either out.
//!
//! A reasoning model writes its thoughts between two marks before it answers. Whether a mark comes cut into pieces makes
//! no difference: what may still become one is held back. White space around the marks belongs to neither side.

use std::ops::Range;

use super::answer::Piece;

/// What a model writes around its thoughts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    pub open: &'static str,
    pub close: &'static str,
}

/// Those that models of the known families use: Qwen3, DeepSeek-R1 and many after them; Magistral; gpt-oss.
const KNOWN: [Marks; 3] = [
    Marks { open: "<think>", close: "</think>" },
    Marks { open: "[THINK]", close: "[/THINK]" },
    Marks { open: "<|channel|>analysis<|message|>", close: "<|end|>" },
];

impl Marks {
    /// Of a model, by its chat template.
    pub fn of_template(source: &str) -> Option<Marks> {
        let opens = |marks: &Marks| match marks.open.strip_suffix("analysis<|message|>") {
            // Templates write a channel's name and its marks in pieces.
            Some(channel) => source.contains(channel) && source.contains("analysis"),
            None => source.contains(marks.open),
        };
        KNOWN.into_iter().find(opens)
    }

    /// Where an answer begins that continues this prompt.
    pub fn start(&self, prompt: &str) -> Start {
        let prompt = prompt.trim_end();
        if prompt.ends_with(self.open) {
            Start::Thinking
        } else if prompt.ends_with(self.close) {
            Start::Answer
        } else {
            Start::Open
        }
    }
}

/// Where an answer begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start {
    /// In the midst of thoughts: the prompt has opened them.
    Thinking,
    /// The model may open them itself.
    Open,
    /// There are none, or they are over.
    #[default]
    Answer,
}

/// Tells the two apart as text comes.
#[derive(Debug, Clone)]
pub struct Splitter {
    marks: Marks,
    at: Start,
    /// White space that follows is left out: something was told that it would only separate.
    trims: bool,
    held: String,
}

impl Splitter {
    pub fn new(marks: Marks, at: Start) -> Splitter {
        Splitter { marks, at, trims: at == Start::Thinking, held: String::new() }
    }

    /// True while what comes next is a thought.
    pub fn is_thinking(&self) -> bool {
        self.at == Start::Thinking
    }

    /// Appends the pieces that this text completes.
    pub fn push(&mut self, text: &str, out: &mut Vec<Piece>) {
        self.held.push_str(text);
        if self.at == Start::Open {
            let begun = self.held.trim_start();
            if let Some(rest) = begun.strip_prefix(self.marks.open) {
                let rest = rest.to_string();
                (self.held, self.at, self.trims) = (rest, Start::Thinking, true);
            } else if !self.marks.open.starts_with(begun) {
                self.at = Start::Answer;
            }
        }
        if self.at == Start::Thinking {
            match self.held.find(self.marks.close) {
                Some(at) => {
                    let thought = self.take(0..at);
                    self.tell(thought.trim_end(), out);
                    self.held.drain(..self.marks.close.len());
                    (self.at, self.trims) = (Start::Answer, true);
                }
                None => {
                    let open = open_suffix(&self.held, self.marks.close);
                    // White space may turn out to stand before the mark.
                    let sure = self.held[..self.held.len() - open].trim_end().len();
                    let thought = self.take(0..sure);
                    self.tell(&thought, out);
                }
            }
        }
        if self.at == Start::Answer {
            let all = self.take(0..self.held.len());
            self.tell(&all, out);
        }
    }

    /// What is held back, when nothing more comes.
    pub fn finish(&mut self, out: &mut Vec<Piece>) {
        let rest = std::mem::take(&mut self.held);
        self.tell(&rest, out);
    }

    fn take(&mut self, range: Range<usize>) -> String {
        self.held.drain(range).collect()
    }

    fn tell(&mut self, text: &str, out: &mut Vec<Piece>) {
        let text = if self.trims { text.trim_start() } else { text };
        if text.is_empty() {
            return;
        }
        self.trims = false;
        let text = text.to_string();
        out.push(if self.at == Start::Thinking { Piece::Reasoning(text) } else { Piece::Text(text) });
    }
}

/// Length of the longest end of `text` that is a proper beginning of `mark`.
pub fn open_suffix(text: &str, mark: &str) -> usize {
    let longest = (mark.len() - 1).min(text.len());
    (1..=longest)
        .rev()
        .find(|n| {
            let at = text.len() - n;
            text.is_char_boundary(at) && mark.as_bytes().starts_with(&text.as_bytes()[at..])
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const THINK: Marks = KNOWN[0];

    /// Reasoning and text of an answer that comes in these pieces.
    fn split(start: Start, pieces: &[&str]) -> (String, String) {
        let (mut splitter, mut out) = (Splitter::new(THINK, start), Vec::new());
        pieces.iter().for_each(|piece| splitter.push(piece, &mut out));
        splitter.finish(&mut out);
        let (reasoning, text, _) = super::super::answer::joined(out);
        (reasoning, text)
    }

    #[test]
    fn thoughts_and_answer_are_told_apart() {
        let both = |a: &str, b: &str| (a.to_string(), b.to_string());
        assert_eq!(split(Start::Open, &["<think>\nso\n\n", "</think>\n\nyes\n"]), both("so", "yes\n"));
        assert_eq!(split(Start::Thinking, &["\nso </th", "ink>yes"]), both("so", "yes"));
        assert_eq!(split(Start::Thinking, &["a < b </thin and on"]), both("a < b </thin and on", ""));
        assert_eq!(split(Start::Open, &["  plain <think>x</think>"]), both("", "  plain <think>x</think>"));
        assert_eq!(split(Start::Answer, &["<think>no"]), both("", "<think>no"));
        assert_eq!(split(Start::Open, &["<thi"]), both("", "<thi"));
        assert_eq!(split(Start::Thinking, &["cut off"]), both("cut off", ""));
        assert_eq!(split(Start::Thinking, &["</think></think>"]), both("", "</think>"));
        assert_eq!(split(Start::Open, &["<think></think>é"]), both("", "é"));
    }

    #[test]
    fn where_an_answer_begins_is_read_off_its_prompt() {
        assert_eq!(THINK.start("<|im_start|>assistant\n<think>\n"), Start::Thinking);
        assert_eq!(THINK.start("<|im_start|>assistant\n<think>\n\n</think>\n\n"), Start::Answer);
        assert_eq!(THINK.start("<think>old</think> x<|im_start|>assistant\n"), Start::Open);
        assert_eq!(Marks::of_template("{{ '<think>\n\n</think>' }}"), Some(THINK));
        assert_eq!(Marks::of_template("{{ messages }}"), None);
    }

    proptest! {
        #[test]
        fn cuts_do_not_matter(
            parts in prop::collection::vec("(<think>|</think>|</thi|[ \na<é]{0,3})", 0..8),
            cuts in prop::collection::vec(0..60usize, 0..6),
            start in prop_oneof![Just(Start::Open), Just(Start::Thinking), Just(Start::Answer)],
        ) {
            let text = parts.concat();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| text.floor_char_boundary(c)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|w| &text[w[0]..w[1]]).collect();
            prop_assert_eq!(split(start, &pieces), split(start, &[&text]));
        }
    }
}
