//! Paged attention against an f64 oracle, and against itself in other batches, chunks and layouts.

use candle_core::{DType, Device, Tensor};

use super::*;

mod q8_tests;

use q8_tests::{shaped, stored, widened};

fn numbers(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
        })
        .collect()
}

fn isas() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_available())
}

#[derive(Clone, Copy)]
struct Dims {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

/// Sequences of the given lengths, each with its keys and values, in a cache whose blocks are shuffled.
/// What no sequence owns, and what lies beyond a sequence's end, is NaN.
struct World {
    dims: Dims,
    lengths: Vec<usize>,
    /// Per sequence `[length, kv_heads, head_dim]`, rounded to the cache's type.
    k: Vec<Vec<f32>>,
    v: Vec<Vec<f32>>,
    /// Per sequence `[length, heads, head_dim]`.
    q: Vec<Vec<f32>>,
    tables: Vec<u32>,
    offsets: Vec<u32>,
    cache: Tensor,
    scales: CacheScales,
    limits: AttentionLimits,
    sinks: Option<Weight>,
}

impl World {
    fn new(dims: Dims, lengths: &[usize], kind: DType, seed: u64) -> World {
        let width = dims.kv_heads * dims.head_dim;
        let round = |x: Vec<f32>| widened(&stored(&x, dims.head_dim, kind), dims.head_dim);
        let each = |salt: u64, width: usize, scale: f32| -> Vec<Vec<f32>> {
            let of = |(i, n): (usize, &usize)| {
                let raw = numbers(seed + salt + 1000 * i as u64, n * width);
                raw.into_iter().map(|x| x * scale).collect()
            };
            lengths.iter().enumerate().map(of).collect()
        };
        let k: Vec<_> = each(1, width, 2.0).into_iter().map(round).collect();
        let v: Vec<_> = each(2, width, 1.0).into_iter().map(round).collect();
        let q = each(3, dims.heads * dims.head_dim, 2.0);
        let needed: usize = lengths.iter().map(|n| n.div_ceil(BLOCK_SIZE)).sum();
        let blocks = needed + 3;
        // Block ids descend and every other sequence takes them from the far side.
        let mut ids: Vec<u32> = (0..blocks as u32).rev().collect();
        let mut tables = vec![];
        let mut offsets = vec![];
        let mut data = vec![f32::NAN; blocks * 2 * width * BLOCK_SIZE];
        for (s, n) in lengths.iter().enumerate() {
            offsets.push(tables.len() as u32);
            for _ in 0..n.div_ceil(BLOCK_SIZE) {
                let id = if s % 2 == 0 { ids.pop().unwrap() } else { ids.remove(0) };
                tables.push(id);
            }
            for t in 0..*n {
                let block = tables[offsets[s] as usize + t / BLOCK_SIZE] as usize;
                for h in 0..dims.kv_heads {
                    for d in 0..dims.head_dim {
                        let at = |part: usize| {
                            (((block * 2 + part) * dims.kv_heads + h) * BLOCK_SIZE + t % BLOCK_SIZE)
                                * dims.head_dim
                                + d
                        };
                        data[at(0)] = k[s][t * width + h * dims.head_dim + d];
                        data[at(1)] = v[s][t * width + h * dims.head_dim + d];
                    }
                }
            }
        }
        let scales = match kind {
            DType::F8E4M3 => CacheScales { k: 0.75, v: 3.0 },
            _ => CacheScales::ONE,
        };
        let cache = shaped(stored(&data, dims.head_dim, kind), dims);
        let limits = AttentionLimits::default();
        World {
            dims,
            lengths: lengths.to_vec(),
            k,
            v,
            q,
            tables,
            offsets,
            cache,
            scales,
            limits,
            sinks: None,
        }
    }

