"""Traced steps (`profile nsys`): the folders among the given paths, their kernels as lanes of a timeline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ...suites.core.rows import digits, upgraded_facts
from ...suites.core.stages import place
from .lists import Listed

TABLES = ("timeline.csv", "timeline.csv.gz")
FACTS = "facts.json"
COLUMNS = ("kind", "launch", "stage", "kernel", "start_us", "end_us")


def timelines(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """An entry for each traced case in the folders given, and in folders up to two levels below them.

    Raises:
        ValueError: a table without the columns of a timeline, or facts that are no JSON object.
    """
    tables = [
        table
        for path in paths
        if path.is_dir()
        for name in TABLES
        for pattern in (name, f"*/{name}", f"*/*/{name}")
        for table in sorted(path.glob(pattern))
        if (table.parent / FACTS).is_file()
    ]
    return [timeline(table) for table in dict.fromkeys(tables)]


def timeline(table: Path) -> dict[str, Any]:
    """One traced case: its passes, each with stages, kernels' names and (stage, kernel, start, end) in microseconds."""
    try:
        kernels, facts = pd.read_csv(table), json.loads((table.parent / FACTS).read_text())
    except (ValueError, pd.errors.ParserError) as error:
        raise ValueError(f"{table}: not a timeline ({error})") from error
    missing = [name for name in COLUMNS if name not in kernels]
    if missing or not isinstance(facts, dict):
        raise ValueError(f"{table}: not a timeline; expected columns {', '.join(COLUMNS)} and an object in {FACTS}")
    facts, names = upgraded_facts(facts), Listed[str]()
    passes = []
    for kind, launched in kernels.groupby("kind", sort=False):
        stages = sorted(map(str, launched.stage.unique()), key=place)
        ends = zip(launched.start_us.astype(float), launched.end_us.astype(float), strict=True)
        what = zip(launched.stage.astype(str), launched.kernel.astype(str), ends, strict=True)
        bars = [[stages.index(s), names.number(k), digits(start), digits(end)] for s, k, (start, end) in what]
        graph = bool((launched.launch == "graph").all())
        passes.append({"kind": str(kind), "graph": graph, "stages": stages, "bars": bars})
    where = facts.get("environment") or {}
    return {
        "folder": table.parent.name,
        "case": str(facts.get("case", "")),
        "label": facts["label"],
        "source": str(facts.get("source", "")),
        "untraced_us": facts.get("untraced_us"),
        "device": str(where.get("device") or ""),
        "commit": str(where.get("commit") or "")[:10],
        "kernels": names.values,
        "passes": passes,
    }
