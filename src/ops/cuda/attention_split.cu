// Attention of a few query vectors over a chunk of their keys, for decode (flash-decoding, Dao et al. 2023).
//
// A row's keys are cut into chunks whose size is a function of their number alone (ops/paged_attention/kernels.rs), so
// that its result does not depend on who else is in the step. A block takes the query vectors of one tile and one
// K/V head over one chunk: all query heads of the group share one reading of K and V. A row of one chunk is
// written at once; of several, each block leaves a maximum, a sum and an accumulator in f32, and the last block
// to finish adds them up in the order of the chunks. One kernel, so one node of a graph.
#include "attention.cuh"

constexpr u32 KEYS = 256;        // taken between two barriers; chunks are multiples of it
constexpr u32 CHUNKS = 64;       // of a row at most
constexpr u32 WARPS = 8;         // of a block: no fewer than QUERIES
constexpr u32 THREADS = WARPS * WARP;
constexpr u32 PADDING = ~0u;     // as a tile's span: nothing to do

// As Tile there: rows of a span that have the same number of chunks, and which of these.
struct Tile {
  u32 span, first, rows_chunk, keys; // rows_chunk: rows * 2^16 + chunk; keys: of a chunk
};

struct Shape {
  u32 heads, kv_heads, dim, stride; // stride: floats from one row of queries to the next
  u32 heads_of_block, lanes;        // lanes that share a key, 8 elements each: a power of two, no fewer than QUERIES
  float scale, k_scale, v_scale; // of scores, and of what is stored: ones but for a cache of FP8
  u32 window;                    // positions that a row sees, its own among them
  float soft_cap;                // 0 for none
};

// Adds up each x[i] over `lanes` neighbouring lanes, no fewer than N: the i-th of each N returns the sum of x[i].
template <u32 N> __device__ inline float sum_of_lane(float (&x)[N], u32 lane, u32 lanes) {
  // Lanes hand over the half that they do not keep: N - 1 exchanges and not N * log2(N).
#pragma unroll
  for (u32 n = N / 2; n > 0; n /= 2) {
    const bool upper = lane & n;
#pragma unroll
    for (u32 i = 0; i < n; ++i) {
      const float kept = upper ? x[i + n] : x[i], given = upper ? x[i] : x[i + n];
      x[i] = kept + __shfl_xor_sync(ALL_LANES, given, n);
    }
  }
  for (u32 bit = N; bit < lanes; bit *= 2) x[0] += __shfl_xor_sync(ALL_LANES, x[0], bit);
  return x[0];
}

// Adds up what the chunks left, in their order: a thread four elements of a query.
template <u32 QUERIES, typename O>
__device__ inline void merge(O *dst, const float *partial, size_t step, float (*factor)[CHUNKS], u32 chunks, u32 count,
                             u32 first_row, u32 heads, u32 first_head, const float *sinks, const Shape &shape) {
  const u32 dim = shape.dim, thread = threadIdx.x, lane = thread % WARP, warp = thread / WARP;
  if (warp < count) {
    const float *marks = partial + size_t(QUERIES) * dim + 2 * warp;
    float maximum = -INFINITY, sum = 0.0f;
    for (u32 c = lane; c < chunks; c += WARP) maximum = fmaxf(maximum, marks[c * step]);
    maximum = warp_max(maximum);
    for (u32 c = lane; c < chunks; c += WARP) {
      const float share = quick_exp2(marks[c * step] - maximum);
      factor[warp][c] = share;
      sum += share * marks[c * step + 1];
    }
    sum = warp_sum(sum) + sink_share(sinks, first_head + warp % heads, maximum);
    for (u32 c = lane; c < chunks; c += WARP) factor[warp][c] *= shape.v_scale / sum;
  }
  __syncthreads();
  for (u32 n = 4 * thread; n < count * dim; n += 4 * THREADS) {
    const u32 i = n / dim;
    Four x = {};
#pragma unroll 8
    for (u32 c = 0; c < chunks; ++c) {
      const Four part = *(const Four *)(partial + c * step + n);
#pragma unroll
      for (u32 e = 0; e < 4; ++e) x.x[e] = fmaf(factor[i][c], part.x[e], x.x[e]);
    }
    const size_t row = first_row + i / heads, head = first_head + i % heads;
    store(dst + (row * shape.heads + head) * dim + n % dim, x);
  }
}

