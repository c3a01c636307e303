"""Marks on the parts of a step. They cost next to nothing unless somebody listens.

The stage names are those of docs/measuring.md. Marks set while a CUDA graph is captured do not show in its replays:
`profiling.trace` carries them over from an eager pass.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

_listener: Callable[[str], AbstractContextManager[object]] | None = None
_nobody: AbstractContextManager[object] = nullcontext()


def mark(stage: str) -> AbstractContextManager[object]:
    """A range around a part of a step."""
    return _nobody if _listener is None else _listener(stage)


@contextmanager
def listening(listener: Callable[[str], AbstractContextManager[object]]) -> Iterator[None]:
    """Within this, every mark opens `listener(stage)`."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


class StageClock:
    """A listener that adds up wall time by stage: for devices without a queue. Marks must not nest."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = self._clock()
        try:
            yield
        finally:
            self.seconds[stage] += self._clock() - start
