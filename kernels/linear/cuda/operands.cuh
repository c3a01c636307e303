// x as the second operand of the matrix products, times the norm's weight, and its sums over groups.

struct Operand {
  u32 values[EIGHTS][CHUNKS][4][4];  // of lane l: row l / 4 of an eight, at 8 words of chunk and group, from 8 (l % 4) on
  float sums[EIGHTS][PARTS][4][2];   // of a group, of rows 2 (l % 4) and 2 (l % 4) + 1, as far as the unit goes
};

__device__ __forceinline__ int depth_of(int unit, int chunk, int group, int lane) {
  const int word = (unit * CHUNKS + chunk) * 32 + lane % 4 * 8;
  return (word / GROUP * 4 + group) * GROUP + word % GROUP;
}

constexpr bool FULL_BLOCKS = DEPTH % (4 * GROUP) == 0;
__device__ __forceinline__ bool in_row(int depth) { return FULL_BLOCKS && ROW_CHUNKS % CHUNKS == 0 || depth < DEPTH; }

// The norm's weight into shared memory, in the order in which a lane needs it.
__device__ __forceinline__ void fetch_norm(const char* norm, int unit, int lane, char* memory) {
#pragma unroll
  for (int k = 0; k < (CHUNKS + 1) / 2; k++) {
    const int item = lane / 4 + 8 * k;
    if (item >= 4 * CHUNKS) continue;
    const int depth = depth_of(unit, item / 4, item % 4, lane);
    char* to = memory + item * 64 + lane % 4 * 16;
    if (in_row(depth)) copy16(shared_address(to), norm + 2 * depth);
    else *reinterpret_cast<uint4*>(to) = uint4{0, 0, 0, 0};
  }
}

__device__ __forceinline__ void load_values(const Arguments& a, int unit, int lane, Operand& o) {
#pragma unroll
  for (int e = 0; e < EIGHTS; e++) {
    const int row = 8 * e + lane / 4;
    const char* x = a.x + 2 * (row * a.x_stride);
#pragma unroll
    for (int j = 0; j < CHUNKS; j++)
#pragma unroll
      for (int g = 0; g < 4; g++) {
        const int depth = depth_of(unit, j, g, lane);
        uint4 y = {0, 0, 0, 0};
        if (row < a.rows && in_row(depth)) y = load16(x + 2 * depth);
        u32 (&to)[4] = o.values[e][j][g];
        to[0] = y.x, to[1] = y.y, to[2] = y.z, to[3] = y.w;
      }
  }
}

// An eight of x times the norm's weight, rounded. Sums of x squared over this unit are on the diagonal of x times itself:
// the result is row l / 4 by itself where row_by_itself(l).
__device__ __forceinline__ bool row_by_itself(int lane) { return lane / 8 == lane % 4; }

__device__ __forceinline__ float weigh(const char* norm, int lane, int e, Operand& o) {
  float squares[4][4] = {};
#pragma unroll
  for (int j = 0; j < CHUNKS; j++)
#pragma unroll
    for (int g = 0; g < 4; g++) {
      const uint4 w = *reinterpret_cast<const uint4*>(norm + (4 * j + g) * 64 + lane % 4 * 16);
      const u32 factors[4] = {w.x, w.y, w.z, w.w};
      u32 (&x)[4] = o.values[e][j][g];
      multiply(squares[g], x[0], 0, x[1], 0, x[0], x[1]);
      multiply(squares[g], x[2], 0, x[3], 0, x[2], x[3]);
#pragma unroll
      for (int i = 0; i < 4; i++) x[i] = fma_pairs(x[i], factors[i], 0x80008000u);  // plus -0
    }
  float sum = 0;
#pragma unroll
  for (int g = 0; g < 4; g++) sum += lane / 4 % 2 ? squares[g][1] : squares[g][0];
  return sum;
}

__device__ __forceinline__ void sum_groups(Operand& o) {
  constexpr u32 ONES = FP16 ? 0x3c003c00u : 0x3f803f80u;
#pragma unroll
  for (int e = 0; e < EIGHTS; e++)
#pragma unroll
    for (int p = 0; p < PARTS; p++)
#pragma unroll
      for (int g = 0; g < 4; g++) {
        float sum[4] = {};  // sixteen equal rows
#pragma unroll
        for (int j = p * PART_CHUNKS; j < (p + 1) * PART_CHUNKS; j++) {
          multiply(sum, ONES, ONES, ONES, ONES, o.values[e][j][g][0], o.values[e][j][g][1]);
          multiply(sum, ONES, ONES, ONES, ONES, o.values[e][j][g][2], o.values[e][j][g][3]);
        }
        o.sums[e][p][g][0] = sum[0], o.sums[e][p][g][1] = sum[1];
      }
}
