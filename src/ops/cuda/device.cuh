// What every kernel needs: element types, reductions, and the names that differ on a host.
//
// A kernel is declared by KERNEL(name, parameters...), takes plain pointers and numbers, and works in the
// dynamic shared memory `shared()` alone. With HASHWATT_ON_HOST the same source is compiled by a C++ compiler
// and run by on_host.h, a block's threads as fibers in shuffled order.
#pragma once

#ifdef HASHWATT_ON_HOST
#include "on_host.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
typedef __nv_bfloat16 bf16;
typedef __half f16;
#define KERNEL(name, ...) extern "C" __global__ void name(__VA_ARGS__)
__device__ inline char *shared() {
  extern __shared__ __align__(16) char dynamic_shared[];
  return dynamic_shared;
}
__device__ inline float widen(bf16 x) { return __bfloat162float(x); }
__device__ inline float widen(f16 x) { return __half2float(x); }
template <typename T> __device__ inline T narrow(float x);
template <> __device__ inline bf16 narrow<bf16>(float x) { return __float2bfloat16_rn(x); }
template <> __device__ inline f16 narrow<f16>(float x) { return __float2half_rn(x); }
#endif

typedef unsigned int u32;
typedef unsigned long long u64;

__device__ inline float widen(float x) { return x; }
template <> __device__ inline float narrow<float>(float x) { return x; }

constexpr u32 WARP = 32;
constexpr u32 ALL_LANES = 0xffffffffu;

// Sum over a warp, the same in every lane and in the same order whatever the data.
__device__ inline float warp_sum(float x) {
  for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
  return x;
}

__device__ inline float warp_max(float x) {
  for (int step = WARP / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, step));
  return x;
}

// Sum over a block of whole warps; `scratch` holds a float a warp, and is free again after the next barrier.
__device__ inline float block_sum(float x, float *scratch) {
  const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  x = warp_sum(x);
  if (lane == 0) scratch[warp] = x;
  __syncthreads();
  return warp_sum(lane < warps ? scratch[lane] : 0.0f);
}