    /// Runs the op on pieces (sequence, from, to) in this order; the rows' outputs, row after row.
    fn run(&self, pieces: &[(usize, usize, usize)], isa: Isa, pool: &Exec, dst_kind: DType) -> Vec<f32> {
        let width = self.dims.heads * self.dims.head_dim;
        let mut q = vec![];
        let mut spans = vec![];
        for &(s, from, to) in pieces {
            spans.push(AttentionSpan {
                first_row: (q.len() / width) as u32,
                rows: (to - from) as u32,
                first_position: from as u32,
                block_table: self.offsets[s],
            });
            q.extend_from_slice(&self.q[s][from * width..to * width]);
        }
        let rows = q.len() / width;
        q.extend(vec![f32::NAN; 2 * width]);
        let q = Tensor::from_vec(q, (rows + 2, width), &Device::Cpu).unwrap();
        // Something lies beside the queries, as keys and values do in a step.
        let beside = Tensor::full(f32::NAN, (rows + 2, 3), &Device::Cpu).unwrap();
        let q = Tensor::cat(&[&q, &beside], 1).unwrap();
        let dst =
            Tensor::full(f32::NAN, (rows + 2, width), &Device::Cpu).unwrap().to_dtype(dst_kind).unwrap();
        let Dims { heads, kv_heads, head_dim } = self.dims;
        let plan = AttentionPlan {
            spans: spans.as_slice().into(),
            block_tables: self.tables.as_slice().into(),
            tiles: [].as_slice().into(),
            split_tiles: 0,
            rows,
        };
        let scale = 1.0 / (head_dim as f32).sqrt();
        let op = PagedAttention {
            plan,
            kv: &self.cache,
            scales: self.scales,
            heads,
            kv_heads,
            head_dim,
            scale,
            limits: self.limits,
            sinks: self.sinks.as_ref(),
            scratch: None,
            on: pool,
        };
        dst.inplace_op2(&q, &PagedAttentionOn { op, isa }).unwrap();
        let all: Vec<f32> = dst.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert!(all[rows * width..].iter().all(|x| x.is_nan()), "rows beyond the step were written");
        all[..rows * width].to_vec()
    }

