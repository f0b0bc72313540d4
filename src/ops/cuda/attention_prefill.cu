// Attention of a prompt's rows on tensor cores (FlashAttention-2, Dao 2023) over the paged cache.
//
// A block takes 128 query vectors: rows of one sequence by the query heads of one K/V head, so that a short chunk
// of a prompt fills it too. A warp has 16 of them, their queries and results in registers. Keys and values come
// in tiles counted from position 0, the next one under way while one is worked on. Queries and weights are rounded
// to two bytes as the result is, sums are f32; keys and values of FP8 become such in shared memory. A row's result
// does not depend on who shares its block: what it does not see adds exact zeros.
#include "attention.cuh"
#include "mma.cuh"

constexpr u32 WARPS = 8;
constexpr u32 THREADS = WARPS * WARP;
constexpr u32 PAD = 8; // elements between rows: ldmatrix' eight rows then fall into different banks

// Rows of a span from `first` on, as many as fit.
struct Tile {
  u32 span, first, unused[2];
};

struct Shape {
  u32 heads, kv_heads, stride; // stride: floats from one row of queries to the next
  u32 heads_of_block, rows_of_block;
  float scale, k_scale, v_scale; // of scores, and of what is stored: ones but for a cache of FP8; more than 0
  u32 window;                    // positions that a row sees, its own among them
  float soft_cap;                // 0 for none
};

