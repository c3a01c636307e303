"""A kernel that does nothing but read: what memory gives when no arithmetic stands in its way."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..kernels.checks import check_device, check_tensor
from ..kernels.launch import launch


@dataclass(frozen=True, slots=True)
class ReadPattern:
    """How a program reads: `steps` blocks of `block` 32-bit words one after the other, by `warps` warps."""

    block: int
    steps: int
    warps: int

    @property
    def words(self) -> int:
        """Words that one program reads."""
        return self.block * self.steps

    @property
    def name(self) -> str:
        """Such as `stream 8192 x 16, 8 warps`."""
        return f"stream {self.block} x {self.steps}, {self.warps} warps"


PATTERNS = (ReadPattern(4096, 8, 4), ReadPattern(8192, 16, 8), ReadPattern(16384, 4, 16))
"""Few words in flight by many programs, many by few, and one in between."""


@triton.jit
def _stream_kernel(
    source,  # int32 [programs * STEPS * BLOCK]
    sums,  # int32 [programs]
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * (BLOCK * STEPS) + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.int32)
    for step in tl.static_range(STEPS):
        total += tl.load(source + place + step * BLOCK)
    tl.store(sums + tl.program_id(0), tl.sum(total, axis=0))


def stream(source: Tensor, sums: Tensor, pattern: ReadPattern) -> None:
    """Read `source` once and write one sum (mod 2^32) a program. Needs a device that Triton kernels run on.

    Args:
        source: int32 `[programs * pattern.words]`, contiguous.
        sums: int32 `[programs]`, written.

    Raises:
        TypeError, ValueError: a tensor's dtype, shape, device or strides.
    """
    check_tensor("sums", sums, (None,), dtypes=(torch.int32,))
    programs = sums.shape[0]
    check_tensor("source", source, (programs * pattern.words,), dtypes=(torch.int32,), device=sums.device)
    check_device("source", source)
    launch(
        _stream_kernel,
        (programs,),
        source=source,
        sums=sums,
        BLOCK=pattern.block,
        STEPS=pattern.steps,
        num_warps=pattern.warps,
    )


def stream_reference(source: Tensor, programs: int) -> Tensor:
    """What `stream` writes, in plain torch: int32 `[programs]`."""
    return source.view(programs, -1).sum(1, dtype=torch.int32)
