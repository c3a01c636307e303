"""Which rows of the given files are one run: the files of a folder, but for those that hold a measurement again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...suites.core.results import read_rows
from ...suites.core.rows import Row, identity
from ..figures import result_files

COMMIT_CHARS = 10
COMMANDS = 12  # that a page lists of a run


@dataclass(frozen=True, slots=True)
class Run:
    """Rows that were measured together; of one measured again, the later row.

    Attributes:
        label: what the page calls it; unique among its runs.
    """

    label: str
    files: tuple[str, ...]
    rows: tuple[Row, ...]

    def about(self) -> dict[str, Any]:
        """What the page says of where, when and by which code it was measured."""
        dates = sorted({row.started_at[:10] for row in self.rows if row.started_at})
        commits = [f"{r.commit[:COMMIT_CHARS]}{' (tree changed)' if r.dirty else ''}" for r in self.rows if r.commit]
        columns = ("device", "driver", "torch", "triton", "python", "version")
        commands = unique(row.command for row in self.rows)
        return {
            "label": self.label,
            "files": list(self.files),
            "rows": len(self.rows),
            "suites": unique(row.suite for row in self.rows),
            "dates": list(dict.fromkeys((*dates[:1], *dates[-1:]))),
            "commits": unique(commits),
            "commands": commands[:COMMANDS],
            "more_commands": max(0, len(commands) - COMMANDS),
            "others": unique(row.contention for row in self.rows),
            "schemas": sorted({row.schema for row in self.rows}),
            **{name: unique(getattr(row, name) for row in self.rows) for name in columns},
        }


def unique(words: Iterable[str | None]) -> list[str]:
    """Each once, in order, without what is empty."""
    return list(dict.fromkeys(word for word in words if word))


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Runs of result files (a folder stands for its `*.jsonl` and `*.jsonl.gz`), in the order given.

    Raises:
        FileNotFoundError: no such file. ValueError: a file that is no result file, or nothing but empty ones.
    """
    folders: dict[Path, list[Path]] = {}
    for file in result_files(paths):
        folders.setdefault(file.resolve().parent, []).append(file)
    groups = [group for folder, files in folders.items() for group in _groups(folder, files)]
    if not groups:
        raise ValueError(f"no rows in {', '.join(map(str, paths))}; expected result files that a suite has written")
    labels = _labels([group.place for group in groups])
    return [
        Run(label, tuple(file.name for file in group.files), tuple(group.rows.values()))
        for label, group in zip(labels, groups, strict=True)
    ]


@dataclass(slots=True)
class Group:
    """Files of one folder of which no two hold the same measurement."""

    place: Path  # what names it: the folder, or the only file where the folder holds other runs
    files: list[Path]
    rows: dict[tuple[Any, ...], Row]


def _groups(folder: Path, files: Sequence[Path]) -> list[Group]:
    """Each file joins the first group that holds none of its measurements; files without rows join none."""
    groups: list[Group] = []
    for file in files:
        rows = {identity(row): row for row in read_rows(file)}
        group = next((group for group in groups if not group.rows.keys() & rows.keys()), None)
        if rows and group is None:
            groups.append(Group(folder, [file], rows))
        elif rows and group is not None:
            group.files.append(file)
            group.rows |= rows
    for group in groups if len(groups) > 1 else ():
        if len(group.files) == 1:
            group.place = group.files[0]
    return groups


def _labels(places: Sequence[Path]) -> list[str]:
    """A name for each: as much of the end of its path as tells them apart, endings left out."""
    words = [(*place.parts[:-1], place.name.removesuffix(".gz").removesuffix(".jsonl")) for place in places]
    for count in range(1, max(map(len, words)) + 1):
        labels = ["/".join(parts[-count:]) for parts in words]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{label} ({number})" for number, label in enumerate(labels, start=1)]
