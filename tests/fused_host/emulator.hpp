// The fused step on a CPU: what kernels/cuda/device.cuh gives it on a GPU, and what CUDA itself does, in plain C++.
//
// A CUDA thread is a coroutine; it runs until it waits for others (a barrier, a collective of its warp, bytes from
// another CTA). Which one runs next is drawn from a seed; now and then a warp stands still until no other gets on. What is
// sent to another CTA arrives late, in any order: a thread that reads before its barrier has counted the bytes reads the
// poison that shared memory is filled with. What a cluster publishes arrives late, too. All clusters of a row run side by
// side. What the kernel before writes may arrive late as well (`previous`): a thread that has not awaited it reads poison.

#define DEVICE_CUH  // its place is taken

#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

using u16 = unsigned short;
using u32 = unsigned;
using u64 = unsigned long long;
using i64 = long long;
using std::max;
using std::min;

#define __device__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __align__(n) alignas(n)
#define __cluster_dims__(...)
#define __launch_bounds__(...)

struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
struct uint4 { u32 x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }

constexpr u32 WARP = 0xffffffffu;

namespace emulator {

constexpr int STACK_BYTES = 96 * 1024, LANES = 32;
constexpr u32 CTA_SPAN = 1u << 20;  // shared addresses of a CTA

struct Barrier { i64 expected = 0, received = 0; bool armed = false; };  // counts bytes

struct Warp {  // a collective: each lane leaves a word, the last one lets all go on
  u32 words[2][LANES][4];
  int arrived = 0, generation = 0;
};

struct Meeting { int arrived = 0, generation = 0, threads = 0; };

struct Cta {
  std::vector<char> memory;
  std::vector<Warp> warps;
  std::vector<Barrier> barriers;  // by shared address / 8
  Meeting meetings[16];
  int live = 0;  // threads that have not ended
};

struct Message { u32 to, barrier; int bytes; u32 words[4]; };

struct Cluster;

struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Cluster* cluster;
  int cta, tid;
  bool done = false, awaited = false;  // the kernel before
  std::function<bool()> ready;  // what it waits for, if it waits
  std::vector<std::pair<u32*, u32>> copies;  // on their way into shared memory
};

struct Cluster {
  std::vector<Cta> ctas;
  std::vector<Message> under_way;
  int arrived = 0, index = 0, threads = 0;
};

struct Published { u64* to; u64 word; };

inline std::vector<Published> published;  // under way
inline i64 steps;                         // changes whenever somebody got on
inline Cluster* cluster;
inline Thread* running;
inline ucontext_t scheduler;
inline std::function<void()>* body;
inline std::function<void()> previous;  // writes what the kernel before this one leaves; empty once that has ended
inline std::vector<std::pair<const char*, const char*>> readable;  // ranges of global memory; none: all of it
inline bool broken;                                                // a rule that a GPU does not check either

inline void require(bool kept, const char* rule) {
  if (!kept && !broken) std::fprintf(stderr, "broken: %s\n", rule);
  broken |= !kept;
}
inline void check_read(const char* p, int bytes) {
  require(reinterpret_cast<std::uintptr_t>(p) % bytes == 0, "an address is a multiple of the bytes that are read there");
  bool inside = readable.empty();
  for (const auto& [start, end] : readable) inside |= start <= p && p + bytes <= end;
  require(inside, "a read stays inside its tensor");
}

inline Cta& cta() { return cluster->ctas[running->cta]; }

template <class Ready>
void wait_for(Ready ready) {
  if (!ready()) {
    running->ready = std::ref(ready);
    swapcontext(&running->context, &scheduler);
    running->ready = nullptr;
  }
  steps++;
}

inline char* at(u32 shared) {
  std::vector<char>& memory = cluster->ctas[shared / CTA_SPAN].memory;
  require(shared % CTA_SPAN < memory.size(), "a write stays inside shared memory");
  return memory.data() + shared % CTA_SPAN;
}
inline Barrier& barrier_at(u32 shared) { return cluster->ctas[shared / CTA_SPAN].barriers[shared % CTA_SPAN / 8]; }

