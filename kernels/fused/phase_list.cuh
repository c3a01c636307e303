// A phase of sparse_step (step.cu), in its body: the list of the blocks that are kept, and the newest block's summary.
//
// A warp's keys are consecutive, so entries come out ascending; ties go to the lower block. Each entry is sent to the
// CTA that will attend to it.

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
      float2 slot0 = start, slot1 = start;
      if (has_rows)
#pragma unroll
        for (int t = 0; t < NEWEST_TOKENS; t++) {
          const int token = warp * NEWEST_TOKENS + t;
          const float2 x = KV8 ? scaled(unpack_e4m3(*row_at(token, w / 2) >> 16 * (w % 2) & 0xffff), k_scale)
                               : unpack(*row_at(token, w));
          if (MINMAX) {
            slot0.x = fminf(slot0.x, x.x), slot0.y = fminf(slot0.y, x.y);
            slot1.x = fmaxf(slot1.x, x.x), slot1.y = fmaxf(slot1.y, x.y);
          } else if (warp * NEWEST_TOKENS + t < older) {
            const float2 d = {x.x - pivot.x, x.y - pivot.y};
            slot0.x += d.x, slot0.y += d.y, slot1.x += d.x * d.x, slot1.y += d.y * d.y;
          }
        }
      const int dim = dim_at(w);
      s.newest[warp][dim] = slot0.x, s.newest[warp][dim + 1] = slot0.y;
      s.newest[warp][HEAD_DIM + dim] = slot1.x, s.newest[warp][HEAD_DIM + dim + 1] = slot1.y;
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
      float2 slot0 = {s.newest[0][dim], s.newest[0][dim + 1]};
      float2 slot1 = {s.newest[0][HEAD_DIM + dim], s.newest[0][HEAD_DIM + dim + 1]};
      for (int i = 1; i < NEWEST_WARPS; i++) {
        const float2 x = {s.newest[i][dim], s.newest[i][dim + 1]};
        const float2 y = {s.newest[i][HEAD_DIM + dim], s.newest[i][HEAD_DIM + dim + 1]};
        if (MINMAX) {
          slot0.x = fminf(slot0.x, x.x), slot0.y = fminf(slot0.y, x.y);
          slot1.x = fmaxf(slot1.x, y.x), slot1.y = fmaxf(slot1.y, y.y);
        } else slot0.x += x.x, slot0.y += x.y, slot1.x += y.x, slot1.y += y.y;
      }
      if (!MINMAX) {
        const float2 pivot = as_stored(k_new[w], k_scale);
        const float count = older + 1;
        slot0.x /= count, slot0.y /= count;
        slot1.x = sqrtf(fmaxf(slot1.x / count - slot0.x * slot0.x, 0));
        slot1.y = sqrtf(fmaxf(slot1.y / count - slot0.y * slot0.y, 0));
        slot0.x += pivot.x, slot0.y += pivot.y;
      }
      if (FP8) {
        *reinterpret_cast<u16*>(to + dim) = pack_e4m3(slot0.x, slot0.y);
        *reinterpret_cast<u16*>(to + HEAD_DIM + dim) = pack_e4m3(slot1.x, slot1.y);
      } else {
        *reinterpret_cast<u32*>(to + 2 * dim) = pack(slot0.x, slot0.y);
        *reinterpret_cast<u32*>(to + 2 * (HEAD_DIM + dim)) = pack(slot1.x, slot1.y);
      }
    }
  }
  await_bytes(barriers + 8 * LIST);
