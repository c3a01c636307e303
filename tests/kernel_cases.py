"""Inputs, poisons and comparisons of the kernel tests.

Everything that a kernel must not read is NaN (tokens past a sequence's length, split results before they are
written), everything that it must write is NaN beforehand.

Run as a script, without TRITON_INTERPRET, it cross-compiles the kernels for sm_90 and prints as JSON what they take and
how wide the products are that become addresses.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from resa_bench.kernels import (
    AttentionShape,
    ChunkTensors,
    DecodeMethod,
    KVCache,
    Partials,
    SparseConfig,
    StepTensors,
    Summaries,
    WindowTensors,
    dense_attention,
    get_method,
    merge_partials,
    select_blocks,
    sparse_decode,
)
from resa_bench.kernels.attention.dense import dense_reference
from resa_bench.kernels.attention.sparse_decode import sparse_reference
from resa_bench.kernels.attention.summaries import summaries_reference
from resa_bench.kernels.checks import kernel_dtypes
from resa_bench.kernels.config import MAX_BLOCKS, ceil_div
from resa_bench.kernels.e4m3 import E4M3, rounded
from resa_bench.kernels.launch import INTERPRET, Launch, recording
from resa_bench.suites.engine.gate import Check, compare
from torch import Tensor

DEVICE = torch.device("cpu") if INTERPRET else torch.device("cuda", 0)
DTYPES = kernel_dtypes()
LAYOUTS = ("contiguous", "token-major", "paged")
U32 = 2.0**-24
NAN = float("nan")


def dtype_name(dtype: torch.dtype) -> str:
    return {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[dtype]


def random(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Normal deviates, the same on every device."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def same(a: Tensor, b: Tensor) -> bool:
    """Equal everywhere, NaN where NaN."""
    if a.dtype == b.dtype == torch.float8_e4m3fn:
        a, b = a.float(), b.float()
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


def make_cache(
    lengths: Sequence[int],
    kv_heads: int = 2,
    dim: int = 64,
    *,
    dtype: torch.dtype,
    capacity: int | None = None,
    layout: str = "contiguous",
    page_size: int = 32,
    seed: int = 0,
    kv_dtype: str | None = None,
) -> KVCache:
    """A cache of random tokens; those past each sequence's length are NaN. In fp8 heads differ much in size."""
    batch, capacity = len(lengths), capacity or max(*lengths, 1)
    device_lengths = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
    if layout == "paged":
        cache = KVCache.allocate(
            batch, kv_heads, capacity, dim, dtype=dtype, device=DEVICE, page_size=page_size, kv_dtype=kv_dtype
        )
        cache.lengths.copy_(device_lengths)
    else:
        shape = (batch, capacity, kv_heads, dim) if layout == "token-major" else (batch, kv_heads, capacity, dim)
        fp8: dict[str, Any] = {"scales": torch.ones(kv_heads, 2, device=DEVICE), "read_as": dtype} if kv_dtype else {}
        k, v = (torch.empty(shape, dtype=E4M3 if fp8 else dtype, device=DEVICE) for _ in range(2))
        if layout == "token-major":
            k, v = k.transpose(1, 2), v.transpose(1, 2)
        cache = KVCache(k, v, device_lengths, **fp8)
    data = random(2, batch, kv_heads, cache.capacity, dim, dtype=dtype, seed=seed)
    if kv_dtype:
        data[1] *= 10.0 ** torch.arange(kv_heads, device=DEVICE)[:, None, None]
    past = torch.arange(cache.capacity, device=DEVICE) >= device_lengths[:, None]
    data.masked_fill_(past[None, :, None, :, None], NAN)
    cache.store(data[0], data[1])
    return cache


def snapshot(cache: KVCache) -> tuple[Tensor, Tensor]:
    """Copies of K and V in the order of the sequences."""
    k, v = cache.gather()
    return k.clone(), v.clone()


def poisoned_summaries(cache: KVCache, block_size: int, kind: str, dtype: str | None = None) -> Summaries:
    summaries = Summaries.allocate(cache, block_size, kind, dtype)
    summaries.data.fill_(NAN)
    return summaries


def poisoned_partials(rows: int, splits: int, dim: int) -> Partials:
    partials = Partials.allocate(rows, splits, dim, DEVICE)
    partials.out.fill_(NAN)
    partials.lse.fill_(NAN)
    return partials


