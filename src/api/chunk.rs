//! Writes the events of a stream as bytes, without building a value per token.
//!
//! Of a chunk only the index, the text and the finish reason change: what stands before them is made
//! once a stream, and the text goes through serde_json's escaper straight into the buffer. Chat and
//! text completions differ in a few words ([`Shape`]).

use bytes::{BufMut, BytesMut};
use serde::Serialize;

use crate::api::error::ApiError;
use crate::api::logprobs;
use crate::service::TextLogprob;
use crate::wire::response::Usage;
use crate::wire::sse;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    Chat,
    Text,
}

impl Shape {
    pub fn id_prefix(self) -> &'static str {
        match self {
            Shape::Chat => "chatcmpl-",
            Shape::Text => "cmpl-",
        }
    }

    fn object(self) -> &'static str {
        match self {
            Shape::Chat => "chat.completion.chunk",
            Shape::Text => "text_completion",
        }
    }
}

/// What all chunks and the whole answer of a request have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub id: String,
    pub created: u64,
    pub model: String,
    pub service_tier: Option<&'static str>,
    pub system_fingerprint: Option<String>,
}

/// Writes one stream's events.
pub struct ChunkWriter {
    shape: Shape,
    /// From `data: {` to `"choices":[`.
    head: Vec<u8>,
    /// From the `]` that closes the choices to the end of the event.
    tail: &'static [u8],
    with_logprobs: bool,
    choices: Vec<Choice>,
}

#[derive(Default, Clone)]
struct Choice {
    begun: bool,
    /// Characters so far, for `text_offset`.
    offset: usize,
}

/// Appends `value` as JSON. Strings, numbers and lists of them cannot fail to serialise, and the
/// buffer grows.
fn put_json(out: &mut BytesMut, value: &(impl Serialize + ?Sized)) {
    if let Err(e) = serde_json::to_writer(out.writer(), value) {
        tracing::error!(error = %e, "a chunk could not be serialised");
    }
}

impl ChunkWriter {
    /// `with_usage` is `stream_options.include_usage`: every other chunk then says `"usage":null`.
    pub fn new(
        shape: Shape,
        identity: &Identity,
        choices: usize,
        with_logprobs: bool,
        with_usage: bool,
    ) -> ChunkWriter {
        let mut head = BytesMut::with_capacity(256);
        head.put_slice(b"data: {\"id\":");
        put_json(&mut head, &identity.id);
        head.put_slice(b",\"object\":");
        put_json(&mut head, shape.object());
        head.put_slice(b",\"created\":");
        put_json(&mut head, &identity.created);
        head.put_slice(b",\"model\":");
        put_json(&mut head, &identity.model);
        if let Some(tier) = identity.service_tier {
            head.put_slice(b",\"service_tier\":");
            put_json(&mut head, tier);
        }
        head.put_slice(b",\"system_fingerprint\":");
        put_json(&mut head, &identity.system_fingerprint);
        head.put_slice(b",\"choices\":[");
        ChunkWriter {
            shape,
            head: head.to_vec(),
            tail: if with_usage { b"],\"usage\":null}\n\n" } else { b"]}\n\n" },
            with_logprobs,
            choices: vec![Choice::default(); choices],
        }
    }

    fn open(&self, out: &mut BytesMut, choice: usize) {
        out.put_slice(&self.head);
        out.put_slice(b"{\"index\":");
        put_json(out, &choice);
        out.put_slice(match self.shape {
            Shape::Chat => b",\"delta\":{".as_slice(),
            Shape::Text => b",\"text\":",
        });
    }

    /// The chunk that names the role, before a chat choice's first other chunk.
    fn begin(&mut self, out: &mut BytesMut, choice: usize) {
        if choice >= self.choices.len() {
            self.choices.resize(choice + 1, Choice::default());
        }
        if !std::mem::replace(&mut self.choices[choice].begun, true) && self.shape == Shape::Chat {
            self.open(out, choice);
            out.put_slice(
                b"\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}",
            );
            out.put_slice(self.tail);
        }
    }

    /// New thoughts of a choice, under the two names that clients read.
    pub fn reasoning(&mut self, out: &mut BytesMut, choice: usize, text: &str, entries: Vec<TextLogprob>) {
        self.begin(out, choice);
        self.open(out, choice);
        out.put_slice(b"\"reasoning_content\":");
        put_json(out, text);
        out.put_slice(b",\"reasoning\":");
        put_json(out, text);
        self.close(out, choice, entries);
    }

