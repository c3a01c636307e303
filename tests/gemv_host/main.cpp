// A library with one function: the product of kernels/linear/cuda, cluster after cluster, on a CPU.
#include "emulator.hpp"
#include "words.hpp"

#include "gemv.cu"

// Rows of 16-bit elements; NaN until the kernel before has ended.
struct Rows {
  char* start;
  i64 stride;
  int rows, columns;
  std::vector<char> kept;

  char* row(int i) const { return start + 2 * i * stride; }
  void hide() {
    kept.assign(row(0), row(rows - 1) + 2 * columns);
    for (int i = 0; i < rows; i++) std::memset(row(i), 0xff, 2 * columns);
  }
  void show() const { std::memcpy(start, kept.data(), kept.size()); }
};

extern "C" int emulate(const Arguments* arguments, int clusters, int shared_bytes, unsigned seed) {
  const Arguments& a = *arguments;
  std::vector<Rows> written = {{const_cast<char*>(a.x), a.x_stride, a.rows, DEPTH}};
  if (a.residual) written.push_back({const_cast<char*>(a.residual), a.residual_stride, a.rows, a.columns});
  const i64 rows = i64(HALVES) * a.columns;
  emulator::readable = {{a.words, a.words + rows * ROW_BYTES}, {a.scales, a.scales + 4 * BLOCKS * rows * 4}};
  if (a.norm) emulator::readable.push_back({a.norm, a.norm + 2 * DEPTH});
  for (int i = 0; i < a.rows; i++) emulator::readable.push_back({written[0].row(i), written[0].row(i) + 2 * DEPTH});
  for (int i = 0; i < clusters; i++) {
    emulator::copies.clear();
    emulator::coin.seed(seed + i);
    for (Rows& rows : written) rows.hide();
    emulator::previous = [&] { for (const Rows& rows : written) rows.show(); };
    const bool ended = emulator::run(i, 1, CLUSTER, THREADS, shared_bytes, seed + i, [&] { int4_gemv(a, clusters); });
    if (emulator::previous) emulator::previous(), emulator::previous = nullptr;
    if (!ended) return i + 1;
  }
  return 0;
}
