"""Arguments that the kernels attending to lists of blocks share: `sparse_decode` and `window_decode`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..cache import KVCache
from ..checks import check_range, check_tensor
from ..config import BLOCK_SIZES, ceil_div
from ..launch import INTERPRET
from .merge import Partials


def check_blocks(cache: KVCache, block_size: int, scale: float | None) -> None:
    """Raises TypeError, ValueError unless the cache can be read by blocks of this size, and logits scaled so."""
    if scale is not None and not scale > 0:
        raise ValueError(f"scale: got {scale}, must be positive")
    if block_size not in BLOCK_SIZES:
        raise ValueError(f"block_size: got {block_size}, allowed are the powers of two {BLOCK_SIZES}")
    if cache.paged and cache.page_size % block_size:
        raise ValueError(f"block_size: got {block_size}, must divide the cache's page size of {cache.page_size}")


def check_counts(counts: Tensor, lists: Tensor) -> None:
    """Raises TypeError, ValueError unless there is an int32 count for each list."""
    check_tensor("counts", counts, lists.shape[:2], dtypes=(torch.int32,), device=lists.device)


def check_entries(cache: KVCache, lists: Tensor, counts: Tensor | None, block_size: int) -> None:
    """Raises ValueError for entries outside -1 .. M-1, or counts outside 0 .. N; waits for the device."""
    cache.check_values()
    check_range("lists", lists, -1, ceil_div(cache.capacity, block_size) - 1)
    if counts is not None:
        check_range("counts", counts, 0, lists.shape[2])


def list_arguments(
    cache: KVCache, lists: Tensor, counts: Tensor, partials: Partials, block_size: int, scale: float | None
) -> dict[str, Any]:
    """Arguments by name: the cache and how it is laid out, the lists, where split results go.

    Args:
        scale: of the logits; 1 / sqrt(D) if None.
    """
    table = cache.block_table if cache.block_table is not None else cache.lengths
    several = lists.shape[1] > 1  # else one list serves all heads
    return {
        "k_cache": cache.k,
        "v_cache": cache.v,
        "partial": partials.out,
        "partial_lse": partials.lse,
        "lists": lists,
        "counts": counts,
        "lengths": cache.lengths,
        "table": table,
        "token_capacity": cache.capacity,
        "pages": cache.k.shape[0],
        "list_capacity": lists.shape[2],
        "splits": partials.splits,
        "scale_log2": (cache.head_dim**-0.5 if scale is None else scale) * math.log2(math.e),
        "cache_outer_stride": cache.k.stride(0),
        "cache_head_stride": cache.k.stride(1),
        "cache_token_stride": cache.k.stride(2),
        "list_batch_stride": lists.stride(0),
        "list_row_stride": lists.stride(1) if several else 0,
        "count_batch_stride": counts.stride(0),
        "count_row_stride": counts.stride(1) if several else 0,
        "table_stride": table.stride(0),
        "D": cache.head_dim,
        "BLOCK": block_size,
        "PAGE": cache.page_size if cache.paged else block_size,
        "PAGED": cache.paged,
        "CAST_FP32": INTERPRET,
        "STAGES": 2,
    }