// All lanes' words, after each has left its own.
inline const u32 (*exchange(u32 a, u32 b = 0, u32 c = 0, u32 d = 0))[4] {
  Warp& warp = cta().warps[running->tid / LANES];
  const int generation = warp.generation;
  u32* own = warp.words[generation % 2][running->tid % LANES];
  own[0] = a, own[1] = b, own[2] = c, own[3] = d;
  if (++warp.arrived == LANES) warp.arrived = 0, warp.generation++;
  wait_for([&] { return warp.generation != generation; });
  return warp.words[generation % 2];
}

template <class T>
T take(std::vector<T>& from, size_t i) {
  const T x = from[i];
  from[i] = from.back();
  from.pop_back();
  steps++;
  return x;
}

inline void deliver(Cluster& to, size_t i) {
  const Message m = take(to.under_way, i);
  cluster = &to;
  require(to.ctas[m.to / CTA_SPAN].live > 0, "nothing is sent to a CTA that has ended");
  std::memcpy(at(m.to), m.words, m.bytes);
  barrier_at(m.barrier).received += m.bytes;
}

inline void publish_word(size_t i) {
  const Published p = take(published, i);
  *p.to = p.word;
}

inline void enter() {
  (*body)();
  running->done = true;
  cta().live--;
  steps++;
  swapcontext(&running->context, &scheduler);
}

// Run the clusters of one row to their end. Returns false if all threads wait and nothing is under way, or a rule is broken.
inline bool run(int row, int clusters, int ctas, int threads, int shared_bytes, u32 seed, std::function<void()> kernel) {
  std::vector<Cluster> here(clusters);
  std::vector<Thread> every(size_t(clusters) * ctas * threads);
  body = &kernel;
  published.clear();
  broken = false;
  for (int i = 0; i < clusters; i++) {
    here[i].index = row * clusters + i, here[i].threads = ctas * threads;
    here[i].ctas.resize(ctas);
    for (Cta& c : here[i].ctas) {
      c.memory.assign(shared_bytes, char(0xff));  // NaN as floats, far out of range as integers
      c.warps.resize(threads / LANES);
      c.barriers.resize(shared_bytes / 8 + 1);
      c.live = threads;
    }
  }
  for (size_t i = 0; i < every.size(); i++) {
    Thread& t = every[i];
    t.cluster = &here[i / (ctas * threads)];
    t.cta = int(i) / threads % ctas, t.tid = int(i) % threads;
    t.stack.reset(new char[STACK_BYTES]);
    getcontext(&t.context);
    t.context.uc_stack.ss_sp = t.stack.get(), t.context.uc_stack.ss_size = STACK_BYTES, t.context.uc_link = nullptr;
    makecontext(&t.context, reinterpret_cast<void (*)()>(enter), 0);
  }
  std::mt19937 random(seed);
  std::vector<int> order(every.size());
  for (size_t i = 0; i < order.size(); i++) order[i] = int(i);
  int laggard = -1;  // the warp that stands still
  while (!order.empty()) {
    std::shuffle(order.begin(), order.end(), random);
    const i64 before = steps;
    if (laggard < 0 && random() % 16 == 0) laggard = order[0] / LANES;
    for (int i : order) {
      if (i / LANES == laggard) continue;
      running = &every[i], cluster = running->cluster;
      if (running->ready && !running->ready()) continue;
      swapcontext(&scheduler, &running->context);
    }
    std::erase_if(order, [&](int i) { return every[i].done; });
    if (laggard >= 0 && steps == before) {
      laggard = -1;
      continue;
    }
    const bool stands = steps == before;  // nobody got on: something has to arrive
    bool arrives = false;
    for (Cluster& c : here)
      for (size_t due = (c.under_way.size() + stands) / 2; due > 0; due--, arrives = true)
        deliver(c, random() % c.under_way.size());
    for (size_t due = (published.size() + stands) / 2; due > 0; due--, arrives = true)
      publish_word(random() % published.size());
    if (previous && (stands && !arrives || random() % 8 == 0)) previous(), previous = nullptr, arrives = true;
    if (stands && !arrives || broken) return false;
  }
  while (!published.empty()) publish_word(0);
  for (Cluster& c : here) require(c.under_way.empty(), "all that was sent has arrived when a cluster ends");
  return !broken;
}

}  // namespace emulator

