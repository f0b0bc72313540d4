//! Attention's kernels against the CPU's operation on the same numbers, and against themselves in other company.

use candle_core::{DType, Device, Tensor};
use hashwatt::ops::exec::Exec;
use hashwatt::ops::kv_write::CacheScales;
use hashwatt::ops::paged_attention::kernels::{PADDING, SPLIT_TILES, scratch};
use hashwatt::ops::paged_attention::{
    AttentionLimits, AttentionPlan, AttentionSpan, BLOCK_SIZE, Cutting, PagedAttention,
};
use hashwatt::ops::weight::Weight;

use crate::host_kernels::kernels;
use crate::support::pool;

#[derive(Debug, Clone, Copy)]
struct Dims {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

/// Rows of a step: a sequence's positions from..to; an empty range is a span without rows.
type Piece = (usize, usize, usize);

/// Sequences with keys and values in a cache of shuffled blocks. What no sequence owns is NaN.
struct World {
    dims: Dims,
    /// Of the cache, and what attention writes.
    dtypes: [DType; 2],
    scales: CacheScales,
    /// Per sequence `[length, stride]`: what a step's rows begin with.
    queries: Vec<Vec<f32>>,
    tables: Vec<u32>,
    offsets: Vec<u32>,
    cache: Tensor,
    limits: AttentionLimits,
    sinks: Option<Weight>,
}

fn numbers(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
        })
        .collect()
}

