"""Other people's software that decodes a case's model: what a client gives, and where it is found.

A client is a module of `integrations`, imported when its name is asked for. It registers methods of its own (its
dense rivals), and gives the contenders of each method, which stand on the case's own caches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

from torch import Tensor

from ...kernels import Layer, NotHere, StepTensors
from ..core.spec import MethodSpec
from ..model.decoder import Decoder
from .engine import State

ENGINE = "engine"
CLIENTS = {"transformers": "resa_bench.integrations.transformers.client"}
"""Clients by name, and the module of each."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A method in a client's hands.

    Attributes:
        stand: hold so many tokens, `pending` `[B]` next; also what the state's lengths say.
        step: feed the pending token; gives its logits `[B, vocab]`.
        rectify: of a method that rectifies: the steps since the last one.
        watch: call something of every sparse layer, its number and its step's tensors, as soon as it has attended;
            of eager steps alone.
    """

    stand: Callable[[int, Tensor], None]
    step: Callable[[], Tensor]
    rectify: Callable[[], object] | None = None
    watch: Callable[[Callable[[int, Layer, StepTensors], None]], None] = lambda observe: None


Contenders = Iterator[tuple[str, Callable[[], Contender]]]


class Client(Protocol):
    """What a client's module has."""

    METHODS: tuple[str, ...]
    """Dense methods of its own, by registered name."""

    def contenders(self, decoder: Decoder, state: State, spec: MethodSpec) -> Contenders:
        """How a method may be launched, the fastest first, and what makes each contender.

        Launches: "compiled" (a graph of compiled code), "graph", "eager". Making one raises Unsupported or NotHere.
        """


def load_client(name: str) -> Client:
    """The client of that name. Raises NotHere where its library is not installed, with the command."""
    try:
        return import_module(CLIENTS[name])  # type: ignore[return-value]
    except ModuleNotFoundError as error:
        raise NotHere(f"--client {name}: {error.name} is not here; pip install -e '.[{name}]'") from None
