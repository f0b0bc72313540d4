//! One row of logits → one token: the loops of sampling.
//!
//! The reference of `ops/cuda/sample.cu`, step by step the same. What is kept is described by a `Cut`, found by
//! counting into bins, so that nothing is sorted and no memory is needed. Knows tasks and slices, no tensors.

use crate::ops::activation::exp;
use crate::ops::sample::{MAX_TOP, NONE, Task};

/// Masses are multiples of this share of the largest one: 2⁻⁴⁰.
const ONE: f32 = (1u64 << 40) as f32;
const BINS: usize = 256;
/// Bins to a factor of e between masses.
const BINS_PER_NAT: f32 = 8.0;

/// Which entries are kept: those with a larger key, and the first `quota` of those at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cut {
    key: u32,
    quota: u64,
}

/// A number of the same order as the float.
#[inline(always)]
fn key(x: f32) -> u32 {
    let bits = x.to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

/// The adjusted logits of a row, in place.
pub fn adjust(row: &mut [f32], task: &Task, words: &[u32]) {
    let list = |begin: u32, words_of_it: u32| &words[begin as usize..][..words_of_it as usize];
    for pair in list(task.seen.begin, 2 * task.seen.len).chunks_exact(2) {
        let Some(x) = row.get_mut(pair[0] as usize) else { continue };
        *x = if *x > 0.0 { *x / task.repetition_penalty } else { *x * task.repetition_penalty };
        if pair[1] > 0 {
            *x -= task.frequency_penalty * pair[1] as f32 + task.presence_penalty;
        }
    }
    for pair in list(task.bias.begin, 2 * task.bias.len).chunks_exact(2) {
        if let Some(x) = row.get_mut(pair[0] as usize) {
            *x += f32::from_bits(pair[1]);
        }
    }
    for &token in list(task.banned.begin, task.banned.len) {
        if let Some(x) = row.get_mut(token as usize) {
            *x = f32::NEG_INFINITY;
        }
    }
    if task.mask != NONE {
        let mask = &words[task.mask as usize..][..row.len().div_ceil(32)];
        for (chunk, word) in row.chunks_mut(32).zip(mask) {
            if *word != u32::MAX {
                chunk.iter_mut().enumerate().filter(|(i, _)| word >> i & 1 == 0).for_each(|(_, x)| {
                    *x = f32::NEG_INFINITY;
                });
            }
        }
    }
}

/// A row's result, from its raw logits and those to draw from.
pub fn pick(out: &mut [u32], task: &Task, raw: &[f32], from: &[f32]) {
    out[..4].copy_from_slice(&[0, 0, 0, 0]);
    if !all_finite(raw) {
        return;
    }
    let token = match task {
        Task { score, .. } if *score != NONE => *score,
        Task { temperature, .. } if *temperature <= 0.0 => largest(from),
        _ => draw(task, from),
    };
    (out[0], out[1]) = (token, 1);
    if task.top != NONE {
        logprobs(out, raw, token, task.top as usize);
    }
}

/// True when every entry is a number.
fn all_finite(row: &[f32]) -> bool {
    // x × 0 is 0 for finite x and NaN otherwise; sixteen lanes so that the loop is vectorised.
    let mut lanes = [0f32; 16];
    let chunks = row.chunks_exact(16);
    let tail = chunks.remainder();
    for chunk in chunks {
        for (l, x) in lanes.iter_mut().zip(chunk) {
            *l += x * 0.0;
        }
    }
    for (l, x) in lanes.iter_mut().zip(tail) {
        *l += x * 0.0;
    }
    lanes.iter().all(|l| *l == 0.0)
}

/// Index of the largest entry, the first among equals.
fn largest(row: &[f32]) -> u32 {
    let max = maximum(row);
    row.iter().position(|x| *x == max).unwrap_or(0) as u32
}

fn maximum(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let chunks = row.chunks_exact(16);
    let tail = chunks.remainder();
    for chunk in chunks {
        for (l, x) in lanes.iter_mut().zip(chunk) {
            *l = if *x > *l { *x } else { *l };
        }
    }
    lanes.iter().chain(tail).copied().fold(f32::NEG_INFINITY, f32::max)
}

/// A row's entries as a draw sees them.
struct Entries<'a> {
    row: &'a [f32],
    max: f32,
    temperature: f32,
}

