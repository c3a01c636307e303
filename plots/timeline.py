"""A traced step and rectification, kernel by kernel: one lane a stage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..suites.core.rows import upgraded_facts
from ..suites.core.stages import FUSED, place
from .stage_style import fill
from .style import WIDTHS_IN, finish, paper, save

ZOOM_KERNELS = 18  # of a step with more kernels than MANY, about two layers, are drawn apart
MANY = 40
LANE_IN = 0.17
LEAST = 1 / 700  # of a panel's width: a narrower bar is drawn that wide, or it would vanish between two dots


def draw_timeline(table: Path, facts: Path, stem: Path) -> list[Path]:
    """Write `stem`.png and `stem`.svg.

    Args:
        table: CSV of kind, launch, stage, kernel, start_us, end_us (`profile nsys` writes it as timeline.csv).
        facts: the JSON beside it: case, label, source, environment.
    """
    with paper():
        return save(timeline(pd.read_csv(table), upgraded_facts(json.loads(facts.read_text()))), stem)


def timeline(kernels: pd.DataFrame, facts: dict[str, Any]) -> Figure:
    """A panel for each pass, and for a long step one more for its middle."""
    shown: list[tuple[str, pd.DataFrame, list[str], float]] = []  # title, kernels, lanes, microseconds a unit
    for kind, launched in kernels.groupby("kind", sort=False):
        launched = launched.assign(turn_us=launched.start_us.clip(lower=launched.end_us.cummax().shift(fill_value=0)))
        names = sorted(launched.stage.unique(), key=place)
        launch = "replayed" if (launched.launch == "graph").all() else "launched from Python"
        long = launched.end_us.max() > 2000
        unit = 1e3 if long else 1.0
        length = f"{launched.end_us.max() / unit:.4g} {'ms' if long else 'µs'}"
        shown.append((f"one {kind}, {launch}, {length}", launched, names, unit))
        if kind == "step" and len(launched) > MANY:
            middle = len(launched) // 2
            part = launched.iloc[middle : middle + ZOOM_KERNELS]
            inner = [name for name in names if name in set(part.stage)]
            shown.append((f"from its middle: {len(part)} kernels of {len(launched)}", part, inner, 1.0))
    heights = [LANE_IN * len(names) + 0.62 for _, _, names, _ in shown]
    fig = Figure(figsize=(WIDTHS_IN[2], sum(heights)), layout="constrained")
    axes = fig.subplots(len(shown), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    thin: list[str] = []
    for ax, (title, part, names, unit) in zip(axes, shown, strict=True):
        least_us = (part.end_us.max() - part.start_us.min()) * LEAST
        narrow = int((part.end_us - part.turn_us < least_us).sum())
        thin += [f"{narrow} of {len(part)} ({title}) below {least_us:.2g} µs"] if narrow else []
        _lanes(ax, part, names, unit, least_us)
        ax.set_title(title)
        ax.set_xlabel("ms" if unit > 1 else "µs")
    widened = f" Bars are drawn {LEAST:.2%} of the axis wide at least: {'; '.join(thin)}." if thin else ""
    where = facts["environment"]
    commit = (where.get("commit") or "unversioned")[:10] + ("-dirty" if where.get("dirty") else "")
    caption = (
        f"{where['device']}, torch {where['torch']}, Triton {where['triton']}, commit {commit}; "
        f"{facts['source']}, node by node: each kernel takes longer to start than untraced "
        f"({facts['untraced_us']:.1f} µs a step). A thin line is a kernel that was let in early and waits for its turn."
        f"{widened}"
    )
    return finish(fig, f"{facts['case']}, {facts['label']}: kernels by stage", caption)


def _lanes(ax: Axes, part: pd.DataFrame, names: Sequence[str], unit: float, least_us: float) -> None:
    """A lane a stage. A kernel's turn is at least `least_us` wide; its wait before that is a thin line."""
    start = part.start_us.min()
    for y, name in enumerate(names):
        lane = part[part.stage == name]
        colour = fill(name if name == FUSED else name.split("+")[-1])["facecolor"]
        for begin, height, alpha in ((lane.start_us, 0.2, 0.5), (lane.turn_us, 0.8, 1.0)):
            bars = [((a - start) / unit, max(b - a, least_us) / unit) for a, b in zip(begin, lane.end_us, strict=True)]
            ax.broken_barh(
                bars, (y - height / 2, height), facecolors=colour, alpha=alpha, edgecolor=colour, linewidth=0.3
            )
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xlim(0, (part.end_us.max() - start) / unit)
    ax.grid(axis="y", visible=False)
