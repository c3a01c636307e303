"""Free decoding beside dense: who still says the same after how many tokens, who copies, who finds the needle where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..suites.core.analysis import share_error
from ..suites.core.looks import DOTTED, Look, looks
from ..suites.core.rows import Row
from ..suites.core.spec import Names
from .caption import circumstances
from .data import NotDrawn, order
from .registry import figure, figure_sets, slugs
from .style import context_axis, finish, legend_line, names_of, panels, tokens

CHUNK = "chunk"  # stage of answers that came of whole chunks, a dense method's second line
_SPREAD = 1.03  # between neighbours, so that error bars stand side by side

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
    """Survival over tokens, key-copy by context, needles by depth; a panel whose task was not run says so.

    Raises:
        NotDrawn: nothing but dense decoding was measured.
    """
    if len({row.method for row in figures.rows}) < 2:
        raise NotDrawn("dense decoding alone leaves nothing to compare")
    rows = sorted(figures.rows, key=lambda row: (order(row.variant), row.stage == CHUNK))
    names, by_variant = names_of(rows), looks(dict.fromkeys(row.variant for row in rows))
    styles: dict[str, Look] = {}
    for row in rows:
        look = by_variant[row.variant]
        chunked = replace(look, marker="", linestyle=DOTTED)
        styles[_name(row, names)] = chunked if row.stage == CHUNK else look
    fig, axes, _ = panels(3, height_in=2.5, share_y=False)
    drawers = {"divergence": _survival, "copy": _copies, "needle": _needles}
    for ax, (task, draw) in zip(axes, drawers.items(), strict=True):
        of_task = figures.of(task)
        lines = {name: [row for row in of_task if _name(row, names) == name] for name in styles}
        lines = {name: own for name, own in lines.items() if own}
        if lines:
            draw(ax, lines, styles)
        else:
            ax.text(0.5, 0.5, f"{task} was not run", ha="center", transform=ax.transAxes)
            ax.set_axis_off()
    legend = [legend_line(look, name) for name, look in styles.items()]
    note = "dense prefill; questions and answers are steps of the method; bars: one standard error"
    title = f"{figures.model}: free decoding and retrieval beside dense decoding"
    return finish(fig, title, legend, circumstances(figures.rows, note))


def _name(row: Row, names: Names) -> str:
    return f"{names[row]} in chunks" if row.stage == CHUNK else names[row]


def _survival(ax: Axes, lines: Lines, styles: dict[str, Look]) -> None:
    longest = max(row.context for own in lines.values() for row in own)
    first = next(row for own in lines.values() for row in own if row.context == longest)
    last = 1
    for name, own in lines.items():
        points = sorted((r for r in own if r.metric == "survival" and r.context == longest), key=lambda r: r.step or 0)
        xs, ys = [row.step or 0 for row in points], [row.value or 0.0 for row in points]
        look = styles[name]
        ax.plot(xs, ys, color=look.colour, marker=look.marker, ls=look.linestyle, markevery=2)
        last = max(last, *xs)
    ax.set_title("still equal to dense")
    ax.set_xlabel(f"tokens decoded, {first.n_samples} prompts of {tokens(longest)}")
    ax.set_ylabel("share of prompts")
    context_axis(ax, [2**i for i in range(last.bit_length())])
    ax.set_xlim(0.9, last * 1.1)
    ax.set_ylim(0, 1.05)


def _copies(ax: Axes, lines: Lines, styles: dict[str, Look]) -> None:
    contexts = sorted({row.context for own in lines.values() for row in own})
    count = max(row.n_samples or 0 for own in lines.values() for row in own if row.metric == "copy")
    for i, (name, own) in enumerate(lines.items()):
        points = sorted((row for row in own if row.metric == "copy"), key=lambda row: row.context)
        shift = _SPREAD ** (i - (len(lines) - 1) / 2)
        errors = [share_error(row.value or 0.0, row.n_samples or 1) for row in points]
        look = styles[name]
        ax.errorbar(
            [row.context * shift for row in points], [row.value or 0.0 for row in points], errors,
            color=look.colour, marker=look.marker, ls=look.linestyle, elinewidth=0.6,
        )  # fmt: skip
    context_axis(ax, contexts)
    ax.set_xlim(contexts[0] / 1.35, contexts[-1] * 1.35)
    ax.set_title(f"values copied exactly (of {count})")
    ax.set_xlabel("tokens of the list")
    ax.set_ylim(0, 1.05)


def _needles(ax: Axes, lines: Lines, styles: dict[str, Look]) -> None:
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
            dark = shares[-1][-1] > 0.6
            ax.text(x, y, f"{hits}/{asked}", ha="center", va="center", color="white" if dark else "black")
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    ax.grid(visible=False)
    ax.set_xticks(range(len(depths)), [f"{depth:g}" for depth in depths])
    shared = set.intersection(*(set(name.split()) for name in list(lines)[1:])) if len(lines) > 2 else set()
    ax.set_yticks(range(len(lines)), [" ".join(w for w in name.split() if w not in shared) for name in lines])
    ax.tick_params(length=0)
    ax.set_title(f"needles found, {' + '.join(map(tokens, contexts))}")
    ax.set_xlabel("depth of the needle")
