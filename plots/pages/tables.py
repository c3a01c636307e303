"""Tables of a page: rows and columns of conditions, a number where they cross.

    first    heading of the first column; rows: [label, condition] pairs
    columns  of each a heading (`head`), a condition (`of`) and what else a number has
    empty    stands for the table where no cell has rows

A row may be a table itself (`label`, `of`, and what its cells have otherwise than the columns).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .numbers import DAGGER, Place, PlaceError, Sources, listed, write

THROTTLED = f"{DAGGER} ran under the power cap: the clock was below its maximum."


def render(place: Place, sources: Sources) -> str:
    """The table as Markdown, and a line that explains daggers where there are some. Raises PlaceError."""
    heads = [str(column["head"]) for column in place["columns"]]
    lines = [[str(place.get("first", "")), *heads]]
    filled = False
    for row in map(_row, place["rows"]):
        cells = [_cell(place, row, column, sources) for column in place["columns"]]
        lines.append([str(row["label"]), *cells])
        filled = filled or any(cell != place.get("none") for cell in cells)
    if not filled and "empty" in place:
        return str(place["empty"])
    text = markdown(lines)
    return f"{text}\n\n{THROTTLED}" if DAGGER in text else text


def _row(row: Any) -> Place:
    return row if isinstance(row, Mapping) else {"label": row[0], "of": row[1]}


def _cell(place: Place, row: Place, column: Place, sources: Sources) -> str:
    """One number: what the table says, then the column, then the row; their conditions all hold."""
    common = {name: place[name] for name in ("file", "take", "form", "none", "let") if name in place}
    own = {name: value for part in (column, row) for name, value in part.items() if name not in ("of", "head", "label")}
    conditions = (place.get("where"), column.get("of"), row.get("of"))
    shared = (place.get("where"), column.get("of"))
    try:
        cell = {"mark": True, **common, **own, "where": listed(*conditions), "shared": listed(*shared)}
        return write(cell, sources)
    except PlaceError as error:
        raise PlaceError(f"row {row['label']!r}, column {column['head']!r}: {error}") from None


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells as a Markdown table, the first one its heading."""
    head, *body = ["| " + " | ".join(cells) + " |" for cells in lines]
    return "\n".join([head, "|" + "---|" * len(lines[0]), *body])