// blockIdx.x: the tile; blockIdx.y: K/V head, then the part of its query heads.
// queries: f32 [rows, stride], turned; cache: C [blocks, 2, kv_heads, BLOCK_SIZE, width]; dst: T [rows, heads, DIM];
// sinks: f32 [heads] or null.
// shared: T [2 (in turn), 2 (K, V), KEYS, DIM + PAD], or where C is not T, T [2, KEYS, DIM + PAD] and then
// C [2 (in turn), 2, KEYS, DIM]; rows of 8 bits begin at no sixteen bytes and are converted as they come.
template <u32 DIM, u32 KEYS, typename T, typename C>
__device__ void attention_prefill(T *dst, const float *queries, const C *cache, const Span *spans, const u32 *tables,
                                  const Tile *tiles, const float *sinks, Shape shape) {
  constexpr bool CONVERTS = sizeof(C) < sizeof(T), COPIES = SCALE_BYTES<C> == 0;
  constexpr u32 ROW = DIM + PAD, STEPS = DIM / 16;
  constexpr u32 COPIED_ROW = CONVERTS ? DIM : ROW, PIECE = 16 / sizeof(C), PIECES = DIM / PIECE;
  follow();
  const Tile tile = tiles[blockIdx.x];
  const Span span = spans[tile.span];
  const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const u32 group = shape.heads / shape.kv_heads, parts = (group + shape.heads_of_block - 1) / shape.heads_of_block;
  const u32 kv_head = blockIdx.y / parts, part = blockIdx.y % parts;
  const u32 heads = min(shape.heads_of_block, group - part * shape.heads_of_block);
  const u32 first_head = kv_head * group + part * shape.heads_of_block;
  const u32 rows = min(shape.rows_of_block, span.rows - tile.first), count = rows * heads;
  const u32 first_row = span.first_row + tile.first, first_position = span.first_position + tile.first;
  const u32 seen = first_position + rows;
  const u32 *table = tables + span.block_table;
  T *staged = (T *)shared();
  C *copied = (C *)(staged + (CONVERTS ? 2 * KEYS * ROW : 0));

  auto fetch = [&](u32 first, u32 turn) {
    if constexpr (!COPIES) return;
    C *keys = copied + turn * 2 * KEYS * COPIED_ROW, *values = keys + KEYS * COPIED_ROW;
    for (u32 n = threadIdx.x; n < KEYS * PIECES; n += THREADS) {
      const u32 j = n / PIECES, at = n % PIECES * PIECE, position = first + j;
      const bool there = position < seen; // else zero: what has no weight must not be NaN
      const size_t block = there ? table[position / BLOCK_SIZE] : 0;
      const C *from = cache + ((block * 2 * shape.kv_heads + kv_head) * BLOCK_SIZE + position % BLOCK_SIZE) * DIM + at;
      copy_ahead(keys + j * COPIED_ROW + at, from, there);
      copy_ahead(values + j * COPIED_ROW + at, from + size_t(shape.kv_heads) * BLOCK_SIZE * DIM, there);
    }
    close_copies();
  };
  // The tile of the oldest key that any of them sees; tiles are counted from position 0.
  const u32 begin = (first_position - min(first_position, shape.window - 1)) / KEYS * KEYS;
  fetch(begin, 0);

  // This lane's two query vectors of the warp's sixteen: vector i is row i / heads, head i % heads.
  const u32 vector[2] = {warp * 16 + lane / 4, warp * 16 + lane / 4 + 8};
  const bool has_any = warp * 16 < count;
  const u32 from_position = first_position + warp * 16 / heads;
  const u32 last_position = min(first_position + (warp * 16 + 15) / heads, seen - 1);
  auto place = [&](u32 i) {
    return size_t(first_row + i / heads) * shape.heads + first_head + i % heads; // of a head in the step
  };
  u32 query[STEPS][4];
#pragma unroll
  for (u32 half = 0; half < 2; ++half) {
    const u32 i = vector[half];
    const bool there = i < count;
    const float *q = queries + size_t(first_row + i / heads) * shape.stride + (first_head + i % heads) * DIM;
#pragma unroll
    for (u32 s = 0; s < STEPS; ++s)
#pragma unroll
      for (u32 side = 0; side < 2; ++side) {
        const Pair<float> x = there ? *(const Pair<float> *)(q + s * 16 + side * 8 + 2 * (lane % 4)) : Pair<float>{};
        query[s][2 * side + half] = pack<T>(x.x[0], x.x[1]);
      }
  }

  const float plain = shape.scale * shape.k_scale, scale = plain * LOG2_E;
  // A number, since a tile may lie before a row's window.
  float result[DIM / 8][4] = {}, maximum[2] = {LOWEST, LOWEST}, sum[2] = {};
  for (u32 first = begin, turn = 0; first < seen; first += KEYS, turn ^= 1) {
    await_copies<0>();
    __syncthreads();
    if (first + KEYS < seen) fetch(first + KEYS, turn ^ 1);
    const T *keys = staged + (CONVERTS ? 0 : turn * 2 * KEYS * ROW), *values = keys + KEYS * ROW;
    if constexpr (CONVERTS) {
      const C *from = copied + turn * 2 * KEYS * DIM;
      for (u32 n = 8 * threadIdx.x; n < 2 * KEYS * DIM; n += 8 * THREADS) {
        Stored<C> x = {};
        if constexpr (COPIES) {
          x = stored(from + n, 0, DIM);
        } else {
          const u32 is_value = n / (KEYS * DIM), position = first + n / DIM % KEYS;
          const u32 width = width_of<C>(DIM);
          if (position < seen) {
            const size_t plane = (size_t(table[position / BLOCK_SIZE]) * 2 + is_value) * shape.kv_heads + kv_head;
            x = stored(cache + (plane * BLOCK_SIZE + position % BLOCK_SIZE) * width, n % DIM, DIM);
          }
        }
        Eight<T> y;
#pragma unroll
        for (u32 e = 0; e < 8; ++e) y.x[e] = narrow<T>(x[e]);
        *(Eight<T> *)(staged + n / DIM * ROW + n % DIM) = y;
      }
      __syncthreads();
    }
    if (!has_any || first > last_position) continue;

    // score[n]: the lane's vectors by keys 8n + 2(lane % 4), + 1.
    float score[KEYS / 8][4] = {};
#pragma unroll
    for (u32 s = 0; s < STEPS; ++s)
#pragma unroll
      for (u32 n = 0; n < KEYS / 16; ++n) {
        u32 b[4];
        load_matrices(b, keys + (n * 16 + lane / 16 * 8 + lane % 8) * ROW + s * 16 + lane / 8 % 2 * 8);
        multiply<T>(score[2 * n], query[s], b[0], b[1]);
        multiply<T>(score[2 * n + 1], query[s], b[2], b[3]);
      }
    if (shape.soft_cap > 0.0f)
#pragma unroll
      for (u32 n = 0; n < KEYS / 8; ++n)
#pragma unroll
        for (u32 e = 0; e < 4; ++e) score[n][e] = soft_capped(score[n][e] * plain, shape.soft_cap) / plain;
    // What each of the warp's rows sees none of, or not all.
    if (first + KEYS > from_position + 1 || first + shape.window <= last_position)
#pragma unroll
      for (u32 n = 0; n < KEYS / 8; ++n)
#pragma unroll
        for (u32 e = 0; e < 4; ++e)
        {
          const u32 key = first + n * 8 + 2 * (lane % 4) + e % 2, last = first_position + vector[e / 2] / heads;
          if (key > last || last - key >= shape.window) score[n][e] = -INFINITY;
        }

#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
      float now = maximum[half];
#pragma unroll
      for (u32 n = 0; n < KEYS / 8; ++n) now = fmaxf(now, fmaxf(score[n][2 * half], score[n][2 * half + 1]));
      // The four lanes of a vector.
      now = fmaxf(now, __shfl_xor_sync(ALL_LANES, now, 1));
      now = fmaxf(now, __shfl_xor_sync(ALL_LANES, now, 2));
      const float factor = quick_exp2((maximum[half] - now) * scale);
      maximum[half] = now;
      float added = 0.0f;
#pragma unroll
      for (u32 n = 0; n < KEYS / 8; ++n)
#pragma unroll
        for (u32 e = 2 * half; e < 2 * half + 2; ++e) {
          score[n][e] = quick_exp2(fmaf(score[n][e], scale, -now * scale));
          added += score[n][e];
        }
      sum[half] = fmaf(sum[half], factor, added);
#pragma unroll
      for (u32 n = 0; n < DIM / 8; ++n) {
        result[n][2 * half] *= factor;
        result[n][2 * half + 1] *= factor;
      }
    }

#pragma unroll
    for (u32 s = 0; s < KEYS / 16; ++s) {
      const u32 weight[4] = {pack<T>(score[2 * s][0], score[2 * s][1]), pack<T>(score[2 * s][2], score[2 * s][3]),
                             pack<T>(score[2 * s + 1][0], score[2 * s + 1][1]),
                             pack<T>(score[2 * s + 1][2], score[2 * s + 1][3])};
#pragma unroll
      for (u32 n = 0; n < STEPS; ++n) {
        u32 b[4];
        load_matrices_transposed(b, values + (s * 16 + lane / 8 % 2 * 8 + lane % 8) * ROW + n * 16 + lane / 16 * 8);
        multiply<T>(result[2 * n], weight, b[0], b[1]);
        multiply<T>(result[2 * n + 1], weight, b[2], b[3]);
      }
    }
    // No barrier: the next tile's copies go to the half that was read before this turn's barrier.
  }

