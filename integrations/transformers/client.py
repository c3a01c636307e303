"""`resa-bench decode --client transformers`: this project's methods in transformers, and transformers' own dense steps.

All stand on the caches of the engine that measures: no keys or values are copied. A step is the model's forward, as
`generate` calls it, and the greedy choice after it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, StaticCache
from transformers.generation.configuration_utils import CompileConfig

from ...kernels import AttentionShape, DecodeMethod, KVCache, Layer, NotHere, StepTensors, Unsupported, register
from ...suites.core.spec import MethodSpec
from ...suites.engine.client import Contender, Contenders
from ...suites.engine.engine import State
from ...suites.model.decoder import Decoder
from .adapter import attach, detach
from .cache import SparseCache
from .from_decoder import transformers_model
from .names import cache_name

IMPLEMENTATIONS = {"transformers-sdpa": "sdpa", "transformers-flash-3": "flash_attention_3"}
METHODS = tuple(IMPLEMENTATIONS)
"""Dense decoding by transformers alone: a static cache, and its own torch.compile path where that can run."""


class TransformersDense(DecodeMethod):
    """A dense method that is a whole model's: it has no layer that runs alone."""

    is_dense = True
    in_default = False
    joins = ()

    @classmethod
    def unavailable(cls, shape: AttentionShape, dtype: torch.dtype, device: torch.device) -> str | None:
        """FlashAttention 3 needs a GPU; SDPA runs anywhere."""
        needs = cls.name == "transformers-flash-3" and device.type != "cuda"
        return "needs a CUDA device" if needs else None

    def prepare(self, cache: KVCache) -> Layer:
        """Raises Unsupported: transformers runs it in a whole model."""
        raise Unsupported("runs a whole model in transformers: resa-bench decode --client transformers")


for _name in IMPLEMENTATIONS:
    register(_name)(type("".join(part.title() for part in _name.split("-")), (TransformersDense,), {}))

_models: dict[int, tuple[Decoder, PreTrainedModel]] = {}


def model_of(decoder: Decoder) -> PreTrainedModel:
    """The decoder as a model of transformers, made once; the last one alone is kept."""
    if id(decoder) not in _models:
        _models.clear()
        _models[id(decoder)] = decoder, transformers_model(decoder)
    return _models[id(decoder)][1]


def contenders(decoder: Decoder, state: State, spec: MethodSpec) -> Contenders:
    """On a GPU compiled, as a graph (of ours) and eager; on a CPU eager."""
    launches = ("compiled", "graph", "eager") if decoder.device.type == "cuda" else ("eager",)
    if spec.name in IMPLEMENTATIONS:
        for launch in launches:
            if launch != "graph":
                yield launch, partial(dense_contender, decoder, state, spec, launch)
    elif not spec.is_dense:
        for launch in launches:
            yield launch, partial(sparse_contender, decoder, state, spec, launch)


def sparse_contender(decoder: Decoder, state: State, spec: MethodSpec, launch: str) -> Contender:
    """A method of ours, attached to the model. Raises Unsupported."""
    model = model_of(decoder)
    settings = {"dense_layers": spec.dense_layers} if spec.dense_layers is not None else {}
    adapter = attach(model, spec.name, spec.config, graph=launch != "eager", compile=launch == "compiled", **settings)
    cache = SparseCache(adapter, state.capacity)
    cache.hold(state.caches, int(state.lengths.max()))
    name, pending = cache_name(model), state.pending.clone()

    def stand(length: int, first: Tensor) -> None:
        cache.stand(length)
        for layer in cache.sparse_layers:
            if layer.bound is not None:
                layer.bound.refresh(1)  # others wrote beyond this length meanwhile
        pending.copy_(first)

    def step() -> Tensor:
        logits: Tensor = model(input_ids=pending[:, None], use_cache=True, **{name: cache}).logits[:, -1]
        pending.copy_(logits.argmax(-1))
        return logits

    def watch(observe: Callable[[int, Layer, StepTensors], None]) -> None:
        cache.observe = observe

    return Contender(stand, step, partial(adapter.rectify, cache) if adapter.rectify_every else None, watch)


def dense_contender(decoder: Decoder, state: State, spec: MethodSpec, launch: str) -> Contender:
    """transformers' own step over a static cache. Raises NotHere where it lacks the attention asked for."""
    model: Any = model_of(decoder)
    detach(model)
    implementation = IMPLEMENTATIONS[spec.name]
    try:
        model.set_attn_implementation(implementation)
    except Exception as error:  # whatever transformers raises where it finds no such kernel
        raise NotHere(f"{implementation}: {' '.join(str(error).split())[:200]}") from None
    cache = static_cache(model, state)
    name, pending = cache_name(model), state.pending.clone()
    forward = model.get_compiled_call(CompileConfig()) if launch == "compiled" else model.__call__
    shown = torch.ones(state.batch, state.capacity, dtype=torch.long, device=decoder.device)
    at = [0]

    def stand(length: int, first: Tensor) -> None:
        for layer in cache.layers:
            layer.cumulative_length.fill_(length)  # type: ignore[union-attr]
        at[0] = length
        pending.copy_(first)

    def step() -> Tensor:
        mask = shown[:, : at[0] + 1] if implementation != "sdpa" else None
        positions = torch.full((state.batch, 1), at[0], dtype=torch.long, device=decoder.device)
        inputs = model.prepare_inputs_for_generation(
            pending[:, None], next_sequence_length=1, attention_mask=mask, position_ids=positions, use_cache=True,
            logits_to_keep=1, **{name: cache},
        )  # fmt: skip
        logits: Tensor = forward(**inputs, return_dict=True).logits[:, -1]
        pending.copy_(logits.argmax(-1))
        at[0] += 1
        return logits

    return Contender(stand, step)


def static_cache(model: PreTrainedModel, state: State) -> StaticCache:
    """transformers' static cache over the state's keys and values, without a copy."""
    cache = StaticCache(config=model.config, max_cache_len=state.capacity)
    for layer, store in zip(cache.layers, state.caches, strict=True):
        static_layer: Any = layer
        static_layer.lazy_initialization(store.k[:, :, :1], store.v[:, :, :1])  # makes room, given back below
        static_layer.keys, static_layer.values = store.k, store.v
        torch._dynamo.mark_static_address(store.k)
        torch._dynamo.mark_static_address(store.v)
    return cache