// ---- CUDA's own words

struct Index { int (*value)(); operator int() const { return value(); } };
inline struct { Index x{[] { return emulator::running->tid; }}; } threadIdx;
inline struct {
  Index x{[] { return int(emulator::cluster->index * emulator::cluster->ctas.size() + emulator::running->cta); }};
} blockIdx;

inline emulator::Meeting& arrive_at(int barrier, int threads) {
  emulator::Meeting& meeting = emulator::cta().meetings[barrier];
  emulator::require(meeting.arrived == 0 || meeting.threads == threads, "all who meet expect as many threads");
  meeting.threads = threads;
  if (++meeting.arrived == threads) meeting.arrived = 0, meeting.generation++;
  emulator::steps++;
  return meeting;
}
inline void sync_threads_of(int barrier, int threads) {
  const int generation = emulator::cta().meetings[barrier].generation;
  const emulator::Meeting& meeting = arrive_at(barrier, threads);
  emulator::wait_for([&] { return meeting.generation != generation; });
}
inline void __syncthreads() { sync_threads_of(0, int(emulator::cta().warps.size()) * emulator::LANES); }

inline float __uint_as_float(u32 x) { return std::bit_cast<float>(x); }
inline u32 __float_as_uint(float x) { return std::bit_cast<u32>(x); }
inline int __popc(u32 x) { return std::popcount(x); }
inline int __clz(u32 x) { return std::countl_zero(x); }
inline u32 __byte_perm(u32 a, u32 b, u32 pick) {
  const std::uint64_t both = std::uint64_t(b) << 32 | a;
  u32 out = 0;
  for (int i = 0; i < 4; i++) out |= u32(both >> 8 * (pick >> 4 * i & 7) & 255) << 8 * i;
  return out;
}

inline int lane_here() { return emulator::running->tid % emulator::LANES; }
template <class T> T __shfl_xor_sync(u32, T x, int distance) {
  return std::bit_cast<T>(emulator::exchange(std::bit_cast<u32>(x))[lane_here() ^ distance][0]);
}
template <class T> T __shfl_down_sync(u32, T x, int distance) {
  u32 own[2] = {};
  std::memcpy(own, &x, sizeof x);
  const auto words = emulator::exchange(own[0], own[1]);
  std::memcpy(&x, words[lane_here() + distance < 32 ? lane_here() + distance : lane_here()], sizeof x);
  return x;
}
inline u32 __ballot_sync(u32, bool x) {
  const auto words = emulator::exchange(x);
  u32 out = 0;
  for (int i = 0; i < 32; i++) out |= words[i][0] << i;
  return out;
}
template <class Combine> u32 reduce_warp(u32 x, Combine combine) {
  const auto words = emulator::exchange(x);
  u32 out = words[0][0];
  for (int i = 1; i < 32; i++) out = combine(out, words[i][0]);
  return out;
}
inline u32 __reduce_min_sync(u32, u32 x) { return reduce_warp(x, [](u32 a, u32 b) { return min(a, b); }); }
inline u32 __reduce_max_sync(u32, u32 x) { return reduce_warp(x, [](u32 a, u32 b) { return max(a, b); }); }
inline u32 __reduce_add_sync(u32, u32 x) { return reduce_warp(x, [](u32 a, u32 b) { return a + b; }); }
template <class T> T atomicAdd(T* p, T x) { return *p += x, *p - x; }
inline void atomicMin(u32* p, u32 x) { *p = min(*p, x); }
inline void atomicMax(u32* p, u32 x) { *p = max(*p, x); }

