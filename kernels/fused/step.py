"""Launching the fused step: what it serves, how large its clusters are, its arguments."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..attention.summaries import Summaries, check_new
from ..cache import KVCache
from ..checks import check_tensor
from ..config import AttentionShape, SparseConfig, ceil_div
from ..cuda import occupancy
from ..launch import shared_memory
from ..method import StepTensors
from ..workspace import Workspace
from . import compiler

THREADS, WARPS, BINS, PASSES = 256, 8, 256, 4  # as in layout.cuh
MIN_SHARING_CLUSTER, MAX_CLUSTERS = 4, 8  # CTAs of the clusters that share a row at least, and how many do at most
CTA_BYTES_A_US, EXCHANGE_US, SEARCH_US = 66_000, 1.6, 0.001  # on an H200: `arrangement`
OUT_WORDS = 2048  # of the output, that a warp keeps in registers; half where two CTAs share a multiprocessor
LOADS = {1: 16, 2: 8}  # under way in a lane while scoring, by CTAs that share a multiprocessor and its registers
MIN_CAPABILITY = (9, 0)
MAX_GROUP = 16  # two operands of the matrix units, which have room for 8 heads each
NARROW_BLOCKS = 65535  # of a row, that the search counts in 16 bits
HEAD_DIMS = (64, 128, 256)
FP8_HEAD_DIMS = (128, 256)  # beside keys and values in e4m3: a warp reads 128 dims of them at least
BLOCK_SIZES = (8, 16, 32, 64, 128)
POLICIES = ("group-mean", "group-sum")
DTYPES = (torch.bfloat16, torch.float16)


def unsupported(shape: AttentionShape, config: SparseConfig, dtype: torch.dtype, in_fp8: bool = False) -> str | None:
    """Which setting the kernel does not serve, or None; `in_fp8`: beside keys and values in e4m3."""
    for name, value, allowed in (
        ("head_dim", shape.head_dim, FP8_HEAD_DIMS if in_fp8 else HEAD_DIMS),
        ("block_size", config.block_size, BLOCK_SIZES),
        ("gqa_policy", config.gqa_policy, POLICIES),
        ("dtype", dtype, DTYPES),
    ):
        if value not in allowed:
            return f"{name}: the fused step serves {', '.join(map(str, allowed))}, got {value}"
    if shape.group > MAX_GROUP:
        return f"q_heads: the fused step serves at most {MAX_GROUP} query heads a KV head, got {shape.group}"
    if config.selector is not None:
        return f"selector: the fused step ranks blocks by their summaries alone, got {config.selector}"
    if config.local_blocks < 1:
        return "local_blocks: the fused step needs 1, for the newest block is scored before its summary is written"
    return None


@dataclass(frozen=True, slots=True)
class Plan:
    """How a step is laid out.

    Attributes:
        cluster: CTAs of a cluster.
        clusters: of them, that share one sequence and KV head.
        resident: CTAs that share a multiprocessor, 1 or 2.
        split: warps that share a tile of tokens: each has its dims, and they tell each other their logits.
        keys: blocks that one of them scores at most.
        fixed_bytes: of shared memory, for what does not grow with the context.
        shared_bytes: in all, of one CTA.
    """

    cluster: int
    clusters: int
    resident: int
    split: int
    keys: int
    fixed_bytes: int
    shared_bytes: int


def lay_out(
    config: SparseConfig,
    head_dim: int,
    group: int,
    capacity: int,
    element: int,
    cluster: int,
    resident: int = 1,
    clusters: int = 1,
    searches: bool = True,
) -> Plan:
    """The layout for caches of `capacity` tokens and elements of so many bytes; `searches`: not all blocks are read."""
    blocks, chosen = config.blocks(capacity), config.selected(capacity)
    tile = LOADS[resident] * 32 * 16 // config.summary_bytes(head_dim, element)  # blocks that a warp scores together
    keys = ceil_div(ceil_div(blocks, tile), cluster) * tile if searches else 0
    heads = ceil_div(group, 8) * 8
    partial = heads * head_dim
    wide = blocks > NARROW_BLOCKS
    split = max(ceil_div(head_dim, 128), partial * resident // OUT_WORDS)
    teams = WARPS // split
    shared = _aligned(  # the members of `Shared` in layout.cuh, in order
        64, 2 * cluster * BINS * 2, PASSES * BINS * 2, cluster * 8, 8, WARPS * (8 if wide else 4), WARPS * 4, 20,
        2 * head_dim * 4, partial * 2, cluster * heads * 8, teams * heads * 4, teams * heads * 4, teams * heads * 4,
        max(config.block_size // 16, 1) * 2 * head_dim * 4, cluster * ceil_div(partial // 4, cluster) * 16,
    )  # fmt: skip
    logits = 2 * WARPS * heads * 16 * 4 if split > 1 else 0
    last = max(teams * partial * 4 + logits, config.block_size * head_dim * 2)  # or the newest block's keys, before
    whole = shared + _aligned(4 * keys, 4 * ceil_div(chosen, cluster * clusters) * searches, last)
    return Plan(cluster, clusters, resident, split, keys, shared, whole)


def _aligned(*parts: int) -> int:
    """Bytes of parts that start at multiples of 16 bytes each."""
    return sum(ceil_div(part, 16) * 16 for part in parts)


def arrangement(
    rows: int, row_bytes: int, blocks: int, at_once: Callable[[int], int], largest: int = occupancy.MAX_CLUSTER
) -> tuple[int, int]:
    """CTAs of a cluster, and clusters of a row, that all run at the same time; (0, 1) if not even single CTAs do.

    A cluster stays within one of the chip's groups of multiprocessors, so large clusters leave some of them idle, and a
    few rows most of them. Several clusters share a row where that is expected to be faster, by what an H200 gave
    (docs/notes/speed.md): what a multiprocessor reads in a microsecond, what the exchange through the L2 takes, and
    what each block takes that a CTA searches.

    Args:
        rows: sequences times KV heads.
        row_bytes: that a step reads of a row.
        blocks: of a row.
        at_once: how many clusters of so many CTAs run at the same time.
        largest: CTAs of a cluster at most.
    """
    whole = next((size for size in range(largest, 0, -1) if at_once(size) >= rows), 0)
    if not whole:
        return 0, 1

    def expected_us(choice: tuple[int, int]) -> float:
        size, clusters = choice
        reading = row_bytes / (size * clusters * CTA_BYTES_A_US)
        return reading + (EXCHANGE_US if clusters > 1 else 0) + blocks / size * SEARCH_US

    shared = [
        (size, clusters)
        for size in range(largest, MIN_SHARING_CLUSTER - 1, -1)
        for clusters in range(2, min(at_once(size) // rows, MAX_CLUSTERS) + 1)
    ]
    return min([(whole, 1), *shared], key=expected_us)


class _Arguments(ctypes.Structure):
    """`Arguments` of layout.cuh."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in (
            "q", "summaries", "scores", "lists", "counts", "lengths", "table", "k_cache", "v_cache", "k_new", "v_new",
            "scales", "out", "exchange", "epochs",
        )),
        *((name, ctypes.c_longlong) for name in (
            "q_batch", "q_head", "summary_outer", "summary_head", "score_batch", "score_row", "list_batch", "list_row",
            "table_batch", "cache_outer", "cache_head", "cache_token", "new_batch", "new_head",
            "exchange_row",
        )),
        *((name, ctypes.c_int) for name in (
            "kv_heads", "local_blocks", "first_blocks", "ratio_numerator", "ratio_denominator", "floor_blocks",
            "list_capacity", "key_capacity", "token_capacity", "pages",
        )),
        ("spread_weight", ctypes.c_float),
        ("scale_log2", ctypes.c_float),
    ]  # fmt: skip


