// Matrix products of one to eight rows: a warp an output, or two, whose rows of weights it reads once.
//
// The order of additions for an output depends on K alone: lane l takes the groups of neighbouring elements l, l + 32,
// ... in turn, and the warp adds up its lanes. K is a multiple of a group and rows of weights and activations begin at
// 16 bytes. A block takes outputs in turn, gridDim.x blocks apart: what it normalises first is for all of them.
#include "device.cuh"

// Weights W [rows, k]; of FP8 with scales: f32 [ceil(rows / block_rows), ceil(k / block_cols)].
template <typename W> struct Matrix {
  const W *weights;
  const float *scales;
  u32 block_rows, block_cols;
};
template <typename W> struct Row {
  const W *weights;
  const float *scales;
};
template <typename W> constexpr bool HAS_SCALES = sizeof(W) == 1;

template <typename W> __device__ inline Row<W> row_of(const Matrix<W> &matrix, u32 row, u32 k) {
  Row<W> out = {matrix.weights + size_t(row) * k, nullptr};
  if constexpr (HAS_SCALES<W>)
    out.scales = matrix.scales + size_t(row / matrix.block_rows) * ((k + matrix.block_cols - 1) / matrix.block_cols);
  return out;
}

// Neighbouring elements that a lane takes at once: 16 bytes of weights, of f32 twice as many. They share a scale.
template <typename W> constexpr u32 GROUP = HAS_SCALES<W> ? 16 : 8;
template <typename T, u32 N> struct alignas(16) Group {
  T x[N];
};

// Weights that nobody reads again: past the first-level cache.
template <typename W> __device__ inline Group<W, GROUP<W>> stream(const W *from) {
  using G = Group<W, GROUP<W>>;
#ifdef HASHWATT_ON_HOST
  return *(const G *)from;
#else
  G out;
  uint4 *to = (uint4 *)&out;
  const uint4 *at = (const uint4 *)from;
  for (u32 i = 0; i < sizeof(G) / sizeof(uint4); ++i)
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[i].x), "=r"(to[i].y), "=r"(to[i].z), "=r"(to[i].w)
                 : "l"(at + i));
  return out;
#endif
}

// Groups of weights that a lane has under way.
constexpr u32 UNDER_WAY = 4;
// Outputs of a warp at once: with many rows of activations it is reading these that takes long, so two share it.
template <u32 ROWS> constexpr u32 OUTPUTS = ROWS < 4 ? 1 : 2;

// sums[o][r] += the part of `GROUPS` groups, 32 apart, of src's row r and the o-th row of weights; only `rows` rows
// of src are read.
template <u32 GROUPS, u32 ROWS, u32 OUTS, typename W, typename X>
__device__ inline void gemv_part(float (&sums)[OUTS][ROWS], const Row<W> (&weights)[OUTS], const X *src, u32 at,
                                 u32 rows, u32 k, u32 block_cols) {
  constexpr u32 N = GROUP<W>;
  Group<W, N> w[GROUPS][OUTS];
#pragma unroll
  for (u32 g = 0; g < GROUPS; ++g)
#pragma unroll
    for (u32 o = 0; o < OUTS; ++o) w[g][o] = stream(weights[o].weights + at + g * WARP * N);
#pragma unroll
  for (u32 g = 0; g < GROUPS; ++g) {
    const u32 column = at + g * WARP * N;
    float wide[OUTS][N], scale[OUTS];
#pragma unroll
    for (u32 o = 0; o < OUTS; ++o) {
#pragma unroll
      for (u32 i = 0; i < N; i += 2) widen_two(wide[o] + i, w[g][o].x + i);
      if constexpr (HAS_SCALES<W>) scale[o] = weights[o].scales[block_cols >= k ? 0 : column / block_cols];
    }
#pragma unroll
    for (u32 r = 0; r < ROWS; ++r)
      if (r < rows) {
        const Group<X, N> x = *(const Group<X, N> *)(src + size_t(r) * k + column);
#pragma unroll
        for (u32 o = 0; o < OUTS; ++o) {
          float sum = HAS_SCALES<W> ? 0.0f : sums[o][r];
#pragma unroll
          for (u32 i = 0; i < N; ++i) sum = fmaf(wide[o][i], widen(x.x[i]), sum);
          if constexpr (HAS_SCALES<W>) sum = fmaf(sum, scale[o], sums[o][r]);
          sums[o][r] = sum;
        }
      }
  }
}

