// One block-sparse decode step in one kernel: append, score, select, attend, merge.
//
// A cluster of CTAs serves one sequence and KV head. Each CTA scores a share of the blocks, all of them together find
// the n-th best score (a radix search whose histograms they send each other), each sends the blocks it keeps to the CTA
// that will attend to them, and the partial results are merged across the cluster the same way. What goes from CTA to
// CTA goes through their shared memory, and a barrier in the receiver's counts its bytes: no round through the L2, no
// other kernel to launch. step.py says which settings it serves, docs/notes/speed.md what it gave.
//
// Several clusters may share a row (CLUSTERS). Each scores a part of it and publishes its scores in the L2;
// then each searches the whole row, and attends to its part of what is kept. The first one merges their results, which
// go through the L2, too. All clusters of a row must run at the same time.
//
// With DENSE every block is attended to, and nothing is scored or searched: dense.py.
//
// Constants from step.py: HEAD_DIM, GROUP, BLOCK, CLUSTER (CTAs), CLUSTERS (of a row), RESIDENT (CTAs that share a
// multiprocessor), SPLIT (warps that share the dims), LOADS (under way in a lane while scoring), PAGE_BLOCKS,
// SHARED_BYTES (of `Shared`), and 0 or 1 for DENSE, MINMAX, GROUP_SUM, FP8 (summaries), KV8 (keys and values in e4m3), FP16,
// PAGED, WIDE (rows of more blocks than 16 bits count).

constexpr int THREADS = 256, WARPS = THREADS / 32;
constexpr int SLOT_BYTES = FP8 ? 1 : 2;                   // of an element of a summary
constexpr int KV_BYTES = KV8 ? 1 : 2;                     // of an element of a key or value
constexpr int SUMMARY_BYTES = 2 * HEAD_DIM * SLOT_BYTES;
constexpr int LOADS_A_BLOCK = SUMMARY_BYTES <= 512 ? 1 : SUMMARY_BYTES / 512;
constexpr int BLOCK_LANES = SUMMARY_BYTES / LOADS_A_BLOCK / 16;  // lanes that load a block's summary, 16 bytes each
constexpr int BLOCKS_A_LOAD = 32 / BLOCK_LANES;
constexpr int SCORES = LOADS / LOADS_A_BLOCK;             // of a lane
constexpr int TILE = SCORES * BLOCKS_A_LOAD;              // blocks that a warp scores together
constexpr int SLOTS_A_LANE = 16 / SLOT_BYTES;
constexpr int HEADS = GROUP <= 8 ? 8 : 16;                // GROUP, padded
constexpr int HEAD_TILES = HEADS / 8;                     // operands of the matrix units that the heads fill
constexpr int UNIT = 16;                                  // tokens that a warp attends to at a time
constexpr int TEAMS = WARPS / SPLIT, WARP_DIM = HEAD_DIM / SPLIT;  // a team attends to a unit, each warp to its dims
constexpr int KEY_CHUNKS = KV_BYTES * WARP_DIM / 64, VALUE_CHUNKS = KV_BYTES * WARP_DIM / 128;  // of 16 bytes in a lane, per row
constexpr int DEPTH = 2 / KV_BYTES;                       // units that a warp has under way: as many bytes of either type
constexpr float LIFT = KV8 ? 13 : 0;                      // 2^LIFT stands for a probability of 1: kernels/attention/softmax.py
constexpr int OUT_TILES = WARP_DIM / 16;                  // tiles [16 dims, 8 heads] of a warp's output of 8 heads
constexpr int PARTIAL = HEADS * HEAD_DIM;                 // words of a partial result
constexpr int PART = PARTIAL / HEAD_TILES / SPLIT;        // of them for 8 heads and a warp
constexpr int SLICE = (PARTIAL / 4 + CLUSTER - 1) / CLUSTER * 4;  // words of it that a CTA finishes
constexpr int ROW_WORDS = HEAD_DIM / 64;                  // pairs of dims of a key or value in a lane
constexpr int ROW_COPIES = ROW_WORDS * KV_BYTES / 2;      // words that they take in the cache
constexpr int NEWEST_TOKENS = BLOCK < UNIT ? BLOCK : UNIT;  // of the newest block, that a warp reads
constexpr int NEWEST_WARPS = BLOCK / NEWEST_TOKENS;
constexpr int PARTS = UNIT / NEWEST_TOKENS;               // blocks that share a unit: 2 of 8 tokens, or 1
constexpr int UNITS_A_BLOCK = NEWEST_WARPS;               // of blocks that do not share one
constexpr int MEMBERS = CLUSTER * CLUSTERS;               // CTAs of a row
constexpr int POLLED = 8;                                 // words that a thread asks the L2 for at once
constexpr int BINS = 256, PASSES = 4;                     // of the radix search: 8 bits a pass
#if WIDE
using Counts = u64;                                       // two counts of blocks in a word: lower bits, upper bits
#else
using Counts = u32;
#endif
constexpr int COUNT_BITS = 4 * sizeof(Counts);
constexpr Counts COUNT = (Counts(1) << COUNT_BITS) - 1, TWICE = COUNT + 2;
constexpr float NONE = -1e30f;                            // maximum of what has seen nothing
constexpr u32 INFINITE = 0x7f800000u;

struct Arguments {
  const char* q;        // [B, Hq, D]
  char* summaries;      // [B or P, Hkv, blocks, 2, D]
  float* scores;        // [B, Hkv, M] out
  int* lists;           // [B, Hkv, N] out: ascending, padded with -1
  int* counts;          // [B, Hkv] out: n
  const int* lengths;   // [B]
  const int* table;     // [B, pages]
  char* k_cache;        // [B or P, Hkv, S or page, D]
  char* v_cache;        // the same strides
  const char* k_new;    // [B, Hkv, D]
  const char* v_new;    // the same strides
  const float* scales;  // [Hkv, 2], of keys and values in e4m3 alone
  char* out;            // [B, Hq, D], contiguous
  u64* exchange;        // [B * Hkv, exchange_row]: what its clusters publish: scores, extremes, results
  u32* epochs;          // [B * Hkv, MEMBERS]: steps that a CTA has done
  // Strides in elements, all of 64 bits, for a cache may hold more than 2^31: a product with one is of 64 bits, too.
  i64 q_batch, q_head, summary_outer, summary_head, score_batch, score_row, list_batch, list_row, table_batch;
  i64 cache_outer, cache_head, cache_token, new_batch, new_head, exchange_row;
  int kv_heads, local_blocks, first_blocks, ratio_numerator, ratio_denominator, floor_blocks;
  int list_capacity, key_capacity;  // N; blocks that a CTA scores at most
  int token_capacity, pages;        // tokens a sequence has room for; P
  float spread_weight, scale_log2;
};