LOG2_E = 1.4426950408889634
RESERVED_BYTES = 1024  # of a multiprocessor's shared memory, that the system takes for each CTA


def plan(cache: KVCache, group: int, config: SparseConfig) -> Plan:
    """The layout of steps on this cache and device.

    Rows that all run at once take clusters as large as can be, or several each (`arrangement`). More rows take single
    CTAs, two to a multiprocessor, so that one loads while the other searches; what does not fit at once follows.

    Raises:
        ValueError: a row that needs more shared memory than there is.
    """
    rows, blocks = cache.batch * cache.kv_heads, config.blocks(cache.capacity)
    read = row_bytes(config, cache.head_dim, cache.capacity, cache.dtype.itemsize, cache.k.element_size())
    size, clusters = arrangement(rows, read, blocks, lambda cluster: occupancy.clusters_at_once(cache.device, cluster))
    return fitting(cache, group, config, size, clusters)


def row_bytes(config: SparseConfig, head_dim: int, capacity: int, element: int, kv_element: int) -> int:
    """Bytes that a step reads of a row of `capacity` tokens: summaries, and K and V of the selected blocks."""
    tokens = config.selected(capacity) * config.block_size
    return config.blocks(capacity) * config.summary_bytes(head_dim, element) + tokens * 2 * head_dim * kv_element


