//! Attention of a few query vectors over one sequence's blocks: an online softmax in fixed tiles.
//!
//! The tiles are counted from position 0 and each query vector keeps its own maximum, sum and
//! accumulator, so its result does not depend on who is processed beside it; what is shared is the
//! reading of K and V (the query heads of one K/V head, neighbouring rows of a prompt). A key that a
//! query may not see, because it comes later or has left the layer's window, never enters its arithmetic. No tensors,
//! no threads in here.
//! Online softmax: Milakov & Gimelshein 2018; tiling: Dao et al. 2022 (FlashAttention).

use std::mem::MaybeUninit;
use std::ops::Range;

use super::attention_cache::Cache;
use super::attention_scalar::Plain;
use super::fp8::F8E4M3;
use super::{Element, Isa, SharedMut};
#[cfg(target_arch = "x86_64")]
use super::{attention_avx2::Avx2, attention_avx512::Avx512};

/// Positions of a cache block.
pub const BLOCK: usize = 16;
/// Cache blocks of a tile.
pub const TILE_BLOCKS: usize = 4;
/// Positions of a tile.
pub const TILE: usize = BLOCK * TILE_BLOCKS;
/// Query vectors of a group at most.
pub const MAX_QUERIES: usize = 16;
/// Query vectors that share one reading of V.
pub const SHARED_QUERIES: usize = 4;
pub const MAX_HEAD_DIM: usize = 256;

/// What holds for a whole layer.
#[derive(Debug, Clone, Copy)]
pub struct Shape<'a> {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub scores: Scores,
    /// How many positions a row sees, its own and those before it.
    pub window: usize,
    /// Of the stored values: what is accumulated is multiplied by it.
    pub v_scale: f32,
    /// Of each head a score that takes its part of the softmax and has no value.
    pub sinks: Option<&'a [f32]>,
}

/// What becomes of a query times a key before the softmax.
#[derive(Debug, Clone, Copy)]
pub struct Scores {
    pub scale: f32,
    /// cap · tanh(score / cap), where there is one.
    pub cap: Option<f32>,
}

/// Query rows; each begins with its heads and is `stride` long.
#[derive(Clone, Copy)]
pub struct Queries<'a> {
    pub rows: &'a [f32],
    pub stride: usize,
}

/// What one task computes: `rows` successive rows of one sequence × `heads` query heads of one K/V
/// head; `rows · heads` is at most [`MAX_QUERIES`].
#[derive(Debug, Clone, Copy)]
pub struct Group<'a> {
    pub first_row: usize,
    pub rows: usize,
    /// The position of `first_row`.
    pub first_position: usize,
    pub first_head: usize,
    pub heads: usize,
    pub kv_head: usize,
    /// The sequence's block ids.
    pub table: &'a [u32],
}

/// Running maximum and sum of one query's softmax.
#[derive(Debug, Clone, Copy)]
pub struct Softmax {
    pub max: f32,
    pub sum: f32,
}

/// What `Kernels::mix` works on.
pub struct Mix<'a, T> {
    /// `[queries, dim]`
    pub acc: *mut f32,
    /// One for each query.
    pub factors: &'a [f32],
    /// `[queries, TILE]`
    pub weights: *const f32,
    /// The tile's blocks of values `[BLOCK, dim]`, those that `keys` needs.
    pub v: &'a [*const T; TILE_BLOCKS],
    /// Blocks of values that are needed soon; null where there is none.
    pub ahead: &'a [*const T; TILE_BLOCKS],
    /// Positions within the tile.
    pub keys: Range<usize>,
    pub dim: usize,
}

/// The three inner loops, for one instruction set and one type of cache.
pub trait Kernels {
    type Kv: Element;
    /// What queries are rounded to before they meet the keys.
    type Query: Element;

