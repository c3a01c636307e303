"""The step and the rectification as CUDA graphs: transformers' forward, launched once and replayed.

Everything that a replay reads lies at fixed addresses: ids and positions in buffers of the graph's own, keys, values
and lengths in the cache. A cache that grows drops its graph, and the next step captures another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast

from ...kernels import StepTensors, Unsupported
from ...profiling.replay import Replay
from .attention import running

if TYPE_CHECKING:
    from .adapter import Adapter
    from .cache import SparseCache
    from .layer import SparseLayer

KNOWN = frozenset(
    {
        "input_ids", "position_ids", "attention_mask", "use_cache", "logits_to_keep", "return_dict",
        "output_attentions", "output_hidden_states",
    }
)  # fmt: skip
"""Arguments of a forward that a captured step takes, or leaves as they were when it was captured."""


def why_no_graph(adapter: Adapter, cache: SparseCache, options: dict[str, Any]) -> str | None:
    """Why a step cannot be a CUDA graph, in words; None if it can."""
    if adapter.model.device.type != "cuda":
        return f"CUDA graphs need a GPU, the model is on the {adapter.model.device.type}"
    if cache.other_layers:
        kinds = sorted({type(layer).__name__ for layer in cache.other_layers})
        return f"layers that stay as they are ({', '.join(kinds)}) move about in memory"
    if options.get("output_hidden_states") or options.get("output_attentions"):
        return "hidden states were asked for"
    if further := sorted(name for name, value in options.items() if value is not None and name not in KNOWN):
        return f"the model is given {', '.join(further)} at each step"
    return None


class StepGraph:
    """A captured step of one cache, and its rectification once one was due."""

    def __init__(self, adapter: Adapter, cache: SparseCache, fed: Tensor, positions: Tensor) -> None:
        """Capture a step fed with ids `[B, 1]` at positions; the cache stands as it stood afterwards.

        Raises:
            Unsupported: the method's stages synchronise or allocate.
            RuntimeError: something that the model does cannot be captured.
        """
        self._adapter, self._cache = adapter, cache
        self._ids, self._positions = fed.clone(), positions.clone()
        cache.bind()
        if not all(is_graph_safe(layer) for layer in cache.sparse_layers):
            raise Unsupported(f"graph: {adapter.spec.label} synchronises in its step; take graph=False")
        self._logits = torch.empty(0)
        before = cache.lengths.clone()

        def restore() -> None:
            cache.lengths.copy_(before)

        self._replay = capture(self._step, restore, fed.device)
        self._rectify: Callable[[], None] | None = None
        self._chunk: tuple[Tensor, Tensor] | None = None

    def _forward(self, model: Callable[..., Any], ids: Tensor, positions: Tensor, *, dense: bool) -> Any:
        adapter, cache = self._adapter, self._cache
        cache.in_forward, cache.in_prompt, cache.dense = True, False, dense
        options: dict[str, Any] = {"use_cache": True, "return_dict": True, adapter.cache_name: cache}
        try:
            with running(cache, adapter.config), adapter.products.in_use(), torch.no_grad():
                return model(input_ids=ids, position_ids=positions, **options)
        finally:
            cache.in_forward = False

    def _step(self) -> None:
        self._cache.lengths.add_(1)
        self._logits = self._forward(self._adapter.fused_forward, self._ids, self._positions, dense=False).logits

    def step(self, fed: Tensor, positions: Tensor) -> Tensor:
        """Feed ids `[B, 1]`; logits `[B, 1, vocab]` in memory of their own."""
        self._ids.copy_(fed)
        self._positions.copy_(positions)
        self._replay()
        return self._logits.clone()

    def output(self, logits: Tensor) -> CausalLMOutputWithPast:
        """What the model's forward would have returned."""
        parts: dict[str, Any] = {"logits": logits, self._adapter.cache_name: self._cache}
        return CausalLMOutputWithPast(**parts)

    def rectify(self, count: int) -> bool:
        """Rectify the outstanding steps, where they are a whole period; False where they are not."""
        if count != self._adapter.rectify_every:
            return False
        ids, positions = (torch.cat(fed, dim=-1) for fed in (self._cache.fed.ids, self._cache.fed.positions))
        if self._chunk is None:
            self._chunk = ids, positions
        for own, new in zip(self._chunk, (ids, positions), strict=True):
            own.copy_(new)
        if self._rectify is None:
            self._rectify = capture(self._pass, lambda: None, ids.device)  # run again, it changes nothing
        self._rectify()
        self._cache.fed.drop(count)
        return True

    def _pass(self) -> None:
        assert self._chunk is not None
        self._forward(self._adapter.fused_base, *self._chunk, dense=True)


def capture(run: Callable[[], None], restore: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """`run` as a CUDA graph after two runs of warm-up, each followed by `restore`."""
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(2):
            run()
            restore()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return Replay(graph, (run,))


def is_graph_safe(layer: SparseLayer) -> bool:
    """Whether a layer's step can be captured."""
    shape, store, bound = layer.shape, layer.store, layer.bound
    assert shape is not None
    assert store is not None
    assert bound is not None
    options: dict[str, Any] = {"dtype": store.dtype, "device": store.device}
    q = torch.empty(shape.batch, shape.q_heads, shape.head_dim, **options)
    k = torch.empty(shape.batch, shape.kv_heads, shape.head_dim, **options)
    return all(stage.graph_safe for stage in bound.stages(StepTensors(q, k, torch.empty_like(k), torch.empty_like(q))))
