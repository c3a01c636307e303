"""What a suite gives to the reference run: parts, each one command of under ten minutes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .rows import Row

MOST_MINUTES = 10.0
"""Of one part: what one command may take on machines that are lent by the call."""


@dataclass(frozen=True, slots=True)
class Part:
    """One command of the reference run.

    Attributes:
        arguments: what follows the suite's name, as in a shell. `{work}` is the folder that holds one for each part.
        name: stands after the suite's name and a dash; empty for a suite's only or first part.
        gpu_minutes, cpu_minutes: expected on an H100, and on two CPU cores; None where the part is not run.
        file: the result file's name without its ending; empty for the suite's name. Parts may share a file.
        rows: reads the rows from the part's folder; None for the suite's own result file.
        keeps: files of the part's folder, by name, that are published as they are.
        timed: whether its rows hold times. Parts without any share a GPU: they run side by side.
    """

    arguments: str = ""
    name: str = ""
    gpu_minutes: float | None = 5.0
    cpu_minutes: float | None = 5.0
    file: str = ""
    rows: Callable[[Path], list[Row]] | None = None
    keeps: tuple[str, ...] = ()
    timed: bool = True

    def minutes(self, device_type: str) -> float | None:
        """Expected on a `cuda` or a `cpu` device; None where the part is not run."""
        return self.gpu_minutes if device_type == "cuda" else self.cpu_minutes


WHOLE = (Part(),)
"""What a suite gives that says nothing: its default list."""
