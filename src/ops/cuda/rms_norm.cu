// RMS normalisation (arXiv 1910.07467), a block a row; a row's result depends on the row alone.
#include "device.cuh"

// dst[row] = src[row] / rms(src[row]) * weight. src: f32 [rows, width], weight: f32 [width], dst: T [rows, width].
template <typename T>
__device__ void rms_norm(T *dst, const float *src, const float *weight, u32 width, float eps) {
  follow();
  const float *row = src + size_t(blockIdx.x) * width;
  T *out = dst + size_t(blockIdx.x) * width;
  float sum = 0.0f;
  for (u32 i = threadIdx.x; i < width; i += blockDim.x) sum += row[i] * row[i];
  const float scale = rsqrtf(block_sum(sum, (float *)shared()) / width + eps);
  for (u32 i = threadIdx.x; i < width; i += blockDim.x) out[i] = narrow<T>(row[i] * scale * weight[i]);
}

KERNEL(rms_norm_f32, float *dst, const float *src, const float *weight, u32 width, float eps) {
  rms_norm(dst, src, weight, width, eps);
}
KERNEL(rms_norm_f16, f16 *dst, const float *src, const float *weight, u32 width, float eps) {
  rms_norm(dst, src, weight, width, eps);
}
KERNEL(rms_norm_bf16, bf16 *dst, const float *src, const float *weight, u32 width, float eps) {
  rms_norm(dst, src, weight, width, eps);
}
