//! Attention by kernels: spans → tiles, and the launches over these.
//!
//! A row of decode is one tile a chunk of its keys (`ops/cuda/attention_split.cu`). How a row's keys are cut into
//! chunks is a function of their number alone, so a row's bits do not depend on the step it is in. Knows no CUDA.

use candle_core::{DType, Layout, Result, Tensor, bail};

use super::{AttentionSpan, PagedAttention, cache_blocks};
use crate::ops::launch::{Argument, Arguments, Launch, Launcher, Place};

/// As `ops/cuda/attention_split.cu` has them.
const SPLIT_THREADS: u32 = 256;
const SPLIT_WARPS: usize = 8;
const SPLIT_KEYS: usize = 256;
const SPLIT_CHUNKS: usize = 64;

/// Tiles of a launch of the split kernel at most: what the scratch has room for. A step of more takes several
/// launches; a captured one, whose tiles change from replay to replay, must stay within one.
pub const SPLIT_TILES: usize = 2048;

/// One block's part of a step, as kernels read it.
pub type Tile = [u32; 4];

/// Stands where a captured launch has more blocks than the step has tiles.
pub const PADDING: Tile = [u32::MAX, 0, 0, 0];

/// What the cutting of a step's rows depends on; the same for all layers and steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cutting {
    /// Query vectors of a block of the split kernel: its instance.
    queries: usize,
    /// Query heads of a block, and blocks that share a K/V head.
    heads: usize,
    parts: usize,
    kv_heads: usize,
}

impl Cutting {
    /// `heads` is a multiple of `kv_heads`, which is not 0.
    pub fn new(heads: usize, kv_heads: usize) -> Cutting {
        let group = heads / kv_heads;
        let queries = if group <= 4 { 4 } else { 8 };
        let parts = group.div_ceil(queries);
        Cutting { queries, heads: group.div_ceil(parts), parts, kv_heads }
    }

    /// Keys of a chunk of a row that sees `seen`: 256, and twice as many each time that 64 chunks are not enough.
    ///
    /// 256 keys of a head of 128 are 128 KiB of bf16, some microseconds for one multiprocessor, against which the
    /// f32 that a chunk leaves is a few percent; 64 chunks times two K/V heads fill a chip of 132 already, and
    /// more would make the adding up of the chunks longer than what it saves.
    fn chunk(seen: usize) -> usize {
        SPLIT_KEYS * seen.div_ceil(SPLIT_KEYS * SPLIT_CHUNKS).next_power_of_two()
    }

    /// The spans' rows as tiles: (span, first row in it, rows · 2¹⁶ + chunk, keys of a chunk). Those of a row's
    /// chunks follow each other.
    pub fn cut(&self, spans: &[AttentionSpan], tiles: &mut Vec<Tile>) {
        tiles.clear();
        let rows_of_block = self.queries / self.heads;
        for (index, span) in spans.iter().enumerate() {
            let (rows, mut row) = (span.rows as usize, 0);
            while row < rows {
                let seen = span.first_position as usize + row + 1;
                let keys = Cutting::chunk(seen);
                let chunks = seen.div_ceil(keys);
                // Rows of one tile have the same chunks.
                let count = rows_of_block.min(rows - row).min(chunks * keys - seen + 1);
                let tile = |chunk| [index as u32, row as u32, (count << 16 | chunk) as u32, keys as u32];
                tiles.extend((0..chunks).map(tile));
                row += count;
            }
        }
    }

    /// Blocks of a tile.
    fn width(&self) -> usize {
        self.kv_heads * self.parts
    }

    /// Floats that the launches of a layer need beside their tensors, zero at first: counters, then what chunks
    /// leave. Each launch leaves the counters zero.
    pub fn scratch(&self, head_dim: usize) -> usize {
        SPLIT_TILES * self.width() * (1 + self.queries * (head_dim + 2))
    }
}

