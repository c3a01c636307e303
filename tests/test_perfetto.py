"""A recorded profile as a trace for ui.perfetto.dev: its schema always, its own trace processor where there is one."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from resa_bench.profiling.perfetto import PASSES_TID, Launched, trace_events, write_trace
from resa_bench.suites import cli
from resa_bench.suites.profile.commands import write_perfetto

ROOT = Path(__file__).parents[1]
RECORDED = sorted(path.parent for path in (ROOT / "results").glob("*/profile/*/timeline.csv*"))
KERNELS = [
    Launched("step", "graph", "append+score", "score_kernel", 0.0, 4.0),
    Launched("step", "graph", "attend", "attend_kernel", 3.0, 10.0),  # let in early
    Launched("step", "graph", "attend", "short_kernel", 5.0, 9.0),  # ends before its turn
    Launched("rectification", "eager", "rectify", "chunk_kernel", 0.0, 20.0),
]


def checked(trace: dict[str, Any]) -> pd.DataFrame:
    """The kernels of a trace, of which this holds what the format asks for."""
    assert set(trace) == {"traceEvents", "displayTimeUnit", "otherData"}
    assert trace["displayTimeUnit"] in ("ms", "ns")
    threads = set()
    for event in trace["traceEvents"]:
        assert {"ph", "name", "pid", "tid", "args"} <= set(event)
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name", "thread_sort_index")
            threads |= {(event["pid"], event["tid"])} if event["name"] == "thread_name" else set()
            continue
        assert event["ph"] == "X"
        assert event["ts"] >= 0
        assert event["dur"] >= 0
        assert (event["pid"], event["tid"]) in threads
    events = pd.DataFrame([event for event in trace["traceEvents"] if event["ph"] == "X"])
    for _, lane in events.groupby(["pid", "tid"]):  # nested by accident, or misplaced: viewers drop such events
        ordered = lane.sort_values("ts", kind="stable")
        assert ((ordered.ts + ordered.dur).cummax().shift(fill_value=0) <= ordered.ts + 2e-3).all()
    return events


def test_a_kernel_starts_with_its_turn_and_a_pass_after_the_one_before() -> None:
    trace = trace_events({"resa b16": KERNELS}, device="a GPU")
    events = checked(trace)
    assert list(events[events.tid == PASSES_TID].name) == ["step", "rectification"]
    kernels = events[events.tid != PASSES_TID].set_index("name")
    assert kernels.ts.to_dict() == {"score_kernel": 0, "attend_kernel": 4, "short_kernel": 10, "chunk_kernel": 10}
    assert kernels.dur.to_dict() == {"score_kernel": 4, "attend_kernel": 6, "short_kernel": 0, "chunk_kernel": 20}
    assert kernels.args["attend_kernel"] == {"start_us": 3.0, "waited_us": 1.0}
    names = {e["args"].get("name"): e["tid"] for e in trace["traceEvents"] if e["ph"] == "M"}
    assert {"resa b16", "append+score", "attend", "rectify", "passes"} <= set(names)
    assert trace["otherData"] == {"device": "a GPU"}


def test_each_method_is_a_process(tmp_path: Path) -> None:
    write_trace(tmp_path / "a" / "t.json", trace_events({"resa b16": KERNELS, "sdpa-cudnn": KERNELS[:1]}))
    events = checked(json.loads((tmp_path / "a" / "t.json").read_text()))
    assert set(events.pid) == {1, 2}


def test_there_are_recorded_profiles() -> None:
    assert RECORDED


@pytest.mark.parametrize("folder", RECORDED, ids=lambda folder: folder.name)
def test_a_recorded_profile_keeps_every_kernel_and_its_length(folder: Path, tmp_path: Path) -> None:
    write_perfetto(folder, tmp_path / "t.json")
    trace = json.loads((tmp_path / "t.json").read_text())
    events, table = checked(trace), pd.read_csv(next(folder.glob("timeline.csv*")))
    kernels = events[events.tid != PASSES_TID]
    assert sorted(kernels.name) == sorted(table.kernel)
    assert kernels.groupby("cat").size().to_dict() == table.groupby("stage").size().to_dict()
    passes = events[events.tid == PASSES_TID].set_index("name").dur
    assert passes.to_dict() == pytest.approx(table.groupby("kind").end_us.max().to_dict())
    assert trace["otherData"]["case"] == json.loads((folder / "facts.json").read_text())["case"]


def test_the_flag_without_a_file_means_one_beside_the_tables() -> None:
    parsed = [
        cli.build_parser().parse_args(["profile", "nsys", *words])
        for words in ([], ["--perfetto"], ["--perfetto", "x"])
    ]
    assert [getattr(values, "perfetto", None) for values in parsed] == [None, Path("trace.json"), Path("x")]


def test_a_cpu_has_no_kernels_to_trace(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["profile", "nsys", "qwen2.5-7b-b1-4k", "--device", "cpu", "--perfetto"]) == 2
    assert "a CPU records no kernels; expected a CUDA device" in " ".join(capsys.readouterr().err.split())


def processor_missing() -> str:
    """Why the trace processor cannot run; empty where it can."""
    if importlib.util.find_spec("perfetto") is None:
        return "not installed: pip install perfetto"
    if shutil.which("trace_processor_shell") is None:
        return "no trace_processor_shell on PATH (the package would fetch it)"
    return ""


@pytest.mark.skipif(bool(processor_missing()), reason=processor_missing() or "-")
@pytest.mark.parametrize("folder", RECORDED, ids=lambda folder: folder.name)
def test_perfettos_own_trace_processor_reads_it(folder: Path, tmp_path: Path) -> None:
    from perfetto.trace_processor import (  # type: ignore[import-not-found, unused-ignore]
        TraceProcessor,
        TraceProcessorConfig,
    )

    write_perfetto(folder, tmp_path / "t.json")
    events = checked(json.loads((tmp_path / "t.json").read_text()))
    config = TraceProcessorConfig(bin_path=shutil.which("trace_processor_shell"))
    with TraceProcessor(trace=str(tmp_path / "t.json"), config=config) as processor:
        slices = processor.query("select name, dur from slice").as_pandas_dataframe()
        assert sorted(slices.name) == sorted(events.name)
        assert slices.dur.sum() / 1e3 == pytest.approx(events.dur.sum(), rel=1e-3)
        broken = processor.query("select sum(value) as n from stats where severity = 'error'").as_pandas_dataframe()
        assert broken.n[0] == 0
