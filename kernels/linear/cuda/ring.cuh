// A warp's ring of slots: the words and scales of a tile's rows in its unit, on their way while others are multiplied.

struct Ring {
  u32 slots;            // shared address
  const char* words;    // of its unit in row 0
  const char* scales;   // of its first group in row 0
  int first, last;      // rows of its CTA
  int columns, unit, lane;

  // What stays empty where K ends inside a unit must not be NaN.
  __device__ __forceinline__ void clear(char* memory) const {
    if (ROW_CHUNKS % CHUNKS)
      for (int at = 16 * lane; at < SLOTS * SLOT_BYTES; at += 512)
        *reinterpret_cast<uint4*>(memory + at) = uint4{0, 0, 0, 0};
    sync_warp();
  }

  __device__ __forceinline__ i64 row_of(int i) const {
    return i64(first) + TILE * (i / HALVES) + (i % HALVES ? columns : 0);
  }
  __device__ __forceinline__ int rows_of(int i) const { return min(TILE, last - first - TILE * (i / HALVES)); }
  __device__ __forceinline__ const char* scales_of(int group, i64 row) const {
    return scales + (i64(group) * (HALVES * columns) + row) * 4;
  }
  __device__ __forceinline__ bool has_group(int group) const {
    return unit * CHUNKS * 32 / GROUP + group / 4 < BLOCKS;
  }

  // Ask for the i-th part of the work: a tile, or half of one.
  __device__ __forceinline__ void fetch(int i, int slot) const {
    const i64 row = row_of(i);
    const int rows = rows_of(i);
    const u32 to = slots + slot * SLOT_BYTES;
    const char* from = words + row * ROW_BYTES;
    constexpr int LANES = 4 * CHUNKS, AT_ONCE = 32 / LANES;  // that copy a row; rows of one instruction
    const int r = lane / LANES, at = lane % LANES * 16;
    const char* source = from + r * ROW_BYTES + at;
    const u32 target = to + r * PITCH + at;  // SWAPPED: of rows whose third bit is not set
    auto copy_at = [&](int k) {
      const u32 swap = SWAPPED && (AT_ONCE <= 4 ? k & 4 : r & 4) ? SWAPPED * (at & 64 ? -64 : 64) : 0;
      copy16(target + k * PITCH + swap, source + k * ROW_BYTES);
    };
    if (unit * CHUNKS + lane % LANES / 4 < ROW_CHUNKS) {
      if (rows == TILE) {
#pragma unroll
        for (int k = 0; k < TILE; k += AT_ONCE) copy_at(k);
      } else {
#pragma unroll 1
        for (int k = 0; k + r < rows; k += AT_ONCE) copy_at(k);
      }
    }
#pragma unroll
    for (int k = 0; k < (PARTS + 1) / 2; k++) {
      const int group = lane / 4 + 8 * k, quad = lane % 4;
      if (group < 4 * PARTS && has_group(group) && 4 * quad < rows)
        copy16(to + TILE * PITCH + group * SCALE_BYTES + 16 * quad, scales_of(group, row) + 16 * quad);
    }
  }

  // Until the slot is full that comes next: this thread has asked for SLOTS - 1 others since.
  __device__ __forceinline__ void await() const {
    await_groups<SLOTS - 1>();
    sync_warp();
  }
};
