// A phase of sparse_step (step.cu), in its body: scores of this CTA's blocks, by their summaries.
//
// Scores go to the work space, their keys to `keys`, the least and the largest key of the CTA to `s.own_extremes`.

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
        const bool has_sum = BLOCK_LANES <= SCORES || lane % (BLOCK_LANES / SCORES) == 0;
        if (has_sum && block < blocks) {
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
