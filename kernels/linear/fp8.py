"""8-bit floating weights (e4m3), a scale a weight row: quantise, read back exactly; and rows of x in the same way.

A row of the weight has a scale s: w = s q with q in e4m3, s the largest |w| of the row over 448. Beside 16-bit x
(W8A16) a product reads half the bytes of a 16-bit weight; with x in e4m3 too (W8A8) tensor cores are twice as fast.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import check_tensor
from .weights import tensor_bytes

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
CHUNK_ELEMENTS = 2**24  # quantised at a time


@dataclass(frozen=True, slots=True)
class Fp8Weight:
    """A weight `[N, K]` in e4m3 and its bias `[N]`, or rows of x in it. SwiGLU: N/2 gate rows, then N/2 up rows.

    Attributes:
        values: e4m3 `[N, K]`.
        scales: fp32 `[N]`, one a row.
        bias: `[N]` in the activations' dtype.

    Raises:
        TypeError, ValueError: a tensor's dtype, shape, device or strides.
    """

    values: Tensor
    scales: Tensor
    bias: Tensor | None = None

    def __post_init__(self) -> None:
        check_tensor("values", self.values, (None, None), dtypes=(E4M3,))
        check_tensor("scales", self.scales, (self.values.shape[0],), dtypes=(torch.float32,), device=self.values.device)
        if not (self.values.is_contiguous() and self.scales.is_contiguous()):
            raise ValueError("values, scales: must be contiguous")

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.values.shape[0], self.values.shape[1]

    @property
    def bytes(self) -> int:
        """What one multiplication must read."""
        return tensor_bytes(self.values, self.scales, self.bias)


def quantise_fp8(matrix: Tensor, bias: Tensor | None = None) -> Fp8Weight:
    """Round a matrix `[N, K]` of any floating dtype to e4m3, row by row; a row of zeros has the scale 1.

    Args:
        bias: `[N]` in the activations' dtype, kept as it is.

    Raises:
        TypeError, ValueError: not a floating matrix.
    """
    check_tensor("matrix", matrix, (None, None), last_contiguous=False)
    if not matrix.is_floating_point():
        raise TypeError(f"matrix: got dtype {matrix.dtype}, expected a floating-point dtype")
    rows, depth = matrix.shape
    values = torch.empty(rows, depth, dtype=E4M3, device=matrix.device)
    scales = torch.empty(rows, dtype=torch.float32, device=matrix.device)
    chunk = max(1, CHUNK_ELEMENTS // max(1, depth))
    for start in range(0, rows, chunk):
        part = slice(start, min(start + chunk, rows))
        wide = matrix[part].float()
        largest = wide.abs().amax(1)
        scales[part] = torch.where(largest > 0, largest / E4M3_MAX, torch.ones_like(largest))
        values[part] = (wide / scales[part, None]).clamp_(-E4M3_MAX, E4M3_MAX).to(E4M3)
    return Fp8Weight(values, scales, bias)


def dequantise_fp8(weight: Fp8Weight, dtype: torch.dtype = torch.float32) -> Tensor:
    """The matrix that the 8 bits stand for, computed in fp32 (fp64 for that) and rounded to `dtype`."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return (weight.values.to(wide) * weight.scales.to(wide)[:, None]).to(dtype)


def fp8_reference(x: Tensor | Fp8Weight, weight: Fp8Weight, dtype: torch.dtype | None = None) -> Tensor:
    """`x W^T` in plain torch, in fp32 and rounded to `dtype` (x's own; fp32 of quantised rows).

    Args:
        x: `[rows, K]`, floating (W8A16) or quantised by rows (W8A8).
    """
    plain = dequantise_fp8(x) if isinstance(x, Fp8Weight) else x.float()
    given = torch.float32 if isinstance(x, Fp8Weight) else x.dtype
    return (plain @ dequantise_fp8(weight).T).to(dtype or given)