// ---- device.cuh's words

inline char* dynamic_shared() { return emulator::cta().memory.data(); }
inline u32 shared_address(const void* p) {
  return emulator::running->cta * emulator::CTA_SPAN + u32(static_cast<const char*>(p) - dynamic_shared());
}
inline u32 cluster_rank() { return emulator::running->cta; }
inline u32 in_cta(u32 a, u32 rank) { return rank * emulator::CTA_SPAN + a % emulator::CTA_SPAN; }
inline void barrier_init(u32 barrier) { emulator::barrier_at(barrier) = {}; }
inline void publish_barriers() {}
inline void expect_bytes(u32 barrier, int bytes) {
  emulator::barrier_at(barrier).expected += bytes, emulator::barrier_at(barrier).armed = true;
}
inline void await_bytes(u32 barrier) {
  emulator::Barrier& b = emulator::barrier_at(barrier);
  emulator::wait_for([&] { return b.armed && b.received == b.expected; });
}
inline void send(u32 to, u32 x, u32 barrier) { emulator::cluster->under_way.push_back({to, barrier, 4, {x}}); }
inline void send(u32 to, u32 x, u32 y, u32 barrier) {
  emulator::cluster->under_way.push_back({to, barrier, 8, {x, y}});
}
inline void send(u32 to, uint4 x, u32 barrier) {
  emulator::cluster->under_way.push_back({to, barrier, 16, {x.x, x.y, x.z, x.w}});
}
inline void cluster_arrive() { emulator::cluster->arrived++; }
inline void cluster_wait() {
  emulator::wait_for([] { return emulator::cluster->arrived == emulator::cluster->threads; });
}

inline uint4 load16(const char* p) {
  emulator::check_read(p, 16);
  uint4 x;
  std::memcpy(&x, p, 16);
  return x;
}
inline u32 load4(const void* p) {
  u32 x;
  std::memcpy(&x, p, 4);
  return x;
}

inline void copy4(u32* to, const char* from) { emulator::running->copies.push_back({to, load4(from)}); }
inline void await_copies() {
  for (const auto& [to, word] : emulator::running->copies) *to = word;
  emulator::running->copies.clear();
}

inline void await_previous() {
  emulator::wait_for([] { return !emulator::previous; });
  emulator::running->awaited = true;
}
inline void release_next() {
  emulator::require(emulator::running->awaited, "the next kernel is let in by threads that have awaited the one before");
}

inline void publish(u64* to, u32 x, u32 step) { emulator::published.push_back({to, u64(step) << 32 | x}); }
template <int N>
void await_published(const u64* const (&at)[N], u32 (&x)[N], u32 step) {
  emulator::wait_for([&] {
    bool all = true;
    for (int i = 0; i < N; i++) all &= *at[i] >> 32 == step, x[i] = u32(*at[i]);
    return all;
  });
}

