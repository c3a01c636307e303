"""From a timeline's passes to tables: microseconds by stage, kernels by stage, the gap, the host's share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from ...profiling.timeline import Kernel, Pass, charge, check_marked, pick, with_stages
from ..core.stages import place


@dataclass(frozen=True, slots=True)
class Section:
    """Passes of one kind and launch.

    Attributes:
        kind: "step" or "rectification"; launch: "graph" or "eager".
        stages_us: mean microseconds of a pass by stage, in the order of a step.
        gap_us: in which the device stood still between kernels (of passes in a row, between passes too).
        host_us: that the host spent on a pass, `call_us` of it in the calls that enqueue.
        kernels: of all passes, with stages, in device order.
    """

    kind: str
    launch: str
    passes: int
    stages_us: dict[str, float]
    gap_us: float
    host_us: float
    call_us: float
    kernels: tuple[Kernel, ...]

    @property
    def wall_us(self) -> float:
        """Stages and gap."""
        return sum(self.stages_us.values()) + self.gap_us

    @property
    def one_pass(self) -> tuple[Kernel, ...]:
        """The kernels of the last pass: of several, the one furthest from warm-up."""
        return self.kernels[-(len(self.kernels) // self.passes) :]


def sections(recorded: Sequence[Pass], *, back_to_back: bool) -> list[Section]:
    """Steps and rectifications, replayed and eager. Raises TraceMismatch (profiling.timeline)."""
    parts = []
    for kind in ("step", "rectification"):
        eager = pick(recorded, kind, graph=False)
        if not eager:
            continue
        marked = eager[-1].kernels
        check_marked(marked)
        replayed = pick(recorded, kind, graph=True)
        if replayed:
            kernels = with_stages([k for a_pass in replayed for k in a_pass.kernels], marked, len(replayed))
            parts.append(_section(replayed, kernels, "graph", back_to_back and kind == "step"))
        parts.append(_section(eager[-1:], marked, "eager", False))
    return parts


def _section(alike: Sequence[Pass], kernels: Sequence[Kernel], launch: str, between: bool) -> Section:
    result = charge(kernels, len(alike), between=between)
    stages = sorted(result.stages_us.items(), key=lambda item: place(item[0]))
    host_us, call_us = (sum(getattr(p, name) for p in alike) / len(alike) for name in ("host_us", "call_us"))
    return Section(
        alike[0].kind, launch, len(alike), dict(stages), result.gap_us, host_us, call_us, tuple(kernels)
    )  # fmt: skip


def stage_frame(parts: Sequence[Section]) -> pd.DataFrame:
    """A line a stage, and `gap`: kind, launch, stage, kernels (a pass), time_us, share (of the traced wall clock)."""
    lines = []
    for part in parts:
        for name, value in (*part.stages_us.items(), ("gap", part.gap_us)):
            count = sum(kernel.stage == name for kernel in part.one_pass)
            lines.append((part.kind, part.launch, name, count, round(value, 3), round(value / part.wall_us, 5)))
    return pd.DataFrame(lines, columns=["kind", "launch", "stage", "kernels", "time_us", "share"])


def kernel_frame(parts: Sequence[Section]) -> pd.DataFrame:
    """A line a kernel and stage: kind, launch, stage, kernel, count (a pass), median_us, total_us (a pass).

    Kernels' own durations; with programmatic dependent launch they overlap and sum to more than the stages.
    """
    lines = []
    for part in parts:
        frame = pd.DataFrame(
            [(k.stage, k.name, k.duration_us) for k in part.kernels], columns=["stage", "kernel", "us"]
        )
        for (stage, name), group in frame.groupby(["stage", "kernel"], sort=False):
            count, total = len(group) / part.passes, group.us.sum() / part.passes
            lines.append((part.kind, part.launch, stage, name, count, round(group.us.median(), 3), round(total, 3)))
    return pd.DataFrame(lines, columns=["kind", "launch", "stage", "kernel", "count", "median_us", "total_us"])


def timeline_frame(parts: Sequence[Section]) -> pd.DataFrame:
    """The kernels of one pass of each kind, as the suite launches it: kind, launch, stage, kernel, start_us, end_us."""
    lines = []
    for kind in dict.fromkeys(part.kind for part in parts):
        part = next(part for part in parts if part.kind == kind)  # graph before eager
        start = part.one_pass[0].start_us
        lines += [
            (kind, part.launch, k.stage, k.name, round(k.start_us - start, 3), round(k.end_us - start, 3))
            for k in part.one_pass
        ]
    return pd.DataFrame(lines, columns=["kind", "launch", "stage", "kernel", "start_us", "end_us"])
