// A warp's ring of slots: the words and scales of a tile's rows in its unit, on their way while others are multiplied.

struct Ring {
  u32 slots, barriers;  // shared addresses
  const char* words;    // of its unit in row 0
  const char* scales;   // of its first group in row 0
  int first, last;      // rows of its CTA
  int columns, unit, lane;

  // What stays empty where K ends inside a unit must not be NaN.
  __device__ __forceinline__ void clear(char* memory) const {
    if (ROW_CHUNKS % CHUNKS)
      for (int at = 16 * lane; at < SLOTS * SLOT_BYTES; at += 512)
        *reinterpret_cast<uint4*>(memory + at) = uint4{0, 0, 0, 0};
    if (BULK && lane < SLOTS) barrier_init(barriers + 8 * lane);
    if (BULK) publish_barriers(), show_copy_engine();
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
#if BULK
    const int chunks = min(CHUNKS, ROW_CHUNKS - unit * CHUNKS), groups = min(4 * PARTS, 4 * (BLOCKS - unit * CHUNKS * 32 / GROUP));
    const u32 barrier = barriers + 8 * slot;
    if (lane == 0) expect_bytes(barrier, rows * (64 * chunks + 4 * groups));
    sync_warp();
    if (lane < rows) copy_row(to + lane * PITCH, from + i64(lane) * ROW_BYTES, 64 * chunks, barrier);
    if (lane < groups) copy_row(to + TILE * PITCH + lane * SCALE_BYTES, scales_of(lane, row), 4 * rows, barrier);
#else
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
#endif
  }

  __device__ __forceinline__ void ask_ahead(int i) const {
    const int chunks = min(CHUNKS, ROW_CHUNKS - unit * CHUNKS);
    if (lane < rows_of(i)) ask_into_l2(words + (row_of(i) + lane) * ROW_BYTES, 64 * chunks);
  }

  // Until a slot is full: the round-th filling of it, of which this thread has asked for SLOTS - 1 others since.
  __device__ __forceinline__ void await(int slot, int round) const {
#if BULK
    await_phase(barriers + 8 * slot, round & 1);
#else
    await_groups<SLOTS - 1>();
    sync_warp();
#endif
  }
};