// sums[o][r] = src[r] · weights[o] for r < rows <= ROWS, the same in every lane of the warp. src: X [rows, k].
template <u32 ROWS, u32 OUTS, typename W, typename X>
__device__ inline void gemv_sums(float (&sums)[OUTS][ROWS], const Row<W> (&weights)[OUTS], const X *src, u32 rows,
                                 u32 k, u32 block_cols) {
  constexpr u32 STEP = WARP * GROUP<W>, GROUPS = UNDER_WAY / OUTS;
#pragma unroll
  for (u32 o = 0; o < OUTS; ++o)
#pragma unroll
    for (u32 r = 0; r < ROWS; ++r) sums[o][r] = 0.0f;
  u32 at = threadIdx.x % WARP * GROUP<W>;
  for (; at + (GROUPS - 1) * STEP < k; at += GROUPS * STEP)
    gemv_part<GROUPS>(sums, weights, src, at, rows, k, block_cols);
  for (; at < k; at += STEP) gemv_part<1>(sums, weights, src, at, rows, k, block_cols);
#pragma unroll
  for (u32 o = 0; o < OUTS; ++o)
#pragma unroll
    for (u32 r = 0; r < ROWS; ++r) sums[o][r] = warp_sum(sums[o][r]);
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

// Weights are there before a step begins. So a warp asks for its first, and then waits for what is multiplied by them.
template <typename W> __device__ inline void begin_gemv(const Matrix<W> &matrix, u32 n, u32 k, u32 outputs) {
  const u32 out = (blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP) * outputs;
  const u32 at = threadIdx.x % WARP * (LINE_BYTES / sizeof(W));
  if (out < n && at < k) prefetch(matrix.weights + size_t(out) * k + at);
  follow();
}

// dst[r, out] (+)= src[r] · weight[out] + bias[out], r < rows <= ROWS. dst: f32, rows `stride` apart; src: X [rows, k];
// bias: f32 [n] or null.
template <u32 ROWS, typename W, typename X>
__device__ inline void gemv(float *dst, const X *src, const Matrix<W> &matrix, const float *bias, u32 rows, u32 n,
                            u32 k, u32 stride, u32 accumulate) {
  constexpr u32 OUTS = OUTPUTS<ROWS>;
  const u32 warps = blockDim.x / WARP, lane = threadIdx.x % WARP;
  for (u32 first = (blockIdx.x * warps + threadIdx.x / WARP) * OUTS; first < n; first += gridDim.x * warps * OUTS) {
    // Lane o * ROWS + r writes output o of row r.
    const u32 r = lane % ROWS, out = first + lane / ROWS;
    const bool writes = lane < OUTS * ROWS && r < rows && out < n;
    float *to = dst + size_t(r) * stride + out;
    const float before = writes && accumulate ? *to : 0.0f, more = writes && bias ? bias[out] : 0.0f;
    Row<W> weights[OUTS];
#pragma unroll
    for (u32 o = 0; o < OUTS; ++o) weights[o] = row_of(matrix, min(first + o, n - 1), k);
    float sums[OUTS][ROWS], sum = 0.0f;
    gemv_sums(sums, weights, src, rows, k, matrix.block_cols);
#pragma unroll
    for (u32 i = 0; i < OUTS * ROWS; ++i) sum = lane == i ? sums[i / ROWS][i % ROWS] : sum;
    if (writes) *to = before + (sum + more);
  }
}

// dst[r, out] = silu(src[r] · weight[out]) * (src[r] · weight[n + out]), with the bits of gemv and silu_mul one after
// the other. dst: X [rows, n]; src: X [rows, k]; the matrix has 2 * n rows, gate before up.
template <u32 ROWS, typename W, typename X>
__device__ inline void gemv_silu_mul(X *dst, const X *src, const Matrix<W> &matrix, u32 rows, u32 n, u32 k) {
  const u32 warps = blockDim.x / WARP, lane = threadIdx.x % WARP;
  for (u32 out = blockIdx.x * warps + threadIdx.x / WARP; out < n; out += gridDim.x * warps) {
    const Row<W> weights[2] = {row_of(matrix, out, k), row_of(matrix, n + out, k)};
    float sums[2][ROWS], gate = 0.0f, up = 0.0f;
    gemv_sums(sums, weights, src, rows, k, matrix.block_cols);
#pragma unroll
    for (u32 r = 0; r < ROWS; ++r)
      if (lane == r) {
        gate = sums[0][r];
        up = sums[1][r];
      }
    if (lane < rows) dst[size_t(lane) * n + out] = narrow<X>(gate / (1.0f + expf(-gate)) * up);
  }
}

// The matrix of an expert, whose n rows lie below those of the one before.
template <typename W> __device__ inline Matrix<W> of_expert(const Matrix<W> &all, u32 expert, u32 n, u32 k) {
  Matrix<W> out = all;
  out.weights += size_t(expert) * n * k;
  if constexpr (HAS_SCALES<W>)
    out.scales += size_t(expert) * (n / all.block_rows) * ((k + all.block_cols - 1) / all.block_cols);
  return out;
}

// gemv of each expert's matrix with its places; blockIdx.y counts the experts that have any. dst: f32, rows `stride`
// apart; src: X [places, k]; biases: f32 [experts, n] or null; starts, taken: see experts.cu.
template <typename W, typename X>
__device__ inline void grouped_gemv(float *dst, const X *src, const Matrix<W> &all, const float *biases,
                                    const u32 *starts, const u32 *taken, u32 n, u32 k, u32 stride) {
  follow();
  if (blockIdx.y >= taken[0]) return;
  const u32 expert = taken[1 + blockIdx.y], end = starts[expert + 1];
  const Matrix<W> matrix = of_expert(all, expert, n, k);
  const float *bias = biases ? biases + size_t(expert) * n : nullptr;
  for (u32 first = starts[expert]; first < end; first += MOST_ROWS) {
    const u32 rows = min(end - first, MOST_ROWS);
    float *to = dst + size_t(first) * stride;
    const X *from = src + size_t(first) * k;
    if (rows == 1)
      gemv<1>(to, from, matrix, bias, rows, n, k, stride, 0);
    else if (rows <= 4)
      gemv<4>(to, from, matrix, bias, rows, n, k, stride, 0);
    else
      gemv<8>(to, from, matrix, bias, rows, n, k, stride, 0);
  }
}

#define GEMV(ROWS, TYPES, W, X)                                                                                       \
  KERNEL(gemv_##ROWS##_##TYPES, float *dst, const X *src, Matrix<W> matrix, const float *bias, u32 rows, u32 n,       \
         u32 k, u32 stride, u32 accumulate) {                                                                         \
    begin_gemv(matrix, n, k, OUTPUTS<ROWS>);                                                                          \
    gemv<ROWS>(dst, src, matrix, bias, rows, n, k, stride, accumulate);                                               \
  }                                                                                                                   \
  KERNEL(gemv_norm_##ROWS##_##TYPES, float *dst, const float *src, const float *norm, float eps, Matrix<W> matrix,    \
         const float *bias, u32 rows, u32 n, u32 k, u32 stride) {                                                     \
    begin_gemv(matrix, n, k, OUTPUTS<ROWS>);                                                                          \
    const X *normed = normed_rows<X>(src, norm, eps, rows, k);                                                        \
    gemv<ROWS>(dst, normed, matrix, bias, rows, n, k, stride, 0);                                                     \
  }                                                                                                                   \
  KERNEL(gemv_norm_silu_mul_##ROWS##_##TYPES, X *dst, const float *src, const float *norm, float eps,                 \
         Matrix<W> matrix, u32 rows, u32 n, u32 k) {                                                                  \
    begin_gemv(matrix, n, k, 1);                                                                                      \
    const X *normed = normed_rows<X>(src, norm, eps, rows, k);                                                        \
    gemv_silu_mul<ROWS>(dst, normed, matrix, rows, n, k);                                                             \
  }
#define GROUPED_GEMV(TYPES, W, X)                                                                                     \
  KERNEL(grouped_gemv_##TYPES, float *dst, const X *src, Matrix<W> matrix, const float *biases, const u32 *starts,     \
         const u32 *taken, u32 n, u32 k, u32 stride) {                                                                \
    grouped_gemv(dst, src, matrix, biases, starts, taken, n, k, stride);                                              \
  }
#define GEMV_OF_TYPES(TYPES, W, X)                                                                                    \
  GEMV(1, TYPES, W, X) GEMV(2, TYPES, W, X) GEMV(4, TYPES, W, X) GEMV(8, TYPES, W, X) GROUPED_GEMV(TYPES, W, X)
GEMV_OF_TYPES(f32, float, float)
GEMV_OF_TYPES(bf16, bf16, bf16)
GEMV_OF_TYPES(f16, f16, f16)
GEMV_OF_TYPES(f32_f8e4m3, fp8, float)
GEMV_OF_TYPES(bf16_f8e4m3, fp8, bf16)
GEMV_OF_TYPES(f16_f8e4m3, fp8, f16)
