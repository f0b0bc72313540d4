//! Attention by kernels: spans → tiles, and the launches over these.
//!
//! A row of decode is one tile a chunk of its keys (`ops/cuda/attention_split.cu`). How a row's keys are cut into
//! chunks is a function of their number alone, so a row's bits do not depend on the step it is in. Rows of a
//! prompt go to the tensor cores (`attention_prefill.cu`). Knows no CUDA.

use candle_core::{DType, Layout, Result, Tensor, bail};

use super::{AttentionLimits, AttentionSpan, PagedAttention, cache_blocks};
use crate::ops::launch::{Argument, Arguments, Launch, Launcher, Place};
use crate::ops::storage::zeros;
use crate::ops::weight::Weight;

/// As `ops/cuda/attention_split.cu` has them.
const SPLIT_THREADS: u32 = 256;
const SPLIT_WARPS: usize = 8;
const SPLIT_KEYS: usize = 256;
const SPLIT_CHUNKS: usize = 64;

/// As `ops/cuda/attention_prefill.cu` has them.
const PREFILL_THREADS: u32 = 256;
const PREFILL_QUERIES: usize = 128;
const PREFILL_PAD: usize = 8;

/// Rows of a span up to which the split kernel takes it: it reads K and V again every few rows, but fills the
/// chip however few rows there are, as the verification of drafts wants it.
const SPLIT_ROWS: u32 = 8;

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
    /// Query heads of a block of the prefill kernel, if there is one for these heads.
    prefill_heads: Option<usize>,
}

impl Cutting {
    /// `heads` is a multiple of `kv_heads`, which is not 0; `activations` is the type that attention writes, whatever
    /// the cache's. With `batch_invariant` one kernel takes every row, so that a row is the same whether it comes with
    /// a prompt or alone.
    pub fn new(
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
        activations: DType,
        batch_invariant: bool,
    ) -> Cutting {
        let group = heads / kv_heads;
        let queries = if group <= 4 { 4 } else { 8 };
        let parts = group.div_ceil(queries);
        let prefill = !batch_invariant
            && matches!(activations, DType::F16 | DType::BF16)
            && matches!(head_dim, 64 | 96 | 128 | 256);
        let prefill_heads = prefill.then(|| group.div_ceil(group.div_ceil(PREFILL_QUERIES)));
        Cutting { queries, heads: group.div_ceil(parts), parts, kv_heads, prefill_heads }
    }

    /// Keys of a chunk of a row that sees `seen`: 256, and twice as many each time that 64 chunks are not enough.
    ///
    /// 256 keys of a head of 128 are 128 KiB of bf16, some microseconds for one multiprocessor, against which the
    /// f32 that a chunk leaves is a few percent; 64 chunks times two K/V heads fill a chip of 132 already, and
    /// more would make the adding up of the chunks longer than what it saves.
    fn chunk(seen: usize) -> usize {
        SPLIT_KEYS * seen.div_ceil(SPLIT_KEYS * SPLIT_CHUNKS).next_power_of_two()
    }

