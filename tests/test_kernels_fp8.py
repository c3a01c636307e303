"""Keys and values in e4m3: scales, writing, and attention over what they stand for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import resa_bench.baselines  # noqa: F401  registers the rivals
import torch
import triton
import triton.language as tl
from kernel_cases import (
    DEVICE,
    LAYOUTS,
    NAN,
    assert_summaries,
    dtype_name,
    empty_chunk,
    empty_step,
    make_cache,
    make_method,
    poisoned_summaries,
    random,
    run_dense,
    run_sparse,
    same,
)
from resa_bench.kernels import AttentionShape, KVCache, SparseConfig, Unsupported, build_summaries, write_tokens
from resa_bench.kernels.attention.chunk import best_chunk_kernel
from resa_bench.kernels.attention.softmax import query_columns
from resa_bench.kernels.checks import kernel_dtypes
from resa_bench.kernels.e4m3 import E4M3, E4M3_MAX, HEADROOM, LEAST_SCALE, decoded, encoded, scales_of
from resa_bench.kernels.fused.method import refused
from resa_bench.kernels.launch import launch
from resa_bench.kernels.ways import way
from resa_bench.suites.engine.gate import check_attended, check_rectified_tokens
from torch import Tensor

FP32 = kernel_dtypes()[-1]  # on a GPU fp16


def test_scales_are_powers_of_two_that_leave_headroom() -> None:
    most = torch.tensor([224.0, 224.1, 1e-30, 3.0, 5e4])
    values = torch.zeros(2, 5, 3, 16)
    values[1, :, 2, 7] = -most
    values[0, 3, 0, :2] = torch.tensor([NAN, float("inf")])  # which say nothing of the others
    scales = scales_of(values)
    assert scales.tolist() == [1.0, 2.0, LEAST_SCALE, 2.0**-6, 256.0]
    assert bool((most * HEADROOM / scales <= E4M3_MAX).all())
    assert scales_of(values.bfloat16()).tolist() == [1.0, 1.0, LEAST_SCALE, 2.0**-6, 256.0]  # 224.1 is 224 there


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=dtype_name)
def test_every_stored_number_is_exact_in_the_queries_dtype(dtype: torch.dtype) -> None:
    every = torch.arange(256, dtype=torch.uint8).view(E4M3)
    stored = every[~every.float().isnan()].view(1, 1, -1, 1).expand(1, 3, -1, 1)
    scales = torch.tensor([LEAST_SCALE, 1.0, 64.0])
    assert torch.equal(decoded(stored, scales, dtype).double(), stored.double() * scales.double()[:, None, None])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_cache_holds_what_it_was_given_to_four_digits(layout: str) -> None:
    """Within half a step of 3 bits of mantissa, or of the numbers below 2^-6 of the scale."""
    cache = make_cache([40, 7], capacity=64, layout=layout, dtype=FP32, kv_dtype="fp8")
    given = random(2, 2, 2, 64, 64, dtype=FP32, seed=3)
    given[1] *= 30
    cache.store(given[0], given[1])
    assert cache.k.dtype == E4M3
    assert cache.dtype == FP32
    for x, held, scales in zip(given, cache.gather(), cache.scales_or_any.t(), strict=True):
        bound = (x.abs() * 2.0**-4).maximum(scales[:, None, None] * 2.0**-10)
        assert bool(((held - x).abs() <= bound).all())
    copy = cache.clone()
    for x, held in zip(copy.gather(), cache.gather(), strict=True):
        assert torch.equal(x, held)
    copy.scales_or_any.zero_()
    assert bool((cache.scales_or_any > 0).all())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_new_tokens_are_rounded_to_nearest_saturate_and_show_nan(layout: str, dtype: torch.dtype) -> None:
    """They take the scales that stand; summaries are of what the cache then holds."""
    cache = make_cache([64, 33], capacity=96, layout=layout, dtype=dtype, kv_dtype="fp8")
    summaries = poisoned_summaries(cache, 16, "minmax")
    build_summaries(cache, summaries)
    k, v = random(2, 2, 5, 2, 64, dtype=dtype, seed=5)
    k[0, 4, 0, 0], k[1, 2, 1, 5], v[1, 3, 1, 3] = 6e4, -6e4, NAN
    scales = cache.scales_or_any.clone()
    before = cache.gather()[0].clone()
    write_tokens(cache, k, v, summaries)
    assert torch.equal(cache.scales_or_any, scales)
    keys, values = cache.gather()
    for b, length in enumerate((64, 33)):
        for held, new, scale in ((keys, k, scales[:, 0]), (values, v, scales[:, 1])):
            wanted = decoded(encoded(new[b].transpose(0, 1), scale), scale, dtype)
            assert same(held[b, :, length - 5 : length], wanted)
        assert same(keys[b, :, : length - 5], before[b, :, : length - 5])
    assert keys[0, 0, 63, 0] == E4M3_MAX * scales[0, 0]
    assert keys[1, 1, 30, 5] == -E4M3_MAX * scales[1, 0]
    assert_summaries(cache, summaries)


@pytest.mark.parametrize(("layout", "tokens"), [*((layout, 1) for layout in LAYOUTS), ("paged", 5)])
def test_dense_attention_is_that_of_the_numbers_held(layout: str, tokens: int, dtype: torch.dtype) -> None:
    """Sequences of one token, of a partial tile and of several; heads of different scales."""
    cache = make_cache([1, 70, 33], capacity=96, layout=layout, dtype=dtype, kv_dtype="fp8")
    assert cache.scales_or_any[1, 1] > cache.scales_or_any[0, 1]
    run_dense(random(3, tokens, 14, 64, dtype=dtype, seed=1), cache, splits=3)


@triton.jit
def _columns_kernel(q, parts, factors, ROWS: tl.constexpr, D: tl.constexpr):
    """What `query_columns` makes of `[ROWS, D]`, as fp32: `[D, 2 * ROWS]`, and `[ROWS]`."""
    row = tl.arange(0, ROWS)
    both, factor = query_columns(q, row * D, row < ROWS, 2, ROWS, D, False)
    tl.store(factors + row, factor)
    tl.store(parts + tl.arange(0, D)[:, None] * (2 * ROWS) + tl.arange(0, 2 * ROWS)[None, :], both.to(tl.float32))


def test_two_parts_in_fp8_hold_a_query_in_bf16() -> None:
    """Exactly, down to 2^-9 of a row's largest; a row of zeros, of large and of tiny numbers, and NaN, too."""
    q = random(8, 64, dtype=torch.float32, seed=2).bfloat16().float()
    q[1], q[2], q[3] = 0.0, q[2] * 2.0**60, q[3] * 2.0**-60
    q[4, 3:] *= 2.0**-9
    q[5, 0] = NAN
    parts, factors = torch.empty(64, 16, device=DEVICE), torch.empty(8, device=DEVICE)
    launch(_columns_kernel, (1,), q=q, parts=parts, factors=factors, ROWS=8, D=64)
    held = (parts[:, :8] + parts[:, 8:]) * factors
    exact = q.t().abs() >= q.abs().amax(1) * 2.0**-9
    assert same(held[exact], q.t()[exact])
    rest = (held - q.t()).abs() <= q.abs().amax(1) * 2.0**-17
    assert bool((rest | q.isnan().any(1)).all())
    assert bool(held[:, 5].isnan().any())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rows", ["shared", "kv_head", "q_head"])