    /// Row at `position` of sequence s, in f64.
    fn oracle(&self, s: usize, position: usize) -> Vec<f64> {
        let Dims { heads, kv_heads, head_dim } = self.dims;
        let mut out = vec![];
        for h in 0..heads {
            let at = |t: usize| (t * kv_heads + h / (heads / kv_heads)) * head_dim;
            let q = &self.q[s][(position * heads + h) * head_dim..][..head_dim];
            let score = |t: usize| -> f64 {
                let k = &self.k[s][at(t)..][..head_dim];
                let score = q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>()
                    * f64::from(self.scales.k)
                    / (head_dim as f64).sqrt();
                let seen = self.limits.window.is_none_or(|window| position - t < window);
                match self.limits.soft_cap.map(f64::from) {
                    _ if !seen => f64::NEG_INFINITY,
                    Some(cap) => cap * (score / cap).tanh(),
                    None => score,
                }
            };
            let scores: Vec<f64> = (0..=position).map(score).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sink = self.sinks.as_ref().map_or(0.0, |sinks| (f64::from(sinks.get(h)) - max).exp());
            let sum = scores.iter().map(|x| (x - max).exp()).sum::<f64>() + sink;
            out.extend((0..head_dim).map(|d| {
                let weighed = |(t, x): (usize, &f64)| (x - max).exp() * f64::from(self.v[s][at(t) + d]);
                scores.iter().enumerate().map(weighed).sum::<f64>() / sum * f64::from(self.scales.v)
            }));
        }
        out
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn every_kernel_agrees_with_the_oracle() {
    let pool = Exec::cpu(2);
    let lengths = [1, 15, 16, 17, 300, 700];
    for isa in isas() {
        for head_dim in [8, 24, 32, 64, 96, 128, 256] {
            for (heads, kv_heads) in [(2, 2), (6, 2), (4, 1)] {
                for kind in [DType::F32, DType::BF16, DType::F8E4M3] {
                    let dims = Dims { heads, kv_heads, head_dim };
                    let w = World::new(dims, &lengths, kind, 7);
                    // The last five rows of each sequence (or all of them), all in one step.
                    let pieces: Vec<_> =
                        lengths.iter().enumerate().map(|(s, n)| (s, n.saturating_sub(5), *n)).collect();
                    let got = w.run(&pieces, isa, &pool, DType::F32);
                    let width = heads * head_dim;
                    let mut row = 0;
                    for (s, from, to) in pieces {
                        for position in from..to {
                            let want = w.oracle(s, position);
                            // Queries may be rounded to the cache's type before they meet the keys.
                            let tolerance = match kind {
                                DType::BF16 => 2e-2,
                                DType::F32 => 1e-5,
                                _ => 5e-5, // of values up to 3
                            };
                            for (got, want) in got[row * width..(row + 1) * width].iter().zip(&want) {
                                let error = (f64::from(*got) - want).abs();
                                assert!(
                                    error < tolerance,
                                    "{isa:?} {kind:?} dim {head_dim} heads {heads}/{kv_heads} length {} \
                                     position {position}: {got} for {want}",
                                    lengths[s]
                                );
                            }
                            row += 1;
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_batch_chunks_or_threads() {
    let pools = [Exec::cpu(1), Exec::cpu(2), Exec::cpu(3)];
    for isa in isas() {
        for kind in [DType::F32, DType::BF16, DType::F8E4M3] {
            for dims in [
                Dims { heads: 2, kv_heads: 2, head_dim: 64 },
                Dims { heads: 3, kv_heads: 1, head_dim: 32 },
                Dims { heads: 8, kv_heads: 2, head_dim: 128 },
                Dims { heads: 20, kv_heads: 1, head_dim: 24 },
            ] {
                let w = World::new(dims, &[150, 70, 1], kind, 11);
                let width = dims.heads * dims.head_dim;
                let whole = bits(&w.run(&[(0, 0, 150)], isa, &pools[0], DType::F32));
                for pool in &pools {
                    assert_eq!(bits(&w.run(&[(0, 0, 150)], isa, pool, DType::F32)), whole, "{isa:?} threads");
                    // In company, and cut into chunks of every kind, decode among them.
                    let step = [(1, 3, 70), (0, 0, 150), (2, 0, 1), (1, 0, 3)];
                    let together = bits(&w.run(&step, isa, pool, DType::F32));
                    assert_eq!(together[67 * width..217 * width], whole[..], "{isa:?} company");
                    for chunk in [1, 5, 7, 16, 64] {
                        let got: Vec<u32> = (0..150)
                            .step_by(chunk)
                            .flat_map(|from| {
                                let piece = (0, from, (from + chunk).min(150));
                                bits(&w.run(&[piece], isa, pool, DType::F32))
                            })
                            .collect();
                        assert_eq!(got, whole, "{isa:?} {kind:?} chunks of {chunk}");
                    }
                }
            }
        }
    }
}

/// Windows about the edges of blocks and tiles, with and without a cap.
#[test]
fn rows_see_their_window_and_scores_are_capped() {
    let pools = [Exec::cpu(1), Exec::cpu(3)];
    let dims = Dims { heads: 6, kv_heads: 2, head_dim: 64 };
    for isa in isas() {
        for kind in [DType::F32, DType::BF16] {
            let mut w = World::new(dims, &[210, 3], kind, 19);
            let width = dims.heads * dims.head_dim;
            for window in
                [Some(1), Some(2), Some(16), Some(63), Some(64), Some(65), Some(200), Some(usize::MAX), None]
            {
                for soft_cap in [None, Some(2.0)] {
                    // From no part at all to nearly all of it.
                    let sinks = || vec![f32::NEG_INFINITY, -3.0, 0.0, 2.0, 5.0, 200.0];
                    w.sinks = (window != Some(16)).then(|| Weight::vector(sinks()));
                    w.limits = AttentionLimits { window, soft_cap };
                    let whole = w.run(&[(0, 0, 210), (1, 0, 3)], isa, &pools[0], DType::F32);
                    for position in (0..210).filter(|p| p % 7 == 0 || *p > 190) {
                        let tolerance = if kind == DType::F32 { 1e-5 } else { 2e-2 };
                        for (got, want) in
                            whole[position * width..][..width].iter().zip(w.oracle(0, position))
                        {
                            let error = (f64::from(*got) - want).abs();
                            assert!(
                                error < tolerance,
                                "{isa:?} {kind:?} {:?} at {position}: {got} for {want}",
                                w.limits
                            );
                        }
                    }
                    for chunk in [1, 5, 64] {
                        let got: Vec<u32> = (0..210)
                            .step_by(chunk)
                            .flat_map(|from| {
                                bits(&w.run(
                                    &[(0, from, (from + chunk).min(210))],
                                    isa,
                                    &pools[1],
                                    DType::F32,
                                ))
                            })
                            .collect();
                        assert_eq!(
                            got,
                            bits(&whole[..210 * width]),
                            "{isa:?} {kind:?} {:?} chunks of {chunk}",
                            w.limits
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn the_output_may_be_bf16() {
    let w = World::new(Dims { heads: 4, kv_heads: 2, head_dim: 32 }, &[40], DType::BF16, 3);
    let pool = Exec::cpu(1);
    for isa in isas() {
        let full = w.run(&[(0, 0, 40)], isa, &pool, DType::F32);
        let half = w.run(&[(0, 0, 40)], isa, &pool, DType::BF16);
        let rounded: Vec<f32> = full.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect();
        assert_eq!(bits(&half), bits(&rounded));
    }
}

#[test]
fn the_block_table_says_where_to_read() {
    let mut w = World::new(Dims { heads: 2, kv_heads: 2, head_dim: 64 }, &[40], DType::F32, 5);
    let pool = Exec::cpu(1);
    for isa in isas() {
        let before = w.run(&[(0, 39, 40)], isa, &pool, DType::F32);
        w.tables.swap(0, 2);
        let after = w.run(&[(0, 39, 40)], isa, &pool, DType::F32);
        w.tables.swap(0, 2);
        assert_ne!(bits(&before), bits(&after));
    }
}

#[test]
fn large_scores_neither_overflow_nor_vanish() {
    let dims = Dims { heads: 1, kv_heads: 1, head_dim: 64 };
    let mut w = World::new(dims, &[130], DType::F32, 5);
    w.q[0].iter_mut().for_each(|x| *x *= 300.0);
    let pool = Exec::cpu(1);
    for isa in isas() {
        let got = w.run(&[(0, 0, 130)], isa, &pool, DType::F32);
        for position in 0..130 {
            for (got, want) in got[position * 64..].iter().zip(w.oracle(0, position)) {
                assert!((f64::from(*got) - want).abs() < 1e-3, "{isa:?} {position}: {got} for {want}");
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let w = World::new(Dims { heads: 4, kv_heads: 2, head_dim: 32 }, &[40], DType::F32, 3);
    assert_eq!(w.lengths.len(), 1);
    let pool = Exec::cpu(1);
    let t = |rows: usize, width: usize| Tensor::zeros((rows, width), DType::F32, &Device::Cpu).unwrap();
    let span = AttentionSpan { first_row: 0, rows: 2, first_position: 38, block_table: 0 };
    let spans = [span];
    let good = PagedAttention {
        plan: AttentionPlan {
            spans: spans.as_slice().into(),
            block_tables: w.tables.as_slice().into(),
            tiles: [].as_slice().into(),
            split_tiles: 0,
            rows: 2,
        },
        kv: &w.cache,
        scales: w.scales,
        heads: 4,
        kv_heads: 2,
        head_dim: 32,
        scale: 1.0,
        limits: AttentionLimits::default(),
        sinks: None,
        scratch: None,
        on: &pool,
    };
    t(2, 128).inplace_op2(&t(2, 128), &good).unwrap();
    let refuses = |op: PagedAttention<'_>| assert!(t(2, 128).inplace_op2(&t(2, 128), &op).is_err());
    refuses(PagedAttention { limits: AttentionLimits { window: Some(0), soft_cap: None }, ..good });
    refuses(PagedAttention { limits: AttentionLimits { window: None, soft_cap: Some(0.0) }, ..good });
    refuses(PagedAttention { sinks: Some(&Weight::vector(vec![0.0; good.heads + 1])), ..good });
    refuses(PagedAttention { heads: 3, ..good });
    refuses(PagedAttention { kv_heads: 1, ..good });
    let refuses_spans = |spans: &[AttentionSpan]| {
        refuses(PagedAttention { plan: AttentionPlan { spans: spans.into(), ..good.plan }, ..good });
    };
    refuses_spans(&[AttentionSpan { rows: 3, ..span }]);
    refuses_spans(&[AttentionSpan { first_position: 48, ..span }]);
    refuses_spans(&[AttentionSpan { block_table: 1, ..span }]);
    refuses_spans(&[span, AttentionSpan { first_row: 1, rows: 1, ..span }]);
    let outside = [0, 1, 99];
    refuses(PagedAttention {
        plan: AttentionPlan { block_tables: outside.as_slice().into(), ..good.plan },
        ..good
    });
    assert!(t(2, 128).inplace_op2(&t(1, 128), &good).is_err());
    assert!(t(2, 64).inplace_op2(&t(2, 128), &good).is_err());
}

/// Every row has every chunk of its keys in exactly one tile of the split kernel, or is in one of prefill's.
#[test]
fn tiles_cover_the_rows_once() {
    let spans =
        [(1u32, 0u32), (0, 7), (1, 255), (1, 256), (9, 250), (300, 16), (8, 64 * 256 - 4), (1, 40_000)];
    let mut row = 0;
    let spans = spans.map(|(rows, first_position)| {
        row += rows;
        AttentionSpan { first_row: row - rows, rows, first_position, block_table: 0 }
    });
    for (heads, kv_heads) in [(8, 8), (8, 4), (12, 4), (28, 4), (16, 1), (71, 1), (200, 1)] {
        for (cache, invariant) in [(DType::BF16, false), (DType::BF16, true), (DType::F32, false)] {
            let cutting = Cutting::new(heads, kv_heads, 128, cache, invariant);
            let mut tiles = vec![];
            let split = cutting.cut(&spans, &mut tiles);
            let mut chunks = vec![vec![]; row as usize];
            for (i, [span, first, rows_chunk, keys]) in tiles[..split].iter().enumerate() {
                let (span, rows, chunk) = (spans[*span as usize], rows_chunk >> 16, rows_chunk & 0xffff);
                assert!(rows > 0 && keys.is_multiple_of(256) && chunk < 64);
                assert!(chunk == 0 || tiles[i - 1][2] + 1 == *rows_chunk, "a row's chunks follow each other");
                for row in *first..first + rows {
                    let seen = span.first_position + row + 1;
                    assert!(chunk < seen.div_ceil(*keys), "a chunk beyond what the row sees");
                    assert_eq!(seen.div_ceil(*keys), (span.first_position + first + 1).div_ceil(*keys));
                    chunks[(span.first_row + row) as usize].push((chunk, *keys));
                }
            }
            for span in spans {
                for row in 0..span.rows {
                    let found = &chunks[(span.first_row + row) as usize];
                    if cache == DType::BF16 && !invariant && span.rows > 8 {
                        assert!(found.is_empty());
                        continue;
                    }
                    let seen = span.first_position + row + 1;
                    let keys = found[0].1;
                    let want: Vec<_> = (0..seen.div_ceil(keys)).map(|chunk| (chunk, keys)).collect();
                    assert_eq!(*found, want, "{heads}/{kv_heads} row {row} of {span:?}");
                    assert!(keys == 256 || seen.div_ceil(keys) > 32, "longer chunks than needed");
                }
            }
            let mut prefill: Vec<_> = tiles[split..].iter().map(|t| (t[0], t[1])).collect();
            prefill.sort_unstable();
            let step = 128 / (heads / kv_heads).min(100) as u32;
            let want = if cache == DType::BF16 && !invariant { vec![(4, 9), (5, 300)] } else { vec![] };
            let want =
                want.into_iter().flat_map(|(i, rows)| (0..rows).step_by(step as usize).map(move |r| (i, r)));
            assert_eq!(prefill, want.collect::<Vec<_>>());
        }
    }
}

/// Launches are as large as the scratch allows, and none parts the chunks of a row.
#[test]
fn a_launch_takes_whole_rows() {
    let cutting = Cutting::new(8, 8, 128, DType::F32, false);
    for (context, rows, first) in [(600, 682, 2046), (600, 700, 2046), (16_000, 40, 2016), (100, 9, 9)] {
        let of = |row| AttentionSpan { first_row: row, rows: 1, first_position: context - 1, block_table: 0 };
        let spans: Vec<_> = (0..rows).map(of).collect();
        let mut tiles = vec![];
        cutting.cut(&spans, &mut tiles);
        assert_eq!(kernels::launch_of(&tiles), first, "{rows} rows of {context}");
        let mut rest = tiles.as_slice();
        while !rest.is_empty() {
            assert_eq!(rest[0][2] & 0xffff, 0, "a launch begins with a row's first chunk");
            rest = &rest[kernels::launch_of(rest)..];
        }
    }
}
