"""A method bound to a model's caches, checked, and captured where it can be: the one way into every suite's timing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels import DecodeMethod, Layer, Unsupported, get_method
from ..core.spec import MethodSpec, dense_here
from ..model.decoder import Decoder
from .checks import check_attention, check_rectified, check_replay
from .engine import Engine, State, bind_layers
from .gate import Check
from .parallel import check_policy
from .sound import Watch


@dataclass(frozen=True, slots=True)
class Place:
    """Where a state stands while a method is bound to it.

    Attributes:
        length: tokens in the caches, of every sequence; of a ragged batch int32 `[B]`.
        pending: int64 `[B]`, fed next.
        ahead: whether steps go beyond `length` (a text goes on), or end there (a synthetic context stays as long).
    """

    state: State
    length: int | Tensor
    pending: Tensor
    ahead: bool = False

    def before(self, steps: int) -> None:
        """Stand where so many steps follow."""
        self.state.start(self.length if self.ahead else self.length - steps, self.pending)

    def after(self, steps: int) -> None:
        """Stand where so many steps have been done: as rectification finds a period's end."""
        self.state.start(self.length + steps if self.ahead else self.length, self.pending)
        self.state.count.fill_(steps)


@dataclass(frozen=True, slots=True)
class Bound:
    """A method on a state, checked, and how its steps are launched.

    Attributes:
        step, rectify: graph replays where they can be captured; no rectification: None.
        launch: "graph" or "eager".
    """

    spec: MethodSpec
    engine: Engine
    check: Check
    step: Callable[[], object]
    rectify: Callable[[], object] | None
    launch: str

    def watched(self, watch: Watch) -> Callable[[], object]:
        """A step whose logits `watch` looks at: for steps that are not timed one by one."""

        def step() -> None:
            self.step()
            watch.look(self.engine.logits)

        return step


def can_capture(engine: Engine, device: torch.device) -> bool:
    """Whether steps and rectifications can be graphs."""
    return device.type == "cuda" and engine.graph_safe


def make_method(spec: MethodSpec, decoder: Decoder, batch: int, name: str | None = None) -> DecodeMethod:
    """The method of a spec (or another by `name` at its settings) for a model's heads, bound to no cache yet.

    Raises:
        Unsupported: its lists would have to span the ranks that share the model.
    """
    kind = get_method(name or spec.name)
    check_policy(kind, spec.config.gqa_policy, decoder.config)
    return kind(decoder.config.attention(batch), spec.config, dtype=decoder.dtype, device=decoder.device)


def layers_of(decoder: Decoder, state: State, spec: MethodSpec, name: str | None = None) -> list[Layer]:
    """Each layer's cache bound to the spec's method, the first `dense_layers` to a dense one. Raises Unsupported."""
    method = make_method(spec, decoder, state.batch, name)
    dense = make_method(spec, decoder, state.batch, dense_here(decoder.device)) if spec.dense_layers else None
    return bind_layers(state, method, dense, spec.dense_layers or 0)


def bind(
    decoder: Decoder,
    place: Place,
    spec: MethodSpec,
    *,
    sampling: Callable[[Tensor], Tensor] | None = None,
    longest_period: int | None = None,
    adjust: Callable[[list[Layer]], None] = lambda layers: None,
) -> Bound:
    """Bind a method, compare its attention with fp64, capture step and rectification, and compare those too.

    Args:
        place: its state is left anywhere; stand where you want to begin afterwards.
        longest_period: a method whose period is longer never rectifies here, since it would never be due.
        adjust: changes the layers before their stages are bound.

    Raises:
        CheckFailed: an output is outside its error bound, or a graph writes something else.
        Unsupported: the method does not serve these caches.
    """
    state = place.state
    place.before(0)
    if spec.kind.fixes_length and place.ahead:
        raise Unsupported("fixes its length when it is bound; a text grows")
    layers = layers_of(decoder, state, spec)
    adjust(layers)
    every = spec.config.rectify_every if spec.rectifies else None
    if every is not None and longest_period is not None and every > longest_period:
        every = None
    engine = Engine(decoder, state, layers, rectify_every=every, sampling=sampling)
    place.before(engine.window)
    check = check_attention(engine, {0, spec.dense_layers or 0, len(layers) - 1})
    step: Callable[[], object] = engine.step
    rectify: Callable[[], object] | None = engine.rectify if every else None
    graph = can_capture(engine, decoder.device)
    if graph:
        place.before(1)
        step = engine.capture(engine.step)
        place.before(engine.window)
        check = check.worst(check_replay(engine, step))
    if every:
        place.after(every)
        if graph:
            rectify = engine.capture(engine.rectify)
        check_rectified(engine, rectify if graph else None)
    return Bound(spec, engine, check, step, rectify, "graph" if graph else "eager")
