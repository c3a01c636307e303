"""Ranges around the parts of a run. They cost next to nothing unless somebody listens.

Two kinds: a *stage* (`mark`; the vocabulary of docs/measuring.md; stages do not nest) and, around stages, a *span*
(`span`: a step, a rectification, a layer). Ranges opened while a CUDA graph is captured do not show in its replays:
`profiling.timeline` carries stages over from an eager pass.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, Protocol

Span = Literal["step", "rectification", "layer"]
SPANS: tuple[Span, ...] = ("step", "rectification", "layer")
Open = AbstractContextManager[object]
Blocks = Callable[[int], int]
"""Blocks a stage selects or reads of a sequence of so many tokens."""


class Listener(Protocol):
    """Who opens ranges. A number given with a range is its payload."""

    def stage(self, name: str, blocks: Blocks | None) -> Open:
        """A range around a stage; `blocks` counts what it selects or reads of a sequence of so many tokens."""

    def span(self, name: Span, value: int | None) -> Open:
        """A range around stages; `value` is the context in tokens, or a layer's number."""


_listener: Listener | None = None
_nobody: Open = nullcontext()


def mark(stage: str, blocks: Blocks | None = None) -> Open:
    """A range around a stage; its payload is `blocks` of the context of the step around it."""
    return _nobody if _listener is None else _listener.stage(stage, blocks)


def span(name: Span, value: int | None = None) -> Open:
    """A range around stages: of a step or rectification, `value` is the context in tokens; of a layer, its number."""
    return _nobody if _listener is None else _listener.span(name, value)


def heard() -> bool:
    """Whether anybody listens: a loop too short for even an idle mark may ask once."""
    return _listener is not None


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Within this, every range is opened by `listener`."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


class Named:
    """A listener that opens `make(name)` for stages, and for spans too if asked."""

    def __init__(self, make: Callable[[str], Open], *, spans: bool = False) -> None:
        self._make, self._spans = make, spans

    def stage(self, name: str, blocks: Blocks | None) -> Open:
        """What `make` gives for the stage."""
        return self._make(name)

    def span(self, name: Span, value: int | None) -> Open:
        """What `make` gives for the span; nothing unless spans were asked for."""
        return self._make(name) if self._spans else _nobody


class StageClock:
    """A listener that adds up wall time by stage: for devices without a queue.

    Attributes:
        seconds: by stage.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def stage(self, name: str, blocks: Blocks | None = None) -> Iterator[None]:
        """A range whose wall time is added to the stage's."""
        start = self._clock()
        try:
            yield
        finally:
            self.seconds[name] += self._clock() - start

    def span(self, name: Span, value: int | None) -> Open:
        """Nothing: spans are not timed."""
        return _nobody
