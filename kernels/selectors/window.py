"""Sink + window (StreamingLLM, arXiv 2309.17453): the first blocks and the newest ones. The floor of any selector."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..attention.addressing import held_tokens, selected_blocks, strided
from ..cache import KVCache
from ..config import AttentionShape, SparseConfig, ceil_div
from ..launch import launch
from ..method import Stage, StepTensors
from .base import Blocks, SelectingLayer, Selector, register_selector


@triton.jit(
    do_not_specialize=["tokens", "width", "sink_blocks", "ratio_numerator", "ratio_denominator", "floor_blocks"]
)
def _sink_window_kernel(
    lists,  # int32 [B, 1, N]
    counts,  # int32 [B, 1]
    lengths,  # int32 [B]
    tokens,  # the cache's capacity
    width,  # N
    sink_blocks,
    ratio_numerator,
    ratio_denominator,
    floor_blocks,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
):
    batch = tl.program_id(1)
    blocks = tl.cdiv(held_tokens(tl.load(lengths + batch), tokens), BLOCK)
    n = selected_blocks(blocks, ratio_numerator, ratio_denominator, floor_blocks)
    place = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    block = tl.where(place < tl.minimum(sink_blocks, n), place, blocks - n + place)
    tl.store(lists + strided(batch, width) + place, tl.where(place < n, block, -1), mask=place < width)
    if tl.program_id(0) == 0:
        tl.store(counts + batch, n)


def sink_window_blocks(cache: KVCache, lists: Tensor, counts: Tensor, config: SparseConfig) -> None:
    """Fill one list a sequence: `config.sink_blocks` blocks from the start, the rest of n from the end, then -1.

    Args:
        lists: int32 `[B, 1, N]`, written.
        counts: int32 `[B, 1]`, written: n.
    """
    width = 256
    launch(
        _sink_window_kernel,
        (ceil_div(lists.shape[2], width), cache.batch),
        lists=lists,
        counts=counts,
        lengths=cache.lengths,
        tokens=cache.capacity,
        width=lists.shape[2],
        sink_blocks=config.sink_blocks,
        ratio_numerator=config.ratio.numerator,
        ratio_denominator=config.ratio.denominator,
        floor_blocks=config.floor_blocks,
        BLOCK=config.block_size,
        WIDTH=width,
        num_warps=4,
    )


def sink_window_reference(length: int, config: SparseConfig) -> Tensor:
    """The list of a sequence of `length` tokens in plain torch, int64 `[n]`."""
    blocks, n = config.blocks(length), config.selected(length)
    sink = min(config.sink_blocks, n)
    return torch.cat((torch.arange(sink), torch.arange(blocks - (n - sink), blocks)))


@register_selector("window")
class Window(Selector):
    """A constant list of the size the others select; nothing is scored."""

    ranked = False
    reads_fp8 = True

    def rows(self, shape: AttentionShape, config: SparseConfig) -> int:
        """One for all heads."""
        return 1

    def choose(self, blocks: Blocks) -> Tensor:
        """The first blocks and the newest ones, `[1 or sequences, R, 1, M]`."""
        count, taken, index = blocks.counts(blocks.sequences)
        sink = taken.clamp(max=blocks.config.sink_blocks)
        return (index < sink) | ((index >= count - (taken - sink)) & (index < count))

    def kernel_stages(self, layer: SelectingLayer, step: StepTensors) -> tuple[Stage, ...]:
        """One launch that writes the lists."""
        work = layer.work
        return (Stage("select", lambda: sink_window_blocks(layer.cache, work.lists, work.counts, layer.config)),)

    def score_bytes(self, shape: AttentionShape, config: SparseConfig, element: int, tokens: int) -> int:
        """Nothing."""
        return 0
