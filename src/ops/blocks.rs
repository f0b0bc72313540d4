//! Numbers in blocks: the quantised types of GGUF (as llama.cpp defines them), in a layout for products.
//!
//! A number is `scale · (code − offset) + floor`. Its code has 2 to 8 bits; scale and floor are those of a block of 32
//! numbers, or of a block of 256 times small whole numbers of its parts. Here sixteen rows of a matrix lie side by side,
//! so that a vector register has four codes of each: a product then adds up whole numbers lane by lane, and no lanes at
//! its end.

use half::f16;

mod codes;
mod ggml;
mod kernels;
pub mod mxfp4;
mod quantise;
pub use codes::Codes;

/// Rows whose codes lie side by side.
pub const GROUP: usize = 16;
/// Numbers of a row in a tile of codes: what one scale of the activations is for.
pub const TILE: usize = 32;
/// Numbers of a block at most.
const LONGEST: usize = 256;

/// A quantised type of GGUF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

impl Format {
    pub const ALL: [Format; 10] = [
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q8_0,
        Format::Q2K,
        Format::Q3K,
        Format::Q4K,
        Format::Q5K,
        Format::Q6K,
    ];

    /// As GGUF names it.
    pub const fn name(self) -> &'static str {
        match self {
            Format::Q4_0 => "Q4_0",
            Format::Q4_1 => "Q4_1",
            Format::Q5_0 => "Q5_0",
            Format::Q5_1 => "Q5_1",
            Format::Q8_0 => "Q8_0",
            Format::Q2K => "Q2_K",
            Format::Q3K => "Q3_K",
            Format::Q4K => "Q4_K",
            Format::Q5K => "Q5_K",
            Format::Q6K => "Q6_K",
        }
    }

    /// Numbers of a block.
    pub const fn block(self) -> usize {
        match self {
            Format::Q4_0 | Format::Q4_1 | Format::Q5_0 | Format::Q5_1 | Format::Q8_0 => 32,
            Format::Q2K | Format::Q3K | Format::Q4K | Format::Q5K | Format::Q6K => LONGEST,
        }
    }

    /// Bytes of a block in a file.
    pub const fn file_bytes(self) -> usize {
        match self {
            Format::Q4_0 => 18,
            Format::Q4_1 => 20,
            Format::Q5_0 => 22,
            Format::Q5_1 => 24,
            Format::Q8_0 => 34,
            Format::Q2K => 84,
            Format::Q3K => 110,
            Format::Q4K => 144,
            Format::Q5K => 176,
            Format::Q6K => 210,
        }
    }

    /// Bytes of so many numbers in our layout.
    pub const fn size(self, numbers: usize) -> usize {
        numbers / 8 * self.bits() + numbers / self.block() * self.head_bytes() / GROUP
    }

    /// This, or what has blocks of 32 numbers and is as fine, for rows of so many numbers; `None` where those do not fit
    /// either.
    pub const fn for_width(self, cols: usize) -> Option<Format> {
        let fits = match (self, cols.is_multiple_of(LONGEST)) {
            (format, true) => format,
            (Format::Q2K | Format::Q3K, false) => Format::Q4_0,
            (Format::Q4K, false) => Format::Q5_0,
            (Format::Q5K, false) => Format::Q5_1,
            (Format::Q6K, false) => Format::Q8_0,
            (format, false) => format,
        };
        if cols.is_multiple_of(fits.block()) { Some(fits) } else { None }
    }

    /// What an embedding or a head is rounded to beside matrices of this format: nothing coarser than Q6_K.
    pub const fn of_tables(self) -> Format {
        if self.bits() > Format::Q6K.bits() { self } else { Format::Q6K }
    }

    /// Bits of a code.
    pub const fn bits(self) -> usize {
        match self {
            Format::Q2K => 2,
            Format::Q3K => 3,
            Format::Q4_0 | Format::Q4_1 | Format::Q4K => 4,
            Format::Q5_0 | Format::Q5_1 | Format::Q5K => 5,
            Format::Q6K => 6,
            Format::Q8_0 => 8,
        }
    }

    /// The code of 0, where there is no floor.
    pub const fn offset(self) -> i32 {
        match self {
            Format::Q4_0 => 8,
            Format::Q5_0 => 16,
            Format::Q8_0 => 128,
            Format::Q3K => 4,
            Format::Q6K => 32,
            Format::Q4_1 | Format::Q5_1 | Format::Q2K | Format::Q4K | Format::Q5K => 0,
        }
    }

    /// Whether numbers begin at a floor instead of on both sides of 0.
    pub const fn has_floors(self) -> bool {
        matches!(self, Format::Q4_1 | Format::Q5_1 | Format::Q2K | Format::Q4K | Format::Q5K)
    }

    /// Numbers of a part: the same scale and floor.
    pub const fn part(self) -> usize {
        match self {
            Format::Q2K | Format::Q3K | Format::Q6K => 16,
            _ => 32,
        }
    }

    /// Whether parts have factors of their own.
    pub const fn has_factors(self) -> bool {
        self.block() == LONGEST
    }

    /// The four codes of a step of a tile that a lane has, a byte each.
    pub fn four(self, lines: &[Line], step: usize, lane: usize) -> u32 {
        let (mut first, mut shift, mut four) = (0, 0, 0);
        for &plane in planes(self.bits()) {
            let (line, from) = place(plane, step);
            let mask = 0x0101_0101 * ((1u32 << plane) - 1);
            four |= (lines[first + line].0[lane] >> from & mask) << shift;
            (first, shift) = (first + plane, shift + plane);
        }
        four
    }

    /// Scale and floor of a part of a block, from the block's head.
    pub fn factors(self, head: &[u8], part: usize, lane: usize) -> (f32, f32) {
        let half = |side: usize| {
            let at = (side * GROUP + lane) * 2;
            f16::from_le_bytes([head[at], head[at + 1]]).to_f32()
        };
        let (scale, floor) = (half(0), if self.has_floors() { half(1) } else { 0.0 });
        if !self.has_factors() {
            return (scale, floor);
        }
        let factor = |part: usize| head[self.factors_at() + part * GROUP + lane];
        let of_floor = if self.has_floors() { f32::from(factor(self.parts() + part)) } else { 0.0 };
        (scale * f32::from(factor(part).cast_signed()), floor * of_floor)
    }

    /// Parts of a block.
    pub const fn parts(self) -> usize {
        self.block() / self.part()
    }

    /// Where the factors of parts begin in a head: behind a scale, and perhaps a floor, of each row.
    pub const fn factors_at(self) -> usize {
        self.sides() * GROUP * 2
    }

    /// Of a number: a scale, and perhaps a floor.
    const fn sides(self) -> usize {
        if self.has_floors() { 2 } else { 1 }
    }

    /// Bytes of what is not codes, of a block of a group.
    pub const fn head_bytes(self) -> usize {
        let factors = if self.has_factors() { self.parts() } else { 0 };
        self.sides() * GROUP * (2 + factors)
    }
}

