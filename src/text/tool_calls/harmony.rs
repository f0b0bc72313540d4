//! gpt-oss's channels: text with marks in, thoughts, text and calls out.
//!
//! An answer is a row of messages, each `<|channel|>NAME to=RECIPIENT <|constrain|>TYPE<|message|>CONTENT<|end|>` with
//! `<|start|>assistant` between (OpenAI's harmony format). The channel `analysis` holds thoughts; what goes to
//! `functions.f` is a call of f; everything else is text.

use crate::text::answer::Piece;
use crate::text::reasoning::open_suffix;

/// What ends a message. The first begins the next one, where a model forgets the end.
const ENDS: [&str; 4] = ["<|start|>", "<|end|>", "<|call|>", "<|return|>"];
const MESSAGE: &str = "<|message|>";
/// Longest head of a message.
const MAX_HEAD: usize = 512;

/// Reads one answer.
pub struct Harmony {
    calls: bool,
    at: At,
    pending: String,
    /// White space that comes next is left out.
    trims: bool,
    /// Arguments of the call so far.
    arguments: String,
    /// The call that the answer ended in was not complete.
    cut: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum At {
    /// Before `<|message|>`.
    Head,
    Thoughts,
    Text,
    Call,
}

impl Harmony {
    /// `calls`: whether what goes to a function is a call; else it is text.
    pub fn new(calls: bool) -> Harmony {
        Harmony {
            calls,
            at: At::Head,
            pending: String::new(),
            trims: true,
            arguments: String::new(),
            cut: false,
        }
    }

    pub fn is_thinking(&self) -> bool {
        self.at == At::Thoughts
    }

    /// True while the call that was told last is not complete.
    pub fn is_in_call(&self) -> bool {
        self.at == At::Call
    }

    /// At the end: true when it came in the midst of a call's arguments. (A complete call ends with a token that is no
    /// text.)
    pub fn is_cut(&self) -> bool {
        self.cut
    }

    /// Appends the pieces that this text completes.
    pub fn push(&mut self, text: &str, out: &mut Vec<Piece>) {
        self.pending.push_str(text);
        while self.step(out) {}
    }

    /// What is held back, when nothing more comes.
    pub fn finish(&mut self, out: &mut Vec<Piece>) {
        let rest = std::mem::take(&mut self.pending);
        match self.at {
            // A head without its message says nothing, unless it is no head.
            At::Head if is_head(&rest) => {}
            At::Head => self.tell(&rest, At::Text, out),
            at => self.tell(&rest, at, out),
        }
        let is_json = serde_json::from_str::<serde::de::IgnoredAny>(&self.arguments).is_ok();
        self.cut = self.at == At::Call && !self.arguments.is_empty() && !is_json;
        self.end(out);
    }

    fn step(&mut self, out: &mut Vec<Piece>) -> bool {
        if self.at == At::Head {
            return self.head(out);
        }
        let found = ENDS.iter().filter_map(|mark| Some((self.pending.find(mark)?, *mark))).min();
        let Some((at, mark)) = found else {
            let open = ENDS.iter().map(|mark| open_suffix(&self.pending, mark)).max().unwrap_or(0);
            let sure = self.pending[..self.pending.len() - open].trim_end().len();
            let text: String = self.pending.drain(..sure).collect();
            self.tell(&text, self.at, out);
            return false;
        };
        let text: String = self.pending.drain(..at).collect();
        self.pending.drain(..mark.len());
        self.tell(text.trim_end(), self.at, out);
        self.end(out);
        true
    }

    /// Reads a message's head.
    fn head(&mut self, out: &mut Vec<Piece>) -> bool {
        let found = self.pending.find(MESSAGE).filter(|end| *end <= MAX_HEAD && is_head(&self.pending));
        let Some(end) = found else {
            if is_head(&self.pending) && self.pending.len() < MAX_HEAD + MESSAGE.len() {
                return false;
            }
            // The model writes as if there were no channels.
            self.at = At::Text;
            return true;
        };
        let head: String = self.pending.drain(..end + MESSAGE.len()).collect();
        let head = &head[..end];
        let recipient = word_behind(head, "to=").and_then(|to| to.strip_prefix("functions."));
        (self.at, self.trims) = match (recipient, word_behind(head, "<|channel|>")) {
            (Some(function), _) if self.calls => {
                out.push(Piece::Call(function.to_string()));
                (At::Call, true)
            }
            (_, Some("analysis")) => (At::Thoughts, true),
            _ => (At::Text, true),
        };
        self.arguments.clear();
        true
    }

