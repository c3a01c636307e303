// One to sixteen rows of x times a weight in 4 bits, with RMSNorm, bias, SwiGLU and residual in the same launch.
//
// Weights depend on nothing that the kernel before writes. So each warp fills its ring of them first, then waits for x:
// the chip reads weights while the kernel before ends. The rest is one loop over the tiles of a CTA.
//
//   y[n, m] = sum over groups g of  s[n, g] sum_k (q - 8) x[k, m]  +  z[n, g] sum_k x[k, m]
//
// Weights are the first operand of the matrix units, x is the second one. Unpacking takes most of the instructions: in bf16
// weights stay 128 + q, and zeros take that back.

#include "device.cuh"
#include "words.cuh"
#include "layout.cuh"
#include "ring.cuh"
#include "operands.cuh"
#include "finish.cuh"

constexpr float OFFSET = FP16 ? 0 : 136;
constexpr int WRITTEN = 1, READ = 3;  // barriers of the shares of even and odd tiles

// Eight nibbles, of two words and four groups, as q - 8 + OFFSET, by 128 + q (bf16); 1024 + q, 1024 + 16 q over 16 (fp16).
__device__ __forceinline__ void unpack_words(u32 w, u32 nibbles, u32 (&q)[4]) {
#if FP16
  constexpr u32 BASE = 0x64006400u, ONE = 0x3c003c00u, LESS = 0xe408e408u, SIXTEENTH = 0x2c002c00u, LESS_72 = 0xd480d480u;
  const u32 upper = w >> 8;
  q[0] = fma_pairs((w & nibbles) | BASE, ONE, LESS);
  q[1] = fma_pairs((w & (nibbles << 4)) | BASE, SIXTEENTH, LESS_72);
  q[2] = fma_pairs((upper & nibbles) | BASE, ONE, LESS);
  q[3] = fma_pairs((upper & (nibbles << 4)) | BASE, SIXTEENTH, LESS_72);
#else
#pragma unroll
  for (int g = 0; g < 4; g++) q[g] = (w >> 4 * g & nibbles) | 0x43004300u;
#endif
}

