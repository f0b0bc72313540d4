// What attention's kernels share with ops/paged_attention.rs.
#pragma once
#include "device.cuh"

constexpr u32 BLOCK_SIZE = 16; // positions of a cache block

// As AttentionSpan there.
struct Span {
  u32 first_row, rows, first_position, block_table;
};
