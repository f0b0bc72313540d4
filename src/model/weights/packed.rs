//! Matrices of four bits in safetensors: what AWQ and GPTQ pack into words, put into blocks.
//!
//! A weight is `scale · (code − zero)`: a code of its own, a scale and a zero point of its output and its group of inputs.
//! Q4_0 holds that as it is where every zero point is 8, and Q5_0, whose codes have a bit more, with any (its code is
//! `code − zero + 16`): not a bit is rounded. Where the inputs of a block are of several groups, as GPTQ's act-order has
//! them, or scales are no f16, the matrix is multiplied out instead.

use std::collections::HashMap;
use std::sync::Arc;

use half::{bf16, f16};
use safetensors::Dtype;

use super::four_bit::{FourBit, Method, Packing};
use super::safetensors::{Part, TensorTable};
use super::stacks::Stacked;
use crate::model::LoadError;
use crate::ops::blocks::{Blocks, Format, GROUP, TILE, mxfp4};
use crate::ops::pool::Pool;
use crate::ops::weight::{Weight, WeightType};

/// Codes in a word.
const CODES: usize = 8;
/// A one for each code of a word.
const ONES: u32 = 0x1111_1111;

fn word(bytes: &[u8], index: usize) -> u32 {
    let b = &bytes[4 * index..][..4];
    u32::from_le_bytes([b[0], b[1], b[2], b[3]])
}

/// A packed matrix `[rows, cols]`; rows are outputs.
pub(super) struct Packed<'a> {
    how: Packing,
    rows: usize,
    cols: usize,
    groups: usize,
    /// AWQ: words `[cols, rows / 8]`. GPTQ: `[cols / 8, rows]`.
    codes: Part<'a>,
    /// Words `[groups, rows / 8]`.
    zeros: Part<'a>,
    /// `[groups, rows]`
    scales: Part<'a>,
    /// Of each input.
    group_of: Vec<usize>,
}