enum Barrier { EXTREMES, HISTOGRAM, LIST = HISTOGRAM + PASSES, MERGE, BARRIERS };

struct __align__(16) Shared {
  unsigned long long barriers[8];
  __align__(16) u16 histograms[2][CLUSTER][BINS];  // of the other CTAs, by pass
  __align__(16) u32 own_histogram[PASSES][BINS / 2];  // two counts a word
  __align__(16) u32 extremes[CLUSTER][2];
  __align__(16) u32 own_extremes[2];
  __align__(16) Counts warp_totals[WARPS];
  __align__(16) u32 warp_kept[WARPS];
  __align__(16) int found[5];
  __align__(16) float asked[2 * HEAD_DIM];         // the query's two slots
  __align__(16) u32 queries[HEADS * HEAD_DIM / 2];
  __align__(16) float cta_softmax[CLUSTER][HEADS][2];  // maximum and sum
  __align__(16) float team_max[TEAMS][HEADS];
  __align__(16) float team_sum[TEAMS][HEADS];
  __align__(16) float factor[TEAMS][HEAD_TILES * 2][4];  // of 8 heads: of even ones, then of odd ones
  __align__(16) float newest[NEWEST_WARPS][2 * HEAD_DIM];
  __align__(16) float merged[CLUSTER][SLICE];
};
static_assert(sizeof(Shared) == SHARED_BYTES, "step.py lays out shared memory");
// After it: keys [key_capacity], list [ceil(list_capacity / MEMBERS)], partials [TEAMS][PARTIAL], each from a multiple
// of 16 bytes on. Where warps share a unit, what they tell each other follows.
__device__ __forceinline__ int round16(int bytes) { return (bytes + 15) / 16 * 16; }

__device__ __forceinline__ int share_start(int total, int i, int shares) {
  return static_cast<int>(i64(total) * i / shares);
}

__device__ __forceinline__ int part_of(int word) { return PART == PARTIAL ? 0 : word / PART; }

__device__ __forceinline__ float2 scaled(float2 x, float scale) { return {x.x * scale, x.y * scale}; }

// Two elements of a new token as they are stored in e4m3: over the scale, a power of two, so that nothing is rounded twice.
__device__ __forceinline__ u16 over_scale(u32 x, float scale) {
  const float2 y = scaled(unpack(x), 1 / scale);
  return pack_e4m3(y.x, y.y);
}

// What is read of them later.
__device__ __forceinline__ float2 as_stored(u32 x, float scale) {
  return KV8 ? scaled(unpack_e4m3(over_scale(x, scale)), scale) : unpack(x);
}

// fp32 scores as unsigned integers in the same order; NaN, which nobody should send, counts as +inf, so that every step
// finds n blocks and ends.
__device__ __forceinline__ u32 order_key(float score) {
  const u32 bits = __float_as_uint(fminf(score, __uint_as_float(INFINITE)) + 0.0f);  // no -0
  return bits ^ (static_cast<u32>(static_cast<int>(bits) >> 31) | 0x80000000u);
}

// 16 bytes of a key or value as operands of the matrix units: as they are, or of e4m3 in fp16, 8 elements each.
__device__ __forceinline__ void operands(uint4 x, uint4 (&y)[2 / KV_BYTES]) {
  if (!KV8) {
    y[0] = x;
    return;
  }
  y[0] = {widen_e4m3(x.x), widen_e4m3(x.x >> 16), widen_e4m3(x.y), widen_e4m3(x.y >> 16)};
  y[2 / KV_BYTES - 1] = {widen_e4m3(x.z), widen_e4m3(x.z >> 16), widen_e4m3(x.w), widen_e4m3(x.w >> 16)};
}

