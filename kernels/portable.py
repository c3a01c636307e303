"""The portable path: block-sparse steps and a dense rival in plain torch, for machines that run no Triton kernels.

Same methods, other means: scores are one batched matrix-vector product of summaries with query slots, attention is a
gather of the selected blocks and SDPA over the packed GQA group, so that K and V are read once there too. Contiguous
caches only. Also an oracle for the kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from .attention.chunk import ChunkKernel, best_chunk_kernel
from .attention.summaries import Summaries, rounded
from .binding import check_cache, check_step
from .cache import KVCache
from .checks import check_tensor
from .config import SELECTS, AttentionShape, SparseConfig
from .method import DecodeMethod, DenseLayer, Stage, StepTensors, Unsupported, register
from .selectors import Blocks, Compare, Selector, selector_of
from .workspace import BlockSparseLayer, Workspace

PAGED = "cache: the portable path takes contiguous caches only, got a paged one"


def write_tokens_torch(cache: KVCache, k_new: Tensor, v_new: Tensor, keep_before: Tensor | None = None) -> None:
    """Write the last T tokens of each sequence; k_new, v_new `[B, T, Hkv, D]` or `[B, Hkv, D]`. Contiguous caches.

    Tokens at positions before `keep_before`, int `[B]`, stay as they are.

    Raises:
        TypeError, ValueError: new K or V of the wrong dtype, shape or device; a sequence longer than the capacity.
    """
    if isinstance(k_new, Tensor) and isinstance(v_new, Tensor) and k_new.dim() == v_new.dim() == 3:
        k_new, v_new = k_new.unsqueeze(1), v_new.unsqueeze(1)
    shape = (cache.batch, None, cache.kv_heads, cache.head_dim)
    check_tensor("k_new", k_new, shape, dtypes=(cache.dtype,), device=cache.device, last_contiguous=False)
    check_tensor("v_new", v_new, k_new.shape, dtypes=(cache.dtype,), device=cache.device, last_contiguous=False)
    kept = [0] * cache.batch if keep_before is None else keep_before.clamp(min=0).tolist()
    for b, length in enumerate(cache.lengths_on_host()):
        count = max(min(k_new.shape[1], length - kept[b]), 0)
        cache.k[b, :, length - count : length] = k_new[b, k_new.shape[1] - count :].transpose(0, 1)
        cache.v[b, :, length - count : length] = v_new[b, v_new.shape[1] - count :].transpose(0, 1)


def _summarise(blocks: Tensor, out: Tensor, kind: str) -> None:
    """`[Hkv, n, tokens, D]` keys to `[Hkv, n, 2, D]`."""
    if kind == "minmax" and out.dtype == blocks.dtype:
        torch.amin(blocks, 2, out=out[:, :, 0])
        torch.amax(blocks, 2, out=out[:, :, 1])
        return
    if kind == "minmax":
        first, second = blocks.amin(2), blocks.amax(2)
    else:
        variance, first = torch.var_mean(blocks.float(), 2, correction=0)
        second = variance.sqrt()
    out[:, :, 0], out[:, :, 1] = rounded(first, out.dtype), rounded(second, out.dtype)


def refresh_torch(cache: KVCache, summaries: Summaries, tokens: int | None = None) -> None:
    """Summarise again the blocks of the last `tokens` tokens (all of them by default). Contiguous caches.

    Raises:
        ValueError: a sequence longer than the capacity.
    """
    size = summaries.block_size
    for b, length in enumerate(cache.lengths_on_host()):
        keys, data = cache.k[b], summaries.data[b]
        first = 0 if tokens is None else max(length - tokens, 0) // size
        whole = length // size
        if whole > first:
            blocks = torch.unflatten(keys[:, first * size : whole * size], 1, (whole - first, size))
            _summarise(blocks, data[:, first:whole], summaries.kind)
        if length % size:
            _summarise(keys[:, None, whole * size : length], data[:, whole : whole + 1], summaries.kind)


def select_torch(scores: Tensor, n: int) -> Tensor:
    """The n best of each row: `[R, M]` to ascending `[R, n]`; ties to the lower index. No full sort."""
    if n >= scores.shape[1]:
        return torch.arange(scores.shape[1], device=scores.device).expand(scores.shape[0], -1)
    threshold = scores.topk(n, dim=1).values[:, -1:]
    above, equal = scores > threshold, scores == threshold
    keep = above | (equal & (equal.cumsum(1) <= n - above.sum(1, keepdim=True)))
    return keep.nonzero()[:, 1].view(scores.shape[0], n)


@dataclass
class StepBlocks(Blocks):
    """What a selector sees of one step of a layer: R = 1. It asks nothing of the device."""

    bound: BlockSparseLayer | None = None

    @classmethod
    def of(cls, layer: BlockSparseLayer, step: StepTensors, lengths: Tensor, tokens: int) -> StepBlocks:
        """Of the first `tokens` tokens of the cache; `lengths` int64 `[B]`."""
        shape = layer.shape
        queries = step.q.float().reshape(-1, 1, shape.group, shape.head_dim)
        lengths = lengths.repeat_interleave(shape.kv_heads)[:, None]
        known = None if layer.known is None else layer.known.flatten(0, 1)
        return cls(
            layer.config, queries, lengths, tokens, shape.batch,
            layer=layer.index, handed=layer.handed, known=known, bound=layer,
        )  # fmt: skip

    def compared(self, query: Tensor, compare: Compare) -> Tensor:
        """With the table of summaries, or the layer's own."""
        assert self.bound is not None
        kept = self.bound.summaries.data if self.bound.summaries is not None else self.bound.table
        assert kept is not None
        table = kept[:, :, : self.config.blocks(self.tokens)]  # [B, Hkv, M, ...]
        return compare(query, table.flatten(0, 1).flatten(2).float()[:, None])

    def masses(self) -> Tensor:
        """From every key of the cache, by its own element type's product."""
        assert self.bound is not None
        cache, size = self.bound.cache, self.config.block_size
        keys = cache.k[:, :, : self.tokens].flatten(0, 1)  # [H, S, D]
        logits = (self.queries[:, 0].to(keys.dtype) @ keys.transpose(1, 2)).float() * cache.head_dim**-0.5
        position = torch.arange(self.tokens, device=keys.device)
        logits.masked_fill_(position >= self.lengths[:, :, None], float("-inf"))
        mass = pad(logits.softmax(-1), (0, -self.tokens % size))
        return torch.unflatten(mass, -1, (-1, size)).sum(-1)[:, None]  # [H, 1, G, M]


