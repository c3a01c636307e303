"""4-bit weights in groups along K: quantise, pack, and read back exactly.

A group of G weights of one row has a scale s and a zero z: w = (q - 8) s + z with q in 0..15, as torch's 4-bit format
has it. Words are laid out for a kernel that unpacks four groups at a time into matrix-product operands without moving
anything between threads: a block is four consecutive groups, word j of a block holds element j of each of them, nibble
i belonging to group i. K that is no multiple of a block is filled up with groups whose scale and zero are 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import check_tensor
from .weights import tensor_bytes

GROUPS = (32, 64, 128, 256)
NIBBLES = 4  # groups of a block
CHUNK_ELEMENTS = 2**24  # quantised or read back at a time


@dataclass(frozen=True, slots=True)
class Int4Weight:
    """A weight `[N, K]` in 4 bits, and its bias `[N]`. With SwiGLU: N/2 gate rows, then N/2 up rows.

    Attributes:
        words: int16 `[N, blocks * group]`.
        scales: `[blocks * 4, N, 2]` of the activations' dtype: scale and zero of each group.
        depth: K.
        group: 32, 64, 128 or 256; divides K.

    Raises:
        TypeError, ValueError: a tensor's dtype, shape, device or strides; the group.
    """

    words: Tensor
    scales: Tensor
    depth: int
    group: int
    bias: Tensor | None = None

    def __post_init__(self) -> None:
        check_group(self.depth, self.group)
        blocks = count_blocks(self.depth, self.group)
        check_tensor("words", self.words, (None, blocks * self.group), dtypes=(torch.int16,))
        check_tensor("scales", self.scales, (blocks * NIBBLES, self.words.shape[0], 2), device=self.words.device)
        if not (self.words.is_contiguous() and self.scales.is_contiguous()):
            raise ValueError("words, scales: must be contiguous")

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.words.shape[0], self.depth

    @property
    def bytes(self) -> int:
        """What one multiplication must read."""
        return tensor_bytes(self.words, self.scales, self.bias)


def check_group(depth: int, group: int) -> None:
    """Raises ValueError unless `group` is allowed and divides `depth`."""
    if group not in GROUPS:
        raise ValueError(f"group: got {group}, allowed are {', '.join(map(str, GROUPS))}")
    if depth < 1 or depth % group:
        raise ValueError(f"group: got {group}, must divide K = {depth}")


def count_blocks(depth: int, group: int) -> int:
    """Blocks of four groups that a row of K = `depth` takes, the last one filled up."""
    return -(-depth // (NIBBLES * group))


def quantise(
    weight: Tensor, bias: Tensor | None = None, *, group: int = 128, dtype: torch.dtype | None = None
) -> Int4Weight:
    """Round a weight `[N, K]` of any floating dtype to 4 bits, group by group between its minimum and maximum.

    Values are rounded to the nearest of the 16 that the group's scale and zero, *as stored*, can express.

    Args:
        dtype: of scales and bias, the activations' dtype; the weight's own by default.

    Raises:
        TypeError, ValueError: not a floating matrix, or `group` is not allowed or does not divide K.
    """
    check_tensor("weight", weight, (None, None), last_contiguous=False)
    if not weight.is_floating_point():
        raise TypeError(f"weight: got dtype {weight.dtype}, expected a floating-point dtype")
    rows, depth = weight.shape
    check_group(depth, group)
    dtype = dtype or weight.dtype
    blocks = count_blocks(depth, group)
    words = torch.empty(rows, blocks * group, dtype=torch.int16, device=weight.device)
    scales = torch.zeros(blocks * NIBBLES, rows, 2, dtype=dtype, device=weight.device)
    chunk = max(1, CHUNK_ELEMENTS // depth)
    for start in range(0, rows, chunk):
        part = slice(start, min(start + chunk, rows))
        values = weight[part].float().reshape(-1, depth // group, group)
        low, high = values.aminmax(dim=-1)
        scale = ((high - low) / 15).to(dtype)
        zero = (low + 8 * scale.float()).to(dtype)
        scales[: depth // group, part, 0] = scale.T
        scales[: depth // group, part, 1] = zero.T
        step = scale.float().unsqueeze(-1)
        q = (values - zero.float().unsqueeze(-1)) / torch.where(step > 0, step, 1.0)
        words[part] = pack(q.round_().add_(8).clamp_(0, 15).to(torch.int32).flatten(1), group)
    return Int4Weight(words, scales, depth, group, None if bias is None else bias.to(dtype))


def pack(q: Tensor, group: int) -> Tensor:
    """Integers 0..15 `[N, K]` as words, int16 `[N, blocks * group]`; filled up with 8."""
    rows, depth = q.shape
    blocks = count_blocks(depth, group)
    q = torch.nn.functional.pad(q.to(torch.int32), (0, blocks * NIBBLES * group - depth), value=8)
    shifts = torch.arange(0, 16, 4, dtype=torch.int32, device=q.device)
    words = (q.view(rows, blocks, NIBBLES, group) << shifts[:, None]).sum(2, dtype=torch.int32)
    return torch.where(words >= 2**15, words - 2**16, words).to(torch.int16).flatten(1)


def unpack(words: Tensor, depth: int, group: int) -> Tensor:
    """The integers 0..15 `[N, K]` of packed words."""
    rows = words.shape[0]
    shifts = torch.arange(0, 16, 4, dtype=torch.int32, device=words.device)
    q = (words.view(rows, -1, 1, group).to(torch.int32) >> shifts[:, None]) & 15
    return q.view(rows, -1)[:, :depth]


def dequantise(weight: Int4Weight, dtype: torch.dtype | None = None) -> Tensor:
    """The weight `[N, K]` that the 4 bits stand for, in fp32 (fp64 for that), rounded to `dtype` (the scales' own)."""
    rows, depth = weight.shape
    out = torch.empty(rows, depth, dtype=dtype or weight.scales.dtype, device=weight.words.device)
    wide = torch.float64 if out.dtype == torch.float64 else torch.float32
    chunk = max(1, CHUNK_ELEMENTS // depth)
    for start in range(0, rows, chunk):
        part = slice(start, min(start + chunk, rows))
        q = unpack(weight.words[part], depth, weight.group).view(-1, depth // weight.group, weight.group)
        scale, zero = weight.scales[: depth // weight.group, part].to(wide).permute(2, 1, 0).unsqueeze(-1)
        out[part] = ((q - 8).to(wide) * scale + zero).flatten(1).to(out.dtype)
    return out