    /// `scores[i · TILE + j] = q_i · k_j` for `n` queries and the 16 keys of a block, while keys that
    /// are needed soon are fetched from `ahead` (unless null).
    ///
    /// # Safety
    /// q: `[n, dim]`, k: `[BLOCK, dim]`, scores: `[n, TILE]` from the block's first column; dim is a
    /// multiple of 8; the machine has the instruction set.
    unsafe fn scores(
        q: *const Self::Query,
        n: usize,
        k: *const Self::Kv,
        dim: usize,
        scores: *mut f32,
        ahead: *const Self::Kv,
    );

    /// Turns those scores of a tile, one at least, into weights e^(score − max), updates the softmax and returns the
    /// factor by which what was accumulated before is to be scaled.
    ///
    /// # Safety
    /// `scores` holds a tile whose blocks up to the one of `keys.end − 1` are written.
    unsafe fn weigh(scores: *mut f32, keys: Range<usize>, of: Scores, softmax: &mut Softmax) -> f32;

    /// `acc_i = acc_i · factor_i + Σ_j weight_ij · v_j` for 1 to [`SHARED_QUERIES`] queries and some of
    /// the tile's keys.
    ///
    /// # Safety
    /// The pointers are as [`Mix`] says; the machine has the instruction set.
    unsafe fn mix(job: &Mix<'_, Self::Kv>);
}

/// What a cache's numbers are read as, and the kernels for it.
pub trait CacheElement: Element {
    type Scalar: Kernels<Kv = Self>;
    #[cfg(target_arch = "x86_64")]
    type Avx512: Kernels<Kv = Self>;
    #[cfg(target_arch = "x86_64")]
    type Avx2: Kernels<Kv = Self>;
}

impl CacheElement for f32 {
    type Scalar = Plain<f32>;
    #[cfg(target_arch = "x86_64")]
    type Avx512 = Avx512<f32>;
    #[cfg(target_arch = "x86_64")]
    type Avx2 = Avx2<f32>;
}
impl CacheElement for half::bf16 {
    type Scalar = Plain<half::bf16>;
    #[cfg(target_arch = "x86_64")]
    type Avx512 = Avx512<half::bf16>;
    #[cfg(target_arch = "x86_64")]
    type Avx2 = Avx2<half::bf16>;
}

impl CacheElement for F8E4M3 {
    type Scalar = Plain<F8E4M3>;
    #[cfg(target_arch = "x86_64")]
    type Avx512 = Avx512<F8E4M3>;
    #[cfg(target_arch = "x86_64")]
    type Avx2 = Avx2<F8E4M3>;
}

/// Computes a group. q: `[rows, stride]`, dst: `[rows, heads · head_dim]`.
///
/// # Safety
/// The group's rows lie within q and dst, its table covers its last position with ids of blocks of the
/// cache, no other thread touches its part of dst, and the machine has `isa`.
pub unsafe fn attend<C: Cache, O: Element>(
    isa: Isa,
    shape: &Shape<'_>,
    group: &Group<'_>,
    q: Queries<'_>,
    cache: C,
    dst: SharedMut<O>,
) {
    // SAFETY: the caller's promises are passed on.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                attend_with::<<C::Element as CacheElement>::Avx512, C, O>(isa, shape, group, q, cache, dst);
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                attend_with::<<C::Element as CacheElement>::Avx2, C, O>(isa, shape, group, q, cache, dst);
            }
            _ => attend_with::<<C::Element as CacheElement>::Scalar, C, O>(isa, shape, group, q, cache, dst),
        }
    }
}

/// A task's working memory, on its stack; only the part that the group needs is ever touched.
struct Scratch<Q, R> {
    /// `[queries, head_dim]`
    q: [MaybeUninit<Q>; MAX_QUERIES * MAX_HEAD_DIM],
    /// `[queries, head_dim]`
    acc: [MaybeUninit<f32>; MAX_QUERIES * MAX_HEAD_DIM],
    /// `[queries, TILE]`
    scores: [MaybeUninit<f32>; MAX_QUERIES * TILE],
    /// A tile's keys, then its values, of a cache that stores them as something else.
    room: MaybeUninit<R>,
}