impl World {
    fn new(dims: Dims, lengths: &[usize], dtype: DType) -> World {
        let Dims { heads, kv_heads, head_dim } = dims;
        let blocks = lengths.iter().map(|n| n.div_ceil(BLOCK_SIZE)).sum::<usize>() + 2;
        // 7 has no factor in common with the counts of blocks that occur, or some block is used twice: harmless.
        let mut ids: Vec<u32> = (0..blocks as u32).collect();
        (1..blocks).for_each(|i| ids.swap(i, (i * i * 7 + 3) % (i + 1)));
        let (plane, mut tables, mut offsets) = (BLOCK_SIZE * head_dim, Vec::new(), Vec::new());
        let mut data = vec![f32::NAN; blocks * 2 * kv_heads * plane];
        for (s, length) in lengths.iter().enumerate() {
            offsets.push(tables.len() as u32);
            for block in 0..length.div_ceil(BLOCK_SIZE) {
                let id = ids.pop().unwrap();
                tables.push(id);
                let filled = BLOCK_SIZE.min(length - block * BLOCK_SIZE) * head_dim;
                for head in 0..2 * kv_heads {
                    let to = (id as usize * 2 * kv_heads + head) * plane;
                    let seed = (s * 1000 + block) * 100 + head;
                    data[to..to + filled].copy_from_slice(&numbers(seed as u64, filled));
                }
            }
        }
        let shape = (blocks, 2, kv_heads, BLOCK_SIZE, head_dim);
        let cache = Tensor::from_vec(data, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        let stride = (heads + 2 * kv_heads) * head_dim;
        let of = |(s, length): (usize, &usize)| {
            // Large enough that some keys matter much more than others.
            let raw = numbers(77 + s as u64, length * stride);
            raw.into_iter().map(|x| 3.0 * x).collect()
        };
        let queries = lengths.iter().enumerate().map(of).collect();
        let scales = match dtype {
            DType::F8E4M3 => CacheScales { k: 0.75, v: 1.5 },
            _ => CacheScales::ONE,
        };
        let dtypes = [dtype, if dtype == DType::F8E4M3 { DType::BF16 } else { dtype }];
        let limits = AttentionLimits::default();
        World { dims, dtypes, scales, queries, tables, offsets, cache, limits, sinks: None }
    }

    /// The rows of a step, then two that belong to no span and must stay as they are.
    fn run(&self, on: &Exec, pieces: &[Piece], padding: usize) -> Vec<f32> {
        let Dims { heads, kv_heads, head_dim } = self.dims;
        let (width, stride) = (heads * head_dim, (heads + 2 * kv_heads) * head_dim);
        let (mut rows, mut spans) = (Vec::new(), Vec::new());
        for &(s, from, to) in pieces {
            spans.push(AttentionSpan {
                first_row: (rows.len() / stride) as u32,
                rows: (to - from) as u32,
                first_position: from as u32,
                block_table: self.offsets[s],
            });
            rows.extend_from_slice(&self.queries[s][from * stride..to * stride]);
        }
        let count = rows.len() / stride;
        rows.extend(vec![f32::NAN; 2 * stride]);
        let queries = Tensor::from_vec(rows, (count + 2, stride), &Device::Cpu).unwrap();
        let by_kernels = on.launcher.is_some();
        // The CPU's operation on the same numbers in f32: it is exact where kernels round.
        let (cache, dst) = match by_kernels {
            true => (self.cache.clone(), self.dtypes[1]),
            false => (self.cache.to_dtype(DType::F32).unwrap(), DType::F32),
        };
        let dst = Tensor::full(64f32, (count + 2, width), &Device::Cpu).unwrap().to_dtype(dst).unwrap();
        let mut tiles = Vec::new();
        let cutting = Cutting::new(heads, kv_heads, head_dim, self.dtypes[1], on.batch_invariant);
        let split_tiles = cutting.cut(&spans, &mut tiles) + padding;
        tiles.splice(split_tiles - padding..split_tiles - padding, vec![PADDING; padding]);
        let scratch = poisoned_scratch(self.dims);
        let plan = AttentionPlan {
            spans: spans.as_slice().into(),
            block_tables: self.tables.as_slice().into(),
            tiles: tiles.as_slice().into(),
            split_tiles,
            rows: count,
        };
        let scale = 1.0 / (head_dim as f32).sqrt();
        let op = PagedAttention {
            plan,
            kv: &cache,
            scales: self.scales,
            heads,
            kv_heads,
            head_dim,
            scale,
            limits: self.limits,
            sinks: self.sinks.as_ref(),
            scratch: Some(&scratch),
            on,
        };
        dst.inplace_op2(&queries, &op).unwrap();
        if by_kernels {
            let counters = scratch.narrow(0, 0, counters(self.dims)).unwrap().to_vec1::<f32>().unwrap();
            assert!(counters.iter().all(|x| x.to_bits() == 0), "a counter is left counting");
        }
        let all: Vec<f32> = dst.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert!(all[count * width..].iter().all(|x| *x == 64.0), "rows of no span were written");
        all[..count * width].to_vec()
    }
}

/// Blocks of a tile by tiles of a launch.
fn counters(dims: Dims) -> usize {
    let group = dims.heads / dims.kv_heads;
    SPLIT_TILES * dims.kv_heads * group.div_ceil(if group <= 4 { 4 } else { 8 })
}

/// Zero where blocks count; what they leave for each other must be written before it is read.
fn poisoned_scratch(dims: Dims) -> Tensor {
    let all = scratch(dims.heads, dims.kv_heads, dims.head_dim, &Device::Cpu).unwrap();
    let counters = all.narrow(0, 0, counters(dims)).unwrap();
    let rest = all.elem_count() - counters.elem_count();
    Tensor::cat(&[counters, Tensor::full(f32::NAN, rest, &Device::Cpu).unwrap()], 0).unwrap()
}

fn compare(on: &Exec, dims: Dims, dtype: DType, lengths: &[usize], pieces: &[Piece], padding: usize) {
    world_of(World::new(dims, lengths, dtype), on, pieces, padding);
}

fn world_of(world: World, on: &Exec, pieces: &[Piece], padding: usize) {
    let World { dims, dtypes: [dtype, _], limits, .. } = world;
    let want = world.run(&pool(1).into(), pieces, 0);
    let got = world.run(on, pieces, padding);
    // Of numbers up to 1: where the tensor cores take them, queries and weights are rounded too.
    let tolerance = match dtype {
        DType::F32 => 2e-6,
        DType::F16 => 3e-3,
        _ => 2e-2,
    };
    let width = dims.heads * dims.head_dim;
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        let (row, at) = (i / width, i % width);
        assert!(
            (got - want).abs() <= tolerance,
            "{dims:?} {dtype:?} {limits:?} {pieces:?}: {got} for {want} in row {row}, column {at}"
        );
    }
}

const SMALL: [DType; 3] = [DType::F16, DType::BF16, DType::F8E4M3];

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Windows that end inside a chunk, before it and at its edge, with and without a cap, in decode and in prompts.
#[test]
fn windows_and_caps_are_the_cpus() {
    let Some(on) = kernels() else { return };
    let lengths = [1, 17, 257, 700];
    let mut pieces: Vec<Piece> = lengths.iter().enumerate().map(|(s, n)| (s, n - 1, *n)).collect();
    pieces.push((3, 100, 160));
    pieces.push((2, 0, 12));
    for (heads, kv_heads, head_dim) in [(4, 2, 64), (7, 1, 128), (2, 2, 256)] {
        for (window, soft_cap) in [
            (Some(1), None),
            (Some(16), Some(2.0)),
            (Some(100), None),
            (Some(256), Some(5.0)),
            (None, Some(1.0)),
        ] {
            for dtype in [DType::BF16, DType::F32] {
                let mut world = World::new(Dims { heads, kv_heads, head_dim }, &lengths, dtype);
                world.limits = AttentionLimits { window, soft_cap };
                let sinks = (0..world.dims.heads).map(|head| [f32::NEG_INFINITY, 0.0, 3.0, 200.0][head % 4]);
                world.sinks = soft_cap.is_none().then(|| Weight::vector(sinks.collect()));
                world_of(world, &on, &pieces, 2);
            }
        }
    }
}

