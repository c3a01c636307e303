"""Bad arguments: each error names the argument, what came and what is allowed, and comes before any launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import resa_bench.kernels.launch as launch_module
import torch
from kernel_cases import DEVICE, DTYPES, INTERPRET, NAN, make_cache, poisoned_partials
from resa_bench.kernels import (
    AttentionShape,
    KVCache,
    Partials,
    SparseConfig,
    Summaries,
    build_summaries,
    dense_attention,
    dense_splits,
    merge_partials,
    refresh_summaries,
    score_blocks,
    score_rows,
    select_blocks,
    sparse_decode,
    sparse_splits,
    write_tokens,
)
from resa_bench.kernels.config import MAX_BLOCKS
from resa_bench.kernels.launch import plan_splits, recording
from torch import Tensor

DTYPE = DTYPES[0]
OTHER = torch.float64
B, HQ, HKV, D, S, BLOCK, N = 2, 4, 2, 64, 48, 16, 3


def ints(*shape: int, fill: int = 0) -> Tensor:
    return torch.full(shape, fill, dtype=torch.int32, device=DEVICE)


def empty(*shape: int, dtype: torch.dtype = DTYPE, device: torch.device | str = DEVICE) -> Tensor:
    return torch.zeros(*shape, dtype=dtype, device=device)


def of_another_type() -> KVCache:
    """A cache whose type no kernel takes."""
    k = empty(B, HKV, S, D, dtype=OTHER)
    return KVCache(k, torch.zeros_like(k), ints(B))


def last_strided(*shape: int) -> Tensor:
    """Every other element of the last dimension."""
    return empty(*shape[:-1], 2 * shape[-1])[..., ::2]


def cache_of(capacity: int = S, layout: str = "contiguous") -> KVCache:
    return make_cache([min(capacity, S)] * B, HKV, D, dtype=DTYPE, capacity=capacity, layout=layout)


def summaries_of(cache: KVCache, **changes: Any) -> Summaries:
    summaries = Summaries.allocate(cache, **({"block_size": BLOCK} | changes))
    summaries.data.zero_()
    return summaries


def arguments(name: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    """A function and arguments that it takes."""
    cache, config = cache_of(), SparseConfig(min_blocks=N)
    summaries, partials = summaries_of(cache), poisoned_partials(B * HQ, 2, D)
    lists, counts = ints(B, HKV, N), ints(B, HKV)
    q, new = empty(B, HQ, D), empty(B, 2, HKV, D)
    scores = empty(B, HKV, N, dtype=torch.float32)
    functions: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "build_summaries": (build_summaries, dict(cache=cache, summaries=summaries)),
        "refresh_summaries": (refresh_summaries, dict(cache=cache, summaries=summaries, tokens=1)),
        "write_tokens": (write_tokens, dict(cache=cache, k_new=new, v_new=new.clone(), summaries=summaries)),
        "score_blocks": (score_blocks, dict(q=q, cache=cache, summaries=summaries, scores=scores, config=config)),
        "select_blocks": (
            select_blocks,
            dict(scores=scores, cache=cache, lists=lists, counts=counts, config=config),
        ),
        "sparse_decode": (
            sparse_decode,
            dict(q=q, cache=cache, lists=lists, counts=counts, partials=partials, block_size=BLOCK),
        ),
        "dense_attention": (dense_attention, dict(q=q, cache=cache, partials=partials)),
        "merge_partials": (merge_partials, dict(partials=partials, out=q)),
    }
    return functions[name]


FUNCTIONS = (
    "build_summaries",
    "refresh_summaries",
    "write_tokens",
    "score_blocks",
    "select_blocks",
    "sparse_decode",
    "dense_attention",
    "merge_partials",
)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_good_arguments_are_taken(name: str) -> None:
    """What the cases below change one thing of."""
    function, good = arguments(name)
    with recording() as launches:
        function(**good)
    assert len(launches) == 1
    if name not in ("merge_partials",):
        function(**good, check_values=True)
    else:
        function(**good)


F32 = torch.float32
NO_TENSOR = [[0.0]]
BAD: dict[str, tuple[str, Callable[[], dict[str, Any]], type[Exception], str]] = {
    # write_tokens
    "write/k-type": ("write_tokens", lambda: dict(k_new=NO_TENSOR), TypeError, r"k_new: got list, expected a torch"),
    "write/k-dtype": ("write_tokens", lambda: dict(k_new=empty(B, 2, HKV, D, dtype=OTHER)), TypeError,
                      r"k_new: got dtype float64, allowed: b?float16"),
    "write/v-dtype": ("write_tokens", lambda: dict(v_new=empty(B, 2, HKV, D, dtype=OTHER)), TypeError,
                      r"v_new: got dtype float64, allowed: b?float16"),
    "write/k-heads": ("write_tokens", lambda: dict(k_new=empty(B, 2, HQ, D), v_new=empty(B, 2, HQ, D)), ValueError,
                      r"k_new: got shape \[2, 2, 4, 64\], expected \[2, any, 2, 64\]"),
    "write/k-dim": ("write_tokens", lambda: dict(k_new=empty(B, 2, HKV, 32)), ValueError, r"k_new: got shape .*32\]"),
    "write/k-dims": ("write_tokens", lambda: dict(k_new=empty(HKV, D)), ValueError, r"k_new: got shape \[2, 64\]"),
    "write/v-shape": ("write_tokens", lambda: dict(v_new=empty(B, 3, HKV, D)), ValueError,
                      r"v_new: got shape \[2, 3, 2, 64\], expected \[2, 2, 2, 64\]"),
    "write/v-strides": ("write_tokens", lambda: dict(v_new=empty(B, HKV, 2, D).transpose(1, 2)), ValueError,
                        r"v_new: strides \(.*\) differ from k_new's"),
    "write/last-stride": ("write_tokens", lambda: dict(k_new=last_strided(B, 2, HKV, D)), ValueError,
                          r"k_new: stride of the last dimension is 2, must be 1"),
    "write/too-many": ("write_tokens", lambda: dict(k_new=empty(B, 49, HKV, D), v_new=empty(B, 49, HKV, D)),
                       ValueError, r"k_new: 49 tokens, allowed 1 to the cache's capacity of 48"),
    "write/none": ("write_tokens", lambda: dict(k_new=empty(B, 0, HKV, D), v_new=empty(B, 0, HKV, D)), ValueError,
                   r"k_new: 0 tokens, allowed 1 to"),
    "write/device": ("write_tokens", lambda: dict(k_new=empty(B, 2, HKV, D, device="meta")), ValueError,
                     r"k_new: is on meta, expected "),
    "write/summaries": ("write_tokens", lambda: dict(summaries=summaries_of(cache_of(64))), ValueError,
                        r"summaries.data: got shape \[2, 2, 4, 2, 64\], expected \[2, 2, 3, 2, 64\]"),
    # build and refresh
    "build/summaries-dtype": ("build_summaries",
                              lambda: dict(summaries=Summaries(empty(B, HKV, N, 2, D, dtype=OTHER), "minmax", BLOCK)),
                              TypeError, r"summaries.data: got dtype float64, allowed: b?float16"),
    "build/summaries-strided": (
        "build_summaries",
        lambda: dict(summaries=Summaries(empty(B, HKV, 2 * N, 2, D)[:, :, ::2], "minmax", BLOCK)), ValueError,
        r"summaries.data: must be contiguous"),
    "build/cache-dtype": ("build_summaries",
                          lambda: dict(cache=of_another_type()),
                          TypeError, r"cache.k: got dtype float64, allowed: "),
    "refresh/none": ("refresh_summaries", lambda: dict(tokens=0), ValueError, r"tokens: got 0, allowed 1 to .* 48"),
    "refresh/negative": ("refresh_summaries", lambda: dict(tokens=-1), ValueError, r"tokens: got -1, allowed 1 to"),
    "refresh/too-many": ("refresh_summaries", lambda: dict(tokens=49), ValueError, r"tokens: got 49, allowed 1 to"),
    # score_blocks
    "score/q-type": ("score_blocks", lambda: dict(q=None), TypeError, r"q: got NoneType, expected a torch.Tensor"),
    "score/q-dtype": ("score_blocks", lambda: dict(q=empty(B, HQ, D, dtype=OTHER)), TypeError, r"q: got dtype float64"),
    "score/q-batch": ("score_blocks", lambda: dict(q=empty(3, HQ, D)), ValueError,
                      r"q: got shape \[3, 4, 64\], expected \[2, any, 64\]"),
    "score/q-heads": ("score_blocks", lambda: dict(q=empty(B, 3, D)), ValueError,
                      r"q_heads: got 3, must be a multiple of kv_heads \(2\)"),
    "score/q-stride": ("score_blocks", lambda: dict(q=last_strided(B, HQ, D)), ValueError, r"q: stride of the last"),
    "score/q-device": ("score_blocks", lambda: dict(q=empty(B, HQ, D, device="meta")), ValueError, r"q: is on meta"),
    "score/scores-dtype": ("score_blocks", lambda: dict(scores=empty(B, HKV, N, dtype=torch.float64)), TypeError,
                           r"scores: got dtype float64, allowed: float32"),
    "score/scores-rows": ("score_blocks", lambda: dict(scores=empty(B, HQ, N, dtype=F32)), ValueError,
                          r"scores: got shape \[2, 4, 3\], expected \[2, 2, 3\]"),
    "score/scores-blocks": ("score_blocks", lambda: dict(scores=empty(B, HKV, 2, dtype=F32)), ValueError,
                            r"scores: got shape \[2, 2, 2\], expected \[2, 2, 3\]"),
    "score/kind": ("score_blocks", lambda: dict(summaries=summaries_of(cache_of(), kind="meanstd")), ValueError,
                   r"summaries: are meanstd of blocks of 16, config asks for minmax of blocks of 16"),
    "score/block-size": ("score_blocks", lambda: dict(summaries=summaries_of(cache_of(), block_size=8)), ValueError,
                         r"summaries: are minmax of blocks of 8, config asks for minmax of blocks of 16"),
    # select_blocks
    "select/scores-dtype": ("select_blocks", lambda: dict(scores=empty(B, HKV, N, dtype=OTHER)), TypeError,
                            r"scores: got dtype float64, allowed: float32"),
    "select/scores-blocks": ("select_blocks", lambda: dict(scores=empty(B, HKV, 4, dtype=F32)), ValueError,
                             r"scores: got shape \[2, 2, 4\], expected \[2, any, 3\]"),
    "select/lists-dtype": ("select_blocks", lambda: dict(lists=ints(B, HKV, N).long()), TypeError,
                           r"lists: got dtype int64, allowed: int32"),
    "select/lists-rows": ("select_blocks", lambda: dict(lists=ints(B, HQ, N)), ValueError,
                          r"lists: got shape \[2, 4, 3\], expected \[2, 2, any\]"),
    "select/lists-short": ("select_blocks", lambda: dict(lists=ints(B, HKV, 2)), ValueError,
                           r"lists: 2 entries a row, a full cache selects 3 blocks"),
    "select/counts-shape": ("select_blocks", lambda: dict(counts=ints(B)), ValueError,
                            r"counts: got shape \[2\], expected \[2, 2\]"),
    "select/counts-dtype": ("select_blocks", lambda: dict(counts=ints(B, HKV).long()), TypeError,
                            r"counts: got dtype int64, allowed: int32"),
    "select/counts-strided": ("select_blocks", lambda: dict(counts=ints(HKV, B).t()), ValueError,
                              r"counts: (must be contiguous|stride of the last dimension)"),
    # sparse_decode
    "sparse/q-dtype": ("sparse_decode", lambda: dict(q=empty(B, HQ, D, dtype=OTHER)), TypeError, r"q: got dtype"),
    "sparse/q-dim": ("sparse_decode", lambda: dict(q=empty(B, HQ, 32)), ValueError, r"q: got shape \[2, 4, 32\]"),
    "sparse/q-heads": ("sparse_decode", lambda: dict(q=empty(B, 5, D)), ValueError, r"q_heads: got 5, must be a"),
    "sparse/block-size": ("sparse_decode", lambda: dict(block_size=24), ValueError,
                          r"block_size: got 24, allowed are the powers of two"),
    "sparse/selected-size": ("sparse_decode", lambda: dict(counts=SparseConfig(32)), ValueError,
                            r"block_size: got 16, the lists were selected by blocks of 32"),
    "sparse/selected-room": ("sparse_decode", lambda: dict(counts=SparseConfig(), lists=ints(B, HKV, 2)), ValueError,
                            r"lists: 2 entries a row, a full cache selects 3 blocks"),
    "sparse/page": ("sparse_decode", lambda: dict(cache=cache_of(64, "paged"), block_size=64), ValueError,
                    r"block_size: got 64, must divide the cache's page size of 32"),
    "sparse/lists-dtype": ("sparse_decode", lambda: dict(lists=ints(B, HKV, N).long()), TypeError, r"lists: got dtype"),
    "sparse/lists-rows": ("sparse_decode", lambda: dict(lists=ints(B, 3, N), counts=ints(B, 3)), ValueError,
                          r"lists: 3 rows, allowed 1, Hkv = 2 or Hq = 4"),
    "sparse/lists-stride": ("sparse_decode", lambda: dict(lists=ints(B, HKV, 2 * N)[:, :, ::2]), ValueError,
                            r"lists: stride of the last dimension is 2, must be 1"),
    "sparse/counts": ("sparse_decode", lambda: dict(counts=ints(B, HQ)), ValueError,
                      r"counts: got shape \[2, 4\], expected \[2, 2\]"),
    "sparse/partials-rows": ("sparse_decode", lambda: dict(partials=poisoned_partials(3, 2, D)), ValueError,
                             r"partials.out: got shape \[3, 2, 64\], expected \[8, any, 64\]"),
    "sparse/partials-dim": ("sparse_decode", lambda: dict(partials=poisoned_partials(B * HQ, 2, 32)), ValueError,
                            r"partials.out: got shape \[8, 2, 32\], expected \[8, any, 64\]"),
    "sparse/partials-dtype": (
        "sparse_decode",
        lambda: dict(partials=Partials(empty(B * HQ, 2, D, dtype=OTHER), empty(B * HQ, 2, dtype=F32))), TypeError,
        r"partials.out: got dtype float64, allowed: float32"),
    "sparse/partials-lse": (
        "sparse_decode",
        lambda: dict(partials=Partials(empty(B * HQ, 2, D, dtype=F32), empty(B * HQ, 3, dtype=F32))), ValueError,
        r"partials.lse: got shape \[8, 3\], expected \[8, 2\]"),
    # dense_attention
    "dense/q-dtype": ("dense_attention", lambda: dict(q=empty(B, 1, HQ, D, dtype=OTHER)), TypeError, r"q: got dtype"),
    "dense/q-type": ("dense_attention", lambda: dict(q="q"), TypeError, r"q: got str, expected a torch.Tensor"),
    "dense/q-dims": ("dense_attention", lambda: dict(q=empty(HQ, D)), ValueError,
                     r"q: got shape \[4, 64\], expected \[2, any, any, 64\]"),
    "dense/q-heads": ("dense_attention", lambda: dict(q=empty(B, 1, 3, D)), ValueError, r"q_heads: got 3, must be"),
    "dense/partials": ("dense_attention", lambda: dict(q=empty(B, 2, HQ, D)), ValueError,
                       r"partials.out: got shape \[8, 2, 64\], expected \[16, any, 64\]"),
    "dense/partials-strided": (
        "dense_attention",
        lambda: dict(partials=Partials(empty(B * HQ, 4, D, dtype=F32)[:, ::2], empty(B * HQ, 2, dtype=F32))),
        ValueError, r"partials: must be contiguous"),
    # merge_partials
    "merge/out-rows": ("merge_partials", lambda: dict(out=empty(3, HQ, D)), ValueError,
                       r"partials.out: got shape \[8, 2, 64\], expected \[12, any, 64\]"),
    "merge/out-dim": ("merge_partials", lambda: dict(out=empty(B, HQ, 32)), ValueError, r"partials.out: got shape"),
    "merge/out-strided": ("merge_partials", lambda: dict(out=empty(B, 2 * HQ, D)[:, ::2]), ValueError,
                          r"out: must be contiguous"),
    "merge/out-device": ("merge_partials", lambda: dict(out=empty(B, HQ, D, device="meta")), ValueError,
                         r"out: is on meta, expected "),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_arguments(case: tuple[str, Callable[[], dict[str, Any]], type[Exception], str]) -> None:
    name, changes, error, message = case
    function, good = arguments(name)
    with recording() as launches, pytest.raises(error, match=rf"^{message}"):
        function(**(good | changes()))
    assert launches == []


def set_value(name: str, argument: str, change: Callable[[Any], object]) -> tuple[Callable[..., None], dict[str, Any]]:
    """Good arguments, one of them changed in place."""
    function, good = arguments(name)
    change(good[argument])
    return function, good


TAKES_CACHE = FUNCTIONS[:-1]
VALUES: dict[str, tuple[str, str, Callable[[Any], object], str]] = {
    **{f"{name}/length-too-long": (name, "cache", lambda c: c.lengths.fill_(S + 1),
                                   r"lengths: values span \[49, 49\], allowed \[0, 48\]") for name in TAKES_CACHE},
    "sparse/negative-length": ("sparse_decode", "cache", lambda c: c.lengths[0].fill_(-1),
                               r"lengths: values span \[-1, 48\], allowed \[0, 48\]"),
    "sparse/entry-too-large": ("sparse_decode", "lists", lambda x: x[1, 1, 2].fill_(3),
                               r"lists: values span \[0, 3\], allowed \[-1, 2\]"),
    "sparse/entry-too-small": ("sparse_decode", "lists", lambda x: x[1, 1, 2].fill_(-2),
                               r"lists: values span \[-2, 0\], allowed \[-1, 2\]"),
    "sparse/count-too-large": ("sparse_decode", "counts", lambda x: x[0, 1].fill_(4),
                               r"counts: values span \[0, 4\], allowed \[0, 3\]"),
    "sparse/negative-count": ("sparse_decode", "counts", lambda x: x[0, 1].fill_(-1), r"counts: values span \[-1, 0\]"),
    "select/nan": ("select_blocks", "scores", lambda x: x[1, 0, 2].fill_(NAN),
                   r"scores: NaN in the valid scores of sequence 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", VALUES.values(), ids=VALUES)
def test_bad_values(case: tuple[str, str, Callable[[Any], object], str]) -> None:
    """Device values are looked at only when asked for, since that synchronises."""
    name, argument, change, message = case
    function, good = set_value(name, argument, change)
    with recording() as launches, pytest.raises(ValueError, match=rf"^{message}"):
        function(**good, check_values=True)
    assert launches == []
    with recording() as launches:
        function(**good)
    assert len(launches) == 1


def test_nan_past_the_end_is_no_bad_score() -> None:
    function, good = arguments("select_blocks")
    good["cache"].lengths.fill_(32)
    good["scores"][:, :, 2].fill_(NAN)
    function(**good, check_values=True)


def test_bad_block_table() -> None:
    cache = cache_of(64, "paged")
    assert cache.block_table is not None
    cache.block_table[1, 0] = 4
    with pytest.raises(ValueError, match=r"^block_table: values span \[\d, 4\], allowed \[0, 3\]"):
        cache.check_values()


@pytest.mark.skipif(not INTERPRET, reason="on a GPU the kernels take CUDA tensors")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_cpu_needs_the_interpreter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, good = arguments(name)
    monkeypatch.setattr(launch_module, "INTERPRET", False)
    with pytest.raises(ValueError, match=r"need a CUDA device, got cpu \(TRITON_INTERPRET=1 runs them"):
        function(**good)


K4 = (B, HKV, S, D)
CACHES: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "k-type": (lambda: KVCache(cast(Any, []), empty(*K4), ints(B)), TypeError, r"k: got list"),
    "k-dims": (lambda: KVCache(empty(B, S, D), empty(B, S, D), ints(B)), ValueError, r"k: got shape \[2, 48, 64\]"),
    "k-stride": (lambda: KVCache(last_strided(*K4), last_strided(*K4), ints(B)), ValueError, r"k: stride of the last"),
    "v-dtype": (lambda: KVCache(empty(*K4), empty(*K4, dtype=OTHER), ints(B)), TypeError, r"v: got dtype float64"),
    "v-shape": (lambda: KVCache(empty(*K4), empty(B, HKV, S + 1, D), ints(B)), ValueError, r"v: got shape"),
    "v-strides": (lambda: KVCache(empty(*K4), empty(B, S, HKV, D).transpose(1, 2), ints(B)), ValueError,
                  r"v: strides \(6144, 64, 128, 1\) differ from k's \(6144, 3072, 64, 1\)"),
    "head-dim": (lambda: KVCache(empty(B, HKV, S, 48), empty(B, HKV, S, 48), ints(B)), ValueError,
                 r"k: head dim is 48, allowed are \(16, 32, 64, 128, 256\)"),
    "lengths-dtype": (lambda: KVCache(empty(*K4), empty(*K4), ints(B).long()), TypeError,
                      r"lengths: got dtype int64, allowed: int32"),
    "lengths-batch": (lambda: KVCache(empty(*K4), empty(*K4), ints(3)), ValueError, r"lengths: got shape \[3\]"),
    "table-dtype": (lambda: KVCache(empty(*K4), empty(*K4), ints(1), ints(1, 2).long()), TypeError,
                    r"block_table: got dtype int64, allowed: int32"),
    "table-batch": (lambda: KVCache(empty(*K4), empty(*K4), ints(1), ints(2, 1)), ValueError,
                    r"block_table: got shape \[2, 1\], expected \[1, any\]"),
    "store": (lambda: cache_of().store(empty(B, HKV, 49, D), empty(B, HKV, 49, D)), ValueError,
              r"k: 49 tokens do not fit the cache's capacity of 48"),
    "summaries-block-size": (lambda: Summaries.allocate(cache_of(), 12), ValueError, r"block_size: got 12, allowed"),
    "summaries-kind": (lambda: Summaries.allocate(cache_of(), 16, "max"), ValueError, r"kind: got 'max', allowed are"),
    "summaries-dtype": (lambda: Summaries.allocate(cache_of(), 16, "minmax", "int3"), ValueError,
                        r"dtype: got 'int3', allowed are fp8"),
    "summaries-page": (lambda: Summaries.allocate(cache_of(64, "paged"), 64), ValueError,
                       r"block_size: got 64, must divide the cache's page size of 32"),
}  # fmt: skip


@pytest.mark.parametrize("case", CACHES.values(), ids=CACHES)
def test_bad_caches(case: tuple[Callable[[], object], type[Exception], str]) -> None:
    make, error, message = case
    with pytest.raises(error, match=rf"^{message}"):
        make()


def test_too_many_blocks() -> None:
    """One program holds a row of scores: a limit, named with the way out."""
    tokens = (MAX_BLOCKS + 1) * 8
    k = torch.empty(1, 1, tokens, 16, dtype=DTYPE, device="meta")
    cache = KVCache(k, torch.empty_like(k), torch.empty(1, dtype=torch.int32, device="meta"))
    with pytest.raises(ValueError, match=rf"^cache: .* is {MAX_BLOCKS + 1} blocks of 8, allowed are {MAX_BLOCKS}"):
        Summaries.allocate(cache, 8)
    assert Summaries.allocate(cache, 16).data.shape[2] == MAX_BLOCKS // 2 + 1
    scores = torch.empty(1, 1, MAX_BLOCKS + 1, device="meta")
    lists, counts = (torch.empty(*s, dtype=torch.int32, device="meta") for s in ((1, 1, 9999), (1, 1)))
    with (
        recording() as launches,
        pytest.raises(ValueError, match=rf"^scores: {MAX_BLOCKS + 1} blocks a row, at most {MAX_BLOCKS}"),
    ):
        select_blocks(scores, cache, lists, counts, SparseConfig(block_size=8))
    assert launches == []


def test_cache_properties() -> None:
    contiguous, paged = cache_of(50), cache_of(50, "paged")
    assert (contiguous.batch, contiguous.kv_heads, contiguous.head_dim) == (B, HKV, D)
    assert (contiguous.capacity, contiguous.page_size, contiguous.paged) == (50, 50, False)
    assert (paged.capacity, paged.page_size, paged.paged) == (64, 32, True)
    assert paged.block_table is not None
    assert sorted(paged.block_table.flatten().tolist()) == [0, 1, 2, 3]
    assert paged.block_table.flatten().tolist() != [0, 1, 2, 3], "pages are meant to be out of order"
    k = torch.randn(B, HKV, 40, D).to(DEVICE, DTYPE)
    for cache in (contiguous, paged):
        cache.store(k, -k)
        gathered = cache.gather()
        assert torch.equal(gathered[0][:, :, :40], k)
        assert torch.equal(gathered[1][:, :, :40], -k)
        cache.check_values()


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "block-size": (dict(block_size=24), r"block_size: got 24, allowed are 8, 16, 32, 64, 128"),
    "block-size-too-large": (dict(block_size=256), r"block_size: got 256"),
    "no-ratio": (dict(active_ratio=0.0), r"active_ratio: got 0.0, must be above 0, at most 1"),
    "ratio-over-one": (dict(active_ratio=1.1), r"active_ratio: got 1.1"),
    "policy": (dict(gqa_policy="mean"), r"gqa_policy: got 'mean', allowed are group-mean, group-sum, per-head, all-"),
    "kind": (dict(summary_kind="max"), r"summary_kind: got 'max', allowed are minmax, meanstd"),
    "period": (dict(rectify_every=0), r"rectify_every: got 0, must be at least 1"),
    "negative-local": (dict(local_blocks=-1), r"local_blocks: got -1, must be at least 0"),
    "negative-sink": (dict(sink_blocks=-1), r"sink_blocks: got -1, must be at least 0"),
    "budget": (dict(budget_tokens=15), r"budget_tokens: got 15, must hold one block of 16"),
    "no-blocks": (dict(min_blocks=0), r"local_blocks: 1 always-selected blocks do not fit .* \(0\)"),
    "no-blocks-at-all": (dict(min_blocks=0, local_blocks=0), r"local_blocks: 0 always-selected"),
    "unknown-summary-dtype": (dict(summary_dtype="bf16"), r"summary_dtype: got 'bf16', allowed are fp8"),
    "negative-pinned": (dict(pinned_blocks=-1), r"pinned_blocks: got -1, must be at least 0"),
    "pinned-over-minimum": (dict(pinned_blocks=16), r"local_blocks: 17 always-selected blocks do not fit .* \(16\)"),
    "local-over-minimum": (dict(local_blocks=17), r"local_blocks: 17 always-selected blocks do not fit .* \(16\)"),
    "local-over-budget": (dict(local_blocks=3, budget_tokens=32), r"local_blocks: 3 always-selected .* \(2\)"),
}


@pytest.mark.parametrize("case", CONFIGS.values(), ids=CONFIGS)
def test_bad_configs(case: tuple[dict[str, Any], str]) -> None:
    settings, message = case
    with pytest.raises(ValueError, match=rf"^{message}"):
        SparseConfig(**settings)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0, 4, 2, 64), r"batch: got 0, allowed 1 to "),
        ((1, 0, 2, 64), r"q_heads: got 0, allowed 1 to "),
        ((1, 4, 0, 64), r"kv_heads: got 0, allowed 1 to "),
        ((1, 4, 3, 64), r"q_heads: got 4, must be a multiple of kv_heads \(3\)"),
        ((1, 2, 4, 64), r"q_heads: got 2, must be a multiple of kv_heads \(4\)"),
        ((1, 4, 2, 80), r"head_dim: got 80, allowed are"),
    ],
    ids=["batch", "q-heads", "kv-heads", "not-a-multiple", "fewer", "head-dim"],
)
def test_bad_shapes(numbers: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{message}"):
        AttentionShape(*numbers)


@pytest.mark.parametrize("name", ["batch", "q_heads", "kv_heads", "head_dim"])
@pytest.mark.parametrize("value", [2.0, "2", None, True], ids=repr)
def test_shapes_are_of_whole_numbers(name: str, value: Any) -> None:
    numbers = {"batch": 2, "q_heads": 2, "kv_heads": 2, "head_dim": 64} | {name: value}
    with pytest.raises(TypeError, match=rf"^{name}: got {value!r}, expected a whole number"):
        AttentionShape(**numbers)


@pytest.mark.parametrize("value", [16.0, "16", True, None], ids=repr)
def test_a_choice_is_of_its_type(value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^block_size: got {value!r}, allowed are 8, 16"):
        SparseConfig(block_size=value)


def test_defaults_are_those_of_the_paper() -> None:
    config = SparseConfig()
    assert (config.block_size, config.active_ratio, config.min_blocks) == (16, 0.1, 16)
    assert (config.local_blocks, config.rectify_every, config.gqa_policy) == (1, 32, "group-mean")
    assert config.summary_kind == "minmax"


def test_rows_of_scores() -> None:
    shape = AttentionShape(1, 28, 4, 128)
    assert shape.group == 7
    policies = ("group-mean", "group-sum", "per-head", "all-heads")
    assert [score_rows(shape, policy) for policy in policies] == [4, 4, 28, 1]


def test_splits_stay_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough programs to fill the chip, never more splits than tiles, at least one, at most 128."""
    monkeypatch.setattr(launch_module, "sm_count", lambda device: 132)
    device = torch.device("cpu")
    assert plan_splits(4, 10_000, device, 2) == 66
    assert plan_splits(4, 10, device, 2) == 10
    assert plan_splits(1, 10_000, device, 4) == 128
    assert plan_splits(1000, 10_000, device, 1) == 1
    assert plan_splits(1, 0, device, 1) == 1
    shape = AttentionShape(1, 28, 4, 128)
    assert sparse_splits(shape, 28, 1640, 16, device) <= sparse_splits(shape, 4, 1640, 16, device)
    assert sparse_splits(shape, 4, 0, 16, device) == 1
    assert dense_splits(shape, 1, 16, device) == 1
    assert dense_splits(shape, 32, 262144, device) <= dense_splits(shape, 1, 262144, device)


