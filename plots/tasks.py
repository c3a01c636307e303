"""Free decoding beside dense: who still says the same after how many tokens, who copies, who finds what where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..suites.core.analysis import share_error
from ..suites.core.looks import DARK_GREY, DOTTED, GREY, Look, look_of
from ..suites.core.rows import Row
from .caption import circumstances
from .curves import MOST, Curve, draw_curves, full_names, name_of, short_names
from .data import NotDrawn, order, ranked
from .registry import figure, figure_sets, slugs
from .style import SMALL_PT, WIDTHS_IN, context_axis, finish, tokens

CHUNK = "chunk"  # stage of answers that came of whole chunks, a dense method's second line
CHUNK_LOOK = Look(GREY, "", DOTTED)
MARKERS = "osD^v<>P"  # of contexts
LINE_IN = 0.19
FIRST = ("divergence", "needle", "copy")  # that the first figure has
COLUMNS = 3

Lines = dict[str, list[Row]]
"""Rows by the name of their line."""


@dataclass(frozen=True, slots=True)
class TaskSet:
    """The rows of the tasks suite for one model on one device."""

    model: str
    device: str
    rows: list[Row]
    slug: str = ""

    def of(self, task: str) -> list[Row]:
        """Rows of a task: of each context the case with the most samples, of several the first measured."""
        rows = [row for row in self.rows if row.selection_pattern == task]
        chosen: dict[int, Row] = {}
        for row in rows:
            if row.context not in chosen or (row.n_samples or 0) > (chosen[row.context].n_samples or 0):
                chosen[row.context] = row
        return [row for row in rows if row.case == chosen[row.context].case]


@figure_sets("tasks", needs="values of suite 'tasks'")
def task_sets(rows: Sequence[Row]) -> list[TaskSet]:
    """A set a model and device."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.suite == "tasks" and row.value is not None:
            groups.setdefault((row.model, row.device or "device unknown"), []).append(row)
    named = slugs(list(groups))
    return [TaskSet(*key, group, name) for (key, group), name in zip(groups.items(), named, strict=True)]


@figure("tasks", suite="tasks")
def tasks(figures: TaskSet) -> Figure:
    """Survival over tokens of the main methods; key-copy and needles by depth of all; a task that was not run says so.

    Raises:
        NotDrawn: nothing but dense decoding was measured.
    """
    if len({row.method for row in figures.rows}) < 2:
        raise NotDrawn("dense decoding alone leaves nothing to compare")
    rows = [row for row in figures.rows if row.selection_pattern in FIRST]
    if not rows:
        raise NotDrawn("generated tasks alone have a figure of their own")
    rows.sort(key=lambda row: (order(row.variant), row.stage == CHUNK))
    names = short_names(rows)
    lines: Lines = {}
    for row in rows:
        lines.setdefault(names[row.variant] + (" in chunks" if row.stage == CHUNK else ""), []).append(row)
    answering = [name for name, line in lines.items() if any(row.metric in ("copy", "needle") for row in line)]
    fig = Figure(figsize=(WIDTHS_IN[3], 0.9 + LINE_IN * max(len(lines), 8)), layout="constrained")
    left, middle, right = fig.subplots(1, 3, width_ratios=(5, 4, 4))
    legend: list[Artist] = []
    for ax, task, draw in ((left, "divergence", _survival), (middle, "copy", _copies), (right, "needle", _needles)):
        kept = [id(row) for row in figures.of(task)]
        own = {name: [row for row in line if id(row) in kept] for name, line in lines.items()}
        if any(own.values()):
            legend += draw(ax, own if task == "divergence" else {name: own[name] for name in answering})
        else:
            ax.text(0.5, 0.5, f"{task} was not run", ha="center", transform=ax.transAxes)
            ax.set_axis_off()
    right.tick_params(labelleft=not middle.axison)
    alone = full_names(row for row in rows if names[row.variant] == name_of(row.variant))
    note = f"{alone}; dense prefill; questions and answers are steps of the method; bars: one standard error"
    title = f"{figures.model}: free decoding and retrieval beside dense decoding"
    return finish(fig, title, circumstances(rows, note), legend)


