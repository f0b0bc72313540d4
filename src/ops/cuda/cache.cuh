// The paged cache of keys and values: its blocks, and how a head's numbers of one token lie in a row of it.
#pragma once
#include "device.cuh"

constexpr u32 BLOCK_SIZE = 16; // positions of a cache block, as in ops/paged_attention.rs

// Of rows of 8 bits (ops/cpu/q8.rs): codes, and behind them the scale of all of them. In kernels' names u8.
struct q8 {
  signed char code;
};
template <typename T> constexpr u32 SCALE_BYTES = 0;
template <> constexpr u32 SCALE_BYTES<q8> = sizeof(float);

// Elements from one row to the next.
template <typename T> __device__ inline u32 width_of(u32 dim) { return dim + SCALE_BYTES<T>; }

// Eight neighbouring numbers of a row, as they are stored.
template <typename T> struct Stored {
  Eight<T> x;
  __device__ inline float operator[](u32 e) const { return widen(x.x[e]); }
};
template <> struct Stored<q8> {
  u32 codes[2];
  float scale;
  __device__ inline float operator[](u32 e) const { return float((signed char)(codes[e / 4] >> e % 4 * 8)) * scale; }
};

// The numbers from d on, a multiple of eight.
template <typename T> __device__ inline Stored<T> stored(const T *row, u32 d, u32) { return {eight(row + d)}; }
template <> __device__ inline Stored<q8> stored(const q8 *row, u32 d, u32 dim) {
  const u32 *codes = (const u32 *)(row + d); // rows begin at four bytes
  return {{codes[0], codes[1]}, *(const float *)(row + dim)};
}