/// A block as it is computed with, whatever its format.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Block {
    scale: f16,
    floor: f16,
    /// Of each part; 1 where parts have none.
    scales: [i8; 16],
    floors: [u8; 16],
    codes: [u8; LONGEST],
}

impl Block {
    const EMPTY: Block =
        Block { scale: f16::ZERO, floor: f16::ZERO, scales: [1; 16], floors: [1; 16], codes: [0; LONGEST] };

    /// Its numbers, rounded once where `scale · factor · code` has more bits than an f32.
    fn widen(&self, format: Format, to: &mut [f32]) {
        let offset = format.offset();
        for (part, to) in to.chunks_mut(format.part()).enumerate() {
            let scale = self.scale.to_f32() * f32::from(self.scales[part]);
            let floor = self.floor.to_f32() * f32::from(self.floors[part]);
            let codes = &self.codes[part * format.part()..];
            for (to, code) in to.iter_mut().zip(codes) {
                *to = scale * (i32::from(*code) - offset) as f32 + floor;
            }
        }
    }
}

/// One line of codes: of each of sixteen rows four, or parts of four.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub struct Line(pub [u32; GROUP]);

/// How the bits of a code are spread: each plane has its bits of every code, in as many lines as that takes.
const fn planes(bits: usize) -> &'static [usize] {
    match bits {
        8 => &[8],
        6 => &[4, 2],
        5 => &[4, 1],
        4 => &[4],
        3 => &[2, 1],
        _ => &[2],
    }
}

