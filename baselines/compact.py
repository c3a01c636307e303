"""Eviction: a compact cache of the tokens that are kept, each KV head its own, and a dense kernel over it.

The state's own cache is written on as well, since other methods of a case start from it; a step reads nothing of it.
What is kept has as many tokens as block-sparse methods of the same settings read: floors compare.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from ..kernels import DecodeMethod, KVCache, Layer, Stage, StepTensors, Traffic, Unsupported, get_method, write_tokens
from ..kernels.config import ceil_div
from ..kernels.launch import can_run_on
from ..kernels.portable import write_tokens_torch

POOLED = 7  # neighbours that share their attention: what stands beside a token that is needed is kept, too
CAPACITY_STEP = 64  # tokens, which every dense kernel takes


def on_kernels(device: torch.device) -> bool:
    """Whether the dense kernel and the append are Triton's; a CPU takes plain torch, in the interpreter, too."""
    return device.type == "cuda" and can_run_on(device) is None


def attention_of(queries: Tensor, keys: Tensor, length: int) -> Tensor:
    """The attention that the newest queries pay to each key of one sequence, summed over queries and the GQA group.

    Args:
        queries: `[w, Hq, D]`, of the newest w of `length` tokens.
        keys: `[Hkv, S, D]`, of which the first `length` count.

    Returns:
        float32 `[Hkv, length]`, smoothed over POOLED neighbours as SnapKV has it.
    """
    count, heads, dim = queries.shape
    kv_heads = keys.shape[0]
    rows = queries.float().view(count, kv_heads, heads // kv_heads, dim).permute(1, 2, 0, 3)  # [Hkv, G, w, D]
    position = torch.arange(length, device=keys.device)
    later = position > torch.arange(length - count, length, device=keys.device)[:, None]
    mass = torch.empty(kv_heads, length, device=keys.device)
    for head, own in enumerate(rows):  # one at a time: the logits of all would take gigabytes at 256K
        logits = own @ keys[head, :length].float().t() * dim**-0.5  # [G, w, length]
        mass[head] = logits.masked_fill_(later, float("-inf")).softmax(-1).sum((0, 1))
    return avg_pool1d(mass[:, None], POOLED, stride=1, padding=POOLED // 2, count_include_pad=False)[:, 0]


def best_places(scores: Tensor, count: int, newest: int) -> Tensor:
    """`count` places of each row, ascending, int64 `[Hkv, count]`: the last `newest`, and those of the best scores.

    Args:
        scores: `[Hkv, length]`, length at least `count`.
    """
    length = scores.shape[1]
    newest = min(newest, count)
    older = scores[:, : length - newest].topk(count - newest, dim=1).indices.sort(1).values
    last = torch.arange(length - newest, length, device=scores.device).expand(len(scores), -1)
    return torch.cat((older, last), 1)


class CompactLayer(Layer):
    """One layer: `cache` is the compact one, `whole` the state's."""

    def __init__(self, whole: KVCache, kept: list[Tensor], room: int, dense: Callable[[KVCache], Layer]) -> None:
        """
        Args:
            kept: of each sequence the places of the tokens that stay, int64 `[Hkv, n]`.
            room: tokens that a sequence may grow by.
            dense: binds a dense method.
        """
        self.whole = whole
        most = max(places.shape[1] for places in kept) + room
        self.cache = KVCache.allocate(
            whole.batch, whole.kv_heads, ceil_div(most, CAPACITY_STEP) * CAPACITY_STEP, whole.head_dim,
            dtype=whole.dtype, device=whole.device,
        )  # fmt: skip
        self._left_out = torch.zeros_like(whole.lengths)
        for b, (places, length) in enumerate(zip(kept, whole.lengths.tolist(), strict=True)):
            self.put(b, places)
            self._left_out[b] = length - places.shape[1]
        self.follow()
        self.inner = dense(self.cache)
        self._append = write_tokens if on_kernels(whole.device) else write_tokens_torch

    def put(self, sequence: int, places: Tensor) -> None:
        """Have the tokens at these places, int64 `[Hkv, n]`, stand first."""
        index = places[:, :, None].expand(-1, -1, self.whole.head_dim)
        for source, target in ((self.whole.k, self.cache.k), (self.whole.v, self.cache.v)):
            target[sequence, :, : places.shape[1]] = source[sequence].gather(1, index)

    def follow(self) -> None:
        """The compact cache is as much longer as the whole one has become."""
        torch.sub(self.whole.lengths, self._left_out, out=self.cache.lengths)

    def write(self, step: StepTensors) -> None:
        """The new token, into both."""
        self.follow()
        self._append(self.whole, step.k, step.v)
        self._append(self.cache, step.k, step.v)

    def stages(self, step: StepTensors) -> tuple[Stage, ...]:
        """The dense method's, whose append also follows the whole cache."""
        append, *attend = self.inner.stages(step)
        return (Stage("append", lambda: self.write(step), append.graph_safe), *attend)

    def output(self, step: StepTensors) -> Tensor:
        """The dense method's."""
        return self.inner.output(step)

    def traffic(self) -> dict[str, Traffic]:
        """Floors of a dense step over what is kept."""
        self.follow()
        return self.inner.traffic()


class Evicting(DecodeMethod):
    """Base of methods that drop tokens for good."""

    evicts = True
    uses = ("block_size", "active_ratio", "min_blocks", "budget_tokens")
    layer_class: ClassVar[type[CompactLayer]] = CompactLayer

    @classmethod
    def dense_name(cls, device: torch.device) -> str:
        """The dense method that attends: it follows the length."""
        return "triton-dense" if on_kernels(device) else "torch-dense"

    def kept_tokens(self, length: int) -> int:
        """As many as block-sparse methods read of so many."""
        return min(self.config.selected(length) * self.config.block_size, length)

    def bound(self, cache: KVCache, kept: list[Tensor], room: int) -> CompactLayer:
        """A layer over these tokens of each sequence."""
        dense = get_method(self.dense_name(self.device))
        method = dense(self.shape, self.config, dtype=self.dtype, device=self.device)
        return self.layer_class(cache, kept, room, method.prepare)

    def observed(self, cache: KVCache) -> Tensor:
        """The prompt's last queries, `[B, w, Hq, D]`. Raises Unsupported for a cache without them, or a paged one."""
        if cache.paged:
            raise Unsupported(f"cache: {self.name} reads contiguous caches only, got a paged one")
        if cache.queries is None:
            raise Unsupported(f"cache: {self.name} judges by the prompt's last queries, which this cache does not hold")
        return cache.queries
