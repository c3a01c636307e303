"""How sparse decoding drifts from dense: KL, agreement and the error of keys and values over steps since prefill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..suites.quality.table import label
from ..suites.rows import Row
from .caption import circumstances
from .data import NotDrawn
from .style import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, Look, finish, legend_line, panels

PANELS = {
    "kl": "KL(dense || method), nats",
    "extra_loss": "loss over dense's, nats",
    "kv_error": "error of new K and V",
}
STEP_MARKERS = 8  # a line has a marker every so many points
_DASHED, _DOTTED, _DASHDOT = (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2))
_PERIODS = ((VERMILLION, "o"), (ORANGE, "s"), (PURPLE, "^"), (GREEN, "D"), (BLUE, "v"))


@dataclass(frozen=True, slots=True)
class QualitySet:
    """The rows of one case of the quality suite on one device."""

    model: str
    case: str
    device: str
    rows: list[Row]


def quality_sets(rows: Sequence[Row]) -> list[QualitySet]:
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row.suite == "quality" and row.value is not None:
            found.setdefault((row.model, row.case, row.device or "device unknown"), []).append(row)
    return [QualitySet(*key, mine) for key, mine in found.items()]


def quality_drift(figures: QualitySet) -> Figure:
    """A panel a metric, a line a method: means of stretches of steps, all sequences together.

    ReSA at f = 1 is the error of one sparse step on exact keys and values, which no rectification removes: grey.
    """
    names = {row: label(row, ratios=_several_ratios(figures.rows)) for row in figures.rows if row.layer is None}
    looks = _looks(list(names))
    lines = {name: [row for row in names if names[row] == name] for name in dict.fromkeys(names.values())}
    lines = {name: mine for name, mine in lines.items() if any(row.metric == "kl" for row in mine)}
    if not any(len({row.step for row in mine}) > 1 for mine in lines.values()):
        raise NotDrawn("a single stretch of steps makes no curve")
    fig, axes, _ = panels(len(PANELS), height_in=2.3, share_y=False)
    for ax, (metric, words) in zip(axes, PANELS.items(), strict=True):
        for name, mine in lines.items():
            _line(ax, [row for row in mine if row.metric == metric], looks[name])
        ax.set_title(words)
        ax.set_xlabel("steps since prefill")
        ax.set_xlim(0, max(row.step or 0 for row in names))
        if metric != "extra_loss":
            ax.set_ylim(0)
    first = figures.rows[0]
    note = (
        f"{first.batch} x {first.context} tokens of "
        f"{'text' if first.selection_pattern == 'text' else 'the dense model sampling on'}; fed the same tokens; "
        "grey: ReSA at f = 1, a sparse step's own error"
    )
    legend = [legend_line(looks[name], name) for name in lines]
    return finish(fig, f"{figures.model}: drift from dense decoding", legend, circumstances(figures.rows, note))


def _several_ratios(rows: Sequence[Row]) -> bool:
    return len({row.active_ratio for row in rows if row.active_ratio is not None}) > 1


def _line(ax: Axes, rows: Sequence[Row], look: Look) -> None:
    rows = sorted(rows, key=lambda row: row.step or 0)
    xs, ys = [row.step or 0 for row in rows], [row.value or 0.0 for row in rows]
    ax.plot(xs, ys, color=look.colour, marker=look.marker, ls=look.linestyle, markevery=STEP_MARKERS)


def _looks(rows: Sequence[Row]) -> dict[str, Look]:
    """ReSA solid, a colour a period and f = 1 in grey; sparse steps alone dashed; others dotted."""
    several = _several_ratios(rows)
    periods = sorted({row.rectify_every for row in rows if row.rectify_every and row.rectify_every > 1})
    others = iter(((BLUE, "v"), (SKY, "X"), (GREEN, "P"), (PURPLE, "p"), (ORANGE, "h")) * 4)
    looks: dict[str, Look] = {}
    for row in rows:
        name = label(row, ratios=several)
        if name in looks:
            continue
        if row.rectify_every == 1:
            looks[name] = Look(GREY, "", "-")
        elif row.rectify_every:
            looks[name] = Look(*_PERIODS[periods.index(row.rectify_every) % len(_PERIODS)])
        elif row.method == "sparse" and row.summary_kind != "meanstd":
            looks[name] = Look("black", "x", _DASHED)
        else:
            looks[name] = Look(*next(others), _DASHDOT if row.method == "quest" else _DOTTED)
    return looks
