"""Linear layers of a decoder, with what stands around them: RMSNorm before, SwiGLU, bias or residual after.

A decode step multiplies one to sixteen rows with every weight of the model: it is bound by the weights' bytes, so a
small-rows kernel fuses the neighbours into one launch (`small_linear`). More rows (rectification, prefill) go through
the library's matrix product, or, with 4-bit weights, through `int4_linear`. `linear` chooses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear as torch_linear
from torch.nn.functional import rms_norm, silu


@dataclass(frozen=True, slots=True)
class Norm:
    """RMSNorm before a linear layer: x / rms(x) * weight, `weight` `[K]`."""

    weight: Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class DenseWeight:
    """A weight `[N, K]` in the activations' dtype, and its bias `[N]`. With SwiGLU: N/2 gate rows, then N/2 up rows."""

    weight: Tensor
    bias: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape[0], self.weight.shape[1]

    @property
    def bytes(self) -> int:
        """What one multiplication must read."""
        return _bytes(self.weight, self.bias)


def _bytes(*tensors: Tensor | None) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


Weight = DenseWeight


def linear(
    x: Tensor, weight: Weight, *, norm: Norm | None = None, residual: Tensor | None = None, swiglu: bool = False
) -> Tensor:
    """`residual + swiglu(norm(x) W^T + bias)`, each part only where it is given.

    Args:
        x: `[rows, K]`.
        residual: `[rows, N]` (or N/2 with `swiglu`), added at the end.
        swiglu: the product's first half is the gate: silu(gate) * up.

    Returns:
        `[rows, N]`, or `[rows, N/2]` with `swiglu`, of x's dtype.
    """
    return linear_reference(x, weight, norm=norm, residual=residual, swiglu=swiglu)


def linear_reference(
    x: Tensor, weight: Weight, *, norm: Norm | None = None, residual: Tensor | None = None, swiglu: bool = False
) -> Tensor:
    """`linear` in plain torch, in x's dtype."""
    if norm is not None:
        x = rms_norm(x, (x.shape[-1],), norm.weight, norm.eps)
    y = torch_linear(x, weight.weight, weight.bias)
    if swiglu:
        gate, up = y.chunk(2, dim=-1)
        y = silu(gate) * up
    return y if residual is None else residual + y