def assert_summaries(cache: KVCache, summaries: Summaries, tokens: int | None = None) -> None:
    """The blocks of the last `tokens` tokens (all by default) are summarised right, every other one is still NaN.

    Minimum and maximum are exact, in fp8 rounded to nearest. For mean and deviation, over n keys, in fp32 (u = 2^-24),
    then rounded to the summaries' dtype (u_d): the mean is off by e <= (n + 2) u mean|k| + u_d |mean|. A deviation from
    a mean that is off by e is sqrt(var + e^2) <= std + e; squares, sum, division and root add (n + 8) u of it at most.
    """
    element = summaries.data.dtype
    size, unit = summaries.block_size, torch.finfo(element).eps / 2
    spacing = {torch.float16: 2.0**-24, torch.float8_e4m3fn: 2.0**-9}  # of subnormal numbers
    floor = spacing.get(element, 0.0) / 2
    keys, table = cache.gather()[0], summaries.logical(cache).float()
    for b, length in enumerate(cache.lengths.tolist()):
        first = 0 if tokens is None else max(length - tokens, 0) // size
        last = ceil_div(length, size)
        assert bool(table[b, :, :first].isnan().all()), f"sequence {b}: a block before the touched ones was written"
        assert bool(table[b, :, last:].isnan().all()), f"sequence {b}: a block past the sequence's end was written"
        touched = table[b, :, first:last]
        if summaries.kind == "minmax":
            exact = summaries_reference(keys[b], length, size)[:, first:]
            assert torch.equal(touched.float(), rounded(exact, element).float())
            continue
        exact = summaries_reference(keys[b].double(), length, size, "meanstd")[:, first:]
        for i in range(last - first):
            block = keys[b, :, (first + i) * size : min((first + i + 1) * size, length)].double()
            n = block.shape[1]
            mean_error = (n + 2) * U32 * block.abs().mean(1)
            mean, std = exact[:, i, 0], exact[:, i, 1]
            assert bool(((touched[:, i, 0].double() - mean).abs() <= mean_error + unit * mean.abs() + floor).all())
            bound = mean_error + ((n + 8) * U32 + unit) * (std + mean_error) + floor
            assert bool(((touched[:, i, 1].double() - std).abs() <= bound).all())


def run_sparse(
    q: Tensor,
    cache: KVCache,
    lists: Tensor,
    counts: Tensor,
    *,
    block_size: int,
    splits: int,
    scale: float | None = None,
) -> Check:
    """Sparse attention and merge into poisoned buffers, compared with fp64 sequence by sequence."""
    partials = poisoned_partials(q.shape[0] * q.shape[1], splits, q.shape[2])
    out = torch.full(q.shape, NAN, dtype=q.dtype, device=q.device)
    sparse_decode(q, cache, lists, counts, partials, block_size=block_size, scale=scale, check_values=True)
    merge_partials(partials, out)
    counted = torch.where(torch.arange(lists.shape[2], device=DEVICE) < counts[:, :, None], lists, -1)
    keys, values = cache.gather()
    check = Check(0.0, 0.0)
    for b, length in enumerate(cache.lengths.tolist()):
        exact = sparse_reference(q[b], keys[b], values[b], length, counted[b], block_size=block_size, scale=scale)
        check = check.worst(compare(f"sequence {b}", out[b], exact, q.dtype))
    return check


def run_dense(q: Tensor, cache: KVCache, *, splits: int, scale: float | None = None) -> Check:
    """Dense attention of `[B, T, Hq, D]` and merge into poisoned buffers, compared with fp64."""
    partials = poisoned_partials(q[..., 0].numel(), splits, q.shape[-1])
    out = torch.full(q.shape, NAN, dtype=q.dtype, device=q.device)
    dense_attention(q, cache, partials, scale=scale, check_values=True)
    merge_partials(partials, out)
    keys, values = cache.gather()
    check = Check(0.0, 0.0)
    for b, length in enumerate(cache.lengths.tolist()):
        exact = dense_reference(q[b], keys[b], values[b], length, scale=scale)
        check = check.worst(compare(f"sequence {b}", out[b], exact, q.dtype))
    return check


