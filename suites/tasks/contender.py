"""A method that stands after a prompt: it is fed tokens and judged by them, or goes on by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...kernels import get_method
from ..decode.cases import rectifies
from ..engine.checks import check_attention
from ..engine.engine import Engine, State, bind_layers
from ..micro.cases import MethodSpec
from ..model.decoder import Decoder
from .divergence import CommonNoise, agreeing

LOOK_EVERY = 32  # steps between looks at the device, whether all sequences have diverged


@dataclass(frozen=True, slots=True)
class Judged:
    """What a method thought of the tokens that it was fed, each `[R, T]` on the CPU.

    Attributes:
        top: whether it ranks the token first: greedy decoding would have said it.
        logp: the token's log-probability, nats, float32.
    """

    top: Tensor
    logp: Tensor


class Contender:
    """A method bound to prefilled caches, its first step checked; step and rectification are graphs on a GPU.

    Keys and values of the prompt stay as they are: `start` puts any contender of the same state back behind it.
    """

    def __init__(
        self, decoder: Decoder, state: State, spec: MethodSpec, prompt: int, room: int, noise: CommonNoise
    ) -> None:
        """
        Args:
            state: its caches hold `prompt` tokens a sequence and have room for `room` more.
            noise: what the next token is chosen by.

        Raises:
            CheckFailed: the attention of the first step is wrong.
            Unsupported: the method does not serve such a cache.
        """
        self.state, self.spec, self.prompt, self._noise = state, spec, prompt, noise
        every = spec.config.rectify_every if rectifies(spec) else None
        self.every = every if every is not None and every <= room else None  # else it would never be due
        first = torch.ones(state.batch, dtype=torch.int64, device=decoder.device)
        state.start(prompt, first)
        options: Any = {"dtype": decoder.dtype, "device": decoder.device}
        method = get_method(spec.name)(decoder.config.attention(state.batch), spec.config, **options)
        layers = bind_layers(state, method, None, 0)
        self._layers = list({id(layer): layer for layer in layers}.values())
        self.engine = Engine(decoder, state, layers, rectify_every=self.every, sampling=noise)
        check_attention(self.engine, {0, len(layers) - 1})
        self._step: Callable[[], object] = self.engine.step
        self._rectify: Callable[[], object] = self.engine.rectify
        self._looks, self._fed, self._known = 1, 0, False
        if decoder.device.type == "cuda":
            self._looks = LOOK_EVERY
            if self.engine.graph_safe:
                self._capture(first)

    def _capture(self, first: Tensor) -> None:
        self.state.start(self.prompt, first)
        self._step = self.engine.capture(self.engine.step)
        if self.every:
            self.state.start(self.prompt + self.every, first)
            self.state.count.fill_(self.every)
            self._rectify = self.engine.capture(self.engine.rectify)

    def start(self, pending: Tensor) -> None:
        """Stand behind the prompt with `pending` int64 `[R]` next."""
        self.state.start(self.prompt, pending)
        self._stand(0)
        self._known = False  # whether the engine's logits say anything about the next token

    def _stand(self, fed: int) -> None:
        """Be where `fed` tokens were fed after the prompt: what lies beyond in the caches is void."""
        self._fed = fed
        for layer in self._layers:
            layer.refresh(1)  # the newest block alone can hold valid keys beside void ones

    def _advance(self, rectify: bool = True) -> None:
        self._noise.draw(self._fed)
        self._step()
        self._fed += 1
        self._known = True
        if rectify and self.every and self._fed % self.every == 0:
            self._rectify()

    def feed(self, tokens: Tensor, *, rectify: bool = True) -> Judged:
        """Feed ids int64 `[R, T]` one by one. The first of all is judged by nothing: false, NaN."""
        top, logp = [], []
        for t in range(tokens.shape[1]):
            token = tokens[:, t]
            if self._known:
                logits = self.engine.logits.float()
                top.append(logits.argmax(-1) == token)
                logp.append(logits.log_softmax(-1).gather(-1, token[:, None])[:, 0])
            else:
                top.append(torch.zeros_like(token, dtype=torch.bool))
                logp.append(torch.full_like(token, float("nan"), dtype=torch.float32))
            self.state.pending.copy_(token)
            self._advance(rectify)
        return Judged(torch.stack(top, 1).cpu(), torch.stack(logp, 1).cpu())

    def try_answer(self, tokens: Tensor) -> Judged:
        """As `feed`, and stand where it began again. No rectification is done meanwhile."""
        fed, pending, logits = self._fed, self.state.pending.clone(), self.engine.logits.clone()
        found = self.feed(tokens, rectify=False)
        steps = tokens.shape[1]
        self.state.lengths.sub_(steps)
        self.state.count.sub_(steps)
        self.state.pending.copy_(pending)
        self.engine.logits.copy_(logits)
        self._stand(fed)
        return found

    def say(self, count: int, reference: Tensor | None = None) -> Tensor:
        """Decode `count` tokens after the pending one: ids int64 `[R, count]`.

        Args:
            reference: ids `[R, count]`; decoding ends where every sequence has left them (the ids after that are -1).
        """
        said = torch.full((self.state.batch, count), -1, dtype=torch.int64, device=self.state.pending.device)
        for t in range(count):
            self._advance()
            said[:, t] = self.state.pending
            if reference is None or (t + 1) % self._looks:
                continue
            if int(agreeing(said[:, : t + 1], reference[:, : t + 1]).max()) <= t:
                break
        return said


def said_in_chunks(
    decoder: Decoder, state: State, spec: MethodSpec, prompt: int, tokens: Tensor, rows: int, noise: CommonNoise
) -> Tensor:
    """What dense decoding says through another numeric path: `rows` tokens at a time, by rectification's kernels.

    Up to the first difference it is what free decoding through that path would say.

    Args:
        spec: a method that rectifies.
        tokens: int64 `[R, T]`, fed to it; T is a multiple of `rows`.

    Returns:
        The token that it says after each, int64 `[R, T]`.
    """
    state.start(prompt + rows, tokens[:, 0])
    options: Any = {"dtype": decoder.dtype, "device": decoder.device}
    method = get_method(spec.name)(decoder.config.attention(state.batch), spec.config, **options)
    engine = Engine(decoder, state, bind_layers(state, method, None, 0), rectify_every=rows)
    state.start(prompt, tokens[:, 0])
    said = []
    for first in range(0, tokens.shape[1], rows):
        state.lengths.add_(rows)
        logits = engine.verify(tokens[:, first : first + rows])
        for i in range(rows):
            noise.draw(first + i)
            said.append(noise(logits[:, i]))
    return torch.stack(said, 1)
