// Matrix products of one to eight rows: a warp an output, which reads its row of weights once.
//
// The order of additions for an output depends on K alone: lane l takes the groups of eight elements l, l + 32, ...
// in turn, and the warp adds up its lanes. K is a multiple of 8 and rows of weights and activations begin at 16
// bytes. A block takes outputs in turn, gridDim.x blocks apart: what it normalises first is for all of them.
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

constexpr u32 MOST_ROWS = 8, MOST_WARPS = 4;
constexpr u32 SCRATCH_BYTES = MOST_ROWS * MOST_WARPS * sizeof(float); // before the normed rows, as in ops/gemv.rs

// The rows of src, normalised (see rms_norm.cu) and rounded, in shared memory. src: f32 [rows, k]; norm: f32 [k].
template <typename X>
__device__ inline const X *normed_rows(const float *src, const float *norm, float eps, u32 rows, u32 k) {
  float *scratch = (float *)shared();
  X *out = (X *)(shared() + SCRATCH_BYTES);
  const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  for (u32 r = 0; r < rows; ++r) {
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < k; i += blockDim.x) sum += src[size_t(r) * k + i] * src[size_t(r) * k + i];
    sum = warp_sum(sum);
    if (lane == 0) scratch[r * warps + warp] = sum;
  }
  __syncthreads();
  for (u32 r = 0; r < rows; ++r) {
    float sum = 0.0f;
    for (u32 w = 0; w < warps; ++w) sum += scratch[r * warps + w];
    const float scale = rsqrtf(sum / k + eps);
    for (u32 i = threadIdx.x; i < k; i += blockDim.x) out[r * k + i] = narrow<X>(src[size_t(r) * k + i] * scale * norm[i]);
  }
  __syncthreads();
  return out;
}

// dst[r, out] (+)= src[r] · weight[out] + bias[out], r < rows <= ROWS. dst: f32, rows `stride` apart; src: X [rows, k];
// weight: W [n, k]; bias: f32 [n] or null.
template <u32 ROWS, typename W, typename X>
__device__ inline void gemv(float *dst, const X *src, const W *weight, const float *bias, u32 rows, u32 n, u32 k,
                            u32 stride, u32 accumulate) {
  const u32 warps = blockDim.x / WARP;
  for (u32 out = blockIdx.x * warps + threadIdx.x / WARP; out < n; out += gridDim.x * warps) {
    float sums[ROWS];
    gemv_sums<ROWS>(sums, weight + size_t(out) * k, src, rows, k);
    if (threadIdx.x % WARP != 0) continue;
#pragma unroll
    for (u32 r = 0; r < ROWS; ++r) {
      if (r >= rows) continue;
      float *to = dst + size_t(r) * stride + out;
      const float value = bias ? sums[r] + bias[out] : sums[r];
      *to = accumulate ? *to + value : value;
    }
  }
}

// dst[r, out] = silu(src[r] · weight[out]) * (src[r] · weight[n + out]), with the bits of gemv and silu_mul one after
// the other. dst: X [rows, n]; src: X [rows, k]; weight: W [2 * n, k], gate before up.
template <u32 ROWS, typename W, typename X>
__device__ inline void gemv_silu_mul(X *dst, const X *src, const W *weight, u32 rows, u32 n, u32 k) {
  const u32 warps = blockDim.x / WARP;
  for (u32 out = blockIdx.x * warps + threadIdx.x / WARP; out < n; out += gridDim.x * warps) {
    float gate[ROWS], up[ROWS];
    gemv_sums<ROWS>(gate, weight + size_t(out) * k, src, rows, k);
    gemv_sums<ROWS>(up, weight + (size_t(n) + out) * k, src, rows, k);
    if (threadIdx.x % WARP != 0) continue;
#pragma unroll
    for (u32 r = 0; r < ROWS; ++r)
      if (r < rows) dst[size_t(r) * n + out] = narrow<X>(gate[r] / (1.0f + expf(-gate[r])) * up[r]);
  }
}

#define GEMV(ROWS, T)                                                                                                 \
  KERNEL(gemv_##ROWS##_##T, float *dst, const T *src, const T *weight, const float *bias, u32 rows, u32 n, u32 k,     \
         u32 stride, u32 accumulate) {                                                                                \
    gemv<ROWS>(dst, src, weight, bias, rows, n, k, stride, accumulate);                                               \
  }                                                                                                                   \
  KERNEL(gemv_norm_##ROWS##_##T, float *dst, const float *src, const float *norm, float eps, const T *weight,         \
         const float *bias, u32 rows, u32 n, u32 k, u32 stride) {                                                     \
    const T *normed = normed_rows<T>(src, norm, eps, rows, k);                                                  \
    gemv<ROWS>(dst, normed, weight, bias, rows, n, k, stride, 0);                                                     \
  }                                                                                                                   \
  KERNEL(gemv_norm_silu_mul_##ROWS##_##T, T *dst, const float *src, const float *norm, float eps, const T *weight,    \
         u32 rows, u32 n, u32 k) {                                                                                    \
    const T *normed = normed_rows<T>(src, norm, eps, rows, k);                                                  \
    gemv_silu_mul<ROWS>(dst, normed, weight, rows, n, k);                                                             \
  }
#define GEMV_OF_TYPE(T) GEMV(1, T) GEMV(2, T) GEMV(4, T) GEMV(8, T)
typedef float f32;
GEMV_OF_TYPE(bf16)
GEMV_OF_TYPE(f16)
GEMV_OF_TYPE(f32)
