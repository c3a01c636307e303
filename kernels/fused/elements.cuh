// Keys and values: as they are stored, and as the matrix units take them.
#pragma once
#include "layout.cuh"

__device__ __forceinline__ float2 scaled(float2 x, float scale) { return {x.x * scale, x.y * scale}; }

// Two elements of a new token as they are stored in e4m3: over the scale, a power of two, so that nothing is rounded twice.
__device__ __forceinline__ u16 over_scale(u32 x, float scale) {
  const float2 y = scaled(unpack(x), 1 / scale);
  return pack_e4m3(y.x, y.y);
}

// What is read of them later.
__device__ __forceinline__ float2 as_stored(u32 x, float scale) {
  return KV8 ? scaled(unpack_e4m3(over_scale(x, scale)), scale) : unpack(x);
}

// 16 bytes of a key or value as operands of the matrix units: as they are, or of e4m3 in fp16, 8 elements each.
__device__ __forceinline__ void operands(uint4 x, uint4 (&y)[2 / KV_BYTES]) {
  if (!KV8) {
    y[0] = x;
    return;
  }
  y[0] = {widen_e4m3(x.x), widen_e4m3(x.x >> 16), widen_e4m3(x.y), widen_e4m3(x.y >> 16)};
  y[2 / KV_BYTES - 1] = {widen_e4m3(x.z), widen_e4m3(x.z >> 16), widen_e4m3(x.w), widen_e4m3(x.w >> 16)};
}
