// One block-sparse decode step in one kernel: append, score, select, attend, merge.
//
// A cluster of CTAs serves one sequence and KV head. Each CTA scores a share of the blocks, all of them together find
// the n-th best score (a radix search whose histograms they send each other), each sends the blocks it keeps to the CTA
// that will attend to them, and the partial results are merged across the cluster the same way. What goes from CTA to
// CTA goes through their shared memory, and a barrier in the receiver's counts its bytes: no round through the L2, no
// other kernel to launch. served.py says which settings it serves, docs/notes/speed.md what it gave.
//
// Several clusters may share a row (CLUSTERS). Each scores a part of it and publishes its scores in the L2;
// then each searches the whole row, and attends to its part of what is kept. The first one merges their results, which
// go through the L2, too. All clusters of a row must run at the same time.
//
// With DENSE every block is attended to, and nothing is scored or searched: dense.py.
//
// The kernel's body goes on in a file for each phase, which uses its variables. Phases are no functions: as functions the
// same lines give other machine code, for the compiler optimises a function before it inlines it.

#include "elements.cuh"
#include "layout.cuh"
#include "scores.cuh"

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
    float2 slot0 = {0, 0}, slot1 = {0, 0};
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
      slot0.x += x.x, slot0.y += x.y, slot1.x += y.x, slot1.y += y.y;
    }
    if (!GROUP_SUM) slots(make_float2(slot0.x / GROUP, slot0.y / GROUP), slot0, slot1);
    s.asked[2 * tid] = slot0.x, s.asked[2 * tid + 1] = slot0.y;
    s.asked[HEAD_DIM + 2 * tid] = slot1.x, s.asked[HEAD_DIM + 2 * tid + 1] = slot1.y;
  }

  const int* table = a.table + batch * a.table_batch;
  // For an entry that is no page of the cache, the nearest page: what is read there means nothing, but it lies in the
  // cache.
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
#include "phase_score.cuh"
#include "phase_exchange.cuh"
#include "phase_search.cuh"
#include "phase_list.cuh"
#endif

#include "phase_attend.cuh"

  if (CLUSTERS > 1) release_next();  // where clusters are few, the next step's would land unevenly
  if (DENSE) cluster_wait();

#include "phase_merge.cuh"

  if (CLUSTERS > 1 && tid == 0) a.epochs[blockIdx.x] = epoch;
}