def make_method(
    name: str, shape: AttentionShape, config: SparseConfig, dtype: torch.dtype, device: torch.device = DEVICE
) -> DecodeMethod:
    return get_method(name)(shape, config, dtype=dtype, device=device)


def empty_step(shape: AttentionShape, dtype: torch.dtype, device: torch.device = DEVICE) -> StepTensors:
    """Unfilled tensors of a step."""
    q = torch.empty(shape.batch, shape.q_heads, shape.head_dim, dtype=dtype, device=device)
    k = torch.empty(shape.batch, shape.kv_heads, shape.head_dim, dtype=dtype, device=device)
    return StepTensors(q, k, torch.empty_like(k), torch.empty_like(q))


def empty_chunk(shape: AttentionShape, tokens: int, dtype: torch.dtype, device: torch.device = DEVICE) -> ChunkTensors:
    """Unfilled tensors of a rectification."""
    q = torch.empty(shape.batch, tokens, shape.q_heads, shape.head_dim, dtype=dtype, device=device)
    k = torch.empty(shape.batch, tokens, shape.kv_heads, shape.head_dim, dtype=dtype, device=device)
    return ChunkTensors(q, k, torch.empty_like(k), torch.empty_like(q))


def kernel_modules() -> list[ModuleType]:
    """Every module that may hold a kernel."""
    import resa_bench.baselines
    import resa_bench.kernels

    return [
        importlib.import_module(module.name)
        for package in (resa_bench.kernels, resa_bench.baselines)
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    ]


def kernel_names() -> set[str]:
    """Names of all `@triton.jit` functions that are launched (they end in `_kernel`)."""
    return {
        name
        for module in kernel_modules()
        for name, value in vars(module).items()
        if name.endswith("_kernel") and hasattr(value, "fn") and value.fn.__module__ == module.__name__
    }


# Variants of the resource tests: block size, policy, summary, head dim, page size. Pairs of settings, not all products.
WINDOWS = (("retro", 2), ("retro-cached", 4), ("retro", 8))  # tokens a step of 7 query heads a KV head: 14, 28, 56 rows
VARIANTS = (
    (16, "group-mean", "minmax", 128, None),
    (16, "per-head", "minmax", 128, None),
    (64, "group-mean", "minmax", 128, 64),
    (64, "per-head", "meanstd", 128, 64),
    (16, "group-sum", "meanstd", 64, 64),
    (64, "per-head", "minmax", 64, None),
    (16, "all-heads", "minmax", 64, None),
)


def run_variants(
    variants: Iterable[tuple[int, str, str, int, int | None]], capacity: int, device: torch.device
) -> None:
    """Every kernel once per variant, on Qwen2.5-7B's heads, over uninitialised data (for recording or statistics)."""
    import resa_bench.baselines  # noqa: F401  registers the rivals
    from linear_cases import run_linears

    dtype = torch.bfloat16
    for block_size, policy, kind, dim, page_size in variants:
        shape = AttentionShape(1, 28, 4, dim)
        config = SparseConfig(block_size=block_size, gqa_policy=policy, summary_kind=kind)
        cache = KVCache.allocate(1, 4, capacity, dim, dtype=dtype, device=device, page_size=page_size)
        step, chunk = empty_step(shape, dtype, device), empty_chunk(shape, 32, dtype, device)
        if device.type != "meta":
            for x in (cache.k, cache.v, step.q, step.k, step.v, chunk.q, chunk.k, chunk.v):
                x.normal_()
            cache.lengths.fill_(capacity)
        for name in ("resa-chain", "triton-dense", "sink-window"):
            layer = make_method(name, shape, config, dtype, device).prepare(cache)
            for stage in (*layer.stages(step), *layer.rectify_stages(chunk)):
                stage.run()
        follow = make_method("resa-chain", shape, replace(config, selector="shared2"), dtype, device)
        for layer in (follow.prepare(cache), follow.prepare(cache)):
            for stage in layer.stages(step):
                stage.run()
        run_pairs(cache, step, config)
        if policy == "per-head":  # which methods with windows refuse
            continue
        for name, tokens in WINDOWS:
            windowed = replace(config, window=tokens)
            layer = make_method(name, shape, windowed, dtype, device).prepare(cache)
            chunk = empty_chunk(shape, tokens, dtype, device)
            if device.type != "meta":
                for x in (chunk.q, chunk.k, chunk.v):
                    x.normal_()
            window = WindowTensors(chunk.q, chunk.k, chunk.v, chunk.out, torch.zeros_like(cache.lengths))
            for stage in layer.window_stages(window):
                stage.run()
    run_fp8(capacity, device)
    run_long_selection(device)
    run_linears(device)


