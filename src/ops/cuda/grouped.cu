// Products of each expert's rows on tensor cores, for more rows than the kernels of gemv.cu are for.
//
// A block takes 64 outputs of an expert for all of its places, 64 at a time: weights come from memory once, and out of
// the second-level cache for the places after those. Tiles of 64 inputs are on their way while others are worked on. What
// a place gets depends on K alone: rows that are not there are zeros beside it.
#include "mma.cuh"

constexpr u32 TILE = 64, STAGES = 3;         // places, outputs and inputs of a tile, and tiles under way; as in ops/experts/kernels.rs
constexpr u32 LATER = STAGES - 2;            // tiles that are not waited for yet
constexpr u32 PAD = 8, ROW = TILE + PAD;     // ldmatrix' eight rows then fall into different banks
constexpr u32 WARPS = 4, THREADS = WARPS * WARP; // a warp 32 places by 32 outputs

// dst[place, out] = src[place] · weight[out] of its expert. dst: f32, rows `stride` apart; src: T [places, k]; weights:
// T [experts, n, k]; biases: f32 [experts, n] or null; starts, taken: see experts.cu. k is a multiple of 8. shared: T [STAGES, 2, TILE, ROW].
template <typename T>
__device__ void grouped_product(float *dst, const T *src, const T *weights, const float *biases, const u32 *starts,
                                const u32 *taken, u32 n, u32 k, u32 stride) {
  follow();
  if (blockIdx.y >= taken[0]) return;
  const u32 expert = taken[1 + blockIdx.y], begin = starts[expert], end = starts[expert + 1];
  const u32 first_out = blockIdx.x * TILE, outputs = min(TILE, n - first_out);
  const T *matrix = weights + (size_t(expert) * n + first_out) * k;
  const float *bias = biases ? biases + size_t(expert) * n + first_out : nullptr;
  const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const u32 own_place = warp / 2 * 32, own_out = warp % 2 * 32, steps = (k + TILE - 1) / TILE;
  T *tiles = (T *)shared();

  for (u32 first = begin; first < end; first += TILE) {
    const u32 places = min(TILE, end - first);
    auto fetch = [&](u32 step) {
      T *of_src = tiles + step % STAGES * 2 * TILE * ROW, *of_weights = of_src + TILE * ROW;
      for (u32 i = threadIdx.x; step < steps && i < TILE * TILE / 8; i += THREADS) {
        const u32 row = i / (TILE / 8), at = i % (TILE / 8) * 8, column = step * TILE + at;
        const bool place_there = column < k && row < places, out_there = column < k && row < outputs;
        copy_ahead(of_src + row * ROW + at, place_there ? src + size_t(first + row) * k + column : src, place_there);
        copy_ahead(of_weights + row * ROW + at, out_there ? matrix + size_t(row) * k + column : matrix, out_there);
      }
      close_copies();
    };
#pragma unroll
    for (u32 step = 0; step < STAGES - 1; ++step) fetch(step);

    // sum[m][o]: places 16m + lane / 4, + 8 of the warp's by its outputs 8o + 2(lane % 4), + 1.
    float sum[2][4][4] = {};
    for (u32 step = 0; step < steps; ++step) {
      await_copies<LATER>();
      __syncthreads();
      fetch(step + STAGES - 1);
      if (own_place >= places) continue;
      const T *of_src = tiles + step % STAGES * 2 * TILE * ROW, *of_weights = of_src + TILE * ROW;
#pragma unroll
      for (u32 at = 0; at < TILE; at += 16) {
        u32 b[2][4];
#pragma unroll
        for (u32 o = 0; o < 2; ++o)
          load_matrices(b[o], of_weights + (own_out + o * 16 + lane / 16 * 8 + lane % 8) * ROW + at + lane / 8 % 2 * 8);
#pragma unroll
        for (u32 m = 0; m < 2; ++m) {
          if (own_place + m * 16 >= places) continue;
          u32 a[4];
          load_matrices(a, of_src + (own_place + m * 16 + lane % 16) * ROW + at + lane / 16 * 8);
#pragma unroll
          for (u32 o = 0; o < 4; ++o) multiply<T>(sum[m][o], a, b[o / 2][o % 2 * 2], b[o / 2][o % 2 * 2 + 1]);
        }
      }
    }
    // The next tile's copies go where the last steps still read.
    __syncthreads();
#pragma unroll
    for (u32 m = 0; m < 2; ++m)
#pragma unroll
      for (u32 half = 0; half < 2; ++half) {
        const u32 place = own_place + m * 16 + half * 8 + lane / 4;
        if (place >= places) continue;
        float *to = dst + size_t(first + place) * stride + first_out;
#pragma unroll
        for (u32 o = 0; o < 4; ++o)
#pragma unroll
          for (u32 e = 0; e < 2; ++e) {
            const u32 out = own_out + o * 8 + 2 * (lane % 4) + e;
            if (out < outputs) to[out] = sum[m][o][2 * half + e] + (bias ? bias[out] : 0.0f);
          }
      }
  }
}

#define GROUPED_PRODUCT(name, T)                                                                                      \
  BOUNDED_KERNEL(THREADS, 3, name, float *dst, const T *src, const T *weights, const float *biases, const u32 *starts, \
                 const u32 *taken, u32 n, u32 k, u32 stride) {                                                        \
    grouped_product(dst, src, weights, biases, starts, taken, n, k, stride);                                          \
  }
GROUPED_PRODUCT(grouped_product_f16, f16)
GROUPED_PRODUCT(grouped_product_bf16, bf16)
