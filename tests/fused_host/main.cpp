// A library with one function: the step of kernels/fused, every row of it, on a CPU.
#include "emulator.hpp"

#include "step.cu"

extern "C" int emulate(const Arguments* arguments, int rows, int shared_bytes, unsigned seed) {
  for (int i = 0; i < rows; i++)
    if (!emulator::run(i, CLUSTERS, CLUSTER, THREADS, shared_bytes, seed + i, [&] { sparse_step(*arguments); }))
      return i + 1;
  return 0;
}
