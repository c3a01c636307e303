// How the step is laid out: sizes, arguments, shared memory.
//
// Constants from layout.py: HEAD_DIM, GROUP, BLOCK, CLUSTER (CTAs), CLUSTERS (of a row), RESIDENT (CTAs that share a
// multiprocessor), SPLIT (warps that share the dims), LOADS (under way in a lane while scoring), PAGE_BLOCKS,
// SHARED_BYTES (of `Shared`), and 0 or 1 for DENSE, MINMAX, GROUP_SUM, FP8 (summaries), KV8 (keys and values in e4m3),
// FP16, PAGED, WIDE (rows of more blocks than 16 bits count).
#pragma once
#include "device.cuh"

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
  __align__(16) int settled_bin[5];
  __align__(16) float asked[2 * HEAD_DIM];         // the query's two slots
  __align__(16) u32 queries[HEADS * HEAD_DIM / 2];
  __align__(16) float cta_softmax[CLUSTER][HEADS][2];  // maximum and sum
  __align__(16) float team_max[TEAMS][HEADS];
  __align__(16) float team_sum[TEAMS][HEADS];
  __align__(16) float factor[TEAMS][HEAD_TILES * 2][4];  // of 8 heads: of even ones, then of odd ones
  __align__(16) float newest[NEWEST_WARPS][2 * HEAD_DIM];
  __align__(16) float merged[CLUSTER][SLICE];
};
static_assert(sizeof(Shared) == SHARED_BYTES, "layout.py lays out shared memory");
// After it: keys [key_capacity], list [ceil(list_capacity / MEMBERS)], partials [TEAMS][PARTIAL], each from a multiple
// of 16 bytes on. Where warps share a unit, what they tell each other follows.
__device__ __forceinline__ int round16(int bytes) { return (bytes + 15) / 16 * 16; }

__device__ __forceinline__ int share_start(int total, int i, int shares) {
  return static_cast<int>(i64(total) * i / shares);
}

__device__ __forceinline__ int part_of(int word) { return PART == PARTIAL ? 0 : word / PART; }
