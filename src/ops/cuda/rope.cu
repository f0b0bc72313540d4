// Rotary positions (arXiv 2104.09864, half-split layout) and the cache write, in one pass over a step's
// queries, keys and values.
#include "cache.cuh"

// dst[row] = [cos(p * f_0) ..., sin(p * f_0) ...]; f32 [rows, 2 * half]. A block a row. Both are multiplied by `length`
// but where the frequency is 0: what is not turned stays as it is.
KERNEL(rope_angles, float *dst, const u32 *positions, const float *inverse_frequencies, u32 half, float length) {
  follow();
  const float position = (float)positions[blockIdx.x];
  float *row = dst + size_t(blockIdx.x) * 2 * half;
  for (u32 i = threadIdx.x; i < half; i += blockDim.x) {
    float sine, cosine;
    const float frequency = inverse_frequencies[i], by = frequency == 0.0f ? 1.0f : length;
    sincosf(position * frequency, &sine, &cosine);
    row[i] = cosine * by;
    row[half + i] = sine * by;
  }
}

constexpr u32 PAIRS = 256 / 2 / WARP; // of a lane, of the longest head

struct Heads {
  u32 queries, keys, dim;
};

// Stores numbers of a lane's pairs as a row of 8 bits, as ops/cpu/q8.rs does: number = code * scale, the scale that of
// the warp's largest. A NaN or an infinity makes a scale that is not finite.
template <u32 PAIRS> __device__ inline void store_q8(q8 *row, const float (&low)[PAIRS], const float (&high)[PAIRS], u32 dim) {
  const u32 lane = threadIdx.x % WARP, half = dim / 2;
  u32 most = 0; // bits of magnitudes have their order
#pragma unroll
  for (u32 p = 0; p < PAIRS; ++p)
    if (p * WARP + lane < half)
      most = max(most, max(__float_as_uint(low[p]) & 0x7fffffffu, __float_as_uint(high[p]) & 0x7fffffffu));
  for (int step = WARP / 2; step > 0; step /= 2) most = max(most, __shfl_xor_sync(ALL_LANES, most, step));
  const float scale = __uint_as_float(most) / 127.0f;
  auto code = [&](float x) {
    const float whole = x / scale;
    return (signed char)int(rintf(fminf(fmaxf(whole, -127.0f), 127.0f)));
  };
#pragma unroll
  for (u32 p = 0; p < PAIRS; ++p) {
    const u32 i = p * WARP + lane;
    if (i < half) {
      row[i].code = scale == 0.0f ? 0 : code(low[p]);
      row[half + i].code = scale == 0.0f ? 0 : code(high[p]);
    }
  }
  if (lane == 0) *(float *)(row + dim) = scale;
}

// One head a warp: blockIdx.x the row, warps over the heads of queries, keys and values in this order.
//
// qkv: f32 [rows, stride], turned in place where it holds queries; angles: f32 [rows, dim];
// cache: T [blocks, 2, keys, BLOCK_SIZE, width], written where slots[row] = block * BLOCK_SIZE + offset says.
// norms: weights [dim] of the norm that each query and key head gets first, or null.
// What is stored is divided by k_scale or v_scale: ones but for a cache of FP8.
template <typename T>
__device__ void rope_kv_write(float *qkv, T *cache, const float *angles, const u32 *slots, const float *q_norm,
                              const float *k_norm, Heads heads, u32 stride, float eps, float k_scale, float v_scale) {
  follow();
  const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  const u32 row = blockIdx.x, half = heads.dim / 2;
  const float *cosines = angles + size_t(row) * heads.dim, *sines = cosines + half;
  const u32 slot = slots[row];
  for (u32 head = warp; head < heads.queries + 2 * heads.keys; head += warps) {
    float *x = qkv + size_t(row) * stride + size_t(head) * heads.dim;
    const bool is_query = head < heads.queries, is_value = head >= heads.queries + heads.keys;
    const float *norm = is_query ? q_norm : is_value ? nullptr : k_norm;
    float scale = 1.0f;
    if (norm != nullptr) {
      float sum = 0.0f;
      for (u32 i = lane; i < heads.dim; i += WARP) sum += x[i] * x[i];
      scale = rsqrtf(warp_sum(sum) / heads.dim + eps);
    }
    const u32 kv_head = (head - heads.queries) % heads.keys;
    const u32 width = width_of<T>(heads.dim);
    T *place = cache + (size_t(slot / BLOCK_SIZE) * 2 + is_value) * heads.keys * BLOCK_SIZE * width +
               (size_t(kv_head) * BLOCK_SIZE + slot % BLOCK_SIZE) * width;
    float low[PAIRS], high[PAIRS];
#pragma unroll
    for (u32 p = 0; p < PAIRS; ++p) {
      const u32 i = p * WARP + lane;
      if (i >= half) break;
      low[p] = x[i];
      high[p] = x[half + i];
      if (norm != nullptr) {
        low[p] = low[p] * scale * norm[i];
        high[p] = high[p] * scale * norm[half + i];
      }
      if (!is_value) {
        const float a = low[p], b = high[p];
        low[p] = a * cosines[i] - b * sines[i];
        high[p] = b * cosines[i] + a * sines[i];
      }
      if (is_query) {
        x[i] = low[p];
        x[half + i] = high[p];
      } else if constexpr (SCALE_BYTES<T> == 0) {
        const float stored = is_value ? v_scale : k_scale;
        place[i] = narrow<T>(low[p] / stored);
        place[half + i] = narrow<T>(high[p] / stored);
      }
    }
    if constexpr (SCALE_BYTES<T> > 0)
      if (!is_query) store_q8(place, low, high, heads.dim);
  }
}

#define ROPE_KV_WRITE(name, T)                                                                                        \
  KERNEL(name, float *qkv, T *cache, const float *angles, const u32 *slots, const float *q_norm,                      \
         const float *k_norm, Heads heads, u32 stride, float eps, float k_scale, float v_scale) {                     \
    rope_kv_write(qkv, cache, angles, slots, q_norm, k_norm, heads, stride, eps, k_scale, v_scale);                   \
  }
ROPE_KV_WRITE(rope_kv_write_f32, float)
ROPE_KV_WRITE(rope_kv_write_f16, f16)
ROPE_KV_WRITE(rope_kv_write_bf16, bf16)
ROPE_KV_WRITE(rope_kv_write_f8e4m3, fp8)
ROPE_KV_WRITE(rope_kv_write_u8, q8)
