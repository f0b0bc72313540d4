//! The header of a GGUF file (version 2 and 3, ggml/docs/gguf.md), checked before anything is believed.
//!
//! Nothing is reserved by a number that the file says of itself: counts and lengths must fit into what is left of the
//! file first. Once it is checked, what is kept of a value and of a tensor is the place of its name; the rest is read again
//! when it is asked for. So a header takes less than twice its length, whatever it says.

use std::ops::Range;

use super::cursor::{Cursor, Name, TEXT, Value, find, fixed, sort, width};
use crate::ops::blocks::{Format, mxfp4};
use crate::ops::weight::WeightType;

/// Of metadata and tensors: real files have some dozens and some thousands.
const MOST_VALUES: u64 = 1 << 12;
const MOST_TENSORS: u64 = 1 << 16;
pub(super) const LONGEST_NAME: u16 = 1 << 10;
const MOST_DIMENSIONS: usize = 4;
const LARGEST_ALIGNMENT: usize = 1 << 16;
/// Bytes of a value: the length of its key, a type, and itself.
const SHORTEST_VALUE: u64 = 13;
/// Of a tensor: the length of its name, dimensions, a type and an offset.
const SHORTEST_TENSOR: u64 = 24;

/// What is wrong with a header.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum HeaderError {
    #[error("is no GGUF file: it begins with {0:02x?}")]
    Magic(Vec<u8>),
    #[error("is a big-endian GGUF file; little-endian ones are read")]
    BigEndian,
    #[error("is GGUF of version {0}; 2 and 3 are read")]
    Version(u32),
    #[error("ends inside {0}")]
    Cut(String),
    #[error("says it has {count} {what}; {most} are read at most")]
    TooMany { what: &'static str, count: u64, most: u64 },
    #[error("{0} is not UTF-8, or longer than {LONGEST_NAME} bytes")]
    Name(String),
    #[error("{0} is there twice")]
    Twice(String),
    #[error("{0}: type {1} is unknown")]
    ValueType(String, u32),
    #[error("{0}: lists of lists are not read")]
    Nested(String),
    #[error("{0}: {1}")]
    Value(String, &'static str),
    #[error("{0}: {1}")]
    Unsupported(String, String),
    #[error("tensor {0}: {1}")]
    Tensor(String, String),
}

/// A tensor's entry.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    lengths: [usize; MOST_DIMENSIONS],
    dimensions: u8,
    /// As it is held.
    pub kind: WeightType,
    /// It is MXFP4 in the file.
    pub mxfp4: bool,
    /// Where it begins in the file, which has all of it.
    begin: usize,
}

impl Entry {
    /// As matrices have it: rows first, where there are any.
    pub fn shape(&self) -> &[usize] {
        &self.lengths[..usize::from(self.dimensions)]
    }

    /// Where it lies in the file.
    pub fn place(&self) -> Range<usize> {
        self.begin..self.begin + size((self.kind, self.mxfp4), self.shape()).unwrap_or_default()
    }
}

/// Bytes of a tensor in a file, unless they are more than there are.
fn size((kind, mxfp4): (WeightType, bool), shape: &[usize]) -> Option<usize> {
    let numbers = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?;
    match kind {
        WeightType::Blocks(format) if mxfp4 => (numbers / format.block()).checked_mul(mxfp4::FILE_BYTES),
        WeightType::Blocks(format) => (numbers / format.block()).checked_mul(format.file_bytes()),
        plain => numbers.checked_mul(plain.bytes()),
    }
}

/// A header that holds what it says.
#[derive(Debug, Default)]
pub struct Header {
    /// By key.
    values: Vec<Name>,
    /// By name.
    tensors: Vec<Name>,
    alignment: usize,
    /// Where the tensors' numbers begin.
    data: usize,
}

/// A name as messages have it: without what a terminal would obey.
pub(super) fn shown(name: &str) -> String {
    name.escape_debug().to_string()
}

/// ggml's number of MXFP4.
const MXFP4: u32 = 39;

/// How what has ggml's number of a type is held, or the message that it is not.
fn weight_type(kind: u32) -> Result<WeightType, String> {
    let format = match kind {
        0 => return Ok(WeightType::F32),
        1 => return Ok(WeightType::F16),
        30 => return Ok(WeightType::Bf16),
        2 => Format::Q4_0,
        3 => Format::Q4_1,
        6 => Format::Q5_0,
        7 => Format::Q5_1,
        8 => Format::Q8_0,
        10 => Format::Q2K,
        11 => Format::Q3K,
        12 => Format::Q4K,
        13 => Format::Q5K,
        14 => Format::Q6K,
        MXFP4 => mxfp4::FORMAT,
        other => {
            let formats: Vec<&str> = Format::ALL.iter().map(|f| f.name()).collect();
            let formats = formats.join(", ");
            return Err(format!("has ggml's type {other}; F32, F16, BF16, {formats}, MXFP4 are read"));
        }
    };
    Ok(WeightType::Blocks(format))
}

