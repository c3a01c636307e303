// What stands after the product: bias, SwiGLU, residual, 1 / rms; and the sums of CTAs that share K.

__device__ __forceinline__ float element_at(const char* p, i64 i) {
  return unpack(reinterpret_cast<const u16*>(p)[i]).x;
}

// What is added to a value, asked for early.
struct Addends {
  float bias = 0, up_bias = 0, residual = 0;

  __device__ __forceinline__ void load(const Arguments& a, int row, int e, int last) {
    row += tile_row(e);
    if (row >= last || x_row(e) >= a.rows) return;
    if (a.bias) {
      bias = element_at(a.bias, row);
      if (HALVES == 2) up_bias = element_at(a.bias, i64(a.columns) + row);
    }
    if (a.residual) residual = element_at(a.residual, x_row(e) * a.residual_stride + row);
  }
};

__device__ __forceinline__ void finish(const Arguments& a, const Addends& added, float y, float up, float rms, int row,
                                       int e, int last) {
  row += tile_row(e);
  if (row >= last || x_row(e) >= a.rows) return;
  y = y * rms + added.bias;
  if (HALVES == 2) y = y / (1 + exp_fast(-y)) * (up * rms + added.up_bias);
  reinterpret_cast<u16*>(a.out)[i64(x_row(e)) * a.columns + row] = u16(pack(y + added.residual, 0));
}

__device__ __forceinline__ float over_rms(const Arguments& a, float squares) {
  return a.norm ? reciprocal_root(squares / DEPTH + a.eps) : 1;
}

// ---- a cluster: CTA (tile % CLUSTER) finishes a tile, and gets the others' sums of it into its shared memory

__device__ __forceinline__ void send_tile(char* memory, u32 arrival, int rank, int tile, const float (&value)[HALVES][4],
                                          int e) {
  const int owner = tile % CLUSTER, at = (tile / CLUSTER * CLUSTER + rank) * SHARE + e;
  const u32 to = in_cta(shared_address(memory + SUMS_AT + 4 * at), owner), barrier = in_cta(arrival, owner);
#pragma unroll
  for (int half = 0; half < HALVES; half++) {
    const float (&v)[4] = value[half];
    const uint4 words = {__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]), __float_as_uint(v[3])};
    send(to + 4 * half * VALUES, words, barrier);
  }
}

__device__ __forceinline__ void send_squares(char* memory, u32 arrival, int rank, float squares, int row) {
  const u32 to = shared_address(memory + EXCHANGE_AT + 4 * (ROWS * rank + row));
  for (int cta = 0; cta < CLUSTER; cta++) send(in_cta(to, cta), __float_as_uint(squares), in_cta(arrival, cta));
}

__device__ __forceinline__ void finish_cluster(const Arguments& a, char* memory, u32 arrival, int rank, int first, int last,
                                               int tiles) {
  constexpr int PER = (OWNED * VALUES + THREADS - 1) / THREADS;
  constexpr int TOGETHER = PER < 16 ? PER : 16;  // values of a thread: all of a head's would be 320 KB of code
  const int values = (tiles - rank + CLUSTER - 1) / CLUSTER * VALUES;
  auto row_of = [&](int i) { return first + TILE * (i / VALUES * CLUSTER + rank); };
  int start = threadIdx.x;
  do {  // once even where this CTA finishes no tile: it must not end before the others have sent their squares
    Addends added[TOGETHER];
#pragma unroll
    for (int k = 0; k < TOGETHER; k++) {
      const int i = start + k * THREADS;
      if (i < values) added[k].load(a, row_of(i), i % VALUES, last);
    }
    await_bytes(arrival);
#pragma unroll
    for (int k = 0; k < TOGETHER; k++) {
      const int i = start + k * THREADS, e = i % VALUES;
      if (i >= values) continue;
      float value[HALVES] = {}, squares = 0;
      for (int cta = 0; cta < CLUSTER; cta++) {
        const float* sums = reinterpret_cast<const float*>(memory + SUMS_AT) + (i / VALUES * CLUSTER + cta) * SHARE + e;
#pragma unroll
        for (int half = 0; half < HALVES; half++) value[half] += sums[half * VALUES];
        if (a.norm) squares += reinterpret_cast<const float*>(memory + EXCHANGE_AT)[ROWS * cta + x_row(e)];
      }
      finish(a, added[k], value[0], value[HALVES - 1], over_rms(a, squares), row_of(i), e, last);
    }
    start += TOGETHER * THREADS;
  } while (start < values);
}