/// Where the four codes of a step lie: which line of a plane, and from which bit of each byte on.
const fn place(plane: usize, step: usize) -> (usize, usize) {
    (step % plane, step / plane * plane)
}

/// A matrix `[rows, cols]`. Rows beyond the last, up to a whole group, are zeros.
#[derive(Debug, Clone)]
pub struct Blocks {
    format: Format,
    rows: usize,
    cols: usize,
    /// Tiles of `bits` lines, along the rows of a group, group after group.
    codes: Vec<Line>,
    /// Of each block of a group: f16 scales `[16]`, f16 floors `[16]`, i8 factors `[parts, 16]`, u8 factors of
    /// floors `[parts, 16]`; what a format does not have is left out.
    heads: Vec<u8>,
}

/// A matrix that a format does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlocksError {
    #[error("{format} has blocks of {block} numbers, and rows have {cols}", format = format.name(), block = format.block())]
    Width { format: Format, cols: usize },
    #[error("{} of [{rows}, {cols}] has {wanted} bytes and {found} were given", format.name())]
    Size { format: Format, rows: usize, cols: usize, wanted: usize, found: usize },
    #[error("block {block} has a scale that is no finite number")]
    Scale { block: usize },
    #[error("rounding to {}: {problem}", format.name())]
    Quantiser { format: Format, problem: String },
}

impl Blocks {
    fn zeros(format: Format, rows: usize, cols: usize) -> Blocks {
        let groups = rows.div_ceil(GROUP);
        Blocks {
            format,
            rows,
            cols,
            codes: vec![Line([0; GROUP]); groups * (cols / TILE) * format.bits()],
            heads: vec![0; groups * (cols / format.block()) * format.head_bytes()],
        }
    }

    pub fn format(&self) -> Format {
        self.format
    }
    pub fn rows(&self) -> usize {
        self.rows
    }
    pub fn cols(&self) -> usize {
        self.cols
    }
    pub fn bytes(&self) -> usize {
        size_of_val(&self.codes[..]) + self.heads.len()
    }

    /// All codes, and all heads, as kernels take them.
    pub fn parts(&self) -> (&[u8], &[u8]) {
        // SAFETY: lines are words, and words are bytes; the slice borrows self.
        let codes = unsafe {
            std::slice::from_raw_parts(self.codes.as_ptr().cast::<u8>(), size_of_val(&self.codes[..]))
        };
        (codes, &self.heads)
    }

    /// The codes of a group of rows, and its heads.
    pub fn group(&self, group: usize) -> (&[Line], &[u8]) {
        let (lines, heads) = (self.lines_of_group(), self.heads_of_group());
        (&self.codes[group * lines..][..lines], &self.heads[group * heads..][..heads])
    }

    fn lines_of_group(&self) -> usize {
        self.cols / TILE * self.format.bits()
    }

    fn heads_of_group(&self) -> usize {
        self.cols / self.format.block() * self.format.head_bytes()
    }

    fn block(&self, row: usize, index: usize) -> Block {
        let format = self.format;
        let (codes, heads) = self.group(row / GROUP);
        let lane = row % GROUP;
        let mut block = Block::EMPTY;
        let head = &heads[index * format.head_bytes()..][..format.head_bytes()];
        let half = |side: usize| {
            let at = (side * GROUP + lane) * 2;
            f16::from_le_bytes([head[at], head[at + 1]])
        };
        block.scale = half(0);
        if format.has_floors() {
            block.floor = half(1);
        }
        if format.has_factors() {
            let (parts, factors) = (format.parts(), &head[format.factors_at()..]);
            for part in 0..parts {
                block.scales[part] = factors[part * GROUP + lane].cast_signed();
                if format.has_floors() {
                    block.floors[part] = factors[(parts + part) * GROUP + lane];
                }
            }
        }
        let tiles = format.block() / TILE;
        for (tile, to) in block.codes[..format.block()].chunks_exact_mut(TILE).enumerate() {
            let lines = &codes[(index * tiles + tile) * format.bits()..][..format.bits()];
            for (step, to) in to.chunks_exact_mut(4).enumerate() {
                to.copy_from_slice(&format.four(lines, step, lane).to_le_bytes());
            }
        }
        block
    }

