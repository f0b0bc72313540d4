//! Attention of a few query vectors over one sequence's blocks: an online softmax in fixed tiles.
//!
//! The tiles are counted from position 0 and each query vector keeps its own maximum, sum and
//! accumulator, so its result does not depend on who is processed beside it; what is shared is the
//! reading of K and V (the query heads of one K/V head, neighbouring rows of a prompt). A key that a
//! query may not see never enters its arithmetic. No tensors, no threads in here.
//! Online softmax: Milakov & Gimelshein 2018; tiling: Dao et al. 2022 (FlashAttention).

use std::mem::MaybeUninit;

use super::attention_scalar::Plain;
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
pub struct Shape {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub scale: f32,
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
    pub keys: std::ops::Range<usize>,
    pub dim: usize,
}

/// The three inner loops, for one instruction set and one type of cache.
pub trait Kernels {
    type Kv: Element;
    /// What queries are rounded to before they meet the keys.
    type Query: Element;

    /// `scores[i · TILE + j] = q_i · k_j` for `n` queries and the 16 keys of a block, while keys that
    /// are needed soon are fetched from `ahead`.
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
        ahead: Option<*const Self::Kv>,
    );

    /// Turns the first `valid` ≥ 1 scores of a tile into weights e^(scale·score − max), updates the
    /// softmax and returns the factor by which what was accumulated before is to be scaled.
    ///
    /// # Safety
    /// `scores` holds a tile whose blocks up to the one of `valid − 1` are written.
    unsafe fn weigh(scores: *mut f32, valid: usize, scale: f32, softmax: &mut Softmax) -> f32;

    /// `acc_i = acc_i · factor_i + Σ_j weight_ij · v_j` for 1 to [`SHARED_QUERIES`] queries and some of
    /// the tile's keys.
    ///
    /// # Safety
    /// The pointers are as [`Mix`] says; the machine has the instruction set.
    unsafe fn mix(job: &Mix<'_, Self::Kv>);
}

/// A type of cache and its kernels.
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

/// Computes a group. q: `[rows, heads · head_dim]`, cache: `[blocks, 2, kv_heads, BLOCK, head_dim]`.
///
/// # Safety
/// The group's rows lie within q and dst, its table covers its last position with ids of blocks of the
/// cache, no other thread touches its part of dst, and the machine has `isa`.
pub unsafe fn attend<T: CacheElement, O: Element>(
    isa: Isa,
    shape: &Shape,
    group: &Group<'_>,
    q: &[f32],
    cache: &[T],
    dst: SharedMut<O>,
) {
    // SAFETY: the caller's promises are passed on.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => attend_with::<T::Avx512, O>(shape, group, q, cache, dst),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => attend_with::<T::Avx2, O>(shape, group, q, cache, dst),
            _ => attend_with::<T::Scalar, O>(shape, group, q, cache, dst),
        }
    }
}

/// A task's working memory, on its stack; only the part that the group needs is ever touched.
struct Scratch<Q> {
    /// `[queries, head_dim]`
    q: [MaybeUninit<Q>; MAX_QUERIES * MAX_HEAD_DIM],
    /// `[queries, head_dim]`
    acc: [MaybeUninit<f32>; MAX_QUERIES * MAX_HEAD_DIM],
    /// `[queries, TILE]`
    scores: [MaybeUninit<f32>; MAX_QUERIES * TILE],
}