impl<'a> Packed<'a> {
    /// The parts of `module`, checked but for their numbers.
    ///
    /// # Errors
    /// Parts that are missing, of another shape or type; groups that are not there.
    pub fn of(
        table: &'a TensorTable,
        module: &str,
        (rows, cols): (usize, usize),
        how: Packing,
    ) -> Result<Packed<'a>, LoadError> {
        let part = |name: &str, shape: &[usize], types: &[Dtype]| {
            table.part(&format!("{module}.{name}"), shape, types)
        };
        let size = how.group.unwrap_or(cols).max(1);
        let groups = cols.div_ceil(size);
        let whole = rows.is_multiple_of(CODES) && (how.method == Method::Awq || cols.is_multiple_of(CODES));
        if !whole {
            let name = format!("{module}.qweight");
            let problem = format!("is of a matrix [{rows}, {cols}], which is not packed into whole words");
            return Err(LoadError::tensor(&table.file_of(&name), &name, problem));
        }
        let shape = match how.method {
            Method::Awq => [cols, rows / CODES],
            Method::Gptq => [cols / CODES, rows],
        };
        let codes = part("qweight", &shape, &[Dtype::I32])?;
        let zeros = part("qzeros", &[groups, rows / CODES], &[Dtype::I32])?;
        let scales = part("scales", &[groups, rows], &[Dtype::F16, Dtype::BF16, Dtype::F32])?;
        let in_turn = || (0..cols).map(|col| col / size).collect();
        let has_order = table.has(&format!("{module}.g_idx"));
        let group_of = match how.method {
            Method::Gptq if how.act_order || has_order => {
                order(&part("g_idx", &[cols], &[Dtype::I32])?, groups)?
            }
            _ => in_turn(),
        };
        Ok(Packed { how, rows, cols, groups, codes, zeros, scales, group_of })
    }

    /// The blocks that hold the matrix as it is.
    pub fn format(&self) -> Option<Format> {
        let of_one_group = |tile: &[usize]| tile.len() == TILE && tile.iter().all(|group| *group == tile[0]);
        let all = 0..self.groups * self.rows;
        let halves = self.scales.dtype == Dtype::F16
            || all.map(|i| self.scale(i)).all(|scale| f16::from_f32(scale).to_f32() == scale);
        if !halves || !self.group_of.chunks(TILE).all(of_one_group) {
            return None;
        }
        let words = 0..self.zeros.bytes.len() / 4;
        let centred = words.map(|i| self.zeros_at(i)).all(|zeros| zeros == 8 * ONES);
        Some(if centred { Format::Q4_0 } else { Format::Q5_0 })
    }

    /// The matrix, in the blocks that [`Packed::format`] says, or f32.
    ///
    /// # Errors
    /// Scales that are NaN or infinite.
    pub fn weight(&self, format: Option<Format>, pool: &Pool) -> Result<Weight, LoadError> {
        if let Some(i) = (0..self.groups * self.rows).find(|i| !self.scale(*i).is_finite()) {
            let problem = format!("element {i} is {}", self.scale(i));
            return Err(LoadError::tensor(self.scales.file, &self.scales.name, problem));
        }
        let Some(format) = format else { return Ok(self.multiplied_out()) };
        let blocks = Blocks::of_codes(format, (self.rows, self.cols), pool, &|row, block, to| {
            let group = self.group_of[block * TILE];
            let less = self.zero(group, row) - format.offset();
            for (i, to) in to.iter_mut().enumerate() {
                *to = (self.code(row, block * TILE + i) - less) as u8;
            }
            f16::from_f32(self.scale(group * self.rows + row))
        });
        let blocks = blocks.map_err(|e| LoadError::tensor(self.codes.file, &self.codes.name, e))?;
        Ok(Weight::from_blocks(blocks))
    }

    /// Exact: a scale has 24 bits at most, and those of all types but f32 have 11.
    fn multiplied_out(&self) -> Weight {
        let mut numbers = Vec::with_capacity(self.rows * self.cols);
        let (mut scales, mut zeros) = (vec![0.0; self.groups], vec![0; self.groups]);
        for row in 0..self.rows {
            for group in 0..self.groups {
                scales[group] = self.scale(group * self.rows + row);
                zeros[group] = self.zero(group, row);
            }
            let number =
                |(col, group): (usize, &usize)| scales[*group] * (self.code(row, col) - zeros[*group]) as f32;
            numbers.extend(self.group_of.iter().enumerate().map(number));
        }
        Weight::from_f32(numbers, self.rows, self.cols)
    }

    fn scale(&self, index: usize) -> f32 {
        let b = self.scales.bytes;
        match self.scales.dtype {
            Dtype::F16 => f16::from_le_bytes([b[2 * index], b[2 * index + 1]]).to_f32(),
            Dtype::BF16 => bf16::from_le_bytes([b[2 * index], b[2 * index + 1]]).to_f32(),
            _ => f32::from_bits(word(b, index)),
        }
    }

    /// A word of zero points. Less one they are stored as whole words: a zero point of 0 borrows from the next, and
    /// adding to the word gives back what was lent.
    fn zeros_at(&self, index: usize) -> u32 {
        let stored = word(self.zeros.bytes, index);
        if self.how.less_one { stored.wrapping_add(ONES) } else { stored }
    }

    fn zero(&self, group: usize, row: usize) -> i32 {
        let zeros = self.zeros_at(group * (self.rows / CODES) + row / CODES);
        (zeros >> self.place_of_output(row) & 15) as i32
    }

    fn code(&self, row: usize, col: usize) -> i32 {
        let (index, place) = match self.how.method {
            Method::Awq => (col * (self.rows / CODES) + row / CODES, self.place_of_output(row)),
            Method::Gptq => (col / CODES * self.rows + row, 4 * (col % CODES)),
        };
        (word(self.codes.bytes, index) >> place & 15) as i32
    }

    /// From which bit on an output lies in a word that has several: AWQ's have the even ones first.
    fn place_of_output(&self, row: usize) -> usize {
        match self.how.method {
            Method::Awq => 4 * (row % CODES / 2 + row % 2 * (CODES / 2)),
            Method::Gptq => 4 * (row % CODES),
        }
    }
}

/// The groups of `g_idx`.
fn order(part: &Part<'_>, groups: usize) -> Result<Vec<usize>, LoadError> {
    let of_input = |input: usize| {
        let group = word(part.bytes, input);
        usize::try_from(group).ok().filter(|group| *group < groups).ok_or_else(|| {
            let problem = format!(
                "input {input} is of group {}, and there are groups 0 to {}",
                group.cast_signed(),
                groups.saturating_sub(1)
            );
            LoadError::tensor(part.file, &part.name, problem)
        })
    };
    (0..part.bytes.len() / 4).map(of_input).collect()
}

/// The packed matrices of a checkpoint.
pub struct FourBitTable {
    how: FourBit,
    /// Puts codes into our layout.
    pool: Arc<Pool>,
    /// By the name that a plain weight would have: the blocks that hold it, or none where it is multiplied out.
    formats: HashMap<String, Option<Format>>,
}

