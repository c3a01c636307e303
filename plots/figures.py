"""All figures that a set of result files allows."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..suites.core.report import counted
from ..suites.core.results import read_rows
from ..suites.core.rows import Row
from ..suites.core.terminal import visible
from .data import NotDrawn
from .registry import figures_of, set_makers, slug
from .style import paper, save


class NoFigure(ValueError):
    """The rows allow no figure at all; the message says why, or what is needed."""


def draw_all(result_paths: Sequence[Path], out_dir: Path) -> list[Path]:
    """Draw every figure the rows allow, as PNG and SVG, and print a line for each that they do not.

    Args:
        result_paths: JSON Lines files of rows; a folder stands for every `*.jsonl` and `*.jsonl.gz` in it.
        out_dir: where to write, made if need be. Files are named by figure and set: `speedup-qwen2.5-7b.png`,
            `decode-speedup-qwen2.5-7b.png`; the device, the dtype or the kind of cache is added where one model was
            measured with several. Figures of quality go by the case.

    Returns:
        The files written.

    Raises:
        FileNotFoundError: a path is neither a file nor a folder.
        ValueError: a line is not a row.
        NoFigure: no figure could be drawn.
    """
    files = result_files(result_paths)
    rows = [legible(row) for path in files for row in read_rows(path)]
    written: list[Path] = []
    reasons: list[str] = []
    times: Counter[str] = Counter()
    with paper(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+")  # a name's letter that the font has not: a box
        for suite, maker in set_makers().items():
            for data in maker.make(rows):
                for note in getattr(data, "notes", ()):
                    print(f"note: {note}")
                for figure, draw in figures_of(suite).items():
                    name = slug(f"{figure}-{data.slug}")
                    times[name] += 1
                    name += f"-{times[name]}" if times[name] > 1 else ""  # two sets of one slug
                    try:
                        written.extend(save(draw(data), out_dir / name))
                    except NotDrawn as reason:
                        reasons.append(f"{name}: {reason}")
                        print(f"skipped {reasons[-1]}")
    if not written:
        needed = "; ".join(f"no {maker.needs}" for maker in set_makers().values())
        read = f"{counted(len(rows), 'row')} in {counted(len(files), 'file')}"
        raise NoFigure(f"no figure from {read}: {'; '.join(reasons) or needed}")
    return written


def legible(row: Row) -> Row:
    """The row with control characters of its texts written out: they end an SVG, and a terminal obeys them."""
    texts: dict[str, Any] = {
        name: visible(text) for name, text in vars(row).items() if isinstance(text, str) and not text.isprintable()
    }
    return replace(row, **texts) if texts else row


def result_files(paths: Sequence[Path]) -> list[Path]:
    """The files themselves, folders replaced by their `*.jsonl` and `*.jsonl.gz`."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted((*path.glob("*.jsonl"), *path.glob("*.jsonl.gz")))
            if not inside:
                raise ValueError(f"no *.jsonl in {path}")
            files += inside
        else:
            files.append(path)
    return list(dict.fromkeys(files))
