// A phase of sparse_step (step.cu), in its body: what the clusters of a row tell each other of their scores.
//
// Afterwards a CTA has the keys of all blocks that it searches, and with several clusters the extremes of all CTAs.
// Meanwhile the newest block's older keys come, for its summary.

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