impl FourBitTable {
    /// Those of a decoder's tensors that are packed.
    ///
    /// # Errors
    /// As [`Packed::of`]; a module that is there twice; a bias that the decoder would leave out.
    pub(super) fn of(
        table: &TensorTable,
        how: FourBit,
        tensors: impl Iterator<Item = (String, Vec<usize>)>,
        pool: &Arc<Pool>,
    ) -> Result<FourBitTable, LoadError> {
        let formats = match how {
            FourBit::Packed(packing) => FourBitTable::packed(table, packing, tensors)?,
            FourBit::Mxfp4 => FourBitTable::stacked(table, tensors)?,
        };
        Ok(FourBitTable { how, pool: pool.clone(), formats })
    }

    /// The experts' matrices that are there in MXFP4.
    fn stacked(
        table: &TensorTable,
        tensors: impl Iterator<Item = (String, Vec<usize>)>,
    ) -> Result<HashMap<String, Option<Format>>, LoadError> {
        let mut formats = HashMap::new();
        for (name, shape) in tensors {
            if let Some(stacked) = Stacked::of(&name).filter(|stacked| stacked.is_mxfp4(table)) {
                stacked.check_mxfp4(table, super::rows_cols(&shape))?;
                formats.insert(name, Some(mxfp4::FORMAT));
            }
        }
        Ok(formats)
    }

    fn packed(
        table: &TensorTable,
        how: Packing,
        tensors: impl Iterator<Item = (String, Vec<usize>)>,
    ) -> Result<HashMap<String, Option<Format>>, LoadError> {
        let (mut formats, mut tensors) = (HashMap::new(), tensors.peekable());
        while let Some((name, shape)) = tensors.next() {
            let (Some(module), [rows, cols]) = (name.strip_suffix(".weight"), shape.as_slice()) else {
                continue;
            };
            let packed = format!("{module}.qweight");
            if !table.has(&packed) {
                continue;
            }
            if table.has(&name) {
                let problem = format!("is there, and so is `{packed}`: which of them counts is not known");
                return Err(LoadError::tensor(&table.file_of(&name), &name, problem));
            }
            let bias = format!("{module}.bias");
            // A decoder's own comes next.
            if tensors.peek().is_none_or(|(next, _)| *next != bias) {
                // GPTQ's tools write one for every module, of zeros.
                table.check_zeros(&bias, &[*rows])?;
            }
            let format = Packed::of(table, module, (*rows, *cols), how)?.format();
            formats.insert(name, format);
        }
        Ok(formats)
    }

    pub fn how(&self) -> FourBit {
        self.how
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.formats.contains_key(name)
    }

    /// What a packed matrix becomes; `None` of any other tensor. `plain`: of one that is multiplied out.
    pub fn kind(&self, name: &str, plain: WeightType) -> Option<WeightType> {
        self.formats.get(name).map(|format| format.map_or(plain, WeightType::Blocks))
    }

    /// What most packed matrices become.
    pub fn kinds(&self, plain: WeightType) -> WeightType {
        let count = |wanted: Option<Format>| self.formats.values().filter(|f| **f == wanted).count();
        [Some(Format::Q5_0), Some(Format::Q4_0), None]
            .into_iter()
            .max_by_key(|format| count(*format))
            .flatten()
            .map_or(plain, WeightType::Blocks)
    }

    pub fn has_blocks(&self) -> bool {
        self.formats.values().any(Option::is_some)
    }

    pub fn is_multiplied_out(&self, name: &str) -> bool {
        self.formats.get(name) == Some(&None)
    }

    /// How many matrices are multiplied out, and how many are packed.
    pub fn multiplied_out(&self) -> (usize, usize) {
        (self.formats.values().filter(|format| format.is_none()).count(), self.formats.len())
    }

    /// Bytes of a tensor as it will be held.
    pub fn held_bytes(&self, name: &str, shape: &[usize], plain: WeightType) -> usize {
        let (rows, cols) = super::rows_cols(shape);
        match self.kind(name, plain) {
            Some(WeightType::Blocks(format)) => format.size(rows.next_multiple_of(GROUP) * cols),
            _ => plain.size(rows * cols),
        }
    }

    /// Reads one of [`FourBitTable::has`].
    pub(super) fn weight(
        &self,
        table: &TensorTable,
        name: &str,
        shape: (usize, usize),
    ) -> Result<Weight, LoadError> {
        match (self.how, Stacked::of(name)) {
            (FourBit::Packed(packing), _) => {
                let module = name.trim_end_matches(".weight");
                let format = self.formats.get(name).copied().flatten();
                Packed::of(table, module, shape, packing)?.weight(format, &self.pool)
            }
            (FourBit::Mxfp4, Some(stacked)) => stacked.mxfp4(table, shape, &self.pool),
            (FourBit::Mxfp4, None) => Err(LoadError::tensor(
                &table.file_of(name),
                name,
                "is no expert's, and MXFP4 is of experts alone",
            )),
        }
    }
}
