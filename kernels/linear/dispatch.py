"""Linear layers of a decoder, with what stands around them: RMSNorm before, SwiGLU, bias or residual after.

A decode step multiplies one to sixteen rows with every weight of the model: it is bound by the weights' bytes, so a
small-rows kernel fuses the neighbours into one launch (`small_linear`, `int4_linear`, `fp8_small`; `cuda` with 4 bits,
where it runs). More rows (rectification, prefill) go through the library's matrix product, or, with 4-bit
and 8-bit weights, through `int4_rows` and `fp8_rows`. `linear` chooses.
Weights that other products hold, too, go to whichever was measured to be the best (`chosen`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear as torch_linear
from torch.nn.functional import rms_norm

from .chosen import ChosenWeight
from .cuda.gemv import int4_gemv, serves
from .finish import finish, finish_reference
from .fp8 import Fp8Weight, dequantise_fp8
from .fp8_rows import fp8_many_linear
from .fp8_small import fp8_small_linear, one_launch
from .int4 import Int4Weight, dequantise
from .int4_linear import int4_small_linear
from .int4_rows import int4_linear
from .small_linear import MAX_SMALL_ROWS, small_linear
from .weights import DenseWeight, Norm

Weight = DenseWeight | Int4Weight | Fp8Weight | ChosenWeight


def linear(
    x: Tensor, weight: Weight, *, norm: Norm | None = None, residual: Tensor | None = None, swiglu: bool = False
) -> Tensor:
    """`residual + swiglu(norm(x) W^T + bias)`, each part only where it is given.

    Args:
        x: `[rows, K]`, floating; bf16 and fp16 on a GPU go through kernels, everything else through torch.
        weight: `[N, K]`, with its bias `[N]`.
        norm: of x, before the product.
        residual: `[rows, N]` (or N/2 with `swiglu`), added at the end.
        swiglu: the product's first half is the gate: silu(gate) * up.

    Returns:
        `[rows, N]`, or `[rows, N/2]` with `swiglu`, of x's dtype.

    Raises:
        TypeError, ValueError: on a GPU: a tensor's dtype, shape, device or strides.
    """
    if isinstance(weight, ChosenWeight):
        multiply = weight.multiply(x.shape[0])
        if multiply is not None:
            return finish(multiply(_normalised(x, norm)), weight.bias, residual, swiglu=swiglu)
        weight = weight.own
    if x.is_cuda and x.dtype in (torch.bfloat16, torch.float16):
        if isinstance(weight, Fp8Weight):
            if one_launch(x.shape[0], weight.shape[0]):
                return fp8_small_linear(x, weight, norm=norm, residual=residual, swiglu=swiglu)
            return finish(fp8_many_linear(_normalised(x, norm), weight), weight.bias, residual, swiglu=swiglu)
        few = x.shape[0] <= MAX_SMALL_ROWS
        if isinstance(weight, Int4Weight):
            if serves(x, weight, norm, swiglu):
                return int4_gemv(x, weight, norm=norm, residual=residual, swiglu=swiglu)
            if few:
                return int4_small_linear(x, weight, norm=norm, residual=residual, swiglu=swiglu)
            return finish(int4_linear(_normalised(x, norm), weight), None, residual, swiglu=swiglu)
        if few:
            return small_linear(x, weight, norm=norm, residual=residual, swiglu=swiglu)
    return linear_reference(x, weight, norm=norm, residual=residual, swiglu=swiglu)


def linear_reference(
    x: Tensor, weight: Weight, *, norm: Norm | None = None, residual: Tensor | None = None, swiglu: bool = False
) -> Tensor:
    """`linear` in plain torch, in x's dtype; 4-bit and 8-bit weights are read back first."""
    weight = weight.own if isinstance(weight, ChosenWeight) else weight
    return finish_reference(
        torch_linear(_normalised(x, norm), _plain(weight, x.dtype), weight.bias), None, residual, swiglu=swiglu
    )


def _plain(weight: DenseWeight | Int4Weight | Fp8Weight, dtype: torch.dtype) -> Tensor:
    if isinstance(weight, Int4Weight):
        return dequantise(weight, dtype)
    return dequantise_fp8(weight, dtype) if isinstance(weight, Fp8Weight) else weight.weight


def _normalised(x: Tensor, norm: Norm | None) -> Tensor:
    return x if norm is None else rms_norm(x, (x.shape[-1],), norm.weight, norm.eps)