// Sums over the BLOCK_LANES lanes of a block, scattered over them: afterwards x[0 .. left - 1] of a lane are complete
// sums, those of scores which * left and up.
__device__ __forceinline__ void reduce_scatter(float (&x)[SCORES], int lane, int& left, int& which) {
  left = SCORES;
  which = 0;
#pragma unroll
  for (int distance = BLOCK_LANES / 2; distance; distance /= 2) {
    if (left == 1) {
      x[0] += __shfl_xor_sync(WARP, x[0], distance);
      continue;
    }
    left /= 2;
    const bool upper = lane & distance;
#pragma unroll
    for (int i = 0; i < SCORES / 2; i++) {
      if (i >= left) break;
      const float give = upper ? x[i] : x[i + left], keep = upper ? x[i + left] : x[i];
      x[i] = keep + __shfl_xor_sync(WARP, give, distance);
    }
    which = 2 * which + upper;
  }
}

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, RESIDENT)
    sparse_step(const __grid_constant__ Arguments a) {
  char* memory = dynamic_shared();
  Shared& s = *reinterpret_cast<Shared*>(memory);
  u32* keys = reinterpret_cast<u32*>(memory + sizeof(Shared));
  int* list = reinterpret_cast<int*>(memory + sizeof(Shared) + round16(4 * a.key_capacity));
  float* partials = reinterpret_cast<float*>(
      reinterpret_cast<char*>(list) + round16((a.list_capacity + MEMBERS - 1) / MEMBERS * 4));
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, rank = cluster_rank();
  const int row = blockIdx.x / MEMBERS, batch = row / a.kv_heads, head = row % a.kv_heads;
  const int part = blockIdx.x / CLUSTER % CLUSTERS, member = part * CLUSTER + rank;  // of the row's clusters, and CTAs
  const u32 barriers = shared_address(s.barriers);

  await_previous();

  // ---- what does not wait for the length: the queries and the new token
  const int given = load4(a.lengths + batch);
  const u32 epoch = CLUSTERS > 1 ? load4(a.epochs + blockIdx.x) + 1 : 0;  // marks what is published in this step
  const char* q = a.q + 2 * (batch * a.q_batch + i64(head) * GROUP * a.q_head);
  u32 query[HEADS], k_new[ROW_WORDS], v_new[ROW_WORDS];
  // The first of a lane's w-th two dims of a key or value: in 4 bytes that it takes from the cache lie four in e4m3.
  auto dim_at = [&](int w) { return KV8 ? 4 * lane + 2 * (w % 2) + 128 * (w / 2) : 2 * lane + 64 * w; };
  const float k_scale = KV8 ? __uint_as_float(load4(a.scales + 2 * head)) : 1;
  const float v_scale = KV8 ? __uint_as_float(load4(a.scales + 2 * head + 1)) : 1;
  if (tid < HEAD_DIM / 2)
#pragma unroll
    for (int g = 0; g < HEADS; g++) query[g] = g < GROUP ? load4(q + 2 * g * a.q_head + 4 * tid) : 0;
  if (warp < NEWEST_WARPS)
#pragma unroll
    for (int w = 0; w < ROW_WORDS; w++) {
      const i64 at = 2 * (batch * a.new_batch + head * a.new_head + dim_at(w));
      k_new[w] = load4(a.k_new + at);
      v_new[w] = load4(a.v_new + at);
    }

  // A sequence longer than its cache: its token has no place and is not written, and its output is NaN. Asked after all
  // loads are under way: what reads the length waits for it, and so would they.
  const int length = min(max(given, 0), a.token_capacity);
  const bool fits = given <= a.token_capacity;
  const float scale_log2 = fits ? a.scale_log2 * k_scale : __uint_as_float(WARP);
  const int blocks = (length + BLOCK - 1) / BLOCK;
  int* out_list = DENSE ? nullptr : a.lists + batch * a.list_batch + head * a.list_row;
  u16* out = reinterpret_cast<u16*>(a.out) + i64(row) * GROUP * HEAD_DIM;
  if (blocks <= 0) {
    for (int i = member * THREADS + tid; i < GROUP * HEAD_DIM; i += MEMBERS * THREADS) out[i] = 0;
    for (int i = member * THREADS + tid; i < a.list_capacity; i += MEMBERS * THREADS) out_list[i] = -1;
    if (!DENSE && member == 0 && tid == 0) a.counts[row] = 0;
    return;
  }
  const int n = DENSE ? blocks
                      : min(blocks, max(a.floor_blocks, (blocks * a.ratio_numerator + a.ratio_denominator - 1) /
                                                            a.ratio_denominator));
  const int share = (n - member + MEMBERS - 1) / MEMBERS;  // CTA p % MEMBERS attends to entry p of the list
  const bool has_newest = member == (n - 1) % MEMBERS;
  const int tiles = (blocks + TILE - 1) / TILE;
  const int share_first = share_start(tiles, rank, CLUSTER), share_end = share_start(tiles, rank + 1, CLUSTER);
  const int first = share_first * TILE, own = min(share_end * TILE, blocks) - first;  // blocks searched here; may be none
  const int first_tile = share_first + share_start(share_end - share_first, part, CLUSTERS);  // of them scored here
  const int end_tile = share_first + share_start(share_end - share_first, part + 1, CLUSTERS);

  if (tid == 0) {
    for (int i = 0; i < BARRIERS; i++) barrier_init(barriers + 8 * i);
    publish_barriers();
    if (CLUSTERS == 1) expect_bytes(barriers + 8 * EXTREMES, CLUSTER * 8);
    for (int i = 0; i < PASSES; i++) expect_bytes(barriers + 8 * (HISTOGRAM + i), CLUSTER * BINS * 2);
    expect_bytes(barriers + 8 * LIST, share * 4);
    expect_bytes(barriers + 8 * MERGE, CLUSTER * (4 * max(min(SLICE, PARTIAL - rank * SLICE), 0) + 8 * HEADS));
  }
  for (int i = tid; i < PASSES * BINS / 2; i += THREADS) (&s.own_histogram[0][0])[i] = 0;
  if (tid < 2) s.own_extremes[tid] = tid ? 0u : WARP;

  // ---- the query's slots: [min(q, 0), max(q, 0)] for min/max, [q, c |q|] for mean/std; of the mean head or summed
  if (tid < HEAD_DIM / 2) {
    float2 one = {0, 0}, two = {0, 0};
    auto slots = [&](float2 x, float2& lower, float2& upper) {
      lower = MINMAX ? make_float2(fminf(x.x, 0), fminf(x.y, 0)) : x;
      upper = MINMAX ? make_float2(fmaxf(x.x, 0), fmaxf(x.y, 0))
                     : make_float2(a.spread_weight * fabsf(x.x), a.spread_weight * fabsf(x.y));
    };
#pragma unroll
    for (int g = 0; g < HEADS; g++) {
      float2 x = unpack(query[g]), y = {0, 0};
      s.queries[g * (HEAD_DIM / 2) + tid] = KV8 ? pack_operand(x.x, x.y) : query[g];
      if (GROUP_SUM) slots(x, x, y);
      one.x += x.x, one.y += x.y, two.x += y.x, two.y += y.y;
    }
    if (!GROUP_SUM) slots(make_float2(one.x / GROUP, one.y / GROUP), one, two);
    s.asked[2 * tid] = one.x, s.asked[2 * tid + 1] = one.y;
    s.asked[HEAD_DIM + 2 * tid] = two.x, s.asked[HEAD_DIM + 2 * tid + 1] = two.y;
  }

  const int* table = a.table + batch * a.table_batch;
  // For an entry that is no page of the cache, the nearest page: what is read there means nothing, but it lies in the cache.
  auto page = [&](int i) { return i64(min(max(table[i], 0), a.pages - 1)); };

  // ---- the first summaries under way
#if !DENSE
  auto summary = [&](int tile, int i) {
    const int block = min(tile * TILE + i / LOADS_A_BLOCK * BLOCKS_A_LOAD + lane / BLOCK_LANES, blocks - 1);
    const i64 outer = PAGED ? page(block / PAGE_BLOCKS) : batch;
    const int inside = PAGED ? block % PAGE_BLOCKS : block;
    return a.summaries + SLOT_BYTES * (outer * a.summary_outer + head * a.summary_head) + i64(inside) * SUMMARY_BYTES +
           lane % BLOCK_LANES * 16 + i % LOADS_A_BLOCK * 512;
  };
  uint4 loaded[LOADS];
  if (first_tile + warp < end_tile)
#pragma unroll
    for (int i = 0; i < LOADS; i++) loaded[i] = load16(summary(first_tile + warp, i));
#endif
  __syncthreads();
  cluster_arrive();  // its barriers are ready; waited for before anything is sent

  // ---- the new token into the cache, by the CTA that will attend to it
  const i64 newest_outer = PAGED ? page((blocks - 1) / PAGE_BLOCKS) : batch;
  const bool writes = has_newest && fits && (!PAGED || newest_outer == table[(blocks - 1) / PAGE_BLOCKS]);
  const int newest_inside = PAGED ? (blocks - 1) % PAGE_BLOCKS : blocks - 1;
  const i64 newest =
      KV_BYTES * (newest_outer * a.cache_outer + head * a.cache_head + i64(newest_inside) * BLOCK * a.cache_token);
  const int older = length - 1 - (blocks - 1) * BLOCK;  // tokens before it in its block
  if (writes && warp == 0)
#pragma unroll
    for (int w = 0; w < ROW_WORDS; w++) {
      const i64 at = newest + KV_BYTES * (older * a.cache_token + dim_at(w));
      if (KV8) {
        *reinterpret_cast<u16*>(a.k_cache + at) = over_scale(k_new[w], k_scale);
        *reinterpret_cast<u16*>(a.v_cache + at) = over_scale(v_new[w], v_scale);
      } else {
        *reinterpret_cast<u32*>(a.k_cache + at) = k_new[w];
        *reinterpret_cast<u32*>(a.v_cache + at) = v_new[w];
      }
    }

  u64* exchange = a.exchange + row * a.exchange_row;
  u64* extremes = exchange + CLUSTER * a.key_capacity;  // of all CTAs
#if DENSE
  __syncthreads();  // the new token, for whoever reads its block
#else
  // ---- scores
  u32 least = WARP, most = 0;
  {
    float slots[LOADS_A_BLOCK][SLOTS_A_LANE];
#pragma unroll
    for (int l = 0; l < LOADS_A_BLOCK; l++)
#pragma unroll
      for (int i = 0; i < SLOTS_A_LANE; i++) slots[l][i] = s.asked[(l * 32 + lane % BLOCK_LANES) * SLOTS_A_LANE + i];
    float* scores = a.scores + batch * a.score_batch + head * a.score_row;
    for (int tile = first_tile + warp; tile < end_tile; tile += WARPS) {
      float score[SCORES];
#pragma unroll
      for (int i = 0; i < LOADS; i++) {
        const u32 words[4] = {loaded[i].x, loaded[i].y, loaded[i].z, loaded[i].w};
        const float(&asked)[SLOTS_A_LANE] = slots[i % LOADS_A_BLOCK];
        float sum = i % LOADS_A_BLOCK ? score[i / LOADS_A_BLOCK] : 0;
#pragma unroll
        for (int j = 0; j < 4; j++) {
          if (FP8) {
            const float2 x = unpack_e4m3(words[j] & 0xffff), y = unpack_e4m3(words[j] >> 16);
            const int at = 4 * j % SLOTS_A_LANE;
            sum += x.x * asked[at] + x.y * asked[at + 1];
            sum += y.x * asked[at + 2] + y.y * asked[at + 3];
          } else {
            const float2 x = unpack(words[j]);
            sum += x.x * asked[2 * j];
            sum += x.y * asked[2 * j + 1];
          }
        }
        score[i / LOADS_A_BLOCK] = sum;
        if (tile + WARPS < end_tile) loaded[i] = load16(summary(tile + WARPS, i));
      }
      int left, which;
      reduce_scatter(score, lane, left, which);
#pragma unroll
      for (int i = 0; i < SCORES; i++) {
        if (i >= left) break;
        const int block = tile * TILE + (which * left + i) * BLOCKS_A_LOAD + lane / BLOCK_LANES;
        const bool mine = BLOCK_LANES <= SCORES || lane % (BLOCK_LANES / SCORES) == 0;
        if (mine && block < blocks) {
          const bool always = block >= blocks - a.local_blocks || block < a.first_blocks;
          const float value = always ? __uint_as_float(INFINITE) : score[i];
          const u32 key = order_key(value);
          scores[block] = value;
          keys[block - first] = key;
          least = min(least, key);
          most = max(most, key + 0x00800000u);  // the key of +inf wraps to 0
        }
      }
    }
    least = __reduce_min_sync(WARP, least);
    most = __reduce_max_sync(WARP, most);
    if (lane == 0) atomicMin(&s.own_extremes[0], least), atomicMax(&s.own_extremes[1], most);
  }
  __syncthreads();
  if (CLUSTERS > 1) {
    if (tid < 2) publish(extremes + 2 * member + tid, s.own_extremes[tid], epoch);
    for (int i = (first_tile - share_first) * TILE + tid; i < min((end_tile - share_first) * TILE, own); i += THREADS)
      publish(exchange + first + i, keys[i], epoch);
  }

  // ---- the newest block's older keys under way to where partial results will be, for its summary
  u32* rows = reinterpret_cast<u32*>(partials) + lane;
  auto row_at = [&](int token, int w) { return rows + (token * ROW_COPIES + w) * 32; };
  const bool summarises = has_newest && warp < NEWEST_WARPS, has_rows = summarises && warp * NEWEST_TOKENS < older;
  if (has_rows)
#pragma unroll
    for (int t = 0; t < NEWEST_TOKENS; t++)
#pragma unroll
      for (int w = 0; w < ROW_COPIES; w++)
        copy4(row_at(warp * NEWEST_TOKENS + t, w), a.k_cache + newest + 4 * lane + 128 * w +
                                                       KV_BYTES * min(warp * NEWEST_TOKENS + t, older - 1) * a.cache_token);

  // ---- the scores of the row's other clusters, for the blocks that are searched here, and the extremes of all CTAs
  if (CLUSTERS > 1) {
    static_assert(CLUSTERS == 1 || 2 * MEMBERS <= THREADS, "a thread for each word");
    int start = tid;
    do {
      const u64* at[POLLED + 1];
      u32 word[POLLED + 1];
      at[POLLED] = extremes + min(tid, 2 * MEMBERS - 1);
#pragma unroll
      for (int i = 0; i < POLLED; i++)
        at[i] = own > 0 ? exchange + first + min(start + i * THREADS, own - 1) : at[POLLED];
      await_published(at, word, epoch);
#pragma unroll
      for (int i = 0; i < POLLED; i++)
        if (start + i * THREADS < own) keys[start + i * THREADS] = word[i];
      if (start == tid && tid < 2 * MEMBERS) {
        if (tid % 2) atomicMax(&s.own_extremes[1], word[POLLED]);
        else atomicMin(&s.own_extremes[0], word[POLLED]);
      }
      start += POLLED * THREADS;
    } while (start < own);
    __syncthreads();
  }

  // ---- the n-th largest key. From the least key to one over the largest finite one, where +inf goes, as distances
  // from the least, shifted so that the top bit is used.
  cluster_wait();
  if (CLUSTERS == 1) {
    if (tid < CLUSTER)
      send(in_cta(shared_address(s.extremes[rank]), tid), s.own_extremes[0], s.own_extremes[1],
           in_cta(barriers + 8 * EXTREMES, tid));
    await_bytes(barriers + 8 * EXTREMES);
  }
  least = CLUSTERS > 1 ? s.own_extremes[0] : __reduce_min_sync(WARP, s.extremes[lane % CLUSTER][0]);
  most = (CLUSTERS > 1 ? s.own_extremes[1] : __reduce_max_sync(WARP, s.extremes[lane % CLUSTER][1])) - 0x007fffffu;
  const int unused = most == least ? 31 : __clz(most - least);
  u32 threshold = 0;            // its settled bits
  int sure = 0, kept = blocks;  // keys over the settled bits, and these with those that share them
  int over_before = 0, tied_before = 0;  // the same in earlier CTAs, the latter alone
  int settled = 0;
  for (int pass = 0; kept != n && settled < 32 - unused; pass++, settled += 8) {
    const int shift = 24 - settled;
    u32* histogram = s.own_histogram[pass];
    for (int i = tid; i < own; i += THREADS) {
      const u32 distance = (min(keys[i], most) - least) << unused, bin = distance >> shift & 255;
      if (settled == 0 || (distance ^ threshold) >> (32 - settled) == 0)
        atomicAdd(&histogram[bin / 2], bin % 2 ? 0x10000u : 1u);
    }
    __syncthreads();
    for (int to = warp; to < CLUSTER; to += WARPS)
      send(in_cta(shared_address(&s.histograms[pass % 2][rank][8 * lane]), to),
           *reinterpret_cast<const uint4*>(&histogram[4 * lane]), in_cta(barriers + 8 * (HISTOGRAM + pass), to));
    await_bytes(barriers + 8 * (HISTOGRAM + pass));
    // A bin a thread: how many keys it has in all, and above them in earlier CTAs, in one word.
    Counts here = 0;
#pragma unroll
    for (int c = 0; c < CLUSTER; c++) here += s.histograms[pass % 2][c][tid] * (c < rank ? TWICE : 1);
    Counts above = here;  // from this bin up, at first within the warp
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const Counts next = __shfl_down_sync(WARP, above, distance);
      if (lane + distance < 32) above += next;
    }
    if (lane == 0) s.warp_totals[warp] = above;
    __syncthreads();
    above -= here;
#pragma unroll
    for (int w = 1; w < WARPS; w++) above += w > warp ? s.warp_totals[w] : 0;
    const int over = sure + (above & COUNT), with_bin = over + (here & COUNT);
    if (over < n && with_bin >= n) {  // one thread's bin alone
      s.found[0] = threshold | static_cast<u32>(tid) << shift;
      s.found[1] = over, s.found[2] = with_bin;
      s.found[3] = over_before + (above >> COUNT_BITS), s.found[4] = here >> COUNT_BITS;
    }
    __syncthreads();
    threshold = s.found[0], sure = s.found[1], kept = s.found[2], over_before = s.found[3], tied_before = s.found[4];
  }
  const u32 limit = least + (threshold >> unused);
  const bool cuts_tie = kept != n;  // then all bits are settled, and of the keys equal to limit the first ones fill up
  const int missing = n - sure;

  // ---- lists. A warp's keys are consecutive, so entries come out ascending; ties go to the lower block.
  const int per_warp = own > 0 ? (own + THREADS - 1) / THREADS * 32 : 0;
  auto sort_out = [&](int i, bool& over, bool& tie) {
    const u32 key = i < own ? min(keys[i], most) : 0;
    over = i < own && (cuts_tie ? key > limit : key >= limit);
    tie = i < own && cuts_tie && key == limit;
  };
  u32 warp_kept = 0;  // a CTA's own keys are always fewer than 16 bits count: they lie in its shared memory
  for (int i = warp * per_warp; i < (warp + 1) * per_warp; i += 32) {
    bool over, tie;
    sort_out(i + lane, over, tie);
    warp_kept += __popc(__ballot_sync(WARP, over)) + (__popc(__ballot_sync(WARP, tie)) << 16);
  }
  if (lane == 0) s.warp_kept[warp] = warp_kept;
  await_copies();
  if (summarises) {  // min and max, or sums of what the older keys differ from the newest, and of its squares
#pragma unroll
    for (int w = 0; w < ROW_WORDS; w++) {
      const float2 pivot = as_stored(k_new[w], k_scale), start = MINMAX ? pivot : make_float2(0, 0);
      float2 one = start, two = start;
      if (has_rows)
#pragma unroll
        for (int t = 0; t < NEWEST_TOKENS; t++) {
          const int token = warp * NEWEST_TOKENS + t;
          const float2 x = KV8 ? scaled(unpack_e4m3(*row_at(token, w / 2) >> 16 * (w % 2) & 0xffff), k_scale)
                               : unpack(*row_at(token, w));
          if (MINMAX) {
            one.x = fminf(one.x, x.x), one.y = fminf(one.y, x.y);
            two.x = fmaxf(two.x, x.x), two.y = fmaxf(two.y, x.y);
          } else if (warp * NEWEST_TOKENS + t < older) {
            const float2 d = {x.x - pivot.x, x.y - pivot.y};
            one.x += d.x, one.y += d.y, two.x += d.x * d.x, two.y += d.y * d.y;
          }
        }
      const int dim = dim_at(w);
      s.newest[warp][dim] = one.x, s.newest[warp][dim + 1] = one.y;
      s.newest[warp][HEAD_DIM + dim] = two.x, s.newest[warp][HEAD_DIM + dim + 1] = two.y;
    }
  }
  __syncthreads();
  const u32 earlier = __reduce_add_sync(WARP, lane < warp ? s.warp_kept[lane % WARPS] : 0);
  int overs = over_before + (earlier & 0xffff), ties = earlier >> 16;  // before this warp's
  if (settled == 0) overs += min(first, blocks);  // nothing was searched: all are kept
  else if (cuts_tie) ties += tied_before;
  else overs += tied_before;
  for (int i = warp * per_warp; i < (warp + 1) * per_warp; i += 32) {
    bool over, tie;
    sort_out(i + lane, over, tie);
    const u32 over_lanes = __ballot_sync(WARP, over), tied_lanes = __ballot_sync(WARP, tie), below = (1u << lane) - 1;
    const int tie_number = ties + __popc(tied_lanes & below);
    if (over || (tie && tie_number < missing)) {
      const int place = overs + __popc(over_lanes & below) + min(tie_number, missing), to = place % CLUSTER;
      if (CLUSTERS == 1 || place % MEMBERS / CLUSTER == part) {
        send(in_cta(shared_address(&list[place / MEMBERS]), to), first + i + lane, in_cta(barriers + 8 * LIST, to));
        out_list[place] = first + i + lane;
      }
    }
    overs += __popc(over_lanes), ties += __popc(tied_lanes);
  }
  for (int i = n + member * THREADS + tid; i < a.list_capacity; i += MEMBERS * THREADS) out_list[i] = -1;
  if (member == 0 && tid == 0) a.counts[row] = n;

  // ---- the newest block's summary, which this step does not read
  if (writes && warp == 0) {
    char* to = a.summaries + SLOT_BYTES * (newest_outer * a.summary_outer + head * a.summary_head) +
               i64(newest_inside) * SUMMARY_BYTES;
#pragma unroll
    for (int w = 0; w < ROW_WORDS; w++) {
      const int dim = dim_at(w);
      float2 one = {s.newest[0][dim], s.newest[0][dim + 1]};
      float2 two = {s.newest[0][HEAD_DIM + dim], s.newest[0][HEAD_DIM + dim + 1]};
      for (int i = 1; i < NEWEST_WARPS; i++) {
        const float2 x = {s.newest[i][dim], s.newest[i][dim + 1]};
        const float2 y = {s.newest[i][HEAD_DIM + dim], s.newest[i][HEAD_DIM + dim + 1]};
        if (MINMAX) {
          one.x = fminf(one.x, x.x), one.y = fminf(one.y, x.y);
          two.x = fmaxf(two.x, y.x), two.y = fmaxf(two.y, y.y);
        } else one.x += x.x, one.y += x.y, two.x += y.x, two.y += y.y;
      }
      if (!MINMAX) {
        const float2 pivot = as_stored(k_new[w], k_scale);
        const float count = older + 1;
        one.x /= count, one.y /= count;
        two.x = sqrtf(fmaxf(two.x / count - one.x * one.x, 0)), two.y = sqrtf(fmaxf(two.y / count - one.y * one.y, 0));
        one.x += pivot.x, one.y += pivot.y;
      }
      if (FP8) {
        *reinterpret_cast<u16*>(to + dim) = pack_e4m3(one.x, one.y);
        *reinterpret_cast<u16*>(to + HEAD_DIM + dim) = pack_e4m3(two.x, two.y);
      } else {
        *reinterpret_cast<u32*>(to + 2 * dim) = pack(one.x, one.y);
        *reinterpret_cast<u32*>(to + 2 * (HEAD_DIM + dim)) = pack(two.x, two.y);
      }
    }
  }
  await_bytes(barriers + 8 * LIST);