/// # Safety
/// As [`attend`].
unsafe fn attend_with<K: Kernels, C: Cache<Element = K::Kv>, O: Element>(
    isa: Isa,
    shape: &Shape<'_>,
    group: &Group<'_>,
    q: Queries<'_>,
    cache: C,
    dst: SharedMut<O>,
) {
    let dim = shape.head_dim;
    let queries = group.rows * group.heads;
    let mut scratch = Scratch::<K::Query, C::Room> {
        q: [MaybeUninit::uninit(); MAX_QUERIES * MAX_HEAD_DIM],
        acc: [MaybeUninit::uninit(); MAX_QUERIES * MAX_HEAD_DIM],
        scores: [MaybeUninit::uninit(); MAX_QUERIES * TILE],
        room: MaybeUninit::uninit(),
    };
    // Query i is row i / heads, head i % heads: positions ascend with i.
    let place = |i: usize, stride: usize| {
        (group.first_row + i / group.heads) * stride + (group.first_head + i % group.heads) * dim
    };
    for i in 0..queries {
        for (to, x) in scratch.q[i * dim..].iter_mut().zip(&q.rows[place(i, q.stride)..][..dim]) {
            to.write(K::Query::narrow(*x));
        }
        scratch.acc[i * dim..(i + 1) * dim].fill(MaybeUninit::new(0.0));
    }
    let mut work = Work::<K, C> {
        shape,
        group,
        cache,
        isa,
        room: scratch.room.as_mut_ptr(),
        queries,
        seen: group.first_position + group.rows,
        q: scratch.q.as_ptr().cast(),
        acc: scratch.acc.as_mut_ptr().cast(),
        scores: scratch.scores.as_mut_ptr().cast(),
        softmax: [Softmax { max: f32::NEG_INFINITY, sum: 0.0 }; MAX_QUERIES],
    };
    let oldest = (group.first_position + 1).saturating_sub(shape.window);
    for tile in oldest / TILE..work.seen.div_ceil(TILE) {
        // Rows that see nothing of this tile, not yet or no more, sit it out.
        let first = (tile * TILE).saturating_sub(group.first_position) * group.heads;
        let rows = (tile * TILE + TILE - 1).saturating_add(shape.window) - group.first_position;
        let queries = first..work.queries.min(rows.saturating_mul(group.heads));
        // SAFETY: the caller's promises; queries are filled in and accumulators zeroed above.
        unsafe {
            work.score(tile, queries.clone());
            work.mix(tile, queries);
        }
    }
    for i in 0..queries {
        let Softmax { max, sum } = work.softmax[i];
        let sink = shape.sinks.map_or(0.0, |sinks| (sinks[group.first_head + i % group.heads] - max).exp());
        let inverse = shape.v_scale / (sum + sink);
        for d in 0..dim {
            // SAFETY: acc is written for all queries; the place lies within dst and is ours alone.
            unsafe {
                *dst.at(place(i, shape.heads * dim) + d) = O::narrow(*work.acc.add(i * dim + d) * inverse)
            };
        }
    }
}

/// A group in progress.
struct Work<'a, K: Kernels, C: Cache<Element = K::Kv>> {
    shape: &'a Shape<'a>,
    group: &'a Group<'a>,
    cache: C,
    isa: Isa,
    room: *mut C::Room,
    queries: usize,
    /// Positions that the last row sees.
    seen: usize,
    q: *const K::Query,
    acc: *mut f32,
    scores: *mut f32,
    softmax: [Softmax; MAX_QUERIES],
}

