"""What the fused step serves: settings, and how tensors lie."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import AttentionShape, SparseConfig

MIN_CAPABILITY = (9, 0)  # of a device: thread-block clusters
MAX_GROUP = 16  # two operands of the matrix units, which have room for 8 heads each
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


def misaligned(**tensors: tuple[Tensor, int]) -> str | None:
    """Which of these tensors has rows that do not start at multiples of as many bytes, or None.

    Loads take 16 bytes of caches and summaries, 4 of queries and new tokens.
    """
    for name, (tensor, unit) in tensors.items():
        if tensor.data_ptr() % unit or any(stride * tensor.element_size() % unit for stride in tensor.stride()[:-1]):
            return f"{name}: the fused step needs rows that start at multiples of {unit} bytes"
    return None
