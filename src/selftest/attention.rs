//! Cases of what works on the paged cache: sequences in shuffled blocks, and what comes out by definition, in f64.

use candle_core::{DType, Result, Tensor};

use super::numbers::{Want, compare, mirrored, poison, random, read, rounded, tensor, ulp};
use super::table::{types, types_and_stored};
use super::{Outcome, Size};
use crate::ops::cache_type::width;
use crate::ops::cpu::q8;
use crate::ops::exec::Exec;
use crate::ops::kv_write::CacheScales;
use crate::ops::launch::Mirrored;
use crate::ops::paged_attention::kernels::{Tile, scratch};
use crate::ops::paged_attention::{
    AttentionLimits, AttentionPlan, AttentionSpan, BLOCK_SIZE, Cutting, PagedAttention,
};
use crate::ops::rope::{self, Rope};
use crate::ops::weight::Weight;

/// Heads of queries, of keys, and their size.
type Heads = (usize, usize, usize);

const FULL: [Heads; 9] = [
    (4, 4, 64),
    (4, 2, 96),
    (6, 2, 128),
    (4, 1, 256),
    (7, 1, 64),
    (8, 1, 128),
    (16, 1, 64),
    (32, 8, 64),
    (5, 5, 40),
];
const SMALL: [Heads; 2] = [(4, 2, 64), (7, 1, 40)];

fn heads(size: Size) -> &'static [Heads] {
    if size == Size::Small { &SMALL } else { &FULL }
}

/// Sequences of these lengths, of which the last so many positions are the step's rows; one has none.
fn sequences(size: Size) -> &'static [(usize, usize)] {
    match size {
        Size::Small => &[(1, 1), (17, 1), (30, 12), (5, 0)],
        Size::Full => &[(1, 1), (15, 1), (16, 1), (17, 17), (257, 1), (64, 0), (1000, 1), (90, 33), (65, 2)],
    }
}

/// Where block `i` of all sequences lies: each once, none where it was made.
fn place(i: usize, blocks: usize) -> usize {
    // A prime that no number of blocks here is a multiple of.
    (i * 9973 + 1) % blocks
}

/// Heads, the type of results, and that of the cache.
fn cases(on: &Exec, size: Size) -> impl Iterator<Item = (Heads, DType, DType)> {
    heads(size).iter().flat_map(|h| {
        let in_8_bits = types(on).iter().map(|dtype| (*dtype, Q8));
        types_and_stored(on).into_iter().chain(in_8_bits).map(|(dtype, stored)| (*h, dtype, stored))
    })
}

pub fn paged_attention(on: &Exec, size: Size) -> Vec<Outcome> {
    let mut all = Vec::new();
    for (heads, dtype, stored) in cases(on, size) {
        let case = format!("{} on {} heads of {}, {dtype:?} from {stored:?}", heads.0, heads.1, heads.2);
        let world = World::new(heads, sequences(size), dtype, stored);
        let (share, least) = if dtype == DType::F32 { (1e-5, 1e-5) } else { (ulp(dtype), 2.0 * ulp(dtype)) };
        let want = Want { numbers: world.answer(), tolerance: (share, least) };
        all.push(compare("paged_attention", case, world.run(on), &want));
    }
    all
}

/// Of a cache of codes of 8 bits.
const Q8: DType = DType::U8;

/// Rows of codes and their scale.
fn in_8_bits(numbers: &[f32], dim: usize) -> Vec<u8> {
    let row = |numbers: &[f32]| {
        let mut row = vec![0; width(Q8, dim)];
        q8::round(numbers, &mut row);
        row
    };
    numbers.chunks(dim).flat_map(row).collect()
}

fn out_of_8_bits(rows: &[u8], dim: usize) -> Vec<f32> {
    let row = |row: &[u8]| {
        let (codes, scale) = row.split_at(dim);
        let scale = scale.first_chunk().map_or(f32::NAN, |bytes| f32::from_le_bytes(*bytes));
        codes.iter().map(|code| f32::from(code.cast_signed()) * scale).collect::<Vec<_>>()
    };
    rows.chunks(width(Q8, dim)).flat_map(row).collect()
}

