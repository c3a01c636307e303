"""RetroAttention (arXiv 2508.09001): Quest's selection, whose blocks also repair the newest tokens' earlier outputs.

A step runs the newest w tokens through the model, the fed one last. In every layer it overwrites the K and V of these
tokens (they come from repaired outputs of the layer below), scores and selects with the newest query alone, and loads
the selected blocks once for all w rows: the newest attends to all of them, an older one to those that no step since
its own has loaded, up to its own position. That result merges by log-sum-exp with the one the older token had, so that
with K, V and queries held still its output equals attention over the union of the lists of all steps since its own.
Tokens of the prompt have seen everything and stay as they are.

The text leaves open with which query an older token attends to what is new to it. `retro` takes the query recomputed
from the repaired output of the layer below, `retro-cached` the one that the token was fed with; only with the latter
are the two results that merge those of one and the same query.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..kernels import KVCache, Partials, Stage, StepTensors, Traffic, Unsupported, WindowTensors, register, write_tokens
from ..kernels.attention.window import Ring
from ..kernels.attention.window_decode import window_decode, window_splits
from ..kernels.attention.window_merge import merge_window
from ..kernels.binding import check_step, check_window
from ..kernels.config import SELECTS
from ..kernels.pipeline import SparseLayer, SparseMethod
from ..kernels.portable import TorchSparseLayer, refresh_torch, tokens_of, write_tokens_torch
from ..kernels.workspace import BlockSparseLayer


@dataclass
class RepairingLayer(BlockSparseLayer):
    """What both paths share: a ring of results, the order of stages, floors.

    Attributes:
        keeps_queries: whether the ring keeps the queries that tokens were fed with.
        ring: results, stamps and, if asked, queries of the newest tokens.
    """

    keeps_queries: ClassVar[bool] = False

    ring: Ring = field(init=False)

    def __post_init__(self) -> None:
        self.ring = Ring.allocate(self.shape, self.config, self.cache, keeps_queries=self.keeps_queries)
        self._start = torch.zeros_like(self.cache.lengths)

    @property
    def window(self) -> int:
        """Tokens that a step runs: the newest and those it repairs."""
        return self.config.window

    @property
    def appends_apart(self) -> bool:
        """Always: several tokens are appended, in a stage of their own."""
        return True

    def write_window(self, window: WindowTensors) -> None:
        """Overwrite K and V of the window's tokens, the prompt's apart, and refresh their blocks' summaries."""
        raise NotImplementedError

    def repair_stages(self, window: WindowTensors) -> tuple[Stage, ...]:
        """The stages that attend to the lists with all rows and merge, into `window.out`."""
        raise NotImplementedError

    def window_stages(self, window: WindowTensors) -> tuple[Stage, ...]:
        """A step of several tokens: append, select with the newest query, attend and merge with all.

        Raises:
            TypeError, ValueError: a tensor of the window of the wrong dtype, shape, device or strides (`check_window`).
        """
        check_window(window, self.cache, self.shape.q_heads)
        append = Stage("append", lambda: self.write_window(window), self.graph_safe)
        return (append, *self.counted(*self.choose_stages(window.newest), *self.repair_stages(window)))

    def stages(self, step: StepTensors) -> tuple[Stage, ...]:
        """A step of one token: nothing is repaired, but the blocks that it loads count as loaded."""
        check_step(step, self.cache, self.shape.q_heads)
        q, k, v, out = (x.unsqueeze(1) for x in (step.q, step.k, step.v, step.out))
        return self.window_stages(WindowTensors(q, k, v, out, self._start))

    def refresh(self, tokens: int) -> None:
        """Summaries of the newest `tokens` tokens anew; what was loaded before no longer counts."""
        super().refresh(tokens)
        self.ring.forget()

    def traffic(self) -> dict[str, Traffic]:
        """As Quest's, with w rows: their queries, outputs, keys and values, cached results, and a stamp an entry."""
        parts, cache, shape, work = super().traffic(), self.cache, self.shape, self.work
        size, older = cache.k.element_size(), self.config.window - 1
        row = shape.batch * shape.q_heads * cache.head_dim
        more_append = Traffic(older * (parts["append"].bytes - (0 if self.summaries is None else self._summary_bytes)))
        stamps = 2 * 4 * int((work.lists >= 0).sum()) * (cache.kv_heads // work.lists.shape[1])
        results = 4 * (row + shape.batch * shape.q_heads) * (older + older + 1)  # read of the older, written of all
        query = row * size * (1 + older) if self.ring.query is not None else 0  # the newest's kept, the older read
        more = Traffic(2 * older * row * size + stamps + query, older * parts["attend"].flops)
        parts["append"] += more_append
        parts["attend"] += more
        parts["merge"] = Traffic(results)
        parts["total"] += more_append + more + parts["merge"]
        return parts

    @property
    def _summary_bytes(self) -> int:
        """A block's summary, of every sequence and head: written once however many tokens of it are."""
        of_a_head = self.config.summary_bytes(self.cache.head_dim, self.cache.k.element_size())
        return self.cache.batch * self.cache.kv_heads * of_a_head


@dataclass
class RetroLayer(RepairingLayer, SparseLayer):
    """One layer on the kernels."""

    def write_window(self, window: WindowTensors) -> None:
        """In one launch with the summaries."""
        write_tokens(self.cache, window.k, window.v, self.summaries, keep_before=window.first)

    def repair_stages(self, window: WindowTensors) -> tuple[Stage, ...]:
        """Attend and merge, a launch each."""
        cache, work, ring, size = self.cache, self.work, self.ring, self.config.block_size
        rows = window.q.numel() // cache.head_dim
        partials = Partials(self.partials.out[:rows], self.partials.lse[:rows])

        def attend() -> None:
            window_decode(window.q, cache, work.lists, work.counts, ring, window.first, partials, block_size=size)

        return (
            Stage("attend", attend),
            Stage("merge", lambda: merge_window(window.q, cache, ring, window.first, partials, window.out)),
        )


@dataclass
class TorchRetroLayer(RepairingLayer, TorchSparseLayer):
    """One layer in plain torch."""

    def __post_init__(self) -> None:
        TorchSparseLayer.__post_init__(self)
        RepairingLayer.__post_init__(self)

    def write_window(self, window: WindowTensors) -> None:
        """Tokens, then their blocks' summaries."""
        write_tokens_torch(self.cache, window.k, window.v, window.first)
        if self.summaries is not None:
            refresh_torch(self.cache, self.summaries, window.tokens)

    def repair_stages(self, window: WindowTensors) -> tuple[Stage, ...]:
        """Attend and merge in one."""
        return (Stage("attend", lambda: self.repair(window), False),)

    def repair(self, window: WindowTensors) -> None:
        """Gather the listed blocks once, attend with all rows under a mask, merge with what the ring has."""
        work, ring, size = self.work, self.ring, self.config.block_size
        now, heads, device = int(ring.clock), self.shape.kv_heads, ring.clock.device
        lengths, firsts, counts = self.cache.lengths_on_host(), window.first.tolist(), work.counts[:, 0].tolist()
        for b, (length, first, count) in enumerate(zip(lengths, firsts, counts, strict=True)):
            lists = work.lists[b, :, :count].long().expand(heads, -1)
            tokens = tokens_of(lists, size)  # [Hkv, T]
            stamps = ring.loaded[b].gather(1, lists).repeat_interleave(size, 1)
            ring.loaded[b].scatter_(1, lists, now)
            keys, values = (x.float() for x in self.gather(b, lists))
            if missing := -length % size:  # what lies past the end may be NaN, which no mask undoes
                past = tokens[:, -missing:] >= length
                values[:, -missing:].masked_fill_(past[:, :, None], 0.0)

            n = min(window.tokens, length - first)  # rows that are not the prompt's
            window.out[b, : window.tokens - n] = 0.0
            ages = torch.arange(n - 1, -1, -1, device=device)
            slots = (length - 1 - ages) % ring.slots
            query = window.q[b, window.tokens - n :]
            if ring.query is not None:
                query = torch.cat((ring.query[b, slots[:-1]], query[-1:]))
                ring.query[b, slots[-1]] = query[-1]
            ages = ages[None, :, None]
            unseen = (stamps[:, None] < now - ages) | (ages == 0)
            visible = unseen & (tokens[:, None] <= length - 1 - ages)  # [Hkv, n, T]
            out, lse = _attend(self._by_head(query.float()), keys, values, visible)
            if n > 1:
                older = slots[:-1]
                had = self._by_head(ring.out[b, older]), self._by_head(ring.lse[b, older, :, :1])[..., 0]
                out[:, :-1], lse[:, :-1] = _merge(out[:, :-1], lse[:, :-1], *had)
            rows = out.transpose(0, 1).flatten(1, 2)  # [n, Hq, D]
            ring.out[b, slots], ring.lse[b, slots] = rows, lse.transpose(0, 1).flatten(1, 2)[:, :, None]
            window.out[b, window.tokens - n :] = rows
        ring.clock.add_(1)

    def _by_head(self, rows: Tensor) -> Tensor:
        """`[n, Hq, X]` as `[Hkv, n, G, X]`."""
        return rows.reshape(len(rows), self.shape.kv_heads, self.shape.group, -1).transpose(0, 1)


def _attend(query: Tensor, keys: Tensor, values: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """Output `[Hkv, n, G, D]` and base-2 log-sum-exp `[Hkv, n, G]` over visible tokens; zero and -inf where none is.

    query `[Hkv, n, G, D]`, keys and values `[Hkv, T, D]`, visible `[Hkv, n, T]`; all float32.
    """
    shape = query.shape
    logits = query.flatten(1, 2) @ keys.transpose(1, 2) * (shape[-1] ** -0.5 * math.log2(math.e))
    logits = logits.view(*shape[:3], -1).masked_fill(~visible[:, :, None], float("-inf"))
    top = logits.amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).min)
    weights = (logits - top).exp2()
    total = weights.sum(-1, keepdim=True)  # at least the top weight's 1, or 0 where nothing is visible
    out = (weights.flatten(1, 2) @ values).view(shape) / total.clamp(min=1.0)
    return out, (top + total.log2())[..., 0]


