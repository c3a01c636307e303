"""Free decoding beside dense: who still says the same after how many tokens, who copies, who finds the needle where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..suites.core.rows import Row
from ..suites.tasks.divergence import share_error
from ..suites.tasks.table import label, several_ratios
from .caption import circumstances
from .data import FUSED, NotDrawn
from .style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    Look,
    context_axis,
    finish,
    legend_line,
    panels,
    tokens,
)

_DASHED, _DOTTED, _DASHDOT = (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2))
_PERIODS = ((VERMILLION, "o"), (ORANGE, "s"), (PURPLE, "^"), (GREEN, "D"), (BLUE, "v"))
_OTHERS = {"sparse": Look(BLACK, "x", _DASHED), "sink-window": Look(SKY, "X", _DOTTED)}
_SPREAD = 1.03  # between neighbours, so that error bars stand side by side


@dataclass(frozen=True, slots=True)
class TaskSet:
    """The rows of the tasks suite for one model on one device."""

    model: str
    device: str
    rows: list[Row]

    def of(self, task: str) -> list[Row]:
        """Rows of a task: of each context the case with the most samples, of several the first measured."""
        mine = [row for row in self.rows if row.selection_pattern == task]
        chosen: dict[int, str] = {}
        for context in {row.context for row in mine}:
            sizes: dict[str, int] = {}
            for row in mine:
                if row.context == context:
                    sizes[row.case] = max(sizes.get(row.case, 0), row.n_samples or 0)
            chosen[context] = max(sizes, key=lambda case: sizes[case])
        return [row for row in mine if row.case == chosen[row.context]]


def task_sets(rows: Sequence[Row]) -> list[TaskSet]:
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.suite == "tasks" and row.value is not None:
            found.setdefault((row.model, row.device or "device unknown"), []).append(row)
    return [TaskSet(*key, mine) for key, mine in found.items()]


def tasks(figures: TaskSet) -> Figure:
    """Survival over tokens, key-copy by context, needles by depth; a panel whose task was not run says so.

    Raises:
        NotDrawn: nothing but dense decoding was measured.
    """
    ratios = several_ratios(figures.rows)
    names = list(dict.fromkeys(label(row, ratios) for row in figures.rows))
    if len({row.method for row in figures.rows}) < 2:
        raise NotDrawn("dense decoding alone leaves nothing to compare")
    looks = _looks(figures.rows, ratios)
    fig, axes, _ = panels(3, height_in=2.5, share_y=False)
    by_task = {
        task: {name: [row for row in rows if label(row, ratios) == name] for name in names}
        for task in ("divergence", "copy", "needle")
        for rows in [figures.of(task)]
    }
    drawers = {"divergence": _survival, "copy": _copies, "needle": _needles}
    for ax, (task, lines) in zip(axes, by_task.items(), strict=True):
        kept = {name: mine for name, mine in lines.items() if mine}
        if kept:
            drawers[task](ax, kept, looks)
        else:
            ax.text(0.5, 0.5, f"{task} was not run", ha="center", transform=ax.transAxes)
            ax.set_axis_off()
    legend = [legend_line(looks[name], name) for name in names]
    note = "dense prefill; questions and answers are steps of the method; bars: one standard error"
    title = f"{figures.model}: free decoding and retrieval beside dense decoding"
    return finish(fig, title, legend, circumstances(figures.rows, note))


def _survival(ax: Axes, lines: dict[str, list[Row]], looks: dict[str, Look]) -> None:
    longest = max(row.context for mine in lines.values() for row in mine)
    first = next(row for mine in lines.values() for row in mine if row.context == longest)
    last = 1
    for name, mine in lines.items():
        found = sorted((r for r in mine if r.metric == "survival" and r.context == longest), key=lambda r: r.step or 0)
        xs, ys = [row.step or 0 for row in found], [row.value or 0.0 for row in found]
        look = looks[name]
        ax.plot(xs, ys, color=look.colour, marker=look.marker, ls=look.linestyle, markevery=2)
        last = max(last, *xs)
    ax.set_title(f"still equal to dense ({first.n_samples} prompts of {tokens(longest)})")
    ax.set_xlabel("tokens decoded")
    ax.set_ylabel("share of prompts")
    context_axis(ax, [2**i for i in range(last.bit_length())])
    ax.set_xlim(0.9, last * 1.1)
    ax.set_ylim(0, 1.05)


def _copies(ax: Axes, lines: dict[str, list[Row]], looks: dict[str, Look]) -> None:
    contexts = sorted({row.context for mine in lines.values() for row in mine})
    count = max(row.n_samples or 0 for mine in lines.values() for row in mine if row.metric == "copy")
    for i, (name, mine) in enumerate(lines.items()):
        found = sorted((row for row in mine if row.metric == "copy"), key=lambda row: row.context)
        shift = _SPREAD ** (i - (len(lines) - 1) / 2)
        errors = [share_error(row.value or 0.0, row.n_samples or 1) for row in found]
        look = looks[name]
        ax.errorbar(
            [row.context * shift for row in found], [row.value or 0.0 for row in found], errors,
            color=look.colour, marker=look.marker, ls=look.linestyle, elinewidth=0.6,
        )  # fmt: skip
    context_axis(ax, contexts)
    ax.set_xlim(contexts[0] / 1.35, contexts[-1] * 1.35)
    ax.set_title(f"values copied exactly (of {count})")
    ax.set_xlabel("tokens of the list")
    ax.set_ylim(0, 1.05)


def _needles(ax: Axes, lines: dict[str, list[Row]], looks: dict[str, Look]) -> None:
    """A cell a method and depth, all contexts together: found of asked."""
    contexts = sorted({row.context for mine in lines.values() for row in mine})
    depths = sorted({row.depth for mine in lines.values() for row in mine if row.depth is not None})
    shares: list[list[float]] = []
    for y, mine in enumerate(lines.values()):
        shares.append([])
        for x, depth in enumerate(depths):
            found = [row for row in mine if row.metric == "needle" and row.depth == depth]
            asked = sum(row.n_samples or 0 for row in found)
            hits = round(sum((row.value or 0.0) * (row.n_samples or 0) for row in found))
            shares[-1].append(hits / asked if asked else float("nan"))
            dark = shares[-1][-1] > 0.6
            ax.text(x, y, f"{hits}/{asked}", ha="center", va="center", color="white" if dark else "black")
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    ax.grid(visible=False)
    ax.set_xticks(range(len(depths)), [f"{depth:g}" for depth in depths])
    ax.set_yticks(range(len(lines)), [_short(name) for name in lines])
    ax.tick_params(length=0)
    ax.set_title(f"needles found, {' + '.join(map(tokens, contexts))}")
    ax.set_xlabel("depth of the needle")


def _short(name: str) -> str:
    """Without what all of them share: the block size, and where a method is computed."""
    return " ".join(word for word in name.split() if not (word[0] == "b" and word[1:].isdigit()))


def _looks(rows: Sequence[Row], ratios: bool) -> dict[str, Look]:
    """Dense grey, ReSA solid with a colour a period, its one kernel and sparse steps alone dashed, others dotted."""
    periods = sorted({row.rectify_every for row in rows if row.rectify_every})
    others = iter(((BLUE, "v"), (BLUE, "D"), (GREEN, "P"), (PURPLE, "p"), (ORANGE, "h")) * 4)
    looks: dict[str, Look] = {}
    for row in rows:
        name = label(row, ratios)
        if name in looks:
            continue
        if row.block_size is None and row.active_ratio is None:
            looks[name] = Look(GREY, "", _DOTTED) if row.stage == "chunk" else Look(GREY, "o", "-")
        elif row.rectify_every:
            colour, marker = _PERIODS[periods.index(row.rectify_every) % len(_PERIODS)]
            looks[name] = Look(colour, "*", _DASHED) if row.method == FUSED else Look(colour, marker)
        elif row.method in _OTHERS and row.summary_kind != "meanstd" and _OTHERS[row.method] not in looks.values():
            looks[name] = _OTHERS[row.method]
        else:
            looks[name] = Look(*next(others), _DASHDOT if row.method == "quest" else _DOTTED)
    return looks
