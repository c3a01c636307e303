"""Reading what strangers wrote: files of bounded size, JSON objects, and their fields with type and range checked.

Every fault is a ValueError of one line: the file, the field, what it holds, what was expected.
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MOST_JSON_BYTES = 2**28  # the largest tokenizer.json take some 30 MB
SHOWN_CHARS = 60  # of a wrong value in an error

MOST = {
    "layers": 10_000,
    "hidden": 2**20,
    "heads": 2**14,
    "head_dim": 2**12,
    "ffn": 2**24,
    "vocab": 2**24,
    "context": 2**31 - 1,
}
"""The largest sizes of a model that are taken for meant: some hundred times today's."""


def regular_file(path: Path) -> Path:
    """The path, where it is a file that can be read to its end: no folder, pipe or device.

    Raises:
        ValueError: it is something else, or not there.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} cannot be read: not a file")
    return path


def read_text(path: Path, most_bytes: int = MOST_JSON_BYTES) -> str:
    """A UTF-8 file's text. Raises ValueError where it is missing, no text, or larger than `most_bytes`."""
    regular_file(path)
    try:
        if path.stat().st_size > most_bytes:
            raise ValueError(f"{path} has {path.stat().st_size} bytes, at most {most_bytes} are read")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} cannot be read: no UTF-8 at byte {error.start}") from None


def parse_object(text: str | bytes, where: object) -> dict[str, Any]:
    """A JSON object of which no key stands twice. Raises ValueError naming `where`."""
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError(f"{where} cannot be read: nested too deeply") from None
    except ValueError as error:  # of JSON, of the encoding, a number of too many digits, a key that stands twice
        raise ValueError(f"{where} cannot be read: {one_line(error)}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected an object, got {type(value).__name__}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {shown(twice)} stands twice")
    return values


def one_line(error: BaseException) -> str:
    """What an error of a library says, on one line of bounded length."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def shown(value: object) -> str:
    """A value for an error message: its beginning."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}..."


@dataclass(frozen=True, slots=True)
class Fields:
    """An object's fields, checked as they are read. A field of null counts as absent."""

    values: Mapping[str, Any]
    where: str  # the file, for errors

    def has(self, key: str) -> bool:
        """Whether the field is there and not null."""
        return self.values.get(key) is not None

    def check_present(self, *keys: str) -> None:
        """Raises ValueError naming all of `keys` that are absent."""
        absent = [key for key in keys if not self.has(key)]
        if absent:
            raise ValueError(f"{self.where} does not say {', '.join(absent)}")

    def integer(self, key: str, default: int | None = None, *, least: int = 1, most: int = 2**31 - 1) -> int:
        """Raises ValueError where the field is no integer of that range, or absent without a default."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.wrong(key, f"an integer from {least} to {most}")
        return value

    def number(self, key: str, default: float | None = None, *, above: float = -math.inf, least: float | None = None,
               most: float = 1e12) -> float:  # fmt: skip
        """A finite number. Raises ValueError where it is none, not above `above`, below `least` or above `most`."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(key, "a number")
        bounds = [f"at least {least}" if least is not None else f"above {above}", f"at most {most:g}"]
        if not (value > above and (least is None or value >= least) and value <= most):  # NaN is none of these
            raise self.wrong(key, f"a number {bounds[0]} and {bounds[1]}")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """Raises ValueError where the field is neither true nor false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """Raises ValueError where the field is no text."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "text")
        return value

    def choice(self, key: str, allowed: Sequence[str]) -> str:
        """Raises ValueError where the field is none of `allowed`."""
        value = self.values.get(key)
        if not isinstance(value, str) or value not in allowed:
            raise ValueError(f"{self.where}: {key} is {shown(value)}, supported are {', '.join(allowed)}")
        return value

    def object(self, key: str) -> Fields:
        """The object in that field, empty where it is absent. Raises ValueError where it is something else."""
        value = self._get(key, {})
        if not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return Fields(value, f"{self.where}, {key}")

    def wrong(self, key: str, expected: str) -> ValueError:
        """The error for a field that is not as `expected`."""
        value = self.values.get(key)
        if value is None:
            return ValueError(f"{self.where} does not say {key}, expected {expected}")
        return ValueError(f"{self.where}: {key} is {shown(value)}, expected {expected}")

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        return default if value is None else value
