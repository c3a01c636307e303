"""A number of a page: which rows of which file, what is taken of them, and how it is written.

An entry of docs/places.toml says it:

    file   name of an entry of [files]: paths, of which the first that has such rows counts
    where  pandas query over the columns of rows, in which $name stands for an entry of [conditions]
    take   what is made of the rows (TAKES); `one` where nothing is said: exactly one row is expected
    beside other rows of the same file, by name: their columns are called <name>_<column>
    let    new columns, by name: pandas expressions over columns
    form   a format string over columns, such as "{tokens_per_s:.1f} ({speedup_vs_best_dense:.2f}x)"
    none   written where no row fits; an error where it is left out
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd

from ...suites.core.analysis import share_error
from ...suites.core.report import crossing
from ...suites.core.results import read_rows
from ...suites.core.rows import COLUMNS

Place = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Sources:
    """Where numbers come from: the folder that paths start from, files and conditions by the names that places use."""

    root: Path
    files: Mapping[str, Sequence[str]]
    conditions: Mapping[str, str]


DAGGER = "\u2020"
FUNCTIONS = {"exp": math.exp, "error": share_error, "max": max}
"""What `let` knows beside arithmetic, of one row's values: `error(share, count)` of a share."""


class PlaceError(ValueError):
    """A place that cannot be filled in; the message says which, and what was looked for."""


rows_of = cache(read_rows)
"""The rows of a result file, read once for all places that show some."""


