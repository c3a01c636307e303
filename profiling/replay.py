"""A captured graph that keeps alive what it reads and writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class SomeGraph(Protocol):
    """A captured graph, as torch's."""

    def replay(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Replay:
    """A captured graph, called to run it again, and the owners of the tensors that it reads and writes.

    A graph knows addresses only: were its owners dropped, their memory would be given to others.
    """

    graph: SomeGraph
    owners: tuple[object, ...]

    def __call__(self) -> None:
        self.graph.replay()