impl Entries<'_> {
    /// Share of the largest mass, in units of 1 / [`ONE`].
    #[inline(always)]
    fn mass(&self, x: f32) -> u64 {
        (exp((x - self.max) / self.temperature) * ONE) as u64
    }

    /// Bins follow each other from the largest entry down; the last takes all that is left.
    #[inline(always)]
    fn bin(&self, x: f32) -> usize {
        ((self.max - x) / self.temperature * BINS_PER_NAT).min((BINS - 1) as f32) as usize
    }

    /// Narrows a cut to the fewest of the largest entries whose weights reach `target`; leaves it when they all
    /// do not.
    fn narrow(&self, cut: Cut, target: u64, weight: impl Fn(f32) -> u64) -> Cut {
        let kept = || self.row.iter().copied().filter(|x| key(*x) >= cut.key);
        let mut bins = [0u64; BINS];
        kept().for_each(|x| bins[self.bin(x)] += weight(x));
        let mut above = 0;
        let Some(bin) = reach(bins.iter(), target, &mut above) else { return cut };
        // The keys of that bin, byte by byte.
        let mut found = 0u32;
        for shift in [24, 16, 8, 0] {
            bins = [0; BINS];
            let alike = |k: u32| u64::from(k) >> (shift + 8) == u64::from(found);
            for x in kept().filter(|x| self.bin(*x) == bin && alike(key(*x))) {
                bins[(key(x) >> shift & 255) as usize] += weight(x);
            }
            let Some(down) = reach(bins.iter().rev(), target, &mut above) else { return cut };
            found = found << 8 | (BINS - 1 - down) as u32;
        }
        let each = weight(f32::from_bits(if found >> 31 == 1 { found ^ 1 << 31 } else { !found })).max(1);
        let quota = (target - above).div_ceil(each);
        Cut { key: found, quota: if found == cut.key { quota.min(cut.quota) } else { quota } }
    }

    /// Mass of what a cut keeps.
    fn total(&self, cut: Cut) -> u64 {
        let (mut sum, mut equals) = (0, 0);
        for x in self.row {
            match key(*x).cmp(&cut.key) {
                std::cmp::Ordering::Greater => sum += self.mass(*x),
                std::cmp::Ordering::Equal if equals < cut.quota => {
                    (sum, equals) = (sum + self.mass(*x), equals + 1)
                }
                _ => {}
            }
        }
        sum
    }
}

/// The first bin with which `target` is reached; `above` grows by what lies before it.
fn reach<'a>(mut bins: impl Iterator<Item = &'a u64>, target: u64, above: &mut u64) -> Option<usize> {
    bins.position(|bin| {
        let reached = *above + bin >= target;
        if !reached {
            *above += bin;
        }
        reached
    })
}

fn draw(task: &Task, row: &[f32]) -> u32 {
    let entries = Entries { row, max: maximum(row), temperature: task.temperature };
    if entries.max == f32::NEG_INFINITY {
        return 0;
    }
    // What is forbidden is −∞ and has no mass.
    let floor = (entries.max + task.temperature * task.ln_min_p).max(f32::MIN);
    let mut cut = Cut { key: key(floor), quota: u64::MAX };
    if task.top_k > 0 {
        cut = entries.narrow(cut, u64::from(task.top_k), |_| 1);
    }
    if task.top_p < 1.0 {
        let target = (entries.total(cut) as f64 * f64::from(task.top_p)) as u64;
        cut = entries.narrow(cut, target.max(1), |x| entries.mass(x));
    }
    let random = u64::from(task.random[0]) | u64::from(task.random[1]) << 32;
    let mut left = ((u128::from(random) * u128::from(entries.total(cut))) >> 64) as u64;
    let mut equals = 0;
    for (i, x) in row.iter().enumerate() {
        let at = key(*x) == cut.key;
        if key(*x) < cut.key || at && equals == cut.quota {
            continue;
        }
        equals += u64::from(at);
        let mass = entries.mass(*x);
        if left < mass {
            return i as u32;
        }
        left -= mass;
    }
    largest(row)
}

/// Log-probabilities of the token and of the most likely ones.
fn logprobs(out: &mut [u32], row: &[f32], token: u32, top: usize) {
    let max = maximum(row);
    let sum: f64 = row.iter().map(|x| f64::from((x - max).exp())).sum();
    let logprob = |x: f32| ((f64::from(x) - f64::from(max)) - sum.ln()) as f32;
    out[2] = logprob(row[token as usize]).to_bits();
    let mut best = [(f32::NEG_INFINITY, NONE); MAX_TOP];
    let count = top.min(row.len());
    for (i, x) in row.iter().enumerate() {
        if count > 0 && *x > best[count - 1].0 {
            // Behind those that are as large: they have smaller ids.
            let at = best[..count].partition_point(|b| b.0 >= *x);
            best.copy_within(at..count - 1, at + 1);
            best[at] = (*x, i as u32);
        }
    }
    out[3] = count as u32;
    for (pair, (x, id)) in out[4..].chunks_exact_mut(2).zip(&best[..count]) {
        pair.copy_from_slice(&[*id, logprob(*x).to_bits()]);
    }
}