#endif

  // ---- attention over this CTA's share of the list, 16 tokens a warp at a time. Keys are the left operand, so that the
  // 16 rows of the matrix units are tokens and no row is wasted on padding a group of heads; the sum over dims takes them
  // in whatever order 16-byte loads bring them, the queries likewise. Values are turned by pairing two tokens' words.
  // Tokens of a unit are rows r and r + 8. Blocks of 8 share one: each has 8 rows, and its own place and visible tokens.
  // In a team of several warps each has its share of the dims, and the logits are the sums of what they have.
  const int units = (share * UNITS_A_BLOCK + PARTS - 1) / PARTS, r = lane / 4, t = lane % 4;
  const int team = warp / SPLIT, piece = warp % SPLIT;
  float acc[HEAD_TILES][OUT_TILES][4] = {};
  float max0[HEAD_TILES], max1[HEAD_TILES], sum0[HEAD_TILES] = {}, sum1[HEAD_TILES] = {};  // of heads 2t and 2t + 1
#pragma unroll
  for (int h = 0; h < HEAD_TILES; h++) max0[h] = max1[h] = NONE;
  uint4 k[DEPTH][2][KEY_CHUNKS], v[DEPTH][4][VALUE_CHUNKS];
  int valid[DEPTH][PARTS] = {};  // tokens of the loaded units
  i64 base[DEPTH][PARTS] = {};
  auto locate = [&](int d, int unit) {
#pragma unroll
    for (int i = 0; i < PARTS; i++) {
      const int entry = unit * PARTS / UNITS_A_BLOCK + i;
      const bool none = PARTS > 1 && entry >= share;  // the last unit of an odd share: the last block's rows, unseen
      const int seen = none ? entry - 1 : entry, block = DENSE ? seen * MEMBERS + member : list[seen];
      int offset = unit % UNITS_A_BLOCK * UNIT;
      valid[d][i] = none ? 0 : length - block * BLOCK - offset;
      if (valid[d][i] <= 0) offset = 0;  // nothing visible: any rows that exist
      const i64 outer = PAGED ? page(block / PAGE_BLOCKS) : batch;
      const i64 inside = i64(PAGED ? block % PAGE_BLOCKS : block) * BLOCK + offset;
      base[d][i] =
          KV_BYTES * (outer * a.cache_outer + head * a.cache_head + inside * a.cache_token + piece * WARP_DIM);
    }
  };
  auto unit_row = [&](int d, int eight, int i) {  // where row i of the unit's first or second 8 rows is
    const int part = eight % PARTS, token = i + 8 * (eight / PARTS);
    return base[d][part] + KV_BYTES * max(min(token, valid[d][part] - 1), 0) * a.cache_token;
  };
  auto load_keys = [&](int d) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const char* p = a.k_cache + unit_row(d, i, r) + 16 * t;
