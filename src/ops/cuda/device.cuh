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
#include <cuda_fp8.h>
typedef __nv_bfloat16 bf16;
typedef __half f16;
typedef __nv_fp8_e4m3 fp8; // in kernels' names f8e4m3
#define KERNEL(name, ...) extern "C" __global__ void name(__VA_ARGS__)
// For so many threads, of which the registers of a multiprocessor are to hold so many blocks.
#define BOUNDED_KERNEL(threads, blocks, name, ...)                                                                    \
  extern "C" __global__ void __launch_bounds__(threads, blocks) name(__VA_ARGS__)
__device__ inline char *shared() {
  extern __shared__ __align__(16) char dynamic_shared[];
  return dynamic_shared;
}
__device__ inline float widen(bf16 x) { return __bfloat162float(x); }
__device__ inline float widen(f16 x) { return __half2float(x); }
__device__ inline float widen(fp8 x) { return float(x); }
// 2^x to two units in the last place; 0 where that is less than the smallest normal number.
__device__ inline float quick_exp2(float x) {
  asm("ex2.approx.ftz.f32 %0, %0;" : "+f"(x));
  return x;
}
__device__ inline void widen_two(float *to, const fp8 *from) {
  const float2 two = __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(*(const __nv_fp8x2_storage_t *)from, __NV_E4M3)));
  to[0] = two.x;
  to[1] = two.y;
}
// Into the second-level cache, a line of LINE_BYTES.
__device__ inline void prefetch(const void *at) { asm volatile("prefetch.global.L2 [%0];" : : "l"(at)); }
// What every kernel begins with. Launched in the ordinary way it does nothing; launched before the kernel in front of
// it has ended (programmatic dependent launch) it lets the next one in, and waits until everything in front is done
// and seen. Before it nothing may be read that a kernel writes, and nothing written.
__device__ inline void follow() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
  asm volatile("griddepcontrol.wait;" : : : "memory");
#endif
}
template <typename T> __device__ inline T narrow(float x);
template <> __device__ inline bf16 narrow<bf16>(float x) { return __float2bfloat16_rn(x); }
template <> __device__ inline f16 narrow<f16>(float x) { return __float2half_rn(x); }
// To the nearest, ties to even; beyond 448 it is 448, NaN stays NaN.
template <> __device__ inline fp8 narrow<fp8>(float x) { return fp8(x); }
#endif

typedef unsigned int u32;
typedef unsigned long long u64;

__device__ inline float widen(float x) { return x; }
template <typename T> __device__ inline void widen_two(float *to, const T *from) {
  to[0] = widen(from[0]);
  to[1] = widen(from[1]);
}
template <> __device__ inline float narrow<float>(float x) { return x; }

constexpr u32 WARP = 32;
constexpr u32 LINE_BYTES = 128;
constexpr u32 ALL_LANES = 0xffffffffu;
constexpr float LOG2_E = 1.44269504f;

struct alignas(16) Four {
  float x[4];
};
// Two or four neighbouring elements, stored at once.
template <typename T> struct alignas(sizeof(T) * 2) Pair {
  T x[2];
};
template <typename T> struct alignas(sizeof(T) * 4) Quad {
  T x[4];
};
template <typename T> __device__ inline void store(T *to, const Four &x) {
  *(Quad<T> *)to = {narrow<T>(x.x[0]), narrow<T>(x.x[1]), narrow<T>(x.x[2]), narrow<T>(x.x[3])};
}
// Eight neighbouring elements, read in one or two accesses of 16 bytes (eight bytes for elements of one).
template <typename T> struct alignas(sizeof(T) * 8 < 16 ? sizeof(T) * 8 : 16) Eight {
  T x[8];
};
template <typename T> __device__ inline Eight<T> eight(const T *from) { return *(const Eight<T> *)from; }

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
