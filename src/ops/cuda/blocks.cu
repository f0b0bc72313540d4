// Weights in blocks (ops/blocks.rs has the layout): products of one to eight rows that read them as they are, and
// their numbers for what takes them in another type.
//
// Sixteen rows of a matrix lie side by side: a tile is 32 columns of them, BITS lines of sixteen words. A thread has a
// row of the sixteen; the order of its additions depends on K alone.
#include "device.cuh"

constexpr u32 GROUP = 16, TILE = 32;
constexpr u32 THREADS = 256, STREAMS = THREADS / GROUP; // as in ops/gemv.rs

// A format: bits of a code, the code of 0, whether there are floors, numbers of a part and of a block.
template <u32 BITS_, int OFFSET_, bool FLOORS_, u32 PART_, u32 BLOCK_> struct Format {
  static constexpr u32 BITS = BITS_, PART = PART_, BLOCK = BLOCK_, PARTS = BLOCK / PART, SIDES = FLOORS_ ? 2 : 1;
  static constexpr int OFFSET = OFFSET_;
  static constexpr bool FLOORS = FLOORS_, FACTORS = BLOCK == 256;
  static constexpr u32 FACTORS_AT = SIDES * GROUP * 2, HEAD_BYTES = SIDES * GROUP * (2 + (FACTORS ? PARTS : 0));
  // Planes: the lower bits of every code, and the rest.
  static constexpr u32 LOW = BITS == 8 ? 8 : BITS >= 4 ? 4 : 2, HIGH = BITS - LOW;
};
typedef Format<4, 8, false, 32, 32> q4_0;
typedef Format<4, 0, true, 32, 32> q4_1;
typedef Format<5, 16, false, 32, 32> q5_0;
typedef Format<5, 0, true, 32, 32> q5_1;
typedef Format<8, 128, false, 32, 32> q8_0;
typedef Format<2, 0, true, 16, 256> q2_k;
typedef Format<3, 4, false, 16, 256> q3_k;
typedef Format<4, 0, true, 32, 256> q4_k;
typedef Format<5, 0, true, 32, 256> q5_k;
typedef Format<6, 32, false, 16, 256> q6_k;

// A row's part of a tile.
template <typename F> struct Codes {
  u32 line[F::BITS];
};

template <typename F>
__device__ inline Codes<F> codes_of(const u32 *codes, u32 group, u32 tile, u32 lane, u32 k) {
  Codes<F> out;
  const u32 *from = codes + (size_t(group) * (k / TILE) + tile) * F::BITS * GROUP + lane;
#pragma unroll
  for (u32 i = 0; i < F::BITS; ++i) out.line[i] = from[i * GROUP];
  return out;
}

// Four neighbouring codes, a byte each.
template <typename F> __device__ inline u32 four(const Codes<F> &codes, u32 step) {
  u32 out = codes.line[step % F::LOW] >> (step / F::LOW * F::LOW) & 0x01010101u * ((1u << F::LOW) - 1);
  if constexpr (F::HIGH > 0)
    out |= (codes.line[F::LOW + step % F::HIGH] >> (step / F::HIGH * F::HIGH) & 0x01010101u * ((1u << F::HIGH) - 1))
           << F::LOW;
  return out;
}

struct Factors {
  float scale, floor;
};

// Of a part of a tile.
template <typename F>
__device__ inline Factors factors_of(const unsigned char *heads, u32 group, u32 tile, u32 part, u32 lane, u32 k) {
  const u32 column = tile * TILE + part * F::PART;
  const unsigned char *head = heads + (size_t(group) * (k / F::BLOCK) + column / F::BLOCK) * F::HEAD_BYTES;
  const f16 *halves = (const f16 *)head;
  Factors out = {widen(halves[lane]), F::FLOORS ? widen(halves[GROUP + lane]) : 0.0f};
  if constexpr (F::FACTORS) {
    const u32 at = F::FACTORS_AT + column % F::BLOCK / F::PART * GROUP + lane;
    out.scale *= float((signed char)head[at]);
    if constexpr (F::FLOORS) out.floor *= float(head[at + F::PARTS * GROUP]);
  }
  return out;
}

