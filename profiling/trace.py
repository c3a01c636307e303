"""Where a step's GPU time goes, kernel by kernel: a trace of graph replays, with stages from an eager pass.

Marks set at capture do not show in a replay, but the kernels of a replay are those of an eager pass in the same
order. So the eager pass is traced with its marks, each kernel gets the stage its launch was marked with, and the
replay's kernels take over the stages one by one; where the two sequences differ there is no breakdown.

A kernel is charged from the end of the kernel before it, or from its own start where that is later: with programmatic
dependent launch a kernel may start early and wait. Charges and gaps add up to the span exactly.
"""

from __future__ import annotations

import json
import re
import tempfile
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from .ranges import listening

PREFIX = "resa/"
UNMARKED = "other"
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
LAUNCHES = ("cuda_runtime", "cuda_driver")


class TraceMismatch(RuntimeError):
    """The replay's kernels are not those of the eager pass."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel (or copy) on the device. Times in microseconds."""

    name: str
    start_us: float
    end_us: float
    stage: str = UNMARKED


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Mean microseconds of one repetition, by stage, and what the device idled between its first and last kernel."""

    stages_us: dict[str, float]
    gap_us: float
    kernels: int


def kernels_of(events: Sequence[dict[str, Any]]) -> list[Kernel]:
    """Kernels of a Chrome trace in device order, each with the mark that enclosed its launch.

    Args:
        events: the `traceEvents` of a trace, times in microseconds.
    """
    marks: dict[Any, list[tuple[float, float, str]]] = {}
    launched: dict[Any, tuple[Any, float]] = {}
    for e in events:
        category = e.get("cat")
        if category == "user_annotation" and e["name"].startswith(PREFIX):
            marks.setdefault(e["tid"], []).append((e["ts"], e["ts"] + e["dur"], e["name"].removeprefix(PREFIX)))
        elif category in LAUNCHES and "correlation" in e.get("args", {}):
            launched[e["args"]["correlation"]] = (e["tid"], e["ts"])
    for spans in marks.values():
        spans.sort()

    def stage(correlation: Any) -> str:
        thread, at = launched.get(correlation, (None, 0.0))
        spans = marks.get(thread, [])
        i = bisect_right(spans, (at, float("inf"), "")) - 1
        return spans[i][2] if i >= 0 and at <= spans[i][1] else UNMARKED

    found = [
        Kernel(short_name(e["name"]), e["ts"], e["ts"] + e["dur"], stage(e.get("args", {}).get("correlation")))
        for e in events
        if e.get("cat") in ON_DEVICE
    ]
    return sorted(found, key=lambda k: k.start_us)


def short_name(name: str) -> str:
    """A kernel's name without template arguments and parameters; `copy` for copies, which graphs do by kernels."""
    if name.lower().startswith("memcpy"):
        return "copy"
    return re.split(r"[<(]", name.removeprefix("void "))[0].strip()


def with_stages(replayed: Sequence[Kernel], eager: Sequence[Kernel], repeats: int) -> list[Kernel]:
    """`replayed` (the eager sequence `repeats` times over) with the eager kernels' stages.

    Raises:
        TraceMismatch: another number of kernels, or another kernel at some place.
    """
    if len(replayed) != repeats * len(eager):
        raise TraceMismatch(f"{len(replayed)} kernels in {repeats} replays, {len(eager)} in an eager pass")
    out = []
    for i, kernel in enumerate(replayed):
        source = eager[i % len(eager)]
        if kernel.name != source.name:
            raise TraceMismatch(
                f"kernel {i % len(eager)} is {kernel.name} in the replay, {source.name} in the eager pass"
            )
        out.append(Kernel(kernel.name, kernel.start_us, kernel.end_us, source.stage))
    return out


def charge(kernels: Sequence[Kernel], repeats: int) -> Breakdown:
    """Microseconds by stage and gap per repetition; the gap between repetitions belongs to neither."""
    stages: defaultdict[str, float] = defaultdict(float)
    gap, per_repeat = 0.0, len(kernels) // repeats if repeats else 0
    for i, kernel in enumerate(kernels):
        if i % per_repeat == 0:
            end = kernel.start_us
        gap += max(0.0, kernel.start_us - end)
        stages[kernel.stage] += max(0.0, kernel.end_us - max(kernel.start_us, end))
        end = max(end, kernel.end_us)
    return Breakdown({k: v / repeats for k, v in stages.items()}, gap / repeats, per_repeat)


def record(run: Callable[[], object], repeats: int = 1) -> list[Kernel]:
    """Trace `repeats` calls of `run` on the current GPU."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(repeats):
            run()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return kernels_of(json.loads(path.read_text())["traceEvents"])


def break_down(eager: Callable[[], object], replay: Callable[[], object] | None, repeats: int = 3) -> Breakdown:
    """Stages of `replay` (or of the eager calls themselves where it is None), which must run the kernels of `eager`.

    Raises:
        TraceMismatch: it does not.
    """
    with listening(lambda stage: record_function(PREFIX + stage)):
        marked = record(eager)
        if replay is None:
            return charge(marked, 1)
    return charge(with_stages(record(replay, repeats), marked, repeats), repeats)