impl Cursor<'_> {
    /// What follows the name of a tensor; it begins at `data` and its offset.
    fn entry(&mut self, name: &str, alignment: usize, data: usize) -> Result<Entry, HeaderError> {
        let what = &|| format!("tensor {}", shown(name));
        let fail = |problem: String| HeaderError::Tensor(shown(name), problem);
        let dimensions = self.u32(what)? as usize;
        if dimensions > MOST_DIMENSIONS {
            return Err(fail(format!("has {dimensions} dimensions")));
        }
        let mut lengths = [0; MOST_DIMENSIONS];
        for length in lengths[..dimensions].iter_mut().rev() {
            let said = self.u64(what)?;
            *length = usize::try_from(said).map_err(|_| fail(format!("is {said} long")))?;
        }
        let shape = &lengths[..dimensions];
        let number = self.u32(what)?;
        let (kind, mxfp4) = (weight_type(number).map_err(fail)?, number == MXFP4);
        let offset = self.u64(what)?;
        if !offset.is_multiple_of(alignment as u64) {
            return Err(fail(format!("begins at {offset}, not at a multiple of {alignment}")));
        }
        if let WeightType::Blocks(format) = kind
            && !shape.last().is_some_and(|cols| cols.is_multiple_of(format.block()))
        {
            let (name, block) = (format.name(), format.block());
            return Err(fail(format!("has shape {shape:?}; {name} has blocks of {block}")));
        }
        let begin = usize::try_from(offset).ok().and_then(|offset| data.checked_add(offset));
        let end = begin.zip(size((kind, mxfp4), shape)).and_then(|(begin, size)| begin.checked_add(size));
        match begin.zip(end) {
            Some((begin, end)) if end <= self.bytes.len() => {
                Ok(Entry { lengths, dimensions: dimensions as u8, kind, mxfp4, begin })
            }
            _ => Err(fail(format!("of shape {shape:?} ends beyond the end of the file"))),
        }
    }
}

impl Header {
    /// How many there are.
    pub fn tensors(&self) -> usize {
        self.tensors.len()
    }

    /// # Errors
    /// Everything that a file may say and not hold.
    pub fn read(bytes: &[u8]) -> Result<Header, HeaderError> {
        let mut cursor = Cursor { bytes, at: 0 };
        let begin = &|| "its header".to_owned();
        if !bytes.starts_with(b"GGUF") {
            return Err(HeaderError::Magic(bytes[..bytes.len().min(4)].to_vec()));
        }
        cursor.at = 4;
        match cursor.u32(begin)? {
            2 | 3 => {}
            version if matches!(version.swap_bytes(), 1..=3) => return Err(HeaderError::BigEndian),
            version => return Err(HeaderError::Version(version)),
        }
        let (tensors, values) = (cursor.u64(begin)?, cursor.u64(begin)?);
        for (what, count, most) in [("tensors", tensors, MOST_TENSORS), ("values", values, MOST_VALUES)] {
            if count > most {
                return Err(HeaderError::TooMany { what, count, most });
            }
        }
        let mut header = Header::default();
        if values > (bytes.len() - cursor.at) as u64 / SHORTEST_VALUE {
            return Err(HeaderError::Cut("its values".into()));
        }
        header.values.reserve_exact(values as usize);
        for index in 0..values {
            let (place, key) = cursor.name(&|| format!("the key of value {index}"))?;
            let what = &|| shown(key);
            let kind = cursor.u32(what)?;
            cursor.value(kind, what)?;
            header.values.push(place);
        }
        sort(&mut header.values, bytes).map_err(HeaderError::Twice)?;
        header.read_tensors(&mut cursor, tensors)?;
        Ok(header)
    }

    fn read_tensors(&mut self, cursor: &mut Cursor<'_>, count: u64) -> Result<(), HeaderError> {
        const ALIGNMENT: &str = "general.alignment";
        let (bytes, begin) = (cursor.bytes, cursor.at);
        let alignment = match (Metadata { header: self, bytes }).get(ALIGNMENT) {
            None => 32,
            Some(Value::Whole(n)) => usize::try_from(n).unwrap_or(0),
            Some(_) => 0,
        };
        if !alignment.is_power_of_two() || alignment > LARGEST_ALIGNMENT {
            return Err(HeaderError::Value(ALIGNMENT.into(), "is not a power of two up to 65536"));
        }
        if count > (bytes.len() - begin) as u64 / SHORTEST_TENSOR {
            return Err(HeaderError::Cut("its list of tensors".into()));
        }
        self.alignment = alignment;
        self.tensors.reserve_exact(count as usize);
        for index in 0..count {
            let (place, name) = cursor.name(&|| format!("the name of tensor {index}"))?;
            // As if all numbers began at the beginning, for where they do is not known yet.
            cursor.entry(name, alignment, 0)?;
            self.tensors.push(place);
        }
        self.data = cursor.at.next_multiple_of(alignment);
        for index in 0..count {
            let mut again = Cursor { bytes, at: self.tensors[index as usize].end() };
            let name = String::from_utf8_lossy(self.tensors[index as usize].of(bytes));
            again.entry(&name, alignment, self.data)?;
        }
        sort(&mut self.tensors, bytes).map_err(|name| HeaderError::Twice(format!("tensor {name}")))
    }

