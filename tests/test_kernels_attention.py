"""Sparse and dense attention against fp64, within the budget of each precision."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import (
    DEVICE,
    DTYPES,
    LAYOUTS,
    NAN,
    dtype_name,
    make_cache,
    poisoned_partials,
    random,
    run_dense,
    run_sparse,
)
from resa_bench.kernels import KVCache, SparseConfig, merge_partials, sparse_decode
from resa_bench.kernels.attention.dense import dense_reference
from resa_bench.kernels.attention.sparse_decode import sparse_reference
from resa_bench.kernels.config import ceil_div
from resa_bench.kernels.exact import UNIT_ROUNDOFF
from resa_bench.suites.core.failure import CheckFailed
from resa_bench.suites.engine.gate import compare
from torch import Tensor

INF = float("inf")
FINEST = DTYPES[-1]
LISTS = ("all", "one", "some", "holes", "ends", "only-holes", "empty", "beyond")


def draw_lists(kind: str, cache: KVCache, rows: int, block_size: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Lists of one kind for every sequence, and their counts.

    `some` takes about half of the blocks, `holes` puts -1 between them, `ends` counts the padding, `beyond` lists
    blocks past the sequence's end too. Entries past the count name a block that is not on the list.
    """
    generator = torch.Generator().manual_seed(seed)
    total = ceil_div(cache.capacity, block_size)
    lists = torch.zeros(cache.batch, rows, total + 3, dtype=torch.int32)
    counts = torch.zeros(cache.batch, rows, dtype=torch.int32)
    for b, length in enumerate(cache.lengths.tolist()):
        blocks = ceil_div(length, block_size)
        for r in range(rows):
            order = torch.randperm(blocks, generator=generator)
            some = order[: ceil_div(blocks, 2)].sort().values.tolist()
            entries = {
                "all": list(range(blocks)),
                "one": some[:1],
                "some": some,
                "holes": [-1, *(x for block in some for x in (block, -1))],
                "ends": [*some, -1, -1, -1],
                "only-holes": [-1, -1],
                "empty": [],
                "beyond": list(range(total)),
            }[kind][: total + 3]
            lists[b, r, : len(entries)] = torch.tensor(entries, dtype=torch.int32)
            counts[b, r] = len(entries)
    return lists.to(DEVICE), counts.to(DEVICE)


@dataclass(frozen=True)
class Edge:
    """One edge case of sparse attention: what differs from an ordinary one."""

    lengths: tuple[int, ...] = (70, 33)
    kv_heads: int = 2
    group: int = 2
    dim: int = 64
    block_size: int = 16
    rows: str = "kv-heads"
    lists: str = "some"
    splits: int = 2
    capacity: int | None = None
    layout: str = "contiguous"


EDGES = {
    "one-token": Edge(lengths=(1,), lists="all"),
    "partial-block": Edge(lengths=(53,), lists="all"),
    "one-token-in-last-block": Edge(lengths=(49,), lists="all"),
    "capacity-not-a-multiple": Edge(lengths=(75, 75), lists="all", capacity=75),
    "ragged": Edge(lengths=(70, 1, 32, 0), lists="all"),
    "g1": Edge(group=1),
    "g7": Edge(group=7),
    "g28-in-one": Edge(kv_heads=1, group=28),
    "d128": Edge(dim=128, group=7),
    "d16": Edge(dim=16),
    "b8": Edge(block_size=8),
    "b64": Edge(block_size=64, lengths=(150, 64), lists="all"),
    "b128": Edge(block_size=128, lengths=(200, 130), lists="all", kv_heads=1),
    "per-query-head": Edge(rows="q-heads", group=3),
    "per-query-head-g7": Edge(rows="q-heads", group=7, kv_heads=1, dim=128),
    "per-query-head-g1": Edge(rows="q-heads", group=1),
    "one-shared-list": Edge(rows="one", group=3),
    "one-kv-head": Edge(rows="one", kv_heads=1, group=4),
    "all-blocks": Edge(lists="all"),
    "one-block": Edge(lists="one"),
    "holes": Edge(lists="holes"),
    "holes-per-head": Edge(lists="holes", rows="q-heads"),
    "holes-at-the-end": Edge(lists="ends", splits=3),
    "only-holes": Edge(lists="only-holes"),
    "empty-lists": Edge(lists="empty"),
    "blocks-past-the-end": Edge(lists="beyond", lengths=(20, 64, 0), splits=3),
    "one-split": Edge(lists="all", splits=1),
    "more-splits-than-blocks": Edge(lists="some", splits=9),
    "empty-splits-of-one-block": Edge(lists="one", splits=5),
    "paged": Edge(layout="paged", lists="some"),
    "paged-per-head": Edge(layout="paged", rows="q-heads", block_size=32),
    "token-major": Edge(layout="token-major", lists="some"),
}