    fn end(&mut self, out: &mut Vec<Piece>) {
        if self.at == At::Call && self.arguments.is_empty() {
            out.push(Piece::Arguments("{}".into()));
        }
        self.at = At::Head;
    }

    fn tell(&mut self, text: &str, at: At, out: &mut Vec<Piece>) {
        let text = if self.trims { text.trim_start() } else { text };
        if text.is_empty() {
            return;
        }
        self.trims = false;
        let text = text.to_string();
        out.push(match at {
            At::Thoughts => Piece::Reasoning(text),
            At::Call => {
                self.arguments += &text;
                Piece::Arguments(text)
            }
            At::Head | At::Text => Piece::Text(text),
        });
    }
}

/// Whether this may be the beginning of a message's head.
fn is_head(text: &str) -> bool {
    let begun = text.trim_start();
    let mut firsts = ["<|start|>", "assistant", "<|channel|>", "to=", "<|end|>", MESSAGE].iter();
    firsts.any(|first| begun.starts_with(first) || first.starts_with(begun))
}

/// The word behind a mark.
fn word_behind<'a>(head: &'a str, mark: &str) -> Option<&'a str> {
    let behind = head.split_once(mark)?.1.trim_start();
    let end = behind.find(|c: char| c.is_whitespace() || c == '<').unwrap_or(behind.len());
    Some(&behind[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::answer::joined;
    use proptest::prelude::*;

    use crate::text::answer::Joined as Read;

    fn read(pieces: &[&str]) -> Read {
        let (mut harmony, mut out) = (Harmony::new(true), Vec::new());
        pieces.iter().for_each(|piece| harmony.push(piece, &mut out));
        harmony.finish(&mut out);
        joined(out)
    }

    #[test]
    fn channels_are_told_apart_wherever_it_is_cut() {
        let call = |arguments: &str| vec![("f", arguments.to_string())];
        let cases = [
            (
                "<|channel|>analysis<|message|>So it is.<|end|><|start|>assistant<|channel|>final<|message|>Yes <|x|>.",
                "So it is.",
                "Yes <|x|>.",
                vec![],
            ),
            (
                "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{\"a\": 1}<|call|>",
                "",
                "",
                call("{\"a\": 1}"),
            ),
            (" to=functions.f<|channel|>commentary json<|message|>{\"a\":", "", "", call("{\"a\":")),
            ("<|channel|>commentary to=functions.f<|message|><|call|>", "", "", call("{}")),
            (
                "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>commentary to=functions.f<|message|>{}<|call|>",
                "",
                "I look.",
                call("{}"),
            ),
            ("<|channel|>analysis<|message|>cut <|en", "cut <|en", "", vec![]),
            ("Hello there", "", "Hello there", vec![]),
            ("<|channel|>fin", "", "", vec![]),
            ("<|channel|>commentary to=browser.open<|message|>x", "", "x", vec![]),
        ];
        for (answer, thoughts, text, calls) in cases {
            let calls = calls.into_iter().map(|(n, a): (&str, String)| (n.to_string(), a)).collect();
            let expected = (thoughts.to_string(), text.to_string(), calls);
            for at in (0..=answer.len()).filter(|at| answer.is_char_boundary(*at)) {
                let (a, b) = answer.split_at(at);
                assert_eq!(read(&[a, b]), expected, "{a:?} {b:?}");
            }
            let single: Vec<&str> = answer.split("").collect();
            assert_eq!(read(&single), expected, "{answer} by characters");
        }
    }

    proptest! {
        #[test]
        fn cuts_do_not_matter(
            parts in prop::collection::vec(
                "(<\\|start\\|>|assistant|<\\|channel\\|>|analysis|final| to=functions.f|<\\|message\\|>|<\\|end\\|>|<\\|call\\|>|[ <|{}aé]{0,3})",
                0..12,
            ),
            cuts in prop::collection::vec(0..120usize, 0..8),
        ) {
            let text = parts.concat();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| text.floor_char_boundary(c)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|w| &text[w[0]..w[1]]).collect();
            prop_assert_eq!(read(&pieces), read(&[&text]));
        }
    }
}