    /// The spans' rows as tiles, those of the split kernel first; returns how many these are.
    ///
    /// They are (span, first row in it, rows · 2¹⁶ + chunk, keys of a chunk), and those of a row's chunks follow
    /// each other. The prefill kernel's are (span, first row in it, 0, 0), those that see most first.
    pub fn cut(&self, spans: &[AttentionSpan], tiles: &mut Vec<Tile>) -> usize {
        tiles.clear();
        let step = self.prefill_heads.map(|heads| PREFILL_QUERIES / heads);
        let goes_to_prefill = |span: &AttentionSpan| step.is_some() && span.rows > SPLIT_ROWS;
        let rows_of_block = self.queries / self.heads;
        for (index, span) in spans.iter().enumerate().filter(|(_, span)| !goes_to_prefill(span)) {
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
        let split = tiles.len();
        for (index, span) in spans.iter().enumerate().filter(|(_, span)| goes_to_prefill(span)) {
            let firsts = (0..span.rows).step_by(step.unwrap_or(1)).rev();
            tiles.extend(firsts.map(|first| [index as u32, first, 0, 0]));
        }
        split
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
pub(super) fn launch_of(tiles: &[Tile]) -> usize {
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
    k_scale: f32,
    v_scale: f32,
    window: u32,
    soft_cap: f32,
}

// SAFETY: eleven numbers of four bytes, no padding.
unsafe impl Argument for SplitShape {}

#[repr(C)]
#[derive(Clone, Copy)]
struct PrefillShape {
    heads: u32,
    kv_heads: u32,
    stride: u32,
    heads_of_block: u32,
    rows_of_block: u32,
    scale: f32,
    k_scale: f32,
    v_scale: f32,
    window: u32,
    soft_cap: f32,
}

// SAFETY: ten numbers of four bytes, no padding.
unsafe impl Argument for PrefillShape {}

impl AttentionLimits {
    /// As kernels read them: the window, as long as any text where there is none, and the cap, 0 where there is none.
    fn words(&self) -> (u32, f32) {
        let window = self.window.and_then(|window| u32::try_from(window).ok());
        (window.unwrap_or(u32::MAX), self.soft_cap.unwrap_or(0.0))
    }
}

/// Where an operation's tensors lie.
struct Places {
    dst: Place,
    queries: Place,
    kv: Place,
    stride: usize,
    types: &'static [DType],
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
        self.check(cache_blocks(self.kv.layout(), self.kv.dtype(), self.kv_heads, self.head_dim)?.0)?;
        let kv = Place::of_tensor(self.kv)?;
        let dst = dst.holds(self.plan.rows * width, name)?;
        let queries = queries.holds(self.plan.rows * stride, name)?.is(DType::F32, name)?;
        if !stride.is_multiple_of(4) || [dst, queries, kv].iter().any(|p| !p.address.is_multiple_of(16)) {
            bail!("{name}: kernels want rows of queries ({stride} floats) and tensors that begin at 16 bytes")
        }
        // Scores are compared before they are scaled.
        if self.scale.is_nan() || self.scale <= 0.0 {
            bail!("{name}: a scale of {}", self.scale)
        }
        let types: &'static [DType] = match (dst.dtype, kv.dtype) {
            (DType::F32, DType::F32) => &[DType::F32, DType::F32],
            (DType::F16, DType::F16) => &[DType::F16, DType::F16],
            (DType::BF16, DType::BF16) => &[DType::BF16, DType::BF16],
            (DType::F32, DType::F8E4M3) => &[DType::F32, DType::F8E4M3],
            (DType::F16, DType::F8E4M3) => &[DType::F16, DType::F8E4M3],
            (DType::BF16, DType::F8E4M3) => &[DType::BF16, DType::F8E4M3],
            (DType::F32, DType::U8) => &[DType::F32, DType::U8],
            (DType::F16, DType::U8) => &[DType::F16, DType::U8],
            (DType::BF16, DType::U8) => &[DType::BF16, DType::U8],
            (dst, kv) => bail!("{name}: no kernel for {dst:?} from a cache of {kv:?}"),
        };
        let places = Places { dst, queries, kv, stride, types };
        let invariant = self.on.batch_invariant;
        let cutting = Cutting::new(self.heads, self.kv_heads, self.head_dim, dst.dtype, invariant);
        let tiles = self.plan.tiles.host;
        let Some((split, prefill)) = tiles.split_at_checked(self.plan.split_tiles) else {
            bail!("{name}: {} tiles of {} are for the split kernel", self.plan.split_tiles, tiles.len())
        };
        self.split(launcher, &places, &cutting, split)?;
        self.prefill(launcher, &places, &cutting, prefill)
    }

    fn prefill(
        &self,
        launcher: &dyn Launcher,
        places: &Places,
        cutting: &Cutting,
        tiles: &[Tile],
    ) -> Result<()> {
        if tiles.is_empty() {
            return Ok(());
        }
        let (kernel, keys) = match self.head_dim {
            64 => ("attention_prefill_64", 64),
            96 => ("attention_prefill_96", 64),
            128 => ("attention_prefill_128", 64),
            256 => ("attention_prefill_256", 32),
            other => bail!("{}: no prefill kernel for heads of {other}", Self::NAME),
        };
        let Some(heads) = cutting.prefill_heads else {
            bail!("{}: tiles for a prefill kernel that is not to be used", Self::NAME)
        };
        let parts = (self.heads / self.kv_heads).div_ceil(heads);
        let [padded, packed] =
            [(self.head_dim + PREFILL_PAD) * places.dst.dtype.size_in_bytes(), self.head_dim]
                .map(|row| keys * row);
        // K and V twice in turn; of FP8 these are as they come, beside what they are converted to; of Q8 these alone.
        let shared = match places.kv.dtype {
            DType::F8E4M3 => 4 * packed + 2 * padded,
            DType::U8 => 2 * padded,
            _ => 4 * padded,
        };
        let before = self.plan.split_tiles * size_of::<Tile>();
        let launch = Launch {
            kernel,
            types: places.types,
            grid: [tiles.len() as u32, (self.kv_heads * parts) as u32, 1],
            threads: PREFILL_THREADS,
            shared_bytes: shared as u32,
            arguments: Arguments::default()
                .with(places.dst.address)
                .with(places.queries.address)
                .with(places.kv.address)
                .with(self.plan.spans.address)
                .with(self.plan.block_tables.address)
                .with(self.plan.tiles.address + before as u64)
                .with(self.sinks_address())
                .with(PrefillShape {
                    heads: self.heads as u32,
                    kv_heads: self.kv_heads as u32,
                    stride: places.stride as u32,
                    heads_of_block: heads as u32,
                    rows_of_block: (PREFILL_QUERIES / heads) as u32,
                    scale: self.scale,
                    k_scale: self.scales.k,
                    v_scale: self.scales.v,
                    window: self.limits.words().0,
                    soft_cap: self.limits.words().1,
                }),
        };
        // SAFETY: `check` has seen the spans and their tables, which the tiles are made of; the places hold the rows.
        unsafe { launcher.launch(&launch) }
    }

    fn split(
        &self,
        launcher: &dyn Launcher,
        places: &Places,
        cutting: &Cutting,
        tiles: &[Tile],
    ) -> Result<()> {
        if tiles.is_empty() {
            return Ok(());
        }
        let (counters, partials) = self.scratch_for(cutting)?;
        let shape = SplitShape {
            heads: self.heads as u32,
            kv_heads: self.kv_heads as u32,
            dim: self.head_dim as u32,
            stride: places.stride as u32,
            heads_of_block: cutting.heads as u32,
            lanes: (self.head_dim / 8).next_power_of_two().max(cutting.queries) as u32,
            scale: self.scale,
            k_scale: self.scales.k,
            v_scale: self.scales.v,
            window: self.limits.words().0,
            soft_cap: self.limits.words().1,
        };
        let shared = cutting.queries * (2 * SPLIT_KEYS + SPLIT_WARPS * self.head_dim + 2) * size_of::<f32>();
        let (mut tiles, mut address) = (tiles, self.plan.tiles.address);
        while !tiles.is_empty() {
            let (now, later) = tiles.split_at(launch_of(tiles));
            let launch = Launch {
                kernel: if cutting.queries == 4 { "attention_split_4" } else { "attention_split_8" },
                types: places.types,
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
                    .with(self.sinks_address())
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

    /// 0 for none.
    fn sinks_address(&self) -> u64 {
        self.sinks.map_or(0, Weight::address)
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

/// Bytes of [`scratch`].
pub fn scratch_bytes(heads: usize, kv_heads: usize, head_dim: usize) -> usize {
    // The split kernel's part depends on neither the type nor the mode.
    Cutting::new(heads, kv_heads, head_dim, DType::F32, true).scratch(head_dim) * size_of::<f32>()
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
    zeros(scratch_bytes(heads, kv_heads, head_dim) / size_of::<f32>(), DType::F32, device)
}