def run_edge(edge: Edge, dtype: torch.dtype, seed: int = 0) -> None:
    cache = make_cache(
        edge.lengths, edge.kv_heads, edge.dim, dtype=dtype, capacity=edge.capacity, layout=edge.layout, seed=seed
    )
    heads = edge.kv_heads * edge.group
    rows = {"kv-heads": edge.kv_heads, "q-heads": heads, "one": 1}[edge.rows]
    lists, counts = draw_lists(edge.lists, cache, rows, edge.block_size, seed=seed)
    q = random(cache.batch, heads, edge.dim, dtype=dtype, seed=seed + 1)
    run_sparse(q, cache, lists, counts, block_size=edge.block_size, splits=edge.splits)


@pytest.mark.sanitizer
@pytest.mark.parametrize("edge", EDGES.values(), ids=EDGES)
@pytest.mark.slow
def test_sparse_edges(edge: Edge, dtype: torch.dtype) -> None:
    run_edge(edge, dtype)


@given(
    edge=st.builds(
        Edge,
        lengths=st.lists(st.integers(0, 80), min_size=1, max_size=2).map(tuple),
        kv_heads=st.integers(1, 2),
        group=st.sampled_from([1, 2, 7]),
        dim=st.sampled_from([16, 64]),
        block_size=st.sampled_from([8, 16, 32]),
        rows=st.sampled_from(["kv-heads", "q-heads", "one"]),
        lists=st.sampled_from(LISTS),
        splits=st.integers(1, 5),
        layout=st.sampled_from(LAYOUTS),
    ),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 100),
)
@pytest.mark.slow
def test_sparse_anything(edge: Edge, dtype: torch.dtype, seed: int) -> None:
    run_edge(edge, dtype, seed)


def test_sparse_empty_lists_give_zeros() -> None:
    """Exactly zero, and never NaN, whatever the split results held before."""
    cache = make_cache([40, 40], dtype=FINEST)
    lists, counts = draw_lists("some", cache, 2, 16)
    counts[1] = 0
    lists[0, 1] = -1
    q = random(2, 4, 64, dtype=FINEST, seed=1)
    run_sparse(q, cache, lists, counts, block_size=16, splits=3)
    exact = sparse_reference(q[1], cache.k[1], cache.v[1], 40, lists[1, :, :0], block_size=16)
    assert not exact.out.any()
    assert not exact.budget(FINEST).any()


def test_sparse_of_all_blocks_is_dense() -> None:
    """The two references agree, so that each kernel is held to the same thing."""
    cache = make_cache([70], dtype=FINEST)
    q = random(1, 4, 64, dtype=FINEST, seed=1)
    lists, _ = draw_lists("all", cache, 2, 16)
    sparse = sparse_reference(q[0], cache.k[0], cache.v[0], 70, lists[0, :, :5], block_size=16)
    dense = dense_reference(q, cache.k[0], cache.v[0], 70)
    assert torch.allclose(sparse.out, dense.out[0], rtol=1e-13, atol=1e-15)


def test_references_are_torchs_attention() -> None:
    """The fp64 reference, against scaled_dot_product_attention in fp64."""
    cache = make_cache([70], dtype=DTYPES[0])
    q = random(1, 4, 64, dtype=DTYPES[0], seed=1)
    wanted = torch.nn.functional.scaled_dot_product_attention(
        q.double().view(1, 2, 2, 64), cache.k.double(), cache.v.double()
    )
    exact = dense_reference(q, cache.k[0], cache.v[0], 70)
    assert torch.allclose(exact.out[0], wanted.view(4, 64), rtol=1e-12, atol=1e-14)


def test_sparse_lengths_change_in_place() -> None:
    """One set of lists and buffers serves every length; blocks past the end then give nothing."""
    cache = make_cache([80, 80], dtype=FINEST)
    lists, counts = draw_lists("all", cache, 2, 16)
    q = random(2, 4, 64, dtype=FINEST, seed=1)
    for lengths in ([80, 80], [17, 64], [1, 0], [80, 33]):
        cache.lengths.copy_(torch.tensor(lengths, dtype=torch.int32))
        run_sparse(q, cache, lists, counts, block_size=16, splits=3)


def test_sparse_counts_change_in_place() -> None:
    cache = make_cache([80, 80], dtype=FINEST)
    lists, counts = draw_lists("all", cache, 2, 16)
    q = random(2, 4, 64, dtype=FINEST, seed=1)
    for count in (5, 1, 0, 3):
        counts.fill_(count)
        counts[1, 1] = 4
        run_sparse(q, cache, lists, counts, block_size=16, splits=3)


