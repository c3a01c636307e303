"""The profile commands: run the tool on a case, read what it recorded, write and print tables."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console

from ...profiling import ncu, nsys
from ...profiling.attached import attached
from ...profiling.nvtx_ranges import NvtxRanges
from ...profiling.perfetto import Launched, trace_events, write_trace
from ...profiling.process import ToolFailed, ToolMissing, run
from ...profiling.ranges import StageClock, listening
from ...profiling.timeline import Timeline, TraceMismatch, passes
from ...profiling.trace import record
from ..core.exits import DONE, FAILED
from ..core.flags import Options
from ..core.results import check_folder
from ..core.runner import default_folder
from ..core.stages import place
from .analysis import Section, kernel_frame, sections, stage_frame, timeline_frame
from .bytes import byte_frame, counter_frame
from .cli import PERFETTO, target, target_words
from .tables import print_bytes, print_counters, print_sections
from .target import Facts, facts, run_passes, run_under_tool
from .workload import Workload, build

LAUNCHED = ["kind", "launch", "stage", "kernel", "start_us", "end_us"]
"""Columns of timeline.csv."""


def profile_run(options: Options, device: torch.device, console: Console) -> int:
    """The program under the tool: `resa-bench profile run`."""
    if device.type != "cuda":
        raise ValueError("profile run: needs a CUDA device; `profile nsys` clocks the stages on a CPU")
    case, spec = target(options, device)
    torch.cuda.set_device(device)
    with torch.inference_mode():
        workload = build(case, spec, device)
        known = facts(workload, device)
        run_under_tool(workload, NvtxRanges(), options.steps, one_by_one=options.one_by_one)
    if options.facts:
        options.facts.write_text(json.dumps(asdict(known), indent=1) + "\n")
    console.print(
        f"{known.case}, {known.label}: {known.untraced_us:.1f} us a step untraced", highlight=False, markup=False
    )
    return 0


def profile_nsys(options: Options, device: torch.device, console: Console) -> int:
    """Nsight Systems on a case; torch's profiler where nsys cannot; the clock on a CPU."""
    if device.type != "cuda":
        if options.perfetto:
            raise ValueError("profile nsys --perfetto: a CPU records no kernels; expected a CUDA device")
        return _clock(options, device, console)
    folder = _folder(options, device, "nsys")
    try:
        tool = nsys.find()
    except ToolMissing as missing:
        console.print(f"{missing}\ntorch's profiler instead", style="yellow", highlight=False, markup=False)
        timeline, known = _traced_here(options, device)
        source, command = "torch.profiler", _own_command(options, "nsys")
    else:
        report, facts_file, database = (folder / name for name in ("report.nsys-rep", "facts.json", "report.sqlite"))
        program = [*_program(options), "--steps", str(options.steps), f"--facts={facts_file}"]
        words = nsys.command(tool, report, program)
        source, command = "nsys", shlex.join(words)
        console.print(command, highlight=False, soft_wrap=True, markup=False)
        try:
            run(words, "nsys")
            nsys.export(tool, report, database)
            timeline = nsys.read(database)
            database.unlink()
            _say_missing(timeline.missing, console)
        except (ToolFailed, ValueError) as failed:
            return _failed(failed, console)
        known = Facts(**json.loads(facts_file.read_text()))
        console.print(f"report for Nsight Systems' own window: {report}", highlight=False, markup=False)
    try:
        parts = sections(passes(timeline), back_to_back=known.back_to_back)
    except TraceMismatch as mismatch:
        return _failed(f"no stages: {mismatch}", console)
    kernel_frame(parts).to_csv(folder / "kernels.csv", index=False)
    timeline_frame(parts).to_csv(folder / "timeline.csv", index=False)
    _finish(folder, parts, known, source, command, console)
    if options.perfetto:
        trace_file = folder / options.perfetto if options.perfetto == PERFETTO.bare else options.perfetto
        write_perfetto(folder, trace_file)
        console.print(f"trace for ui.perfetto.dev: {trace_file}", highlight=False)
    from ...plots.timeline import draw_timeline

    for path in draw_timeline(folder / "timeline.csv", folder / "facts.json", folder / "timeline"):
        if path.suffix == ".png":
            console.print(f"plot {path}", highlight=False, markup=False)
    return 0