    /// New text of a choice.
    pub fn text(&mut self, out: &mut BytesMut, choice: usize, text: &str, entries: Vec<TextLogprob>) {
        self.begin(out, choice);
        self.open(out, choice);
        if self.shape == Shape::Chat {
            out.put_slice(b"\"content\":");
        }
        put_json(out, text);
        self.close(out, choice, entries);
    }

    /// A call of a chat's choice begins. Clients put together what follows by its index alone.
    pub fn call(
        &mut self,
        out: &mut BytesMut,
        choice: usize,
        index: usize,
        id: &str,
        name: &str,
        entries: Vec<TextLogprob>,
    ) {
        self.begin(out, choice);
        self.open(out, choice);
        out.put_slice(b"\"tool_calls\":[{\"index\":");
        put_json(out, &index);
        out.put_slice(b",\"id\":");
        put_json(out, id);
        out.put_slice(b",\"type\":\"function\",\"function\":{\"name\":");
        put_json(out, name);
        out.put_slice(b",\"arguments\":\"\"}}]");
        self.close(out, choice, entries);
    }

    /// More arguments of a call.
    pub fn arguments(
        &mut self,
        out: &mut BytesMut,
        choice: usize,
        index: usize,
        text: &str,
        entries: Vec<TextLogprob>,
    ) {
        self.begin(out, choice);
        self.open(out, choice);
        out.put_slice(b"\"tool_calls\":[{\"index\":");
        put_json(out, &index);
        out.put_slice(b",\"function\":{\"arguments\":");
        put_json(out, text);
        out.put_slice(b"}}]");
        self.close(out, choice, entries);
    }

    /// The end of a chunk that is not a choice's last.
    fn close(&mut self, out: &mut BytesMut, choice: usize, entries: Vec<TextLogprob>) {
        out.put_slice(match self.shape {
            Shape::Chat => b"},\"logprobs\":".as_slice(),
            Shape::Text => b",\"logprobs\":",
        });
        match (self.with_logprobs, self.shape) {
            (false, _) => out.put_slice(b"null"),
            (true, Shape::Chat) => put_json(out, &logprobs::chat(entries)),
            (true, Shape::Text) => {
                put_json(out, &logprobs::text(entries, &mut self.choices[choice].offset));
            }
        }
        out.put_slice(b",\"finish_reason\":null}");
        out.put_slice(self.tail);
    }

    /// The last chunk of a choice.
    pub fn finish(&mut self, out: &mut BytesMut, choice: usize, reason: &str) {
        self.begin(out, choice);
        self.open(out, choice);
        out.put_slice(match self.shape {
            Shape::Chat => b"},\"logprobs\":null,\"finish_reason\":".as_slice(),
            Shape::Text => b"\"\",\"logprobs\":null,\"finish_reason\":",
        });
        put_json(out, reason);
        out.put_slice(b"}");
        out.put_slice(self.tail);
    }

    /// The extra chunk without choices that `include_usage` asks for.
    pub fn usage(&self, out: &mut BytesMut, usage: &Usage) {
        out.put_slice(&self.head);
        out.put_slice(b"],\"usage\":");
        put_json(out, usage);
        out.put_slice(b"}\n\n");
    }

