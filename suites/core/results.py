"""Result files: JSON Lines, a row a line, and a CSV beside it; read by any version, never losing a measured row.

The rows of a case (or of a group of its methods) are appended by one write and say how many belong together
(`case_rows`), so that a run that ends anywhere leaves whole cases and at most one torn line. What cannot be read is
kept: a rewrite moves it to `<file>.unreadable`.
"""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .rows import Row, from_record, to_frame, to_record


@dataclass(slots=True)
class Contents:
    """What a result file holds.

    Attributes:
        rows: of whole writes.
        partial: of writes that lost some of their rows.
        unreadable: lines that are no rows, with their numbers and why.
        unknown: columns of a later version, which are left out.
    """

    rows: list[Row] = field(default_factory=list)
    partial: list[Row] = field(default_factory=list)
    unreadable: list[tuple[int, str, str]] = field(default_factory=list)
    unknown: set[str] = field(default_factory=set)


def read_file(path: Path) -> Contents:
    """Everything in a JSON Lines file (gzipped if its name ends so).

    Raises:
        FileNotFoundError: no such file. ValueError: a file that is no text, or a torn .gz.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no result file at {path}")
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")  # as editors write it
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: the .gz file is torn or damaged ({error})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file ({error})") from error
    contents, rows = Contents(), []
    for line_number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row, unknown = from_record(_parsed(line))
        except (TypeError, ValueError, RecursionError) as error:
            contents.unreadable.append((line_number, line, str(error)))
            continue
        rows.append(row)
        contents.unknown |= set(unknown)
    together = Counter(_write(row) for row in rows)
    seen: Counter[tuple[Any, ...]] = Counter()
    for row in rows:
        write, count = _write(row), row.case_rows
        seen[write] += 1
        is_whole = not count or seen[write] <= together[write] // count * count  # equal writes stand one after another
        (contents.rows if is_whole else contents.partial).append(row)
    return contents


def _parsed(line: str) -> dict[str, Any]:
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError("expected an object")
    return record


def read_rows(path: Path) -> list[Row]:
    """Rows of a result file. A torn last line and cases cut short are left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a whole line that is not a result row (named with its number); a torn .gz.
    """
    contents = read_file(path)
    torn_line = _last_line(path) if path.suffix != ".gz" else 0
    for line_number, _, reason in contents.unreadable:
        if line_number != torn_line:
            raise ValueError(f"{path}, line {line_number}: not a result row ({reason})")
    return contents.rows


def _last_line(path: Path) -> int:
    """The number of a last line without its newline; 0 where all have one."""
    data = path.read_bytes()
    return 0 if not data or data.endswith(b"\n") else data.count(b"\n") + 1


def _write(row: Row) -> tuple[Any, ...]:
    """What the rows of one write share; those of two groups that began in one second may, too."""
    return row.suite, row.case, row.started_at, row.case_rows


def _lines(rows: Iterable[Row]) -> bytes:
    return "".join(json.dumps(to_record(row), allow_nan=False) + "\n" for row in rows).encode()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a result file while it is changed: two processes may share one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def check_folder(folder: Path) -> None:
    """Make a folder for outputs, and write a file of no name there. Raises OSError, with the place, if that fails."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b" ")
            file.flush()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error


def check_place(path: Path) -> None:
    """See, before anything is measured, that a result file and its CSV can be written. Raises OSError."""
    check_folder(path.resolve().parent)
    check_folder(path.parent)
    for file in (path, path.with_suffix(".csv")):
        if file.exists():
            file.open("ab").close()


def append(path: Path, rows: Iterable[Row]) -> None:
    """Append rows by a single write and flush them to the disk; after a line without a newline, on a new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    append_lines(path, _lines(rows))


def append_lines(path: Path, data: bytes) -> None:
    """The same of whole lines: all of them are there afterwards, or none. Raises OSError, with the path."""
    with path.open("ab+", buffering=0) as file:
        if size := file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                data = b"\n" + data
        try:
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        except OSError as error:  # a full disk: half a case is of no use
            file.truncate(size)
            raise OSError(error.errno, error.strerror, str(path)) from error


def rewrite(path: Path, rows: Iterable[Row], unreadable: Iterable[tuple[int, str, str]] = ()) -> None:
    """Replace a file by these rows, at once or not at all; lines that are no rows go to `<file>.unreadable`.

    A symbolic link stays one: the file that it names is replaced.
    """
    path = path.resolve()
    lines = [line for _, line, _ in unreadable]
    if lines:
        with path.with_name(path.name + ".unreadable").open("a") as file:
            file.writelines(line + "\n" for line in lines)
    _replace(path, _lines(rows))


def _replace(path: Path, data: bytes) -> None:
    """Have a file hold these bytes, at once or not at all. Raises OSError, with the path."""
    temporary = path.with_name(path.name + ".part")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    temporary.replace(path)


def write_csv(rows: Iterable[Row], path: Path) -> None:
    """Replace a file by the same rows as CSV, without the columns that are empty throughout.

    What is no text (a file's name in another encoding, within a command) is written as its escapes.
    """
    text = to_frame(rows).dropna(axis="columns", how="all").to_csv(index=False)
    _replace(path.resolve(), text.encode(errors="backslashreplace"))
