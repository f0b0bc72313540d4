//! Server-sent events: how frames are written, and a parser for the reading side.
//!
//! Written: `data: …\n\n`, comments `: ping\n\n`, the end `data: [DONE]\n\n`. The parser takes bytes
//! as they arrive, cut anywhere, with any of the three line endings of the specification
//! (html.spec.whatwg.org, section 9.2.6).

use bytes::{BufMut, BytesMut};

pub const CONTENT_TYPE: &str = "text/event-stream";
/// A comment: keeps proxies and clients from closing an idle stream.
pub const PING: &[u8] = b": ping\n\n";
pub const DONE: &[u8] = b"data: [DONE]\n\n";
pub const DATA: &[u8] = b"data: ";
pub const END: &[u8] = b"\n\n";

/// Longest line and longest event the parser keeps; more is an error of the server.
pub const MAX_EVENT: usize = 16 << 20;

/// Appends one event with `json` as its data. JSON never holds a raw line break.
pub fn write_event(out: &mut BytesMut, json: &[u8]) {
    out.reserve(DATA.len() + json.len() + END.len());
    out.put_slice(DATA);
    out.put_slice(json);
    out.put_slice(END);
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Event {
    /// The `event:` field; empty means `message`.
    pub name: String,
    pub data: String,
}

impl Event {
    pub fn is_done(&self) -> bool {
        self.data.starts_with("[DONE]")
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SseError {
    #[error("an event is longer than {MAX_EVENT} bytes")]
    TooLong,
    #[error("an event is not UTF-8")]
    NotUtf8,
}

/// Cuts a byte stream into events. Comments are counted and dropped.
#[derive(Debug, Default)]
pub struct Parser {
    line: Vec<u8>,
    event: Event,
    has_data: bool,
    /// A carriage return was the last byte: a line feed that follows belongs to it.
    after_cr: bool,
    comments: usize,
}

impl Parser {
    /// Takes the next bytes and appends the events they complete to `out`.
    ///
    /// # Errors
    /// An event that is too long or not UTF-8.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<Event>) -> Result<(), SseError> {
        for &byte in bytes {
            let after_cr = std::mem::take(&mut self.after_cr);
            match byte {
                b'\n' if after_cr => {}
                b'\n' => self.end_line(out)?,
                b'\r' => {
                    self.after_cr = true;
                    self.end_line(out)?;
                }
                _ if self.line.len() >= MAX_EVENT => return Err(SseError::TooLong),
                _ => self.line.push(byte),
            }
        }
        Ok(())
    }

    /// Comments (keep-alive pings) seen so far.
    pub fn comments(&self) -> usize {
        self.comments
    }

    fn end_line(&mut self, out: &mut Vec<Event>) -> Result<(), SseError> {
        let line = std::str::from_utf8(&self.line).map_err(|_| SseError::NotUtf8)?;
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            if std::mem::take(&mut self.has_data) {
                out.push(event);
            }
        } else if line.starts_with(':') {
            self.comments += 1;
        } else {
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "data" => {
                    if self.has_data {
                        self.event.data.push('\n');
                    }
                    if self.event.data.len() + value.len() > MAX_EVENT {
                        return Err(SseError::TooLong);
                    }
                    self.has_data = true;
                    self.event.data.push_str(value);
                }
                "event" => value.clone_into(&mut self.event.name),
                // `id` and `retry` steer reconnection, which a generation has none of.
                _ => {}
            }
        }
        self.line.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(bytes: &[u8]) -> Vec<Event> {
        let mut out = Vec::new();
        Parser::default().push(bytes, &mut out).unwrap();
        out
    }

    #[test]
    fn written_frames_are_read_back() {
        let mut out = BytesMut::new();
        write_event(&mut out, br#"{"a":1}"#);
        out.put_slice(PING);
        out.put_slice(DONE);
        let events = parse(&out);
        assert_eq!(events.len(), 2);
        assert_eq!(events[0].data, r#"{"a":1}"#);
        assert!(events[1].is_done());
    }

    #[test]
    fn names_joined_data_and_all_line_endings() {
        for end in ["\n", "\r\n", "\r"] {
            let text = [": c", "event: error", "data: one", "data:two", "id: 7", "", "data", ""].join(end);
            let events = parse((text + end).as_bytes());
            assert_eq!(events.len(), 2, "{end:?}");
            assert_eq!(events[0], Event { name: "error".into(), data: "one\ntwo".into() });
            assert_eq!(events[1], Event::default());
        }
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut parser = Parser::default();
        let piece = vec![b'x'; 1 << 20];
        let mut out = Vec::new();
        let refused = (0..17).any(|_| parser.push(&piece, &mut out) == Err(SseError::TooLong));
        assert!(refused);
    }

    proptest! {
        #[test]
        fn cuts_do_not_matter(text in "[a-z:\r\n dt]{0,80}", cut in 0usize..80) {
            let whole = parse(text.as_bytes());
            let cut = cut.min(text.len());
            let mut parser = Parser::default();
            let mut out = Vec::new();
            parser.push(&text.as_bytes()[..cut], &mut out).unwrap();
            parser.push(&text.as_bytes()[cut..], &mut out).unwrap();
            prop_assert_eq!(whole, out);
        }
    }
}
