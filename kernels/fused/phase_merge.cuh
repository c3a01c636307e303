// A phase of sparse_step (step.cu), in its body: the teams' results are merged, then the CTAs', then the clusters'.
//
// A partial result has a part for each warp of a team and 8 heads: its word f is acc[f / 128][f / 32 % 4] of lane f % 32.

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
  }
