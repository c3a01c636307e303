"""Answers by batched decoding: each sequence of a batch has its own length and its own end.

Time goes in periods of f steps (f of the method's rectification; 32 for others). In a period nothing asks the device.
Between periods the tokens are read; sequences that ended give their place to the next problem: its prompt is
prefilled into that place's part of the caches, and the summaries are derived again. An ended sequence runs on to the
end of its period, f - 1 tokens at most, for which its place has room; a place that nothing is left for starts over
from length 0 each period.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...kernels.config import ceil_div
from ..engine.bind import Bound
from ..engine.engine import distinct
from ..engine.prompt import prefill
from ..engine.sound import Watch
from .sampling import StreamSampling, choose, stream
from .work import Item


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model wrote, the end token included where it `finished`."""

    item: Item
    ids: tuple[int, ...]
    finished: bool
    seconds: float


@dataclass(slots=True)
class Running:
    """A sequence in its place."""

    item: Item
    room: int  # most tokens of its answer
    uniforms: Tensor  # [room + period], one a token
    ids: list[int]
    began: float = field(default_factory=time.monotonic)


def places_needed(items: Iterable[Item], max_tokens: int, context: int, period: int) -> int:
    """Tokens that each place's caches must hold, in whole 64s."""
    most = max(len(item.prompt) + item.room(max_tokens, context) for item in items)
    return ceil_div(most + period, 64) * 64


class Batch:
    """An engine whose places are filled from a queue of problems."""

    def __init__(
        self, bound: Bound, sampling: StreamSampling, period: int, *, max_tokens: int, ends: Collection[int], seed: int
    ) -> None:
        """
        Args:
            bound: its engine's sampling is `sampling`, and its history has `period` rows.
            period: steps between looks at the tokens, which a method that rectifies does before each.
            ends: token ids that end an answer.
        """
        self.engine, self.sampling, self.period = bound.engine, sampling, period
        self.max_tokens, self.ends, self.seed = max_tokens, frozenset(ends), seed
        self._watch = Watch(bound.engine.decoder.device)
        self._step, self._rectify = bound.watched(self._watch), bound.rectify
        self._layers = distinct(bound.engine.layers)

    def run(self, items: Iterable[Item], on_period: Callable[[int], None] = lambda _: None) -> Iterator[list[Answer]]:
        """Answers as they end, those of a period together.

        Args:
            on_period: told how many tokens the period has brought.

        Raises:
            CheckFailed: logits of the period are not finite, or constant: none of its answers stands.
        """
        waiting, state = deque(items), self.engine.state
        places: list[Running | None] = [None] * state.batch
        while waiting or any(places):
            free = [i for i, running in enumerate(places) if running is None]
            for i in free:
                places[i] = self._fill(i, waiting.popleft()) if waiting else None
            for i in (i for i, running in enumerate(places) if running is None):
                state.lengths[i] = 0
            if any(places[i] for i in free):
                self._derive()
            self._period(places)
            before = sum(len(running.ids) for running in places if running)
            self._read(places)
            on_period(sum(len(running.ids) for running in places if running) - before)
            ended = []
            for i, running in enumerate(places):
                answer = self._ended(running) if running else None
                if answer:
                    ended.append(answer)
                    places[i] = None
            if ended:
                yield ended

    def _fill(self, place: int, item: Item) -> Running:
        """Prefill a prompt and draw the answer's first token, which is pending afterwards."""
        decoder, state = self.engine.decoder, self.engine.state
        room = item.room(self.max_tokens, decoder.config.context)
        numbers = stream(self.seed, item.problem.set, item.problem.id, item.sample, count=room + self.period)
        prompt = torch.tensor([item.prompt], dtype=torch.int64, device=decoder.device)
        logits = prefill(decoder, state.part(slice(place, place + 1)), prompt)
        first = choose(logits, self.sampling.sampling, numbers[:1].to(decoder.device))
        state.pending[place : place + 1].copy_(first)
        return Running(item, room, numbers, [int(first)])

    def _derive(self) -> None:
        """Summaries of what prefill wrote."""
        longest = int(self.engine.state.lengths.max())
        for layer in self._layers:
            layer.refresh(longest)

    def _period(self, places: list[Running | None]) -> None:
        table = torch.zeros(self.period, len(places))
        for i, running in enumerate(places):
            if running:
                table[:, i] = running.uniforms[len(running.ids) :][: self.period]
        self.sampling.uniforms[: self.period].copy_(table)
        self.engine.state.count.zero_()
        for _ in range(self.period):
            self._step()
        if self._rectify is not None:
            self._rectify()

    def _read(self, places: list[Running | None]) -> None:
        """Add the period's tokens. The first that was fed is known, the last is pending. Raises CheckFailed."""
        self._watch.check()
        state = self.engine.state
        drawn = torch.cat((state.history[1 : self.period], state.pending[None])).t().tolist()
        for running, ids in zip(places, drawn, strict=True):
            if running:
                running.ids += ids

    def _ended(self, running: Running) -> Answer | None:
        """The answer, cut where it ends or where its room does; None while it goes on."""
        end = next((i for i, token in enumerate(running.ids) if token in self.ends), None)
        finished = end is not None and end < running.room
        if not finished and len(running.ids) < running.room:
            return None
        kept = running.ids[: end + 1 if finished and end is not None else running.room]
        return Answer(running.item, tuple(kept), finished, time.monotonic() - running.began)
