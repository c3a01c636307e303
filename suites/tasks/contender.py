"""A method that stands after a prompt: it is fed tokens and judged by them, or goes on by itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.spec import MethodSpec
from ..engine.bind import Place, bind, layers_of
from ..engine.engine import Engine, State, distinct
from ..engine.sound import Watch, check_logits
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
    """A method bound to prefilled caches and checked; step and rectification are graphs on a GPU.

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
            CheckFailed: its attention or its rectification is wrong.
            Unsupported: the method does not serve such a cache.
        """
        self.state, self.prompt, self._noise = state, prompt, noise
        place = Place(state, prompt, torch.ones_like(state.pending), ahead=True)
        bound = bind(decoder, place, spec, sampling=noise, longest_period=room)
        self.engine, self._step, self._rectify = bound.engine, bound.step, bound.rectify
        self._layers, self._watch = distinct(self.engine.layers), Watch(decoder.device)
        self._looks = LOOK_EVERY if decoder.device.type == "cuda" else 1
        self._fed, self._known = 0, False

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
        self._watch.look(self.engine.logits)
        self._fed += 1
        self._known = True
        every = self.engine.rectify_every
        if rectify and self._rectify is not None and every and self._fed % every == 0:
            self._rectify()

    def feed(self, tokens: Tensor, *, rectify: bool = True) -> Judged:
        """Feed ids int64 `[R, T]` one by one. The first of all is judged by nothing: false, NaN.

        Raises:
            CheckFailed: logits are not finite, or constant.
        """
        top, logp = [], []
        for token in tokens.unbind(1):
            if self._known:
                logits = self.engine.logits.float()
                top.append(logits.argmax(-1) == token)
                logp.append(logits.log_softmax(-1).gather(-1, token[:, None])[:, 0])
            else:
                top.append(torch.zeros_like(token, dtype=torch.bool))
                logp.append(torch.full_like(token, float("nan"), dtype=torch.float32))
            self.state.pending.copy_(token)
            self._advance(rectify)
        self._watch.check()
        return Judged(torch.stack(top, 1).cpu(), torch.stack(logp, 1).cpu())

    def try_answer(self, tokens: Tensor) -> Judged:
        """As `feed`, and stand where it began again. No rectification is done meanwhile."""
        fed, pending, logits = self._fed, self.state.pending.clone(), self.engine.logits.clone()
        judged = self.feed(tokens, rectify=False)
        steps = tokens.shape[1]
        self.state.lengths.sub_(steps)
        self.state.count.sub_(steps)
        self.state.pending.copy_(pending)
        self.engine.logits.copy_(logits)
        self._stand(fed)
        return judged

    def say(self, count: int, reference: Tensor | None = None) -> Tensor:
        """Decode `count` tokens after the pending one: ids int64 `[R, count]`.

        Args:
            reference: ids `[R, count]`; decoding ends where every sequence has left them (the ids after that are -1).

        Raises:
            CheckFailed: logits are not finite, or constant.
        """
        decoded = torch.full((self.state.batch, count), -1, dtype=torch.int64, device=self.state.pending.device)
        for t in range(count):
            self._advance()
            decoded[:, t] = self.state.pending
            if reference is None or (t + 1) % self._looks:
                continue
            if int(agreeing(decoded[:, : t + 1], reference[:, : t + 1]).max()) <= t:
                break
        self._watch.check()
        return decoded


def decoded_in_chunks(
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
    engine = Engine(decoder, state, layers_of(decoder, state, spec), rectify_every=rows)
    state.start(prompt, tokens[:, 0])
    decoded = []
    for first in range(0, tokens.shape[1], rows):
        state.lengths.add_(rows)
        logits = engine.verify(tokens[:, first : first + rows])
        check_logits(logits)
        for i in range(rows):
            noise.draw(first + i)
            decoded.append(noise(logits[:, i]))
    return torch.stack(decoded, 1)
