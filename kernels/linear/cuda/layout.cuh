// Who holds what of a product, and where it lies in shared memory.
//
// A chunk is 32 words of a weight row: 128 of K, 32 of each of a block's four groups (kernels/linear/int4.py). A warp has
// CHUNKS chunks next to one another, its unit, of every row of its CTA, and the values of x that stand beside them in
// registers from the beginning to the end. x has EIGHTS eights of rows: eight are the columns of a matrix product. CTAs
// of a cluster share K. A tile is 16 weight rows; with HALVES = 2, 16 rows of gate and 16 of up, one after the other.
//
// Of lane l, r = l / 4 and t = l % 4. Row r of a matrix product is row 2 m(r) of the tile, row r + 8 is 2 m(r) + 1, where
// m swaps the lower two bits. With that, and chunks that are swapped, or rows 16 bytes further apart, a warp's reads of
// shared memory meet in no bank.
//
// Constants from layout.py: EIGHTS, GROUP, DEPTH (K), CHUNKS, WARPS, CLUSTER, HALVES, SLOTS (of a warp's ring), OWNED
// (tiles that a CTA of a cluster finishes at most), SHARED_BYTES, FP16.

constexpr int THREADS = 32 * (WARPS + 1);  // a warp besides sums
constexpr int BLOCKS = (DEPTH + 4 * GROUP - 1) / (4 * GROUP);
constexpr int ROW_BYTES = 2 * BLOCKS * GROUP;
constexpr int ROW_CHUNKS = ROW_BYTES / 64;
constexpr int UNITS = (ROW_CHUNKS + CHUNKS - 1) / CHUNKS;
constexpr int PART_CHUNKS = CHUNKS < GROUP / 32 ? CHUNKS : GROUP / 32;  // of a block, next to one another in a unit
constexpr int PARTS = CHUNKS / PART_CHUNKS;                             // blocks that a unit has a part of
constexpr int TILE = 16;
constexpr int UNIT_BYTES = 64 * CHUNKS;
constexpr bool SWAPPED = CHUNKS > 1;                    // chunks 2 i and 2 i + 1 of rows 4 to 7 and 12 to 15
constexpr int PITCH = UNIT_BYTES + (SWAPPED ? 0 : 16);  // of a row in shared memory
constexpr int SCALE_BYTES = 4 * TILE;   // of a group
constexpr int SLOT_BYTES = TILE * PITCH + PARTS * 4 * SCALE_BYTES;
constexpr int ROWS = 8 * EIGHTS;        // of x, at most
constexpr int EIGHT = TILE * 8;         // values of a tile's product with 8 rows of x
constexpr int VALUES = TILE * ROWS;     // with all
constexpr int SHARE = HALVES * VALUES;  // words that a warp adds to a tile
constexpr int OWN_BYTES = 8 * SHARE > 256 * CHUNKS ? 8 * SHARE : 256 * CHUNKS;  // shares of two tiles; first the norm
static_assert(UNITS <= WARPS * CLUSTER, "units that no warp has");

struct Arguments {
  const char* x;         // [rows, K]
  const char* words;     // [N, ROW_BYTES], or gate, then up rows: [2 N, ROW_BYTES]
  const char* scales;    // [4 BLOCKS, N or 2 N, 2]
  const char* bias;      // [N or 2 N], or null
  const char* norm;      // [K], or null
  const char* residual;  // [rows, N], or null
  char* out;             // [rows, N], contiguous
  i64 x_stride, residual_stride;  // elements
  int rows, columns;     // N
  float eps;
  int nibbles;           // 0x000f000f: a constant would be put into a register again and again
};

// After the rings, SLOTS slots a warp: each warp's shares, the squares of each warp and row of x; of a cluster its barrier,
// the squares of its CTAs, and what they know of the tiles that this CTA finishes.
constexpr int SHARES_AT = WARPS * SLOTS * SLOT_BYTES;
constexpr int SQUARES_AT = SHARES_AT + WARPS * OWN_BYTES;
constexpr int ARRIVAL_AT = SQUARES_AT + WARPS * 4 * ROWS;
constexpr int EXCHANGE_AT = ARRIVAL_AT + 16;
constexpr int SUMS_AT = EXCHANGE_AT + CLUSTER * 4 * ROWS;  // [tiles of this CTA][CLUSTER][SHARE]
static_assert(SUMS_AT + (CLUSTER > 1 ? 4 * OWNED * CLUSTER * SHARE : 0) == SHARED_BYTES, "layout.py counts these bytes");

// Which row of its tile, and which row of x, value e of a share is. Of an eight, lane e / 4 holds it as the (e % 4)-th of
// four.
__device__ __forceinline__ int mixed(int r) { return (r & 4) | (r & 1) << 1 | (r & 2) >> 1; }
__device__ __forceinline__ int tile_row(int e) { return 2 * mixed(e % EIGHT / 16) + e % 4 / 2; }
__device__ __forceinline__ int x_row(int e) { return e / EIGHT * 8 + e / 4 % 4 * 2 + e % 2; }

__device__ __forceinline__ int share_start(int total, int i, int shares) {
  return static_cast<int>(i64(total) * i / shares);
}