#pragma unroll
      for (int j = 0; j < KEY_CHUNKS; j++) k[d][i][j] = load16(p + 64 * j);
    }
  };
  auto load_values = [&](int d) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const char* p = a.v_cache + unit_row(d, i / 2, 2 * t + i % 2) + 16 * r;
#pragma unroll
      for (int j = 0; j < VALUE_CHUNKS; j++) v[d][i][j] = load16(p + 128 * j);
    }
  };
#pragma unroll
  for (int d = 0; d < DEPTH; d++)
    if (team + d * TEAMS < units) locate(d, team + d * TEAMS), load_keys(d), load_values(d);
  auto attend = [&](int d, int unit) {
    const bool more = unit + DEPTH * TEAMS < units;
    const int upper = valid[d][0], lower = valid[d][PARTS - 1];  // visible tokens of the parts of rows r and r + 8
    float c[HEAD_TILES][4] = {};  // logits of tokens r and r + 8, heads 2t and 2t + 1
    const char* query_chunks =
        reinterpret_cast<const char*>(s.queries) + 2 * (HEAD_DIM * r + WARP_DIM * piece) + 32 / KV_BYTES * t;
#pragma unroll
    for (int j = 0; j < KEY_CHUNKS; j++) {
      uint4 first[2 / KV_BYTES], second[2 / KV_BYTES];  // of tokens r and r + 8: operands, of 8 dims each
      operands(k[d][0][j], first), operands(k[d][1][j], second);
#pragma unroll
      for (int i = 0; i < 2 / KV_BYTES; i++)
#pragma unroll
        for (int h = 0; h < HEAD_TILES; h++) {
          const uint4 b = *reinterpret_cast<const uint4*>(query_chunks + 16 * HEAD_DIM * h + 128 / KV_BYTES * j + 16 * i);
          multiply(c[h], first[i].x, second[i].x, first[i].y, second[i].y, b.x, b.y);
          multiply(c[h], first[i].z, second[i].z, first[i].w, second[i].w, b.z, b.w);
        }
    }
    if (more) locate(d, unit + DEPTH * TEAMS), load_keys(d);
    if (SPLIT > 1) {
      const int place = unit / TEAMS % 2 * WARPS;  // one is written while the other may still be read
      float4* logits = reinterpret_cast<float4*>(partials + TEAMS * PARTIAL) + lane;
      auto of = [&](int w, int h) -> float4& { return logits[((place + w) * HEAD_TILES + h) * 32]; };
#pragma unroll
      for (int h = 0; h < HEAD_TILES; h++) of(warp, h) = {c[h][0], c[h][1], c[h][2], c[h][3]};
      sync_threads_of(1 + team, SPLIT * 32);
#pragma unroll
      for (int h = 0; h < HEAD_TILES; h++) {
        c[h][0] = c[h][1] = c[h][2] = c[h][3] = 0;
#pragma unroll
        for (int m = 0; m < SPLIT; m++) {
          const float4 x = of(team * SPLIT + m, h);
          c[h][0] += x.x, c[h][1] += x.y, c[h][2] += x.z, c[h][3] += x.w;
        }
      }
    }
    u32 b0[HEAD_TILES], b1[HEAD_TILES];
#pragma unroll
    for (int h = 0; h < HEAD_TILES; h++) {
      if (r >= upper) c[h][0] = c[h][1] = -__uint_as_float(INFINITE);
      if (r + (PARTS == 1 ? 8 : 0) >= lower) c[h][2] = c[h][3] = -__uint_as_float(INFINITE);
      float top0 = fmaxf(c[h][0], c[h][2]), top1 = fmaxf(c[h][1], c[h][3]);
#pragma unroll
      for (int distance = 4; distance < 32; distance *= 2) {
        top0 = fmaxf(top0, __shfl_xor_sync(WARP, top0, distance));
        top1 = fmaxf(top1, __shfl_xor_sync(WARP, top1, distance));
      }
      top0 = fmaxf(max0[h], top0 * scale_log2), top1 = fmaxf(max1[h], top1 * scale_log2);
      const float carry0 = exp2_fast(max0[h] - top0), carry1 = exp2_fast(max1[h] - top1);
      max0[h] = top0, max1[h] = top1;
      const float base0 = top0 - LIFT, base1 = top1 - LIFT;
      const float p0 = exp2_fast(c[h][0] * scale_log2 - base0), p1 = exp2_fast(c[h][1] * scale_log2 - base1);
      const float p2 = exp2_fast(c[h][2] * scale_log2 - base0), p3 = exp2_fast(c[h][3] * scale_log2 - base1);
      sum0[h] = sum0[h] * carry0 + p0 + p2, sum1[h] = sum1[h] * carry1 + p1 + p3;
      b0[h] = transpose(pack_operand(p0, p1)), b1[h] = transpose(pack_operand(p2, p3));
#pragma unroll
      for (int i = 0; i < OUT_TILES; i++)
        acc[h][i][0] *= carry0, acc[h][i][1] *= carry1, acc[h][i][2] *= carry0, acc[h][i][3] *= carry1;
    }
    uint4 front[4], back[4];  // of the lane's tokens: as operands, its first dims and those 8 or 64 further
#pragma unroll
    for (int i = 0; i < 4; i++) {
      uint4 both[2 / KV_BYTES];
      operands(v[d][i][0], both);
      front[i] = both[0], back[i] = KV8 ? both[2 / KV_BYTES - 1] : v[d][i][VALUE_CHUNKS - 1];
    }
#pragma unroll
    for (int w = 0; w < OUT_TILES / 2; w++) {
      // Two dims of this lane; of D = 64 in 16 bits they lie in either half of its one chunk.
      u32 low[4], high[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const u32 ahead[4] = {front[i].x, front[i].y, front[i].z, front[i].w};
        const u32 behind[4] = {back[i].x, back[i].y, back[i].z, back[i].w};
        low[i] = ahead[w], high[i] = behind[KV8 || VALUE_CHUNKS == 2 ? w : (w + 2) % 4];
      }
#pragma unroll
      for (int odd = 0; odd < 2; odd++) {
        const u32 pick = odd ? 0x7632 : 0x5410;
        const u32 a0 = __byte_perm(low[0], low[1], pick), a1 = __byte_perm(high[0], high[1], pick);
        const u32 a2 = __byte_perm(low[2], low[3], pick), a3 = __byte_perm(high[2], high[3], pick);
#pragma unroll
        for (int h = 0; h < HEAD_TILES; h++) multiply(acc[h][2 * w + odd], a0, a1, a2, a3, b0[h], b1[h]);
      }
    }
    if (more) load_values(d);
  };
  for (int first_unit = team; first_unit < units; first_unit += DEPTH * TEAMS)