def test_sparse_attention_is_that_of_the_numbers_held(layout: str, rows: str, dtype: torch.dtype) -> None:
    cache = make_cache([70, 33], capacity=96, layout=layout, dtype=dtype, kv_dtype="fp8")
    count = {"shared": 1, "kv_head": 2, "q_head": 6}[rows]
    lists = torch.tensor([[4, 0, 2], [2, 1, -1]], dtype=torch.int32, device=DEVICE)[:, None].repeat(1, count, 1)
    counts = torch.tensor([3, 2], dtype=torch.int32, device=DEVICE)[:, None].repeat(1, count)
    run_sparse(random(2, 6, 64, dtype=dtype, seed=1), cache, lists, counts, block_size=16, splits=2)


@pytest.mark.gpu
def test_probabilities_far_below_the_largest_are_not_lost() -> None:
    """2^-26 of the largest is less than fp16 holds; thousands of keys add up."""
    cache = make_cache([4096], kv_heads=1, dim=16, dtype=FP32, kv_dtype="fp8")
    k = torch.zeros(1, 1, 4096, 16, dtype=FP32, device=DEVICE)
    v = torch.ones_like(k)
    k[0, 0, 0, 0], v[0, 0, 0] = 1.0, 0.0  # one key has nearly all the mass, and adds nothing
    cache.store(k, v)
    q = torch.zeros(1, 1, 1, 16, dtype=FP32, device=DEVICE)
    q[..., 0] = 4 * 26 * 0.6931  # a logit of 26 in base 2
    check = run_dense(q, cache, splits=1)
    assert check.max_rel_error < 1e-2


