"""Rotary position embedding with its neighbours: split QKV, normalise q and k per head (Qwen3), rotate.

Heads are rotated in halves (dims d and d + D/2 are a pair), as Hugging Face's Llama and Qwen checkpoints have them.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import rms_norm

from ..checks import check_device, check_tensor, kernel_dtypes
from ..launch import await_previous, launch
from .weights import Norm


@triton.jit
def _rope_kernel(
    qkv,  # [rows, (Hq + 2 Hkv) D]
    cos,  # float32 [rows, D / 2]
    sin,  # float32 [rows, D / 2]
    q_norm,  # [D], or None
    k_norm,  # [D], or None
    q,  # [rows, Hq, D]
    k,  # [rows, Hkv, D]
    v,  # [rows, Hkv, D]
    q_eps,
    k_eps,
    qkv_stride,
    angle_stride,
    Q_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,  # D / 2
    WIDTH: tl.constexpr,  # HALF rounded up to a power of two
    PDL: tl.constexpr,
):
    await_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    dim = tl.arange(0, WIDTH)
    mask = dim < HALF
    source = qkv + row * qkv_stride + head * (2 * HALF) + dim
    first, second = tl.load(source, mask=mask, other=0.0), tl.load(source + HALF, mask=mask, other=0.0)
    if head >= Q_HEADS + KV_HEADS:
        target = v + (row * KV_HEADS + head - Q_HEADS - KV_HEADS) * (2 * HALF) + dim
        tl.store(target, first, mask=mask)
        tl.store(target + HALF, second, mask=mask)
    else:
        c = tl.load(cos + row * angle_stride + dim, mask=mask, other=0.0)
        s = tl.load(sin + row * angle_stride + dim, mask=mask, other=0.0)
        a, b = first.to(tl.float32), second.to(tl.float32)
        if head < Q_HEADS:
            target = q + (row * Q_HEADS + head) * (2 * HALF) + dim
            if q_norm is not None:
                a, b = _normalised(a, b, q_norm + dim, mask, q_eps, HALF)
        else:
            target = k + (row * KV_HEADS + head - Q_HEADS) * (2 * HALF) + dim
            if k_norm is not None:
                a, b = _normalised(a, b, k_norm + dim, mask, k_eps, HALF)
        tl.store(target, (a * c - b * s).to(q.dtype.element_ty), mask=mask)
        tl.store(target + HALF, (b * c + a * s).to(q.dtype.element_ty), mask=mask)


@triton.jit
def _normalised(a, b, weight, mask, eps, HALF: tl.constexpr):
    """RMSNorm of one head, given as its halves in fp32."""
    rstd = tl.rsqrt((tl.sum(a * a, axis=0) + tl.sum(b * b, axis=0)) / (2 * HALF) + eps)
    first = tl.load(weight, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(weight + HALF, mask=mask, other=0.0).to(tl.float32)
    return a * rstd * first, b * rstd * second


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
    """Write the roped queries and keys and the values of each row. One launch on a GPU, plain torch on a CPU.

    Args:
        qkv: `[rows, (Hq + 2 Hkv) D]`: queries, keys, values of a row side by side.
        cos, sin: float32 `[rows, D / 2]` of each row's position (scaled as the model's rotary scaling says).
        q: out `[rows, Hq, D]`; k, v: out `[rows, Hkv, D]`; contiguous.
        q_norm, k_norm: RMSNorm of each head, weight `[D]`.

    Raises:
        TypeError, ValueError: a tensor's dtype, shape, device or strides.
    """
    _check(qkv, cos, sin, q, k, v, q_norm, k_norm)
    run = rope_kernel if qkv.is_cuda and qkv.dtype in kernel_dtypes() else rope_reference
    run(qkv, cos, sin, q, k, v, q_norm=q_norm, k_norm=k_norm)


def _check(
    qkv: Tensor, cos: Tensor, sin: Tensor, q: Tensor, k: Tensor, v: Tensor, q_norm: Norm | None, k_norm: Norm | None
) -> None:
    check_tensor("q", q, (None, None, None))
    rows, q_heads, dim = q.shape
    if dim % 2:
        raise ValueError(f"q: got head dim {dim}, expected an even one")
    same: dict[str, Any] = dict(dtypes=(qkv.dtype,), device=qkv.device)
    check_tensor("q", q, (rows, q_heads, dim), **same)
    check_tensor("k", k, (rows, None, dim), **same)
    check_tensor("v", v, k.shape, **same)
    check_tensor("qkv", qkv, (rows, (q_heads + 2 * k.shape[1]) * dim))
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if not tensor.is_contiguous():
            raise ValueError(f"{name}: must be contiguous")
    for name, tensor in (("cos", cos), ("sin", sin)):
        check_tensor(name, tensor, (rows, dim // 2), dtypes=(torch.float32,), device=qkv.device)
    if cos.stride(0) != sin.stride(0):
        raise ValueError(f"sin: got row stride {sin.stride(0)}, expected that of cos, {cos.stride(0)}")
    for name, norm in (("q_norm", q_norm), ("k_norm", k_norm)):
        if norm is not None:
            check_tensor(name, norm.weight, (dim,), **same)


def rope_kernel(
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
    """`rope_split` by the kernel, for the dtypes that kernels take.

    Raises:
        TypeError, ValueError: as there; kernels cannot run where `qkv` lies.
    """
    _check(qkv, cos, sin, q, k, v, q_norm, k_norm)
    check_tensor("qkv", qkv, (None, None), dtypes=kernel_dtypes())
    check_device("qkv", qkv)
    rows, q_heads, dim = q.shape
    launch(
        _rope_kernel,
        (rows, q_heads + 2 * k.shape[1]),
        qkv=qkv,
        cos=cos,
        sin=sin,
        q_norm=None if q_norm is None else q_norm.weight,
        k_norm=None if k_norm is None else k_norm.weight,
        q=q,
        k=k,
        v=v,
        q_eps=0.0 if q_norm is None else q_norm.eps,
        k_eps=0.0 if k_norm is None else k_norm.eps,
        qkv_stride=qkv.stride(0),
        angle_stride=cos.stride(0),
        Q_HEADS=q_heads,
        KV_HEADS=k.shape[1],
        HALF=dim // 2,
        WIDTH=triton.next_power_of_2(dim // 2),
        num_warps=1,
        num_stages=1,
    )


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
    """`rope_split` in plain torch, of any floating dtype, rotating in float32. The arguments are not checked."""
    rows, q_heads, dim = q.shape
    kv_heads = k.shape[1]
    queries, keys, values = torch.split(qkv.view(rows, -1, dim), [q_heads, kv_heads, kv_heads], dim=1)
    v.copy_(values)
    for part, norm, out in ((queries, q_norm, q), (keys, k_norm, k)):
        if norm is not None:
            part = rms_norm(part, (dim,), norm.weight, norm.eps)
        first, second = part.float().chunk(2, dim=-1)
        c, s = cos[:, None], sin[:, None]
        out.copy_(torch.cat((first * c - second * s, second * c + first * s), dim=-1))