// blockIdx.x: the tile; blockIdx.y: K/V head, then the part of its query heads.
// queries: f32 [rows, stride], turned; cache: T [blocks, 2, kv_heads, BLOCK_SIZE, width]; dst: O [rows, heads, dim].
// counters: [gridDim.x, gridDim.y], zero before and after; partials: f32 [gridDim.x, gridDim.y, QUERIES, dim + 2].
// The tiles of a row's chunks follow each other. rows * heads <= QUERIES. sinks: f32 [heads] or null.
template <u32 QUERIES, typename O, typename T>
__device__ void attention_split(O *dst, const float *queries, const T *cache, const Span *spans, const u32 *tables,
                                const Tile *tiles, u32 *counters, float *partials, const float *sinks, Shape shape) {
  follow();
  const Tile tile = tiles[blockIdx.x];
  if (tile.span == PADDING) return;
  const Span span = spans[tile.span];
  const u32 dim = shape.dim, thread = threadIdx.x, lane = thread % WARP, warp = thread / WARP;
  const u32 group = shape.heads / shape.kv_heads, parts = (group + shape.heads_of_block - 1) / shape.heads_of_block;
  const u32 kv_head = blockIdx.y / parts, part = blockIdx.y % parts;
  const u32 heads = min(shape.heads_of_block, group - part * shape.heads_of_block);
  const u32 first_head = kv_head * group + part * shape.heads_of_block, first_row = span.first_row + tile.first;
  const u32 rows = tile.rows_chunk >> 16, chunk = tile.rows_chunk & 0xffff, count = rows * heads;
  const u32 first_position = span.first_position + tile.first, seen = first_position + rows;
  const u32 begin = chunk * tile.keys, end = min(begin + tile.keys, seen);
  const u32 *table = tables + span.block_table;

  // Lane `place` of a key has its dimensions d .. d + 8; a warp takes `together` keys at once.
  const u32 lanes = shape.lanes, together = WARP / lanes, place = lane % lanes, d = place * 8;
  const bool mine = d < dim;
  const u32 last_key = first_position + place / heads; // that query `place` sees
  const u32 first_key = last_key - min(last_key, shape.window - 1);
  const u32 oldest = first_position - min(first_position, shape.window - 1); // that any of them sees
  constexpr u32 FLIGHT = sizeof(T) < 4 ? 4 : 2; // keys that a lane has under way at once
  const u32 width = width_of<T>(dim);
  const T *k_head = cache + size_t(kv_head) * BLOCK_SIZE * width;
  const T *v_head = k_head + size_t(shape.kv_heads) * BLOCK_SIZE * width;
  const size_t block_step = size_t(2) * shape.kv_heads * BLOCK_SIZE * width;

  float *weights = (float *)shared();         // [2, KEYS, QUERIES], in turn
  float *sums = weights + 2 * KEYS * QUERIES; // [WARPS, QUERIES, dim]
  float *factor = sums + WARPS * QUERIES * dim, *total = factor + QUERIES;
  const float scale = shape.scale * shape.k_scale;
  float maximum = LOWEST, sum = 0.0f; // of query `warp`; a number, since a chunk may lie before its window
  float result[QUERIES][8] = {};

  for (u32 first = begin, turn = 0; first < end; first += KEYS, turn ^= 1) {
    if (first + KEYS <= oldest) continue; // nobody's, and it would add exact zeros
    float *weight = weights + turn * KEYS * QUERIES;
    const u32 keys = min(KEYS, end - first);
    // Ids of the blocks of these keys, one a lane.
    const u32 ids = lane * BLOCK_SIZE < keys ? table[first / BLOCK_SIZE + lane] : 0;
    // The u-th of a lane's keys from `step` on, among these; `lanes` steps are all.
    auto key = [&](u32 step) { return (step * WARPS + warp) * together + lane / lanes; };
    auto fetch = [&](const T *head, u32 step, Stored<T> (&to)[FLIGHT]) {
#pragma unroll
      for (u32 u = 0; u < FLIGHT; ++u) {
        const u32 j = key(step + u), id = __shfl_sync(ALL_LANES, ids, j / BLOCK_SIZE);
        to[u] = Stored<T>{};
        if (j < keys && mine) to[u] = stored(head + id * block_step + j % BLOCK_SIZE * width, d, dim);
      }
    };
    {
      float query[QUERIES][8] = {};
#pragma unroll
      for (u32 i = 0; i < QUERIES; ++i)
        if (i < count && mine) {
          const size_t row = first_row + i / heads, head = first_head + i % heads;
          const Eight<float> q = eight(queries + row * shape.stride + head * dim + d);
#pragma unroll
          for (u32 e = 0; e < 8; ++e) query[i][e] = q.x[e];
        }
#pragma unroll 1
      for (u32 step = 0; step < lanes; step += FLIGHT) {
        Stored<T> k[FLIGHT];
        fetch(k_head, step, k);
#pragma unroll
        for (u32 u = 0; u < FLIGHT; ++u) {
          float dot[QUERIES] = {};
#pragma unroll
          for (u32 e = 0; e < 8; ++e) {
            const float x = k[u][e];
#pragma unroll
            for (u32 i = 0; i < QUERIES; ++i) dot[i] = fmaf(query[i][e], x, dot[i]);
          }
          const float score = sum_of_lane(dot, lane, lanes);
          const u32 j = key(step + u), i = place;
          if (i < QUERIES && j < KEYS) {
            const bool sees = first + j <= last_key && first + j >= first_key;
            const float scaled = soft_capped(score * scale, shape.soft_cap) * LOG2_E;
            weight[j * QUERIES + i] = i >= count ? 0.0f : sees ? scaled : -INFINITY;
          }
        }
      }
    }
    // The first values are under way while the weights are made.
    Stored<T> v[FLIGHT];
    fetch(v_head, 0, v);
    __syncthreads();

    // A warp a query: e^(score - maximum) in the place of the score.
    if (warp < count) {
      float score[KEYS / WARP], now = maximum, added = 0.0f;
#pragma unroll
      for (u32 n = 0; n < KEYS / WARP; ++n) {
        score[n] = weight[(n * WARP + lane) * QUERIES + warp];
        now = fmaxf(now, score[n]);
      }
      now = warp_max(now);
#pragma unroll
      for (u32 n = 0; n < KEYS / WARP; ++n) {
        const float p = quick_exp2(score[n] - now);
        weight[(n * WARP + lane) * QUERIES + warp] = p;
        added += p;
      }
      const float before = quick_exp2(maximum - now);
      maximum = now;
      sum = fmaf(sum, before, warp_sum(added));
      if (lane == 0) factor[warp] = before;
    }
    __syncthreads();

#pragma unroll
    for (u32 i = 0; i < QUERIES; ++i)
      if (i < count)
#pragma unroll
        for (u32 e = 0; e < 8; ++e) result[i][e] *= factor[i];
#pragma unroll 1
    for (u32 step = 0; step < lanes; step += FLIGHT) {
      if (step > 0) fetch(v_head, step, v);
#pragma unroll
      for (u32 u = 0; u < FLIGHT; ++u) {
        const u32 j = key(step + u);
        if (j >= keys) continue;
        float x[8];
#pragma unroll
        for (u32 e = 0; e < 8; ++e) x[e] = v[u][e];
#pragma unroll
        for (u32 i = 0; i < QUERIES; i += 4) {
          const Four w = *(const Four *)(weight + j * QUERIES + i);
          // What a query may not see has no weight, and must not reach it as infinity or NaN either.
#pragma unroll
          for (u32 k = 0; k < 4; ++k)
            if (w.x[k] != 0.0f)
#pragma unroll
              for (u32 e = 0; e < 8; ++e) result[i + k][e] = fmaf(w.x[k], x[e], result[i + k][e]);
        }
      }
    }
    // No barrier: the next keys' weights lie elsewhere, and `factor` is written after their first barrier.
  }

#pragma unroll
  for (u32 i = 0; i < QUERIES; ++i) {
    Eight<float> x;
#pragma unroll
    for (u32 e = 0; e < 8; ++e) {
      x.x[e] = result[i][e];
      for (u32 bit = lanes; bit < WARP; bit *= 2) x.x[e] += __shfl_xor_sync(ALL_LANES, x.x[e], bit);
    }
    if (lane < lanes && mine) *(Eight<float> *)(sums + (warp * QUERIES + i) * dim + d) = x;
  }
  const u32 chunks = (seen + tile.keys - 1) / tile.keys;
  // All chunks of a row have slots beside each other; a slot ends with maximum and sum of each query.
  const size_t slot = size_t(QUERIES) * (dim + 2), step = gridDim.y * slot;
  float *own = partials + blockIdx.x * step + blockIdx.y * slot;
  if (warp < count && lane == 0) {
    total[warp] = sum + sink_share(sinks, first_head + warp % heads, maximum);
    if (chunks > 1) {
      own[QUERIES * dim + 2 * warp] = maximum;
      own[QUERIES * dim + 2 * warp + 1] = sum;
    }
  }
  __syncthreads();
  for (u32 n = 4 * thread; n < count * dim; n += 4 * THREADS) {
    Four x = {};
#pragma unroll
    for (u32 w = 0; w < WARPS; ++w) {
      const Four more = *(const Four *)(sums + w * QUERIES * dim + n);
#pragma unroll
      for (u32 e = 0; e < 4; ++e) x.x[e] += more.x[e];
    }
    const u32 i = n / dim;
    const size_t row = first_row + i / heads, head = first_head + i % heads;
    if (chunks > 1) {
      *(Four *)(own + n) = x;
      continue;
    }
#pragma unroll
    for (u32 e = 0; e < 4; ++e) x.x[e] *= shape.v_scale / total[i];
    store(dst + (row * shape.heads + head) * dim + n % dim, x);
  }
  if (chunks == 1) return;

  // The last of a row's blocks adds up. It finds what the others wrote before they counted.
  u32 *arrived = counters + (blockIdx.x - chunk) * gridDim.y + blockIdx.y;
  u32 *last = (u32 *)factor;
  __threadfence();
  __syncthreads();
  if (thread == 0) *last = atomicAdd(arrived, 1u) == chunks - 1;
  __syncthreads();
  if (*last == 0) return;
  __threadfence();
  if (thread == 0) *arrived = 0; // as it was, for the next launch
  merge<QUERIES>(dst, own - chunk * step, step, (float(*)[CHUNKS])weights, chunks, count, first_row, heads, first_head,
                 sinks, shape);
}