impl<K: Kernels, C: Cache<Element = K::Kv>> Work<'_, K, C> {
    /// Where the keys (part 0) or values (part 1) of a tile's b-th block stand in the cache; `None` beyond what the
    /// group sees.
    fn place(&self, tile: usize, b: usize, part: usize) -> Option<usize> {
        let n = tile * TILE_BLOCKS + b;
        let of = |block: &u32| (*block as usize * 2 + part) * self.shape.kv_heads + self.group.kv_head;
        (n * BLOCK < self.seen).then(|| of(&self.group.table[n]))
    }

    /// Those keys or values `[BLOCK, head_dim]`; null beyond what the group sees.
    ///
    /// # Safety
    /// As [`attend`]; what was read of a tile before is read no more.
    unsafe fn block(&self, tile: usize, b: usize, part: usize) -> *const K::Kv {
        let Some(n) = self.place(tile, b, part) else { return std::ptr::null() };
        // SAFETY: the caller's promises; the room is the task's own.
        unsafe { self.cache.read(self.isa, n, self.shape.head_dim, self.room, b) }
    }

    /// What of it is worth fetching before it is read.
    fn ahead(&self, tile: usize, b: usize, part: usize) -> *const K::Kv {
        let place = self.place(tile, b, part);
        place.map_or(std::ptr::null(), |n| self.cache.ahead(n, self.shape.head_dim))
    }

    /// Scores of some queries against a tile's keys.
    ///
    /// # Safety
    /// As [`attend`]; the queries are filled in.
    unsafe fn score(&mut self, tile: usize, queries: Range<usize>) {
        let dim = self.shape.head_dim;
        for b in 0..TILE_BLOCKS {
            // SAFETY: the values of the tile before have been mixed.
            let k = unsafe { self.block(tile, b, 0) };
            if k.is_null() {
                return;
            }
            // Blocks lie scattered: no hardware foresees the next tile's.
            let ahead = self.ahead(tile + 1, b, 0);
            // SAFETY: the queries lie in the scratch; a block of keys is [BLOCK, dim].
            unsafe {
                let scores = self.scores.add(queries.start * TILE + b * BLOCK);
                K::scores(self.q.add(queries.start * dim), queries.len(), k, dim, scores, ahead);
            }
        }
    }

    /// Adds a tile's values, weighed, to the accumulators of some queries, each of which sees some of it.
    ///
    /// # Safety
    /// As [`attend`]; the tile is scored.
    unsafe fn mix(&mut self, tile: usize, queries: Range<usize>) {
        let Shape { head_dim: dim, scores: of, window, .. } = *self.shape;
        let (acc, scores) = (self.acc, self.scores);
        // SAFETY: the tile's keys have been scored.
        let v = std::array::from_fn(|b| unsafe { self.block(tile, b, 1) });
        let next = std::array::from_fn(|b| self.ahead(tile + 1, b, 1));
        let nothing = [std::ptr::null(); TILE_BLOCKS];
        // Which of the tile's keys query i sees.
        let (group, start) = (self.group, tile * TILE);
        let sees = |i: usize| {
            let end = group.first_position + i / group.heads + 1;
            end.saturating_sub(window).saturating_sub(start)..(end - start).min(TILE)
        };
        let mix = |i: usize, factors: &[f32], keys: Range<usize>, ahead: &[*const K::Kv; TILE_BLOCKS]| {
            // SAFETY: the queries from i lie in the scratch and see these keys of the tile.
            unsafe {
                let (acc, weights) = (acc.add(i * dim), scores.add(i * TILE));
                K::mix(&Mix { acc, factors, weights, v: &v, ahead, keys, dim });
            }
        };
        for i in queries.clone().step_by(SHARED_QUERIES) {
            let end = (i + SHARED_QUERIES).min(queries.end);
            let mut factors = [1.0f32; SHARED_QUERIES];
            for j in i..end {
                // SAFETY: query j's scores are written up to its last visible block.
                factors[j - i] = unsafe { K::weigh(scores.add(j * TILE), sees(j), of, &mut self.softmax[j]) };
            }
            // What all of them see in one go; each what it alone sees before that and after, in the keys' order.
            let common = sees(end - 1).start.min(sees(i).end)..sees(i).end;
            for j in i..end {
                let before = sees(j).start..common.start;
                if !before.is_empty() {
                    mix(j, &[std::mem::replace(&mut factors[j - i], 1.0)], before, &nothing);
                }
            }
            let ahead = if i == queries.start { &next } else { &nothing };
            mix(i, &factors[..end - i], common.clone(), ahead);
            for j in i + 1..end {
                let after = common.end.max(sees(j).start)..sees(j).end;
                if !after.is_empty() {
                    mix(j, &[1.0], after, &nothing);
                }
            }
        }
    }
}