/// Rows of `dim` numbers as a cache of that type holds them.
fn as_stored(numbers: &[f32], dim: usize, stored: DType) -> Vec<f32> {
    if stored == Q8 { out_of_8_bits(&in_8_bits(numbers, dim), dim) } else { rounded(numbers, stored) }
}

/// `[blocks, 2, kv_heads, BLOCK_SIZE, width]` of rows of numbers.
fn cache_of(
    data: &[f32],
    (blocks, kv_heads, dim): (usize, usize, usize),
    stored: DType,
    on: &Exec,
) -> Result<Tensor> {
    let shape = (blocks, 2, kv_heads, BLOCK_SIZE, width(stored, dim));
    let cpu = &candle_core::Device::Cpu;
    let cache = match stored {
        Q8 => Tensor::from_vec(in_8_bits(data, dim), shape, cpu)?,
        _ => Tensor::from_slice(data, shape, cpu)?.to_dtype(stored)?,
    };
    cache.to_device(&on.device)
}

fn read_cache(cache: &Tensor, dim: usize) -> Result<Vec<f32>> {
    match cache.dtype() {
        Q8 => {
            let rows: Vec<u8> = cache.to_device(&candle_core::Device::Cpu)?.flatten_all()?.to_vec1()?;
            Ok(out_of_8_bits(&rows, dim))
        }
        _ => read(cache),
    }
}

/// Keys and values of all sequences, and the step's queries.
struct World {
    heads: Heads,
    dtype: DType,
    /// Of the cache.
    stored: DType,
    sequences: Vec<(usize, usize)>,
    spans: Vec<AttentionSpan>,
    tables: Vec<u32>,
    blocks: usize,
    /// By sequence: position, K or V, head, dimension.
    kv: Vec<Vec<f32>>,
    queries: Vec<f32>,
}

impl World {
    fn new(
        (heads, kv_heads, dim): Heads,
        sequences: &[(usize, usize)],
        dtype: DType,
        stored: DType,
    ) -> World {
        let blocks = sequences.iter().map(|s| s.0.div_ceil(BLOCK_SIZE)).sum::<usize>() + 2;
        let (mut spans, mut tables, mut kv) = (Vec::new(), Vec::new(), Vec::new());
        let mut first_row = 0;
        for (i, (length, rows)) in sequences.iter().enumerate() {
            let block_table = tables.len() as u32;
            let first_position = (length - rows) as u32;
            spans.push(AttentionSpan { first_row, rows: *rows as u32, first_position, block_table });
            first_row += *rows as u32;
            let begun = tables.len();
            tables.extend((0..length.div_ceil(BLOCK_SIZE)).map(|b| place(begun + b, blocks) as u32));
            kv.push(as_stored(&random(20 + i as u64, length * 2 * kv_heads * dim), dim, stored));
        }
        // Large enough that some keys count far more than others.
        let queries = random(30, first_row as usize * heads * dim).iter().map(|x| 3.0 * x).collect();
        let sequences = sequences.to_vec();
        World { heads: (heads, kv_heads, dim), dtype, stored, sequences, spans, tables, blocks, kv, queries }
    }

    fn rows(&self) -> usize {
        self.sequences.iter().map(|s| s.1).sum()
    }

    /// `[blocks, 2, kv_heads, BLOCK_SIZE, dim]`; what no sequence owns is NaN.
    fn cache(&self, on: &Exec) -> Result<Tensor> {
        let (_, kv_heads, dim) = self.heads;
        let mut data = vec![f32::NAN; self.blocks * 2 * kv_heads * BLOCK_SIZE * dim];
        for (span, kv) in self.spans.iter().zip(&self.kv) {
            for (at, chunk) in kv.chunks(dim).enumerate() {
                let (position, plane) = (at / (2 * kv_heads), at % (2 * kv_heads));
                let block = self.tables[span.block_table as usize + position / BLOCK_SIZE] as usize;
                let to = ((block * 2 * kv_heads + plane) * BLOCK_SIZE + position % BLOCK_SIZE) * dim;
                data[to..to + dim].copy_from_slice(chunk);
            }
        }
        cache_of(&data, (self.blocks, kv_heads, dim), self.stored, on)
    }

