"""Accuracy by method and set, as the paper's table has it, with its errors; and the same as result rows.

Problems are the units. With x_i the share of right answers among the samples of problem i, accuracy is the mean of
the N shares and its standard error sqrt(sum (x_i - mean)^2) / N. With one sample a problem this is the binomial
sqrt(p (1 - p) / N). With more, samples of one problem are alike, and counting them as independent would claim too
small an error; this one says how far another choice of problems would move the figure.

All methods answer the same problems with the same random numbers, so their difference is compared problem by problem
(x_i - y_i in place of x_i), whose error is smaller. `average` is the plain mean over sets, its error the root of the
summed squares over the number of sets. What was refused counts in none of this.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ...kernels import SparseConfig, get_method, registered
from ..core.rows import Row, digits
from ..micro.cases import MethodSpec
from .records import REFUSED, Record, Setting

METRICS = ("accuracy", "accuracy_error", "length", "finished")


@dataclass(frozen=True, slots=True)
class Figure:
    """A mean over `count` units, and its standard error; of sets, over their number."""

    mean: float
    error: float
    count: int


def figure(values: Sequence[float]) -> Figure:
    """Mean of at least one value and its standard error, binomial where all are 0 or 1."""
    mean = math.fsum(values) / len(values)
    error = math.sqrt(math.fsum((x - mean) ** 2 for x in values)) / len(values)
    return Figure(mean, error, len(values))


def average(figures: Sequence[Figure]) -> Figure:
    """The mean over sets, which are independent."""
    error = math.sqrt(math.fsum(f.error**2 for f in figures)) / len(figures)
    return Figure(math.fsum(f.mean for f in figures) / len(figures), error, len(figures))


@dataclass(frozen=True, slots=True)
class Score:
    """One method on one set; `shares` of right answers by problem."""

    records: tuple[Record, ...]
    shares: dict[tuple[str, str], float]

    @classmethod
    def of(cls, records: Iterable[Record]) -> Score:
        answered = tuple(r for r in records if r.outcome != REFUSED)
        by_problem: dict[tuple[str, str], list[float]] = {}
        for record in answered:
            by_problem.setdefault((record.problem, record.digest), []).append(float(record.outcome == "right"))
        return cls(answered, {problem: math.fsum(right) / len(right) for problem, right in by_problem.items()})

    @property
    def accuracy(self) -> Figure:
        return figure(list(self.shares.values()))

    @property
    def length(self) -> float:
        """Tokens an answer."""
        return sum(r.tokens for r in self.records) / len(self.records)

    @property
    def finished(self) -> float:
        """Share of the answers that the model ended itself."""
        return sum(r.finished for r in self.records) / len(self.records)

    def over(self, other: Score) -> Figure | None:
        """The gain in accuracy over another method, on the problems that both answered; None where there are none."""
        common = [self.shares[key] - other.shares[key] for key in self.shares if key in other.shares]
        return figure(common) if common else None


def label(record: Record) -> str:
    """`resa-torch b16 f32 r0.1`: the method variant as a person reads it."""
    if record.method not in registered():
        return record.method
    names = {n: record.columns[n] for n in get_method(record.method).uses if record.columns.get(n) is not None}
    name = MethodSpec(record.method, SparseConfig(**names), record.columns.get("dense_layers")).label
    if "rectify_every" in names and f" f{names['rectify_every']}" not in name:
        name += f" f{names['rectify_every']}"
    return name + (f" r{names['active_ratio']:g}" if "active_ratio" in names else "")


def scores(records: Sequence[Record]) -> dict[str, dict[str, Score]]:
    """By method's label and set, both in order of appearance, dense methods first. Only what has answers."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in sorted(records, key=lambda r: not _is_dense(r)):
        groups.setdefault((label(record), record.set), []).append(record)
    found: dict[str, dict[str, Score]] = {}
    for each in dict.fromkeys(r.set for r in records):
        for (name, of), mine in groups.items():
            if of == each and (score := Score.of(mine)).records:
                found.setdefault(name, {})[each] = score
    order = list(dict.fromkeys(name for name, _ in groups))
    return {name: found[name] for name in order if name in found}


def percent(value: Figure | None, *, sign: bool = False) -> str:
    if value is None:
        return ""
    return f"{100 * value.mean:{'+' if sign else ''}.1f} ± {100 * value.error:.1f}"


