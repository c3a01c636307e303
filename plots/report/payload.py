"""From result files to the one JSON object that the page shows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from matplotlib.colors import to_hex

from ...suites.core.rows import Row
from ...suites.core.stages import heading
from ..stage_style import NAMES, bar_place, fill
from .lists import Listed, Variants
from .pairs import comparisons
from .runs import Run, read_runs
from .timed import Places, reshaped, timed_columns
from .timelines import timelines
from .trade import trade_offs
from .values import metric_entries, value_entries

VERSION = 1
"""Of this object's format: page and rows are written together, so nothing reads another version's."""


def payload(paths: Sequence[Path]) -> dict[str, Any]:
    """Everything that the page shows of result files, and of traced steps in folders beside them.

    Raises:
        FileNotFoundError: no such file. ValueError: a file that is no result file.
    """
    runs = read_runs(paths)
    rows = [row for run in runs for row in run.rows]
    variants = Variants(rows)
    places = Places(variants, Listed(), Listed(), Listed(), Listed(), Listed(), reshaped(rows))
    columns, numbers = timed_columns([run.rows for run in runs], places)
    values = value_entries([run.rows for run in runs], places)
    return {
        "version": VERSION,
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "runs": [run.about() for run in runs],
        "rows": columns,
        "values": values,
        "metrics": metric_entries(),
        "trades": trade_offs(rows),
        "comparisons": comparisons(runs, numbers),
        "timelines": timelines(paths),
        "untimed": untimed_entries(runs, places),
        "suites": places.suites.values,
        "cases": places.cases.values,
        "variants": variants.entries,
        "methods": variants.methods.values,
        "stages": [stage_entry(name) for name in places.stages.values],
        "settings": [{"model": model, "words": words} for model, words in places.settings.values],
        "ways": places.ways.values,
    }


def stage_entry(name: str) -> dict[str, Any]:
    """A stage's name and fill; hatched where several are one."""
    look = fill(name)
    hatch = to_hex(look["edgecolor"]) if look.get("hatch") else None
    shown = NAMES.get(name, heading(name))
    return {"name": name, "shown": shown, "fill": to_hex(look["facecolor"]), "hatch": hatch, "place": bar_place(name)}


def untimed_entries(runs: Sequence[Run], places: Places) -> list[dict[str, Any]]:
    """What was skipped or failed, by run, method and reason: in how many cases, and one of them."""
    entries = []
    for number, run in enumerate(runs):
        groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
        for row in run.rows:
            if row.reason and not row.measured:
                groups[row.suite, row.variant, row.status, row.reason].append(row)
        for rows in groups.values():
            first = rows[0]
            here: dict[str, Any] = {"run": number, **places.columns(first)}
            here |= {"context": first.context, "batch": first.batch, "cases": len({row.case for row in rows})}
            entries.append(here | {"status": first.status, "reason": first.reason})
    return entries
