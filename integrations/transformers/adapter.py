"""`attach(model, "resa")`: from then on `model.generate` decodes with that method, until `detach(model)`.

Two of the model's methods are wrapped. `generate` refuses what sparse steps would get wrong, and hands transformers'
own loop a `SparseCache`. `forward` looks at the cache: with one of ours a first forward is the prompt, a forward of
one token a step, one of several a dense pass over what the cache holds; before either, steps whose period is full (or
before a dense pass, any) are rectified. Without one of ours it is the model's own.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from functools import cached_property, partial, wraps
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...kernels import SparseConfig, Unsupported
from ...suites.core.spec import DEFAULTS, MethodSpec
from ..method import method_spec
from .attention import running
from .cache import SparseCache
from .graph import StepGraph, why_no_graph
from .names import cache_name, take_cache
from .products import Products
from .refuse import OTHER_LOOPS, check_model, check_options, merged_options, padding

DEFAULT_NEW_TOKENS = 20  # of `generate` where nothing was said


class Adapter:
    """A model with a method attached: what `attach` gives back, and what its caches ask."""

    def __init__(
        self, model: PreTrainedModel, spec: MethodSpec, *, graph: bool | None = None, compile: bool = False
    ) -> None:
        """As `attach`. Raises Unsupported."""
        check_model(model)
        self.model, self.spec, self.graph, self.compile = model, spec, graph, compile
        self.config = model.config.get_text_config(decoder=True)
        self.cache_name = cache_name(model)
        self.forward: Any = model.forward
        self.generate: Any = model.generate
        self.why_eager: str | None = None
        """Why the last step was launched kernel by kernel; None where it was a CUDA graph."""
        self._signature = inspect.signature(model.forward)
        SparseCache(self, 1)  # refuses layers that are not served

    @cached_property
    def fused_forward(self) -> Callable[..., Any]:
        """What a captured step runs: the model's forward, compiled where that was asked for."""
        last = partial(self.forward, logits_to_keep=1) if "logits_to_keep" in self._signature.parameters else None
        return self._fused(last or self.forward)

    @cached_property
    def fused_base(self) -> Callable[..., Any]:
        """What a captured rectification runs: the base model, whose result has no logits."""
        return self._fused(self.model.base_model.forward)

    @cached_property
    def products(self) -> Products:
        """The model's linear layers, as a captured step runs them."""
        return Products(self.model)

    def _fused(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(forward, dynamic=False, fullgraph=True) if self.compile else forward

    @property
    def rectify_every(self) -> int | None:
        """f; None for a method that never rectifies."""
        return self.spec.config.rectify_every if self.spec.rectifies else None

    def install(self) -> None:
        """Wrap the model's methods."""
        model: Any = self.model
        model.forward = _like(self.forward, self._forward)
        model.generate = _like(self.generate, self._generate)
        for name in OTHER_LOOPS:
            if hasattr(model, name):
                setattr(model, name, _refusing(name, self.spec.label))

    def remove(self) -> None:
        """Give the model its own methods back."""
        for name in ("forward", "generate", *OTHER_LOOPS):
            self.model.__dict__.pop(name, None)

    # ---- generate

    def _generate(self, inputs: Tensor | None = None, generation_config: Any = None, **options: Any) -> Any:
        """transformers' `generate` with our cache. Raises Unsupported for what sparse steps do not serve."""
        cache = take_cache(options)
        merged = merged_options(self.model, generation_config, options)
        check_options(merged, options)
        ids = next((x for x in (inputs, options.get("input_ids"), options.get("inputs_embeds")) if x is not None), None)
        mask = options.get("attention_mask")
        padding(mask)
        shown = mask if mask is not None else ids
        tokens = shown.shape[1] if shown is not None else 1
        if cache is not None and not isinstance(cache, SparseCache):
            raise Unsupported(f"cache: got a {type(cache).__name__}; give the SparseCache of an earlier turn, or none")
        if cache is not None and cache.adapter is not self:
            raise Unsupported("cache: belongs to another model or method; give none")
        if cache is not None and mask is None and tokens <= cache.length:
            tokens += cache.length  # the new tokens alone were given
        new = DEFAULT_NEW_TOKENS if merged.max_new_tokens is None else merged.max_new_tokens
        total = tokens + new if merged.max_new_tokens or not merged.max_length else max(merged.max_length, tokens)
        if cache is None:
            cache = SparseCache(self, total)
        else:
            cache.reserve(total)
        cache.prompt = tokens
        try:
            return self.generate(inputs, generation_config=generation_config, **{self.cache_name: cache}, **options)
        finally:
            cache.prompt = 0

    # ---- forward

    def _forward(self, *positional: Any, **options: Any) -> Any:
        """The model's forward; with a SparseCache, a prompt, a step, or a dense pass."""
        if positional:
            options = {**self._signature.bind_partial(*positional).arguments, **options}
        cache = take_cache(options)
        if not isinstance(cache, SparseCache):
            if cache is not None:
                options[self.cache_name] = cache
            return self.forward(**options)
        if cache.adapter is not self:
            raise Unsupported("cache: belongs to another model or method")
        fed = options.get("input_ids") if options.get("input_ids") is not None else options.get("inputs_embeds")
        if fed is None:
            raise ValueError("input_ids: a forward needs them, or inputs_embeds")
        pads = padding(options.get("attention_mask"))
        tokens = fed.shape[1]
        step = cache.length > 0 and tokens == 1 and cache.length + 1 > cache.prompt
        if step and options.get("input_ids") is None:
            raise Unsupported("inputs_embeds: a step needs input_ids, which its rectification feeds again")
        due = cache.outstanding if not step else self.rectify_every
        if self.rectify_every and cache.outstanding and due and cache.outstanding >= due:
            self.rectify(cache, options.get("attention_mask"))
        if not step:
            return self._run(cache, fed, pads, options, dense=True)
        positions = self._positions(cache, options)
        output = self._step(cache, fed, positions, pads, options)
        if self.rectify_every:
            cache.fed.ids.append(fed)
            cache.fed.positions.append(positions)
        return output

    def _positions(self, cache: SparseCache, options: dict[str, Any]) -> Tensor:
        """Of a step, int64 `[B, 1]` or whatever shape the model counts positions in."""
        given = options.get("position_ids")
        if given is not None:
            return given.clone()
        return cache.lengths.long()[:, None]  # of sequences, padding left out

    def _step(
        self, cache: SparseCache, fed: Tensor, positions: Tensor, pads: list[int] | None, options: dict[str, Any]
    ) -> Any:
        if self.graph is not False:
            self.why_eager = why_no_graph(self, cache, options)
            if self.why_eager is None:
                try:
                    return self._replay(cache, fed, positions, pads)
                except RuntimeError as error:  # what a forward does may not be captured: synchronise, say
                    if self.graph:
                        raise
                    self.why_eager = f"capture failed: {' '.join(str(error).split())[:120]}"
                    warnings.warn(f"steps run eagerly: {self.why_eager}", stacklevel=2)
                    self.graph = False
            elif self.graph:
                raise Unsupported(f"graph: {self.why_eager}; leave graph=True out")
        return self._run(cache, fed, pads, {**options, "position_ids": positions}, dense=False)

    def _replay(self, cache: SparseCache, fed: Tensor, positions: Tensor, pads: list[int] | None) -> Any:
        """A step as a CUDA graph, captured where the cache has none yet."""
        cache.reserve(cache.length + 1)
        if cache.graph is None:
            cache.graph = StepGraph(self, cache, fed, positions)
        logits = cache.graph.step(fed, positions)
        cache.length += 1
        return cache.graph.output(logits)

    def _run(
        self, cache: SparseCache, fed: Tensor, pads: list[int] | None, options: dict[str, Any], *, dense: bool,
        forward: Callable[..., Any] | None = None,
    ) -> Any:  # fmt: skip
        """One forward through the cache."""
        tokens, done = fed.shape[1], False
        cache.begin(tokens, pads, fed.shape[0], fed.device)
        cache.dense = dense
        if "position_ids" not in options and "position_ids" in self._signature.parameters:
            options = {**options, "position_ids": self._counted(cache, tokens)}
        try:
            with running(cache, self.config):
                output = (forward or self.forward)(**options, **{self.cache_name: cache})
            done = True
        finally:
            cache.end(tokens, done)
        if dense and self.rectify_every:
            cache.record_past()
        return output

    def _counted(self, cache: SparseCache, tokens: int) -> Tensor:
        """Positions `[B, T]` of the newest `tokens` tokens, where a forward was given none."""
        last = cache.lengths.long()[:, None]
        return (last + torch.arange(-tokens, 0, device=last.device)).clamp(min=0)

    def rectify(self, cache: SparseCache, attention_mask: Tensor | None = None) -> None:
        """Make the keys and values of the outstanding steps what dense decoding would have left.

        Args:
            attention_mask: `[B, T]`, of the cache's tokens or more; window layers need it under left padding.
        """
        count = cache.outstanding
        if not count:
            return
        if cache.graph is not None and cache.graph.rectify(count):
            return
        ids, positions = cache.take_back()
        options: dict[str, Any] = {"input_ids": ids, "position_ids": positions, "use_cache": True}
        if attention_mask is not None and attention_mask.dim() == 2:
            options["attention_mask"] = attention_mask[:, : cache.length + count]
        pads = padding(options.get("attention_mask"))
        # The base model: nobody wants these logits.
        with torch.no_grad():
            self._run(cache, ids, pads, options, dense=True, forward=self.model.base_model)


def attach(
    model: PreTrainedModel,
    method: str = "resa",
    config: SparseConfig = DEFAULTS,
    *,
    graph: bool | None = None,
    compile: bool = False,
    **settings: Any,
) -> Adapter:
    """Let `model.generate` decode with a sparse method of the registry.

    Args:
        model: a causal model of transformers whose attention goes through the attention interface.
        method: `resa` (the faster way for the cache), `sparse`, `quest`, `sink-window`, `oracle`, or any other that is
            registered.
        config: settings that the method starts from; each method's own defaults, then `settings`, go over them.
        graph: run steps as CUDA graphs: None where that can be, True or an error, False never.
        compile: let torch.compile fuse what lies between attentions before a step is captured.
        settings: of the method, by name: `active_ratio=0.05`, `rectify_every=64`, `dense_layers=2` ...

    Returns:
        The adapter; `detach(model)` undoes it.

    Raises:
        Unsupported: a model or a method that cannot be served, by name.
        ValueError: a setting out of range.
    """
    detach(model)
    spec = method_spec(method, model.device, config, **settings)
    adapter = Adapter(model, spec, graph=graph, compile=compile)
    adapter.install()
    model.__dict__["resa_adapter"] = adapter
    return adapter


def detach(model: PreTrainedModel) -> None:
    """Give the model its own `generate` and `forward` back; nothing happens where no method is attached."""
    adapter = model.__dict__.pop("resa_adapter", None)
    if adapter is not None:
        adapter.remove()


def _like(own: Callable[..., Any], replacement: Callable[..., Any]) -> Callable[..., Any]:
    """A function that does what `replacement` does under the name and signature of `own`."""

    @wraps(own)
    def call(*args: Any, **kwargs: Any) -> Any:
        return replacement(*args, **kwargs)

    return call


def _refusing(name: str, label: str) -> Callable[..., Any]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise Unsupported(f"{name}: does not decode with {label}; call generate, or detach(model) first")

    return refuse
