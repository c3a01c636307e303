// A phase of sparse_step (step.cu), in its body: attention over this CTA's share of the list, 16 tokens a warp at a time.
//
// Keys are the left operand, so that the 16 rows of the matrix units are tokens and no row is wasted on padding a group
// of heads; the sum over dims takes them in whatever order 16-byte loads bring them, the queries likewise. Values are
// turned by pairing two tokens' words. Tokens of a unit are rows r and r + 8. Blocks of 8 share one: each has 8 rows, and
// its own place and visible tokens. In a team of several warps each has its share of the dims, and the logits are the
// sums of what they have.

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