/// # Safety
/// As [`attend`].
unsafe fn attend_with<K: Kernels, O: Element>(
    shape: &Shape,
    group: &Group<'_>,
    q: &[f32],
    cache: &[K::Kv],
    dst: SharedMut<O>,
) {
    let dim = shape.head_dim;
    let queries = group.rows * group.heads;
    let mut scratch = Scratch::<K::Query> {
        q: [MaybeUninit::uninit(); MAX_QUERIES * MAX_HEAD_DIM],
        acc: [MaybeUninit::uninit(); MAX_QUERIES * MAX_HEAD_DIM],
        scores: [MaybeUninit::uninit(); MAX_QUERIES * TILE],
    };
    let mut softmax = [Softmax { max: f32::NEG_INFINITY, sum: 0.0 }; MAX_QUERIES];
    // Query i is row i / heads, head i % heads: positions ascend with i.
    let place = |i: usize| {
        (group.first_row + i / group.heads) * shape.heads * dim + (group.first_head + i % group.heads) * dim
    };
    for i in 0..queries {
        let from = &q[place(i)..place(i) + dim];
        for (d, x) in from.iter().enumerate() {
            scratch.q[i * dim + d].write(K::Query::narrow(*x));
        }
        scratch.acc[i * dim..(i + 1) * dim].fill(MaybeUninit::new(0.0));
    }
    let q_at = scratch.q.as_ptr().cast::<K::Query>();
    let acc = scratch.acc.as_mut_ptr().cast::<f32>();
    let all_scores = scratch.scores.as_mut_ptr().cast::<f32>();

    let seen = group.first_position + group.rows; // positions the last row sees
    // The keys or the values of the n-th block, as far as the group looks.
    let part =
        |n: usize, part: usize| (n * BLOCK < seen).then(|| block_part(shape, group, cache, n, part).as_ptr());
    for tile in 0..seen.div_ceil(TILE) {
        let start = tile * TILE;
        // Rows that see nothing of this tile sit it out.
        let first_active = start.saturating_sub(group.first_position) * group.heads;
        // Blocks lie scattered: no hardware foresees the next tile's.
        let next = |b: usize, which: usize| part((tile + 1) * TILE_BLOCKS + b, which);
        for b in 0..TILE_BLOCKS {
            let Some(k) = part(tile * TILE_BLOCKS + b, 0) else { break };
            let (q, scores) = (first_active * dim, first_active * TILE + b * BLOCK);
            // SAFETY: the active queries follow in the scratch; the block of keys is [BLOCK, dim].
            unsafe {
                let (q, scores) = (q_at.add(q), all_scores.add(scores));
                K::scores(q, queries - first_active, k, dim, scores, next(b, 0));
            }
        }
        let or_null = |v: Option<*const K::Kv>| v.unwrap_or(std::ptr::null());
        let v = std::array::from_fn(|b| or_null(part(tile * TILE_BLOCKS + b, 1)));
        let v_ahead = std::array::from_fn(|b| or_null(next(b, 1)));
        let valid = |i: usize| (group.first_position + i / group.heads + 1 - start).min(TILE);
        for i in (first_active..queries).step_by(SHARED_QUERIES) {
            let end = (i + SHARED_QUERIES).min(queries);
            let mut factors = [1.0f32; SHARED_QUERIES];
            for j in i..end {
                // SAFETY: query j's scores are written up to its last visible block.
                factors[j - i] =
                    unsafe { K::weigh(all_scores.add(j * TILE), valid(j), shape.scale, &mut softmax[j]) };
            }
            // What all of them see in one go, then each what it sees beyond.
            let common = valid(i);
            let mix = |first: usize, factors: &[f32], keys: std::ops::Range<usize>, ahead| {
                // SAFETY: these queries lie within the scratch and see these keys of the tile.
                unsafe {
                    let (acc, weights) = (acc.add(first * dim), all_scores.add(first * TILE));
                    K::mix(&Mix { acc, factors, weights, v: &v, ahead, keys, dim });
                }
            };
            let nothing = [std::ptr::null(); TILE_BLOCKS];
            let ahead = if i == first_active { &v_ahead } else { &nothing };
            mix(i, &factors[..end - i], 0..common, ahead);
            for j in i + 1..end {
                if valid(j) > common {
                    mix(j, &[1.0], common..valid(j), &nothing);
                }
            }
        }
    }
    for i in 0..queries {
        let inverse = 1.0 / softmax[i].sum;
        for d in 0..dim {
            // SAFETY: acc is written for all queries; the place lies within dst and is ours alone.
            unsafe { *dst.at(place(i) + d) = O::narrow(*acc.add(i * dim + d) * inverse) };
        }
    }
}

/// The keys (part 0) or values (part 1) `[BLOCK, head_dim]` of the sequence's n-th block.
fn block_part<'c, T>(shape: &Shape, group: &Group<'_>, cache: &'c [T], n: usize, part: usize) -> &'c [T] {
    let size = BLOCK * shape.head_dim;
    let at = ((group.table[n] as usize * 2 + part) * shape.kv_heads + group.kv_head) * size;
    &cache[at..at + size]
}
