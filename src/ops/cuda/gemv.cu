// Matrix products of one to eight rows: a warp an output, which reads its row of weights once.
//
// The order of additions for an output depends on K alone: lane l takes the groups of eight elements l, l + 32, ...
// in turn, and the warp adds up its lanes. K is a multiple of 8 and rows of weights and activations begin at 16
// bytes. No barrier: warps without an output leave.
#include "device.cuh"

// Eight weights, which nobody reads again: 16 bytes at once, past the first-level cache.
template <typename W> __device__ inline Eight<W> stream_eight(const W *from) {
#ifdef HASHWATT_ON_HOST
  return eight(from);
#else
  Eight<W> out;
  uint4 *to = (uint4 *)&out;
  const uint4 *at = (const uint4 *)from;
  for (u32 i = 0; i < sizeof(Eight<W>) / sizeof(uint4); ++i)
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[i].x), "=r"(to[i].y), "=r"(to[i].z), "=r"(to[i].w)
                 : "l"(at + i));
  return out;
#endif
}

constexpr u32 GROUP = 8;
// Groups of weights that a lane has under way.
constexpr u32 UNDER_WAY = 4;

// sums[r] += the part of `groups` groups, 32 apart, of src's row r and a row of weights; only `rows` rows are read.
template <u32 ROWS, u32 GROUPS, typename W, typename X>
__device__ inline void gemv_part(float *sums, const W *weight, const X *src, u32 at, u32 rows, u32 k) {
  Eight<W> w[GROUPS];
#pragma unroll
  for (u32 g = 0; g < GROUPS; ++g) w[g] = stream_eight(weight + at + g * WARP * GROUP);
#pragma unroll
  for (u32 g = 0; g < GROUPS; ++g)
#pragma unroll
    for (u32 r = 0; r < ROWS; ++r)
      if (r < rows) {
        const Eight<X> x = eight(src + size_t(r) * k + at + g * WARP * GROUP);
#pragma unroll
        for (u32 i = 0; i < GROUP; ++i) sums[r] = fmaf(widen(w[g].x[i]), widen(x.x[i]), sums[r]);
      }
}

// sums[r] = src[r] · weight for r < rows <= ROWS, the same in every lane of the warp. src: X [rows, k], weight: W [k].
template <u32 ROWS, typename W, typename X>
__device__ inline void gemv_sums(float *sums, const W *weight, const X *src, u32 rows, u32 k) {
#pragma unroll
  for (u32 r = 0; r < ROWS; ++r) sums[r] = 0.0f;
  u32 at = threadIdx.x % WARP * GROUP;
  for (; at + (UNDER_WAY - 1) * WARP * GROUP < k; at += UNDER_WAY * WARP * GROUP)
    gemv_part<ROWS, UNDER_WAY>(sums, weight, src, at, rows, k);
  for (; at < k; at += WARP * GROUP) gemv_part<ROWS, 1>(sums, weight, src, at, rows, k);
#pragma unroll
  for (u32 r = 0; r < ROWS; ++r) sums[r] = warp_sum(sums[r]);
}

// dst[r, out] (+)= src[r] · weight[out] + bias[out], r < rows <= ROWS. dst: f32, rows `stride` apart; src: X [rows, k];
// weight: W [n, k]; bias: f32 [n] or null.
template <u32 ROWS, typename W, typename X>
__device__ inline void gemv(float *dst, const X *src, const W *weight, const float *bias, u32 rows, u32 n, u32 k,
                            u32 stride, u32 accumulate) {
  const u32 out = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
  if (out >= n) return;
  float sums[ROWS];
  gemv_sums<ROWS>(sums, weight + size_t(out) * k, src, rows, k);
  if (threadIdx.x % WARP != 0) return;
#pragma unroll
  for (u32 r = 0; r < ROWS; ++r) {
    if (r >= rows) continue;
    float *to = dst + size_t(r) * stride + out;
    const float value = bias ? sums[r] + bias[out] : sums[r];
    *to = accumulate ? *to + value : value;
  }
}

// dst[r, out] = silu(src[r] · weight[out]) * (src[r] · weight[n + out]), with the bits of gemv and silu_mul one after
// the other. dst: X [rows, n]; src: X [rows, k]; weight: W [2 * n, k], gate before up.
template <u32 ROWS, typename W, typename X>
__device__ inline void gemv_silu_mul(X *dst, const X *src, const W *weight, u32 rows, u32 n, u32 k) {
  const u32 out = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
  if (out >= n) return;
  float gate[ROWS], up[ROWS];
  gemv_sums<ROWS>(gate, weight + size_t(out) * k, src, rows, k);
  gemv_sums<ROWS>(up, weight + (size_t(n) + out) * k, src, rows, k);
  if (threadIdx.x % WARP != 0) return;
#pragma unroll
  for (u32 r = 0; r < ROWS; ++r)
    if (r < rows) dst[size_t(r) * n + out] = narrow<X>(gate[r] / (1.0f + expf(-gate[r])) * up[r]);
}

#define GEMV(ROWS, W, X)                                                                                              \
  KERNEL(gemv_##ROWS##_##W##_##X, float *dst, const X *src, const W *weight, const float *bias, u32 rows, u32 n,      \
         u32 k, u32 stride, u32 accumulate) {                                                                         \
    gemv<ROWS>(dst, src, weight, bias, rows, n, k, stride, accumulate);                                               \
  }                                                                                                                   \
  KERNEL(gemv_silu_mul_##ROWS##_##W##_##X, X *dst, const X *src, const W *weight, u32 rows, u32 n, u32 k) {           \
    gemv_silu_mul<ROWS>(dst, src, weight, rows, n, k);                                                                \
  }
#define GEMV_OF_TYPES(W, X) GEMV(1, W, X) GEMV(2, W, X) GEMV(4, W, X) GEMV(8, W, X)
typedef float f32;
GEMV_OF_TYPES(bf16, bf16)
GEMV_OF_TYPES(bf16, f32)
GEMV_OF_TYPES(f16, f16)
GEMV_OF_TYPES(f16, f32)
GEMV_OF_TYPES(f32, f32)
GEMV_OF_TYPES(f32, bf16)