def test_shares_of_a_list_are_whole_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a few splits more than fill the chip save a tile in each; a tile of one block leaves no choice."""
    monkeypatch.setattr(launch_module, "sm_count", lambda device: 132)
    shape, device = AttentionShape(1, 28, 4, 128), torch.device("cpu")
    splits = {blocks: sparse_splits(shape, 4, blocks, 16, device) for blocks in (205, 410, 820, 1639, 600)}
    assert splits == {205: 52, 410: 103, 820: 103, 1639: 103, 600: 99}  # 99 fill the chip; 600 would need 150
    assert all(-(-blocks // count) % 4 == 0 for blocks, count in splits.items() if blocks != 600)
    assert sparse_splits(shape, 4, 410, 64, device) == 99
    assert sparse_splits(AttentionShape(1, 12, 2, 128), 2, 4 * 132, 16, device) == 128  # at most


def test_recordings_nest_and_end() -> None:
    function, good = arguments("build_summaries")
    with recording() as outer:
        function(**good)
        with recording() as inner:
            function(**good)
        function(**good)
    assert (len(outer), len(inner)) == (2, 1)
    assert outer[0].name == "_update_blocks_kernel"
    good["summaries"].data.fill_(NAN)
    function(**good)
    assert bool(good["summaries"].data.isfinite().all()), "nothing runs after a recording"
