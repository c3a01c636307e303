"""One model decoding under one method: state on the device, a step, a rectification, each as one CUDA graph.

L tokens have their K and V in the caches; one *pending* token is sampled but not yet in
them. A step feeds the pending token at position L, L grows by one, the logits give the next pending token. After f
steps rectification runs the last f tokens, whose ids the history holds, through the model densely: in each layer K and
V are overwritten and the summaries of their blocks refreshed, then the rows attend. The pending token stays.

A step of a method with a window of w tokens feeds the last w - 1 ids of the history again beside the pending one. Rows
that would be the prompt's go along, so that shapes stay fixed, and leave no trace (`WindowTensors.first`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from ...kernels import ChunkTensors, DecodeMethod, KVCache, Layer, Stage, StepTensors, WindowTensors
from ...kernels.method import layer_of
from ...profiling.ranges import mark
from ...profiling.replay import Replay
from ..model.decoder import Cells, Decoder
from .sampling import Sampling

T = TypeVar("T")
OBSERVED_QUERIES = 32  # of the prompt's newest tokens, which caches keep for methods that evict


@dataclass(frozen=True, slots=True)
class State:
    """What a sequence's decoding stands at, on the device at fixed addresses, shared by all methods of a case."""

    caches: tuple[KVCache, ...]  # one a layer; the same one throughout with a shared cache
    lengths: Tensor  # int32 [B], of every cache
    pending: Tensor  # int64 [B]
    history: Tensor  # int64 [H, B], ids fed so far
    count: Tensor  # int64 [1], entries of `history`

    @classmethod
    def allocate(
        cls,
        decoder: Decoder,
        batch: int,
        capacity: int,
        history: int,
        *,
        shared_kv: bool = False,
        page_size: int | None = None,
        kv_dtype: str | None = None,
    ) -> State:
        """Empty caches for `capacity` tokens a sequence, and room for `history` steps.

        Args:
            kv_dtype: of keys and values, as `KVCache.allocate` takes it.
        """
        config, device = decoder.config, decoder.device

        def cache() -> KVCache:
            empty = KVCache.allocate(
                batch, config.kv_heads, capacity, config.head_dim,
                dtype=decoder.dtype, device=device, page_size=page_size, kv_dtype=kv_dtype,
            )  # fmt: skip
            shape = (batch, OBSERVED_QUERIES, config.q_heads, config.head_dim)
            return replace(empty, queries=torch.zeros(shape, dtype=decoder.dtype, device=device))

        first = cache()
        caches = (first,) * config.layers
        if not shared_kv:
            others = [cache() for _ in range(config.layers - 1)]
            caches = (first, *(replace(c, lengths=first.lengths) for c in others))
        return cls.over(caches, history)

    @classmethod
    def over(cls, caches: tuple[KVCache, ...], history: int) -> State:
        """Nothing pending and nothing fed, over caches that share their lengths."""
        lengths = caches[0].lengths

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.int64, device=lengths.device)

        return cls(caches, lengths, zeros(len(lengths)), zeros(history, len(lengths)), zeros(1))

    def part(self, rows: slice) -> State:
        """Some of the sequences: views of the same caches, lengths and histories."""
        lengths = self.lengths[rows]

        def view(cache: KVCache) -> KVCache:
            queries = None if cache.queries is None else cache.queries[rows]
            if cache.block_table is not None:
                return replace(cache, lengths=lengths, block_table=cache.block_table[rows], queries=queries)
            return replace(cache, k=cache.k[rows], v=cache.v[rows], lengths=lengths, queries=queries)

        caches = tuple(view(cache) for cache in self.caches)
        return State(caches, lengths, self.pending[rows], self.history[:, rows], self.count)

    @property
    def batch(self) -> int:
        """Sequences."""
        return self.lengths.shape[0]

    @property
    def capacity(self) -> int:
        """Tokens that each cache has room for."""
        return self.caches[0].capacity

    def start(self, length: int | Tensor, pending: Tensor) -> None:
        """Stand at `length` tokens with `pending` `[B]` next, nothing in the history."""
        self.lengths.copy_(torch.as_tensor(length, dtype=torch.int32, device=self.lengths.device).expand(self.batch))
        self.pending.copy_(pending)
        self.count.zero_()