@cache
def frame_of(path: Path) -> pd.DataFrame:
    """The rows of a result file, with `short_commit` and `kilotokens` beside their columns."""
    values = operator.attrgetter(*COLUMNS)
    frame = pd.DataFrame([values(row) for row in rows_of(path)], columns=list(COLUMNS)).infer_objects()
    empty = frame.columns[frame.isna().all()]
    frame = frame.astype({name: float for name in empty if frame[name].dtype == object})
    derived = {"short_commit": frame["commit"].str.slice(0, 7), "kilotokens": frame["context"] // 1024}
    return pd.concat([frame, pd.DataFrame(derived)], axis="columns")


def _single_row(frame: pd.DataFrame) -> pd.Series:
    if len(frame) > 1:
        differing = [name for name in frame.columns if frame[name].astype(str).nunique() > 1]
        raise PlaceError(f"{len(frame)} rows fit, expected one; they differ in {', '.join(differing[:12])}")
    return frame.iloc[0]


def _mean(frame: pd.DataFrame) -> pd.Series:
    """Means of the numbers, each row counted by its samples; of words the distinct ones."""
    frame = frame.dropna(axis="columns", how="all")
    weights = frame["n_samples"].fillna(1).astype(float) if "n_samples" in frame else pd.Series(1.0, frame.index)
    numbers = frame.select_dtypes("number")
    means = numbers.mul(weights, axis=0).sum() / weights.sum()
    return pd.concat([means, _words(frame.drop(columns=numbers.columns))])


def _any(frame: pd.DataFrame) -> pd.Series:
    """Medians of the numbers, of words the distinct ones: what rows have in common."""
    frame = frame.dropna(axis="columns", how="all")
    numbers = frame.select_dtypes("number")
    return pd.concat([numbers.median(), _words(frame.drop(columns=numbers.columns)), pd.Series({"count": len(frame)})])


def _words(frame: pd.DataFrame) -> pd.Series:
    return pd.Series({name: ", ".join(dict.fromkeys(map(str, frame[name].dropna()))) for name in frame.columns})


def _crossing(frame: pd.DataFrame) -> pd.Series | None:
    """`tokens`: the context from which the speed-up stays above 1; `bound`: `at most` where that is the shortest one.

    None for a single context, or where the speed-up stays below 1.
    """
    points = [(int(c), float(s)) for c, s in zip(frame.context, frame.speedup_vs_best_dense, strict=True)]
    tokens = crossing(points) if len({context for context, _ in points}) > 1 else None
    if tokens is None:
        return None
    bound = "at most " if tokens <= min(context for context, _ in points) else ""
    return pd.concat([_any(frame), pd.Series({"tokens": tokens, "bound": bound})])


TAKES: dict[str, Callable[[pd.DataFrame], pd.Series | None]] = {
    "one": _single_row,
    "mean": _mean,
    "any": _any,
    "crossing": _crossing,
    "fastest": lambda frame: frame.loc[frame["mean_us"].fillna(frame["median_us"]).idxmin()],
    "least": lambda frame: frame.loc[frame["value"].idxmin()],
    "greatest": lambda frame: frame.loc[frame["value"].idxmax()],
}
"""What may be made of the rows that fit."""


@cache
def fitting(path: Path, condition: str) -> pd.Series:
    """Which rows of a file a condition fits; asked once, since the cells of a table share most conditions."""
    frame = frame_of(path)
    try:
        return pd.Series(frame.index.isin(frame.query(condition).index), index=frame.index)
    except Exception as error:  # pandas raises what its parser and numpy raise
        raise PlaceError(f"cannot ask {path.name} for {condition!r}: {error}") from None


def select(place: Place, sources: Sources, where: Sequence[str]) -> pd.DataFrame | None:
    """The rows that all conditions fit, of the first file that has some; None where none has.

    Raises:
        PlaceError: a file or condition at fault.
    """
    name = place.get("file", "")
    if name not in sources.files:
        raise PlaceError(f"file {name!r} is no entry of [files]; known are {', '.join(sources.files)}")
    named = {name: f"({text})" for name, text in sources.conditions.items()}
    try:
        conditions = [Template(condition).substitute(named) for condition in where]
    except (KeyError, ValueError) as error:
        raise PlaceError(f"{' and '.join(where)!r}: {error} is no entry of [conditions]") from None
    for path in (sources.root / path for path in sources.files[name]):
        if not path.is_file():
            continue
        frame = frame_of(path)
        fits = pd.Series(True, index=frame.index)
        for condition in conditions:
            fits &= fitting(path, condition)
        if fits.any():
            chosen = frame[fits]
            chosen.attrs["path"] = path
            return chosen
    return None


def listed(*conditions: str | Sequence[str] | None) -> list[str]:
    """Conditions that are there, in one list."""
    texts = [[condition] if isinstance(condition, str) else list(condition or ()) for condition in conditions]
    return [text for several in texts for text in several]


def evaluate(place: Place, sources: Sources) -> pd.Series | None:
    """The columns that a place is written from; None where no row fits.

    Raises:
        PlaceError: several rows where one was expected, or an entry at fault.
    """
    frame = select(place, sources, listed(place.get("where")))
    if frame is None:
        return None
    taken = _take(place.get("take", "one"), frame)
    if taken is None:
        return None
    for name, condition in place.get("beside", {}).items():
        other = select(place, sources, listed(place.get("shared"), condition))
        if other is None:
            return None
        columns = _take(place.get("take", "one"), other)
        assert columns is not None  # the rows that the place itself is made of gave some
        taken = pd.concat([taken, columns.rename(lambda column, name=name: f"{name}_{column}")])
    for name, expression in place.get("let", {}).items():
        try:
            values = {str(key): value for key, value in taken.items()}
            taken[name] = eval(expression, {"__builtins__": {}}, FUNCTIONS | values)
        except Exception as error:
            raise PlaceError(f"let {name} = {expression!r}: {type(error).__name__}: {error}") from None
    return taken


def _take(name: str, frame: pd.DataFrame) -> pd.Series | None:
    if name not in TAKES:
        raise PlaceError(f"take {name!r}: unknown; known are {', '.join(TAKES)}")
    return TAKES[name](frame)


def write(place: Place, sources: Sources) -> str:
    """The text of a place, with a dagger where the number was measured under throttling and `mark` is set.

    Raises:
        PlaceError: no row fits and `none` is left out; an entry at fault.
    """
    columns = evaluate(place, sources)
    if columns is None:
        if "none" in place:
            return str(place["none"])
        raise PlaceError(
            f"no row of {', '.join(sources.files[place['file']])} fits {' and '.join(listed(place.get('where')))}"
        )
    try:
        values = {str(key): value for key, value in columns.items()}
        text = str(place["form"]).format(**values)
    except (KeyError, ValueError, TypeError) as error:
        raise PlaceError(f"form {place.get('form')!r}: {type(error).__name__}: {error}") from None
    if re.search(r"\b(nan|None)\b", text):
        raise PlaceError(f"form {place['form']!r} gives {text!r}: the rows lack that column")
    throttled = place.get("mark") and "throttled" in str(columns.get("status", ""))
    return f"{text} {DAGGER}" if throttled else text