    /// Row `row`, all of it, as f32.
    ///
    /// # Panics
    /// When `to` is not as long as a row.
    pub fn widen_row(&self, row: usize, to: &mut [f32]) {
        assert_eq!(to.len(), self.cols, "a place for each number of the row");
        for (index, to) in to.chunks_exact_mut(self.format.block()).enumerate() {
            self.block(row, index).widen(self.format, to);
        }
    }

    pub fn to_f32(&self) -> Vec<f32> {
        let mut all = vec![0.0; self.rows * self.cols];
        all.chunks_exact_mut(self.cols).enumerate().for_each(|(row, to)| self.widen_row(row, to));
        all
    }

    /// One number.
    pub fn get(&self, row: usize, col: usize) -> f32 {
        let mut numbers = [0.0; LONGEST];
        let block = self.format.block();
        self.block(row, col / block).widen(self.format, &mut numbers[..block]);
        numbers[col % block]
    }

    /// Those rows in that order, and of them those columns, copied.
    ///
    /// # Errors
    /// Columns that do not begin and end with blocks.
    ///
    /// # Panics
    /// Of rows and columns that are not there.
    pub fn picked(&self, rows: &[usize], cols: std::ops::Range<usize>) -> Result<Blocks, BlocksError> {
        let (format, block) = (self.format, self.format.block());
        if !cols.start.is_multiple_of(block) || !cols.len().is_multiple_of(block) {
            return Err(BlocksError::Width { format, cols: cols.len() });
        }
        let mut picked = Blocks::zeros(format, rows.len(), cols.len());
        for (to, from) in rows.iter().enumerate() {
            for (to_block, from_block) in (cols.start / block..cols.end / block).enumerate() {
                picked.writer().put(to, to_block, &self.block(*from, from_block));
            }
        }
        Ok(picked)
    }

    fn writer(&mut self) -> Writer<'_> {
        Writer { format: self.format, cols: self.cols, codes: &mut self.codes, heads: &mut self.heads }
    }
}

/// Whole groups of rows, to be filled.
struct Writer<'a> {
    format: Format,
    cols: usize,
    codes: &'a mut [Line],
    heads: &'a mut [u8],
}

impl Writer<'_> {
    /// Puts a block into a place that was zeros.
    fn put(&mut self, row: usize, index: usize, block: &Block) {
        let format = self.format;
        let (group, lane) = (row / GROUP, row % GROUP);
        let heads = (group * (self.cols / format.block()) + index) * format.head_bytes();
        let head = &mut self.heads[heads..][..format.head_bytes()];
        for (side, half) in [block.scale, block.floor].into_iter().enumerate().take(format.sides()) {
            head[(side * GROUP + lane) * 2..][..2].copy_from_slice(&half.to_le_bytes());
        }
        if format.has_factors() {
            let (parts, factors) = (format.parts(), &mut head[format.factors_at()..]);
            for part in 0..parts {
                factors[part * GROUP + lane] = block.scales[part].cast_unsigned();
                if format.has_floors() {
                    factors[(parts + part) * GROUP + lane] = block.floors[part];
                }
            }
        }
        let tiles = format.block() / TILE;
        let first_tile = group * (self.cols / TILE) + index * tiles;
        for (tile, codes) in block.codes[..format.block()].chunks_exact(TILE).enumerate() {
            let lines = &mut self.codes[(first_tile + tile) * format.bits()..][..format.bits()];
            for (step, four) in codes.chunks_exact(4).enumerate() {
                let four = u32::from_le_bytes([four[0], four[1], four[2], four[3]]);
                let (mut first, mut shift) = (0, 0);
                for &plane in planes(format.bits()) {
                    let (line, from) = place(plane, step);
                    let mask = 0x0101_0101 * ((1u32 << plane) - 1);
                    lines[first + line].0[lane] |= (four >> shift & mask) << from;
                    (first, shift) = (first + plane, shift + plane);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