def fitting(cache: KVCache, group: int, config: SparseConfig, size: int, clusters: int, searches: bool = True) -> Plan:
    """The layout of an arrangement, with two CTAs on a multiprocessor where rows run in waves and there is room.

    Raises:
        ValueError: it has no room for one.
    """
    room, element = shared_memory(), cache.dtype.itemsize
    layouts = [
        lay_out(config, cache.head_dim, group, cache.capacity, element, size or 1, resident, clusters, searches)
        for resident in ((1,) if size else (2, 1))
    ]
    for layout in layouts:
        if cache.in_fp8 and cache.head_dim // layout.split < FP8_HEAD_DIMS[0]:
            continue
        if layout.resident * (layout.shared_bytes + RESERVED_BYTES) <= room + RESERVED_BYTES:
            return layout
    raise ValueError(
        f"cache: its rows of {cache.capacity} tokens need {layouts[-1].shared_bytes} bytes of shared memory in the "
        f"fused step, there are {room}"
    )


def constants(cache: KVCache, group: int, config: SparseConfig, layout: Plan) -> dict[str, int]:
    """What the kernel is compiled with."""
    return {
        "HEAD_DIM": cache.head_dim,
        "GROUP": group,
        "BLOCK": config.block_size,
        "DENSE": 0,
        "CLUSTER": layout.cluster,
        "CLUSTERS": layout.clusters,
        "RESIDENT": layout.resident,
        "SPLIT": layout.split,
        "LOADS": LOADS[layout.resident],
        "SHARED_BYTES": layout.fixed_bytes,
        "PAGE_BLOCKS": cache.page_size // config.block_size if cache.paged else 1,
        "MINMAX": int(config.summary_kind == "minmax"),
        "GROUP_SUM": int(config.gqa_policy == "group-sum"),
        "FP8": int(config.summary_dtype == "fp8"),
        "KV8": int(cache.in_fp8),
        "FP16": int(cache.dtype == torch.float16),
        "PAGED": int(cache.paged),
        "WIDE": int(config.blocks(cache.capacity) > NARROW_BLOCKS),
    }


def bind(
    step: StepTensors, cache: KVCache, summaries: Summaries, work: Workspace, config: SparseConfig
) -> Callable[[], None]:
    """A call that enqueues one step: K and V appended, their block's summary, scores, lists, counts and `step.out`.

    It reads the lengths on the device, allocates nothing and does not synchronise. The work space is left as the Triton
    kernels leave it (`score_blocks`, `select_blocks`).

    Args:
        step: q, out `[B, Hq, D]`; k, v `[B, Hkv, D]`, of the cache's dtype; out contiguous.

    Raises:
        TypeError, ValueError: a tensor of the wrong dtype, shape, device or stride; settings the kernel does not serve.
    """
    shape = AttentionShape(cache.batch, step.q.shape[1], cache.kv_heads, cache.head_dim)
    reason = unsupported(shape, config, cache.dtype, cache.in_fp8)
    reason = reason or misaligned(summaries=(summaries.data, 16))
    if reason:
        raise ValueError(reason)
    _check_work(cache, summaries, work, config)
    layout = plan(cache, shape.group, config)
    return enqueued(
        step,
        cache,
        layout,
        constants(cache, shape.group, config, layout),
        held=(summaries, work),
        summaries=summaries.data.data_ptr(),
        scores=work.scores.data_ptr(),
        lists=work.lists.data_ptr(),
        counts=work.counts.data_ptr(),
        summary_outer=summaries.data.stride(0),
        summary_head=summaries.data.stride(1),
        score_batch=work.scores.stride(0),
        score_row=work.scores.stride(1),
        list_batch=work.lists.stride(0),
        list_row=work.lists.stride(1),
        local_blocks=config.local_blocks,
        first_blocks=config.always[1],
        ratio_numerator=config.ratio.numerator,
        ratio_denominator=config.ratio.denominator,
        floor_blocks=config.floor_blocks,
        list_capacity=work.lists.shape[2],
        spread_weight=config.spread_weight,
    )


