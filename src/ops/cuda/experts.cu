// Routed experts but for their products: which rows go where, and what a row takes of what its experts gave. The
// products of each expert's rows: grouped_gemv_* of gemv.cu and blocks.cu, grouped.cu.
#include "rank.cuh"

constexpr u32 CHOOSE_WARPS = 4, LAY_OUT_WARPS = 32; // as in ops/experts/kernels.rs

// Of each row, a warp's, its experts and the bits of their weights, the best first: u32 [rows, per_token] both.
// logits: f32 [rows, experts]. The weights add up to 1 where they are normalised, else over all experts they would.
KERNEL(route_choose, u32 *chosen, float *weights, const float *logits, u32 rows, u32 experts, u32 per_token,
       u32 normalised) {
  follow();
  const u32 row = blockIdx.x * CHOOSE_WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
  if (row >= rows) return;
  const float *own = logits + size_t(row) * experts;
  chosen += size_t(row) * per_token;
  weights += size_t(row) * per_token;
  u64 last = ~0ull;
  float largest = 0.0f, sum = 0.0f;
  for (u32 choice = 0; choice < per_token; ++choice) {
    u64 best = 0;
    for (u32 i = lane; i < experts; i += WARP) {
      const u64 rank = rank_of(own[i], i);
      if (rank < last) best = larger(best, rank);
    }
    last = warp_largest(best);
    const float logit = of_key(u32(last >> 32));
    if (choice == 0) largest = logit;
    const float raised = expf(logit - largest);
    sum += raised;
    if (lane == choice % WARP) {
      chosen[choice] = ~u32(last);
      weights[choice] = raised;
    }
  }
  if (!normalised) {
    sum = 0.0f;
    for (u32 i = lane; i < experts; i += WARP) sum += expf(own[i] - largest);
    sum = warp_sum(sum);
  }
  for (u32 choice = lane; choice < per_token; choice += WARP) weights[choice] /= sum;
}

// Of `chosen`, the expert of each row's choices, the rest of a route (ops/experts.rs), by one block. The places of an
// expert are in the order of their rows. shared: u32 [experts].
BOUNDED_KERNEL(LAY_OUT_WARPS * WARP, 1, route_lay_out, u32 *row_of, u32 *place_of, u32 *starts, u32 *taken,
               const u32 *chosen, u32 places, u32 experts, u32 per_token) {
  follow();
  const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, rounds = (places + WARP - 1) / WARP;
  u32 *counts = (u32 *)shared();
  auto votes = [&](u32 round, u32 expert) {
    const u32 at = round * WARP + lane;
    return __ballot_sync(ALL_LANES, at < places && chosen[at] == expert);
  };
  for (u32 expert = warp; expert < experts; expert += LAY_OUT_WARPS) {
    u32 count = 0;
#pragma unroll 4
    for (u32 round = 0; round < rounds; ++round) count += __popc(votes(round, expert));
    if (lane == 0) counts[expert] = count;
  }
  __syncthreads();
  for (u32 expert = threadIdx.x; expert <= experts; expert += LAY_OUT_WARPS * WARP) {
    u32 start = 0, used = 0;
    for (u32 i = 0; i < expert; ++i) {
      start += counts[i];
      used += counts[i] > 0;
    }
    starts[expert] = start;
    if (expert == experts)
      taken[0] = used;
    else if (counts[expert] > 0)
      taken[1 + used] = expert;
  }
  __syncthreads();
  for (u32 expert = warp; expert < experts; expert += LAY_OUT_WARPS) {
    if (counts[expert] == 0) continue;
    u32 next = starts[expert];
#pragma unroll 4
    for (u32 round = 0; round < rounds; ++round) {
      const u32 own = votes(round, expert), at = round * WARP + lane;
      if (own >> lane & 1) {
        const u32 place = next + __popc(own & ((1u << lane) - 1));
        place_of[at] = place;
        row_of[place] = at / per_token;
      }
      next += __popc(own);
    }
  }
}

// dst[place] = src[its row], by sixteen bytes, `width` of them a row; a block a place.
KERNEL(group_rows, Four *dst, const Four *src, const u32 *row_of, u32 width) {
  follow();
  const Four *from = src + size_t(row_of[blockIdx.x]) * width;
  Four *to = dst + size_t(blockIdx.x) * width;
  for (u32 i = threadIdx.x; i < width; i += blockDim.x) to[i] = from[i];
}

// dst[row] += the sum of weight * src[place] over the row's places, the first choice first. dst: f32 [rows, width];
// src: f32 [places, width]. A thread an element; blockIdx.x is the row.
KERNEL(combine, float *dst, const float *src, const u32 *place_of, const float *weights, u32 per_token, u32 width) {
  follow();
  const u32 i = blockIdx.y * blockDim.x + threadIdx.x;
  if (i >= width) return;
  const size_t first = size_t(blockIdx.x) * per_token;
  float sum = dst[size_t(blockIdx.x) * width + i];
  for (u32 choice = 0; choice < per_token; ++choice)
    sum = fmaf(weights[first + choice], src[size_t(place_of[first + choice]) * width + i], sum);
  dst[size_t(blockIdx.x) * width + i] = sum;
}

// dst[row] *= sigmoid(gate[row]); dst: T [rows, width]. A thread an element; blockIdx.x is the row.
template <typename T> __device__ void gate_rows(T *dst, const float *gates, u32 width) {
  follow();
  const u32 i = blockIdx.y * blockDim.x + threadIdx.x;
  if (i >= width) return;
  T *at = dst + size_t(blockIdx.x) * width + i;
  *at = narrow<T>(widen(*at) / (1.0f + expf(-gates[blockIdx.x])));
}
KERNEL(gate_rows_f32, float *dst, const float *gates, u32 width) { gate_rows(dst, gates, width); }
KERNEL(gate_rows_f16, f16 *dst, const float *gates, u32 width) { gate_rows(dst, gates, width); }
KERNEL(gate_rows_bf16, bf16 *dst, const float *gates, u32 width) { gate_rows(dst, gates, width); }
