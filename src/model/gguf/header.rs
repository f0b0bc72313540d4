//! The header of a GGUF file (version 2 and 3, ggml/docs/gguf.md), checked before anything is believed.
//!
//! Nothing is reserved by a number that the file says of itself: counts and lengths must fit into what is left of the
//! file first. Names and long values (vocabularies, merges) stay where they are and are read when they are asked for: a
//! header takes less than twice its length.

use std::collections::HashMap;
use std::ops::Range;

use crate::ops::blocks::Format;
use crate::ops::weight::WeightType;

/// Of metadata and tensors: real files have some dozens and some thousands.
const MOST_VALUES: u64 = 1 << 12;
const MOST_TENSORS: u64 = 1 << 16;
const LONGEST_NAME: u64 = 1 << 10;
const MOST_DIMENSIONS: usize = 4;
const LARGEST_ALIGNMENT: u64 = 1 << 16;

/// What is wrong with a header.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum HeaderError {
    #[error("is no GGUF file: it begins with {0:02x?}")]
    Magic(Vec<u8>),
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

/// A value of the metadata. Texts and lists are places in the file.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Whole(i128),
    Float(f64),
    Bool(bool),
    Text(Range<usize>),
    List { kind: u32, count: usize, at: usize },
}

/// A tensor's entry.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    name: Range<usize>,
    lengths: [usize; MOST_DIMENSIONS],
    dimensions: u8,
    pub kind: WeightType,
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
        self.begin..self.begin + size(self.kind, self.shape()).unwrap_or_default()
    }
}

/// Bytes of a tensor in a file, unless they are more than there are.
fn size(kind: WeightType, shape: &[usize]) -> Option<usize> {
    let numbers = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?;
    match kind {
        WeightType::Blocks(format) => (numbers / format.block()).checked_mul(format.file_bytes()),
        plain => numbers.checked_mul(plain.bytes()),
    }
}

/// A header that holds what it says.
#[derive(Debug, Default)]
pub struct Header {
    values: HashMap<Box<str>, Value>,
    /// By name.
    tensors: Vec<Entry>,
}

/// A name as messages have it: without what a terminal would obey.
fn shown(name: &str) -> String {
    name.escape_debug().to_string()
}

/// Bytes of a value of a fixed size.
fn width(kind: u32) -> Option<usize> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