#define ATTENTION_SPLIT(name, QUERIES, O, T)                                                                          \
  BOUNDED_KERNEL(THREADS, 8 / QUERIES, name, O *dst, const float *queries, const T *cache, const Span *spans,         \
                 const u32 *tables, const Tile *tiles, u32 *counters, float *partials, const float *sinks,            \
                 Shape shape) {                                                                                       \
    attention_split<QUERIES>(dst, queries, cache, spans, tables, tiles, counters, partials, sinks, shape);            \
  }
ATTENTION_SPLIT(attention_split_4_f32_f32, 4, float, float)
ATTENTION_SPLIT(attention_split_8_f32_f32, 8, float, float)
ATTENTION_SPLIT(attention_split_4_f16_f16, 4, f16, f16)
ATTENTION_SPLIT(attention_split_8_f16_f16, 8, f16, f16)
ATTENTION_SPLIT(attention_split_4_bf16_bf16, 4, bf16, bf16)
ATTENTION_SPLIT(attention_split_8_bf16_bf16, 8, bf16, bf16)
ATTENTION_SPLIT(attention_split_4_f32_f8e4m3, 4, float, fp8)
ATTENTION_SPLIT(attention_split_8_f32_f8e4m3, 8, float, fp8)
ATTENTION_SPLIT(attention_split_4_f16_f8e4m3, 4, f16, fp8)
ATTENTION_SPLIT(attention_split_8_f16_f8e4m3, 8, f16, fp8)
ATTENTION_SPLIT(attention_split_4_bf16_f8e4m3, 4, bf16, fp8)
ATTENTION_SPLIT(attention_split_8_bf16_f8e4m3, 8, bf16, fp8)
ATTENTION_SPLIT(attention_split_4_f32_u8, 4, float, q8)
ATTENTION_SPLIT(attention_split_8_f32_u8, 8, float, q8)
ATTENTION_SPLIT(attention_split_4_f16_u8, 4, f16, q8)
ATTENTION_SPLIT(attention_split_8_f16_u8, 8, f16, q8)
ATTENTION_SPLIT(attention_split_4_bf16_u8, 4, bf16, q8)
ATTENTION_SPLIT(attention_split_8_bf16_u8, 8, bf16, q8)
