// What kernels/linear/cuda/words.cuh gives the product on a GPU, in plain C++ on top of fused_host/emulator.hpp.
//
// Copies into shared memory are done when they are asked for or when they are awaited, as a coin falls: who reads too early,
// or asks for a slot that is still read, gets wrong numbers.
#pragma once
#define WORDS_CUH

#include <map>

struct uint2 { u32 x, y; };

namespace emulator {
struct Copy { char* to; char bytes[16]; int group; };
struct Copies { std::vector<Copy> under_way; int group = 0; };
inline std::map<int, Copies> copies;  // of a thread of the cluster that runs
inline std::mt19937 coin(1);

inline Copies& own_copies() {
  return copies[running->cta * 1024 + running->tid];
}
}  // namespace emulator

inline void copy16(u32 to, const char* from) {
  emulator::require(to % 16 == 0, "a copy of 16 bytes goes to a multiple of 16");
  emulator::check_read(from, 16);
  emulator::Copy copy{emulator::at(to), {}, emulator::own_copies().group};
  std::memcpy(copy.bytes, from, 16);
  if (emulator::coin() % 2) emulator::own_copies().under_way.push_back(copy);
  else std::memcpy(copy.to, copy.bytes, 16);
}
inline void end_group() { emulator::own_copies().group++; }
template <int N> void await_groups() {
  auto& own = emulator::own_copies();
  std::erase_if(own.under_way, [&](const emulator::Copy& copy) {
    if (copy.group >= own.group - N) return false;
    std::memcpy(copy.to, copy.bytes, 16);
    return true;
  });
}

inline u32 fma_pairs(u32 x, u32 factor, u32 added) {
  auto of = [](u32 a, u32 b, u32 c) { return std::fma(element(a), element(b), element(c)); };
  return pack(of(x & 0xffff, factor & 0xffff, added & 0xffff), of(x >> 16, factor >> 16, added >> 16));
}
inline int from_lane(int x, int lane) { return emulator::exchange(u32(x))[lane][0]; }
inline float exp_fast(float x) { return std::exp(x); }
inline float reciprocal_root(float x) { return 1 / std::sqrt(x); }
inline void sync_warp() { emulator::exchange(0); }