    fn entry(&self, place: Name, bytes: &[u8]) -> Option<Entry> {
        Cursor { bytes, at: place.end() }.entry("", self.alignment, self.data).ok()
    }
}

fn too_long(key: &str, count: usize, most: usize) -> HeaderError {
    HeaderError::Unsupported(key.into(), format!("has {count} entries; there is room for {most}"))
}

/// A header with its file's bytes: values by key.
#[derive(Clone, Copy)]
pub struct Metadata<'a> {
    pub header: &'a Header,
    pub bytes: &'a [u8],
}

impl<'a> Metadata<'a> {
    fn get(&self, key: &str) -> Option<Value> {
        let place = find(&self.header.values, self.bytes, key)?;
        let mut cursor = Cursor { bytes: self.bytes, at: place.end() };
        let kind = cursor.u32(&String::new).ok()?;
        cursor.value(kind, &String::new).ok()
    }

    pub fn has(&self, key: &str) -> bool {
        find(&self.header.values, self.bytes, key).is_some()
    }

    pub fn has_tensor(&self, name: &str) -> bool {
        find(&self.header.tensors, self.bytes, name).is_some()
    }

    pub fn tensor(&self, name: &str) -> Option<Entry> {
        self.header.entry(find(&self.header.tensors, self.bytes, name)?, self.bytes)
    }

    /// Of all tensors, name by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&'a str, Entry)> {
        let (header, bytes) = (self.header, self.bytes);
        let named = move |place: &'a Name| {
            Some((std::str::from_utf8(place.of(bytes)).ok()?, header.entry(*place, bytes)?))
        };
        header.tensors.iter().filter_map(named)
    }

    /// # Errors
    /// A value that is no whole number from 0 on.
    pub fn whole(&self, key: &str) -> Result<Option<u64>, HeaderError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Whole(n)) if u64::try_from(n).is_ok() => Ok(u64::try_from(n).ok()),
            Some(_) => Err(HeaderError::Value(key.into(), "is no whole number from 0 on")),
        }
    }

    /// # Errors
    /// A value that is no finite number.
    pub fn number(&self, key: &str) -> Result<Option<f64>, HeaderError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Float(x)) if x.is_finite() => Ok(Some(x)),
            Some(Value::Whole(n)) => Ok(Some(n as f64)),
            Some(_) => Err(HeaderError::Value(key.into(), "is no finite number")),
        }
    }

    /// # Errors
    /// A value that is neither true nor false.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, HeaderError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(yes)) => Ok(Some(yes)),
            Some(_) => Err(HeaderError::Value(key.into(), "is neither true nor false")),
        }
    }

    /// # Errors
    /// A value that is no text.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>, HeaderError> {
        let not = || HeaderError::Value(key.into(), "is no text in UTF-8");
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(at)) => std::str::from_utf8(&self.bytes[at]).map(Some).map_err(|_| not()),
            Some(_) => Err(not()),
        }
    }

    /// `most`: entries of a list that is read at all.
    ///
    /// # Errors
    /// A value that is no list of texts, too many of them.
    pub fn texts(&self, key: &str, most: usize) -> Result<Option<Vec<&'a str>>, HeaderError> {
        let not = || HeaderError::Value(key.into(), "is no list of texts in UTF-8");
        match self.get(key) {
            None => Ok(None),
            Some(Value::List { count, .. }) if count > most => Err(too_long(key, count, most)),
            Some(Value::List { kind: TEXT, count, at }) => {
                let mut cursor = Cursor { bytes: self.bytes, at };
                let mut text = || {
                    let place = cursor.text(&|| key.to_owned())?;
                    std::str::from_utf8(&self.bytes[place]).map_err(|_| not())
                };
                (0..count).map(|_| text()).collect::<Result<_, _>>().map(Some)
            }
            Some(_) => Err(not()),
        }
    }

    /// # Errors
    /// A value that is no list of as many numbers.
    pub fn numbers(&self, key: &str, wanted: usize) -> Result<Option<Vec<f64>>, HeaderError> {
        let not = || HeaderError::Value(key.into(), "is no list of numbers");
        match self.get(key) {
            None => Ok(None),
            Some(Value::List { count, .. }) if count != wanted => Err(HeaderError::Unsupported(
                key.into(),
                format!("has {count} entries where {wanted} belong"),
            )),
            Some(Value::List { kind, count, at }) => {
                let width = width(kind).ok_or_else(not)?;
                let number = |bytes: &[u8]| match fixed(kind, bytes) {
                    Value::Whole(n) => Ok(n as f64),
                    Value::Float(x) => Ok(x),
                    _ => Err(not()),
                };
                let bytes = &self.bytes[at..at + count * width];
                bytes.chunks_exact(width).map(number).collect::<Result<_, _>>().map(Some)
            }
            Some(_) => Err(not()),
        }
    }
}
