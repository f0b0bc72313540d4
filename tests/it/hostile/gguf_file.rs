//! A GGUF file taken apart and put together again, so that a change of one part leaves the others where they are found.

use super::random::Random;

#[derive(Clone, Default)]
pub struct GgufFile {
    version: u32,
    /// Key, type, bytes.
    values: Vec<(Vec<u8>, u32, Vec<u8>)>,
    tensors: Vec<Tensor>,
    numbers: Vec<u8>,
}

#[derive(Clone)]
struct Tensor {
    name: Vec<u8>,
    lengths: Vec<u64>,
    kind: u32,
    offset: u64,
}

fn text(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes()[..], bytes].concat()
}

/// The value of a text.
pub fn of_text(value: &str) -> (u32, Vec<u8>) {
    (8, text(value.as_bytes()))
}

pub fn of_u32(value: u32) -> (u32, Vec<u8>) {
    (4, value.to_le_bytes().to_vec())
}

pub fn of_f32(value: f32) -> (u32, Vec<u8>) {
    (6, value.to_le_bytes().to_vec())
}

/// Of values of one type; `kind` where there may be none.
pub fn of_list(kind: u32, values: &[(u32, Vec<u8>)]) -> (u32, Vec<u8>) {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend((values.len() as u64).to_le_bytes());
    values.iter().for_each(|(_, value)| bytes.extend(value));
    (9, bytes)
}

impl GgufFile {
    pub fn new() -> GgufFile {
        GgufFile { version: 3, ..GgufFile::default() }
    }

    pub fn value(&mut self, key: &str, (kind, bytes): (u32, Vec<u8>)) {
        self.values.push((key.into(), kind, bytes));
    }

    /// Another value of a key, or the first.
    pub fn replace(&mut self, key: &str, value: (u32, Vec<u8>)) {
        self.values.retain(|(other, ..)| other != key.as_bytes());
        self.value(key, value);
    }

    /// `lengths`: the columns first, as in the file. `bytes` in the type's own layout.
    pub fn tensor(&mut self, name: &str, lengths: &[u64], kind: u32, bytes: &[u8]) {
        self.numbers.resize(self.numbers.len().next_multiple_of(32), 0);
        let offset = self.numbers.len() as u64;
        self.tensors.push(Tensor { name: name.into(), lengths: lengths.into(), kind, offset });
        self.numbers.extend(bytes);
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.values.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.values {
            bytes.extend(text(key));
            bytes.extend(kind.to_le_bytes());
            bytes.extend(value);
        }
        for Tensor { name, lengths, kind, offset } in &self.tensors {
            bytes.extend(text(name));
            bytes.extend((lengths.len() as u32).to_le_bytes());
            lengths.iter().for_each(|n| bytes.extend(n.to_le_bytes()));
            bytes.extend(kind.to_le_bytes());
            bytes.extend(offset.to_le_bytes());
        }
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(&self.numbers);
        bytes
    }

    /// The parts of a file that [`GgufFile::bytes`] made, or one much like it.
    pub fn read(bytes: &[u8]) -> Option<GgufFile> {
        let mut rest = bytes.strip_prefix(b"GGUF")?;
        let rest = &mut rest;
        let version = u32_of(rest)?;
        let (tensors, values) = (u64_of(rest)?, u64_of(rest)?);
        let mut file = GgufFile { version, ..GgufFile::default() };
        for _ in 0..values {
            let (key, kind) = (text_of(rest)?, u32_of(rest)?);
            let before = *rest;
            skip(rest, kind)?;
            file.values.push((key, kind, before[..before.len() - rest.len()].to_vec()));
        }
        for _ in 0..tensors {
            let name = text_of(rest)?;
            let dimensions = u32_of(rest)?;
            let lengths = (0..dimensions.min(8)).map(|_| u64_of(rest)).collect::<Option<_>>()?;
            let (kind, offset) = (u32_of(rest)?, u64_of(rest)?);
            file.tensors.push(Tensor { name, lengths, kind, offset });
        }
        let at = (bytes.len() - rest.len()).next_multiple_of(32).min(bytes.len());
        file.numbers = bytes[at..].to_vec();
        Some(file)
    }

    /// Changes one thing.
    pub fn change(&mut self, random: &mut Random) {
        let value = random.below(self.values.len());
        let tensor = random.below(self.tensors.len());
        match random.below(12) {
            0 if !self.values.is_empty() => drop(self.values.remove(value)),
            1 if !self.values.is_empty() => {
                let of_other = random.pick(&self.values).clone();
                (self.values[value].1, self.values[value].2) = (of_other.1, of_other.2);
            }
            2..=4 if !self.values.is_empty() => {
                let (_, kind, bytes) = &mut self.values[value];
                let edge = random.edge().to_le_bytes();
                match random.below(4) {
                    0 => *kind = random.below(14) as u32,
                    1 => (*kind, *bytes) = (10, edge.to_vec()),
                    2 => (*kind, *bytes) = (6, f32::from_bits(random.next() as u32).to_le_bytes().to_vec()),
                    _ => {
                        let at = random.below(bytes.len());
                        bytes.iter_mut().skip(at).zip(edge).for_each(|(byte, edge)| *byte = edge);
                    }
                }
            }
            5 if !self.values.is_empty() => {
                // Of lists: another length, or the same things twice.
                let bytes = &mut self.values[value].2;
                let half = bytes[bytes.len() / 2..].to_vec();
                bytes.extend(half);
            }
            6 if !self.tensors.is_empty() => drop(self.tensors.remove(tensor)),
            7 if !self.tensors.is_empty() => {
                let again = self.tensors[tensor].clone();
                self.tensors.push(again);
            }
            8..=10 if !self.tensors.is_empty() => {
                let edge = random.edge();
                let tensor = &mut self.tensors[tensor];
                let length = random.below(tensor.lengths.len());
                match random.below(5) {
                    0 => tensor.kind = random.below(40) as u32,
                    1 => tensor.offset = edge,
                    2 => tensor.lengths.push(edge % 5),
                    3 => drop(tensor.lengths.pop()),
                    _ => tensor.lengths.iter_mut().skip(length).take(1).for_each(|n| *n = edge),
                }
            }
            _ => {
                let at = random.below(self.numbers.len());
                self.numbers.iter_mut().skip(at).take(4).for_each(|byte| *byte = random.next() as u8 | 0x7f);
            }
        }
    }
}

fn take<'a>(rest: &mut &'a [u8], count: u64) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(usize::try_from(count).ok()?)?;
    *rest = after;
    Some(taken)
}

fn u32_of(rest: &mut &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(take(rest, 4)?.try_into().ok()?))
}

fn u64_of(rest: &mut &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(take(rest, 8)?.try_into().ok()?))
}

fn text_of(rest: &mut &[u8]) -> Option<Vec<u8>> {
    let length = u64_of(rest)?;
    take(rest, length).map(<[u8]>::to_vec)
}

fn skip(rest: &mut &[u8], kind: u32) -> Option<()> {
    match kind {
        8 => text_of(rest).map(drop),
        9 => {
            let (kind, count) = (u32_of(rest)?, u64_of(rest)?);
            (kind != 9).then(|| (0..count).try_for_each(|_| skip(rest, kind)))?
        }
        0 | 1 | 7 => take(rest, 1).map(drop),
        2 | 3 => take(rest, 2).map(drop),
        4..=6 => take(rest, 4).map(drop),
        10..=12 => take(rest, 8).map(drop),
        _ => None,
    }
}
