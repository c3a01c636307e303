"""Teacher forcing: a dense run that is recorded, and runs of other methods on the same tokens compared with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...kernels import KVCache
from ...kernels.e4m3 import decoded
from ..core.metrics import Steps, step_metrics
from ..engine.engine import Engine, State
from ..engine.sound import check_count, check_logits, unsound
from ..model.decoder import Decoder
from ..model.parallel.exchange import Exchange
from .exposure import exposure


@dataclass(frozen=True, slots=True)
class Reference:
    """What dense decoding wrote.

    Attributes:
        tokens: int64 `[B, steps + 1]`: fed at each step, and the one that would come next.
        logits: `[steps, B, vocab]` after each.
        kv: keys and values of the tokens fed, `[layers, 2, B, Hkv, steps, D]`.
    """

    tokens: Tensor
    logits: Tensor
    kv: Tensor

    def __post_init__(self) -> None:
        """Raises CheckFailed for logits that are not finite, or constant."""
        check_logits(self.logits)

    @property
    def steps(self) -> int:
        """Tokens fed to each sequence."""
        return self.logits.shape[0]

    def compare(self, span: slice, logits: Tensor, kv_errors: Tensor) -> Tensor:
        """Every metric of some steps of a method, then whether its logits are unsound: `[metrics + 1, steps, B]`.

        Args:
            span: of the steps.
            logits: the method's, `[steps, B, vocab]`.
            kv_errors: float32 `[layers, steps, B]` (`relative_error`).
        """
        following = self.tokens[:, span.start + 1 : span.stop + 1].t()  # [steps, B]
        dense, method = (x.flatten(0, 1).float().log_softmax(-1) for x in (self.logits[span], logits))
        steps = Steps(dense, method, following.flatten(), kv_errors.flatten(1))
        values = [metric.values(steps) for metric in step_metrics()]
        return torch.stack([*values, unsound(logits).flatten().float()]).unflatten(1, following.shape)


@dataclass(frozen=True, slots=True)
class Forced:
    """How a method fared on the reference's tokens. On the CPU.

    Attributes:
        values: of each metric, `[steps, B]`.
        kv_error: mean relative error of keys and values by layer, `[layers]`.
        recall: by layer and query head `[layers, Hq]`, the share of the exact attention mass that lay in the blocks
            read, mean over steps and sequences; None where it was not asked.
        whole: further metrics, over all steps. Of methods with a window `kv_exposure`, what a query has seen once its
            window is over, over what a step loads; `kv_error_repaired`, the error of keys and values by then.
        tokens_read: a step and KV head, where it was counted: by `ForcedAttention.tokens_read`, or what methods that
            evict hold.
    """

    values: dict[str, Tensor]
    kv_error: Tensor
    recall: Tensor | None = None
    whole: dict[str, float] = field(default_factory=dict)
    tokens_read: float | None = None

    @classmethod
    def of(
        cls, compared: Tensor, kv_errors: Tensor, recall: Tensor | None = None, tokens_read: float | None = None
    ) -> Forced:
        """From what `Reference.compare` gives, and errors `[layers, steps, B]`; waits for the device.

        Raises:
            CheckFailed: logits of the method are not finite, or constant.
        """
        *compared_values, bad = compared.cpu()
        check_count(int(bad.sum()))
        values = dict(zip((metric.name for metric in step_metrics()), compared_values, strict=True))
        by_head = None if recall is None else recall.cpu()
        return cls(values, kv_errors.mean((1, 2)).cpu(), by_head, tokens_read=tokens_read)


def relative_error(written: Tensor, exact: Tensor, exchange: Exchange | None = None) -> Tensor:
    """||written - exact|| / ||exact|| over the last two dimensions (heads and their width), float32.

    `exchange`: of ranks that share the model; the heads are those of all.
    """
    squares = torch.stack([x.float().flatten(-2).norm(dim=-1) ** 2 for x in (written.float() - exact.float(), exact)])
    difference, size = (squares if exchange is None else exchange.add(squares)).sqrt()
    return difference / size.clamp(min=torch.finfo(torch.float32).tiny)


def over_ranks(value: Tensor, decoder: Decoder) -> Tensor:
    """The mean of a value over the ranks that share the model."""
    return value if decoder.exchange is None else decoder.exchange.add(value.clone()) / decoder.config.ranks


def held(cache: KVCache, tokens: slice) -> tuple[Tensor, Tensor]:
    """What a contiguous cache holds of some tokens, keys and values `[B, Hkv, tokens, D]` of the queries' dtype."""
    k, v = cache.k[:, :, tokens], cache.v[:, :, tokens]
    if cache.scales is None:
        return k, v
    return decoded(k, cache.scales[:, 0], cache.dtype), decoded(v, cache.scales[:, 1], cache.dtype)


def written(state: State, tokens: slice) -> Tensor:
    """Keys and values as they stand, `[layers, 2, B, Hkv, tokens, D]`. Caches of this suite are contiguous."""
    return torch.stack([x for cache in state.caches for x in held(cache, tokens)]).unflatten(0, (-1, 2))


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
    return Reference(torch.stack(fed, 1), torch.stack(logits), written(state, slice(prompt, prompt + steps)))


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
    compared, errors, repaired, exposures = list[Tensor](), list[Tensor](), list[Tensor](), list[Tensor]()
    pairs = zip(engine.layers, state.caches, strict=True)
    compact = [layer.cache for layer, whole in pairs if layer.cache.k.data_ptr() != whole.k.data_ptr()]
    held = list[Tensor]()

    def error(t: int) -> Tensor:
        """Of what the caches hold of a token, `[layers, 1, B]`."""
        was, exact = written(state, slice(prompt + t, prompt + t + 1))[..., 0, :], reference.kv[..., t, :]
        return relative_error(was, exact, engine.decoder.exchange).mean(1)[:, None]

    for t in range(reference.steps):
        step()
        held += [torch.stack([cache.lengths for cache in compact]).float().mean()] if compact else []
        errors.append(error(t))
        compared.append(reference.compare(slice(t, t + 1), engine.logits[None], errors[-1]))
        if 1 < window <= t + 1:
            exposures.append(over_ranks(exposure(engine.layers).mean(), engine.decoder))
            repaired.append(error(t + 1 - window))
        state.pending.copy_(reference.tokens[:, t + 1])
        if rectify is not None and every and (t + 1) % every == 0:
            rectify()
        on_step(t + 1)
    tokens_read = float(torch.stack(held).mean()) if held else None
    forced = Forced.of(torch.cat(compared, 1), torch.cat(errors, 1), tokens_read=tokens_read)
    for name, readings in (("kv_error_repaired", repaired), ("kv_exposure", exposures)):
        if readings:
            forced.whole[name] = float(torch.stack(readings).mean())
    return forced
