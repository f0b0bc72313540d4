// The gated activation of the feed-forward network: silu(gate) * up.
#include "device.cuh"

// src: f32 [rows, 2 * width], gate before up; dst: T [rows, width]. A thread an element; blockIdx.x is the row, of
// which there may be more than the other axes take.
template <typename T> __device__ void silu_mul(T *dst, const float *src, u32 width) {
  follow();
  const u32 i = blockIdx.y * blockDim.x + threadIdx.x;
  if (i >= width) return;
  const float *row = src + size_t(blockIdx.x) * 2 * width;
  const float gate = row[i], up = row[width + i];
  dst[size_t(blockIdx.x) * width + i] = narrow<T>(gate / (1.0f + expf(-gate)) * up);
}

KERNEL(silu_mul_f32, float *dst, const float *src, u32 width) { silu_mul(dst, src, width); }
KERNEL(silu_mul_f16, f16 *dst, const float *src, u32 width) { silu_mul(dst, src, width); }
KERNEL(silu_mul_bf16, bf16 *dst, const float *src, u32 width) { silu_mul(dst, src, width); }