def calibrated(selector: Selector, cache: KVCache) -> Tensor | None:
    """What a selector learns of each sequence from the tokens it has now, `[B, Hkv, ..]`. Contiguous caches."""
    starts = enumerate(cache.lengths_on_host())
    known = [selector.calibrate(cache.k[b, :, :length].float()) for b, length in starts]
    return None if known[0] is None else torch.stack([x for x in known if x is not None])


def fill_scores(layer: BlockSparseLayer, step: StepTensors, lengths: Tensor, tokens: int) -> None:
    """Fill the layer's `work.scores` as its selector ranks blocks, +inf at those that are always selected.

    Args:
        lengths: int64 `[B]`, on the device of the layer's cache. tokens: no sequence has more.
    """
    config, table = layer.config, layer.work.scores
    blocks = StepBlocks.of(layer, step, lengths, tokens)
    scores = layer.selector.scores(blocks)  # [H or B, 1, X, M]
    scores = scores.view(layer.shape.batch, -1, scores.shape[-1])  # [B, rows, M]
    index = torch.arange(scores.shape[-1], device=scores.device)
    held = -(-lengths[:, None, None] // config.block_size)
    filled = table[:, :, : scores.shape[-1]].copy_(scores)
    filled.masked_fill_(config.always_selected(index, held), float("inf"))


@dataclass
class TorchSparseLayer(BlockSparseLayer):
    """One layer of a block-sparse method, in plain torch. It asks the lengths of the device in every stage."""

    graph_safe: ClassVar[bool] = False

    gathered: tuple[Tensor, Tensor]
    """`[R * N, b D]`: selected blocks of K and V, reused by all layers: fresh pages cost more than copies."""

    def __post_init__(self) -> None:
        cache, size, rows = self.cache, self.config.block_size, self.work.lists.shape[1]
        lists = max(rows, self.shape.kv_heads)  # one list for all heads is attended to per KV head
        self._owner = torch.arange(lists, device=cache.device)[:, None] // (lists // self.shape.kv_heads)
        if self.selector.tabled:
            self.known = calibrated(self.selector, cache)
            known = None if self.known is None else self.known[0]
            some = torch.zeros(self.shape.kv_heads, 1, size, cache.head_dim, device=cache.device)
            width = self.selector.describe(some, None, self.config, known).shape[-1]
            sizes = cache.batch, cache.kv_heads, self.config.blocks(cache.capacity)
            self.table = torch.zeros(*sizes, width, device=cache.device)
            self.describe()
        self._blocks: tuple[Tensor, Tensor] | None = None  # [B, Hkv * blocks, b D]
        if cache.capacity % size == 0 and cache.k.is_contiguous():
            shape = (cache.batch, -1, size * cache.head_dim)
            self._blocks = cache.k.view(shape), cache.v.view(shape)

    def write(self, k: Tensor, v: Tensor) -> None:
        """Write the last T tokens, `[B, T, Hkv, D]` or `[B, Hkv, D]`, and refresh their blocks' summaries."""
        write_tokens_torch(self.cache, k, v)
        self.refresh(k.shape[1] if k.dim() == 4 else 1)

    def refresh(self, tokens: int) -> None:
        """Summarise again the blocks of the last `tokens` tokens."""
        if self.summaries is not None:
            refresh_torch(self.cache, self.summaries, tokens)
        if self.table is not None:
            self.describe(tokens)

    def describe(self, tokens: int | None = None) -> None:
        """Bring what the selector keeps of the blocks of the last `tokens` tokens up to date; of all by default."""
        cache, size = self.cache, self.config.block_size
        assert self.table is not None
        for b, length in enumerate(cache.lengths_on_host()):
            first = 0 if tokens is None else max(length - tokens, 0) // size
            end = self.config.blocks(length)
            keys = pad(cache.k[b, :, first * size : length].float(), (0, 0, 0, -length % size))
            if end > first:
                known = None if self.known is None else self.known[b]
                parts = torch.unflatten(keys, 1, (end - first, size))
                self.table[b, :, first:end] = self.selector.describe(parts, None, self.config, known)

    def choose_stages(self, step: StepTensors) -> tuple[Stage, ...]:
        """Scores and the selection, or the selection alone."""
        if not self.selector.ranked:
            return (Stage("select", lambda: self.choose(step), False),)
        return Stage("score", lambda: self.score(step), False), Stage("select", self.select, False)

    def attend_stages(self, step: StepTensors) -> tuple[Stage, ...]:
        """Attention over the lists, into `step.out`."""
        return (Stage("attend", lambda: self.attend(step), False),)

    def score(self, step: StepTensors) -> None:
        """Fill `work.scores`, +inf at blocks that are always selected."""
        lengths = self.cache.lengths_on_host()
        fill_scores(self, step, torch.tensor(lengths, device=self.cache.device), max(max(lengths), 1))

    def choose(self, step: StepTensors) -> None:
        """Fill the lists as the selector says."""
        lengths = self.cache.lengths_on_host()
        blocks = StepBlocks.of(self, step, torch.tensor(lengths, device=self.cache.device), max(max(lengths), 1))
        mask = self.selector.choose(blocks)
        for b, rows in enumerate(mask.expand(-1, -1, -1, mask.shape[-1]).view(len(lengths), -1, mask.shape[-1])):
            self.fill_mask(b, rows)

    def select(self) -> None:
        """Fill the lists with the best of `work.scores`."""
        work, config = self.work, self.config
        for b, length in enumerate(self.cache.lengths_on_host()):
            self.fill(b, select_torch(work.scores[b, :, : config.blocks(length)], config.selected(length)))

    def fill(self, sequence: int, chosen: Tensor) -> None:
        """Put `[R, n]` block indices on the lists of a sequence."""
        n = chosen.shape[1]
        self.work.lists[sequence, :, :n] = chosen
        self.work.lists[sequence, :, n:] = -1
        self.work.counts[sequence] = n

    def fill_mask(self, sequence: int, mask: Tensor) -> None:
        """Put the blocks of a mask `[R, M]` on the lists of a sequence; rows may differ in how many."""
        counts, lists = mask.sum(1), self.work.lists[sequence]
        order = (~mask).to(torch.int8).argsort(dim=1, stable=True)[:, : lists.shape[1]].to(lists.dtype)
        lists.fill_(-1)
        taken = torch.arange(order.shape[1], device=mask.device) < counts[:, None]
        lists[:, : order.shape[1]] = order.masked_fill(~taken, -1)
        self.work.counts[sequence] = counts.to(self.work.counts.dtype)

    def attend(self, step: StepTensors) -> None:
        """Gather the listed blocks, then SDPA per list."""
        shape, cache, size, work = self.shape, self.cache, self.config.block_size, self.work
        count = len(self._owner)
        lengths, counts = cache.lengths_on_host(), work.counts.amax(1).tolist()
        for b, (length, n) in enumerate(zip(lengths, counts, strict=True)):
            lists = work.lists[b, :, :n].long().expand(count, -1)
            if not self.selector.ranked and bool((lists < 0).any()):
                step.out[b] = self.attend_unequal(step.q[b], b, lists, length)
                continue
            query = step.q[b].reshape(count, shape.q_heads // count, shape.head_dim)
            keys, values = self.gather(b, lists)
            mask = None
            if missing := -length % size:
                if bool((lists[:, -1] == length // size).all()):  # the partly filled block is last on every list
                    keys, values = keys[:, :-missing], values[:, :-missing]
                else:
                    mask = (tokens_of(lists, size) < length)[:, None, :]
                    # What lies past the end may be NaN, which no mask undoes.
                    keys, values = (x.masked_fill(~mask.transpose(1, 2), 0.0) for x in (keys, values))
            out = scaled_dot_product_attention(query[None], keys[None], values[None], attn_mask=mask)
            step.out[b] = out.reshape(shape.q_heads, shape.head_dim)

    def attend_unequal(self, q: Tensor, sequence: int, lists: Tensor, length: int) -> Tensor:
        """Attention over lists of unequal lengths, `[lists, n]` with -1 after their ends: `[Hq, D]`."""
        size, count = self.config.block_size, len(lists)
        keys, values = self.gather(sequence, lists.clamp(min=0))
        tokens = tokens_of(lists, size)
        mask = (tokens >= 0) & (tokens < length) & (lists >= 0).repeat_interleave(size, 1)
        keys, values = (x.masked_fill(~mask[..., None], 0.0) for x in (keys, values))
        query = q.reshape(count, -1, q.shape[-1])
        out = scaled_dot_product_attention(query[None], keys[None], values[None], attn_mask=mask[None, :, None])
        return out.reshape(q.shape)

    def gather(self, sequence: int, lists: Tensor) -> tuple[Tensor, Tensor]:
        """K and V of the listed blocks, `[lists, n * b, D]` each, in buffers that the next call fills again.

        Args:
            lists: int64 `[lists, n]`, one a KV head or one a query head.
        """
        cache, size, count = self.cache, self.config.block_size, len(lists)
        if self._blocks is None:
            tokens = tokens_of(lists, size).clamp(max=cache.capacity - 1)
            keys, values = (x[sequence][self._owner, tokens] for x in (cache.k, cache.v))
            return keys, values
        index = (self._owner * (cache.capacity // size) + lists).flatten()  # gather blocks: long, fast copies
        keys, values = (
            torch.index_select(x[sequence], 0, index, out=buffer[: len(index)]).view(count, -1, cache.head_dim)
            for x, buffer in zip(self._blocks, self.gathered, strict=True)
        )
        return keys, values


def tokens_of(lists: Tensor, size: int) -> Tensor:
    """`[R, n]` blocks to `[R, n * size]` positions of their tokens."""
    return (lists[:, :, None] * size + torch.arange(size, device=lists.device)).flatten(1)


class TorchSparseMethod(DecodeMethod):
    """Base of block-sparse methods in plain torch; `pipeline.SparseMethod` adds the kernels.

    What layers share, since they run one after another, lives here: work space, gathered blocks, the chunk kernel.
    """

    rectifies: ClassVar[bool] = False
    torch_layer_class: ClassVar[type[TorchSparseLayer]] = TorchSparseLayer

    def __init__(
        self, shape: AttentionShape, config: SparseConfig, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        if not isinstance(config, SparseConfig):
            raise TypeError(f"config: got {type(config).__name__}, expected a SparseConfig")
        super().__init__(shape, config, dtype=dtype, device=device)
        self.selector = selector_of(self.ranks_by, config)
        self._layers, self._handed = 0, dict[str, Tensor]()  # bound so far; what they hand on in a step
        self._work: dict[int, Workspace] = {}  # by blocks of the cache; kept, since captured graphs hold addresses
        self._gathered: dict[int, tuple[Tensor, Tensor]] = {}  # by blocks gathered
        self._kernels: dict[str, ChunkKernel] = {}

    def rows(self) -> int:
        """Lists a sequence."""
        return self.selector.rows(self.shape, self.config)

    def workspace(self, cache: KVCache) -> Workspace:
        """Scores and lists for caches of this capacity, shared by all layers."""
        blocks = self.config.blocks(cache.capacity)
        if blocks not in self._work:
            self._work[blocks] = Workspace.allocate(self.config, self.rows(), cache)
        return self._work[blocks]

    def summaries(self, cache: KVCache) -> Summaries | None:
        """Room for a layer's summaries, or None where nothing is scored by them."""
        config = self.config
        if not self.selector.summarised:
            return None
        return Summaries.allocate(cache, config.block_size, config.summary_kind, config.summary_dtype)

    def kernel(self, cache: KVCache, name: str | None) -> ChunkKernel | None:
        """The chunk kernel that all layers share, or None where nothing is rectified."""
        if not self.rectifies:
            return None
        kernel = best_chunk_kernel(self.shape, cache, name)
        return self._kernels.setdefault(kernel.name, kernel)

    def number(self, layer: BlockSparseLayer) -> None:
        """Count a layer, and let it take from those before it what they hand on."""
        layer.index, layer.handed = self._layers, self._handed
        self._layers += 1

    def prepare(self, cache: KVCache) -> BlockSparseLayer:
        """Bind to a layer's cache: summaries built, work space allocated. Waits for the device.

        Raises:
            Unsupported: a paged cache.
            TypeError, ValueError: not a cache of this method's shape, dtype and device, or one whose lengths are out of
                range (`check_cache`).
        """
        check_cache(cache, self.shape, self.dtype, self.device)
        if cache.paged:
            raise Unsupported(PAGED)
        summaries = self.summaries(cache)
        if summaries is not None:
            refresh_torch(cache, summaries)
        count = max(self.rows(), cache.kv_heads) * self.config.selected(cache.capacity)
        if count not in self._gathered:
            size = self.config.block_size * cache.head_dim
            keys = torch.empty(count, size, dtype=cache.dtype, device=cache.device)
            self._gathered[count] = keys, torch.empty_like(keys)
        layer = self.torch_layer_class(
            cache,
            self.shape,
            self.config,
            self.selector,
            self.workspace(cache),
            summaries,
            self.kernel(cache, self.config.chunk_kernel or "torch"),
            self._gathered[count],
        )
        self.number(layer)
        return layer


@register("resa-torch")
class ResaTorch(TorchSparseMethod):
    """ReSA in plain torch (gather + SDPA): the method that is timed where there is no GPU."""

    rectifies = True
    device_type = "cpu"
    uses = (*SELECTS, "rectify_every")
    steps_like = "resa"
    ranks_by = "summary"


@register("torch-dense")
class TorchDense(DecodeMethod):
    """SDPA with the GQA group packed as query rows, so that K and V are read once: the dense rival on a CPU."""

    is_dense = True
    device_type = "cpu"

    @classmethod
    def unavailable(cls, shape: AttentionShape, dtype: torch.dtype, device: torch.device) -> str | None:
        """Why the method does not run here: on a GPU others are faster. None if it does."""
        return "is the CPU's dense rival; GPUs have better ones" if device.type == "cuda" else None

    def prepare(self, cache: KVCache) -> DenseLayer:
        """Bind to a layer's cache. Waits for the device.

        Raises:
            Unsupported: a paged cache.
            TypeError, ValueError: as `check_cache` says.
        """
        check_cache(cache, self.shape, self.dtype, self.device)
        if cache.paged:
            raise Unsupported(PAGED)
        batch, group = cache.batch, self.shape.group

        def attend(step: StepTensors) -> Callable[[], None]:
            check_step(step, cache, self.shape.q_heads)
            query = step.q.reshape(batch, cache.kv_heads, group, cache.head_dim)
            out = step.out.view_as(query)

            def run() -> None:
                for b, length in enumerate(cache.lengths_on_host()):
                    k, v = cache.k[b, None, :, :length], cache.v[b, None, :, :length]
                    out[b] = scaled_dot_product_attention(query[b, None], k, v)[0]

            return run

        return DenseLayer(cache, self.shape.q_heads, attend, append=write_tokens_torch)
