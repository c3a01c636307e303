"""Keys and values in 8 bits (e4m3): rounding to that type, and the scales that a KV head's values are stored by.

A scale is a power of two. So what is stored times its scale is exact in 16 bits, and a product with the scale may stand
anywhere: in the softmax's scale for keys, in the output for values.
"""

from __future__ import annotations

import torch
from torch import Tensor

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
HEADROOM = 2.0  # of a scale over the largest value that it was chosen by: what comes later may be larger
LEAST_SCALE = 2.0**-15  # times the smallest e4m3 number it is fp16's smallest


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` in an element type; e4m3 saturates."""
    return (x.clamp(-E4M3_MAX, E4M3_MAX) if dtype == E4M3 else x).to(dtype)


def scales_of(values: Tensor) -> Tensor:
    """A scale per KV head, float32 `[Hkv]`, of values `[B, Hkv, T, D]`; infinities and NaN among them do not count.

    The smallest power of two, but LEAST_SCALE at least, with which HEADROOM times the largest value fits e4m3.
    """
    most = values.abs().nan_to_num(0.0, posinf=0.0).amax((0, 2, 3)).float()
    fraction, exponent = torch.frexp(most * (HEADROOM / E4M3_MAX))  # fraction * 2^exponent, fraction in [0.5, 1)
    exponent = exponent - (fraction == 0.5).to(exponent.dtype)
    return torch.ldexp(torch.ones_like(most), exponent).clamp(min=LEAST_SCALE)


def encoded(values: Tensor, scales: Tensor) -> Tensor:
    """Values `[..., Hkv, T, D]` as e4m3, each over its head's scale `[Hkv]`, to nearest; larger ones saturate."""
    return rounded(values.float() / scales[:, None, None], E4M3)


def decoded(stored: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """What `[..., Hkv, T, D]` of e4m3 stands for, in `dtype`."""
    return stored.to(dtype) * scales[:, None, None].to(dtype)