    pub fn error(out: &mut BytesMut, error: &ApiError) {
        sse::write_event(out, &error.json());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::response::{ChatChunk, TextCompletion};

    fn identity() -> Identity {
        Identity {
            id: "chatcmpl-1".into(),
            created: 7,
            model: "m \"q\"".into(),
            service_tier: Some("default"),
            system_fingerprint: None,
        }
    }

    fn events(out: &BytesMut) -> Vec<String> {
        let mut events = Vec::new();
        sse::Parser::default().push(out, &mut events).unwrap();
        events.into_iter().map(|e| e.data).collect()
    }

    #[test]
    fn a_chat_stream_parses_back() {
        let mut writer = ChunkWriter::new(Shape::Chat, &identity(), 1, false, true);
        let mut out = BytesMut::new();
        writer.text(&mut out, 0, "a\n\"€\u{1}\u{2028}", vec![]);
        writer.text(&mut out, 0, "b", vec![]);
        writer.finish(&mut out, 0, "stop");
        writer.usage(&mut out, &Usage::new(3, 2, 1));
        let events = events(&out);
        assert!(events.iter().take(4).all(|e| e.ends_with("\"usage\":null}")), "{events:?}");
        let chunks: Vec<ChatChunk> = events.iter().map(|e| serde_json::from_str(e).unwrap()).collect();
        assert_eq!(chunks.len(), 5);
        assert!(chunks.iter().all(|c| c.id == "chatcmpl-1" && c.created == 7 && c.model == "m \"q\""));
        assert!(chunks.iter().all(|c| c.object == "chat.completion.chunk"));
        let delta = |i: usize| chunks[i].choices[0].delta.clone();
        assert_eq!(delta(0).role.as_deref(), Some("assistant"));
        assert_eq!(delta(0).content.as_deref(), Some(""));
        assert_eq!(delta(1).content.as_deref(), Some("a\n\"€\u{1}\u{2028}"));
        assert_eq!(delta(1).role, None);
        assert_eq!(delta(3), Default::default());
        assert_eq!(chunks[3].choices[0].finish_reason.as_deref(), Some("stop"));
        assert!(chunks[4].choices.is_empty());
        assert_eq!(chunks[4].usage, Some(Usage::new(3, 2, 1)));
    }

    #[test]
    fn without_include_usage_no_chunk_speaks_of_it() {
        let mut writer = ChunkWriter::new(Shape::Chat, &identity(), 2, true, false);
        let mut out = BytesMut::new();
        writer.text(&mut out, 1, "a", vec![]);
        writer.finish(&mut out, 0, "length");
        let events = events(&out);
        assert!(events.iter().all(|e| !e.contains("usage")));
        let indices: Vec<usize> =
            events.iter().map(|e| serde_json::from_str::<ChatChunk>(e).unwrap().choices[0].index).collect();
        assert_eq!(indices, [1, 1, 0, 0]);
    }

    #[test]
    fn calls_are_told_by_their_index_and_begin_without_arguments() {
        let mut writer = ChunkWriter::new(Shape::Chat, &identity(), 1, false, false);
        let mut out = BytesMut::new();
        writer.call(&mut out, 0, 1, "call_1", "f", vec![]);
        writer.arguments(&mut out, 0, 1, "{\"a\"", vec![]);
        writer.finish(&mut out, 0, "tool_calls");
        let delta = |event: &str| {
            let chunk: serde_json::Value = serde_json::from_str(event).unwrap();
            assert!(serde_json::from_value::<ChatChunk>(chunk.clone()).is_ok());
            chunk["choices"][0]["delta"].clone()
        };
        let events = events(&out);
        let first = serde_json::json!({"tool_calls": [{"index": 1, "id": "call_1", "type": "function",
                                                       "function": {"name": "f", "arguments": ""}}]});
        assert_eq!(delta(&events[1]), first);
        let more = serde_json::json!({"tool_calls": [{"index": 1, "function": {"arguments": "{\"a\""}}]});
        assert_eq!(delta(&events[2]), more);
        assert_eq!((delta(&events[3]), events.len()), (serde_json::json!({}), 4));
    }

    #[test]
    fn a_text_stream_counts_offsets() {
        let mut writer = ChunkWriter::new(Shape::Text, &identity(), 1, true, false);
        let mut out = BytesMut::new();
        let entry = |t: &str| TextLogprob {
            token: t.into(),
            bytes: t.as_bytes().to_vec(),
            logprob: Some(-1.0),
            top: vec![],
        };
        writer.text(&mut out, 0, "é", vec![entry("é")]);
        writer.text(&mut out, 0, "b", vec![entry("b")]);
        writer.finish(&mut out, 0, "stop");
        let chunks: Vec<TextCompletion> =
            events(&out).iter().map(|e| serde_json::from_str(e).unwrap()).collect();
        assert_eq!(chunks.len(), 3);
        assert_eq!(chunks[1].choices[0].logprobs.as_ref().unwrap().text_offset, [1]);
        assert_eq!(chunks[2].choices[0].text, "");
        assert_eq!(chunks[2].choices[0].finish_reason.as_deref(), Some("stop"));
    }
}
