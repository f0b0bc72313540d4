// Numbers one by one: the gated activation of the feed-forward network, and the cap of logits.
#include "device.cuh"

__device__ inline float silu(float x) { return x / (1.0f + expf(-x)); }

// By the tanh approximation: x times the sigmoid of 2 sqrt(2 / pi) (x + 0.044715 x^3).
__device__ inline float gelu_tanh(float x) {
  return x / (1.0f + expf(-1.5957691f * (x + 0.044715f * x * x * x)));
}

// src: f32 [rows, 2 * width], gate before up; dst: T [rows, width]. A thread an element; blockIdx.x is the row, of
// which there may be more than the other axes take.
template <float (*ACTIVATION)(float), typename T> __device__ void gate_mul(T *dst, const float *src, u32 width) {
  follow();
  const u32 i = blockIdx.y * blockDim.x + threadIdx.x;
  if (i >= width) return;
  const float *row = src + size_t(blockIdx.x) * 2 * width;
  dst[size_t(blockIdx.x) * width + i] = narrow<T>(ACTIVATION(row[i]) * row[width + i]);
}

KERNEL(silu_mul_f32, float *dst, const float *src, u32 width) { gate_mul<silu>(dst, src, width); }
KERNEL(silu_mul_f16, f16 *dst, const float *src, u32 width) { gate_mul<silu>(dst, src, width); }
KERNEL(silu_mul_bf16, bf16 *dst, const float *src, u32 width) { gate_mul<silu>(dst, src, width); }
KERNEL(gelu_tanh_mul_f32, float *dst, const float *src, u32 width) { gate_mul<gelu_tanh>(dst, src, width); }
KERNEL(gelu_tanh_mul_f16, f16 *dst, const float *src, u32 width) { gate_mul<gelu_tanh>(dst, src, width); }
KERNEL(gelu_tanh_mul_bf16, bf16 *dst, const float *src, u32 width) { gate_mul<gelu_tanh>(dst, src, width); }

// x: f32 [rows, width], in place; blockIdx.x is the row.
KERNEL(soft_cap, float *x, u32 width, float cap) {
  follow();
  const u32 i = blockIdx.y * blockDim.x + threadIdx.x;
  if (i >= width) return;
  float *at = x + size_t(blockIdx.x) * width + i;
  *at = cap * tanhf(*at / cap);
}
