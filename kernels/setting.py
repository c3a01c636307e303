"""What is said once of a setting: its default, its meaning, its range, and the word that names a variant by it.

Flags, columns of rows, their identity and the names of variants derive from these entries (suites/core/settings.py).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import MISSING, dataclass, field, fields
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting of a method.

    Attributes:
        kind: type of a value.
        flag: command line option; None for a setting that no command asks for, and that is no column.
        symbol: what papers call it; the option's placeholder.
        choices: all values there are; empty where a range or `names` says it.
        names: all values there are so far; more may be registered.
        least, above, most: the range: at least, more than, at most.
        word: names a variant by the value, as `b{}`; empty where no name says it.
        quiet: said only where two variants would have one name without it.
        blank: a value that leaves the column empty.
        role: "choice" (how many blocks, and which always), "score" (what ranks them), "budget", or empty where the
            setting does not change which blocks are read.
        only_with: another setting and the value that it must have; otherwise this one makes no difference.
    """

    name: str
    default: Any
    help: str
    kind: type
    flag: str | None = None
    symbol: str | None = None
    choices: tuple[Any, ...] = ()
    names: Collection[str] | None = None
    least: float | None = None
    above: float | None = None
    most: float | None = None
    word: str = ""
    quiet: bool = False
    blank: Any = None
    role: str = ""
    only_with: tuple[str, Any] | None = None

    def check(self, value: Any) -> None:
        """Raises ValueError for a value out of range."""
        if value is None and self.default is None:
            return
        choices = self.choices or tuple(self.names or ())
        if choices:
            if not any(type(value) is type(choice) and value == choice for choice in choices):
                allowed = ", ".join(map(str, choices))
                raise ValueError(f"{self.name}: got {value!r}, allowed are {allowed}")
            return
        if isinstance(value, bool) or not isinstance(value, (int, float) if self.kind is float else int):
            raise ValueError(f"{self.name}: got {value!r}, expected {self.kind.__name__}")
        low = self.least is None or value >= self.least
        over = self.above is None or value > self.above
        high = self.most is None or value <= self.most
        if not (low and over and high):  # false for NaN, too
            raise ValueError(f"{self.name}: got {value}, must be {self.range}")

    @property
    def range(self) -> str:
        """The range in words."""
        parts = [f"at least {self.least:g}"] if self.least is not None else []
        parts += [f"above {self.above:g}"] if self.above is not None else []
        parts += [f"at most {self.most:g}"] if self.most is not None else []
        return ", ".join(parts) or "a number"


def setting(default: Any, help: str, **facts: Any) -> Any:
    """A dataclass field that is a setting; `facts` are further attributes of `Setting`."""
    return field(default=default, metadata={"setting": {"help": help, "kind": type(default), **facts}})


def declared(owner: type) -> dict[str, Setting]:
    """The settings that a dataclass declares, by name, in order."""
    return {
        f.name: Setting(name=f.name, default=None if f.default is MISSING else f.default, **f.metadata["setting"])
        for f in fields(owner)
        if "setting" in f.metadata
    }
