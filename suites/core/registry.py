"""Suites by name: the command line, the worker, nox and the figures iterate over them.

A suite is a folder beside this one whose `cli` module makes one `Suite`; others register theirs (`register_suite`).
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from .bench import Bench, Case, Report
from .flags import Flag, Options
from .reference import WHOLE, Part
from .rows import Row
from .spec import MethodSpec

PACKAGE = __package__.rpartition(".")[0]
FOLDER = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Plan:
    """What a suite is about to measure.

    Attributes:
        specs: methods of every case.
        further: methods that only some cases run, by the case's slug.
        kinds: cache states, launches and stages that every timed method must have a row of to count as done.
        measure: handed to the suite's run as `Bench.plan`; pickles.
        fresh: measure again what the output holds.
        notes: said before the run.
    """

    cases: Sequence[Case]
    specs: Sequence[MethodSpec]
    further: Mapping[str, Sequence[MethodSpec]] = field(default_factory=dict)
    kinds: Sequence[str] = ()
    measure: Any = None
    fresh: bool = False
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Suite:
    """A command that measures cases with methods: rows, a table, figures.

    Attributes:
        help: one line; `examples` teach the rest under `--help`.
        flags: what the command takes.
        plan: from options and device to what is measured. Raises ValueError for options that do not go together.
        run: rows of one case; a method that fails costs its own rows alone. Runs in the measuring process.
        report: prints the tables of all rows. `run` and `report` may be left out beside `act` alone.
        show_plan: prints what `--plan` says; cases and methods by name where it is None.
        act: the whole command, for suites that do not go through the runner: options, device, command line, console
            to exit status.
        instead: what a flag asks for in place of measuring: its exit status, or None to measure.
        shares_model: whether the ranks that torchrun starts share one model (tensor parallel).
        extra: the optional dependencies of pyproject.toml that it needs.
        reference: its parts of the reference run; the default list where it says nothing.
    """

    name: str
    help: str
    examples: str
    flags: tuple[Flag, ...]
    plan: Callable[[Options, torch.device], Plan]
    run: Callable[[Any, Sequence[MethodSpec], Bench, Report], list[Row]] | None = None
    report: Callable[[Sequence[Row], Console], None] | None = None
    show_plan: Callable[[Plan, torch.device, Console], None] | None = None
    act: Callable[[Options, torch.device, str, Console], int] | None = None
    instead: Callable[[Options, Console], int | None] | None = None
    extra: str | None = None
    shares_model: bool = False
    reference: tuple[Part, ...] = WHOLE

    def __post_init__(self) -> None:
        if self.act is None and None in (self.run, self.report):
            raise ValueError(f"suite {self.name!r}: expected run and report, or act")


_registered: dict[str, Suite] = {}


def register_suite(suite: Suite) -> Suite:
    """Make a suite known that is no folder of this package. Raises ValueError for a name that is taken."""
    if suite.name in folders() or _registered.get(suite.name, suite) is not suite:
        raise ValueError(f"suite {suite.name!r} is there already")
    _registered[suite.name] = suite
    return suite


def folders() -> list[str]:
    """Names of the suites that are folders of this package."""
    names = [module.name for module in pkgutil.iter_modules([str(FOLDER)]) if module.ispkg]
    return [name for name in names if (FOLDER / name / "suite.py").is_file()]


def suites() -> dict[str, Suite]:
    """Every suite by name: those of this package in the order people meet them, then registered ones."""
    own = {name: get_suite(name) for name in sorted(folders(), key=_rank)}
    return own | _registered


def get_suite(name: str) -> Suite:
    """Raises KeyError naming the suites that there are."""
    if name in _registered:
        return _registered[name]
    if name not in folders():
        raise KeyError(f"no suite {name!r}; known are {', '.join((*folders(), *_registered))}")
    return import_module(f"{PACKAGE}.{name}.suite").SUITE  # type: ignore[no-any-return]


FIRST = ("micro", "decode", "quality", "tasks", "lossless", "gsr", "maths", "linear")


def _rank(name: str) -> tuple[int, str]:
    return (FIRST.index(name) if name in FIRST else len(FIRST), name)