def profile_ncu(options: Options, device: torch.device, console: Console) -> int:
    """Nsight Compute on a case. Exit status 1 if the byte model does not hold."""
    if device.type != "cuda":
        raise ValueError("profile ncu: needs a CUDA device")
    try:
        tool = ncu.find()
    except ToolMissing as missing:
        return _failed(missing, console)
    folder = _folder(options, device, "ncu")
    report, facts_file = folder / "report.ncu-rep", folder / "facts.json"
    words = ncu.command(tool, report, [*_program(options), "--one-by-one", f"--facts={facts_file}"])
    command = shlex.join(words)
    console.print(command, highlight=False, soft_wrap=True, markup=False)
    try:
        run(words, "ncu")
        listed = run(ncu.listing(tool, report), "ncu --import")
        launches = ncu.parse(listed)
        _say_missing(ncu.missing(listed), console)
    except (ToolFailed, ValueError) as failed:
        return _failed(failed, console)
    known = Facts(**json.loads(facts_file.read_text()))
    counters, trial = counter_frame(launches), byte_frame(launches, known.stage_bytes)
    counters.to_csv(folder / "counters.csv", index=False)
    trial.to_csv(folder / "bytes.csv", index=False)
    _write_facts(folder, known, "ncu", command)
    print_counters(counters, console)
    print_bytes(trial, console)
    console.print(
        f"tables in {folder}; the report for Nsight Compute's own window: {report}", highlight=False, markup=False
    )
    return FAILED if (trial.verdict == "disagrees").any() else DONE


def write_perfetto(folder: Path, trace_file: Path) -> None:
    """The passes of a recorded profile as trace-event JSON (profiling/perfetto.py).

    Args:
        folder: of `profile nsys`, with timeline.csv (or timeline.csv.gz) and facts.json.
        trace_file: where to write.
    """
    table = next(path for path in (folder / "timeline.csv", folder / "timeline.csv.gz") if path.exists())
    known = json.loads((folder / "facts.json").read_text())
    launched = [Launched(*values) for values in pd.read_csv(table)[LAUNCHED].itertuples(index=False, name=None)]
    environment = {name: str(value) for name, value in known["environment"].items()}
    about = {"case": known["case"], "source": known["source"], **environment}
    write_trace(trace_file, trace_events({known["label"]: launched}, place, **about))


def _failed(reason: object, console: Console) -> int:
    console.print(str(reason), style="red", highlight=False, markup=False)
    return FAILED


def _say_missing(lines: Sequence[str], console: Console) -> None:
    """What a tool's report lacks, and what is therefore not in the tables."""
    for line in lines:
        console.print(line, style="yellow", highlight=False, markup=False)


def _program(options: Options) -> list[str]:
    return [sys.executable, "-m", "resa_bench.suites", "profile", "run", *target_words(options)]


def _own_command(options: Options, tool: str) -> str:
    return shlex.join(["resa-bench", "profile", tool, *target_words(options)])


def _folder(options: Options, device: torch.device, tool: str) -> Path:
    case, spec = target(options, device)
    name = re.sub(r"[^a-z0-9.]+", "-", f"{case.slug}-{spec.label}".lower())
    folder: Path = options.output or default_folder(device) / "profile" / f"{name}-{tool}"
    check_folder(folder)
    return folder


def _traced_here(options: Options, device: torch.device) -> tuple[Timeline, Facts]:
    """The same passes under torch's profiler, in this process."""
    if attached():
        raise ValueError(f"profile nsys: this process runs under {attached()} itself")
    case, spec = target(options, device)
    torch.cuda.set_device(device)
    with torch.inference_mode():
        workload = build(case, spec, device)
        known = facts(workload, device)
        return record(lambda: run_passes(workload, options.steps), spans=True), known


def _clock(options: Options, device: torch.device, console: Console) -> int:
    """Stages by the wall clock, on a device without a queue."""
    case, spec = target(options, device)
    folder = _folder(options, device, "nsys")
    console.print("[yellow]no GPU:[/] stages by the wall clock, no kernels", highlight=False)
    with torch.inference_mode():
        workload = build(case, spec, device)
        known = facts(workload, device)
        workload.start(options.steps)
        parts = [_clocked("step", workload.eager_step, options.steps, workload)]
        if workload.eager_rectify is not None:
            workload.start_rectify()
            parts.append(_clocked("rectification", workload.eager_rectify, 1, workload))
    _finish(folder, parts, known, "wall clock", _own_command(options, "nsys"), console)
    return 0


def _clocked(kind: str, run: Callable[[], object], count: int, workload: Workload) -> Section:
    clock = StageClock()
    with listening(clock):
        for _ in range(count):
            if workload.flush:
                workload.flush()
            run()
    stages = {name: seconds * 1e6 / count for name, seconds in clock.seconds.items()}
    return Section(kind, "eager", count, stages, 0.0, sum(stages.values()), 0.0, ())


def _finish(folder: Path, parts: Sequence[Section], known: Facts, source: str, command: str, console: Console) -> None:
    stage_frame(parts).to_csv(folder / "stages.csv", index=False)
    _write_facts(folder, known, source, command)
    print_sections(parts, known, source, console)
    console.print(f"tables in {folder}", highlight=False, markup=False)


def _write_facts(folder: Path, known: Facts, source: str, command: str) -> None:
    """What the tables do not say: case, method, where from, and the command."""
    own = {"source": source, "command": re.sub(r"(?<![^\s='])/\S*/", "", command)}  # folders are this machine's
    (folder / "facts.json").write_text(json.dumps(asdict(known) | own, indent=1) + "\n")
