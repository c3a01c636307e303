"""The parts of the reference run: those that each suite of the registry gives, and the profiles."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..core.reference import Part
from ..core.registry import Suite, suites
from ..profile.reference import PARTS as PROFILE_PARTS

PROFILE = "profile"


@dataclass(frozen=True, slots=True)
class Step:
    """A part with the command that owns it.

    Attributes:
        owner: the suite's name, or `profile`.
        options: words that every part of its owner takes.
    """

    owner: str
    part: Part
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The owner's name, and the part's where it has one."""
        return f"{self.owner}-{self.part.name}" if self.part.name else self.owner

    @property
    def file(self) -> str:
        """Name of the published file."""
        return (self.part.file or self.owner) + ".jsonl.gz"

    def words(self, work: Path, device: str | None = None) -> list[str]:
        """The command's words; results go to the part's folder in `work`."""
        own = [word.replace("{work}", work.as_posix()) for word in shlex.split(self.part.arguments)]
        where = ["--device", device] if device else []
        return [self.owner, *own, *self.options, *where, "--output", (work / self.name).as_posix()]

    def results(self, work: Path) -> Path:
        """The file that the command writes its rows to."""
        return work / self.name / f"{self.owner}.jsonl"


def steps(device: torch.device) -> list[Step]:
    """Every part that is run on such a device, in order. A suite that is registered is among them."""
    listed = [
        Step(suite.name, part, _options(suite))
        for suite in suites().values()
        for part in suite.reference
        if part.minutes(device.type) is not None
    ]
    return [*listed, *(Step(PROFILE, part) for part in PROFILE_PARTS if part.minutes(device.type) is not None)]


def choose(known: Sequence[Step], names: Iterable[str]) -> list[Step]:
    """The parts of these names, in the order of the list; a suite's name stands for all its parts. All for no names.

    Raises:
        ValueError: a name that is neither.
    """
    names = list(names)
    for name in names:
        if not any(name in (step.name, step.owner) for step in known):
            raise ValueError(f"--part {name[:60]}: unknown; parts are {', '.join(step.name for step in known)}")
    return [step for step in known if not names or step.name in names or step.owner in names]


def usual_machine(device_type: str) -> str:
    """Where the expected minutes of parts were measured."""
    return "an H200" if device_type == "cuda" else "two cores"


def total_minutes(chosen: Iterable[Step], device_type: str) -> float:
    """Expected of parts in one call: those that run side by side take as long as the longest of them."""
    chosen = list(chosen)
    together = [step for step in chosen if is_side_by_side(step, device_type)]
    minutes = {step.name: step.part.minutes(device_type) or 0.0 for step in chosen}
    apart = sum(minutes[step.name] for step in chosen if step not in together)
    return apart + max((minutes[step.name] for step in together), default=0.0)


def is_side_by_side(step: Step, device_type: str) -> bool:
    """Whether a part shares the device with others: on a GPU those that time nothing. A CPU has no room for two."""
    return device_type == "cuda" and not step.part.timed


def _options(suite: Suite) -> tuple[str, ...]:
    """Figures are drawn from the published files, not by the parts."""
    return ("--no-plots",) if any(flag.name == "no_plots" for flag in suite.flags) else ()
