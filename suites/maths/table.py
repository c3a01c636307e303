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

from ..core.report import new_table
from ..core.rows import Row, digits
from ..core.spec import Names, Variant, is_dense
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
        """Of a method's records of a set; refused ones are left out."""
        answered = tuple(r for r in records if r.outcome != REFUSED)
        by_problem: dict[tuple[str, str], list[float]] = {}
        for record in answered:
            by_problem.setdefault((record.problem, record.digest), []).append(float(record.outcome == "right"))
        return cls(answered, {problem: math.fsum(right) / len(right) for problem, right in by_problem.items()})

    @property
    def accuracy(self) -> Figure:
        """The mean over problems."""
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


def scores(records: Sequence[Record]) -> dict[Variant, dict[str, Score]]:
    """By variant and set, both in order of appearance, dense methods first. Only what has answers."""
    sets = list(dict.fromkeys(r.set for r in records))
    by_variant: dict[Variant, dict[str, Score]] = {}
    for variant in sorted(dict.fromkeys(r.variant for r in records), key=lambda v: not is_dense(v.method)):
        by_set = {name: Score.of(r for r in records if (r.variant, r.set) == (variant, name)) for name in sets}
        if any(score.records for score in by_set.values()):
            by_variant[variant] = {name: score for name, score in by_set.items() if score.records}
    return by_variant


def percent(value: Figure | None, *, sign: bool = False) -> str:
    """A cell: mean and error in per cent; empty for no value."""
    if value is None:
        return ""
    return f"{100 * value.mean:{'+' if sign else ''}.1f} ± {100 * value.error:.1f}"


def setting_table(setting: Setting, records: Sequence[Record]) -> Table:
    """A row a method, a column a set, then average, gain over dense, length, and the share cut."""
    names, by_variant = Names(records), scores(records)
    sets = list(dict.fromkeys(name for by_set in by_variant.values() for name in by_set))
    sizes = {name: max(len(by_set[name].shares) for by_set in by_variant.values() if name in by_set) for name in sets}
    most = {name: max(len(by_set[name].records) for by_set in by_variant.values() if name in by_set) for name in sets}
    sampling = f"T {setting.temperature:g}, top-p {setting.top_p:g}" if setting.temperature else "greedy"
    title = f"{setting.model}, {setting.dtype}: accuracy in %, {sampling}, up to {setting.max_tokens} new tokens"
    headings = (f"{escape(name)}\n{sizes[name]} problems\n{most[name]} answers" for name in sets)
    columns = ("method", *headings, "average", "over dense", "tokens", "cut")
    table = new_table(title, columns, caption=caption(records), caption_justify="left")
    baseline = next((by_set for variant, by_set in by_variant.items() if is_dense(variant.method)), None)
    for variant, by_set in by_variant.items():
        cells = [_cell(by_set.get(name), most[name]) for name in sets]
        complete = len(by_set) == len(sets)
        gains = [by_set[name].over(baseline[name]) for name in by_set if name in baseline] if baseline else []
        known = [gain for gain in gains if gain is not None]
        table.add_row(
            escape(names.of(variant)),
            *cells,
            percent(average([score.accuracy for score in by_set.values()])) if complete else "",
            percent(average(known), sign=True) if len(known) == len(sets) and by_set is not baseline else "",
            f"{sum(score.length for score in by_set.values()) / len(by_set):.0f}",
            f"{1 - sum(score.finished for score in by_set.values()) / len(by_set):.0%}",
        )
    return table


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
    words = {"timeout": "judging took too long", "crashed": "judging crashed", REFUSED: "prompt over the context"}
    odd = [f"{counts[outcome]} {text}" for outcome, text in words.items() if counts[outcome]]
    if odd:
        parts.append(f"Of {len(records)} answers: {', '.join(odd)} (refused ones are left out, others count as wrong).")
    return " ".join(parts)


def print_report(records: Sequence[Record], console: Console) -> None:
    """A table for each setting that there are answers of."""
    for setting in dict.fromkeys(r.setting for r in records):
        of_setting = [r for r in records if r.setting == setting]
        if scores(of_setting):
            console.print(setting_table(setting, of_setting), highlight=False)
        else:
            console.print(f"{escape(setting.slug)}: all {len(of_setting)} prompts are over the model's context")


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
            sources = sorted({record.source for record in score.records if record.source})
            if sources not in ([], [common.get("source")]):  # answers that other code left: no commit made them all
                columns |= {"source": "+".join(sources), "commit": None, "dirty": None, "version": None}
            for metric, value in zip(
                METRICS, (accuracy.mean, accuracy.error, score.length, score.finished), strict=True
            ):
                rows.append(Row(**columns, metric=metric, value=digits(float(value))))
    return rows
