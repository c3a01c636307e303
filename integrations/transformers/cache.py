"""The cache of one generation: this project's `KVCache` in full-attention layers, transformers' own layers elsewhere.

A sequence's tokens begin at slot 0 of its row, so left padding takes no room and the kernels see ragged lengths.
`length` counts as transformers does, padding included. Steps leave approximate keys and values behind; `outstanding`
counts those since the last dense pass, and `rectify` makes them exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ...kernels import AttentionShape, ChunkTensors, DecodeMethod, KVCache, Layer, StepTensors, Unsupported
from ...kernels.attention.chunk import ChunkKernel, best_chunk_kernel
from ...kernels.attention.summaries import write_tokens
from ...kernels.config import ceil_div
from ...kernels.portable import TorchSparseLayer, TorchSparseMethod, write_tokens_torch
from ..method import make_method
from .layer import SparseLayer

ROOM = 128  # tokens: capacities are multiples of it, and so of every block size
PIECE = 1024  # tokens of a dense pass that attend at a time
REWINDABLE = ("qwen3_next", "lfm2")
"""Families with linear layers that were tested to go on from a restored state with several tokens."""
STATES = ("conv_states", "recurrent_states", "has_previous_state")
"""What a linear layer keeps, a dictionary each."""


@dataclass(slots=True)
class Fed:
    """What the steps since the last dense pass were fed: ids `[B, 1]` and positions `[..., 1]`, oldest first."""

    ids: list[Tensor]
    positions: list[Tensor]

    def drop(self, count: int) -> None:
        """Forget the newest `count` steps."""
        if count:
            del self.ids[-count:], self.positions[-count:]


class SparseCache(Cache):
    """Keys and values of a batch, once, and the method that reads them."""

    def __init__(self, adapter: Any, capacity: int) -> None:
        """
        Args:
            adapter: of the model that it serves (`attach`).
            capacity: tokens a sequence, padding included; it grows where that is too few.

        Raises:
            Unsupported: a layer of a kind that is neither full attention nor kept as it is.
        """
        self.adapter = adapter
        self.capacity = ceil_div(max(capacity, 1), ROOM) * ROOM
        self.length = 0
        self.pads: list[int] = []
        self.prompt = 0  # tokens up to which a forward is dense: what `generate` was given
        self.in_forward = self.in_prompt = False
        self.dense = False  # whether a forward of one token a sequence is dense, too
        self.fed = Fed([], [])
        self.graph: Any = None
        self.observe: Callable[[int, Layer, StepTensors], None] | None = None  # called after each layer's sparse step
        self._lengths: Tensor | None = None
        self._attended: set[int] = set()
        self._methods: dict[tuple[AttentionShape, bool], DecodeMethod] = {}
        self._kernel: ChunkKernel | None = None
        self._states: dict[int, dict[str, Any]] = {}  # of linear layers, where the outstanding steps began
        super().__init__(layers=[self._layer(i, given) for i, given in enumerate(_layers_of(adapter.config))])

    def _layer(self, index: int, given: Any) -> Any:
        """A sparse layer in place of a full one; windows and linear layers as they are."""
        if type(given) is DynamicLayer:
            return SparseLayer(self, index)
        if type(given) is DynamicSlidingWindowLayer:
            return given
        name = type(given).__name__
        if name == "DummyLayer":  # a layer without attention
            return given
        if name == "LinearAttentionLayer":
            family = self.adapter.config.model_type
            if self.adapter.spec.rectifies and family not in REWINDABLE:
                raise Unsupported(
                    f"layer {index}: linear attention of {family}; that it goes on from a state which rectification "
                    f"restores is known of {', '.join(REWINDABLE)}; take a method that does not rectify (sparse, quest)"
                )
            return given
        raise Unsupported(f"layer {index}: its cache is a {name}; served are full, sliding-window and linear attention")

    @property
    def sparse_layers(self) -> list[SparseLayer]:
        """The layers whose steps are the method's."""
        return [layer for layer in self.layers if isinstance(layer, SparseLayer)]

    @property
    def other_layers(self) -> list[Any]:
        """The layers that stay as they are."""
        return [layer for layer in self.layers if not isinstance(layer, SparseLayer)]

    @property
    def lengths(self) -> Tensor:
        """int32 `[B]` on the device: tokens of each sequence, without padding. Raises ValueError before a prompt."""
        if self._lengths is None:
            raise ValueError("cache: holds no tokens yet")
        return self._lengths

    @property
    def batch(self) -> int:
        """Sequences."""
        return len(self.pads)

    @property
    def outstanding(self) -> int:
        """Steps since the last dense pass, whose keys and values are approximate."""
        return len(self.fed.ids)

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer's steps are the method's."""
        return isinstance(self.layers[layer], SparseLayer)

    def sparse(self, layer: int) -> SparseLayer:
        """A layer whose steps are the method's."""
        own = self.layers[layer]
        assert isinstance(own, SparseLayer)
        return own

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of each sequence, its padding included."""
        return 0 if torch.compiler.is_compiling() else self.length

    def shared_lengths(self, lengths: Tensor) -> Tensor:
        """The lengths that all layers share: those of the first one that has some."""
        if self._lengths is None:
            self._lengths = lengths
        return self._lengths

    def hold(self, stores: Sequence[KVCache], length: int) -> None:
        """Stand on caches that are filled already, a layer each, with `length` tokens in every sequence; no copy."""
        self._lengths = stores[0].lengths
        self.pads, self.length = [0] * stores[0].batch, length
        self.capacity = stores[0].capacity
        self._methods.clear()
        heads = self.adapter.config.num_attention_heads
        for layer, store in zip(self.sparse_layers, stores, strict=True):
            layer.hold(store)
            layer.shape = AttentionShape(store.batch, heads, store.kv_heads, store.head_dim)
        self.stand(length)

    def stand(self, length: int) -> None:
        """Say how many tokens every sequence has, of those that the caches hold; nothing is outstanding."""
        self.length = length
        self.lengths.fill_(length)
        self.fed = Fed([], [])

    # ---- one forward

    def begin(self, tokens: int, pads: list[int] | None, batch: int, device: torch.device) -> None:
        """A forward of so many tokens a sequence begins. Raises Unsupported for padding that is not the cache's."""
        self.in_forward, self.in_prompt = True, self.length == 0
        self._attended.clear()
        if self.in_prompt:
            self.pads = pads or [0] * batch
            wanted = torch.tensor([tokens - pad for pad in self.pads], dtype=torch.int32, device=device)
            if self._lengths is None:
                self._lengths = wanted
            else:
                self._lengths.copy_(wanted)
            self.reserve(tokens)
            return
        if pads is not None and pads != self.pads:
            raise Unsupported(
                f"attention_mask: shows {pads} padded tokens, the cache has {self.pads}; all sequences go on with as "
                "many new tokens"
            )
        if batch != self.batch:
            raise Unsupported(f"input_ids: got {batch} sequences, the cache has {self.batch}")
        self.reserve(self.length + tokens)
        self.lengths.add_(tokens)

    def end(self, tokens: int, done: bool) -> None:
        """It ended; undone where it failed. Raises Unsupported where a sparse layer was not attended to."""
        self.in_forward = False
        if not done:
            if not self.in_prompt:
                self.lengths.sub_(tokens)
            self.in_prompt = False
            return
        self.in_prompt = False
        self.length += tokens
        if missed := [layer.index for layer in self.sparse_layers if layer.index not in self._attended]:
            raise Unsupported(f"layers {missed}: their attention does not go through transformers' attention interface")

    def note_prompt(self, layer: int, query: Tensor) -> None:
        """A layer met the prompt with queries `[B, Hq, T, D]`."""
        self._attended.add(layer)
        own = self.sparse(layer)
        if own.store is None:
            raise Unsupported(f"layer {layer}: attends without a cache of its own, which is not served")
        batch, heads, _, dim = query.shape
        own.shape = AttentionShape(batch, heads, own.store.kv_heads, dim)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """Keep the new keys and values `[B, Hkv, T, D]` and attend: one token by the method, several densely.

        Returns:
            `[B, T, Hq, D]`, fresh memory.
        """
        self._attended.add(layer)
        own = self.sparse(layer)
        dim = query.shape[-1]
        factor = 1.0 if scaling is None else scaling * dim**0.5
        if abs(factor - 1) > 1e-6:  # the kernels scale by dim ** -0.5
            query = query * factor
        if query.shape[2] == 1 and not self.dense:
            return self._step(own, query, key, value)
        return self._dense(own, query, key, value)

    def _step(self, own: SparseLayer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if own.bound is None:
            own.bound = self._bind(own)
        q = query[:, :, 0].contiguous()
        step = StepTensors(q, key[:, :, 0].contiguous(), value[:, :, 0].contiguous(), torch.empty_like(q))
        for stage in own.bound.stages(step):
            stage.run()
        if self.observe is not None:
            self.observe(own.index, own.bound, step)
        return own.bound.output(step)[:, None]

    def _dense(self, own: SparseLayer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2).contiguous() for x in (query, key, value))
        out = torch.empty_like(q)
        assert own.store is not None
        assert own.shape is not None
        if own.bound is not None:
            own.bound.overwrite(ChunkTensors(q, k, v, out))
        else:
            (write_tokens if own.store.device.type == "cuda" else write_tokens_torch)(own.store, k, v)
        if self._kernel is None:
            name = None if own.store.device.type == "cuda" else "torch"
            self._kernel = best_chunk_kernel(own.shape, own.store, name)
        tokens = q.shape[1]
        pieces = []
        for start in range(0, tokens, PIECE):
            end = min(start + PIECE, tokens)
            store = own.store if end == tokens else replace(own.store, lengths=self.lengths - (tokens - end))
            part = q[:, start:end].contiguous()
            piece = ChunkTensors(part, k[:, start:end], v[:, start:end], torch.empty_like(part))
            result = self._kernel.bind(store, own.shape, piece)()
            pieces.append(piece.out if result is None else result)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)

    def _bind(self, own: SparseLayer) -> Layer:
        """The method on a layer's cache, whose lengths count the token that the step in progress writes."""
        assert own.store is not None
        assert own.shape is not None
        dense = own.index < (self.adapter.spec.dense_layers or 0)
        key = own.shape, dense
        if key not in self._methods:
            self._methods[key] = make_method(
                self.adapter.spec, own.shape, own.store.dtype, own.store.device, dense=dense
            )
        method = self._methods[key]
        if own.store.device.type != "cuda" and isinstance(method, TorchSparseMethod):
            layer = TorchSparseMethod.prepare(method, own.store)
            assert isinstance(layer, TorchSparseLayer)
            return layer
        return method.prepare(own.store)

    # ---- between forwards

    def bind(self) -> None:
        """Bind every layer that is not bound yet, so that a captured step binds nothing."""
        for layer in self.sparse_layers:
            if layer.bound is None:
                layer.bound = self._bind(layer)

    def reserve(self, tokens: int) -> None:
        """Make room for so many tokens a sequence; what is held is copied layer by layer, and bound again."""
        if tokens <= self.capacity:
            return
        self.capacity = ceil_div(max(tokens, self.capacity * 3 // 2), ROOM) * ROOM
        self.graph = self._kernel = None
        self._methods.clear()
        for layer in self.sparse_layers:
            old = layer.store
            if old is None:
                continue
            new = KVCache.allocate(
                old.batch, old.kv_heads, self.capacity, old.head_dim, dtype=old.dtype, device=old.device
            )
            new.store(*old.gather())
            layer.hold(new)

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the newest `-tokens_to_remove` tokens of every sequence, as transformers' caches do.

        Raises:
            ValueError: a number above 0, or more tokens than the shortest sequence has.
        """
        if tokens_to_remove > 0:
            raise ValueError(f"crop: got {tokens_to_remove}, expected the number of tokens to remove as -n")
        count = -tokens_to_remove
        if count > self.length - max(self.pads, default=0):
            raise ValueError(f"crop: {count} tokens are more than the shortest sequence has")
        if not count:
            return
        if any(self.is_linear):
            raise Unsupported("crop: linear layers keep one state, from which no tokens can be taken")
        for layer in self.other_layers:
            layer.crop(-count)
        self.fed.drop(min(count, self.outstanding))
        self.length -= count
        self.lengths.sub_(count)
        for own in self.sparse_layers:
            if own.bound is not None:
                own.bound.refresh(1)

    def reset(self) -> None:
        """Forget all tokens and keep the room."""
        for layer in self.other_layers:
            layer.reset()
        self.length, self.pads, self.fed, self.graph = 0, [], Fed([], []), None
        self._methods.clear()  # which count the layers that they are bound to
        for own in self.sparse_layers:
            own.bound = None

    def take_back(self) -> tuple[Tensor, Tensor]:
        """Take back the outstanding steps, for a dense pass to feed them again: their ids `[B, n]` and positions."""
        count = self.outstanding
        ids, positions = torch.cat(self.fed.ids, dim=-1), torch.cat(self.fed.positions, dim=-1)
        for i, layer in enumerate(self.layers):
            own: Any = layer
            if i in self._states:
                for name, kept in self._states[i].items():
                    setattr(own, name, _copied(kept))
            elif not isinstance(layer, SparseLayer):
                own.crop(-count)
        self.length -= count
        self.lengths.sub_(count)
        self.fed = Fed([], [])
        return ids, positions

    def record_past(self) -> None:
        """Keep what rectification takes back: of sliding windows their past, of linear layers their state as it is."""
        for i, layer in enumerate(self.layers):
            if self.is_linear[i]:
                self._states[i] = {name: _copied(getattr(layer, name)) for name in STATES}
            elif not isinstance(layer, SparseLayer) and hasattr(layer, "activate_past_recording"):
                layer.activate_past_recording()

    def __repr__(self) -> str:
        return f"SparseCache({self.adapter.spec.label}, {self.length} tokens, {self.outstanding} outstanding)"


def _copied(state: dict[int, Any]) -> dict[int, Any]:
    """A state's dictionary with tensors of its own."""
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()}


def _layers_of(config: Any) -> Iterable[Any]:
    """The layers that transformers would make for this model."""
    return DynamicCache(config=config).layers
