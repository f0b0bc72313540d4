// Picking rows: token embeddings out of a table, and the rows that need logits out of a step.
#include "device.cuh"

constexpr u32 PENDING = 1u << 31;
constexpr u32 RESULT_WORDS = 44; // as in ops/sample.rs

// dst[row] = scale * table[ids[row]], widened; a block a row. table: [vocab, width], dst: f32 [rows, width].
// An id with the bit PENDING is the index of a row of `sampled`, which begins with the token.
template <typename T>
__device__ void gather(float *dst, const T *table, const u32 *ids, const u32 *sampled, u32 width,
                       float scale) {
  follow();
  u32 id = ids[blockIdx.x];
  if (id & PENDING) id = sampled[size_t(id & ~PENDING) * RESULT_WORDS];
  const T *from = table + size_t(id) * width;
  float *to = dst + size_t(blockIdx.x) * width;
  for (u32 i = threadIdx.x; i < width; i += blockDim.x) to[i] = widen(from[i]) * scale;
}

KERNEL(gather_f32, float *dst, const float *table, const u32 *ids, const u32 *sampled, u32 width,
       float scale) {
  gather(dst, table, ids, sampled, width, scale);
}
KERNEL(gather_f16, float *dst, const f16 *table, const u32 *ids, const u32 *sampled, u32 width,
       float scale) {
  gather(dst, table, ids, sampled, width, scale);
}
KERNEL(gather_bf16, float *dst, const bf16 *table, const u32 *ids, const u32 *sampled, u32 width,
       float scale) {
  gather(dst, table, ids, sampled, width, scale);
}