@figure("tasks-generated", suite="tasks")
def generated(figures: TaskSet) -> Figure:
    """A panel a generated task: a point a method and context, which is the score; bars: one standard error.

    Raises:
        NotDrawn: none was measured beside dense decoding.
    """
    names = [row.selection_pattern or "" for row in figures.rows if row.metric == row.selection_pattern]
    kinds = [name for name in dict.fromkeys(names) if name not in FIRST]
    rows = sorted((r for r in figures.rows if r.selection_pattern in kinds), key=lambda r: order(r.variant))
    if len({row.method for row in rows}) < 2:
        raise NotDrawn("no generated task was measured beside dense decoding (--task names them)")
    labels = short_names(rows)
    lines: Lines = {}
    for row in rows:
        lines.setdefault(labels[row.variant], []).append(row)
    depth = -(-len(kinds) // COLUMNS)
    fig = Figure(figsize=(WIDTHS_IN[3], depth * (0.6 + LINE_IN * max(len(lines), 5))), layout="constrained")
    axes = fig.subplots(depth, COLUMNS, squeeze=False).flat
    legend: dict[str, Artist] = {}
    for i, ax in enumerate(axes):
        if i >= len(kinds):
            ax.set_axis_off()
            continue
        kept = {id(row) for row in figures.of(kinds[i])}
        own = {name: [row for row in line if id(row) in kept] for name, line in lines.items()}
        legend |= {str(mark.get_label()): mark for mark in _scores(ax, own, kinds[i], kinds[i])}
        ax.tick_params(labelleft=i % COLUMNS == 0)
    note = "share of the right strings in the answer, as RULER scores them; dense prefill; bars: one standard error"
    title = f"{figures.model}: generated tasks beside dense decoding"
    return finish(fig, title, circumstances(rows, f"{full_names(rows)}; {note}"), list(legend.values()))


def _survival(ax: Axes, lines: Lines) -> list[Artist]:
    longest = max(row.context for own in lines.values() for row in own)
    points = {
        name: sorted((r for r in own if r.metric == "survival" and r.context == longest), key=lambda r: r.step or 0)
        for name, own in lines.items()
    }
    points = {name: own for name, own in points.items() if own}
    first = ranked(own[0].variant for own in points.values())
    rivals = sorted(
        (n for n, own in points.items() if own[0].variant in first), key=lambda n: first.index(points[n][0].variant)
    )
    chunked = [name for name, own in points.items() if own[0].stage == CHUNK][:1]
    curves = []
    for name in (*chunked, *rivals[: MOST - len(chunked)]):
        own = points[name]
        look = CHUNK_LOOK if name in chunked else look_of(own[0].method)
        label = name if name in chunked else name_of(own[0].variant)
        curves.append(Curve(label, look, [r.step or 0 for r in own], [r.value or 0.0 for r in own], (), every=2))
    draw_curves(ax, curves)
    last = int(max(curve.xs[-1] for curve in curves))
    ax.set_title("still equal to dense")
    ax.set_xlabel(f"tokens decoded, {next(iter(points.values()))[0].n_samples} prompts of {tokens(longest)}")
    ax.set_ylabel("share of prompts")
    context_axis(ax, [2**i for i in range(last.bit_length())])
    ax.set_xlim(0.9, last * 1.1)
    ax.set_ylim(0, 1.05)
    return []


def _copies(ax: Axes, lines: Lines) -> list[Artist]:
    """Copied values; the contexts' marks, for the legend where there are several."""
    count = max(row.n_samples or 0 for own in lines.values() for row in own if row.metric == "copy")
    return _scores(ax, lines, "copy", f"values copied exactly, of {count}")


def _scores(ax: Axes, lines: Lines, metric: str, title: str) -> list[Artist]:
    """A point a method and context; the contexts' marks, for the legend where there are several."""
    contexts = sorted({row.context for own in lines.values() for row in own})
    marks = {context: MARKERS[i % len(MARKERS)] for i, context in enumerate(contexts)}
    for y, own in enumerate(lines.values()):
        for row in (row for row in own if row.metric == metric):
            shift = 0.36 * (contexts.index(row.context) - (len(contexts) - 1) / 2) / len(contexts)
            error = max(row.value_error or 0.0, share_error(row.value or 0.0, row.n_samples or 1))
            colour = look_of(row.method).colour
            ax.errorbar(row.value or 0.0, y + shift, xerr=error, fmt=marks[row.context], color=colour, elinewidth=0.8)
    _names(ax, lines)
    ax.set_title(title)
    ax.set_xlabel(f"share{'' if len(contexts) > 1 else f', {tokens(contexts[0])} tokens'}")
    ax.set_xlim(-0.02, 1.02)
    ax.grid(visible=False, axis="y")
    if len(contexts) == 1:
        return []
    style = {"color": DARK_GREY, "linestyle": ""}
    return [Line2D([], [], marker=mark, label=f"{tokens(c)} tokens", **style) for c, mark in marks.items()]  # type: ignore[arg-type]


def _needles(ax: Axes, lines: Lines) -> list[Artist]:
    """A cell a method and depth, all contexts together: hits of those asked."""
    contexts = sorted({row.context for own in lines.values() for row in own})
    depths = sorted({row.depth for own in lines.values() for row in own if row.depth is not None})
    shares: list[list[float]] = []
    for y, own in enumerate(lines.values()):
        shares.append([])
        for x, depth in enumerate(depths):
            rows = [row for row in own if row.metric == "needle" and row.depth == depth]
            asked = sum(row.n_samples or 0 for row in rows)
            hits = round(sum((row.value or 0.0) * (row.n_samples or 0) for row in rows))
            shares[-1].append(hits / asked if asked else float("nan"))
            colour = "white" if shares[-1][-1] > 0.6 else "black"
            ax.text(x, y, f"{hits}/{asked}" if asked else "", ha="center", va="center", color=colour, fontsize=SMALL_PT)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    ax.grid(visible=False)
    ax.set_xticks(range(len(depths)), [f"{depth:g}" for depth in depths])
    _names(ax, lines)
    ax.set_title(f"needles found, {' + '.join(map(tokens, contexts))}")
    ax.set_xlabel("depth of the needle")
    return []


def _names(ax: Axes, lines: Lines) -> None:
    """The lines' names from above, one a row of the panel."""
    ax.set_yticks(range(len(lines)), list(lines))
    ax.set_ylim(len(lines) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
