"""Teacher forcing: a dense run that is recorded, and runs of other methods on the same tokens compared with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..decode.engine import Engine, State
from .exposure import ExposureMeter
from .metrics import StepMetrics, compare_logits, relative_error


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

    Keys and values are compared as the step wrote them, before a rectification corrects them.
    """
    state, every = engine.state, engine.rectify_every
    state.start(prompt, reference.tokens[:, 0])
    found: list[StepMetrics] = []
    by_layer = torch.zeros(len(state.caches))
    exposure, repaired = ExposureMeter(engine.layers), list[Tensor]()
    for t in range(reference.steps):
        step()
        following = reference.tokens[:, t + 1]
        kl, top1, loss, extra = (x.cpu() for x in compare_logits(reference.logits[t], engine.logits, following))
        errors = kv_errors(state, reference, prompt, t)
        by_layer += errors.mean(1)
        found.append(StepMetrics(kl, top1, loss, extra, errors.mean(0)))
        if 1 < engine.window <= t + 1:
            exposure.read()
            repaired.append(kv_errors(state, reference, prompt, t + 1 - engine.window).mean())
        state.pending.copy_(following)
        if rectify is not None and every and (t + 1) % every == 0:
            rectify()
        on_step(t + 1)
    if not repaired:
        return Forced(found, by_layer / reference.steps)
    late = float(torch.stack(repaired).mean())
    return Forced(found, by_layer / reference.steps, kv_exposure=exposure.mean(), kv_error_repaired=late)


def kv_errors(state: State, reference: Reference, prompt: int, t: int) -> Tensor:
    """`[layers, B]` on the CPU: of the key and value of the token that step t fed, as they stand."""
    at = slice(prompt + t, prompt + t + 1)
    errors = [
        (
            relative_error(_tokens(state, i, "k", at), reference.keys[i][:, :, t : t + 1])
            + relative_error(_tokens(state, i, "v", at), reference.values[i][:, :, t : t + 1])
        )
        / 2
        for i in range(len(state.caches))
    ]
    return torch.stack(errors).cpu()