#pragma unroll
    for (int d = 0; d < DEPTH; d++)
      if (d == 0 || first_unit + d * TEAMS < units) attend(d, first_unit + d * TEAMS);
#pragma unroll
  for (int h = 0; h < HEAD_TILES; h++)
#pragma unroll
    for (int distance = 4; distance < 32; distance *= 2) {
      sum0[h] += __shfl_xor_sync(WARP, sum0[h], distance);
      sum1[h] += __shfl_xor_sync(WARP, sum1[h], distance);
    }

  if (CLUSTERS > 1) release_next();  // where clusters are few, the next step's would land unevenly
  if (DENSE) cluster_wait();

  // ---- merge the teams, then the CTAs. A partial result has a part for each warp of a team and 8 heads: its word f is
  // acc[f / 128][f / 32 % 4] of lane f % 32.
#pragma unroll
  for (int h = 0; h < HEAD_TILES; h++)
#pragma unroll
    for (int i = 0; i < OUT_TILES; i++)
#pragma unroll
      for (int j = 0; j < 4; j++)
        partials[team * PARTIAL + (piece * HEAD_TILES + h) * PART + (4 * i + j) * 32 + lane] = acc[h][i][j];
  if (r == 0 && piece == 0) {
#pragma unroll
    for (int h = 0; h < HEAD_TILES; h++) {
      s.team_max[team][8 * h + 2 * t] = max0[h], s.team_max[team][8 * h + 2 * t + 1] = max1[h];
      s.team_sum[team][8 * h + 2 * t] = sum0[h], s.team_sum[team][8 * h + 2 * t + 1] = sum1[h];
    }
  }
  __syncthreads();
  if (tid < HEADS * max(CLUSTER, TEAMS)) {
    const int g = tid % HEADS, i = tid / HEADS;
    float top = NONE, sum = 0;
#pragma unroll
    for (int w = 0; w < TEAMS; w++) top = fmaxf(top, s.team_max[w][g]);
#pragma unroll
    for (int w = 0; w < TEAMS; w++) sum += exp2_fast(s.team_max[w][g] - top) * s.team_sum[w][g];
    if (i < CLUSTER)
      send(in_cta(shared_address(s.cta_softmax[rank][g]), i), __float_as_uint(top), __float_as_uint(sum),
           in_cta(barriers + 8 * MERGE, i));
    if (i < TEAMS) s.factor[i][g / 8 * 2 + g % 2][g % 8 / 2] = exp2_fast(s.team_max[i][g] - top);
  }
  __syncthreads();
  for (int f = 4 * tid; f < PARTIAL; f += 4 * THREADS) {
    float4 sum = {};
#pragma unroll
    for (int w = 0; w < TEAMS; w++) {
      const float4 x = *reinterpret_cast<const float4*>(partials + w * PARTIAL + f);
      const float4 y = *reinterpret_cast<const float4*>(s.factor[w][part_of(f) % HEAD_TILES * 2 + f / 32 % 2]);
      sum.x += x.x * y.x, sum.y += x.y * y.y, sum.z += x.z * y.z, sum.w += x.w * y.w;
    }
    const uint4 words = {__float_as_uint(sum.x), __float_as_uint(sum.y), __float_as_uint(sum.z), __float_as_uint(sum.w)};
    send(in_cta(shared_address(&s.merged[rank][f % SLICE]), f / SLICE), words, in_cta(barriers + 8 * MERGE, f / SLICE));
  }
  await_bytes(barriers + 8 * MERGE);
  u64* results = extremes + 2 * MEMBERS;  // of the row's other clusters: maximum, sum, output
  for (int i = tid; i < SLICE; i += THREADS) {
    const int f = rank * SLICE + i, j = f / 32 % 4, g = 8 * (part_of(f) % HEAD_TILES) + 2 * (f % 4) + j % 2;
    if (f >= PARTIAL || g >= GROUP) continue;
    float top = NONE, sum = 0, value = 0;
#pragma unroll
    for (int c = 0; c < CLUSTER; c++) top = fmaxf(top, s.cta_softmax[c][g][0]);
#pragma unroll
    for (int c = 0; c < CLUSTER; c++) {
      const float factor = exp2_fast(s.cta_softmax[c][g][0] - top);
      sum += factor * s.cta_softmax[c][g][1], value += factor * s.merged[c][i];
    }
#if CLUSTERS > 1
    auto slot = [&](int cluster, int word) { return results + ((cluster * CLUSTER + rank) * 3 + word) * SLICE + i; };
    if (part > 0) {
      publish(slot(part, 0), __float_as_uint(top), epoch);
      publish(slot(part, 1), __float_as_uint(sum), epoch);
      publish(slot(part, 2), __float_as_uint(value), epoch);
      continue;
    }
    const u64* at[3 * (CLUSTERS - 1)];
    u32 word[3 * (CLUSTERS - 1)];
#pragma unroll
    for (int k = 0; k < 3 * (CLUSTERS - 1); k++) at[k] = slot(1 + k / 3, k % 3);
    await_published(at, word, epoch);
    const float own_top = top;
#pragma unroll
    for (int c = 0; c < CLUSTERS - 1; c++) top = fmaxf(top, __uint_as_float(word[3 * c]));
    const float factor = exp2_fast(own_top - top);
    sum *= factor, value *= factor;
#pragma unroll
    for (int c = 0; c < CLUSTERS - 1; c++) {
      const float factor = exp2_fast(__uint_as_float(word[3 * c]) - top);
      sum += factor * __uint_as_float(word[3 * c + 1]), value += factor * __uint_as_float(word[3 * c + 2]);
    }
#endif
    const int dim = part_of(f) / HEAD_TILES * WARP_DIM + 16 / KV_BYTES * (f % 32 / 4) + (f - part_of(f) * PART) / 128 +
                    (KV8 ? 8 : VALUE_CHUNKS == 2 ? 64 : 4) * (j / 2);
    out[g * HEAD_DIM + dim] = static_cast<u16>(pack(value / sum * v_scale, 0));
  }  if (CLUSTERS > 1 && tid == 0) a.epochs[blockIdx.x] = epoch;
}