// This warp's part of 16 weight rows times x, of each eight.
__device__ __forceinline__ void multiply_slot(const char* slot, const Operand& o, u32 nibbles, int lane,
                                              float (&sum)[EIGHTS][4]) {
  const int row = 2 * mixed(lane / 4), t = lane % 4;
  const char* words = slot + row * PITCH + 16 * t;
  const int swap = SWAPPED && row & 4 ? 64 : 0;
  const char* scales = slot + TILE * PITCH + 4 * row;
#pragma unroll
  for (int e = 0; e < EIGHTS; e++) sum[e][0] = sum[e][1] = sum[e][2] = sum[e][3] = 0;
#pragma unroll
  for (int p = 0; p < PARTS; p++) {
    float products[4][EIGHTS][4] = {};
#pragma unroll
    for (int j = p * PART_CHUNKS; j < (p + 1) * PART_CHUNKS; j++) {
      const char* chunk = words + 64 * j + (j % 2 ? -swap : swap);
      const uint4 even = *reinterpret_cast<const uint4*>(chunk), odd = *reinterpret_cast<const uint4*>(chunk + PITCH);
      const u32 own[2][4] = {{even.x, even.y, even.z, even.w}, {odd.x, odd.y, odd.z, odd.w}};
#pragma unroll
      for (int half = 0; half < 2; half++) {
        u32 q[4][4];  // row and words of an operand, then group
#pragma unroll
        for (int i = 0; i < 4; i++) unpack_words(own[i % 2][2 * half + i / 2], nibbles, q[i]);
#pragma unroll
        for (int g = 0; g < 4; g++)
#pragma unroll
          for (int e = 0; e < EIGHTS; e++)
            multiply(products[g][e], q[0][g], q[1][g], q[2][g], q[3][g], o.values[e][j][g][2 * half],
                     o.values[e][j][g][2 * half + 1]);
      }
    }
#pragma unroll
    for (int g = 0; g < 4; g++) {
      const uint2 pairs = *reinterpret_cast<const uint2*>(scales + (4 * p + g) * SCALE_BYTES);
      float2 even = unpack(pairs.x), odd = unpack(pairs.y);  // scale and zero
      if (OFFSET) even.y = fmaf(-OFFSET, even.x, even.y), odd.y = fmaf(-OFFSET, odd.x, odd.y);
#pragma unroll
      for (int e = 0; e < EIGHTS; e++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
          sum[e][i] = fmaf(products[g][e][i], even.x, fmaf(o.sums[e][p][g][i], even.y, sum[e][i]));
          sum[e][2 + i] = fmaf(products[g][e][2 + i], odd.x, fmaf(o.sums[e][p][g][i], odd.y, sum[e][2 + i]));
        }
    }
  }
}

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, 1)
    int4_gemv(const __grid_constant__ Arguments a, int clusters) {
  char* memory = dynamic_shared();
  const int tid = threadIdx.x, lane = tid % 32, warp = from_lane(tid / 32, 0);  // so that the compiler knows it is one
  const int rank = CLUSTER > 1 ? cluster_rank() : 0, cluster = blockIdx.x / CLUSTER;
  const int quads = a.columns / 4;
  const int first = 4 * share_start(quads, cluster, clusters), last = 4 * share_start(quads, cluster + 1, clusters);
  const int tiles = (last - first + TILE - 1) / TILE, parts = HALVES * tiles;
  const int unit = share_start(UNITS, rank, CLUSTER) + warp;
  const int units = share_start(UNITS, rank + 1, CLUSTER) - share_start(UNITS, rank, CLUSTER);  // warps that have one
  const bool active = warp < units;
  char* own = memory + SHARES_AT + warp * OWN_BYTES;  // [2][HALVES][VALUES]
  float* squares = reinterpret_cast<float*>(memory + SQUARES_AT);
  const u32 arrival = shared_address(memory + ARRIVAL_AT);  // of what CTAs of a cluster send

  char* slots = memory + warp * SLOTS * SLOT_BYTES;
  const Ring ring = {shared_address(slots), a.words + unit * UNIT_BYTES,
                     a.scales + i64(unit * CHUNKS * 32 / GROUP) * 4 * (HALVES * a.columns) * 4,
                     first, last, a.columns, unit, lane};
  if (CLUSTER > 1) {
    if (tid == 0) {
      barrier_init(arrival);
      publish_barriers();
      const int owned = (tiles - rank + CLUSTER - 1) / CLUSTER;
      expect_bytes(arrival, CLUSTER * (owned * SHARE * 4 + (a.norm ? 4 * ROWS : 0)));
    }
    sync_warp();
    cluster_arrive();
  }

  // ---- weights, as far as the ring goes
  if (active) {
    ring.clear(slots);
    if (a.norm) fetch_norm(a.norm, unit, lane, own);
    end_group();
#pragma unroll 1
    for (int i = 0; i < SLOTS; i++) {
      if (i < parts) ring.fetch(i, i);
      end_group();
    }
  }

  // ---- x, once the kernel before has ended
  await_previous();
  if (parts <= SLOTS) release_next();
  Operand o;
  if (active) {
    await_groups<SLOTS>();
    sync_warp();
    load_values(a, unit, lane, o);
    if (a.norm) {
#pragma unroll
      for (int e = 0; e < EIGHTS; e++) {
        const float of_row = weigh(own, lane, e, o);
        if (row_by_itself(lane)) squares[ROWS * warp + 8 * e + lane / 4] = of_row;
      }
      sync_warp();
    }
    sum_groups(o);
  }

  if (CLUSTER > 1) cluster_wait();

  // ---- tiles: a warp besides sums what the others leave of each, while they multiply the next one
  const int meeting = 32 * (units + 1);
  if (active) {
    const u32 nibbles = from_lane(a.nibbles, 0);  // stays in its register
    int slot = 0;
#pragma unroll 1
    for (int tile = 0; tile < tiles; tile++) {
      float sum[HALVES][EIGHTS][4];
#pragma unroll
      for (int half = 0; half < HALVES; half++) {
        ring.await();
        multiply_slot(slots + slot * SLOT_BYTES, o, nibbles, lane, sum[half]);
        sync_warp();
        const int next = HALVES * tile + half + SLOTS;
        if (next < parts) ring.fetch(next, slot);
        end_group();
        if (next == parts - 1) release_next();
        if (++slot == SLOTS) slot = 0;
      }
      if (tile >= 2) sync_threads_of(READ + tile % 2, meeting);
      float4* shares = reinterpret_cast<float4*>(own) + tile % 2 * HALVES * EIGHTS * 32 + lane;
#pragma unroll
      for (int half = 0; half < HALVES; half++)
#pragma unroll
        for (int e = 0; e < EIGHTS; e++) {
          const float (&y)[4] = sum[half][e];
          shares[(half * EIGHTS + e) * 32] = {y[0], y[1], y[2], y[3]};
        }
      arrive_at(WRITTEN + tile % 2, meeting);
    }
  }
  if (warp == WARPS) {
    float rms[EIGHTS][2];
#pragma unroll
    for (int e = 0; e < EIGHTS; e++) rms[e][0] = rms[e][1] = 1;
#pragma unroll 1
    for (int tile = 0; tile < tiles; tile++) {
      const int row = first + TILE * tile;
      Addends added[EIGHTS][4];
      if (CLUSTER == 1)
#pragma unroll
        for (int e = 0; e < EIGHTS; e++)
#pragma unroll
          for (int i = 0; i < 4; i++) added[e][i].load(a, row, e * EIGHT + 4 * lane + i, last);
      sync_threads_of(WRITTEN + tile % 2, meeting);
      if (tile == 0 && a.norm) {
#pragma unroll
        for (int e = 0; e < EIGHTS; e++)
#pragma unroll
          for (int i = 0; i < 2; i++) {
            const int x = 8 * e + lane % 4 * 2 + i;
            rms[e][i] = 0;
            for (int w = 0; w < units; w++) rms[e][i] += squares[ROWS * w + x];
            if (CLUSTER == 1) rms[e][i] = over_rms(a, rms[e][i]);
            if (CLUSTER > 1 && lane < 4) send_squares(memory, arrival, rank, rms[e][i], x);
          }
      }
      const char* shares = memory + SHARES_AT + tile % 2 * 4 * SHARE + 16 * lane;
#pragma unroll
      for (int e = 0; e < EIGHTS; e++) {
        float value[HALVES][4] = {};
#pragma unroll
        for (int w = 0; w < WARPS; w++)
          if (w < units)
#pragma unroll
            for (int half = 0; half < HALVES; half++) {
              const int at = w * OWN_BYTES + 4 * (half * VALUES + e * EIGHT);
              const float4 share = *reinterpret_cast<const float4*>(shares + at);
              value[half][0] += share.x, value[half][1] += share.y, value[half][2] += share.z, value[half][3] += share.w;
            }
        if (e == EIGHTS - 1 && tile + 2 < tiles) arrive_at(READ + tile % 2, meeting);
        if (CLUSTER > 1) send_tile(memory, arrival, rank, tile, value, e * EIGHT + 4 * lane);
        else
#pragma unroll
          for (int i = 0; i < 4; i++)
            finish(a, added[e][i], value[0][i], value[HALVES - 1][i], rms[e][i % 2], row, e * EIGHT + 4 * lane + i, last);
      }
    }
  }
  if (CLUSTER > 1) finish_cluster(a, memory, arrival, rank, first, last, tiles);
}