/// How many of the tiles one launch takes: all, or as many whole rows as there is scratch for.
fn launch_of(tiles: &[Tile]) -> usize {
    match tiles.len() {
        all @ ..=SPLIT_TILES => all,
        _ => (1..=SPLIT_TILES).rev().find(|n| tiles[*n][2] & 0xffff == 0).unwrap_or(SPLIT_TILES),
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct SplitShape {
    heads: u32,
    kv_heads: u32,
    dim: u32,
    stride: u32,
    heads_of_block: u32,
    lanes: u32,
    scale: f32,
}

// SAFETY: seven numbers of four bytes, no padding.
unsafe impl Argument for SplitShape {}

/// Where an operation's tensors lie.
struct Places {
    dst: Place,
    queries: Place,
    kv: Place,
    stride: usize,
}

impl PagedAttention<'_> {
    pub(super) fn launch_on(
        &self,
        launcher: &dyn Launcher,
        (dst, dst_l): (Place, &Layout),
        (queries, queries_l): (Place, &Layout),
    ) -> Result<()> {
        let (name, width) = (Self::NAME, self.heads * self.head_dim);
        self.rows("destination", dst_l, |found| found == width)?;
        let (_, stride) = self.rows("queries", queries_l, |found| found >= width)?;
        self.check(cache_blocks(self.kv.layout(), self.kv_heads, self.head_dim)?.0)?;
        let kv = Place::of_tensor(self.kv)?;
        let dst = dst.holds(self.plan.rows * width, name)?.is(kv.dtype, name)?;
        let queries = queries.holds(self.plan.rows * stride, name)?.is(DType::F32, name)?;
        if !stride.is_multiple_of(4) || [dst, queries, kv].iter().any(|p| !p.address.is_multiple_of(16)) {
            bail!("{name}: kernels want rows of queries ({stride} floats) and tensors that begin at 16 bytes")
        }
        let places = Places { dst, queries, kv, stride };
        self.split(launcher, &places)
    }

    fn split(&self, launcher: &dyn Launcher, places: &Places) -> Result<()> {
        let cutting = Cutting::new(self.heads, self.kv_heads);
        let (counters, partials) = self.scratch_for(&cutting)?;
        let types: &[DType] = match places.kv.dtype {
            DType::F32 => &[DType::F32, DType::F32],
            DType::F16 => &[DType::F16, DType::F16],
            DType::BF16 => &[DType::BF16, DType::BF16],
            other => bail!("{}: no kernel for a cache of {other:?}", Self::NAME),
        };
        let shape = SplitShape {
            heads: self.heads as u32,
            kv_heads: self.kv_heads as u32,
            dim: self.head_dim as u32,
            stride: places.stride as u32,
            heads_of_block: cutting.heads as u32,
            lanes: (self.head_dim / 8).next_power_of_two() as u32,
            scale: self.scale,
        };
        let shared = cutting.queries * (2 * SPLIT_KEYS + SPLIT_WARPS * self.head_dim + 2) * size_of::<f32>();
        let mut tiles = self.plan.tiles.host;
        let mut address = self.plan.tiles.address;
        while !tiles.is_empty() {
            let (now, later) = tiles.split_at(launch_of(tiles));
            let launch = Launch {
                kernel: if cutting.queries == 4 { "attention_split_4" } else { "attention_split_8" },
                types,
                grid: [now.len() as u32, cutting.width() as u32, 1],
                threads: SPLIT_THREADS,
                shared_bytes: shared as u32,
                arguments: Arguments::default()
                    .with(places.dst.address)
                    .with(places.queries.address)
                    .with(places.kv.address)
                    .with(self.plan.spans.address)
                    .with(self.plan.block_tables.address)
                    .with(address)
                    .with(counters)
                    .with(partials)
                    .with(shape),
            };
            // SAFETY: `check` has seen the spans and their tables, which the tiles are made of; the places hold
            // the rows, and the scratch what so many tiles leave, which only this operation uses.
            unsafe { launcher.launch(&launch)? };
            address += size_of_val(now) as u64;
            tiles = later;
        }
        Ok(())
    }

    /// Where the counters and what chunks leave lie.
    fn scratch_for(&self, cutting: &Cutting) -> Result<(u64, u64)> {
        let Some(scratch) = self.scratch else { bail!("{}: kernels need a scratch tensor", Self::NAME) };
        let place = Place::of_tensor(scratch)?.is(DType::F32, Self::NAME)?;
        let place = place.holds(cutting.scratch(self.head_dim), Self::NAME)?;
        let counters = SPLIT_TILES * cutting.width() * size_of::<u32>();
        Ok((place.address, place.address + counters as u64))
    }
}

/// The scratch tensor of a model's attention, for all its layers in turn.
///
/// # Errors
/// A device without room.
pub fn scratch(
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    device: &candle_core::Device,
) -> Result<Tensor> {
    Tensor::zeros(Cutting::new(heads, kv_heads).scratch(head_dim), DType::F32, device)
}
