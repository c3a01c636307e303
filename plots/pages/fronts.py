"""Tables of what methods read against what that costs, by bytes; those on the Pareto front stand in bold.

file    name of an entry of [files]: quality rows; the first path that has such rows counts
model   of the rows; `case` begins the cases' names; one case is expected
speed   name of an entry of [files]: decode rows, whose tokens/s stand beside where a method was timed
none    written where there are no such rows
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...suites.core.analysis import mean_of
from ...suites.core.metrics import metrics
from ...suites.core.rows import Row
from ..data import NotDrawn
from ..decode_data import decode_sets
from ..quality_data import QualitySet, quality_sets
from ..quality_front import ReadPoint, least_read, read_points
from ..quality_speed import key_of, pair
from ..style import names_of, tokens
from .numbers import Place, PlaceError, Sources, rows_of
from .tables import markdown

SHOWN = ("top1", "loss")  # metrics beside KL, as the suite's own table has them
DASH = ""


def render_front(place: Place, sources: Sources) -> str:
    """The table. Raises PlaceError where rows are of several cases, or none and `none` is left out."""
    quality = _set_of(place, sources)
    if quality is None:
        if "none" in place:
            return str(place["none"])
        raise PlaceError(f"no quality rows of case {place.get('case')!r} that say how much is read")
    points, shown = read_points(quality), [metric for metric in metrics() if metric.name in SHOWN]
    best, names = least_read(points), names_of(row for point in points for row in point.rows)
    where, speeds = _speeds(quality, place, sources)
    heads = ["bytes read", "KL, nats a token", *(metric.heading for metric in shown), *([where] if speeds else [])]
    lines = [[f"{quality.model}: method and setting", *heads]]
    for point in points:
        bold = "**" if point in best else ""
        cells = [f"{bold}{names.of(point.variant)}{bold}", f"{point.share:.1%}", _kl(point, bold)]
        cells += [metric.cell(mean_of(point.rows, metric.name)) for metric in shown]
        cells += [speeds.get(key_of(point.rows[0]), DASH)] if speeds else []
        lines.append(cells)
    dense = [row for row in quality.rows if row.variant.is_dense]
    cells = [metric.cell(mean_of(dense, metric.name)) for metric in shown]
    lines.append(["dense", "100%", "0", *cells, *([DASH] if speeds else [])])
    return markdown(lines)


def _kl(point: ReadPoint, bold: str) -> str:
    return f"{bold}{point.kl:.3f}{bold} ± {point.kl_error:.3f}"


def _set_of(place: Place, sources: Sources) -> QualitySet | None:
    """The case's rows, of the first file that has them."""
    for rows in _files(place.get("file", ""), sources):
        sets = quality_sets([row for row in rows if row.case.startswith(str(place.get("case", "")))])
        sets = [own for own in sets if len(read_points(own)) > 1]
        if len(sets) > 1:
            raise PlaceError(
                f"case {place.get('case')!r} begins the names of several: {', '.join(s.case for s in sets)}"
            )
        if sets:
            return sets[0]
    return None


def _files(name: str, sources: Sources) -> list[list[Row]]:
    if name not in sources.files:
        raise PlaceError(f"file {name!r} is no entry of [files]; known are {', '.join(sources.files)}")
    return [rows_of(path) for path in (sources.root / path for path in sources.files[name]) if path.is_file()]


def _speeds(quality: QualitySet, place: Place, sources: Sources) -> tuple[str, Mapping[Any, str]]:
    """The heading of a column of tokens per second, and these by a method's key; empty where none was timed."""
    for rows in _files(place["speed"], sources) if "speed" in place else []:
        for decode in decode_sets(rows):
            try:
                where, context, timed = pair(quality, decode)
            except NotDrawn:
                continue
            head = f"tokens/s, {decode.model} at {tokens(context)} ({where})"
            speeds = {
                key_of(point.row): f"{point.tokens_per_s:.0f}" for point in timed if not point.row.variant.is_dense
            }
            return head, speeds
    return "", {}
