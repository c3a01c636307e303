"""Lists that columns point into by number: suites, cases, stages, variants with their names and looks."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Generic, TypeVar

from ...suites.core.looks import TITLES, Look, look_of, looks
from ...suites.core.rows import Row
from ...suites.core.spec import Names, Variant, steps_of
from ..data import order

T = TypeVar("T", bound=Hashable)


class Listed(Generic[T]):
    """Values by number, in the order of first use."""

    def __init__(self) -> None:
        self._numbers: dict[T, int] = {}

    def number(self, value: T) -> int:
        """The value's place in the list."""
        return self._numbers.setdefault(value, len(self._numbers))

    @property
    def values(self) -> list[T]:
        """All of them."""
        return list(self._numbers)


class Variants:
    """The variants of a page: named and coloured within their suite, as its tables and figures do."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._numbers: dict[tuple[str, Variant], int] = {}
        self.entries: list[dict[str, Any]] = []
        self.methods: Listed[str] = Listed()
        for suite in dict.fromkeys(row.suite for row in rows):
            of_suite = [row for row in rows if row.suite == suite]
            names = Names(of_suite, TITLES)
            variants = sorted({row.variant for row in of_suite}, key=order)
            for variant, look in looks(variants).items():
                self._numbers[suite, variant] = len(self.entries)
                self.entries.append(self._entry(names.of(variant), variant, look))

    def _entry(self, name: str, variant: Variant, look: Look) -> dict[str, Any]:
        title = look_of(variant.method).title or variant.method
        drawn = look_entry(look)
        kind = {"dense": variant.is_dense, "resa": steps_of(variant.method) == "resa"}
        return {"name": name, "method": self.methods.number(title), **kind, **drawn}

    def number(self, row: Row) -> int:
        """The place of a row's variant in `entries`."""
        return self._numbers[row.suite, row.variant]


def look_entry(look: Look) -> dict[str, Any]:
    """A look as the page draws it: its colour on light and on dark ground, marker, dashes in line widths."""
    dashes = [] if isinstance(look.linestyle, str) else list(look.linestyle[1])
    return {"colour": look.colour, "dark": on_dark(look.colour), "marker": look.marker, "dashes": dashes}


def on_dark(colour: str) -> str:
    """A `#RRGGBB` colour as it stands on dark ground: greys mirrored, other dark hues lightened."""
    channels = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    if len(set(channels)) == 1:
        channels = [round(245 - 0.8 * channels[0])] * 3
    else:
        brightness = (0.3 * channels[0] + 0.59 * channels[1] + 0.11 * channels[2]) / 255
        towards_white = max(0.0, 0.58 - brightness)
        channels = [round(c + (255 - c) * towards_white) for c in channels]
    return "#" + "".join(f"{c:02X}" for c in channels)


def packed(values: Iterable[Any]) -> str:
    """A column of numbers as one string: separated by commas, nothing where there is none."""

    def word(value: Any) -> str:
        if value is None:
            return ""
        return f"{value:g}" if isinstance(value, float) else str(value)

    return ",".join(map(word, values))
