// What the product needs of Hopper beyond device.cuh: copies into shared memory that run on their own, pairs of floats.
#ifndef WORDS_CUH  // defined by what stands in for this file on a CPU: tests/gemv_host/words.hpp
#define WORDS_CUH

// ---- 16 bytes on their way into shared memory; a group of them is what a thread asked for since the last one

__device__ __forceinline__ void copy16(u32 to, const char* from) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
__device__ __forceinline__ void end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>  // until all groups of this thread but the last N are there
__device__ __forceinline__ void await_groups() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// ---- pairs of 16-bit floats in a word

__device__ __forceinline__ u32 fma_pairs(u32 x, u32 factor, u32 added) {
  u32 y;
  asm("fma.rn." ELEMENT "x2 %0, %1, %2, %3;" : "=r"(y) : "r"(x), "r"(factor), "r"(added));
  return y;
}

__device__ __forceinline__ int from_lane(int x, int lane) { return __shfl_sync(WARP, x, lane); }
__device__ __forceinline__ float exp_fast(float x) { return __expf(x); }
__device__ __forceinline__ float reciprocal_root(float x) { return rsqrtf(x); }
__device__ __forceinline__ void sync_warp() { __syncwarp(); }

#endif
