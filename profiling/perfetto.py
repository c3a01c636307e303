"""A recorded pass as Chrome's trace-event JSON, which ui.perfetto.dev and chrome://tracing open.

A process is a method, a thread a stage (and one of the passes themselves), a complete event (`ph` X) a kernel. Times are
microseconds from the first pass's start; a pass starts where the one before it ended.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PASSES = "passes"
PASSES_TID = 1


@dataclass(frozen=True, slots=True)
class Launched:
    """A kernel of one pass, in device order; times in microseconds from the pass's start."""

    kind: str  # "step" or "rectification"
    launch: str  # "graph" or "eager"
    stage: str
    kernel: str
    start_us: float
    end_us: float


def trace_events(
    methods: Mapping[str, Iterable[Launched]], order: Callable[[str], Any] = str, **about: str
) -> dict[str, Any]:
    """The trace as a JSON object.

    A kernel that was let in early waits for the ones before it: its event starts with its turn, so that the events of a
    thread never overlap. `args` hold when it started itself, and how long it waited.

    Args:
        methods: the kernels of each method's passes, by its name.
        order: sorts stages, as threads from above.
        about: what is known of the recording; `otherData` of the trace.
    """
    events: list[dict[str, Any]] = []
    for pid, (method, launched) in enumerate(methods.items(), 1):
        kernels = list(launched)
        stages = sorted({kernel.stage for kernel in kernels}, key=order)
        tids = {stage: tid for tid, stage in enumerate(stages, PASSES_TID + 1)}
        events.append(_named("process_name", method, pid, 0))
        for name, tid in {PASSES: PASSES_TID, **tids}.items():
            events.append(_named("thread_name", name, pid, tid))
            events.append(_named("thread_sort_index", tid, pid, tid))
        start_us = 0.0
        for kind in dict.fromkeys(kernel.kind for kernel in kernels):
            own = [kernel for kernel in kernels if kernel.kind == kind]
            end_us = max(kernel.end_us for kernel in own)
            args = {"launch": own[0].launch, "kernels": len(own)}
            events.append(_complete(kind, "pass", pid, PASSES_TID, start_us, end_us, args))
            before_us = 0.0
            for kernel in own:
                turn_us = max(kernel.start_us, before_us)
                args = {
                    "start_us": round(start_us + kernel.start_us, 3),
                    "waited_us": round(turn_us - kernel.start_us, 3),
                }
                span = start_us + turn_us, max(kernel.end_us - turn_us, 0.0)
                events.append(_complete(kernel.kernel, kernel.stage, pid, tids[kernel.stage], *span, args))
                before_us = max(before_us, kernel.end_us)
            start_us += end_us
    return {"traceEvents": events, "displayTimeUnit": "ns", "otherData": dict(about)}


def write_trace(path: Path, trace: Mapping[str, Any]) -> None:
    """Write a trace, an event a line."""
    events = ",\n".join(json.dumps(event) for event in trace["traceEvents"])
    rest = json.dumps({name: value for name, value in trace.items() if name != "traceEvents"})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{{"traceEvents": [\n{events}\n],\n{rest[1:]}\n')


def _named(what: str, value: str | int, pid: int, tid: int) -> dict[str, Any]:
    key = "sort_index" if what.endswith("sort_index") else "name"
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {key: value}}


def _complete(
    name: str, category: str, pid: int, tid: int, start_us: float, duration_us: float, args: dict[str, Any]
) -> dict[str, Any]:
    ends = {"ts": round(start_us, 3), "dur": round(duration_us, 3)}
    return {"ph": "X", "name": name, "cat": category, "pid": pid, "tid": tid, **ends, "args": args}