// A float of few bits to fp32 and back, rounded to the nearest even; overflow goes to infinity, or saturates.
inline float widen(u32 x, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1, top = (1 << exponent_bits) - 1;
  const int exponent = x >> mantissa_bits & top, mantissa = x & ((1 << mantissa_bits) - 1);
  const float sign = x >> (exponent_bits + mantissa_bits) & 1 ? -1.0f : 1.0f;
  if (exponent == top && exponent_bits > 4) return mantissa ? NAN : sign * INFINITY;
  if (exponent == top && mantissa == 7) return NAN;  // e4m3 has no infinity
  if (exponent == 0) return sign * std::ldexp(float(mantissa), 1 - bias - mantissa_bits);
  return sign * std::ldexp(1.0f + std::ldexp(float(mantissa), -mantissa_bits), exponent - bias);
}
inline u32 narrow(float x, int exponent_bits, int mantissa_bits, float largest, bool saturates) {
  const int bias = (1 << (exponent_bits - 1)) - 1, top = (1 << exponent_bits) - 1;
  const u32 sign = u32(std::signbit(x)) << (exponent_bits + mantissa_bits);
  if (std::isnan(x)) return sign | top << mantissa_bits | ((1 << mantissa_bits) - 1);
  int exponent;
  std::frexp(x, &exponent);
  const int unit = max(exponent - 1, 1 - bias) - mantissa_bits;
  const float rounded = std::ldexp(std::nearbyint(std::ldexp(std::fabs(x), -unit)), unit);
  if (rounded > largest) return saturates ? narrow(std::copysign(largest, x), exponent_bits, mantissa_bits, largest, true)
                                          : sign | top << mantissa_bits;
  if (rounded == 0) return sign;
  const float fraction = std::frexp(rounded, &exponent);  // in [0.5, 1)
  if (exponent - 1 < 1 - bias) return sign | u32(std::ldexp(rounded, bias - 1 + mantissa_bits));
  return sign | u32(exponent - 1 + bias) << mantissa_bits | u32(std::ldexp(2 * fraction - 1, mantissa_bits));
}
#if FP16
inline float element(u32 x) { return widen(x & 0xffff, 5, 10); }
inline u32 to_element(float x) { return narrow(x, 5, 10, 65504.0f, false); }
#else
inline float element(u32 x) { return __uint_as_float(x << 16); }
inline u32 to_element(float x) { return narrow(x, 8, 7, __uint_as_float(0x7f7f0000u), false); }
#endif
inline float2 unpack(u32 x) { return {element(x & 0xffff), element(x >> 16)}; }
inline u32 pack(float low, float high) { return to_element(low) | to_element(high) << 16; }
inline float2 unpack_e4m3(u16 x) { return {widen(x & 255, 4, 3), widen(x >> 8, 4, 3)}; }
inline u16 pack_e4m3(float low, float high) {
  return u16(narrow(low, 4, 3, 448.0f, true) | narrow(high, 4, 3, 448.0f, true) << 8);
}
#if FP16 || KV8  // operands of the matrix units
inline float operand(u32 x) { return widen(x & 0xffff, 5, 10); }
inline u32 to_operand(float x) { return narrow(x, 5, 10, 65504.0f, false); }
#else
inline float operand(u32 x) { return element(x); }
inline u32 to_operand(float x) { return to_element(x); }
#endif
inline u32 pack_operand(float low, float high) { return to_operand(low) | to_operand(high) << 16; }
inline u32 widen_e4m3(u16 x) { return pack_operand(widen(x & 255, 4, 3), widen(x >> 8, 4, 3)); }
inline float exp2_fast(float x) { return std::exp2(x); }

inline void multiply(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  const auto left = emulator::exchange(a0, a1, a2, a3);
  u32 a[32][4];
  std::memcpy(a, left, sizeof a);
  const auto right = emulator::exchange(b0, b1);
  const int r = lane_here() / 4, t = lane_here() % 4;
  for (int i = 0; i < 4; i++) {
    const int column = 2 * t + i % 2;
    float sum = 0;
    for (int k = 0; k < 16; k++) {
      const int pair = k % 8 / 2, upper = k / 8;
      const u32 x = a[4 * r + pair][2 * upper + i / 2], y = right[4 * column + pair][upper];
      sum += operand(x >> 16 * (k % 2) & 0xffff) * operand(y >> 16 * (k % 2) & 0xffff);
    }
    c[i] += sum;
  }
}
inline u32 transpose(u32 x) {
  const auto words = emulator::exchange(x);
  const int r = lane_here() / 4, t = lane_here() % 4;
  auto entry = [&](int row, int column) { return words[4 * row + column / 2][0] >> 16 * (column % 2) & 0xffff; };
  return entry(2 * t, r) | entry(2 * t + 1, r) << 16;
}