#pragma unroll
  for (u32 half = 0; half < 2; ++half) {
    float all = sum[half] + __shfl_xor_sync(ALL_LANES, sum[half], 1);
    all += __shfl_xor_sync(ALL_LANES, all, 2);
    if (vector[half] >= count) continue;
    all += sink_share(sinks, first_head + vector[half] % heads, maximum[half] * scale);
    T *to = dst + place(vector[half]) * DIM + 2 * (lane % 4);
    const float share = shape.v_scale / all;
#pragma unroll
    for (u32 n = 0; n < DIM / 8; ++n) {
      const Pair<T> two = {narrow<T>(result[n][2 * half] * share), narrow<T>(result[n][2 * half + 1] * share)};
      *(Pair<T> *)(to + n * 8) = two;
    }
  }
}

// 64 keys of up to 128 dimensions, or 32 of 256, twice: at most 68 KiB, which every architecture has.
#define ATTENTION_PREFILL(name, DIM, KEYS, T, C)                                                                      \
  BOUNDED_KERNEL(THREADS, 1, name, T *dst, const float *queries, const C *cache, const Span *spans,                   \
                 const u32 *tables, const Tile *tiles, const float *sinks, Shape shape) {                             \
    attention_prefill<DIM, KEYS>(dst, queries, cache, spans, tables, tiles, sinks, shape);                            \
  }
ATTENTION_PREFILL(attention_prefill_64_f16_f16, 64, 64, f16, f16)
ATTENTION_PREFILL(attention_prefill_96_f16_f16, 96, 64, f16, f16)
ATTENTION_PREFILL(attention_prefill_128_f16_f16, 128, 64, f16, f16)
ATTENTION_PREFILL(attention_prefill_256_f16_f16, 256, 32, f16, f16)
ATTENTION_PREFILL(attention_prefill_64_bf16_bf16, 64, 64, bf16, bf16)
ATTENTION_PREFILL(attention_prefill_96_bf16_bf16, 96, 64, bf16, bf16)
ATTENTION_PREFILL(attention_prefill_128_bf16_bf16, 128, 64, bf16, bf16)
ATTENTION_PREFILL(attention_prefill_256_bf16_bf16, 256, 32, bf16, bf16)
ATTENTION_PREFILL(attention_prefill_64_f16_f8e4m3, 64, 64, f16, fp8)
ATTENTION_PREFILL(attention_prefill_96_f16_f8e4m3, 96, 64, f16, fp8)
ATTENTION_PREFILL(attention_prefill_128_f16_f8e4m3, 128, 64, f16, fp8)
ATTENTION_PREFILL(attention_prefill_256_f16_f8e4m3, 256, 32, f16, fp8)
ATTENTION_PREFILL(attention_prefill_64_bf16_f8e4m3, 64, 64, bf16, fp8)
ATTENTION_PREFILL(attention_prefill_96_bf16_f8e4m3, 96, 64, bf16, fp8)
ATTENTION_PREFILL(attention_prefill_128_bf16_f8e4m3, 128, 64, bf16, fp8)
ATTENTION_PREFILL(attention_prefill_256_bf16_f8e4m3, 256, 32, bf16, fp8)
ATTENTION_PREFILL(attention_prefill_64_f16_u8, 64, 64, f16, q8)
ATTENTION_PREFILL(attention_prefill_96_f16_u8, 96, 64, f16, q8)
ATTENTION_PREFILL(attention_prefill_128_f16_u8, 128, 64, f16, q8)
ATTENTION_PREFILL(attention_prefill_256_f16_u8, 256, 32, f16, q8)
ATTENTION_PREFILL(attention_prefill_64_bf16_u8, 64, 64, bf16, q8)
ATTENTION_PREFILL(attention_prefill_96_bf16_u8, 96, 64, bf16, q8)
ATTENTION_PREFILL(attention_prefill_128_bf16_u8, 128, 64, bf16, q8)
ATTENTION_PREFILL(attention_prefill_256_bf16_u8, 256, 32, bf16, q8)
