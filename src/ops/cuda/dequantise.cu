// FP8 weights times their scales, for products that take them in the activations' type.
#include "device.cuh"

// dst: T [rows, k]; src: fp8 [rows, k]; scales: f32, one for each block of block_rows * block_cols weights, row
// after row of blocks. A block of threads a row.
template <typename T>
__device__ void dequantise(T *dst, const fp8 *src, const float *scales, u32 k, u32 block_rows, u32 block_cols) {
  follow();
  const size_t row = blockIdx.x;
  const float *of_row = scales + row / block_rows * ((k + block_cols - 1) / block_cols);
  for (u32 i = threadIdx.x; i < k; i += blockDim.x)
    dst[row * k + i] = narrow<T>(widen(src[row * k + i]) * of_row[i / block_cols]);
}

#define DEQUANTISE(name, T)                                                                                           \
  KERNEL(name, T *dst, const fp8 *src, const float *scales, u32 k, u32 block_rows, u32 block_cols) {                  \
    dequantise(dst, src, scales, k, block_rows, block_cols);                                                          \
  }
DEQUANTISE(dequantise_f32, float)
DEQUANTISE(dequantise_f16, f16)
DEQUANTISE(dequantise_bf16, bf16)
