"""The pages: which files hold marked places, filling them in, and checking them."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path

from .marks import Places, differing, fill
from .prose import unmarked

PLACES = "docs/places.toml"
FILLED = ("README.md", "docs/*.md", "docs/results/*.md", "docs/notes/*.md", "results/*/README.md")
RULED = ("README.md", "docs/results/*.md", "results/*/README.md")
"""Pages whose prose carries no measured number outside marked places."""


def read_places(root: Path) -> Places:
    """What docs/places.toml says. Raises OSError, or ValueError for a file that is no TOML."""
    return Places(root, tomllib.loads((root / PLACES).read_text(encoding="utf-8")))


def pages(root: Path, patterns: tuple[str, ...] = FILLED) -> Iterator[Path]:
    """The files of these patterns, in order."""
    for pattern in patterns:
        yield from sorted(root.glob(pattern))


def fill_pages(places: Places) -> list[Path]:
    """Fill in every page; those that changed. Raises PlaceError before any page is written."""
    texts = {page: page.read_text(encoding="utf-8") for page in pages(places.root)}
    filled = {page: fill(text, places, page) for page, text in texts.items()}
    changed = [page for page, text in texts.items() if filled[page] != text]
    for page in changed:
        page.write_text(filled[page], encoding="utf-8")
    return changed


def check_pages(places: Places) -> list[str]:
    """Places that differ from their rows, and numbers in prose, a line each. Raises PlaceError."""
    faults = []
    for page in pages(places.root):
        text, name = page.read_text(encoding="utf-8"), page.relative_to(places.root)
        faults += [f"{name}: {fault}" for fault in differing(text, fill(text, places, page))]
    for page in pages(places.root, RULED):
        name = page.relative_to(places.root)
        for line, number in unmarked(page.read_text(encoding="utf-8")):
            faults.append(f"{name}:{line}: {number!r} stands outside a marked place; mark it as a value, or as fixed")
    return faults
