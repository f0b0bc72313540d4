// Entries of a row in the order of their size, as whole numbers.
#pragma once
#include "device.cuh"

// A number of the same order as the float, and back.
__device__ inline u32 key_of(float x) {
  const u32 bits = __float_as_uint(x);
  return bits >> 31 ? ~bits : bits | 1u << 31;
}
__device__ inline float of_key(u32 key) { return __uint_as_float(key >> 31 ? key ^ 1u << 31 : ~key); }

// Larger for a larger entry, and among equals for the one that comes first; 0 for none.
__device__ inline u64 rank_of(float x, u32 index) { return u64(key_of(x)) << 32 | u32(~index); }

__device__ inline u64 larger(u64 a, u64 b) { return a > b ? a : b; }

// Of a warp, in every lane.
__device__ inline u64 warp_largest(u64 x) {
  for (int step = WARP / 2; step > 0; step /= 2) x = larger(x, __shfl_xor_sync(ALL_LANES, x, step));
  return x;
}
