// A phase of sparse_step (step.cu), in its body: the n-th largest key of the row.
//
// From the least key to one over the largest finite one, where +inf goes, as distances from the least, shifted so that
// the top bit is used. A radix search: each pass settles 8 bits. It leaves `limit`, whether it `cuts_tie`, how many tied
// keys are `missing`, and how many keys of earlier CTAs come before this one's.

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
      s.settled_bin[0] = threshold | static_cast<u32>(tid) << shift;
      s.settled_bin[1] = over, s.settled_bin[2] = with_bin;
      s.settled_bin[3] = over_before + (above >> COUNT_BITS), s.settled_bin[4] = here >> COUNT_BITS;
    }
    __syncthreads();
    threshold = s.settled_bin[0], sure = s.settled_bin[1], kept = s.settled_bin[2];
    over_before = s.settled_bin[3], tied_before = s.settled_bin[4];
  }
  const u32 limit = least + (threshold >> unused);
  const bool cuts_tie = kept != n;  // then all bits are settled, and of the keys equal to limit the first ones fill up
  const int missing = n - sure;
