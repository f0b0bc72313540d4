// What attention's kernels share with ops/paged_attention.rs.
#pragma once
#include "cache.cuh"

constexpr float LOWEST = -1.0e30f; // below any score, and still a number when it is scaled

// cap * tanh(x / cap), or x where the cap is 0.
__device__ inline float soft_capped(float x, float cap) { return cap > 0.0f ? cap * tanhf(x / cap) : x; }

// Of a head's sink, e^(sink - maximum), where the maximum is in units of log2(e): it takes its part of the softmax and
// has no value. 0 where there are none.
__device__ inline float sink_share(const float *sinks, u32 head, float maximum) {
  return sinks == nullptr ? 0.0f : quick_exp2(fmaf(sinks[head], LOG2_E, -maximum));
}

// As AttentionSpan there.
struct Span {
  u32 first_row, rows, first_position, block_table;
};
