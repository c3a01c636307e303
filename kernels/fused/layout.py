"""How the fused step is laid out on a chip: clusters, shared memory, what the kernel is compiled with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..cache import KVCache
from ..config import SparseConfig, ceil_div
from ..cuda import occupancy
from ..launch import shared_memory
from .served import FP8_HEAD_DIMS

WARPS, BINS, PASSES = 8, 256, 4  # as in layout.cuh
MIN_SHARING_CLUSTER, MAX_CLUSTERS = 4, 8  # CTAs of the clusters that share a row at least, and how many do at most
CTA_BYTES_A_US, EXCHANGE_US, SEARCH_US = 66_000, 1.6, 0.001  # on an H200: `arrangement`
OUT_WORDS = 2048  # of the output, that a warp keeps in registers; half where two CTAs share a multiprocessor
LOADS = {1: 16, 2: 8}  # under way in a lane while scoring, by CTAs that share a multiprocessor and its registers
NARROW_BLOCKS = 65535  # of a row, that the search counts in 16 bits


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
        if layout.resident * (layout.shared_bytes + occupancy.RESERVED_BYTES) <= room + occupancy.RESERVED_BYTES:
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


def exchanged(layout: Plan, group: int, head_dim: int) -> tuple[int, int]:
    """Words of 64 bits that the clusters of a row publish, and CTAs that count their steps; none in a lone cluster."""
    if layout.clusters == 1:
        return 0, 0
    members = layout.cluster * layout.clusters
    part = ceil_div(ceil_div(group, 8) * 8 * head_dim // 4, layout.cluster) * 4  # words that a CTA finishes
    return layout.cluster * layout.keys + 2 * members + 3 * members * part, members