def bind_layers(state: State, method: DecodeMethod, dense: DecodeMethod | None, dense_layers: int) -> list[Layer]:
    """Bind each layer's cache to `method`, the first `dense_layers` to `dense`.

    A shared cache is bound once; as often as it takes where layers differ (`DecodeMethod.layer_period`).
    """
    bound: dict[tuple[int, int | None], Layer] = {}
    layers = []
    for i, cache in enumerate(state.caches):
        chosen, place = (dense, None) if i < dense_layers else (method, (i - dense_layers) % method.layer_period)
        key = (id(cache), place)
        if key not in bound:
            assert chosen is not None
            bound[key] = layer_of(chosen, cache)
        layers.append(bound[key])
    return layers


def distinct(layers: Iterable[Layer]) -> list[Layer]:
    """Each layer once: a shared cache's stands for many."""
    return list({id(layer): layer for layer in layers}.values())


def once_each(layers: Sequence[Layer], make: Callable[[Layer], T]) -> list[T]:
    """What `make` gives for each layer, asked once for a layer that stands for many."""
    made = {id(layer): make(layer) for layer in distinct(layers)}
    return [made[id(layer)] for layer in layers]


class Engine:
    """A decoder bound to a method on a state. `step` and `rectify` run eagerly; `capture` makes graphs of them."""

    def __init__(
        self,
        decoder: Decoder,
        state: State,
        layers: Sequence[Layer],
        *,
        rectify_every: int | None = None,
        sampling: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """
        Args:
            layers: one a layer of the decoder, bound to the state's caches (`bind_layers`).
            rectify_every: f; None for a method that never rectifies.
            sampling: from logits `[B, vocab]` to token ids int64 `[B]`; greedy by default.

        Raises:
            ValueError: layers with windows of different lengths (some of them dense, say).
        """
        self.decoder, self.state, self.layers = decoder, state, list(layers)
        self.sampling = Sampling() if sampling is None else sampling
        self.rectify_every = rectify_every
        self.observe: Callable[[int, Layer, StepTensors], None] | None = None
        """Called after each layer's attention of an eager step; for checks."""
        self.observe_chunk: Callable[[int, Layer, ChunkTensors], None] | None = None
        """The same in an eager rectification."""
        shape = decoder.config.attention(state.batch)
        options = {"dtype": decoder.dtype, "device": decoder.device}

        def cells(*rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            q = torch.empty(*rows, shape.q_heads, shape.head_dim, **options)  # type: ignore[call-overload]
            k = torch.empty(*rows, shape.kv_heads, shape.head_dim, **options)  # type: ignore[call-overload]
            return q, k, torch.empty_like(k), torch.empty_like(q)

        windows = {layer.window for layer in self.layers}
        if len(windows) > 1:
            raise ValueError(
                f"layers: have windows of {sorted(windows)} tokens, must have one; a method that repairs earlier "
                "outputs takes no dense layers"
            )
        self.window = windows.pop()
        self.window_cells: WindowTensors | None = None
        """Of all rows of a step, for a method with a window; `cells` are views of the newest."""
        if self.window > 1:
            first = torch.zeros_like(state.lengths)
            self.window_cells = WindowTensors(*cells(state.batch, self.window), first)
            self._behind = torch.arange(-self.window, 0, device=decoder.device)
            self.cells = self.window_cells.newest
        else:
            self.cells = StepTensors(*cells(state.batch))
        rows = self.window_cells
        self._stages = once_each(
            self.layers, lambda layer: layer.stages(self.cells) if rows is None else layer.window_stages(rows)
        )
        self._chunk: ChunkTensors | None = None
        self._chunk_stages: list[tuple[Stage, ...]] = []
        if rectify_every is not None:
            chunk = self._chunk = ChunkTensors(*cells(state.batch, rectify_every))
            self._chunk_stages = once_each(self.layers, lambda layer: layer.rectify_stages(chunk))
            self._offsets = torch.arange(-rectify_every, 0, device=decoder.device)
        stages_of_all = [stage for part in (*self._stages, *self._chunk_stages) for stage in part]
        self.graph_safe = all(stage.graph_safe for stage in stages_of_all)

    def _attend(self, i: int, cells: Cells) -> Tensor:
        for stage in self._stages[i]:
            with mark(stage.name, stage.blocks):
                stage.run()
        if self.observe is not None:
            self.observe(i, self.layers[i], self.cells)
        return self.layers[i].output(self.cells) if self.window_cells is None else self.window_cells.out

    def step(self) -> None:
        """Feed the pending token of every sequence; the next one is pending afterwards."""
        state = self.state
        with mark("other"):
            state.history.index_copy_(0, state.count, state.pending[None])
            state.count.add_(1)
            positions = state.lengths.clone()
            state.lengths.add_(1)
        if self.window_cells is None:
            x = self.decoder.hidden(state.pending, positions, self.cells, self._attend)
        else:
            x = self._hidden_of_window(self.window_cells)
        self.logits = self.decoder.logits(x)  # [B, vocab]
        with mark("sample"):
            state.pending.copy_(self.sampling(self.logits))

    def _hidden_of_window(self, cells: WindowTensors) -> Tensor:
        """The newest tokens through the model; hidden states `[B, hidden]` of the fed one."""
        state = self.state
        with mark("other"):
            cells.first.copy_(state.lengths - state.count)
            fed = (state.count + self._behind).clamp(min=0)
            tokens = state.history.index_select(0, fed).t().reshape(-1)  # [B w]
            positions = (state.lengths[:, None] + self._behind).clamp(min=0).reshape(-1)
        x = self.decoder.hidden(tokens, positions, cells, self._attend)
        return x.view(state.batch, self.window, -1)[:, -1].contiguous()

    def _attend_chunk(self, i: int, cells: Cells) -> Tensor:
        assert self._chunk is not None
        for stage in self._chunk_stages[i]:
            with mark(stage.name, stage.blocks):
                stage.run()
        if self.observe_chunk is not None:
            self.observe_chunk(i, self.layers[i], self._chunk)
        return self.layers[i].rectified(self._chunk)

    def _overwrite(self, i: int, cells: Cells) -> None:
        assert self._chunk is not None
        with mark("rectify"):
            self.layers[i].overwrite(self._chunk)

    def rectify(self) -> None:
        """Make K, V and summaries of the last f tokens what dense decoding of them would have left.

        Its logits are not needed, so the last layer ends with its keys and values.
        """
        state = self.state
        assert self._chunk is not None, "the method does not rectify"
        with mark("other"):
            tokens = state.history.index_select(0, state.count + self._offsets).t().reshape(-1)  # [B f]
        self.decoder.keys_and_values(tokens, self._positions(), self._chunk, self._attend_chunk, self._overwrite)

    def verify(self, tokens: Tensor) -> Tensor:
        """As `rectify`, of given ids, to the end of the model: logits after each of the last f tokens.

        Args:
            tokens: int64 `[B, f]`, the ids at positions lengths - f .. lengths - 1.

        Returns:
            `[B, f, vocab]` of the model's dtype.
        """
        assert self._chunk is not None, "the method does not rectify"
        x = self.decoder.hidden(tokens.reshape(-1), self._positions(), self._chunk, self._attend_chunk)
        return self.decoder.logits(x).view(*tokens.shape, -1)

    def _positions(self) -> Tensor:
        """Of the last f tokens, `[B f]`."""
        with mark("other"):
            return (self.state.lengths[:, None] + self._offsets).reshape(-1)

    def capture(self, run: Callable[[], None]) -> Replay:
        """`run` as a CUDA graph, after a warm-up. The warm-up changes the state: `State.start` afterwards."""
        side = torch.cuda.Stream(self.decoder.device)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # NCCL's own thread asks for events while this one captures: no error of ours
        mode = "global" if self.decoder.exchange is None else "thread_local"
        with torch.cuda.graph(graph, capture_error_mode=mode):
            run()
        return Replay(graph, (self, run))


def generate(step: Callable[[], object], rectify: Callable[[], object] | None, rectify_every: int, tokens: int) -> None:
    """`tokens` steps with a rectification after every f of them. The state's history holds what was fed."""
    for n in range(1, tokens + 1):
        step()
        if rectify is not None and n % rectify_every == 0:
            rectify()
