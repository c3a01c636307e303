"""Kinds of task by name: cases, tables and the command line iterate over them.

A kind is a file in `kinds/`, which registers it. Others do the same in a module that RESA_BENCH_PLUGINS names.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from ..model.config import ModelConfig
from .cases import TaskCase
from .task import Task

FOLDER = Path(__file__).resolve().parent / "kinds"
FIRST = ("divergence", "needle", "copy")
"""Those that tables show first; the others follow in alphabetical order."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of a task a list holds.

    Attributes:
        prompts: tokens of its prompts.
        settings: what else its cases are, by field.
        listed: whether the list holds the task at all where nobody names it.
    """

    prompts: tuple[int, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    listed: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskKind:
    """A kind of task.

    Attributes:
        name: in rows, and for `--task`.
        title: what its score is, over its table.
        case: makes a case from `model`, `config`, `prompt`, `dtype`, `seed` and the scale's settings. It may choose
            other settings that a list can have, such as how many prompts are decoded together.
        task: what is done with a case.
        scales: by `quick`, `default` (on a CPU), `gpu` and `full`.
    """

    name: str
    title: str
    case: Callable[..., TaskCase]
    task: Callable[..., Task]
    scales: Mapping[str, Scale]

    def prompts(self, scale: str, config: ModelConfig, room: int) -> tuple[int, ...]:
        """Prompts of the scale's list that the model handles with `room` tokens after them.

        Where a longer one does not fit, the longest whole K that does takes its place.
        """
        listed, most = self.scales[scale].prompts, config.context - room
        fitting = tuple(tokens for tokens in listed if tokens <= most)
        if len(fitting) == len(listed):
            return fitting
        longest = most // 1024 * 1024
        return tuple(dict.fromkeys((*fitting, longest))) if longest > 0 else listed[:1]


_kinds: dict[str, TaskKind] = {}


def register_task(kind: TaskKind) -> TaskKind:
    """Make a kind of task known. Raises ValueError for a name that is taken."""
    if kind.name in _kinds:
        raise ValueError(f"task {kind.name!r} is there already; known are {', '.join(_kinds)}")
    _kinds[kind.name] = kind
    return kind


def task_kinds() -> dict[str, TaskKind]:
    """Every kind by name, in the order of tables."""
    for module in pkgutil.iter_modules([str(FOLDER)]):
        import_module(f"{__package__}.kinds.{module.name}")
    return {name: _kinds[name] for name in sorted(_kinds, key=_rank)}


def _rank(name: str) -> tuple[int, str]:
    return (FIRST.index(name) if name in FIRST else len(FIRST), name)