@pytest.mark.thinned(2)
@pytest.mark.sanitizer
@pytest.mark.parametrize("rows", ["kv-heads", "q-heads", "one"])
@pytest.mark.slow
def test_sparse_finds_the_counts_by_the_settings(rows: str, dtype: torch.dtype) -> None:
    """As with counts that are read: ragged, empty, by a ratio and by a budget; what lies past them is not looked at."""
    cache = make_cache([80, 17, 0, 200], dtype=dtype)
    heads = {"kv-heads": 2, "q-heads": 6, "one": 1}[rows]
    lists, _ = draw_lists("all", cache, heads, 8)
    q = random(4, 6, 64, dtype=dtype, seed=1)
    for config in (SparseConfig(8, 0.3, min_blocks=2), SparseConfig(8, budget_tokens=40)):
        selected = [config.selected(n) for n in cache.lengths.tolist()]
        counts = torch.tensor(selected, dtype=torch.int32, device=DEVICE)[:, None].expand(-1, heads).contiguous()
        run_sparse(q, cache, lists, counts, block_size=8, splits=3)
        outs = []
        for known in (counts, config):
            partials, out = poisoned_partials(24, 3, 64), torch.full_like(q, NAN)
            sparse_decode(q, cache, lists, known, partials, block_size=8, check_values=True)
            merge_partials(partials, out)
            outs.append(out)
        assert torch.equal(*outs)


def test_sparse_strided_arguments() -> None:
    """Queries, lists and counts may be slices of larger tensors."""
    cache = make_cache([80, 50], dtype=FINEST)
    lists, counts = draw_lists("some", cache, 3, 16)
    q = random(2, 9, 64, dtype=FINEST, seed=1)[:, 2:6]
    run_sparse(q, cache, lists[:, 1:], counts[:, 1:], block_size=16, splits=2)
    run_sparse(q, cache, lists[:, 1:2, :4], counts[:, 1:2].clamp(max=4), block_size=16, splits=2)


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_scale(scale: float) -> None:
    cache = make_cache([50], dtype=FINEST)
    q = random(1, 4, 64, dtype=FINEST, seed=1)
    lists, counts = draw_lists("all", cache, 2, 16)
    run_sparse(q, cache, lists, counts, block_size=16, splits=2, scale=scale)
    run_dense(q[:, None], cache, splits=2, scale=scale)


def test_large_logits() -> None:
    """Logits of several hundred: the maximum must be taken out before the exponential."""
    cache = make_cache([50], dtype=FINEST)
    q = 40 * random(1, 4, 64, dtype=FINEST, seed=1)
    lists, counts = draw_lists("all", cache, 2, 16)
    run_sparse(q, cache, lists, counts, block_size=16, splits=2)
    run_dense(q[:, None], cache, splits=3)


DENSE = {
    "one-token": dict(lengths=[1], tokens=1),
    "decode": dict(lengths=[70, 33], tokens=1),
    "ragged": dict(lengths=[70, 1, 64, 0], tokens=1),
    "capacity-not-a-multiple": dict(lengths=[75, 50], tokens=1, capacity=75),
    "g1": dict(lengths=[40, 20], tokens=1, group=1),
    "g7-d128": dict(lengths=[40, 70], tokens=1, group=7, dim=128),
    "more-splits-than-tiles": dict(lengths=[33, 5], tokens=1, splits=7),
    "one-split": dict(lengths=[70, 33], tokens=1, splits=1),
    "paged": dict(lengths=[70, 33], tokens=1, layout="paged"),
    "token-major": dict(lengths=[70, 33], tokens=1, layout="token-major"),
    "chunk": dict(lengths=[70, 33], tokens=5),
    "chunk-of-everything": dict(lengths=[6, 6], tokens=6),
    "chunk-before-the-start": dict(lengths=[4, 1, 0, 70], tokens=6, splits=3),
    "chunk-across-a-tile": dict(lengths=[67, 130], tokens=4, splits=3, kv_heads=1),
    "chunk-g1": dict(lengths=[40, 20], tokens=3, group=1),
    "chunk-g7-d128": dict(lengths=[40, 66], tokens=3, group=7, dim=128, kv_heads=1),
    "chunk-of-many-rows": dict(lengths=[90], tokens=10, group=7, kv_heads=1),
    "chunk-of-more-rows": dict(lengths=[40], tokens=21, group=7, kv_heads=1, dim=16, splits=1),
    "chunk-paged": dict(lengths=[70, 33], tokens=5, layout="paged"),
    "chunk-token-major": dict(lengths=[70, 33], tokens=5, layout="token-major"),
    "chunk-more-splits-than-tiles": dict(lengths=[33, 5], tokens=2, splits=7),
}