    fn run(&self, on: &Exec) -> Result<Vec<f32>> {
        let (heads, kv_heads, head_dim) = self.heads;
        let mut tiles: Vec<Tile> = Vec::new();
        let cutting = Cutting::new(heads, kv_heads, head_dim, self.dtype, on.batch_invariant);
        let split_tiles = cutting.cut(&self.spans, &mut tiles);
        let words = AttentionSpan::words(&self.spans);
        let [spans, tables, cut] = mirrored(on, [words, &self.tables, tiles.as_flattened()])?;
        let plan = AttentionPlan {
            spans: Mirrored { host: self.spans.as_slice(), address: spans.address },
            block_tables: tables,
            tiles: Mirrored { host: tiles.as_slice(), address: cut.address },
            split_tiles,
            rows: self.rows(),
        };
        let kv = self.cache(on)?;
        let sinks = self.sinks().map(|sinks| Weight::made(sinks, heads, DType::F32, on)).transpose()?;
        let room =
            on.launcher.as_ref().map(|_| scratch(heads, kv_heads, head_dim, &on.device)).transpose()?;
        let op = PagedAttention {
            plan,
            kv: &kv,
            scales: CacheScales::ONE,
            heads,
            kv_heads,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            limits: AttentionLimits::default(),
            sinks: sinks.as_ref(),
            scratch: room.as_ref(),
            on,
        };
        let width = heads * head_dim;
        let queries = [self.queries.clone(), vec![f32::NAN; width]].concat();
        let dst = poison(on, self.rows() + 1, width, self.dtype)?;
        dst.inplace_op2(&tensor(on, queries, width, DType::F32)?, &op)?;
        read(&dst)
    }

    /// Of some shapes.
    fn sinks(&self) -> Option<Vec<f32>> {
        let (heads, kv_heads, _) = self.heads;
        (kv_heads > 1).then(|| random(40, heads).iter().map(|x| 6.0 * x).collect())
    }

    /// Softmax over each row's own keys, and its sink.
    fn answer(&self) -> Vec<f64> {
        let (heads, kv_heads, dim) = self.heads;
        let (mut out, sinks) = (Vec::new(), self.sinks());
        for (span, kv) in self.spans.iter().zip(&self.kv) {
            for row in 0..span.rows as usize {
                let seen = span.first_position as usize + row + 1;
                for head in 0..heads {
                    let at = ((span.first_row as usize + row) * heads + head) * dim;
                    let query = &self.queries[at..at + dim];
                    let group = head / (heads / kv_heads);
                    let of = |position: usize, value: usize| {
                        let at = (position * 2 * kv_heads + value * kv_heads + group) * dim;
                        &kv[at..at + dim]
                    };
                    let dot = |key: &[f32]| -> f64 {
                        query.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum()
                    };
                    let scores: Vec<f64> = (0..seen).map(|p| dot(of(p, 0)) / (dim as f64).sqrt()).collect();
                    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
                    let sink = sinks.as_ref().map_or(0.0, |sinks| (f64::from(sinks[head]) - most).exp());
                    let sum = weights.iter().sum::<f64>() + sink;
                    let value = |d: usize| -> f64 {
                        weights.iter().enumerate().map(|(p, w)| w * f64::from(of(p, 1)[d])).sum()
                    };
                    out.extend((0..dim).map(|d| value(d) / sum));
                }
            }
        }
        out
    }
}

/// Queries turned in place, and the cache with the keys and values of the rows.
pub fn rope_kv_write(on: &Exec, size: Size) -> Vec<Outcome> {
    let mut all = Vec::new();
    // What is written depends on the cache's type alone.
    for (heads, dtype, stored) in cases(on, size) {
        if stored != dtype && dtype != DType::F32 {
            continue;
        }
        for with_norms in [false, true] {
            let norms = if with_norms { ", with norms" } else { "" };
            let case = format!("{} on {} heads of {}, {stored:?}{norms}", heads.0, heads.1, heads.2);
            let (got, want) = turn(on, heads, stored, with_norms);
            // FP8's smallest numbers lie 2^-9 apart, codes of 8 bits a 127th of the largest, which is below 2.5 here.
            let (ulps, least) = match stored {
                DType::F8E4M3 => (0.6, 0.6 * 2f64.powi(-9)),
                Q8 => (0.0, 0.51 * 2.5 / 127.0),
                _ => (4.0, 4e-6),
            };
            let tolerance = (ulps * ulp(stored), least);
            all.push(compare("rope_kv_write", case, got, &Want { numbers: want, tolerance }));
        }
    }
    all
}

