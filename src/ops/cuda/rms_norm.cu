// RMS normalisation (arXiv 1910.07467), a block a row; a row's result depends on the row alone.
#include "device.cuh"

// 1 / rms of a row, for every thread of its block.
__device__ float inverse_rms(const float *row, u32 width, float eps) {
  float sum = 0.0f;
  for (u32 i = threadIdx.x; i < width; i += blockDim.x) sum += row[i] * row[i];
  return rsqrtf(block_sum(sum, (float *)shared()) / width + eps);
}

// dst[row] = src[row] / rms(src[row]) * weight. src: f32 [rows, width], weight: f32 [width], dst: T [rows, width].
template <typename T>
__device__ void rms_norm(T *dst, const float *src, const float *weight, u32 width, float eps) {
  follow();
  const float *row = src + size_t(blockIdx.x) * width;
  T *out = dst + size_t(blockIdx.x) * width;
  const float scale = inverse_rms(row, width, eps);
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

// dst[row] += src[row] / rms(src[row]) * weight; all f32 [rows, width].
KERNEL(add_normed_f32, float *dst, const float *src, const float *weight, u32 width, float eps) {
  follow();
  const float *row = src + size_t(blockIdx.x) * width;
  float *out = dst + size_t(blockIdx.x) * width;
  const float scale = inverse_rms(row, width, eps);
  for (u32 i = threadIdx.x; i < width; i += blockDim.x) out[i] += row[i] * scale * weight[i];
}

// dst[row] = src[row], where another model has a norm; src: f32 [rows, width], dst: T [rows, width].
template <typename T>
__device__ void as_is(T *dst, const float *src, u32 width) {
  follow();
  const size_t row = size_t(blockIdx.x) * width;
  for (u32 i = threadIdx.x; i < width; i += blockDim.x) dst[row + i] = narrow<T>(src[row + i]);
}

KERNEL(as_is_f32, float *dst, const float *src, const float *, u32 width, float) { as_is(dst, src, width); }
KERNEL(as_is_f16, f16 *dst, const float *src, const float *, u32 width, float) { as_is(dst, src, width); }
KERNEL(as_is_bf16, bf16 *dst, const float *src, const float *, u32 width, float) { as_is(dst, src, width); }

// The first two parts of a row normed in place, blockIdx.y which; f32 [rows, stride], each part as wide as its weight.
KERNEL(norm_sides, float *rows, const float *first, const float *second, u32 first_width, u32 second_width, u32 stride,
       float eps) {
  follow();
  const bool is_second = blockIdx.y != 0;
  const u32 width = is_second ? second_width : first_width;
  const float *weight = is_second ? second : first;
  float *row = rows + size_t(blockIdx.x) * stride + (is_second ? first_width : 0);
  const float scale = inverse_rms(row, width, eps);
  for (u32 i = threadIdx.x; i < width; i += blockDim.x) row[i] = row[i] * scale * weight[i];
}
