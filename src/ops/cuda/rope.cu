// Rotary positions (arXiv 2104.09864, half-split layout) and the cache write, in one pass over a step's
// queries, keys and values.
#include "device.cuh"

constexpr u32 BLOCK_SIZE = 16; // positions of a cache block, as in ops/paged_attention.rs

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

struct Heads {
  u32 queries, keys, dim;
};

// One head a warp: blockIdx.x the row, warps over the heads of queries, keys and values in this order.
//
// qkv: f32 [rows, stride], turned in place where it holds queries; angles: f32 [rows, dim];
// cache: T [blocks, 2, keys, BLOCK_SIZE, dim], written where slots[row] = block * BLOCK_SIZE + offset says.
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
    T *place = cache + (size_t(slot / BLOCK_SIZE) * 2 + is_value) * heads.keys * BLOCK_SIZE * heads.dim +
               (size_t(kv_head) * BLOCK_SIZE + slot % BLOCK_SIZE) * heads.dim;
    for (u32 i = lane; i < half; i += WARP) {
      float low = x[i], high = x[half + i];
      if (norm != nullptr) {
        low = low * scale * norm[i];
        high = high * scale * norm[half + i];
      }
      if (!is_value) {
        const float a = low, b = high;
        low = a * cosines[i] - b * sines[i];
        high = b * cosines[i] + a * sines[i];
      }
      if (is_query) {
        x[i] = low;
        x[half + i] = high;
      } else {
        const float stored = is_value ? v_scale : k_scale;
        place[i] = narrow<T>(low / stored);
        place[half + i] = narrow<T>(high / stored);
      }
    }
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
