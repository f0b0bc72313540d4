// Attention over the paged cache with an online softmax (Milakov & Gimelshein 2018) in tiles of 64 keys counted
// from position 0: a query's result does not depend on who shares its block.
#include "device.cuh"

constexpr u32 BLOCK_SIZE = 16; // positions of a cache block, as in ops/paged_attention.rs
constexpr u32 KEYS = 64;       // of a tile
constexpr u32 QUERIES = 16;    // query vectors of a block at most
constexpr u32 THREADS = 128;
constexpr u32 DIMS = 2; // dimensions of a thread: head_dim <= THREADS * DIMS
constexpr u32 PAD = 8;  // elements between staged keys, so that neighbours fall into different banks

// As AttentionSpan in ops/paged_attention.rs.
struct Span {
  u32 first_row, rows, first_position, block_table;
};

struct Shape {
  u32 heads, kv_heads, dim, stride; // stride: floats from one row of queries to the next
  u32 heads_of_block, rows_of_block;
  float scale;
  float k_scale, v_scale; // of what is stored; ones but for a cache of FP8
};

// A block takes `rows_of_block` rows of one sequence by `heads_of_block` query heads of one K/V head.
//
// blockIdx.x: tiles[2 * x] is the span, tiles[2 * x + 1] its first row here; a span of no rows is passed over.
// blockIdx.y: K/V head, then the part of its query heads.
// queries: f32 [rows, stride], turned; cache: T [blocks, 2, kv_heads, BLOCK_SIZE, dim]; dst: O [rows, heads, dim].
// shared: queries [QUERIES, dim], weights [QUERIES, KEYS], three floats a query, keys T [KEYS, dim + PAD].
template <typename O, typename T>
__device__ void paged_attention(O *dst, const float *queries, const T *cache, const Span *spans, const u32 *tables,
                                const u32 *tiles, Shape shape) {
  const Span span = spans[tiles[2 * blockIdx.x]];
  const u32 skipped = tiles[2 * blockIdx.x + 1];
  if (skipped >= span.rows) return;
  const u32 dim = shape.dim, thread = threadIdx.x, lane = thread % WARP, warp = thread / WARP;
  const u32 group = shape.heads / shape.kv_heads, cuts = (group + shape.heads_of_block - 1) / shape.heads_of_block;
  const u32 kv_head = blockIdx.y / cuts, cut = blockIdx.y % cuts;
  const u32 heads = min(shape.heads_of_block, group - cut * shape.heads_of_block);
  const u32 rows = min(shape.rows_of_block, span.rows - skipped), count = rows * heads;
  const u32 first_row = span.first_row + skipped, first_head = kv_head * group + cut * shape.heads_of_block;
  const u32 first_position = span.first_position + skipped, seen = first_position + rows;
  const u32 *table = tables + span.block_table;
  const float scale_of_scores = shape.scale * shape.k_scale;

  float *query = (float *)shared();
  float *weight = query + QUERIES * dim;
  float *maximum = weight + QUERIES * KEYS, *sum = maximum + QUERIES, *factor = sum + QUERIES;
  T *key = (T *)(factor + QUERIES);

  // Query i is row i / heads, head i % heads.
  for (u32 n = thread; n < count * dim; n += THREADS) {
    const u32 i = n / dim, row = first_row + i / heads, head = first_head + i % heads;
    query[n] = queries[size_t(row) * shape.stride + size_t(head) * dim + n % dim];
  }
  if (thread < QUERIES) {
    maximum[thread] = -INFINITY;
    sum[thread] = 0.0f;
  }
  float result[QUERIES][DIMS] = {};

  for (u32 first = 0; first < seen; first += KEYS) {
    const u32 keys = min(KEYS, seen - first);
    // Where key j of the tile lies; its value lies kv_heads * BLOCK_SIZE * dim further.
    auto place = [&](u32 j) {
      const u32 position = first + j;
      const size_t block = size_t(table[position / BLOCK_SIZE]) * 2 * shape.kv_heads + kv_head;
      return cache + (block * BLOCK_SIZE + position % BLOCK_SIZE) * dim;
    };
    for (u32 n = thread; n < keys * dim; n += THREADS) key[n / dim * (dim + PAD) + n % dim] = place(n / dim)[n % dim];
    __syncthreads();

    for (u32 n = thread; n < count * KEYS; n += THREADS) {
      const u32 i = n / KEYS, j = n % KEYS;
      float score = -INFINITY;
      if (first + j <= first_position + i / heads) {
        score = 0.0f;
        for (u32 d = 0; d < dim; ++d) score += query[i * dim + d] * widen(key[j * (dim + PAD) + d]);
        score *= scale_of_scores;
      }
      weight[n] = score;
    }
    __syncthreads();

    for (u32 i = warp; i < count; i += THREADS / WARP) {
      float *row = weight + i * KEYS;
      const float a = row[lane], b = row[lane + WARP], before = maximum[i];
      const float now = fmaxf(before, warp_max(fmaxf(a, b)));
      // A row that sees nothing of this tile keeps what it has.
      const bool blind = now == -INFINITY || first > first_position + i / heads;
      const float p = blind ? 0.0f : expf(a - now), q = blind ? 0.0f : expf(b - now);
      const float scale = blind ? 1.0f : expf(before - now), added = warp_sum(p + q);
      row[lane] = p;
      row[lane + WARP] = q;
      if (lane == 0) {
        maximum[i] = now;
        factor[i] = scale;
        sum[i] = sum[i] * scale + added;
      }
    }
    __syncthreads();

#pragma unroll
    for (u32 part = 0; part < DIMS; ++part) {
      const u32 d = thread + part * THREADS;
#pragma unroll
      for (u32 i = 0; i < QUERIES; ++i)
        if (i < count) result[i][part] *= factor[i];
      for (u32 j = 0; j < keys && d < dim; ++j) {
        const float value = widen(place(j)[size_t(shape.kv_heads) * BLOCK_SIZE * dim + d]);
#pragma unroll
        for (u32 i = 0; i < QUERIES; ++i) {
          // What a query may not see has no weight, and must not reach it as infinity or NaN either.
          const float w = i < count ? weight[i * KEYS + j] : 0.0f;
          if (w != 0.0f) result[i][part] += w * value;
        }
      }
    }
    // No barrier: the next tile's keys are not read before the first one there.
  }

#pragma unroll
  for (u32 part = 0; part < DIMS; ++part) {
    const u32 d = thread + part * THREADS;
#pragma unroll
    for (u32 i = 0; i < QUERIES; ++i)
      if (i < count && d < dim) {
        const size_t row = first_row + i / heads, head = first_head + i % heads;
        dst[(row * shape.heads + head) * dim + d] = narrow<O>(result[i][part] * (shape.v_scale / sum[i]));
      }
  }
}

#define PAGED_ATTENTION(name, O, T)                                                                                   \
  KERNEL(name, O *dst, const float *queries, const T *cache, const Span *spans, const u32 *tables, const u32 *tiles,  \
         Shape shape) {                                                                                               \
    paged_attention(dst, queries, cache, spans, tables, tiles, shape);                                                \
  }
PAGED_ATTENTION(paged_attention_f32_f32, float, float)
PAGED_ATTENTION(paged_attention_f16_f16, f16, f16)
PAGED_ATTENTION(paged_attention_bf16_bf16, bf16, bf16)
PAGED_ATTENTION(paged_attention_f32_f8e4m3, float, fp8)
PAGED_ATTENTION(paged_attention_f16_f8e4m3, f16, fp8)
PAGED_ATTENTION(paged_attention_bf16_f8e4m3, bf16, fp8)