/// Rows of decode: every number of query heads to a K/V head, contexts about the edges of blocks and chunks.
#[test]
fn decode_is_the_cpus() {
    let Some(on) = kernels() else { return };
    let lengths = [1, 15, 16, 17, 255, 256, 257, 600];
    let each: Vec<Piece> = lengths.iter().enumerate().map(|(s, n)| (s, n - 1, *n)).collect();
    for (heads, kv_heads, head_dim) in [(2, 2, 64), (4, 2, 128), (4, 1, 96), (7, 1, 64)] {
        let dims = Dims { heads, kv_heads, head_dim };
        compare(&on, dims, DType::BF16, &lengths, &each, 3);
        compare(&on, dims, DType::F8E4M3, &lengths[..3], &each[..3], 0);
    }
    let (lengths, each) = ([600, 17, 257], [(0, 599, 600), (1, 5, 5), (1, 16, 17), (2, 256, 257)]);
    for (heads, kv_heads, head_dim) in [(8, 1, 256), (16, 1, 64), (3, 1, 8), (1, 1, 40)] {
        let dims = Dims { heads, kv_heads, head_dim };
        compare(&on, dims, DType::F16, &lengths, &each, 0);
        compare(&on, dims, DType::F32, &lengths, &each, 0);
    }
}

/// Many rows of two chunks, so that blocks meet in every way: the last one finds what the others left.
#[test]
fn chunks_wait_for_each_other() {
    let Some(on) = kernels() else { return };
    let dims = Dims { heads: 4, kv_heads: 1, head_dim: 128 };
    let rows: Vec<Piece> = (0..100).map(|i| (0, 258 + i % 5, 259 + i % 5)).collect();
    compare(&on, dims, DType::BF16, &[263], &rows, 0);
}

/// A context of more than 64 chunks of 256 keys is cut into longer ones.
#[test]
fn decode_over_a_long_context_is_the_cpus() {
    let Some(on) = kernels() else { return };
    let dims = Dims { heads: 1, kv_heads: 1, head_dim: 16 };
    let lengths = [64 * 256 + 600];
    let rows = [(0, 64 * 256 - 1, 64 * 256 + 2)];
    compare(&on, dims, DType::F32, &lengths, &rows, 0);
    compare(&on, dims, DType::F32, &lengths, &[(0, lengths[0] - 1, lengths[0])], 0);
}

/// Chunks of prompts, beginning anywhere in a block, of several sequences beside rows of decode.
#[test]
fn prefill_is_the_cpus() {
    let Some(on) = kernels() else { return };
    for (heads, kv_heads, head_dim) in [(4, 2, 64), (7, 1, 96), (4, 1, 128), (2, 2, 256), (16, 1, 64)] {
        let dims = Dims { heads, kv_heads, head_dim };
        for dtype in SMALL {
            let pieces = [(0, 5, 85), (1, 3, 12), (2, 255, 256), (1, 20, 20), (2, 246, 257)];
            compare(&on, dims, dtype, &[85, 20, 257], &pieces, 2);
        }
    }
    let dims = Dims { heads: 1, kv_heads: 1, head_dim: 64 };
    compare(&on, dims, DType::BF16, &[600], &[(0, 440, 600)], 0);
    // Kernels of prefill are for these types and sizes only; others are rows like any.
    compare(&on, Dims { head_dim: 32, ..dims }, DType::BF16, &[40], &[(0, 1, 40)], 0);
    compare(&on, dims, DType::F32, &[40], &[(0, 1, 40)], 0);
}

/// A row's bits are the same alone, beside its neighbours, in company and behind any cut.
#[test]
fn a_rows_bits_are_its_own() {
    let Some(on) = kernels().map(|on| Exec { batch_invariant: true, ..on }) else { return };
    for (heads, head_dim) in [(1, 64), (3, 96)] {
        let dims = Dims { heads, kv_heads: 1, head_dim };
        let world = World::new(dims, &[265, 40], DType::BF16);
        let width = heads * head_dim;
        let whole = bits(&world.run(&on, &[(0, 250, 265)], 0));
        let company = bits(&world.run(&on, &[(1, 30, 40), (0, 250, 265), (1, 39, 40)], 5));
        assert_eq!(company[10 * width..25 * width], whole[..], "in company");
        for cut in [1, 7] {
            let pieces: Vec<Piece> = (250..265).step_by(cut).map(|n| (0, n, (n + cut).min(265))).collect();
            assert_eq!(bits(&world.run(&on, &pieces, 0)), whole, "as spans of {cut} in one step");
            let alone: Vec<u32> = pieces.iter().flat_map(|p| bits(&world.run(&on, &[*p], 0))).collect();
            assert_eq!(alone, whole, "as spans of {cut} in steps of their own");
        }
    }
}
