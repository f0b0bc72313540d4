// Numbers one by one: the gated activation of the feed-forward network, and the cap of logits.
#include "device.cuh"

__device__ inline float silu_mul(float gate, float up) { return gate / (1.0f + expf(-gate)) * up; }

// By the tanh approximation: x times the sigmoid of 2 sqrt(2 / pi) (x + 0.044715 x^3).
__device__ inline float gelu_tanh_mul(float x, float up) {
  return x / (1.0f + expf(-1.5957691f * (x + 0.044715f * x * x * x))) * up;
}

// gpt-oss: as ops/activation.rs. What is no number stays none.
__device__ inline float clamped_swiglu_mul(float gate, float up) {
  constexpr float ALPHA = 1.702f, LIMIT = 7.0f;
  gate = gate > LIMIT ? LIMIT : gate;
  up = up > LIMIT ? LIMIT : up < -LIMIT ? -LIMIT : up;
  return gate / (1.0f + expf(-ALPHA * gate)) * (up + 1.0f);
}

// src: f32 [rows, 2 * width], gate before up; dst: T [rows, width]. A thread an element; blockIdx.x is the row, of
// which there may be more than the other axes take.
template <float (*ACTIVATION)(float, float), typename T> __device__ void gate_mul(T *dst, const float *src, u32 width) {
  follow();
  const u32 i = blockIdx.y * blockDim.x + threadIdx.x;
  if (i >= width) return;
  const float *row = src + size_t(blockIdx.x) * 2 * width;
  dst[size_t(blockIdx.x) * width + i] = narrow<T>(ACTIVATION(row[i], row[width + i]));
}

#define GATE_MUL(ACTIVATION, NAME, T)                                                                                  \
  KERNEL(ACTIVATION##_##NAME, T *dst, const float *src, u32 width) { gate_mul<ACTIVATION>(dst, src, width); }
#define GATE_MUL_OF_TYPES(ACTIVATION)                                                                                 \
  GATE_MUL(ACTIVATION, f32, float) GATE_MUL(ACTIVATION, f16, f16) GATE_MUL(ACTIVATION, bf16, bf16)
GATE_MUL_OF_TYPES(silu_mul)
GATE_MUL_OF_TYPES(gelu_tanh_mul)
GATE_MUL_OF_TYPES(clamped_swiglu_mul)

// x: f32 [rows, width], in place; blockIdx.x is the row.
KERNEL(soft_cap, float *x, u32 width, float cap) {
  follow();
  const u32 i = blockIdx.y * blockDim.x + threadIdx.x;
  if (i >= width) return;
  float *at = x + size_t(blockIdx.x) * width + i;
  *at = cap * tanhf(*at / cap);
}
