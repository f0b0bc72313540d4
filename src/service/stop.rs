//! Finds stop strings in text that comes in pieces, and holds back what may be the beginning of one.
//!
//! The one that is complete first counts (of two that end together, the longer), so that the result does
//! not depend on how tokens cut the text into pieces.

use crate::text::reasoning::open_suffix;

/// The state of one choice.
pub struct StopMatcher {
    stops: Vec<String>,
    /// Text that has come and has not been let through.
    held: String,
    /// Bytes let through so far.
    passed: usize,
}

/// What a piece of text brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Passed {
    /// Text that cannot be part of a stop string any more.
    Text(String),
    /// A stop string was found: the last text before it, and where it begins in the whole text.
    Stopped { text: String, at: usize },
}

impl StopMatcher {
    pub fn new(stops: Vec<String>) -> StopMatcher {
        StopMatcher { stops, held: String::new(), passed: 0 }
    }

    /// Bytes let through so far.
    pub fn passed(&self) -> usize {
        self.passed
    }

    pub fn push(&mut self, piece: &str) -> Passed {
        if self.stops.is_empty() {
            self.passed += piece.len();
            return Passed::Text(piece.to_string());
        }
        self.held.push_str(piece);
        let found = self.stops.iter().filter_map(|s| self.held.find(s.as_str()).map(|at| (at + s.len(), at)));
        if let Some((_, at)) = found.min() {
            let text = self.release(at);
            self.held.clear();
            return Passed::Stopped { text, at: self.passed };
        }
        let keep = self.stops.iter().map(|s| open_suffix(&self.held, s)).max().unwrap_or(0);
        Passed::Text(self.release(self.held.len() - keep))
    }

    /// Lets text through that no stop string may cut; none begins before or in it.
    pub fn pass_by(&mut self, piece: &str) -> String {
        self.held.push_str(piece);
        self.finish()
    }

    /// What is still held back, when nothing more comes.
    pub fn finish(&mut self) -> String {
        self.release(self.held.len())
    }

    fn release(&mut self, bytes: usize) -> String {
        self.passed += bytes;
        self.held.drain(..bytes).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, Option<usize>) {
        let mut matcher = StopMatcher::new(stops.iter().map(|s| s.to_string()).collect());
        let mut out = String::new();
        for piece in pieces {
            match matcher.push(piece) {
                Passed::Text(t) => out += &t,
                Passed::Stopped { text, at } => return (out + &text, Some(at)),
            }
        }
        (out + &matcher.finish(), None)
    }

    #[test]
    fn a_stop_string_is_found_across_pieces_and_never_shown() {
        assert_eq!(run(&["END"], &["abc E", "N", "D tail"]), ("abc ".into(), Some(4)));
        assert_eq!(run(&["END"], &["abc E", "N", "X tail"]), ("abc ENX tail".into(), None));
        assert_eq!(run(&["aab"], &["a", "a", "a", "b"]), ("a".into(), Some(1)));
        assert_eq!(run(&["é!"], &["caf", "é", "!"]), ("caf".into(), Some(3)));
        assert_eq!(run(&["b", "abc"], &["xab"]), ("xa".into(), Some(2)));
        assert_eq!(run(&["abcd", "b"], &["xabcd"]), ("xa".into(), Some(2)), "b is complete first");
        assert_eq!(run(&["c", "bc", "abc"], &["xabc"]), ("x".into(), Some(1)));
        assert_eq!(run(&[], &["x", "y"]), ("xy".into(), None));
    }

    #[test]
    fn what_may_begin_a_stop_string_waits() {
        let mut matcher = StopMatcher::new(vec!["\n\n".into()]);
        assert_eq!(matcher.push("a\n"), Passed::Text("a".into()));
        assert_eq!(matcher.push("b"), Passed::Text("\nb".into()));
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(text in "[abé]{0,30}", stops in prop::collection::vec("[abé]{1,4}", 1..4), cuts in prop::collection::vec(0..30usize, 0..6)) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| text.floor_char_boundary(c)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|w| &text[w[0]..w[1]]).collect();
            // One character after another: the shortest beginning that ends in a stop string.
            let ends = (0..=text.len()).filter(|end| text.is_char_boundary(*end));
            let stopped = |end: usize| stops.iter().filter(|s| text[..end].ends_with(s.as_str())).map(|s| end - s.len()).min();
            let want = match ends.into_iter().find_map(stopped) {
                Some(at) => (text[..at].to_string(), Some(at)),
                None => (text.clone(), None),
            };
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            prop_assert_eq!(run(&stops, &pieces), want);
        }
    }
}
