// What kernels need of Hopper beyond plain C++: cluster shared memory, barriers that count bytes, matrix units.
#ifndef DEVICE_CUH  // defined by what stands in for this file on a CPU: tests/fused_host/emulator.hpp
#define DEVICE_CUH

using u16 = unsigned short;
using u32 = unsigned;
using u64 = unsigned long long;
using i64 = long long;

#if FP16
#define ELEMENT "f16"
#else
#define ELEMENT "bf16"
#endif
#if FP16 || KV8
#define OPERAND "f16"  // of the matrix units: e4m3 fits fp16
#else
#define OPERAND "bf16"
#endif

constexpr u32 WARP = 0xffffffffu;

// ---- a cluster's shared memory: a CTA writes into another one's, whose barrier counts the bytes that arrived

__device__ __forceinline__ char* dynamic_shared() {
  extern __shared__ __align__(16) char memory[];
  return memory;
}

__device__ __forceinline__ u32 shared_address(const void* p) { return static_cast<u32>(__cvta_generic_to_shared(p)); }

__device__ __forceinline__ u32 cluster_rank() {
  u32 rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// The address in CTA `rank` of what has shared address `a` in this one.
__device__ __forceinline__ u32 in_cta(u32 a, u32 rank) {
  u32 there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(a), "r"(rank));
  return there;
}

__device__ __forceinline__ void barrier_init(u32 barrier) {
  asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void publish_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ __forceinline__ void expect_bytes(u32 barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Acquires within the CTA, which is enough: what is sent lies in its own shared memory.
__device__ __forceinline__ void await_bytes(u32 barrier) {
  asm volatile(
      "{\n.reg .pred done;\nTRY%=: mbarrier.try_wait.parity.shared.b64 done, [%0], 0;\n@!done bra TRY%=;\n}" ::"r"(barrier)
      : "memory");
}

__device__ __forceinline__ void send(u32 to, u32 x, u32 barrier) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(to), "r"(x),
               "r"(barrier)
               : "memory");
}

__device__ __forceinline__ void send(u32 to, u32 x, u32 y, u32 barrier) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.u32 [%0], {%1, %2}, [%3];" ::"r"(to),
               "r"(x), "r"(y), "r"(barrier)
               : "memory");
}

__device__ __forceinline__ void send(u32 to, uint4 x, u32 barrier) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.u32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
               "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w), "r"(barrier)
               : "memory");
}

__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// A barrier of so many threads of the CTA, whole warps; its number is 1 to 15, for 0 is __syncthreads.
__device__ __forceinline__ void sync_threads_of(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
// The same, without waiting: others who wait there see what this thread wrote before.
__device__ __forceinline__ void arrive_at(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// ---- launches that overlap (programmatic dependent launch): a step may start before the kernel before it has ended

// Until all that the kernel before wrote is there; at once where there is none that may overlap.
__device__ __forceinline__ void await_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
// The next kernel may start as soon as all CTAs have said so, and multiprocessors have room.
__device__ __forceinline__ void release_next() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// ---- loads that are issued where they stand

__device__ __forceinline__ uint4 load16(const char* p) {
  uint4 x;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(p));
  return x;
}

__device__ __forceinline__ u32 load4(const void* p) {
  u32 x;
  asm volatile("ld.global.u32 %0, [%1];" : "=r"(x) : "l"(p));
  return x;
}

// 4 bytes on their way into shared memory, for the thread that asked, once it has awaited its copies.
__device__ __forceinline__ void copy4(u32* to, const char* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
__device__ __forceinline__ void await_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// ---- words that clusters publish in the L2, each beside the number of its step: one access of 8 bytes holds both, so
// nothing has to be ordered, and nothing to be cleared for the next step

__device__ __forceinline__ void publish(u64* to, u32 x, u32 step) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(u64(step) << 32 | x) : "memory");
}

// All words of this step, asked for together, and again until the last one is there.
template <int N>
__device__ __forceinline__ void await_published(const u64* const (&at)[N], u32 (&x)[N], u32 step) {
  bool all;
  do {
    u64 words[N];
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(words[i]) : "l"(at[i]) : "memory");
    all = true;
#pragma unroll
    for (int i = 0; i < N; i++) all &= words[i] >> 32 == step, x[i] = u32(words[i]);
  } while (!all);
}

// ---- pairs of 16-bit or 8-bit floats in a word

__device__ __forceinline__ float2 unpack(u32 x) {
#if FP16
  float2 f;
  asm("{.reg .b16 l, h;\nmov.b32 {l, h}, %2;\ncvt.f32.f16 %0, l;\ncvt.f32.f16 %1, h;}" : "=f"(f.x), "=f"(f.y) : "r"(x));
  return f;
#else
  return make_float2(__uint_as_float(x << 16), __uint_as_float(x & 0xffff0000u));
#endif
}

__device__ __forceinline__ u32 pack(float low, float high) {
  u32 x;
  asm("cvt.rn." ELEMENT "x2.f32 %0, %1, %2;" : "=r"(x) : "f"(high), "f"(low));
  return x;
}

__device__ __forceinline__ u32 pack_operand(float low, float high) {
  u32 x;
  asm("cvt.rn." OPERAND "x2.f32 %0, %1, %2;" : "=r"(x) : "f"(high), "f"(low));
  return x;
}

__device__ __forceinline__ u32 widen_e4m3(u16 x) {  // to fp16
  u32 half;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(half) : "h"(x));
  return half;
}

__device__ __forceinline__ float2 unpack_e4m3(u16 x) {
  const u32 half = widen_e4m3(x);
  float2 f;
  asm("{.reg .b16 l, h;\nmov.b32 {l, h}, %2;\ncvt.f32.f16 %0, l;\ncvt.f32.f16 %1, h;}"
      : "=f"(f.x), "=f"(f.y)
      : "r"(half));
  return f;
}

__device__ __forceinline__ u16 pack_e4m3(float low, float high) {  // saturates at 448
  u16 x;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(x) : "f"(high), "f"(low));
  return x;
}

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// ---- matrix units: c [16, 8] += a [16, 16] b [16, 8]. Of lane l, r = l / 4 and t = l % 4: a0 to a3 hold rows r, r + 8,
// r, r + 8 at columns 2t and 2t + 1 (a0, a1) and eight further (a2, a3); b0, b1 hold column r at rows 2t, 2t + 1 and
// eight further; c holds row r at columns 2t and 2t + 1, then row r + 8.

__device__ __forceinline__ void multiply(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." OPERAND "." OPERAND
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// An 8 x 8 tile of 16-bit elements, row r of it in lanes 4r to 4r + 3, transposed.
__device__ __forceinline__ u32 transpose(u32 x) {
  u32 y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

#endif
