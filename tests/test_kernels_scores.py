"""Block scores against fp64, within the bound that the reference derives for an fp32 evaluation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import DEVICE, DTYPES, LAYOUTS, NAN, make_cache, poisoned_summaries, random, same
from resa_bench.kernels import (
    AttentionShape,
    KVCache,
    SparseConfig,
    build_summaries,
    score_blocks,
    score_rows,
    select_blocks,
    write_tokens,
)
from resa_bench.kernels.attention.scores import scores_reference
from resa_bench.kernels.config import GQA_POLICIES, SUMMARY_KINDS
from resa_bench.kernels.portable import refresh_torch
from resa_bench.suites.core.settings import SUMMARIES, summary_settings
from torch import Tensor


def score(cache: KVCache, q: Tensor, config: SparseConfig) -> tuple[Tensor, Tensor]:
    """Scores into a poisoned buffer, and the summaries they come from in order of the sequence."""
    summaries = poisoned_summaries(cache, config.block_size, config.summary_kind, config.summary_dtype)
    build_summaries(cache, summaries)
    shape = AttentionShape(cache.batch, q.shape[1], cache.kv_heads, cache.head_dim)
    rows = score_rows(shape, config.gqa_policy)
    scores = torch.full((cache.batch, rows, config.blocks(cache.capacity)), NAN, device=DEVICE)
    score_blocks(q, cache, summaries, scores, config, check_values=True)
    return scores, summaries.logical(cache)


def check_scores(cache: KVCache, q: Tensor, config: SparseConfig) -> None:
    scores, table = score(cache, q, config)
    for b, length in enumerate(cache.lengths.tolist()):
        blocks = config.blocks(length)
        assert bool(scores[b, :, blocks:].isnan().all()), "scores past the last block were written"
        if not blocks:
            continue
        exact, budget = scores_reference(q[b], table[b, :, :blocks], config)
        computed = scores[b, :, :blocks]
        index = torch.arange(blocks, device=DEVICE)
        local = (index >= blocks - config.local_blocks) | (index < config.pinned_blocks)
        assert torch.equal(computed.isposinf(), local.expand_as(computed))
        error = torch.where(local, 0.0, computed.double() - exact.masked_fill(local, 0.0)).abs()
        assert bool((error <= budget).all()), f"sequence {b}: {(error / budget).max():.2f} times the budget"


@pytest.mark.sanitizer
@pytest.mark.parametrize("policy", GQA_POLICIES)
@pytest.mark.parametrize("kind", SUMMARY_KINDS)
@pytest.mark.parametrize("kept_in", [None, "fp8"], ids=["", "fp8"])
@pytest.mark.slow
def test_policies(policy: str, kind: str, kept_in: str | None, dtype: torch.dtype) -> None:
    cache = make_cache([101, 1, 32, 0], dtype=dtype, capacity=120)
    q = random(4, 14, 64, dtype=dtype, seed=1)
    check_scores(cache, q, SparseConfig(gqa_policy=policy, summary_kind=kind, summary_dtype=kept_in, spread_weight=0.7))


@pytest.mark.sanitizer
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("group", "dim"), [(1, 64), (7, 128)], ids=["g1-d64", "g7-d128"])
@pytest.mark.slow
def test_shapes(layout: str, group: int, dim: int, dtype: torch.dtype) -> None:
    cache = make_cache([90, 17], dim=dim, dtype=dtype, layout=layout)
    check_scores(cache, random(2, 2 * group, dim, dtype=dtype, seed=2), SparseConfig())


@pytest.mark.thinned(5)
@pytest.mark.sanitizer
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("policy", GQA_POLICIES)
@pytest.mark.parametrize("kind", [*SUMMARY_KINDS, "minmax-fp8"])
@pytest.mark.slow
def test_append_while_scoring(layout: str, policy: str, kind: str, dtype: torch.dtype) -> None:
    """As `write_tokens` before scoring: the same cache, summaries and scores, of empty sequences too."""
    config = SparseConfig(gqa_policy=policy, **summary_settings(kind))
    lengths = [101, 1, 33, 0]
    q = random(4, 6, 64, dtype=dtype, seed=1)
    k, v = random(2, 4, 2, 64, dtype=dtype, seed=2)
    results = []
    for fused in (False, True):
        cache = make_cache(lengths, dtype=dtype, capacity=120, layout=layout)
        summaries = poisoned_summaries(cache, config.block_size, config.summary_kind, config.summary_dtype)
        build_summaries(cache, summaries)
        scores = torch.full((4, {"per-head": 6, "all-heads": 1}.get(policy, 2), 8), NAN, device=DEVICE)
        if not fused:
            write_tokens(cache, k, v, summaries)
        score_blocks(q, cache, summaries, scores, config, append=(k, v) if fused else None)
        results.append((*cache.gather(), summaries.logical(cache), scores))
    for apart, together in zip(*results, strict=True):
        assert same(apart, together)
    assert torch.equal(results[1][0][0, :, 100], k[0])


def test_append_needs_a_local_block() -> None:
    cache = make_cache([33], dtype=DTYPES[0])
    config = SparseConfig(local_blocks=0)
    summaries, k = poisoned_summaries(cache, 16, "minmax"), random(1, 2, 64, dtype=DTYPES[0], seed=1)
    with pytest.raises(ValueError, match="append: needs local_blocks of at least 1"):
        score_blocks(
            random(1, 2, 64, dtype=DTYPES[0], seed=1), cache, summaries, torch.empty(1, 2, 3, device=DEVICE), config,
            append=(k, k),
        )  # fmt: skip


@pytest.mark.parametrize("kind", SUMMARY_KINDS)
@pytest.mark.slow
def test_lists_differ_from_exact_ones_inside_the_error_band_only(kind: str, dtype: torch.dtype) -> None:
    """Selection is exact on fp32 scores: a block that fp64 would not take lies within two budgets of the n-th best.

    The band is narrow: under 2e-4 of the spread of the scores (head dim 64).
    """
    tokens = 4096 if DEVICE.type == "cuda" else 1024  # the interpreter takes four times as long for four times as many
    cache = make_cache([tokens], dtype=dtype)
    config = SparseConfig(block_size=8, summary_kind=kind)
    scores, table = score(cache, random(1, 6, 64, dtype=dtype, seed=5), config)
    n = config.selected(tokens)
    lists = torch.full((1, 2, n), -7, dtype=torch.int32, device=DEVICE)
    select_blocks(scores, cache, lists, torch.zeros(1, 2, dtype=torch.int32, device=DEVICE), config)
    exact, budget = scores_reference(random(1, 6, 64, dtype=dtype, seed=5)[0], table[0], config)
    for row in range(2):
        threshold = exact[row].topk(n).values[-1]
        band = 2 * float(budget[row].max())
        assert bool((exact[row, lists[0, row].long()] >= threshold - band).all())
        finite = exact[row][exact[row].isfinite()]
        assert 0 < band < 2e-4 * float(finite.max() - finite.min())


@pytest.mark.parametrize(("local_blocks", "pinned_blocks"), [(0, 0), (1, 0), (3, 0), (0, 2), (1, 1), (2, 3)])
def test_blocks_that_are_always_taken(local_blocks: int, pinned_blocks: int) -> None:
    cache = make_cache([90, 17], dtype=DTYPES[0])
    config = SparseConfig(local_blocks=local_blocks, pinned_blocks=pinned_blocks)
    check_scores(cache, random(2, 4, 64, dtype=DTYPES[0], seed=3), config)


@pytest.mark.slow
def test_more_blocks_than_a_tile() -> None:
    """Each program scores a tile of blocks: the last one of a long sequence, none of a short one."""
    cache = make_cache([600, 8, 520], kv_heads=1, dim=16, dtype=DTYPES[0])
    check_scores(cache, random(3, 2, 16, dtype=DTYPES[0], seed=4), SparseConfig(block_size=8))


def test_queries_may_be_strided(dtype: torch.dtype) -> None:
    cache = make_cache([90, 17], dtype=dtype)
    check_scores(cache, random(2, 9, 64, dtype=dtype, seed=5)[:, 2:6], SparseConfig())


@pytest.mark.slow
def test_lengths_change_in_place(dtype: torch.dtype) -> None:
    cache = make_cache([90, 17], dtype=dtype)
    q = random(2, 4, 64, dtype=dtype, seed=6)
    for lengths in ([90, 17], [33, 16], [1, 0]):
        cache.lengths.copy_(torch.tensor(lengths, dtype=torch.int32))
        check_scores(cache, q, SparseConfig())


def test_minmax_score_bounds_the_logits() -> None:
    """What the score is for: no key of the block has a larger product with the query."""
    cache = make_cache([100], dtype=DTYPES[0])
    q = random(1, 2, 64, dtype=DTYPES[0], seed=7)
    scores, _ = score(cache, q, SparseConfig(gqa_policy="per-head", local_blocks=0))
    logits = torch.einsum("bhd,bhsd->bhs", q.float(), cache.k.float())
    for i, block in enumerate(logits.split(16, dim=2)):
        assert bool((block.amax(2) <= scores[:, :, i] * (1 + 1e-5) + 1e-3).all())


def test_the_reference_is_the_papers_sum() -> None:
    """The fp64 reference, against max(q lo, q hi) summed in plain Python."""
    cache = make_cache([20], kv_heads=1, dim=16, dtype=DTYPES[0])
    q = random(1, 2, 16, dtype=DTYPES[0], seed=8)
    summaries = poisoned_summaries(cache, 16, "minmax")
    refresh_torch(cache, summaries)
    mean = [sum(float(q[0, h, d]) for h in range(2)) / 2 for d in range(16)]
    wanted = [
        sum(max(x * float(lo), x * float(hi)) for x, lo, hi in zip(mean, *summaries.data[0, 0, i], strict=True))
        for i in range(2)
    ]
    exact, _ = scores_reference(q[0], summaries.data[0], SparseConfig(local_blocks=0))
    assert exact[0].tolist() == pytest.approx(wanted, rel=1e-12)


@given(
    lengths=st.lists(st.integers(0, 200), min_size=1, max_size=3),
    kv_heads=st.integers(1, 3),
    group=st.sampled_from([1, 2, 7]),
    block_size=st.sampled_from([8, 16, 64]),
    policy=st.sampled_from(GQA_POLICIES),
    summary=st.sampled_from(SUMMARIES),
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(DTYPES),
)
@pytest.mark.slow
def test_anything(
    lengths: list[int],
    kv_heads: int,
    group: int,
    block_size: int,
    policy: str,
    summary: str,
    layout: str,
    dtype: torch.dtype,
) -> None:
    cache = make_cache(lengths, kv_heads, 16, dtype=dtype, layout=layout, page_size=64)
    q = random(len(lengths), kv_heads * group, 16, dtype=dtype, seed=len(lengths))
    check_scores(cache, q, SparseConfig(block_size=block_size, gqa_policy=policy, **summary_settings(summary)))
