"""Marked places of a Markdown file: `<!-- KIND NAME -->text<!-- / -->`, whose text follows from docs/places.toml.

Kinds are in KINDS; `value` stands within a line, the others between blank lines. `<!-- fixed -->text<!-- / -->` marks a
number that no row gives: a constant, another work's result.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .fronts import render_front
from .numbers import PlaceError, Sources, write
from .printed import render_printed
from .runs import render_run, render_spread
from .tables import render

FIXED = "fixed"
MARK = re.compile(r"<!-- (?P<kind>[a-z]+)(?: (?P<name>[\w.-]+))? -->(?P<text>.*?)<!-- / -->", re.DOTALL)
INLINE = ("value", FIXED)


@dataclass(frozen=True, slots=True)
class Places:
    """What docs/places.toml says. `root`: the folder that its paths start from."""

    root: Path
    entries: Mapping[str, Mapping[str, Any]]  # by kind, then by name; `files` and `conditions` among the kinds

    @property
    def sources(self) -> Sources:
        """Where their numbers come from."""
        return Sources(self.root, self.entries.get("files", {}), self.entries.get("conditions", {}))

    def text(self, kind: str, name: str, page: Path) -> str:
        """What stands at a place of `page`. Raises PlaceError for a kind or name that is not there, or at fault."""
        if kind not in KINDS:
            raise PlaceError(f"{kind} {name}: unknown kind; known are {', '.join((*KINDS, FIXED))}")
        entry = self.entries.get(kind, {}).get(name)
        if entry is None:
            raise PlaceError(f"{kind} {name}: docs/places.toml has no [{kind}.{name}]")
        try:
            return KINDS[kind](entry, self, page)
        except PlaceError as error:
            raise PlaceError(f"{kind} {name}: {error}") from None


def _figure(entry: Mapping[str, Any], places: Places, page: Path) -> str:
    """The image; its file is checked elsewhere (drawn.py)."""
    path = places.root / entry["file"]
    if not path.is_file():
        raise PlaceError(f"no figure at {entry['file']}; nox -s docs draws those that the rows give")
    return f"![{entry['alt']}]({Path(os.path.relpath(path, page.parent)).as_posix()})"


KINDS: dict[str, Callable[[Mapping[str, Any], Places, Path], str]] = {
    "value": lambda entry, places, page: write(entry, places.sources),
    "table": lambda entry, places, page: render(entry, places.sources),
    "front": lambda entry, places, page: render_front(entry, places.sources),
    "figure": _figure,
    "printed": lambda entry, places, page: render_printed(entry, places.sources),
    "run": lambda entry, places, page: render_run(places.root / entry["folder"]),
    "spread": lambda entry, places, page: render_spread([places.root / folder for folder in entry["folders"]]),
}
"""What writes each kind of place."""


def fill(text: str, places: Places, page: Path) -> str:
    """A page's text with every marked place as its rows give it.

    Raises:
        PlaceError: places that cannot be filled in, all of them, a line each.
    """
    faults: list[str] = []

    def filled(match: re.Match[str]) -> str:
        kind, name = match["kind"], match["name"] or ""
        if kind == FIXED:
            return match[0]
        try:
            new = places.text(kind, name, page)
        except PlaceError as error:
            faults.append(f"{page.name}: {error}")
            return match[0]
        space = "" if kind in INLINE else "\n\n"
        return f"<!-- {kind} {name} -->{space}{new}{space}<!-- / -->"

    new_text = MARK.sub(filled, text)
    if faults:
        raise PlaceError("\n".join(faults))
    return new_text


def differing(old: str, new: str) -> list[str]:
    """The places of a page that are not as their rows give them, with both texts."""
    pairs = zip(MARK.finditer(old), MARK.finditer(new), strict=True)
    return [
        f"{a['kind']} {a['name']}: the page has {_short(a['text'])}, the rows give {_short(b['text'])}"
        for a, b in pairs
        if a["text"] != b["text"]
    ]


def _short(text: str) -> str:
    words = " ".join(text.split())
    return repr(words if len(words) <= 60 else words[:57] + "...")
