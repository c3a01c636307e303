"""New tokens written to a cache in plain torch, and the summaries of the blocks that hold them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..attention.summaries import Summaries
from ..cache import KVCache
from ..checks import check_tensor
from ..e4m3 import encoded, rounded

PAGED = "cache: the portable path takes contiguous caches only, got a paged one"
FP8 = "cache: the portable methods read keys and values of 16 or 32 bits, got fp8; it needs the Triton kernels"


def write_tokens_torch(cache: KVCache, k_new: Tensor, v_new: Tensor, keep_before: Tensor | None = None) -> None:
    """Write the last T tokens of each sequence; k_new, v_new `[B, T, Hkv, D]` or `[B, Hkv, D]`. Contiguous caches.

    Tokens at positions before `keep_before`, int `[B]`, stay as they are.

    Raises:
        TypeError, ValueError: new K or V of the wrong dtype, shape or device; a sequence longer than the capacity.
    """
    if isinstance(k_new, Tensor) and isinstance(v_new, Tensor) and k_new.dim() == v_new.dim() == 3:
        k_new, v_new = k_new.unsqueeze(1), v_new.unsqueeze(1)
    shape = (cache.batch, None, cache.kv_heads, cache.head_dim)
    check_tensor("k_new", k_new, shape, dtypes=(cache.dtype,), device=cache.device, last_contiguous=False)
    check_tensor("v_new", v_new, k_new.shape, dtypes=(cache.dtype,), device=cache.device, last_contiguous=False)
    if cache.scales is not None:
        k_new, v_new = (
            encoded(x.transpose(1, 2), scale).transpose(1, 2)
            for x, scale in zip((k_new, v_new), cache.scales.t(), strict=True)
        )
    kept = [0] * cache.batch if keep_before is None else keep_before.clamp(min=0).tolist()
    for b, length in enumerate(cache.lengths_on_host()):
        count = max(min(k_new.shape[1], length - kept[b]), 0)
        cache.k[b, :, length - count : length] = k_new[b, k_new.shape[1] - count :].transpose(0, 1)
        cache.v[b, :, length - count : length] = v_new[b, v_new.shape[1] - count :].transpose(0, 1)


def _summarise(blocks: Tensor, out: Tensor, kind: str) -> None:
    """`[Hkv, n, tokens, D]` keys to `[Hkv, n, 2, D]`."""
    if kind == "minmax" and out.dtype == blocks.dtype:
        torch.amin(blocks, 2, out=out[:, :, 0])
        torch.amax(blocks, 2, out=out[:, :, 1])
        return
    if kind == "minmax":
        first, second = blocks.amin(2), blocks.amax(2)
    else:
        variance, first = torch.var_mean(blocks.float(), 2, correction=0)
        second = variance.sqrt()
    out[:, :, 0], out[:, :, 1] = rounded(first, out.dtype), rounded(second, out.dtype)


def refresh_torch(cache: KVCache, summaries: Summaries, tokens: int | None = None) -> None:
    """Summarise again the blocks of the last `tokens` tokens (all of them by default). Contiguous caches.

    Raises:
        ValueError: a sequence longer than the capacity.
    """
    size = summaries.block_size
    for b, length in enumerate(cache.lengths_on_host()):
        keys, data = cache.k[b], summaries.data[b]
        first = 0 if tokens is None else max(length - tokens, 0) // size
        whole = length // size
        if whole > first:
            blocks = torch.unflatten(keys[:, first * size : whole * size], 1, (whole - first, size))
            _summarise(blocks, data[:, first:whole], summaries.kind)
        if length % size:
            _summarise(keys[:, None, whole * size : length], data[:, whole : whole + 1], summaries.kind)