def stepped(name: str, cache: KVCache, shape: AttentionShape, config: SparseConfig, dtype: torch.dtype) -> None:
    """One step and one rectification of a method, each against fp64."""
    layer = make_method(name, shape, config, dtype).prepare(cache)
    step, chunk = empty_step(shape, dtype), empty_chunk(shape, 4, dtype)
    for seed, x in enumerate((step.q, step.k, step.v, chunk.q, chunk.k, chunk.v)):
        x.copy_(random(*x.shape, dtype=dtype, seed=seed))
    step.out.fill_(NAN)
    for stage in layer.stages(step):
        stage.run()
    check_attended(layer, step)
    keys = cache.gather()[0]
    for b, length in enumerate(cache.lengths.tolist()):
        wanted = decoded(encoded(step.k[b][:, None], cache.scales_or_any[:, 0]), cache.scales_or_any[:, 0], dtype)
        assert torch.equal(keys[b, :, length - 1 : length], wanted), "the new token is not in the cache"
    chunk.out.fill_(NAN)
    for stage in layer.rectify_stages(chunk):
        stage.run()
    if layer.rectify_stages(chunk):
        check_rectified_tokens(layer, chunk)


@pytest.mark.parametrize("name", ["resa-chain", "resa", "triton-dense", "quest", "sink-window"])
@pytest.mark.parametrize("layout", ["contiguous", "paged"])
def test_methods_step_and_rectify(name: str, layout: str) -> None:
    shape = AttentionShape(2, 6, 2, 64)
    policy = "per-head" if name == "quest" else "group-mean"
    config = SparseConfig(16, min_blocks=2, gqa_policy=policy, chunk_kernel="triton")
    cache = make_cache([70, 33], capacity=96, layout=layout, dtype=FP32, kv_dtype="fp8")
    stepped(name, cache, shape, config, FP32)


@pytest.mark.parametrize("settings", [{"summary_dtype": "fp8"}, {"summary_kind": "meanstd"}, {"block_size": 64}])
def test_summaries_of_every_kind(settings: dict[str, Any]) -> None:
    config = replace(SparseConfig(16, min_blocks=2, chunk_kernel="triton"), **settings)
    cache = make_cache([70, 130], capacity=192, dtype=FP32, kv_dtype="fp8")
    stepped("resa-chain", cache, AttentionShape(2, 6, 2, 64), config, FP32)


def test_who_does_not_read_fp8_says_so() -> None:
    """And `resa` takes the chain where the one kernel reads none of this head dim."""
    shape, config = AttentionShape(2, 14, 2, 64), SparseConfig(16, min_blocks=2)
    cache = make_cache([70, 33], capacity=96, dtype=FP32, kv_dtype="fp8")
    for name in ("oracle", "resa-plus", "retro", "resa-torch", "torch-dense"):
        options: dict[str, Any] = {"block_size": 8, "selector": "pairs"} if name == "resa-plus" else {}
        options |= {"gqa_policy": "group-sum"} if name == "retro" else {}
        with pytest.raises(Unsupported, match="fp8"):
            make_method(name, shape, replace(config, **options), FP32).prepare(cache)
    assert "head_dim: the fused step serves 128, 256, got 64" in str(refused(cache, shape, config))
    assert way(cache, shape, config) == "chain"
    assert best_chunk_kernel(shape, cache).name == "triton"


def test_floors_count_what_is_stored() -> None:
    """K and V by one byte an element, queries, outputs and summaries by theirs."""
    shape, config = AttentionShape(2, 6, 2, 64), SparseConfig(16, min_blocks=2)
    traffic = {}
    for kv_dtype in (None, "fp8"):
        cache = make_cache([70, 33], capacity=96, dtype=FP32, kv_dtype=kv_dtype)
        traffic[kv_dtype] = make_method("triton-dense", shape, config, FP32).prepare(cache).traffic()["total"]
    size, elements = FP32.itemsize, 2 * (70 + 33) * 2 * 64 + 2 * 2 * 2 * 64  # read, and the new token written
    assert traffic[None].bytes - traffic["fp8"].bytes == elements * (size - 1)
    assert traffic[None].flops == traffic["fp8"].flops


def bad_cache(**changes: Any) -> KVCache:
    """A cache in e4m3 with some parts replaced."""
    return replace(make_cache([8], dtype=FP32, kv_dtype="fp8"), **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scales": None}, "scales and read_as"),
        ({"read_as": None}, "scales and read_as"),
        ({"scales": torch.ones(3, 2, device=DEVICE)}, r"expected \[2, 2\]"),
        ({"scales": torch.ones(2, 2, dtype=torch.float64, device=DEVICE)}, "float32"),
        ({"scales": torch.ones(2, 2, device=DEVICE).t()}, "contiguous|stride"),
    ],
)
def test_scales_that_do_not_fit_are_refused(changes: dict[str, Tensor | None], words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        bad_cache(**changes)


def test_an_unknown_kv_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="kv_dtype: got 'int8', allowed are fp8"):
        KVCache.allocate(1, 1, 8, 64, dtype=FP32, device=DEVICE, kv_dtype="int8")
