"""Figures by name and the sets of rows they are drawn from: one file a figure, each module of this package looked into.

Modules of a user's own (suites/core/plugins.py) register theirs the same way: `@figure` on a function from one set to a
figure, and for another suite `@figure_sets` on a function from all rows to that suite's sets.
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TypeVar

from matplotlib.figure import Figure

from ..suites.core.rows import Row


class FigureData(Protocol):
    """What one figure is drawn from. A set may have `notes`, too: lines that are printed."""

    @property
    def slug(self) -> str:
        """The end of the file's name, after the figure's."""
        ...


Draw = TypeVar("Draw", bound=Callable[[Any], Figure])
Make = TypeVar("Make", bound=Callable[[Sequence[Row]], Sequence[FigureData]])


@dataclass(frozen=True, slots=True)
class SetMaker:
    """The function that makes the sets of a suite, and in words which rows it needs."""

    make: Callable[[Sequence[Row]], Sequence[FigureData]]
    needs: str


_figures: dict[str, tuple[str, Callable[[Any], Figure]]] = {}
_makers: dict[str, SetMaker] = {}


def figure(name: str, *, suite: str) -> Callable[[Draw], Draw]:
    """Decorator: draw this figure, in files called `name`-..., of each set of a suite.

    The function raises NotDrawn (plots/data.py) for a set that does not allow it.

    Raises:
        ValueError: the name is taken.
    """

    def add(draw: Draw) -> Draw:
        if name in _figures:
            raise ValueError(f"figure {name!r} is there already; give another name")
        _figures[name] = suite, draw
        return draw

    return add


def figure_sets(suite: str, *, needs: str) -> Callable[[Make], Make]:
    """Decorator: the function makes the sets of a suite. Raises ValueError where the suite has such a function."""

    def add(make: Make) -> Make:
        if suite in _makers:
            raise ValueError(f"suite {suite!r} has a function that makes its sets")
        _makers[suite] = SetMaker(make, needs)
        return make

    return add


def discover() -> None:
    """Import every module of this package, so that what it registers is known."""
    package = __package__ or ""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        import_module(f"{package}.{module.name}")


def figures_of(suite: str) -> dict[str, Callable[[Any], Figure]]:
    """The figures of a suite's sets, by name."""
    discover()
    return {name: draw for name, (owner, draw) in _figures.items() if owner == suite}


def set_makers() -> dict[str, SetMaker]:
    """What makes the sets, by suite."""
    discover()
    return dict(_makers)


def slug(words: str) -> str:
    """A file name of these words: lower-case letters, digits, dots and dashes, so that it names no other folder."""
    return re.sub(r"[^a-z0-9.]+", "-", words.lower()).strip("-.")


def slugs(keys: Sequence[tuple[str, ...]]) -> list[str]:
    """A slug for each: its first word, and those of the others that tell it from keys of the same first word."""
    named = []
    for key in keys:
        alike = [other for other in keys if other[0] == key[0]]
        differing = [word for i, word in enumerate(key) if i == 0 or len({other[i] for other in alike}) > 1]
        named.append(slug("-".join(differing)))
    return named
