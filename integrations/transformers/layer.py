"""A full-attention layer of a `SparseCache`: its keys and values in a `KVCache`, and the method bound to them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from ...kernels import AttentionShape, KVCache, Layer, Unsupported
from ...kernels.config import HEAD_DIMS


class Owner(Protocol):
    """What a layer asks of its cache.

    Attributes:
        capacity: tokens a sequence. length: tokens of each sequence, padding included. pads: padded tokens of each.
        in_forward, in_prompt: whether the model that it serves is running, and whether on the prompt.
    """

    capacity: int
    length: int
    pads: list[int]
    in_forward: bool
    in_prompt: bool

    def shared_lengths(self, lengths: Tensor) -> Tensor:
        """The lengths that all layers share."""


class SparseLayer(CacheLayerMixin):
    """Keys and values of one full-attention layer, and the method bound to them."""

    is_sliding = False
    is_compileable = False
    is_croppable = True
    supports_early_init = False

    def __init__(self, owner: Owner, index: int) -> None:
        super().__init__()
        self.owner, self.index = owner, index
        self.store: KVCache | None = None
        self.bound: Layer | None = None
        self.shape: AttentionShape | None = None

    @property
    def batch_size(self) -> int:
        """Sequences; -1 before the prompt, as transformers has it."""
        return self.store.batch if self.store is not None else -1

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Room for keys and values `[B, Hkv, T, D]`. Raises Unsupported for heads that no kernel serves."""
        batch, heads, _, dim = key_states.shape
        if value_states.shape != key_states.shape:
            got = f"keys {list(key_states.shape)} and values {list(value_states.shape)}"
            raise Unsupported(f"layer {self.index}: got {got}; sparse steps need one shape")
        if dim not in HEAD_DIMS:
            raise Unsupported(f"layer {self.index}: head dim is {dim}, served are {', '.join(map(str, HEAD_DIMS))}")
        self.hold(
            KVCache.allocate(batch, heads, self.owner.capacity, dim, dtype=key_states.dtype, device=key_states.device)
        )

    def hold(self, store: KVCache) -> None:
        """Keep keys and values there, with the lengths that all layers share."""
        self.store = replace(store, lengths=self.owner.shared_lengths(store.lengths))
        self.keys, self.values, self.is_initialized = self.store.k, self.store.v, True
        self.device, self.bound = store.device, None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keep a prompt's keys and values `[B, Hkv, T, D]`; later ones are kept by the attention that they meet."""
        if torch.compiler.is_compiling():
            return key_states, value_states
        if not self.owner.in_forward:
            raise Unsupported("cache: a SparseCache serves the model that it was attached to, through its forward")
        if self.owner.in_prompt:
            if self.store is None:
                self.lazy_initialization(key_states, value_states)
            assert self.store is not None
            tokens = key_states.shape[2]
            for kept, given in ((self.store.k, key_states), (self.store.v, value_states)):
                if not any(self.owner.pads):
                    kept[:, :, :tokens] = given
                    continue
                for row, pad in enumerate(self.owner.pads):
                    kept[row, :, : tokens - pad] = given[row, :, pad:]
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Tokens that a mask covers, and the first of them."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens of each sequence, its padding included."""
        return 0 if torch.compiler.is_compiling() else self.owner.length

    def get_max_length(self) -> int:
        """No limit: the cache grows."""
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """The owner crops all its layers."""

    def reset(self) -> None:
        """The owner resets all its layers."""

    def _refuse(self, *args: Any, **kwargs: Any) -> None:
        raise Unsupported("cache: sparse decoding does not reorder, repeat or select sequences (beam search does)")

    reorder_cache = batch_repeat_interleave = batch_select_indices = offload = prefetch = _refuse
