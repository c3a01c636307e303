"""Quality against speed: the points of that figure (plots/quality_speed.py), with intervals, as the page draws them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ...suites.core.analysis import LEVEL, mean_of
from ...suites.core.looks import looks
from ...suites.core.rows import Row, digits
from ..caption import of_commits
from ..data import NotDrawn, order
from ..quality_speed import Point, front, pair, speed_sets
from ..style import names_of, tokens
from .lists import look_entry

KL = "kl"


def trade_offs(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """An entry for each case of quality and model of decode that share two methods or more."""
    entries = []
    for data in speed_sets([row for row in rows if row.metric in (None, KL)]):
        try:
            where, context, points = pair(data.quality, data.decode)
        except NotDrawn:
            continue
        timed = [point.row for point in points]
        names, styles = names_of(timed), looks(sorted({row.variant for row in timed}, key=order))
        ahead = {id(point.row) for point in front(points)}
        lines = list(data.quality.lines.values())
        levels = [mean_of(own, KL) for own in lines if own[0].rectify_every == LEVEL]
        entries.append(
            {
                "quality": data.quality.model,
                "case": data.quality.case,
                "about": data.quality.about,
                "where": f"{data.decode.model} shape at {tokens(context)}, {where}",
                "device": data.decode.device,
                "commit": of_commits(timed),
                "level": digits(levels[0], 4) if levels and levels[0] else None,
                "points": [
                    {
                        "name": names[point.row],
                        **look_entry(styles[point.row.variant]),
                        "front": id(point.row) in ahead,
                        "throttled": point.row.status == "throttled",
                        **_place(point, lines),
                    }
                    for point in points
                ],
            }
        )
    return sorted(entries, key=lambda entry: -len(entry["points"]))


def _place(point: Point, lines: Sequence[Sequence[Row]]) -> dict[str, Any]:
    """Tokens per second with the interval of its row; KL with the standard error over stretches of 32 steps."""
    row = point.row
    ends = [end for end in (row.ci_high_us, row.ci_low_us) if end and end > 0]
    return {
        "x": point.tokens_per_s,
        "x_interval": [digits(row.batch * 1e6 / end, 6) for end in ends],
        "y": digits(point.kl, 4),
        "y_error": _error(point, lines),
    }


def _error(point: Point, lines: Sequence[Sequence[Row]]) -> float | None:
    """Of the mean over stretches; None for dense decoding, and for fewer than two stretches."""
    for own in lines:
        values = [row.value for row in own if row.metric == KL and row.value is not None]
        if len(values) > 1 and math.isclose(mean_of(own, KL) or 0.0, point.kl, rel_tol=1e-9):
            mean = sum(values) / len(values)
            spread = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
            return digits(math.sqrt(spread / len(values)), 3)
    return None
