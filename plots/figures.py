"""All figures that a set of result files allows."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from ..suites.core.rows import Row, read_rows
from .data import FigureSet, NotDrawn, figure_sets
from .decode_attention import decode_attention
from .decode_curves import decode_speedup, decode_tokens
from .decode_data import decode_sets
from .decode_periods import decode_periods
from .decode_stages import decode_stages
from .latency import latency
from .quality_data import QualitySet, quality_sets
from .quality_drift import quality_drift
from .quality_methods import quality_methods
from .quality_recall import quality_recall
from .quality_speed import quality_speed
from .roofline import roofline
from .speedup import speedup, speedup_amortised
from .stages import stages
from .style import paper, save
from .tasks import task_sets, tasks

FIGURES: dict[str, Callable[[FigureSet], Figure]] = {
    "speedup": speedup,
    "speedup-amortised": speedup_amortised,
    "latency": latency,
    "stages": stages,
    "roofline": roofline,
}
DECODE_FIGURES: dict[str, Callable[[FigureSet], Figure]] = {
    "decode-tokens": decode_tokens,
    "decode-speedup": decode_speedup,
    "decode-stages": decode_stages,
    "decode-attention": decode_attention,
    "decode-periods": decode_periods,
}
QUALITY_FIGURES: dict[str, Callable[[QualitySet], Figure]] = {
    "quality-drift": quality_drift,
    "quality-recall": quality_recall,
    "quality-methods": quality_methods,
}
NEEDED = (
    "no timed row of suite 'micro' with cache_state 'cold' and a random selection, "
    "no whole step of suite 'decode' with tokens_per_s, and no value of suite 'quality' or 'tasks'"
)


def draw_all(result_paths: Sequence[Path], out_dir: Path) -> list[Path]:
    """Draw every figure the rows allow, as PNG and SVG, and print a line for each that they do not.

    Args:
        result_paths: JSON Lines files of rows; a folder stands for every `*.jsonl` and `*.jsonl.gz` in it.
        out_dir: where to write, made if need be. Files are named `speedup-qwen2.5-7b.png` after rows of the micro
            suite and `decode-speedup-qwen2.5-7b.png` after rows of the decode suite; the device, or the dtype, is
            added where one model was measured on several. `quality-drift-`, `quality-recall-` and `quality-methods-`
            go by the case; where rows of the decode suite have the same methods, `quality-speed-` brings both together.

    Returns:
        The files written.

    Raises:
        FileNotFoundError: a path is neither a file nor a folder.
        ValueError: a line is not a row, or no figure could be drawn.
    """
    files = result_files(result_paths)
    rows: list[Row] = [row for path in files for row in read_rows(path)]
    micro, decode = figure_sets(rows), decode_sets(rows)
    for note in (*micro[1], *decode[1]):
        print(f"note: {note}")
    written: list[Path] = []
    reasons: list[str] = []

    def attempt(name: str, draw: Callable[[], Figure]) -> None:
        try:
            written.extend(save(draw(), out_dir / name))
        except NotDrawn as reason:
            reasons.append(f"{name}: {reason}")
            print(f"skipped {reasons[-1]}")

    with paper():
        for draws, sets in ((FIGURES, micro[0]), (DECODE_FIGURES, decode[0])):
            for figures in sets:
                slug = _slug(figures, sets)
                for name, draw in draws.items():
                    attempt(f"{name}-{slug}", partial(draw, figures))
        for quality in quality_sets(rows):
            slug = quality.case.removeprefix("quality-")
            for name, draw_quality in QUALITY_FIGURES.items():
                attempt(f"{name}-{slug}", partial(draw_quality, quality))
            for figures in decode[0]:
                name = f"quality-speed-{slug}-on-{_slug(figures, decode[0])}"
                attempt(name, partial(quality_speed, quality, figures))
        found = task_sets(rows)
        for task_set in found:
            several = sum(other.model == task_set.model for other in found) > 1
            name = f"tasks-{task_set.model}" + (f" {task_set.device}" if several else "")
            attempt(re.sub(r"[^a-z0-9.]+", "-", name.lower()), partial(tasks, task_set))
    if not written:
        raise ValueError(f"no figure from {len(rows)} rows in {len(files)} files: {'; '.join(reasons) or NEEDED}")
    return written


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


def _slug(figures: FigureSet, sets: Sequence[FigureSet]) -> str:
    others = [other for other in sets if other.model == figures.model]
    parts = [figures.model]
    if len({other.device for other in others}) > 1:
        parts.append(figures.device or "unknown device")
    if len({other.dtype for other in others}) > 1:
        parts.append(figures.dtype or "unknown dtype")
    return re.sub(r"[^a-z0-9.]+", "-", "-".join(parts).lower()).strip("-")
