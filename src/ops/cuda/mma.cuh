// Tensor cores and copies under way: what kernels of products say, for a device. A host's twins: mma_on_host.h.
//
// A fragment is a lane's share of a matrix, two elements a register, as mma.sync.m16n8k16 has them (PTX ISA,
// "Matrix Fragments for mma.m16n8k16"): lane l holds of A rows l/4 and l/4 + 8, columns 2(l%4), + 1, + 8, + 9; of B
// column l/4 and these rows; of C and D rows l/4 and l/4 + 8, columns 2(l%4), + 1.
#pragma once
#include "device.cuh"

#ifdef HASHWATT_ON_HOST
#include "mma_on_host.h"
#else

__device__ inline u32 shared_address(const void *p) { return (u32)__cvta_generic_to_shared(p); }

// Four matrices of 8 x 8 elements of two bytes: lane 8i + r names row r of matrix i, and gets of each matrix the
// elements 2(l%4), + 1 of row l/4.
__device__ inline void load_matrices(u32 (&to)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}
// The same of the transposed matrices: rows 2(l%4), + 1 of column l/4.
__device__ inline void load_matrices_transposed(u32 (&to)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}

// c[16, 8] += a[16, 16] * b[16, 8], accumulated in f32.
template <typename T> __device__ inline void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1);
template <> __device__ inline void multiply<bf16>(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <> __device__ inline void multiply<f16>(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two elements of a fragment, the first in the lower half.
template <typename T> __device__ inline u32 pack(float first, float second);
template <> __device__ inline u32 pack<bf16>(float first, float second) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(first, second);
  return *(const u32 *)&both;
}
template <> __device__ inline u32 pack<f16>(float first, float second) {
  const __half2 both = __floats2half2_rn(first, second);
  return *(const u32 *)&both;
}

// Starts to copy 16 bytes of global memory to shared memory, or to zero these where there is nothing; `from` is
// a valid address all the same.
__device__ inline void copy_ahead(void *to, const void *from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(there ? 16 : 0)
               : "memory");
}
// What this thread started since the last time is one group.
__device__ inline void close_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// This thread's copies are there, but for its last so many groups. For others' copies a barrier follows.
template <u32 GROUPS> __device__ inline void await_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
}
#endif
