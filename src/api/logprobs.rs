//! Log-probabilities from the service's form to the two forms of the wire.
//!
//! Chat has a list of entries, text completions parallel lists with offsets. Values that JSON cannot
//! hold become −9999, OpenAI's mark for "out of range".

use serde_json::{Map, Value};

use crate::service::TextLogprob;
use crate::wire::response::{ChatLogprobs, TextLogprobs, TokenLogprob, TopLogprob};

const OUT_OF_RANGE: f32 = -9999.0;

fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { OUT_OF_RANGE }
}

pub fn chat(entries: Vec<TextLogprob>) -> ChatLogprobs {
    let content = entries.into_iter().map(|entry| TokenLogprob {
        token: entry.token,
        logprob: entry.logprob.map_or(OUT_OF_RANGE, finite),
        bytes: Some(entry.bytes),
        top_logprobs: entry
            .top
            .into_iter()
            .map(|t| TopLogprob { token: t.token, logprob: finite(t.logprob), bytes: Some(t.bytes) })
            .collect(),
    });
    ChatLogprobs { content: content.collect(), refusal: None }
}

/// `offset` is where the first entry begins in the choice's text, in characters; moved to the end.
pub fn text(entries: Vec<TextLogprob>, offset: &mut usize) -> TextLogprobs {
    let mut out = TextLogprobs::default();
    for entry in entries {
        out.text_offset.push(*offset);
        // A character is counted where its first byte is, also when tokens split it.
        *offset += entry.bytes.iter().filter(|b| **b & 0b1100_0000 != 0b1000_0000).count();
        out.top_logprobs.push(entry.logprob.map(|own| {
            let top = entry.top.iter().map(|t| (t.token.clone(), t.logprob));
            // The chosen token is always among them, whatever its rank (OpenAI: up to logprobs + 1).
            let mut map: Map<String, Value> = Map::new();
            for (token, logprob) in top.chain([(entry.token.clone(), own)]) {
                map.entry(token).or_insert_with(|| Value::from(finite(logprob)));
            }
            map
        }));
        out.token_logprobs.push(entry.logprob.map(finite));
        out.tokens.push(entry.token);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service;

    fn entry(token: &str, bytes: &[u8], logprob: Option<f32>) -> TextLogprob {
        let top = vec![service::TopLogprob { token: "t".into(), bytes: b"t".to_vec(), logprob: -0.5 }];
        TextLogprob { token: token.into(), bytes: bytes.to_vec(), logprob, top }
    }

    #[test]
    fn offsets_count_characters_across_split_ones() {
        let euro = "€".as_bytes();
        let entries = vec![
            entry("aé", "aé".as_bytes(), None),
            entry("\u{fffd}", &euro[..1], Some(-1.0)),
            entry("\u{fffd}", &euro[1..], Some(f32::NEG_INFINITY)),
            entry("b", b"b", Some(-2.0)),
        ];
        let mut offset = 10;
        let out = text(entries, &mut offset);
        assert_eq!(out.text_offset, [10, 12, 13, 13]);
        assert_eq!(offset, 14);
        assert_eq!(out.token_logprobs, [None, Some(-1.0), Some(OUT_OF_RANGE), Some(-2.0)]);
        assert_eq!(out.top_logprobs[0], None);
        let keys: Vec<_> = out.top_logprobs[3].as_ref().unwrap().keys().cloned().collect();
        assert_eq!(keys, ["t", "b"]);
    }

    #[test]
    fn chat_entries_keep_bytes() {
        let out = chat(vec![entry("b", b"b", Some(f32::NAN))]);
        assert_eq!(out.content[0].logprob, OUT_OF_RANGE);
        assert_eq!(out.content[0].top_logprobs[0].bytes.as_deref(), Some(&b"t"[..]));
    }
}
