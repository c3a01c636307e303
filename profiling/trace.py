"""Tracing with torch's own profiler: a timeline, and where a step's GPU time goes.

Only one tool may listen to the GPU: under Nsight or compute-sanitizer (`profiling.attached`) nothing here may run.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from .attached import attached
from .ranges import Named, listening
from .timeline import (
    Breakdown,
    Call,
    Kernel,
    Range,
    Timeline,
    charge,
    check_marked,
    short_name,
    staged_kernels,
    with_stages,
)

PREFIX = "resa/"
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
LAUNCHES = ("cuda_runtime", "cuda_driver")


def timeline_of(events: Sequence[dict[str, Any]]) -> Timeline:
    """The timeline of a Chrome trace.

    Args:
        events: its `traceEvents`, times in microseconds.
    """
    timeline = Timeline()
    for e in events:
        category, arguments = e.get("cat"), e.get("args", {})
        if category == "user_annotation" and e["name"].startswith(PREFIX):
            name = e["name"].removeprefix(PREFIX)
            timeline.ranges.append(Range(e["tid"], name, e["ts"], e["ts"] + e["dur"]))
        elif category in LAUNCHES and "correlation" in arguments:
            timeline.calls[arguments["correlation"]] = Call(e["tid"], e["ts"], e["ts"] + e["dur"])
        elif category in ON_DEVICE:
            kernel = Kernel(short_name(e["name"]), e["ts"], e["ts"] + e["dur"])
            timeline.kernels.append((kernel, arguments.get("correlation")))
    return timeline


def record(
    run: Callable[[], object], repeats: int = 1, *, spans: bool = False, ready: Callable[[], object] | None = None
) -> Timeline:
    """Trace `repeats` calls of `run` on the current GPU, with stages and, if asked, spans as ranges.

    Args:
        ready: called when tracing has begun. It is for ranks to wait for each other: a profiler takes milliseconds to
            start, and the first exchange would contain the difference.

    Returns:
        Kernels, calls and ranges, times in microseconds.

    Raises:
        RuntimeError: another tool is attached.
    """
    if attached():
        raise RuntimeError(f"this process runs under {attached()}: torch's profiler cannot trace beside it")
    torch.cuda.synchronize()
    named = Named(lambda name: record_function(PREFIX + name), spans=spans)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler, listening(named):
        if ready is not None:
            ready()
        for _ in range(repeats):
            run()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return timeline_of(json.loads(path.read_text())["traceEvents"])


def break_down(
    eager: Callable[[], object],
    replay: Callable[[], object] | None,
    repeats: int = 3,
    *,
    ready: Callable[[], object] | None = None,
) -> Breakdown:
    """Stages of `replay` (or of the eager calls themselves where it is None), which must run the kernels of `eager`.

    Args:
        repeats: of `replay`, over which the mean is taken.
        ready: as `record` takes it, before either.

    Raises:
        TraceMismatch: it does not, or a kernel was launched outside every stage.
    """
    marked = [kernel for kernel, _ in staged_kernels(record(eager, ready=ready))]
    if replay is None:
        check_marked(marked)
        return charge(marked)
    replayed = [kernel for kernel, _ in staged_kernels(record(replay, repeats, ready=ready))]
    return charge(with_stages(replayed, marked, repeats), repeats)
