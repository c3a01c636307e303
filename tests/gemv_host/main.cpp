// A library with one function: the product of kernels/linear/cuda, cluster after cluster, on a CPU.
#include "emulator.hpp"
#include "words.hpp"

#include "gemv.cu"

extern "C" int emulate(const Arguments* arguments, int clusters, int shared_bytes, unsigned seed) {
  for (int i = 0; i < clusters; i++) {
    emulator::copies.clear();
    emulator::coin.seed(seed + i);
    if (!emulator::run(i, 1, CLUSTER, THREADS, shared_bytes, seed + i, [&] { int4_gemv(*arguments, clusters); }))
      return i + 1;
  }
  return 0;
}
