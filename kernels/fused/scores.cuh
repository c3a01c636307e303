// Scores of blocks: their sums over lanes, and their order as integers.
#pragma once
#include "layout.cuh"

// fp32 scores as unsigned integers in the same order; NaN, which nobody should send, counts as +inf, so that every step
// finds n blocks and ends.
__device__ __forceinline__ u32 order_key(float score) {
  const u32 bits = __float_as_uint(fminf(score, __uint_as_float(INFINITE)) + 0.0f);  // no -0
  return bits ^ (static_cast<u32>(static_cast<int>(bits) >> 31) | 0x80000000u);
}

// Sums over the BLOCK_LANES lanes of a block, scattered over them: afterwards x[0 .. left - 1] of a lane are complete
// sums, those of scores which * left and up.
__device__ __forceinline__ void reduce_scatter(float (&x)[SCORES], int lane, int& left, int& which) {
  left = SCORES;
  which = 0;
#pragma unroll
  for (int distance = BLOCK_LANES / 2; distance; distance /= 2) {
    if (left == 1) {
      x[0] += __shfl_xor_sync(WARP, x[0], distance);
      continue;
    }
    left /= 2;
    const bool upper = lane & distance;
#pragma unroll
    for (int i = 0; i < SCORES / 2; i++) {
      if (i >= left) break;
      const float give = upper ? x[i] : x[i + left], keep = upper ? x[i + left] : x[i];
      x[i] = keep + __shfl_xor_sync(WARP, give, distance);
    }
    which = 2 * which + upper;
  }
}
