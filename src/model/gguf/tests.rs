//! Headers that lie.

use proptest::prelude::*;

use super::header::{Header, Metadata};

fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// A file of two values and two tensors: `[2, 32]` of Q8_0, `[3]` of f32.
fn sound() -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend(2u64.to_le_bytes());
    bytes.extend(3u64.to_le_bytes());
    text(&mut bytes, "general.architecture");
    bytes.extend(8u32.to_le_bytes());
    text(&mut bytes, "llama");
    text(&mut bytes, "tokens");
    bytes.extend([9u32, 8].map(u32::to_le_bytes).concat());
    bytes.extend(2u64.to_le_bytes());
    text(&mut bytes, "a");
    text(&mut bytes, "bc");
    text(&mut bytes, "scores");
    bytes.extend([9u32, 6].map(u32::to_le_bytes).concat());
    bytes.extend(2u64.to_le_bytes());
    bytes.extend([1.5f32, -2.0].map(f32::to_le_bytes).concat());
    for (name, lengths, kind, offset) in [("m", &[32u64, 2][..], 8u32, 0u64), ("v", &[3][..], 0, 96)] {
        text(&mut bytes, name);
        bytes.extend((lengths.len() as u32).to_le_bytes());
        lengths.iter().for_each(|n| bytes.extend(n.to_le_bytes()));
        bytes.extend(kind.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
    }
    bytes.resize(bytes.len().next_multiple_of(32) + 96 + 12, 7);
    bytes
}

/// Overwrites what stands `behind` bytes after the first occurrence of a text.
fn patched(find: &str, behind: usize, with: &[u8]) -> Vec<u8> {
    let mut bytes = sound();
    let at = bytes.windows(find.len()).position(|w| w == find.as_bytes()).unwrap() + find.len() + behind;
    bytes[at..at + with.len()].copy_from_slice(with);
    bytes
}

fn refused(bytes: &[u8]) -> String {
    match Header::read(bytes) {
        Ok(_) => panic!("a header that lies was believed"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_header_is_read() {
    let bytes = sound();
    let header = Header::read(&bytes).unwrap();
    let metadata = Metadata { header: &header, bytes: &bytes };
    assert_eq!(metadata.text("general.architecture").unwrap(), Some("llama"));
    assert_eq!(metadata.texts("tokens", 2).unwrap().unwrap(), ["a", "bc"]);
    assert_eq!(metadata.numbers("scores", 2).unwrap().unwrap(), [1.5, -2.0]);
    assert_eq!(metadata.tensor("m").unwrap().shape(), [2, 32]);
    assert_eq!(metadata.tensor("m").unwrap().place().len(), 68);
    let vector = metadata.tensor("v").unwrap();
    assert_eq!((vector.shape(), vector.place().end), (&[3][..], bytes.len()));
    assert!(metadata.tensor("w").is_none() && metadata.text("tokens").is_err());
    assert!(metadata.texts("tokens", 1).is_err() && metadata.numbers("scores", 3).is_err());
}

#[test]
fn lies_are_named() {
    let huge = u64::MAX.to_le_bytes();
    for (bytes, wanted) in [
        (b"GGML".to_vec(), "is no GGUF file"),
        (b"GGUF\x01\0\0\0".to_vec(), "GGUF of version 1"),
        (sound()[..20].to_vec(), "ends inside its header"),
        (patched("GGUF", 4, &huge), "18446744073709551615 tensors"),
        (patched("GGUF", 12, &huge), "18446744073709551615 values"),
        (patched("GGUF", 4, &60_000u64.to_le_bytes()), "ends inside its list of tensors"),
        (patched("tokens", 0, &99u32.to_le_bytes()), "tokens: type 99"),
        (patched("tokens", 4, &9u32.to_le_bytes()), "tokens: lists of lists"),
        (patched("tokens", 8, &huge), "ends inside tokens"),
        (patched("scores", 8, &(1u64 << 62).to_le_bytes()), "ends inside scores"),
        (patched("\x01\0\0\0\0\0\0\0m", 0, &9u32.to_le_bytes()), "tensor m: has 9 dimensions"),
        (patched("\x01\0\0\0\0\0\0\0m", 4, &33u64.to_le_bytes()), "tensor m: has shape [2, 33]; Q8_0"),
        (patched("\x01\0\0\0\0\0\0\0m", 12, &(1u64 << 60).to_le_bytes()), "ends beyond the end"),
        (patched("\x01\0\0\0\0\0\0\0m", 20, &19u32.to_le_bytes()), "has ggml's type 19"),
        (patched("\x01\0\0\0\0\0\0\0m", 24, &1u64.to_le_bytes()), "not at a multiple of 32"),
        (patched("\x01\0\0\0\0\0\0\0m", 24, &(1u64 << 40).to_le_bytes()), "ends beyond the end"),
    ] {
        let error = refused(&bytes);
        assert!(error.contains(wanted), "{error}, not {wanted}");
    }
    for (name, other) in [("scores", "tokens"), ("\x01\0\0\0\0\0\0\0v", "\x01\0\0\0\0\0\0\0m")] {
        let mut bytes = sound();
        let at = bytes.windows(name.len()).position(|w| w == name.as_bytes()).unwrap();
        bytes[at..at + name.len()].copy_from_slice(other.as_bytes());
        assert!(refused(&bytes).ends_with("is there twice"));
    }
}

proptest! {
    /// What is read is in the file; what is not is refused; nothing panics.
    #[test]
    fn no_bytes_are_believed(
        cut in 0..400usize,
        changes in proptest::collection::vec((0..400usize, any::<u8>()), 0..6),
    ) {
        let mut bytes = sound();
        for (at, byte) in changes {
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
        }
        bytes.truncate(bytes.len().saturating_sub(cut / 8));
        if let Ok(header) = Header::read(&bytes) {
            let metadata = Metadata { header: &header, bytes: &bytes };
            for (_, entry) in metadata.tensors() {
                prop_assert!(entry.place().end <= bytes.len());
            }
            for key in ["general.architecture", "tokens", "scores"] {
                let _ = (metadata.text(key), metadata.texts(key, 9), metadata.numbers(key, 2), metadata.whole(key));
            }
        }
    }
}