const ROWS: usize = 5;
const CACHE_BLOCKS: usize = 3;
/// Block and offset of each row.
const SLOTS: [u32; ROWS] = [33, 0, 47, 15, 16];

fn turn(
    on: &Exec,
    (heads, kv_heads, dim): Heads,
    dtype: DType,
    with_norms: bool,
) -> (Result<Vec<f32>>, Vec<f64>) {
    let stride = (heads + 2 * kv_heads) * dim;
    let (qkv, angles) = (random(40, ROWS * stride), random(41, ROWS * dim));
    let scales = [random(42, dim), random(43, dim)];
    let run = || -> Result<Vec<f32>> {
        let q = Weight::made(scales[0].clone(), dim, DType::F32, on)?;
        let norms = [q, Weight::made(scales[1].clone(), dim, DType::F32, on)?];
        let rows = tensor(on, qkv.clone(), stride, DType::F32)?;
        let angles = tensor(on, angles.clone(), dim, DType::F32)?;
        let nothing = vec![f32::NAN; CACHE_BLOCKS * 2 * kv_heads * BLOCK_SIZE * dim];
        let cache = cache_of(&nothing, (CACHE_BLOCKS, kv_heads, dim), dtype, on)?;
        let op = Rope {
            rows: ROWS,
            heads,
            kv_heads,
            head_dim: dim,
            norms: with_norms.then_some((&norms, 1e-5)),
            scales: CacheScales::ONE,
            on,
        };
        let [slots] = mirrored(on, [&SLOTS])?;
        rope::rope_kv_write(&rows, &angles, &cache, &op, slots)?;
        let turned = read(&rows)?;
        // What is left of the keys and values in the rows is of no use to anyone.
        let queries = turned.chunks(stride).flat_map(|row| row[..heads * dim].to_vec());
        Ok(queries.chain(read_cache(&cache, dim)?).collect())
    };
    let mut cache = vec![f64::NAN; CACHE_BLOCKS * 2 * kv_heads * BLOCK_SIZE * dim];
    let mut queries = Vec::new();
    for (r, row) in qkv.chunks(stride).enumerate() {
        let (cosines, sines) = angles[r * dim..(r + 1) * dim].split_at(dim / 2);
        for (h, head) in row.chunks(dim).enumerate() {
            let mut x: Vec<f64> = head.iter().map(|x| f64::from(*x)).collect();
            let is_query = h < heads;
            if h < heads + kv_heads {
                if with_norms {
                    let squares: f64 = x.iter().map(|x| x * x).sum();
                    let inverse = 1.0 / (squares / dim as f64 + 1e-5).sqrt();
                    let scale = &scales[usize::from(!is_query)];
                    x.iter_mut().zip(scale).for_each(|(x, w)| *x *= inverse * f64::from(*w));
                }
                for i in 0..dim / 2 {
                    let (a, b) = (x[i], x[dim / 2 + i]);
                    let (c, s) = (f64::from(cosines[i]), f64::from(sines[i]));
                    (x[i], x[dim / 2 + i]) = (a * c - b * s, b * c + a * s);
                }
            }
            if is_query {
                queries.extend(x);
                continue;
            }
            let (block, offset) = (SLOTS[r] as usize / BLOCK_SIZE, SLOTS[r] as usize % BLOCK_SIZE);
            let to = ((block * 2 * kv_heads + h - heads) * BLOCK_SIZE + offset) * dim;
            cache[to..to + dim].copy_from_slice(&x);
        }
    }
    queries.extend(cache);
    (run(), queries)
}