def _merge(out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Two results over disjoint keys as one; `[..., D]` and `[...]`."""
    both = torch.logaddexp2(lse, other_lse)
    share, other_share = ((x - both).exp2().nan_to_num(0.0)[..., None] for x in (lse, other_lse))
    return out * share + other * other_share, both


@register("retro")
class Retro(SparseMethod):
    """Repairs the outputs of the newest tokens, with recomputed queries. One list a KV head, or one for all."""

    layer_class = RetroLayer
    reads_fp8 = False
    torch_layer_class = TorchRetroLayer
    uses = (*SELECTS, "budget_tokens", "window")
    defaults: ClassVar[Mapping[str, Any]] = {"gqa_policy": "group-sum"}  # it takes no list per query head
    named = ("block_size", "window")
    joins = ("micro",)

    @property
    def step_tokens(self) -> int:
        """Tokens that a step runs."""
        return self.config.window

    def splits(self, cache: KVCache) -> int:
        """Parts of the key axis that attention runs apart."""
        chosen = self.config.selected(cache.capacity)
        return window_splits(self.shape, self.config.window, chosen, self.config.block_size, cache.device)

    def prepare(self, cache: KVCache) -> BlockSparseLayer:
        """One layer, bound to its cache. Raises Unsupported for a list a query head under GQA, or another selector."""
        if self.config.selector is not None:
            raise Unsupported(
                f"selector: {self.config.selector} would not see the tokens that a window writes again; blocks are "
                "ranked by their summaries here"
            )
        if self.config.gqa_policy == "per-head" and self.shape.group > 1:
            raise Unsupported(
                "gqa_policy: with a list per query head each head would load its own blocks for all rows; take "
                "group-sum, group-mean or all-heads"
            )
        return super().prepare(cache)


class CachedRetroLayer(RetroLayer):
    """`RetroLayer` with the queries that tokens were fed with."""

    keeps_queries = True


class CachedTorchRetroLayer(TorchRetroLayer):
    """`TorchRetroLayer` with the queries that tokens were fed with."""

    keeps_queries = True


@register("retro-cached")
class RetroCached(Retro):
    """As `retro`, but an older token attends to what is new to it with the query that it was fed with."""

    in_default = False
    layer_class = CachedRetroLayer
    torch_layer_class = CachedTorchRetroLayer
