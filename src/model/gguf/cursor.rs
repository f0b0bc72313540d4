//! Reading what a GGUF header is made of, none of it beyond the end of the file: numbers, texts, values, names.

use std::ops::Range;

use super::header::{HeaderError, LONGEST_NAME, shown};

/// A value of the metadata. Texts and lists are places in the file.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Whole(i128),
    Float(f64),
    Bool(bool),
    Text(Range<usize>),
    List { kind: u32, count: usize, at: usize },
}

/// Bytes of a value of a fixed size.
pub(super) fn width(kind: u32) -> Option<usize> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

pub(super) const TEXT: u32 = 8;
pub(super) const LIST: u32 = 9;

/// Where one reads.
pub(super) struct Cursor<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize, what: &dyn Fn() -> String) -> Result<&'a [u8], HeaderError> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| HeaderError::Cut(what()))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &dyn Fn() -> String) -> Result<[u8; N], HeaderError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    pub(super) fn u32(&mut self, what: &dyn Fn() -> String) -> Result<u32, HeaderError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &dyn Fn() -> String) -> Result<u64, HeaderError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// The place of a text behind its length.
    pub(super) fn text(&mut self, what: &dyn Fn() -> String) -> Result<Range<usize>, HeaderError> {
        let length = self.u64(what)?;
        let length = usize::try_from(length).map_err(|_| HeaderError::Cut(what()))?;
        self.take(length, what)?;
        Ok(self.at - length..self.at)
    }

    pub(super) fn name(&mut self, what: &dyn Fn() -> String) -> Result<(Name, &'a str), HeaderError> {
        let place = self.text(what)?;
        let length = u16::try_from(place.len()).ok().filter(|length| *length <= LONGEST_NAME);
        let name = std::str::from_utf8(&self.bytes[place.clone()]).ok();
        let both = name.zip(length).map(|(name, length)| (Name { at: place.start, length }, name));
        both.ok_or_else(|| HeaderError::Name(what()))
    }

    pub(super) fn value(&mut self, kind: u32, what: &dyn Fn() -> String) -> Result<Value, HeaderError> {
        Ok(match kind {
            TEXT => Value::Text(self.text(what)?),
            LIST => {
                let kind = self.u32(what)?;
                let count = self.u64(what)?;
                let count = usize::try_from(count).map_err(|_| HeaderError::Cut(what()))?;
                let at = self.at;
                match (kind, width(kind)) {
                    (LIST, _) => return Err(HeaderError::Nested(what())),
                    (TEXT, _) => {
                        // Each has a length at least.
                        if count > (self.bytes.len() - self.at) / 8 {
                            return Err(HeaderError::Cut(what()));
                        }
                        for _ in 0..count {
                            self.text(what)?;
                        }
                    }
                    (_, Some(width)) => {
                        let bytes = count.checked_mul(width).ok_or_else(|| HeaderError::Cut(what()))?;
                        self.take(bytes, what)?;
                    }
                    _ => return Err(HeaderError::ValueType(what(), kind)),
                }
                Value::List { kind, count, at }
            }
            kind => {
                let Some(width) = width(kind) else { return Err(HeaderError::ValueType(what(), kind)) };
                fixed(kind, self.take(width, what)?)
            }
        })
    }
}

/// A value of a fixed size, from as many bytes.
pub(super) fn fixed(kind: u32, bytes: &[u8]) -> Value {
    let mut eight = [0; 8];
    eight[..bytes.len()].copy_from_slice(bytes);
    let unsigned = u64::from_le_bytes(eight);
    let unused = 64 - 8 * bytes.len() as u32;
    match kind {
        6 => Value::Float(f64::from(f32::from_bits(unsigned as u32))),
        12 => Value::Float(f64::from_bits(unsigned)),
        7 => Value::Bool(unsigned != 0),
        1 | 3 | 5 | 11 => Value::Whole(i128::from((unsigned << unused).cast_signed() >> unused)),
        _ => Value::Whole(i128::from(unsigned)),
    }
}

/// A name's place in the file. What it names follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Name {
    at: usize,
    length: u16,
}

// A value has 13 bytes in its file at least, a tensor 24.
const _: () = assert!(size_of::<Name>() <= 16);

impl Name {
    pub(super) fn of<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        &bytes[self.at..self.end()]
    }

    pub(super) fn end(&self) -> usize {
        self.at + usize::from(self.length)
    }
}

/// Sorts names.
///
/// # Errors
/// One that is there twice.
pub(super) fn sort(names: &mut [Name], bytes: &[u8]) -> Result<(), String> {
    names.sort_unstable_by(|a, b| a.of(bytes).cmp(b.of(bytes)));
    match names.windows(2).find(|two| two[0].of(bytes) == two[1].of(bytes)) {
        Some(two) => Err(shown(&String::from_utf8_lossy(two[0].of(bytes)))),
        None => Ok(()),
    }
}

pub(super) fn find(names: &[Name], bytes: &[u8], name: &str) -> Option<Name> {
    let found = names.binary_search_by(|one| one.of(bytes).cmp(name.as_bytes()));
    found.ok().map(|index| names[index])
}
