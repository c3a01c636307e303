"""A reference run whose parts write rows at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from resa_bench.suites.core.manifest import Sources, read_manifest
from resa_bench.suites.core.reference import Part
from resa_bench.suites.core.results import append, read_rows
from resa_bench.suites.core.rows import Row, from_record
from resa_bench.suites.reference.parts import Step
from resa_bench.suites.reference.run import Reference
from rich.console import Console

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FIRST, SECOND = Sources("a" * 40, False, "first"), Sources("b" * 40, False, "second")
ORDER = (
    Step("echo", Part(cpu_minutes=4.0)),
    Step("echo", Part("--seed 1", name="seeded", cpu_minutes=4.0)),
    Step("other", Part("--from {work}/echo/echo.jsonl", cpu_minutes=4.0)),
)


def row(**columns: object) -> Row:
    shape = {"context": 1, "batch": 1, "q_heads": 4, "kv_heads": 2, "head_dim": 16, "model": "none", "method": "m"}
    return from_record({**shape, "suite": "echo", "case": "c", "stage": "total", "status": "ok", **columns})[0]


class FakeLaunch:
    """Writes two rows where the command would; what it was told to do it does once."""

    def __init__(self, **endings: int) -> None:
        self.commands: list[list[str]] = []
        self.limits: list[float | None] = []
        self.endings, self.now = endings, 0.0

    def __call__(self, words: Sequence[str], log: Path, seconds: float | None) -> int:
        self.commands.append(list(words))
        self.limits.append(seconds)
        self.now += 4 * 60.0
        folder = Path(words[-1])
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("starting\nthis went wrong\n")
        status = self.endings.pop(folder.name, 0)
        if status != 1:
            append(folder / f"{words[0]}.jsonl", [row(case=f"{folder.name}-{i}") for i in range(2)])
        return status

    @property
    def parts(self) -> list[str]:
        """Names of the parts run."""
        return [Path(words[-1]).name for words in self.commands]


def reference(folder: Path, launch: FakeLaunch, sources: Sources = FIRST, work: str = "work") -> Reference:
    output = folder / "results"
    return Reference(
        ORDER, output, folder / work, CPU, sources, read_manifest(output), {"name": "a chip"}, {"torch": "9"},
        Console(quiet=True), launch=launch, clock=lambda: launch.now,
    )  # fmt: skip


def cases(path: Path) -> list[str]:
    return [r.case for r in read_rows(path)]