def setting_table(setting: Setting, records: Sequence[Record]) -> Table:
    """A row a method, a column a set, then average, gain over dense, length, and the share cut."""
    found = scores(records)
    sets = list(dict.fromkeys(name for by_set in found.values() for name in by_set))
    sizes = {name: max(len(by_set[name].shares) for by_set in found.values() if name in by_set) for name in sets}
    most = {name: max(len(by_set[name].records) for by_set in found.values() if name in by_set) for name in sets}
    sampling = f"T {setting.temperature:g}, top-p {setting.top_p:g}" if setting.temperature else "greedy"
    title = f"{setting.model}, {setting.dtype}: accuracy in %, {sampling}, up to {setting.max_tokens} new tokens"
    table = Table(title=title, title_justify="left", caption=caption(records), caption_justify="left")
    table.add_column("method")
    for name in sets:
        table.add_column(f"{name}\n{sizes[name]} problems\n{most[name]} answers", justify="right")
    baseline = next((found[label(r)] for r in records if _is_dense(r) and label(r) in found), None)
    for heading in ("average", "over dense", "tokens", "cut"):
        table.add_column(heading, justify="right")
    for name, by_set in found.items():
        cells = [_cell(by_set.get(each), most[each]) for each in sets]
        complete = len(by_set) == len(sets)
        gains = [by_set[s].over(baseline[s]) for s in by_set if s in baseline] if baseline else []
        known = [gain for gain in gains if gain is not None]
        table.add_row(
            name,
            *cells,
            percent(average([score.accuracy for score in by_set.values()])) if complete else "",
            percent(average(known), sign=True) if len(known) == len(sets) and by_set is not baseline else "",
            f"{sum(score.length for score in by_set.values()) / len(by_set):.0f}",
            f"{1 - sum(score.finished for score in by_set.values()) / len(by_set):.0%}",
        )
    return table


def _is_dense(record: Record) -> bool:
    return record.method in registered() and get_method(record.method).is_dense


def _cell(score: Score | None, most: int) -> str:
    """With the number of answers where there are fewer than other methods have."""
    if score is None:
        return ""
    return percent(score.accuracy) + (f" ({len(score.records)})" if len(score.records) < most else "")


def caption(records: Sequence[Record]) -> str:
    """How to read the errors, and what went wrong in judging."""
    parts = [
        "± one standard error with problems as units (binomial at one sample a problem); over dense: paired by "
        "problem; average, tokens and cut: mean over sets; cut: not ended by the model within its tokens."
    ]
    extreme = [s for by_set in scores(records).values() for s in by_set.values() if s.accuracy.error == 0]
    if extreme:
        few = min(len(score.shares) for score in extreme)
        parts.append(f"± 0 is no certainty: {few} alike fit a rate up to {100 * min(3 / few, 1):.0f} points off, too.")
    counts = Counter(record.outcome for record in records)
    names = {"timeout": "judging took too long", "crashed": "judging crashed", REFUSED: "prompt over the context"}
    odd = [f"{counts[outcome]} {text}" for outcome, text in names.items() if counts[outcome]]
    if odd:
        parts.append(f"Of {len(records)} answers: {', '.join(odd)} (refused ones are left out, others count as wrong).")
    return " ".join(parts)


def print_report(records: Sequence[Record], console: Console) -> None:
    """A table for each setting that there are answers of."""
    for setting in dict.fromkeys(r.setting for r in records):
        mine = [r for r in records if r.setting == setting]
        if scores(mine):
            console.print(setting_table(setting, mine), highlight=False)
        else:
            console.print(f"{escape(setting.slug)}: all {len(mine)} prompts are over the model's context")


def result_rows(records: Sequence[Record], common: dict[str, Any]) -> list[Row]:
    """Rows of suite `maths`: a metric a method and set, `value` a share or tokens, `n_samples` the answers.

    Args:
        records: of one setting.
        common: the case's columns and the circumstances. The set's name is added to `case`, and goes into
            `selection_pattern`, as what is fed does in other suites.
    """
    rows: list[Row] = []
    for by_set in scores(records).values():
        for name, score in by_set.items():
            first, accuracy = score.records[0], score.accuracy
            columns = common | first.columns | {"method": first.method, "stage": "answers", "status": "ok"}
            columns |= {"case": f"{common['case']}-{name}", "selection_pattern": name, "n_samples": len(score.records)}
            for metric, value in zip(
                METRICS, (accuracy.mean, accuracy.error, score.length, score.finished), strict=True
            ):
                rows.append(Row(**columns, metric=metric, value=digits(float(value))))
    return rows