const TEXT: u32 = 8;
const LIST: u32 = 9;

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
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

    fn u32(&mut self, what: &dyn Fn() -> String) -> Result<u32, HeaderError> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &dyn Fn() -> String) -> Result<u64, HeaderError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// The place of a text behind its length.
    fn text(&mut self, what: &dyn Fn() -> String) -> Result<Range<usize>, HeaderError> {
        let length = self.u64(what)?;
        let length = usize::try_from(length).map_err(|_| HeaderError::Cut(what()))?;
        self.take(length, what)?;
        Ok(self.at - length..self.at)
    }

    fn name(&mut self, what: &dyn Fn() -> String) -> Result<&'a str, HeaderError> {
        let place = self.text(what)?;
        let short = place.len() as u64 <= LONGEST_NAME;
        let name = std::str::from_utf8(&self.bytes[place]).ok().filter(|_| short);
        name.ok_or_else(|| HeaderError::Name(what()))
    }

    fn value(&mut self, kind: u32, what: &dyn Fn() -> String) -> Result<Value, HeaderError> {
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
fn fixed(kind: u32, bytes: &[u8]) -> Value {
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

/// ggml's number of a type, or its name for the message.
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
        other => {
            let formats: Vec<&str> = Format::ALL.iter().map(|f| f.name()).collect();
            let formats = formats.join(", ");
            return Err(format!("has ggml's type {other}; F32, F16, BF16, {formats} are read"));
        }
    };
    Ok(WeightType::Blocks(format))
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
            version => return Err(HeaderError::Version(version)),
        }
        let (tensors, values) = (cursor.u64(begin)?, cursor.u64(begin)?);
        for (what, count, most) in [("tensors", tensors, MOST_TENSORS), ("values", values, MOST_VALUES)] {
            if count > most {
                return Err(HeaderError::TooMany { what, count, most });
            }
        }
        let mut header = Header::default();
        for index in 0..values {
            let key = cursor.name(&|| format!("the key of value {index}"))?;
            let what = &|| shown(key);
            let kind = cursor.u32(what)?;
            let value = cursor.value(kind, what)?;
            if header.values.insert(key.into(), value).is_some() {
                return Err(HeaderError::Twice(shown(key)));
            }
        }
        header.read_tensors(&mut cursor, tensors)?;
        Ok(header)
    }

    fn read_tensors(&mut self, cursor: &mut Cursor<'_>, count: u64) -> Result<(), HeaderError> {
        const ALIGNMENT: &str = "general.alignment";
        let alignment = match self.values.get(ALIGNMENT) {
            None => 32,
            Some(Value::Whole(n)) => u64::try_from(*n).unwrap_or(0),
            Some(_) => 0,
        };
        if !alignment.is_power_of_two() || alignment > LARGEST_ALIGNMENT {
            return Err(HeaderError::Value(ALIGNMENT.into(), "is not a power of two up to 65536"));
        }
        /// Of an entry: a name, dimensions, a type and an offset.
        const SHORTEST: u64 = 24;
        if count > (cursor.bytes.len() - cursor.at) as u64 / SHORTEST {
            return Err(HeaderError::Cut("its list of tensors".into()));
        }
        self.tensors.reserve_exact(count as usize);
        for index in 0..count {
            let name = cursor.name(&|| format!("the name of tensor {index}"))?;
            let end_of_name = cursor.at;
            let what = &|| format!("tensor {}", shown(name));
            let fail = |problem: String| HeaderError::Tensor(shown(name), problem);
            let dimensions = cursor.u32(what)? as usize;
            if dimensions > MOST_DIMENSIONS {
                return Err(fail(format!("has {dimensions} dimensions")));
            }
            let mut lengths = [0; MOST_DIMENSIONS];
            for length in lengths[..dimensions].iter_mut().rev() {
                let said = cursor.u64(what)?;
                *length = usize::try_from(said).map_err(|_| fail(format!("is {said} long")))?;
            }
            let shape = &lengths[..dimensions];
            let kind = weight_type(cursor.u32(what)?).map_err(fail)?;
            let offset = cursor.u64(what)?;
            if !offset.is_multiple_of(alignment) {
                return Err(fail(format!("begins at {offset}, not at a multiple of {alignment}")));
            }
            if let WeightType::Blocks(format) = kind
                && !shape.last().is_some_and(|cols| cols.is_multiple_of(format.block()))
            {
                let (name, block) = (format.name(), format.block());
                return Err(fail(format!("has shape {shape:?}; {name} has blocks of {block}")));
            }
            let begin = usize::try_from(offset).map_err(|_| fail(format!("begins at {offset}")))?;
            let (name, dimensions) = (end_of_name - name.len()..end_of_name, dimensions as u8);
            self.tensors.push(Entry { name, lengths, dimensions, kind, begin });
        }
        let (bytes, name_of) = (cursor.bytes, |entry: &Entry| &cursor.bytes[entry.name.clone()]);
        let named = |entry: &Entry| shown(&String::from_utf8_lossy(name_of(entry)));
        let data = cursor.at.next_multiple_of(alignment as usize);
        for entry in &mut self.tensors {
            let (begin, size) = (data.checked_add(entry.begin), size(entry.kind, entry.shape()));
            let end = begin.zip(size).and_then(|(begin, size)| begin.checked_add(size));
            if end.is_none_or(|end| end > bytes.len()) {
                let problem = format!("of shape {:?} ends beyond the end of the file", entry.shape());
                return Err(HeaderError::Tensor(named(entry), problem));
            }
            entry.begin += data;
        }
        self.tensors.sort_unstable_by(|a, b| name_of(a).cmp(name_of(b)));
        match self.tensors.windows(2).find(|two| name_of(&two[0]) == name_of(&two[1])) {
            Some(two) => Err(HeaderError::Twice(format!("tensor {}", named(&two[0])))),
            None => Ok(()),
        }
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
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.header.values.get(key)
    }

    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    pub fn tensor(&self, name: &str) -> Option<&'a Entry> {
        let all = &self.header.tensors;
        let found = all.binary_search_by(|entry| self.bytes[entry.name.clone()].cmp(name.as_bytes()));
        found.ok().map(|index| &all[index])
    }

    /// Of all tensors, name by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&'a str, &'a Entry)> {
        let bytes = self.bytes;
        let named =
            move |entry: &'a Entry| Some((std::str::from_utf8(&bytes[entry.name.clone()]).ok()?, entry));
        self.header.tensors.iter().filter_map(named)
    }

    /// # Errors
    /// A value that is no whole number from 0 on.
    pub fn whole(&self, key: &str) -> Result<Option<u64>, HeaderError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Whole(n)) if u64::try_from(*n).is_ok() => Ok(u64::try_from(*n).ok()),
            Some(_) => Err(HeaderError::Value(key.into(), "is no whole number from 0 on")),
        }
    }

    /// # Errors
    /// A value that is no finite number.
    pub fn number(&self, key: &str) -> Result<Option<f64>, HeaderError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Float(x)) if x.is_finite() => Ok(Some(*x)),
            Some(Value::Whole(n)) => Ok(Some(*n as f64)),
            Some(_) => Err(HeaderError::Value(key.into(), "is no finite number")),
        }
    }

    /// # Errors
    /// A value that is neither true nor false.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, HeaderError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(yes)) => Ok(Some(*yes)),
            Some(_) => Err(HeaderError::Value(key.into(), "is neither true nor false")),
        }
    }

    /// # Errors
    /// A value that is no text.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>, HeaderError> {
        let not = || HeaderError::Value(key.into(), "is no text in UTF-8");
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(at)) => {
                std::str::from_utf8(&self.bytes[at.clone()]).map(Some).map_err(|_| not())
            }
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
            Some(Value::List { count, .. }) if *count > most => Err(too_long(key, *count, most)),
            Some(Value::List { kind: TEXT, count, at }) => {
                let mut cursor = Cursor { bytes: self.bytes, at: *at };
                let mut text = || {
                    let place = cursor.text(&|| key.to_owned())?;
                    std::str::from_utf8(&self.bytes[place]).map_err(|_| not())
                };
                (0..*count).map(|_| text()).collect::<Result<_, _>>().map(Some)
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
            Some(Value::List { count, .. }) if *count != wanted => Err(HeaderError::Unsupported(
                key.into(),
                format!("has {count} entries where {wanted} belong"),
            )),
            Some(Value::List { kind, count, at }) => {
                let width = width(*kind).ok_or_else(not)?;
                let number = |bytes: &[u8]| match fixed(*kind, bytes) {
                    Value::Whole(n) => Ok(n as f64),
                    Value::Float(x) => Ok(x),
                    _ => Err(not()),
                };
                let bytes = &self.bytes[*at..*at + count * width];
                bytes.chunks_exact(width).map(number).collect::<Result<_, _>>().map(Some)
            }
            Some(_) => Err(not()),
        }
    }
}
