// Picking rows: token embeddings out of a table, and the rows that need logits out of a step.
#include "device.cuh"

// dst[row] = table[ids[row]], widened; a block a row. table: [vocab, width], dst: f32 [rows, width].
template <typename T>
__device__ void gather(float *dst, const T *table, const u32 *ids, u32 width) {
  const T *from = table + size_t(ids[blockIdx.x]) * width;
  float *to = dst + size_t(blockIdx.x) * width;
  for (u32 i = threadIdx.x; i < width; i += blockDim.x) to[i] = widen(from[i]);
}

KERNEL(gather_f32, float *dst, const float *table, const u32 *ids, u32 width) { gather(dst, table, ids, width); }
KERNEL(gather_f16, float *dst, const f16 *table, const u32 *ids, u32 width) { gather(dst, table, ids, width); }
KERNEL(gather_bf16, float *dst, const bf16 *table, const u32 *ids, u32 width) { gather(dst, table, ids, width); }
