"""Rotary position embedding with its neighbours: split QKV, normalise q and k per head (Qwen3), rotate.

Heads are rotated in halves (dims d and d + D/2 are a pair), as Hugging Face's Llama and Qwen checkpoints have them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import rms_norm

from .linear import Norm


def rope_split(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    q_norm: Norm | None = None,
    k_norm: Norm | None = None,
) -> None:
    """Write the roped queries and keys and the values of each row.

    Args:
        qkv: `[rows, (Hq + 2 Hkv) D]`: queries, keys, values of a row side by side.
        cos, sin: float32 `[rows, D / 2]` of each row's position (scaled as the model's rotary scaling says).
        q: out `[rows, Hq, D]`; k, v: out `[rows, Hkv, D]`; contiguous.
        q_norm, k_norm: RMSNorm of each head, weight `[D]`.
    """
    rope_reference(qkv, cos, sin, q, k, v, q_norm=q_norm, k_norm=k_norm)


def rope_reference(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    q_norm: Norm | None = None,
    k_norm: Norm | None = None,
) -> None:
    """`rope_split` in plain torch."""
    rows, q_heads, dim = q.shape
    kv_heads = k.shape[1]
    queries, keys, values = qkv.view(rows, -1, dim).split((q_heads, kv_heads, kv_heads), dim=1)
    v.copy_(values)
    for part, norm, out in ((queries, q_norm, q), (keys, k_norm, k)):
        if norm is not None:
            part = rms_norm(part, (dim,), norm.weight, norm.eps)
        first, second = part.float().chunk(2, dim=-1)
        c, s = cos[:, None], sin[:, None]
        out.copy_(torch.cat((first * c - second * s, second * c + first * s), dim=-1))
