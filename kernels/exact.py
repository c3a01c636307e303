"""Attention in fp64, and how far a kernel of lower precision may stray from it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .e4m3 import E4M3

UNIT_ROUNDOFF = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24, E4M3: 2.0**-4}
CONFIDENCE = 6.0  # in units of the largest single rounding error; a rounding error's deviation is 1 / sqrt(3) of it


class Exact(NamedTuple):
    """Exact attention of some rows, with what its error budget is made of. All fp64, `[..., D]` unless said."""

    out: Tensor
    size: Tensor  # sum_j p_j |v_j|
    spread: Tensor  # sqrt(sum_j p_j^2 v_j^2)
    logit_size: Tensor  # [..., 1]: largest scale * sum_d |q_d k_jd| over the keys
    keys: int  # most keys any row attends to

    def budget(self, dtype: torch.dtype) -> Tensor:
        """Bound on |out - exact| for inputs, probabilities and output in `dtype` with fp32 sums, element by element.

        - Rounding the output: u |out|.
        - Rounding each probability to `dtype` before the product with V: independent errors, so CONFIDENCE u times
          the root of the sum of squares (`spread`), not the sum, which long contexts would make meaningless.
        - A logit, a sum of D products in fp32, is off by at most (D + 8) u32 logit_size; probabilities by twice that.
        - Summing over n keys in fp32: CONFIDENCE sqrt(n) u32 (Higham and Mary, A new approach to probabilistic
          rounding error analysis, 2019).
        """
        u, u32 = UNIT_ROUNDOFF[dtype], 2.0**-24
        sums = 2 * (self.out.shape[-1] + 8) * u32 * self.logit_size + (CONFIDENCE * self.keys**0.5 + 16) * u32
        bound: Tensor = u * self.out.abs() + CONFIDENCE * u * self.spread + sums * self.size
        return bound


def exact_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Exact:
    """Rows q `[R, D]` over keys k, v `[n, D]`, n >= 1, all seen by every row."""
    q, k, v = q.double(), k.double(), v.double()
    p = torch.softmax(q @ k.T * scale, dim=-1)
    logit_size = (q.abs() @ k.abs().T).amax(-1, keepdim=True) * scale
    return Exact(p @ v, p @ v.abs(), (p.square() @ v.square()).sqrt(), logit_size, k.shape[0])


def empty_rows(*shape: int, device: torch.device) -> Exact:
    """Rows that see no key: exactly zero."""
    out, size, spread = torch.zeros(3, *shape, dtype=torch.float64, device=device)
    return Exact(out, size, spread, torch.zeros(*shape[:-1], 1, dtype=torch.float64, device=device), 0)


def assign(target: Exact, index: object, part: Exact) -> Exact:
    """Write `part` into rows `index` of `target`."""
    for name in ("out", "size", "spread", "logit_size"):
        getattr(target, name)[index] = getattr(part, name)
    return target._replace(keys=max(target.keys, part.keys))
