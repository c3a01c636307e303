"""Writing tokens and summarising their blocks: right values at the right places, and nothing else touched."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import (
    DTYPES,
    LAYOUTS,
    NAN,
    assert_summaries,
    make_cache,
    poisoned_summaries,
    random,
    same,
    snapshot,
)
from resa_bench.kernels import KVCache, Summaries, build_summaries, refresh_summaries, write_tokens
from resa_bench.kernels.config import SUMMARY_KINDS

# One token, a partly filled last block, ragged with an empty sequence, whole blocks only.
LENGTHS = {"one-token": [1], "partial-block": [21], "ragged": [37, 1, 64, 0], "whole-blocks": [32, 16]}
lengths_cases = pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
in_dtypes = pytest.mark.parametrize("kept_in", [None, "fp8"], ids=["", "fp8"])


def write(cache: KVCache, summaries: Summaries | None, tokens: int, *, seed: int = 1, squeeze: bool = False) -> None:
    """Write random tokens over poisoned places; the cache must then hold them there and be the same elsewhere."""
    batch, heads, dim = cache.batch, cache.kv_heads, cache.head_dim
    new = random(2, batch, tokens, heads, dim, dtype=cache.dtype, seed=seed)
    k, v = snapshot(cache)
    for b, length in enumerate(cache.lengths.tolist()):
        count = min(tokens, length)
        k[b, :, length - count : length], v[b, :, length - count : length] = NAN, NAN
    cache.store(k, v)
    for b, length in enumerate(cache.lengths.tolist()):
        count = min(tokens, length)  # a sequence shorter than T takes the last rows
        k[b, :, length - count : length] = new[0, b, tokens - count :].transpose(0, 1)
        v[b, :, length - count : length] = new[1, b, tokens - count :].transpose(0, 1)
    k_new, v_new = (new[0, :, 0], new[1, :, 0]) if squeeze else (new[0], new[1])
    write_tokens(cache, k_new, v_new, summaries, check_values=True)
    gathered = cache.gather()
    assert same(gathered[0], k)
    assert same(gathered[1], v)


@pytest.mark.sanitizer
@lengths_cases
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", SUMMARY_KINDS)
@in_dtypes
@pytest.mark.slow
def test_build(lengths: list[int], layout: str, kind: str, kept_in: str | None, dtype: torch.dtype) -> None:
    cache = make_cache(lengths, dtype=dtype, layout=layout)
    summaries = poisoned_summaries(cache, 16, kind, kept_in)
    before = snapshot(cache)
    build_summaries(cache, summaries, check_values=True)
    assert_summaries(cache, summaries)
    assert all(same(a, b) for a, b in zip(cache.gather(), before, strict=True))


@pytest.mark.sanitizer
@lengths_cases
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", SUMMARY_KINDS)
@in_dtypes
@pytest.mark.parametrize("tokens", [1, 18])
@pytest.mark.slow
def test_write(lengths: list[int], layout: str, kind: str, kept_in: str | None, tokens: int) -> None:
    cache = make_cache(lengths, capacity=70, dtype=DTYPES[0], layout=layout)
    summaries = poisoned_summaries(cache, 16, kind, kept_in)
    write(cache, summaries, tokens)
    assert_summaries(cache, summaries, tokens)


@pytest.mark.parametrize("block_size", [8, 64, 128])
def test_write_at_other_block_sizes(block_size: int, dtype: torch.dtype) -> None:
    cache = make_cache([130, 9], kv_heads=1, dim=128, dtype=dtype, capacity=150)
    summaries = poisoned_summaries(cache, block_size, "minmax")
    write(cache, summaries, 3)
    assert_summaries(cache, summaries, 3)


@pytest.mark.sanitizer
@pytest.mark.parametrize("tokens", [1, 18])
def test_write_without_summaries(tokens: int, dtype: torch.dtype) -> None:
    write(make_cache([37, 3], dtype=dtype, capacity=48), None, tokens)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_length_counts_the_new_token(layout: str, dtype: torch.dtype) -> None:
    """A decode step adds one to the length first, then writes at length - 1; steps in a row fill a cache in order."""
    tokens = random(2, 5, 2, 2, 16, dtype=dtype, seed=3)
    cache = make_cache([14, 0], dim=16, capacity=24, dtype=dtype, layout=layout)
    before = snapshot(cache)
    summaries = poisoned_summaries(cache, 8, "minmax")
    build_summaries(cache, summaries)
    for step in range(5):
        cache.lengths.add_(1)
        write_tokens(cache, tokens[0, step], tokens[1, step], summaries)
    for written, old, new in zip(cache.gather(), before, tokens, strict=True):
        assert torch.equal(written[0, :, :14], old[0, :, :14])
        assert torch.equal(written[0, :, 14:19], new[:, 0].transpose(0, 1))
        assert torch.equal(written[1, :, :5], new[:, 1].transpose(0, 1))
        assert bool(written[0, :, 19:].isnan().all())
        assert bool(written[1, :, 5:].isnan().all())
    assert_summaries(cache, summaries)


@pytest.mark.parametrize("kind", SUMMARY_KINDS)
@in_dtypes
def test_writing_twice_changes_nothing(kind: str, kept_in: str | None, dtype: torch.dtype) -> None:
    cache = make_cache([37, 5], dtype=dtype)
    summaries = poisoned_summaries(cache, 16, kind, kept_in)
    write(cache, summaries, 3)
    first = summaries.data.clone()
    write(cache, summaries, 3)
    assert same(summaries.data, first)


def test_minimum_and_maximum_can_shrink(dtype: torch.dtype) -> None:
    """Rectified keys replace extreme ones: the summary comes from the keys, not from the old summary."""
    cache = make_cache([20], dtype=dtype)
    cache.k[:, :, 17] = 100.0
    summaries = poisoned_summaries(cache, 16, "minmax")
    build_summaries(cache, summaries)
    assert bool((summaries.data[:, :, 1, 1] == 100).all())
    write(cache, summaries, 4)
    assert bool((summaries.data[:, :, 1, 1] < 100).all())


def test_one_token_takes_three_dimensions(dtype: torch.dtype) -> None:
    cache = make_cache([20, 7], dtype=dtype)
    write(cache, poisoned_summaries(cache, 16, "minmax"), 1, squeeze=True)


def test_new_tokens_may_be_strided(dtype: torch.dtype) -> None:
    """K and V of a fused projection are slices of one tensor."""
    cache = make_cache([9, 12], dtype=dtype)
    fused = random(2, 3, 7, 64, dtype=dtype, seed=5)
    write_tokens(cache, fused[:, :, 1:3], fused[:, :, 4:6])
    for b, length in enumerate((9, 12)):
        assert torch.equal(cache.k[b, :, length - 3 : length], fused[b, :, 1:3].transpose(0, 1))
        assert torch.equal(cache.v[b, :, length - 3 : length], fused[b, :, 4:6].transpose(0, 1))


@pytest.mark.sanitizer
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", SUMMARY_KINDS)
@in_dtypes
@pytest.mark.parametrize("tokens", [1, 18, 64])
@pytest.mark.slow
def test_refresh(layout: str, kind: str, kept_in: str | None, tokens: int) -> None:
    cache = make_cache([37, 1, 64, 0], dtype=DTYPES[0], layout=layout)
    summaries = poisoned_summaries(cache, 16, kind, kept_in)
    before = snapshot(cache)
    refresh_summaries(cache, summaries, tokens, check_values=True)
    assert_summaries(cache, summaries, tokens)
    assert all(same(a, b) for a, b in zip(cache.gather(), before, strict=True))


@given(
    lengths=st.lists(st.integers(0, 70), min_size=1, max_size=3),
    tokens=st.integers(1, 40),
    block_size=st.sampled_from([8, 16, 32]),
    layout=st.sampled_from(LAYOUTS),
    kind=st.sampled_from(SUMMARY_KINDS),
    kept_in=st.sampled_from([None, "fp8"]),
    dtype=st.sampled_from(DTYPES),
)
def test_write_anything(
    lengths: list[int], tokens: int, block_size: int, layout: str, kind: str, kept_in: str | None, dtype: torch.dtype
) -> None:
    cache = make_cache(lengths, kv_heads=1, dim=16, dtype=dtype, layout=layout, capacity=max(*lengths, tokens))
    summaries = poisoned_summaries(cache, block_size, kind, kept_in)
    write(cache, summaries, tokens)
    assert_summaries(cache, summaries, tokens)
    summaries.data.fill_(NAN)
    build_summaries(cache, summaries)
    assert_summaries(cache, summaries)


def test_fp8_rounds_to_nearest_and_saturates(dtype: torch.dtype) -> None:
    """Ties to even, the carry into the next power of two, numbers below the least normal one, and over the largest."""
    values = [1.0625, 1.1875, 1.96875, 3 * 2.0**-10, 2.0**-10, 1.5 * 2.0**-7, 460.0, 3e4, -5e3, -1.96875, 0.0, 17.5]
    wanted = [1.0, 1.25, 2.0, 2.0**-8, 0.0, 1.5 * 2.0**-7, 448.0, 448.0, -448.0, -2.0, 0.0, 18.0]
    cache = make_cache([1], kv_heads=1, dim=16, dtype=dtype)
    cache.k[0, 0, 0, :12] = torch.tensor(values, dtype=dtype)
    summaries = poisoned_summaries(cache, 16, "minmax", "fp8")
    build_summaries(cache, summaries)
    for slot in summaries.data[0, 0, 0].float():
        assert slot[:12].tolist() == wanted