def enqueued(
    step: StepTensors,
    cache: KVCache,
    layout: Plan,
    settings: dict[str, int],
    *,
    held: tuple[object, ...] = (),
    **searched: float,
) -> Callable[[], None]:
    """A call that enqueues the kernel of these settings; `searched` are the arguments of a step that searches.

    Args:
        held: what has to live as long as the call.

    Raises:
        TypeError, ValueError: a tensor of the wrong dtype, shape, device or stride.
    """
    group = step.q.shape[1] // cache.kv_heads
    for name, tensor in (("q", step.q), ("out", step.out)):
        check_tensor(
            name,
            tensor,
            (cache.batch, group * cache.kv_heads, cache.head_dim),
            dtypes=(cache.dtype,),
            device=cache.device,
        )
    check_new(cache, step.k, step.v, (cache.batch, cache.kv_heads, cache.head_dim))
    if not step.out.is_contiguous():
        raise ValueError("out: must be contiguous")
    reason = misaligned(k_cache=(cache.k, 16), v_cache=(cache.v, 16), q=(step.q, 4), k=(step.k, 4), v=(step.v, 4))
    if reason:
        raise ValueError(reason)
    exchange, epochs = _exchange(cache, group, layout)
    table = cache.block_table if cache.block_table is not None else cache.lengths
    arguments = _Arguments(
        q=step.q.data_ptr(),
        lengths=cache.lengths.data_ptr(),
        table=table.data_ptr(),
        k_cache=cache.k.data_ptr(),
        v_cache=cache.v.data_ptr(),
        k_new=step.k.data_ptr(),
        v_new=step.v.data_ptr(),
        scales=cache.scales_or_any.data_ptr(),
        out=step.out.data_ptr(),
        exchange=exchange.data_ptr(),
        epochs=epochs.data_ptr(),
        q_batch=step.q.stride(0),
        q_head=step.q.stride(1),
        table_batch=table.stride(0),
        cache_outer=cache.k.stride(0),
        cache_head=cache.k.stride(1),
        cache_token=cache.k.stride(2),
        new_batch=step.k.stride(0),
        new_head=step.k.stride(1),
        exchange_row=exchange.shape[1],
        kv_heads=cache.kv_heads,
        key_capacity=layout.keys,
        token_capacity=cache.capacity,
        pages=cache.k.shape[0],
        scale_log2=cache.head_dim**-0.5 * LOG2_E,
        **searched,
    )
    ctas = layout.cluster * layout.clusters
    kernel = compiler.kernel(cache.device, settings, ctas, THREADS, layout.shared_bytes, layout.clusters > 1)
    parameters = compiler.pointers(arguments)
    address, rows = ctypes.addressof(parameters), cache.batch * cache.kv_heads
    held = (*held, arguments, parameters, step, cache, exchange, epochs)

    def run(_: tuple[object, ...] = held) -> None:
        kernel.launch(rows, address)

    return run


def exchanged(layout: Plan, group: int, head_dim: int) -> tuple[int, int]:
    """Words of 64 bits that the clusters of a row publish, and CTAs that count their steps; none in a lone cluster."""
    if layout.clusters == 1:
        return 0, 0
    members = layout.cluster * layout.clusters
    part = ceil_div(ceil_div(group, 8) * 8 * head_dim // 4, layout.cluster) * 4  # words that a CTA finishes
    return layout.cluster * layout.keys + 2 * members + 3 * members * part, members


def _exchange(cache: KVCache, group: int, layout: Plan) -> tuple[Tensor, Tensor]:
    """What clusters of a row publish, `[rows, words]` of 64 bits, and how many steps their CTAs have done; zeros."""
    words, members = exchanged(layout, group, cache.head_dim)
    rows = cache.batch * cache.kv_heads if members else 0
    return (
        torch.zeros((rows, words), dtype=torch.int64, device=cache.device),
        torch.zeros((rows, members), dtype=torch.int32, device=cache.device),
    )


def _check_work(cache: KVCache, summaries: Summaries, work: Workspace, config: SparseConfig) -> None:
    """Summaries of the settings asked for, and room as `Workspace.allocate` makes it."""
    held = summaries.kind, summaries.block_size, summaries.dtype
    if held != (config.summary_kind, config.block_size, config.summary_dtype):
        raise ValueError(f"summaries: are {held}, config asks for another kind, block size or dtype")
    blocks, rows = config.blocks(cache.page_size), (cache.batch, cache.kv_heads)
    check_tensor("summaries", summaries.data, (cache.k.shape[0], cache.kv_heads, blocks, 2, cache.head_dim))
    every, chosen = config.blocks(cache.capacity), config.selected(cache.capacity)
    check_tensor("scores", work.scores, (*rows, every), dtypes=(torch.float32,), device=cache.device)
    check_tensor("lists", work.lists, (*rows, chosen), dtypes=(torch.int32,), device=cache.device)
    check_tensor("counts", work.counts, rows, dtypes=(torch.int32,), device=cache.device)
    if not (summaries.data.is_contiguous() and work.counts.is_contiguous()):
        raise ValueError("summaries, counts: must be contiguous")


def misaligned(**tensors: tuple[Tensor, int]) -> str | None:
    """Which of these tensors has rows that do not start at multiples of as many bytes, or None.

    Loads take 16 bytes of caches and summaries, 4 of queries and new tokens.
    """
    for name, (tensor, unit) in tensors.items():
        if tensor.data_ptr() % unit or any(stride * tensor.element_size() % unit for stride in tensor.stride()[:-1]):
            return f"{name}: the fused step needs rows that start at multiples of {unit} bytes"
    return None