@pytest.mark.sanitizer
@pytest.mark.parametrize("edge", DENSE.values(), ids=DENSE)
@pytest.mark.slow
def test_dense_edges(edge: dict, dtype: torch.dtype) -> None:
    edge = dict(kv_heads=2, group=2, dim=64, splits=2, layout="contiguous", capacity=None) | edge
    cache = make_cache(
        edge["lengths"], edge["kv_heads"], edge["dim"], dtype=dtype, layout=edge["layout"], capacity=edge["capacity"]
    )
    heads = edge["kv_heads"] * edge["group"]
    q = random(cache.batch, edge["tokens"], heads, edge["dim"], dtype=dtype, seed=1)
    run_dense(q, cache, splits=edge["splits"])


@given(
    lengths=st.lists(st.integers(0, 80), min_size=1, max_size=2),
    tokens=st.integers(1, 6),
    kv_heads=st.integers(1, 2),
    group=st.sampled_from([1, 2, 7]),
    dim=st.sampled_from([16, 64]),
    splits=st.integers(1, 4),
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 100),
)
@pytest.mark.slow
def test_dense_anything(
    lengths: list[int],
    tokens: int,
    kv_heads: int,
    group: int,
    dim: int,
    splits: int,
    layout: str,
    dtype: torch.dtype,
    seed: int,
) -> None:
    cache = make_cache(lengths, kv_heads, dim, dtype=dtype, layout=layout, seed=seed)
    run_dense(random(len(lengths), tokens, kv_heads * group, dim, dtype=dtype, seed=seed + 1), cache, splits=splits)


def test_dense_rows_before_the_start_are_zeros() -> None:
    """Rows of a chunk that is longer than its sequence: exactly zero in the reference, which the kernel must match."""
    cache = make_cache([2], dtype=FINEST)
    q = random(1, 4, 4, 64, dtype=FINEST, seed=1)
    exact = dense_reference(q[0], cache.k[0], cache.v[0], 2)
    assert not exact.out[:2].any()
    assert not exact.budget(FINEST)[:2].any()
    assert torch.allclose(exact.out[2], cache.v[0, :, 0].double().repeat_interleave(2, 0))  # one key: its value
    run_dense(q, cache, splits=2)


def test_dense_lengths_change_in_place() -> None:
    cache = make_cache([80, 80], dtype=FINEST)
    q = random(2, 2, 4, 64, dtype=FINEST, seed=1)
    for lengths in ([80, 80], [17, 64], [1, 0]):
        cache.lengths.copy_(torch.tensor(lengths, dtype=torch.int32))
        run_dense(q, cache, splits=3)


def test_dense_strided_queries() -> None:
    cache = make_cache([40, 20], dtype=FINEST)
    run_dense(random(2, 5, 9, 64, dtype=FINEST, seed=1)[:, 1:4, 2:6], cache, splits=2)


# The comparison itself must be able to fail.


every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=dtype_name)


@every_dtype
@pytest.mark.parametrize("kind", ["scaled", "unwritten", "infinite", "dropped-block", "one-key-too-few"])
def test_compare_catches(kind: str, dtype: torch.dtype) -> None:
    cache = make_cache([70], dtype=dtype)
    q = random(1, 4, 64, dtype=dtype, seed=1)
    exact = dense_reference(q, cache.k[0], cache.v[0], 70)
    out = exact.out.to(dtype)
    assert compare("right", out, exact, dtype).budget_used <= 1
    if kind == "scaled":
        out = (exact.out * 1.02).to(dtype)
    elif kind in ("unwritten", "infinite"):
        out[0, 3, 63] = NAN if kind == "unwritten" else INF
    elif kind == "dropped-block":
        lists = torch.tensor([[0, 1, 3, 4]], device=DEVICE)
        out = sparse_reference(q[0], cache.k[0], cache.v[0], 70, lists, block_size=16).out[None].to(dtype)
    else:
        out = dense_reference(q, cache.k[0], cache.v[0], 69).out.to(dtype)
    with pytest.raises(CheckFailed, match=r"^attention: "):
        compare("attention", out, exact, dtype)


def test_budgets_tell_precisions_apart() -> None:
    cache = make_cache([70], dtype=DTYPES[0])
    exact = dense_reference(random(1, 4, 64, dtype=DTYPES[0], seed=1), cache.k[0], cache.v[0], 70)
    budgets = [exact.budget(d) for d in (torch.float32, torch.float16, torch.bfloat16)]
    assert bool((3 * budgets[0] < budgets[1]).all())
    assert bool((3 * budgets[1] < budgets[2]).all())
    assert bool((budgets[2] < 0.02 * exact.size).all())


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_unit_roundoff(half: torch.dtype) -> None:
    """Rounding to nearest is off by up to half of eps, the spacing of numbers at 1."""
    assert UNIT_ROUNDOFF[half] == torch.finfo(half).eps / 2


def test_edges_differ() -> None:
    """No edge case is a copy of another."""
    assert len({dataclasses.astuple(edge) for edge in EDGES.values()}) == len(EDGES)
