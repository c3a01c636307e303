"""What a method is bound to (a cache, a step's tensors, a chunk's), checked once for the kernels and plain torch.

Both paths take and refuse the same, when they are bound and not when they run: a captured step checks nothing. What
only the device knows (lengths, block tables) is checked by `prepare`, which may wait for it, and by plain torch at
every step, which asks for the lengths anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .cache import KVCache
from .checks import check_no_grad, check_same_strides, check_tensor, check_whole, usable_device
from .config import AttentionShape

if TYPE_CHECKING:
    from .method import ChunkTensors, StepTensors, WindowTensors

TORCH_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Element types that plain torch takes; the kernels' are `checks.kernel_dtypes()`."""


def check_cache(
    cache: KVCache,
    shape: AttentionShape,
    dtype: torch.dtype,
    device: torch.device | str,
    dtypes: Sequence[torch.dtype] = TORCH_DTYPES,
) -> None:
    """Check that a method of this shape, dtype and device can be bound to a layer's cache (waits for the device).

    Args:
        dtypes: element types of keys and values, as stored, that the method's code takes.

    Raises:
        TypeError: not a KVCache or an AttentionShape; an element type that is not the method's, or not in `dtypes`.
        ValueError: another batch, number of heads, head dim or device; lengths over the capacity, entries of the block
            table that are no page.
    """
    if not isinstance(cache, KVCache):
        raise TypeError(f"cache: got {type(cache).__name__}, expected a KVCache")
    if not isinstance(shape, AttentionShape):
        raise TypeError(f"shape: got {type(shape).__name__}, expected an AttentionShape")
    check_tensor("cache.k", cache.k, (None, None, None, None), dtypes=dtypes)
    if dtype != cache.dtype:
        raise TypeError(f"dtype: the method was built for {dtype}, the cache holds {cache.dtype}")
    where = usable_device(device)
    if where.type != cache.device.type or where.index not in (None, cache.device.index):
        raise ValueError(f"device: the method was built for {where}, the cache is on {cache.device}")
    for name, asked, there in (
        ("batch", shape.batch, cache.batch),
        ("kv_heads", shape.kv_heads, cache.kv_heads),
        ("head_dim", shape.head_dim, cache.head_dim),
    ):
        if asked != there:
            raise ValueError(f"cache: its {name} is {there}, the method was built for {asked}")
    cache.check_values()


def check_step(step: StepTensors, cache: KVCache, q_heads: int) -> None:
    """Check a step's tensors: q, out `[B, Hq, D]`; k, v `[B, Hkv, D]`.

    Raises:
        TypeError, ValueError: as `_check_rows` says.
    """
    _check_rows(step, cache, (cache.batch,), q_heads)


def check_chunk(chunk: ChunkTensors, cache: KVCache, q_heads: int) -> None:
    """Check a rectification's tensors: q, out `[B, f, Hq, D]`; k, v `[B, f, Hkv, D]`; f is 1 to the capacity.

    Raises:
        TypeError, ValueError: as `_check_rows` says.
    """
    _check_rows(chunk, cache, (cache.batch, _tokens(chunk.q, cache)), q_heads)


def check_window(window: WindowTensors, cache: KVCache, q_heads: int) -> None:
    """Check a window's tensors: q, out `[B, n, Hq, D]`; k, v `[B, n, Hkv, D]`; first int32 `[B]`.

    Raises:
        TypeError, ValueError: as `_check_rows` says.
    """
    _check_rows(window, cache, (cache.batch, _tokens(window.q, cache)), q_heads)
    check_tensor("first", window.first, (cache.batch,), dtypes=(torch.int32,), device=cache.device)


def _tokens(q: Tensor, cache: KVCache) -> int:
    """Tokens a sequence of q `[B, T, Hq, D]`."""
    check_tensor("q", q, (cache.batch, None, None, cache.head_dim))
    check_whole("q: tokens a sequence", q.shape[1], 1, cache.capacity)
    return q.shape[1]


def _check_rows(
    tensors: StepTensors | ChunkTensors | WindowTensors, cache: KVCache, leading: tuple[int, ...], q_heads: int
) -> None:
    """Check q, k, v and out of this leading shape.

    Raises:
        TypeError: not a tensor, or not of the cache's dtype.
        ValueError: another shape or device, a last stride that is not 1, k and v of different strides, an out that is
            not contiguous, a tensor that requires grad.
    """
    queries, news = (*leading, q_heads, cache.head_dim), (*leading, cache.kv_heads, cache.head_dim)
    for name, shape in (("q", queries), ("k", news), ("v", news), ("out", queries)):
        tensor = getattr(tensors, name)
        check_tensor(name, tensor, shape, dtypes=(cache.dtype,), device=cache.device)
        check_no_grad(name, tensor)
    check_same_strides("v", tensors.v, "k", tensors.k)
    if not tensors.out.is_contiguous():
        raise ValueError("out: must be contiguous")