template <typename F> __device__ inline float number(const Factors &factors, u32 codes, u32 i) {
  return fmaf(factors.scale, float(int(codes >> (8 * i) & 255) - F::OFFSET), factors.floor);
}

// dst[r, out] (+)= src[r] · weight[out] + bias[out], r < rows <= ROWS; a block a group of outputs. dst: f32, rows
// `stride` apart; src: bf16 [rows, k]; bias: f32 [n] or null. Sixteen streams of a block take the tiles in turn.
template <typename F, u32 ROWS>
__device__ inline void gemv(float *dst, const bf16 *src, const u32 *codes, const unsigned char *heads,
                            const float *bias, u32 rows, u32 n, u32 k, u32 stride, u32 accumulate) {
  const u32 group = blockIdx.x, lane = threadIdx.x % GROUP, stream = threadIdx.x / GROUP;
  float sums[ROWS];
#pragma unroll
  for (u32 r = 0; r < ROWS; ++r) sums[r] = 0.0f;
  for (u32 tile = stream; tile < k / TILE; tile += STREAMS) {
    const Codes<F> own = codes_of<F>(codes, group, tile, lane, k);
#pragma unroll
    for (u32 part = 0; part < TILE / F::PART; ++part) {
      const Factors factors = factors_of<F>(heads, group, tile, part, lane, k);
#pragma unroll
      for (u32 i = 0; i < F::PART / 4; ++i) {
        const u32 step = part * (F::PART / 4) + i, codes4 = four(own, step);
        float w[4];
#pragma unroll
        for (u32 j = 0; j < 4; ++j) w[j] = number<F>(factors, codes4, j);
#pragma unroll
        for (u32 r = 0; r < ROWS; ++r)
          if (r < rows) {
            const Quad<bf16> x = *(const Quad<bf16> *)(src + size_t(r) * k + tile * TILE + step * 4);
#pragma unroll
            for (u32 j = 0; j < 4; ++j) sums[r] = fmaf(w[j], widen(x.x[j]), sums[r]);
          }
      }
    }
  }
  float *scratch = (float *)shared(); // [STREAMS][ROWS][GROUP]
#pragma unroll
  for (u32 r = 0; r < ROWS; ++r) scratch[(stream * ROWS + r) * GROUP + lane] = sums[r];
  __syncthreads();
  const u32 r = stream, out = group * GROUP + lane;
  if (r < rows && out < n) {
    float sum = 0.0f;
    for (u32 s = 0; s < STREAMS; ++s) sum += scratch[(s * ROWS + r) * GROUP + lane];
    float *to = dst + size_t(r) * stride + out;
    *to = (accumulate ? *to : 0.0f) + (sum + (bias ? bias[out] : 0.0f));
  }
}

// The same of each expert's matrix with its places; blockIdx.y counts the experts that have any. n is a multiple of
// GROUP; starts, taken: see experts.cu.
template <typename F>
__device__ inline void grouped_gemv(float *dst, const bf16 *src, const u32 *codes, const unsigned char *heads,
                                    const float *biases, const u32 *starts, const u32 *taken, u32 n, u32 k,
                                    u32 stride) {
  constexpr u32 ROWS = 8;
  if (blockIdx.y >= taken[0]) return;
  const u32 expert = taken[1 + blockIdx.y], end = starts[expert + 1];
  const size_t groups = size_t(expert) * (n / GROUP);
  const float *bias = biases ? biases + size_t(expert) * n : nullptr;
  codes += groups * (k / TILE) * F::BITS * GROUP;
  heads += groups * (k / F::BLOCK) * F::HEAD_BYTES;
  for (u32 first = starts[expert]; first < end; first += ROWS) {
    const u32 rows = min(end - first, ROWS);
    float *to = dst + size_t(first) * stride;
    const bf16 *from = src + size_t(first) * k;
    if (rows == 1)
      gemv<F, 1>(to, from, codes, heads, bias, rows, n, k, stride, 0);
    else
      gemv<F, ROWS>(to, from, codes, heads, bias, rows, n, k, stride, 0);
    __syncthreads(); // the sums of these rows are read before those of the next are written
  }
}

