"""Teacher forcing: a dense run that is recorded, and runs of other methods on the same tokens compared with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..engine.engine import Engine, State
from .exposure import ExposureMeter
from .metrics import StepMetrics, compare_logits, kv_error, step_metrics


@dataclass(frozen=True, slots=True)
class Reference:
    """What dense decoding said and left.

    Attributes:
        tokens: int64 `[B, steps + 1]`: fed at each step, and the one that would come next.
        logits: `[steps, B, vocab]` after each.
        keys, values: of each layer, `[B, Hkv, steps, D]`, of the tokens fed.
    """

    tokens: Tensor
    logits: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def steps(self) -> int:
        return self.logits.shape[0]


@dataclass(frozen=True, slots=True)
class Forced:
    """How a method fared on the reference's tokens.

    Attributes:
        steps: metrics of each.
        kv_error: mean relative error of keys and values by layer, `[layers]`.
        recall: by layer and query head `[layers, Hq]`, the share of the exact attention mass that lay in the blocks
            read, mean over steps and sequences; None where it was not asked.
        kv_exposure, kv_error_repaired: of methods with a window: what a query has seen once its window is over, over
            what a step loads; the error of keys and values by then.
    """

    steps: list[StepMetrics]
    kv_error: Tensor
    recall: Tensor | None = None
    kv_exposure: float | None = None
    kv_error_repaired: float | None = None


def record_dense(
    engine: Engine, step: Callable[[], object], prompt: int, first: Tensor, tokens: Tensor | None, steps: int,
    on_step: Callable[[int], None] = lambda _: None,
) -> Reference:  # fmt: skip
    """Run `steps` dense steps after `prompt` tokens.

    Args:
        first: int64 `[B]`, fed first.
        tokens: int64 `[B, steps + 1]` to feed, the first included; None for what the engine itself samples.
    """
    state = engine.state
    state.start(prompt, first)
    fed, logits = [first.clone()], []
    for t in range(steps):
        step()
        logits.append(engine.logits.clone())
        if tokens is not None:
            state.pending.copy_(tokens[:, t + 1])
        fed.append(state.pending.clone())
        on_step(t + 1)
    span = slice(prompt, prompt + steps)
    return Reference(
        torch.stack(fed, 1),
        torch.stack(logits),
        tuple(_tokens(state, i, "k", span).clone() for i in range(len(state.caches))),
        tuple(_tokens(state, i, "v", span).clone() for i in range(len(state.caches))),
    )


def _tokens(state: State, layer: int, which: str, span: slice) -> Tensor:
    """Keys or values of a layer, `[B, Hkv, tokens, D]`. Caches of this suite are contiguous."""
    return getattr(state.caches[layer], which)[:, :, span]


def run_forced(
    engine: Engine,
    step: Callable[[], object],
    rectify: Callable[[], object] | None,
    prompt: int,
    reference: Reference,
    on_step: Callable[[int], None] = lambda _: None,
) -> Forced:
    """Feed the reference's tokens to a method that stands after the same prompt.

    Keys and values are compared as the step wrote them, before a rectification corrects them. They and the metrics stay
    on the device until the end, so that no step waits for the one before.
    """
    state, every, window = engine.state, engine.rectify_every, engine.window
    state.start(prompt, reference.tokens[:, 0])
    compared, fed, repaired = list[Tensor](), list[Tensor](), list[Tensor]()
    exposure = ExposureMeter(engine.layers)
    for t in range(reference.steps):
        step()
        following = reference.tokens[:, t + 1]
        compared.append(torch.stack(compare_logits(reference.logits[t], engine.logits, following)))
        fed.append(_written(state, prompt + t))
        if 1 < window <= t + 1:
            exposure.read()
            repaired.append(_written(state, prompt + t + 1 - window))
        state.pending.copy_(following)
        if rectify is not None and every and (t + 1) % every == 0:
            rectify()
        on_step(t + 1)
    errors = _errors(fed, reference)
    steps = step_metrics(torch.stack(compared, 1), errors.mean(0))
    by_layer = errors.mean((1, 2)).cpu()
    if not repaired:
        return Forced(steps, by_layer)
    late = float(_errors(repaired, reference).mean())
    return Forced(steps, by_layer, kv_exposure=exposure.mean(), kv_error_repaired=late)


def _written(state: State, position: int) -> Tensor:
    """Key and value of one token as they stand, of every layer in turn: `[2 layers, B, Hkv, D]`."""
    return torch.stack([x[:, :, position] for cache in state.caches for x in (cache.k, cache.v)])


def _errors(written: list[Tensor], reference: Reference) -> Tensor:
    """Relative error of the keys and values of the first tokens fed, `[layers, T, B]`."""
    found = torch.stack(written).unflatten(1, (-1, 2))  # [T, layers, 2, B, Hkv, D]
    exact = zip(reference.keys, reference.values, strict=True)
    errors = []
    for i, both in enumerate(exact):
        keys, values = (x[:, :, : len(written)].permute(2, 0, 1, 3) for x in both)  # [T, B, Hkv, D]
        errors.append(kv_error((found[:, i, 0], found[:, i, 1]), (keys, values)))
    return torch.stack(errors)