def run_fp8(capacity: int, device: torch.device) -> None:
    """The kernels that read keys and values in e4m3."""
    dtype = torch.bfloat16
    for dim, page_size, size in ((128, None, 16), (128, 64, 64), (64, 64, 16)):
        shape, config = AttentionShape(1, 28, 4, dim), SparseConfig(size)
        cache = KVCache.allocate(
            1, 4, capacity, dim, dtype=dtype, device=device, page_size=page_size, kv_dtype="fp8"
        )  # fmt: skip
        step, chunk = empty_step(shape, dtype, device), empty_chunk(shape, 32, dtype, device)
        if device.type != "meta":
            for x in (step.q, step.k, step.v, chunk.q, chunk.k, chunk.v):
                x.normal_()
            cache.lengths.fill_(capacity)
        for name in ("resa-chain", "triton-dense"):
            layer = make_method(name, shape, replace(config, chunk_kernel="triton"), dtype, device).prepare(cache)
            for stage in (*layer.stages(step), *layer.rectify_stages(chunk)):
                stage.run()


def run_long_selection(device: torch.device) -> None:
    """Selection of as many blocks a row as are allowed."""
    config = SparseConfig(block_size=8)
    cache = KVCache.allocate(1, 1, MAX_BLOCKS * 8, 16, dtype=torch.bfloat16, device=device)
    scores = torch.zeros(1, 1, MAX_BLOCKS, device=device)
    lists = torch.empty(1, 1, config.selected(cache.capacity), dtype=torch.int32, device=device)
    select_blocks(scores, cache, lists, torch.empty(1, 1, dtype=torch.int32, device=device), config)


def run_pairs(cache: KVCache, step: StepTensors, config: SparseConfig) -> None:
    """The kernels of selector `pairs`, over uninitialised ranges; nothing beside a paged cache."""
    from resa_bench.kernels.attention.pair_codes import allocate_pairs, pack_pairs
    from resa_bench.kernels.attention.pair_scores import score_pairs, score_room

    if cache.paged:
        return
    shape, size = AttentionShape(cache.batch, step.q.shape[1], cache.kv_heads, cache.head_dim), config.block_size
    packed = allocate_pairs(cache, size)
    known = torch.ones(cache.batch, cache.kv_heads, 2, cache.head_dim, device=cache.device)
    scores = torch.empty(packed.shape[:3], device=cache.device)
    for tokens in (None, 1, 32):
        pack_pairs(cache, packed, known, size, tokens)
    room = score_room(shape, packed.shape[2], size, cache.device)
    for append in (None, (step.k, step.v)):
        score_pairs(step.q, cache, packed, known, room, scores, config, append=append)


def record_variants(capacity: int = 256 * 1024, sm_count: int = 132) -> list[Launch]:
    """The launches of `run_variants` on tensors without storage, as on a Hopper chip of `sm_count` multiprocessors."""
    import resa_bench.kernels.launch

    module: Any = resa_bench.kernels.launch

    module.sm_count = lambda device: sm_count
    module.dependent_launch = lambda: True
    with recording() as launches:
        run_variants(VARIANTS, capacity, torch.device("meta"))
    return launches


def of_attention(launch: Launch) -> bool:
    """Whether a launch's kernel reads or writes caches, summaries, lists or split results."""
    return launch.kernel.fn.__module__.startswith("resa_bench.kernels.attention.")


if __name__ == "__main__":
    from kernel_offsets import products_of
    from resa_bench.profiling.resources import _signature, as_records

    launches = record_variants()
    different = {repr((launch.name, _signature(launch))): launch for launch in launches if of_attention(launch)}
    products = {(launch.name, *product) for launch in different.values() for product in products_of(launch)}
    print(json.dumps({"resources": as_records(launches), "products": sorted(products)}))
