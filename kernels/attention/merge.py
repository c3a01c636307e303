"""Merging split results: outputs over disjoint keys, weighted by their log-sum-exp, are the output over all keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..checks import check_device, check_tensor
from ..launch import await_previous, launch


@dataclass(frozen=True, slots=True)
class Partials:
    """Room for split results, allocated once and reused by every step and layer.

    Attributes:
        out: float32 `[rows, splits, D]`, normalised within the split.
        lse: float32 `[rows, splits]`, log2 of the sum of 2^(scaled logit); -inf where a split saw no key, and then
            its `out` is never read.
    """

    out: Tensor
    lse: Tensor

    @classmethod
    def allocate(cls, rows: int, splits: int, head_dim: int, device: torch.device | str) -> Partials:
        """Room for `rows` rows of `head_dim`, each in so many splits; not filled."""
        out = torch.empty(rows, splits, head_dim, dtype=torch.float32, device=device)
        return cls(out, torch.empty(rows, splits, dtype=torch.float32, device=device))

    @property
    def splits(self) -> int:
        """Results a row."""
        return self.lse.shape[1]

    def check(self, rows: int, head_dim: int, device: torch.device) -> None:
        """Raises TypeError, ValueError unless there is room for exactly `rows` rows of `head_dim`."""
        check_tensor("partials.out", self.out, (rows, None, head_dim), dtypes=(torch.float32,), device=device)
        check_tensor("partials.lse", self.lse, self.out.shape[:2], dtypes=(torch.float32,), device=device)
        if not (self.out.is_contiguous() and self.lse.is_contiguous()):
            raise ValueError("partials: must be contiguous")


@triton.jit(do_not_specialize=["splits"])
def _merge_kernel(
    partial,  # float32 [rows, splits, D]
    partial_lse,  # float32 [rows, splits]
    out,  # [rows, D]
    splits,
    D: tl.constexpr,
    SLICE: tl.constexpr,  # dims a program takes
    WIDTH: tl.constexpr,  # splits rounded up to a power of two
    PDL: tl.constexpr,
):
    await_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, WIDTH)
    dims = tl.program_id(1) * SLICE + tl.arange(0, SLICE)
    lse = tl.load(partial_lse + row * splits + index, mask=index < splits, other=float("-inf"))
    # Not masked by what was seen: both loads are under way at once, and what an empty split left there is dropped.
    cells = partial + (row * splits + index)[:, None] * D + dims[None, :]
    parts = tl.load(cells, mask=(index < splits)[:, None], other=0.0)
    seen = lse != float("-inf")  # NaN counts: it must show
    top = tl.max(lse, axis=0)
    weight = tl.where(seen, tl.exp2(lse - top), 0.0)
    total = tl.sum(weight, axis=0)
    merged = tl.sum(tl.where(seen[:, None], parts * weight[:, None], 0.0), axis=0) / tl.where(total > 0.0, total, 1.0)
    tl.store(out + row * D + dims, merged.to(out.dtype.element_ty))


def merge_partials(partials: Partials, out: Tensor) -> None:
    """Merge split results into `out` (`[..., D]` contiguous, one row per row of partials); no key at all gives zeros.

    Raises:
        TypeError, ValueError: `out` does not match the partials, or is not contiguous.
    """
    check_tensor("out", out, (None,) * out.dim(), device=partials.out.device)
    dim = out.shape[-1]
    partials.check(out.numel() // dim, dim, out.device)
    check_device("out", out)
    if not out.is_contiguous():
        raise ValueError("out: must be contiguous")
    width = max(triton.next_power_of_2(partials.splits), 2)
    # The whole row of programs waits for the slowest load: few values a thread, many programs.
    piece = dim if partials.lse.shape[0] >= 512 else min(dim, 32)
    launch(
        _merge_kernel,
        (partials.lse.shape[0], dim // piece),
        partial=partials.out,
        partial_lse=partials.lse,
        out=out,
        splits=partials.splits,
        D=dim,
        SLICE=piece,
        WIDTH=width,
        num_warps=4,
        num_stages=1,
    )


def merge_reference(out: Tensor, lse: Tensor) -> Tensor:
    """`[rows, splits, D]` outputs and `[rows, splits]` base-2 log-sum-exps to `[rows, D]`, in fp64."""
    seen = lse > float("-inf")
    weight = torch.where(seen, torch.exp2(lse.double() - lse.double().amax(-1, keepdim=True)), 0.0).nan_to_num(0.0)
    parts = torch.where(seen.unsqueeze(-1), out.double(), 0.0)
    total = weight.sum(-1, keepdim=True)
    return (parts * weight.unsqueeze(-1)).sum(-2) / torch.where(total > 0, total, 1.0)