// The 32 numbers of a tile of row `row`, to `to`.
template <typename F, typename T>
__device__ inline void widen_tile(T *to, const u32 *codes, const unsigned char *heads, u32 row, u32 tile, u32 k,
                                  float times) {
  const u32 group = row / GROUP, lane = row % GROUP;
  const Codes<F> own = codes_of<F>(codes, group, tile, lane, k);
#pragma unroll
  for (u32 part = 0; part < TILE / F::PART; ++part) {
    const Factors factors = factors_of<F>(heads, group, tile, part, lane, k);
#pragma unroll
    for (u32 i = 0; i < F::PART / 4; ++i) {
      const u32 step = part * (F::PART / 4) + i, codes4 = four(own, step);
#pragma unroll
      for (u32 j = 0; j < 4; ++j) to[step * 4 + j] = narrow<T>(number<F>(factors, codes4, j) * times);
    }
  }
}

// dst: bf16 [n, k]. A block sixteen rows of sixteen tiles.
template <typename F>
__device__ inline void dequantise(bf16 *dst, const u32 *codes, const unsigned char *heads, u32 n, u32 k) {
  follow();
  const u32 row = blockIdx.x * GROUP + threadIdx.x % GROUP, tile = blockIdx.y * STREAMS + threadIdx.x / GROUP;
  if (row < n && tile < k / TILE)
    widen_tile<F>(dst + size_t(row) * k + tile * TILE, codes, heads, row, tile, k, 1.0f);
}

constexpr u32 PENDING = 1u << 31;
constexpr u32 RESULT_WORDS = 44; // both as in gather.cu

// dst[row] = scale * table[ids[row]]; a block a row. dst: f32 [rows, k].
template <typename F>
__device__ inline void gather(float *dst, const u32 *codes, const unsigned char *heads, const u32 *ids,
                              const u32 *sampled, u32 k, float scale) {
  follow();
  u32 id = ids[blockIdx.x];
  if (id & PENDING) id = sampled[size_t(id & ~PENDING) * RESULT_WORDS];
  for (u32 tile = threadIdx.x; tile < k / TILE; tile += blockDim.x)
    widen_tile<F>(dst + size_t(blockIdx.x) * k + tile * TILE, codes, heads, id, tile, k, scale);
}

#define BLOCKS_GEMV(F, ROWS)                                                                                                 \
  KERNEL(gemv_##F##_##ROWS, float *dst, const bf16 *src, const u32 *codes, const unsigned char *heads,               \
         const float *bias, u32 rows, u32 n, u32 k, u32 stride, u32 accumulate) {                                     \
    follow();                                                                                                         \
    gemv<F, ROWS>(dst, src, codes, heads, bias, rows, n, k, stride, accumulate);                                      \
  }
#define BLOCKS_KERNELS(F)                                                                                                    \
  BLOCKS_GEMV(F, 1) BLOCKS_GEMV(F, 8)                                                                                 \
  KERNEL(grouped_gemv_##F, float *dst, const bf16 *src, const u32 *codes, const unsigned char *heads,                 \
         const float *biases, const u32 *starts, const u32 *taken, u32 n, u32 k, u32 stride) {                        \
    follow();                                                                                                         \
    grouped_gemv<F>(dst, src, codes, heads, biases, starts, taken, n, k, stride);                                     \
  }                                                                                               \
  KERNEL(dequantise_##F, bf16 *dst, const u32 *codes, const unsigned char *heads, u32 n, u32 k) {                     \
    dequantise<F>(dst, codes, heads, n, k);                                                                           \
  }                                                                                                                   \
  KERNEL(gather_##F, float *dst, const u32 *codes, const unsigned char *heads, const u32 *ids, const u32 *sampled,    \
         u32 k, float scale) {                                                                                        \
    gather<F>(dst, codes, heads, ids, sampled, k, scale);                                                             \
  }
BLOCKS_KERNELS(q4_0)
BLOCKS_KERNELS(q4_1)
BLOCKS_KERNELS(q5_0)
BLOCKS_KERNELS(q5_1)
BLOCKS_KERNELS(q8_0)
BLOCKS_KERNELS(q2_k)
BLOCKS_KERNELS(q3_k)
BLOCKS_KERNELS(q4_k)
BLOCKS_KERNELS(q5_k)
BLOCKS_KERNELS(q6_k)
